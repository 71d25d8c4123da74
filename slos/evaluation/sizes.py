"""How large runs are: smoke, quick and full; and the types of what notebooks are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from slos.core.types import require
from workloads import SCENARIOS


@dataclass(frozen=True, slots=True)
class Size:
    """Requests per simulation, seeds, precision of a capacity, and where lengths come from."""

    num_requests: int
    seeds: int
    precision: float
    lengths: tuple[str, ...] = ("dataset",)


SIZES = {
    "smoke": Size(60, 1, 0.2),
    "quick": Size(360, 3, 0.04),
    "full": Size(1400, 5, 0.02, ("dataset", "trace")),
}


def size_of(name: str) -> Size:
    require(name in SIZES, "size", name, f"one of {', '.join(SIZES)}")
    return SIZES[name]


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is: replicas, requests per simulation and replica, seeds, precision of a
    capacity; of the runs of one seed in which settings are chosen; and which scenarios.

    With too few requests all of them are served at once, and capacities of a machine that never
    fills are too high.
    """

    replicas: int
    requests: int
    seeds: int
    precision: float
    tuning_requests: int
    tuning_precision: float
    scenarios: tuple[str, ...] = tuple(SCENARIOS)


DRAFTING = tuple(name for name, scenario in SCENARIOS.items() if scenario.drafting)
SCALES = {
    "smoke": Scale(2, 60, 1, 0.5, 60, 0.5),
    "quick": Scale(2, 250, 1, 0.1, 120, 0.15, DRAFTING),
    "full": Scale(4, 250, 3, 0.05, 250, 0.1),
}


def scale_of(size: str, replicas: int = 0) -> Scale:
    """replicas: 0 for those of the size."""
    require(size in SCALES, "size", size, f"one of {', '.join(SCALES)}")
    require(replicas >= 0, "replicas", replicas, "at least 1, or 0 for those of the size")
    return replace(SCALES[size], replicas=replicas or SCALES[size].replicas)


TEXT = ("size", "scenario", "profile", "mix", "model", "url")
NAMES = ("scenarios", "systems", "opponents", "profiles", "routers", "workloads", "rules")
LISTS: dict[str, Any] = dict.fromkeys((*NAMES, "arguments"), (str, "a list of names"))
LISTS |= {"bursts_at": (int | float, "a list of seconds"), "targets": (float, "a list of shares")}
WHOLE = ("workers", "replicas", "drafts", "seed", "burst_requests")
NUMBERS = (
    "target", "rate", "slo_scale", "tpot", "ttft", "width",
    "burst_at", "burst_rate", "burst_seconds", "seconds",
)  # fmt: skip


def check(parameters: Mapping[str, object]) -> None:
    """Refuse a notebook's parameter of a wrong type, as papermill hands it over: `-p scenarios
    chatbot` is text, where a list was meant. Names that are no parameters are passed over."""
    for name, value in parameters.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name in TEXT:
            require(isinstance(value, str), name, value, "text")
        elif name in LISTS:
            kind, bound = LISTS[name]
            good = isinstance(value, list | tuple) and all(isinstance(v, kind) for v in value)
            require(good, name, value, bound, f"for papermill: -y '{name}: [..., ...]'")
        elif name in WHOLE:
            good = number and isinstance(value, int) and value >= 0
            require(good, name, value, "a whole number of at least 0")
        elif name in NUMBERS:
            require(number, name, value, "a number")
