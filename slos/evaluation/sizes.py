"""How large runs are: smoke, quick and full; and the types of what notebooks are given."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from slos.core.types import require
from workloads import SCENARIOS

Sized = TypeVar("Sized")


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is: requests per simulation (and replica), seeds, precision of a capacity,
    where lengths come from, and which scenarios; on how many replicas, and requests per replica and
    precision of the runs of one seed in which settings are chosen.

    With too few requests all of them are served at once, and capacities of a machine that never
    fills are too high.
    """

    num_requests: int
    seeds: int
    precision: float
    lengths: tuple[str, ...] = ("dataset",)
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    replicas: int = 1
    tuning_requests: int = 0
    tuning_precision: float = 0.0

    @property
    def effort(self) -> dict[str, Any]:
        """The same as fields of a search."""
        return {"num_requests": self.num_requests, "precision": self.precision}


SIZES = {
    "smoke": Size(60, 1, 0.2),
    "quick": Size(300, 3, 0.06),
    "full": Size(1400, 5, 0.02, ("dataset", "trace")),
}


def check_names(what: str, names: Iterable[str], known: Collection[str]) -> None:
    """Refuse a name that is not among the known ones."""
    for name in names:
        require(name in known, what, name, f"one of {', '.join(known)}")


def of_size(name: str, sizes: Mapping[str, Sized]) -> Sized:
    """What a table has for the size of that name; ValueError for an unknown one."""
    check_names("size", [name], sizes)
    return sizes[name]


def size_of(name: str) -> Size:
    return of_size(name, SIZES)


OPT = tuple(name for name in SCENARIOS if SCENARIOS[name].drafting)  # which have a draft model
SCALES = {
    "smoke": Size(60, 1, 0.5, replicas=2, tuning_requests=60, tuning_precision=0.5),
    "quick": Size(
        250, 1, 0.1, replicas=2, tuning_requests=120, tuning_precision=0.15, scenarios=OPT
    ),
    "full": Size(250, 3, 0.05, replicas=4, tuning_requests=250, tuning_precision=0.1),
}


def scale_of(size: str, replicas: int = 0) -> Size:
    """The size of runs on several replicas; replicas: 0 for those of the size."""
    scale = of_size(size, SCALES)
    require(replicas >= 0, "replicas", replicas, "at least 1, or 0 for those of the size")
    return replace(scale, replicas=replicas or scale.replicas)


TEXT, LIST = ("size", "scenario", "profile", "mix", "model", "url"), "a list of names"
LISTS = dict.fromkeys(
    ("scenarios", "systems", "opponents", "profiles", "routers", "workloads", "arguments", "rules"),
    (str, LIST),
) | {"bursts_at": (int | float, "a list of seconds"), "targets": (float, "a list of shares")}
WHOLE = ("workers", "replicas", "drafts", "seed", "burst_requests", "max_context")
NUMBERS = (
    "target", "rate", "slo_scale", "tpot", "ttft", "slowdown", "acceptance", "width",
    "burst_at", "burst_rate", "burst_seconds", "seconds",
)  # fmt: skip


def check(parameters: Mapping[str, Any]) -> None:
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
        elif name == "more":
            cure = "for papermill: -y 'more: {drafts: 3}'"
            named: Any = value
            require(isinstance(named, dict), name, named, "options by name", cure)
            check(named)
