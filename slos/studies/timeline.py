"""Bursts, and what schedulers do with them: step by step, for one burst; and in windows of time,
for several: load, tail latencies over their objectives, attainment and best effort."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slos.core.attainment import Outcome
from slos.core.types import Request, require
from slos.evaluation import plots
from slos.evaluation.grids import check_cases, swept
from slos.evaluation.plots import ABOVE, DASHED, MARKERS, colors, finish, name_of, plain_log, unique
from slos.evaluation.runs import hardware_of, serve
from slos.evaluation.sizes import size_of
from slos.evaluation.stats import select
from slos.files import Frame
from slos.hardware.profiles import Profile
from slos.sim.replica import Replica, Step
from workloads import build

SPANS = {"smoke": 40.0, "quick": 80.0, "full": 160.0}  # seconds on which bursts come
FATES = {"attained": ("o", "#0072B2"), "late": ("x", "#D55E00"), "declined": ("^", "#E69F00")}
"""What becomes of requests, and how they are marked."""


def fate(outcome: Outcome) -> str:
    """`attained`, `declined` into best effort, or `late`."""
    return "attained" if outcome.attained else "declined" if outcome.declined else "late"


def with_burst(
    base: Sequence[Request], at: float, extra: Sequence[Request], name: str = "burst"
) -> list[Request]:
    """`base` with `extra` from `at` seconds on, by arrival; `name` goes before their ids."""
    late = [replace(r, id=f"{name}-{r.id}", arrival=r.arrival + at) for r in extra]
    return sorted([*base, *late], key=lambda r: r.arrival)


@dataclass(frozen=True, slots=True)
class Timeline:
    """One system's run, step by step and request by request."""

    system: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]


def timeline(requests: Sequence[Request], system: str, hardware: Profile) -> Timeline:
    """Serve and keep every step, for a figure."""
    steps: list[Step] = []

    def keep(_: Replica, step: Step, done: tuple[Outcome, ...]) -> None:
        steps.append(step)

    outcomes = serve(requests, system, hardware, observe=keep)
    return Timeline(system, tuple(steps), tuple(outcomes))


