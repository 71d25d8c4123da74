"""Bursts in windows of time: load, tail latencies against their objectives, attainment and best
effort."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from slos.core.types import Request
from slos.evaluation import plots
from slos.evaluation.grids import check_cases, swept
from slos.evaluation.plots import DASHED, MARKERS, colors, name_of, nested
from slos.evaluation.runs import hardware_of
from slos.evaluation.sizes import size_of
from slos.files import Frame
from slos.hardware.profiles import Profile
from slos.studies.timeline import timeline, windows, with_burst
from workloads import build

SPANS = {"smoke": 40.0, "quick": 80.0, "full": 160.0}  # seconds of arrivals


@dataclass(frozen=True, slots=True)
class Bursts:
    """One system under a steady load on which bursts come, `burst_rate` requests per second more
    from each of `at` on.

    at, seconds, width: when they begin, how long they last, and the windows that are looked at, in
    seconds.
    """

    scenario: str
    system: str
    profile: str
    rate: float
    burst_rate: float
    at: tuple[float, ...]
    seconds: float
    width: float
    span: float
    seed: int

    @property
    def hardware(self) -> Profile:
        return hardware_of(self.scenario, self.profile)

    def requests(self) -> tuple[list[Request], str]:
        """In order of arrival, and where their lengths come from."""
        steady = build(self.scenario, self.rate, max(1, round(self.rate * self.span)), self.seed)
        made = steady.requests
        count = max(1, round(self.burst_rate * self.seconds))
        for i, at in enumerate(t for t in self.at if t < self.span):
            more = build(self.scenario, self.burst_rate, count, self.seed + 100 + i)
            made = with_burst(made, at, more.requests, f"burst{i}")
        return list(made), steady.source


@dataclass(frozen=True, slots=True)
class Window:
    """What requests that arrived in a window saw: see `timeline.windows`."""

    scenario: str
    system: str
    seed: int
    time: float
    arrivals: float
    ttft_p99: float
    tpot_p99: float
    attained: float
    best_effort: float
    source: str
    status: str


def watch(case: Bursts) -> list[Window]:
    requests, source = case.requests()
    seen = windows(timeline(requests, case.system, case.hardware), requests, case.width)
    return [
        Window(case.scenario, case.system, case.seed, **row, source=source, status="simulated")
        for row in seen.astype(float).to_dict("records")
    ]


def cases(size: str, systems: Sequence[str], **load: Any) -> list[Bursts]:
    """Every system and seed of a size. load: the other fields of `Bursts`."""
    seeds = size_of(size).seeds
    check_cases([load["scenario"]], systems, load["profile"])
    return [
        Bursts(system=name, span=SPANS[size], seed=seed, **load)
        for name in systems
        for seed in range(seeds)
    ]


def run(size: str, cases: Sequence[Bursts], workers: int | None = None) -> Frame:
    """Rows of `Window`, from results/<size>/bursts.csv where they lie already."""
    return swept(size, "bursts", watch, cases, Window, workers)


def tables(rows: Frame) -> dict[str, Frame]:
    """By system, one row per window: means over seeds."""
    numbers = ["arrivals", "ttft_p99", "tpot_p99", "attained", "best_effort"]
    return {
        str(s): g.groupby("time")[numbers].mean().reset_index()
        for s, g in rows.groupby("system", sort=False)
    }


def phases(rows: Frame, case: Bursts) -> Frame:
    """Per system, before the first burst, in bursts and after: P99s over their objectives, of the
    worst window, and the shares (%) of requests that met every objective or became best effort."""

    def phase(time: float) -> str:
        inside = any(
            at - case.width / 2 < time < at + case.seconds + case.width / 2 for at in case.at
        )
        return "in bursts" if inside else "before" if time < min(case.at, default=0) else "after"

    shares, count = ["attained", "best_effort"], rows["arrivals"] * case.width
    rows = rows.assign(phase=rows["time"].map(phase), count=count)
    rows[shares] = rows[shares].mul(count, axis=0)
    groups = rows.groupby(["system", "phase"], sort=False)
    found = groups[["ttft_p99", "tpot_p99"]].max()
    found[shares] = groups[shares].sum().div(groups["count"].sum(), axis=0)
    return found.reset_index()


def windowed(tables: Mapping[str, Frame], width: float, source: str, target: float = 0.9) -> Figure:
    """Load, tails of TTFT and TPOT over their targets, attainment and best effort, by system."""
    drawn = (
        ("arrivals", "load\n(requests/s)", None),
        ("ttft_p99", "P99 TTFT\nover its SLO", 1),
        ("tpot_p99", "P99 TPOT\nover its SLO", 1),
        ("attained", "attained (%)", 100 * target),
        ("best_effort", "best effort\n(% of requests)", None),
    )
    figure, axes = plt.subplots(len(drawn), 1, figsize=(8, 9), layout="constrained", sharex=True)
    palette = colors(list(tables))
    for axis, (column, label, aim) in zip(axes, drawn, strict=True):
        alike = column == "arrivals"  # for all systems
        for i, (system, table) in enumerate([*tables.items()][: 1 if alike else None]):
            looks = {"color": "black" if alike else palette[system], "label": name_of(system)}
            axis.plot(table["time"], table[column], marker=MARKERS[i], **looks, **nested(i))
        if aim is not None:
            axis.axhline(aim, **DASHED)
        if column.endswith("p99"):
            axis.set_yscale("log")
            plots.plain_log(axis.yaxis, 1, 2, 5)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("time of arrival (s)")
    said = f"{source}; windows of {width:g} s by arrival; dashed: target"
    return plots.finish(figure, said, axes[1], ncols=len(tables))
