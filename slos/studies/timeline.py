"""A burst, watched step by step: what schedulers do with it, for figures and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.attainment import Outcome
from slos.core.types import Request, require
from slos.evaluation.plots import ABOVE, DASHED, finish, name_of
from slos.evaluation.runs import serve
from slos.files import Frame
from slos.hardware.profiles import Profile
from slos.sim.replica import Replica, Step


def fate(outcome: Outcome) -> str:
    """`attained`, `declined` into best effort, or `late`."""
    return "attained" if outcome.attained else "declined" if outcome.declined else "late"


def with_burst(
    base: Sequence[Request], at: float, extra: Sequence[Request], name: str = "burst"
) -> list[Request]:
    """`base` with all of `extra` arriving from `at` seconds on, in order of arrival; `name` goes
    before their ids."""
    late = [replace(r, id=f"{name}-{r.id}", arrival=r.arrival + at) for r in extra]
    return sorted([*base, *late], key=lambda r: r.arrival)


@dataclass(frozen=True, slots=True)
class Timeline:
    """One system's run, step by step and request by request."""

    system: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]


def timeline(
    requests: Sequence[Request], system: str, hardware: Profile, setting: str = ""
) -> Timeline:
    """Serve and keep every step, for a figure."""
    steps: list[Step] = []

    def keep(_: Replica, step: Step, done: tuple[Outcome, ...]) -> None:
        steps.append(step)

    outcomes = serve(requests, system, hardware, setting, observe=keep)
    return Timeline(system, tuple(steps), tuple(outcomes))


def summary(runs: Sequence[Timeline]) -> Frame:
    """One row per system: shares of requests by fate, latencies, and from arrival to end of best
    effort."""
    rows = {}
    for run in runs:
        frame = pd.DataFrame([(fate(o), o.attained_client, o.ttft, o.tpot) for o in run.outcomes],
                             columns=["fate", "client", "ttft", "tpot"])  # fmt: skip
        effort: Frame = pd.Series(
            [o.finish - o.arrival for o in run.outcomes if o.declined], dtype=float
        )
        share: Frame = frame["fate"].value_counts(normalize=True)
        rows[run.system] = {
            **{
                f"{name} (%)": 100 * share.get(name, 0.0)
                for name in ("attained", "late", "declined")
            },
            "attained, client's rule (%)": 100 * frame["client"].mean(),
            "TTFT P50 (ms)": 1e3 * frame["ttft"].median(),
            "TTFT P99 (ms)": 1e3 * frame["ttft"].quantile(0.99),
            "TPOT P99 (ms)": 1e3 * frame["tpot"].quantile(0.99),
            **{
                f"best effort, {name} (s)": effort.quantile(q)
                for name, q in (("P50", 0.5), ("P99", 0.99))
            },
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def windows(run: Timeline, requests: Sequence[Request], width: float) -> Frame:
    """One row per window of `width` seconds, by arrival, with its middle as `time`.

    Requests per second; and of those that arrived in it P99 of TTFT and of mean TPOT over their
    objectives, guaranteed or not, and the shares (%) that met every objective and that became best
    effort.
    """
    require(width > 0, "width", width, "positive (seconds)")
    pace = {r.id: sum(s.output * s.slo.tpot for s in r.stages) / r.output for r in requests}
    frame = pd.DataFrame(
        [
            (o.arrival, o.ttft / o.ttft_slo, o.tpot / pace[o.id], o.attained, o.declined)
            for o in run.outcomes
        ],
        columns=["arrival", "ttft", "tpot", "attained", "declined"],
    )
    frame = frame.assign(attained=100 * frame["attained"], declined=100 * frame["declined"])
    groups = frame.groupby((frame["arrival"] // width).astype(int))
    return pd.DataFrame(
        {
            "time": (groups.size().index + 0.5) * width,
            "arrivals": groups.size() / width,
            "ttft_p99": groups["ttft"].quantile(0.99),
            "tpot_p99": groups["tpot"].quantile(0.99),
            "attained": groups["attained"].mean(),
            "best_effort": groups["declined"].mean(),
        }
    ).reset_index(drop=True)


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
    """What schedulers do with a burst: arrivals, tokens by kind, requests in the system, TTFT
    against its SLO."""
    span = max(s.end for run in runs for s in run.steps)
    edges = np.linspace(0, span, 121)
    middle, shared = (edges[1:] + edges[:-1]) / 2, {"sharex": True, "sharey": "row"}
    size = 5.2 * len(runs), 8.2
    figure, axes = plt.subplots(
        4, len(runs), figsize=size, layout="constrained", squeeze=False, **shared
    )
    kinds = (("decode", "decode", "0.35", ""), ("prefill", "prefill", "#56B4E9", "//"),
             ("best_effort", "best effort", "#E69F00", ".."))  # fmt: skip
    for column, run in zip(axes.T, runs, strict=True):
        attained = sum(o.attained for o in run.outcomes) / len(run.outcomes)
        column[0].set_title(f"{name_of(run.system)}: {attained:.1%} of requests attained")
        rate = np.histogram([r.arrival for r in requests], edges)[0] / np.diff(edges)
        column[0].step(middle, rate, where="mid", color="black", linewidth=1)
        parts = [_per_second(run, field, edges) for field, *_ in kinds]
        stacks = column[1].stackplot(
            middle, *parts, colors=[k[2] for k in kinds], labels=[k[1] for k in kinds]
        )
        for stack, kind in zip(stacks, kinds, strict=True):
            stack.set(hatch=kind[3], edgecolor="white", linewidth=0)
        at = [s.end for s in run.steps]
        for name, color, style in (("running", "black", "-"), ("waiting", "#D55E00", "--")):
            counts = [getattr(s, name) for s in run.steps]
            column[2].step(
                at, counts, where="post", color=color, linewidth=1, linestyle=style, label=name
            )
        looks = (
            ("attained", "o", "#0072B2"),
            ("late", "x", "#D55E00"),
            ("declined", "^", "#E69F00"),
        )
        for label, marker, color in looks:
            mine = [o for o in run.outcomes if label == fate(o)]
            column[3].scatter(
                [o.arrival for o in mine], [o.ttft / o.ttft_slo for o in mine], marker=marker, s=16,
                color=color, linewidths=0.9, label=f"{label} ({len(mine)})",
            )  # fmt: skip
        column[3].axhline(1, **DASHED)
        column[3].set(yscale="log", xlabel="time (s)")
        column[3].legend(**ABOVE)
        for axis in column:
            axis.margins(x=0)
    labels = (
        "arrivals\n(requests/s)",
        "served\n(tokens/s)",
        "requests",
        "TTFT over its SLO\n(dashed: target)",
    )
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    for axis in axes[1:3, 0]:
        axis.legend(**ABOVE)
    return finish(figure, source)