def summary(runs: Sequence[Timeline]) -> Frame:
    """By system: shares of requests by fate, latencies, and how long best effort took."""
    rows = {}
    for run in runs:
        frame = pd.DataFrame([asdict(o) for o in run.outcomes])
        fates = pd.Series([fate(o) for o in run.outcomes])
        effort: Frame = (frame["finish"] - frame["arrival"])[frame["declined"]]
        rows[run.system] = {
            **{f"{name} (%)": 100 * fates.eq(name).mean() for name in FATES},
            "attained, clients' rule (%)": 100 * frame["attained_client"].mean(),
            "TTFT P50 (ms)": 1e3 * frame["ttft"].median(),
            "TTFT P99 (ms)": 1e3 * frame["ttft"].quantile(0.99),
            "TPOT P99 (ms)": 1e3 * frame["tpot"].quantile(0.99),
            "best effort, P50 (s)": effort.median(),
            "best effort, P99 (s)": effort.quantile(0.99),
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def windows(run: Timeline, requests: Sequence[Request], width: float) -> Frame:
    """A row per window of `width` seconds, by arrival, with its middle as `time`: requests per
    second; of those that arrived P99 of TTFT and of mean TPOT over their objectives, guaranteed or
    not, and the shares (%) that met every objective and that became best effort."""
    require(width > 0, "width", width, "positive (seconds)")
    pace = {r.id: sum(s.output * s.slo.tpot for s in r.stages) / r.output for r in requests}
    rows = [
        (o.arrival, o.ttft / o.ttft_slo, o.tpot / pace[o.id], 100 * o.attained, 100 * o.declined)
        for o in run.outcomes
    ]
    frame = pd.DataFrame(rows, columns=["arrival", "ttft", "tpot", "attained", "declined"])
    groups = frame.groupby((frame["arrival"] // width).astype(int))
    found = {
        "time": (groups.size().index + 0.5) * width,
        "arrivals": groups.size() / width,
        "ttft_p99": groups["ttft"].quantile(0.99),
        "tpot_p99": groups["tpot"].quantile(0.99),
        "attained": groups["attained"].mean(),
        "best_effort": groups["declined"].mean(),
    }
    return pd.DataFrame(found).reset_index(drop=True)


def _per_second(timeline: Timeline, field: str, edges: np.ndarray) -> np.ndarray:
    """Tokens per second in each bin, a step's tokens spread evenly over its time."""
    steps = timeline.steps
    start, end = np.array([s.start for s in steps]), np.array([s.end for s in steps])
    tokens = np.array([getattr(s, field) * s.count for s in steps], dtype=float)
    # Cumulative tokens at any time: interpolate between the ends of steps (idle gaps add nothing).
    knots = np.column_stack([start, end]).ravel()
    total = np.column_stack([np.cumsum(tokens) - tokens, np.cumsum(tokens)]).ravel()
    return np.diff(np.interp(edges, knots, total, left=0.0, right=total[-1])) / np.diff(edges)


def burst_timeline(requests: Sequence[Request], runs: Sequence[Timeline], source: str) -> Figure:
    """Arrivals, tokens by kind, requests in the system, TTFT over its SLO: a column per run."""
    edges = np.linspace(0, max(s.end for run in runs for s in run.steps), 121)
    size, shared = (5.2 * len(runs), 8.2), {"sharex": True, "sharey": "row", "squeeze": False}
    figure, axes = plt.subplots(4, len(runs), figsize=size, layout="constrained", **shared)
    arrivals = [r.arrival for r in requests]
    for column, run in zip(axes.T, runs, strict=True):
        attained = sum(o.attained for o in run.outcomes) / len(run.outcomes)
        column[0].set_title(f"{name_of(run.system)}: {attained:.1%} of requests attained")
        _one_run(column, arrivals, run, edges)
        for axis in column:
            axis.margins(x=0)
    labels = "arrivals\n(requests/s)", "served\n(tokens/s)", "requests"
    labels = *labels, "TTFT over its SLO\n(dashed: target)"
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    for axis in axes[1:3, 0]:
        axis.legend(**ABOVE)
    return finish(figure, source)


def _one_run(
    column: Sequence[Axes], arrivals: list[float], run: Timeline, edges: np.ndarray
) -> None:
    """The panels of one system, from top to bottom."""
    load, served, counts, first = column
    middle = (edges[1:] + edges[:-1]) / 2
    rate = np.histogram(arrivals, edges)[0] / np.diff(edges)
    load.step(middle, rate, where="mid", color="black", linewidth=1)
    kinds = (("decode", "0.35", ""), ("prefill", "#56B4E9", "//"), ("best_effort", "#E69F00", ".."))
    parts, hues = [_per_second(run, name, edges) for name, *_ in kinds], [k[1] for k in kinds]
    labels = [name.replace("_", " ") for name, *_ in kinds]
    stacks = served.stackplot(middle, *parts, colors=hues, labels=labels)
    for stack, (*_, hatch) in zip(stacks, kinds, strict=True):
        stack.set(hatch=hatch, edgecolor="white", linewidth=0)
    at = [s.end for s in run.steps]
    for name, color, style in (("running", "black", "-"), ("waiting", "#D55E00", "--")):
        looks = {"where": "post", "color": color, "linewidth": 1, "linestyle": style}
        counts.step(at, [getattr(s, name) for s in run.steps], label=name, **looks)
    for name, (marker, color) in FATES.items():
        mine = [(o.arrival, o.ttft / o.ttft_slo) for o in run.outcomes if fate(o) == name]
        looks = {"marker": marker, "s": 16, "color": color, "linewidths": 0.9}
        first.scatter(*np.reshape(mine, (-1, 2)).T, label=f"{name} ({len(mine)})", **looks)
    first.axhline(1, **DASHED)
    first.set(yscale="log", xlabel="time (s)")
    plain_log(first.yaxis, 1)
    first.legend(**ABOVE)


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

    def __str__(self) -> str:
        """The key of its rows: files of one's own may change."""
        own = [Path(name) for name in (self.scenario, self.profile) if Path(name).is_file()]
        return f"{self!r}" + "".join(f"#{crc32(path.read_bytes()):08x}" for path in own)

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
    """What requests that arrived in a window saw: see `windows`."""

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
    status: str = "simulated"


def watch(case: Bursts) -> list[Window]:
    requests, source = case.requests()
    seen = windows(timeline(requests, case.system, case.hardware), requests, case.width)
    return [
        Window(case.scenario, case.system, case.seed, **row, source=source)
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


def windowed(rows: Frame, width: float, source: str, target: float = 0.9) -> Figure:
    """Load, tails of TTFT and TPOT over their targets, attainment and best effort, by system: means
    over seeds."""
    drawn = (
        ("arrivals", "load\n(requests/s)", None),
        ("ttft_p99", "P99 TTFT\nover its SLO", 1),
        ("tpot_p99", "P99 TPOT\nover its SLO", 1),
        ("attained", "attained (%)", 100 * target),
        ("best_effort", "best effort\n(% of requests)", None),
    )
    figure, axes = plt.subplots(len(drawn), 1, figsize=(8, 9), layout="constrained", sharex=True)
    palette = colors(unique(rows["system"]))
    for axis, (column, label, aim) in zip(axes, drawn, strict=True):
        alike = column == "arrivals"  # the load is the same for all systems
        for i, (system, color) in enumerate([*palette.items()][: 1 if alike else None]):
            groups = select(rows, system=system).groupby("time")[column]
            # a window in which nothing came has no row
            means = groups.sum() / rows["seed"].nunique() if alike else groups.mean()
            looks = {"color": "black" if alike else color, "label": name_of(system)}
            axis.plot(means.index, means, marker=MARKERS[i], **looks, **plots.nested(i))
        if aim is not None:
            axis.axhline(aim, **DASHED)
        if column.endswith("p99"):
            axis.set_yscale("log")
            plain_log(axis.yaxis, 1, 2, 5)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("time of arrival (s)")
    said = f"{source}; windows of {width:g} s by arrival; dashed: target"
    return finish(figure, said, axes[1], ncols=len(palette))
