"""Figures: readable in black and white and by colour-blind people, units on every axis, targets drawn in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from slos.core.types import Request
from slos.evaluation.stats import Frame, select
from slos.records.report import paper
from slos.studies.capacity import OURS
from slos.studies.timeline import Timeline, fate

NAMES = {"vllm": "vLLM (paper's)", "vllm-v1": "vLLM V1", "sarathi": "Sarathi-Serve", OURS: "SLOs-Serve",
         "distserve": "DistServe"}  # fmt: skip
MARKERS = "osD^vPX*" * 4
Inches = tuple[float, float]
DASHED = {"color": "black", "linewidth": 0.8, "linestyle": "--"}
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--") * 4


def name_of(system: str) -> str:
    return NAMES.get(system, system)


def unique(values: Iterable[Any]) -> list[Any]:
    """In the order in which they come."""
    return list(dict.fromkeys(values))


def colors(systems: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A colour of its own for every system, ours darkest; the palette is safe for colour-blind readers."""
    return dict(zip(systems, sns.color_palette("colorblind", len(systems)), strict=True))


def panels(
    titles: Sequence[str], each: Inches, edge: Inches, ylabel: str, columns: int = 0, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per title, `columns` of them in a row (0: all). each, edge: inches of and around them.

    A single narrow panel is drawn wider, so that the legend over it finds room.
    """
    columns = min(columns or len(titles), len(titles))
    lines = -(-len(titles) // columns)
    size = max(6.8, each[0] * columns + edge[0]), each[1] * lines + edge[1]
    figure, axes = plt.subplots(lines, columns, figsize=size, layout="constrained", squeeze=False, **shared)
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=10)
    return figure, list(axes.flat[: len(titles)])


def finish(figure: Figure, text: str, keys: Axes | None = None, **looks: Any) -> Figure:
    """A small line under it: simulated or measured, from what data; and over it a legend of what is in `keys`."""
    sns.despine(fig=figure)
    if keys:
        looks = {"loc": "outside upper center", "frameon": False, "fontsize": 9} | looks
        figure.legend(*keys.get_legend_handles_labels(), **looks)
    lines = fill(text, int(18 * figure.get_figwidth()))
    figure.supxlabel(lines, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def whiskers(axis: Axes, x: Any, rows: Frame, i: int, value: str = "ratio", across: bool = False, **looks: Any) -> None:
    """Marks at `value` with its interval, of the i-th system; `across`: x is the other axis."""
    bounds = np.maximum(0, np.array([rows[value] - rows["low"], rows["high"] - rows[value]]))
    at, error = ((rows[value], x), "xerr") if across else ((x, rows[value]), "yerr")
    looks |= {error: bounds, "marker": MARKERS[i], "markeredgecolor": "black", "markeredgewidth": 0.4}
    axis.errorbar(*at, capsize=2, **looks)


def plain_log(axis: Axis, *subs: float, ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis with numbers as one writes them: `ticks`, or `subs` times the powers of ten."""
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path | str, name: str) -> Path:
    """Write `name`.png into the folder's figures."""
    path = Path(folder) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    return path


def capacity_bars(best: Frame, source: str) -> Figure:
    """Capacity per scenario and system, each scenario relative to ours, with intervals and the number on the bar."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    figure, axes = panels(scenarios, (2.1, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    palette = colors(systems)
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = best[best["scenario"] == scenario]
        most = rows["capacity"].max()
        for row in rows.itertuples():
            i, bounds = systems.index(row.system), [[row.capacity - row.low], [row.high - row.capacity]]
            axis.bar(i, row.capacity, color=palette[row.system], hatch=HATCHES[i], edgecolor="black", linewidth=0.6,
                     label=name_of(row.system))  # fmt: skip
            axis.errorbar(i, row.capacity, yerr=np.maximum(0, bounds), color="black", linewidth=1, capsize=2)
            axis.annotate(f"{row.capacity:.3g}", (i, 0.04 * most), ha="center", fontsize=8, rotation=90,
                          bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8})  # fmt: skip
        axis.set(xticks=[], ylim=(0, 1.25 * most))
    said = f"{source}; bars: best setting of each system, whiskers: 95 % interval over seeds"
    return finish(figure, said, axes[0], ncols=len(systems))


def attainment_curves(probes: Frame, best: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment against load for the best setting of every system, one panel per scenario, the target drawn in."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    figure, axes = panels(scenarios, (3.4, 2.5), (0, 0.5), "attainment (%)", 3, sharey=True)
    palette = colors(systems)
    chosen = probes.merge(best[["scenario", "system", "setting"]], on=["scenario", "system", "setting"])
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = chosen[chosen["scenario"] == scenario]
        for i, system in enumerate(systems):
            for n, (_, points) in enumerate(rows[rows["system"] == system].sort_values("rate").groupby("seed")):
                axis.plot(points["rate"], 100 * points["attainment"], marker=MARKERS[i], markersize=max(3, 7 - i),
                          linewidth=max(0.7, 2.2 - 0.5 * i), color=palette[system], markeredgecolor="black",
                          markeredgewidth=0.3, label=None if n else name_of(system))  # fmt: skip
        axis.axhline(100 * target, **DASHED)
        axis.set_xscale("log")
        plain_log(axis.xaxis, 1, 2, 5)
        axis.set_xlabel("load (requests/s per GPU)")
    said = f"{source}; points: loads that the capacity search tried, a line per seed; dashed: target {target:.0%}"
    return finish(figure, said, axes[0], ncols=len(systems))


def dots(axis: Axes, table: Frame, groups: Mapping[str, tuple[Any, Frame]], step: float, paper: float) -> None:
    """Ratios by scenario of `groups` side by side, by label; 1 and the paper's number as lines. table: all rows."""
    scenarios = unique(table["scenario"])
    for i, (label, (color, rows)) in enumerate(groups.items()):
        x = np.arange(len(scenarios)) + (i - (len(groups) - 1) / 2) * step
        rows = rows.set_index("scenario").reindex(scenarios)
        whiskers(axis, x, rows, i, linestyle="none", color=color, label=label)
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axhline(paper, **DASHED)
    axis.set_xticks(range(len(scenarios)), scenarios)


def ratio_chart(table: Frame, means: Frame, source: str) -> Figure:
    """Ours over each system, per scenario, geometric mean last; the paper's figure as a line."""
    rows, reported = pd.concat([table, means.assign(scenario="geometric mean")]), paper("capacity_vs_vllm")
    count = len(set(rows["scenario"]))
    figure, axis = plt.subplots(figsize=(max(7.5, 1.3 * count + 1.5), 3.4), layout="constrained")
    groups = {
        f"over {'the best of them' if other == 'best' else name_of(other)}": (color, rows[rows["against"] == other])
        for other, color in colors(unique(table["against"])).items()
    }
    dots(axis, rows, groups, 0.8 / max(5, len(groups)), reported)
    said = f" paper:\n {reported:g}x"
    axis.annotate(said, (1, reported), xycoords=axis.get_yaxis_transform(), va="center", fontsize=8)
    axis.axvline(count - 1.5, color="0.7", linewidth=0.8)
    axis.set(ylabel="SLOs-Serve over another (x)", ylim=(0, 1.08 * max([reported, *rows["high"]])))
    return finish(figure, f"{source}; whiskers: 95 % interval over seeds", axis, fontsize=8, ncols=min(4, len(groups)))


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
    """What schedulers do with a burst: arrivals, tokens by kind, requests in the system, TTFT against its SLO."""
    span = max(s.end for run in runs for s in run.steps)
    edges = np.linspace(0, span, 121)
    middle = (edges[1:] + edges[:-1]) / 2
    figure, axes = plt.subplots(
        4, len(runs), figsize=(5.2 * len(runs), 8.2), layout="constrained", sharex=True, sharey="row", squeeze=False
    )
    kinds = (("decode", "decode", "0.35", ""), ("prefill", "prefill", "#56B4E9", "//"),
             ("best_effort", "best effort", "#E69F00", ".."))  # fmt: skip
    for column, run in zip(axes.T, runs, strict=True):
        attained = sum(o.attained for o in run.outcomes) / len(run.outcomes)
        column[0].set_title(f"{name_of(run.system)}: {attained:.1%} of requests attained")
        rate = np.histogram([r.arrival for r in requests], edges)[0] / np.diff(edges)
        column[0].step(middle, rate, where="mid", color="black", linewidth=1)
        parts = [_per_second(run, field, edges) for field, *_ in kinds]
        stacks = column[1].stackplot(middle, *parts, colors=[k[2] for k in kinds], labels=[k[1] for k in kinds])
        for stack, kind in zip(stacks, kinds, strict=True):
            stack.set(hatch=kind[3], edgecolor="white", linewidth=0)
        at = [s.end for s in run.steps]
        for name, color, style in (("running", "black", "-"), ("waiting", "#D55E00", "--")):
            counts = [getattr(s, name) for s in run.steps]
            column[2].step(at, counts, where="post", color=color, linewidth=1, linestyle=style, label=name)
        looks = (("attained", "o", "#0072B2"), ("late", "x", "#D55E00"), ("declined", "^", "#E69F00"))
        for label, marker, color in looks:
            mine = [o for o in run.outcomes if label == fate(o)]
            column[3].scatter([o.arrival for o in mine], [o.ttft / o.ttft_slo for o in mine], marker=marker, s=16,
                              color=color, linewidths=0.9, label=f"{label} ({len(mine)})")  # fmt: skip
        column[3].axhline(1, **DASHED)
        column[3].set(yscale="log", xlabel="time (s)")
        column[3].legend(fontsize=8, loc="upper right", frameon=True)
        for axis in column:
            axis.margins(x=0)
    labels = "arrivals\n(requests/s)", "served\n(tokens/s)", "requests", "TTFT over its SLO\n(dashed: target)"
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    for axis in axes[1:3, 0]:
        axis.legend(fontsize=8, loc="upper left", frameon=True)
    return finish(figure, source)


def engine_curves(table: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment against load on a real engine: measured as lines, simulated as open marks, a panel per workload."""
    workloads, systems = unique(table["scenario"]), sorted(set(table["system"]))
    figure, axes = panels(workloads, (4.2, 3.2), (0, 0), "attainment (%)", sharey=True)
    for axis, workload in zip(axes, workloads, strict=True):
        for i, (system, color) in enumerate(colors(systems).items()):
            for status, style, kind in (("measured", "-", "full"), ("simulated", ":", "none")):
                part = select(table, scenario=workload, system=system, status=status).sort_values("rate")
                axis.plot(part["rate"], 100 * part["attainment"], style, marker=MARKERS[i], color=color,
                          fillstyle=kind, label=f"{name_of(system)}, {status}")  # fmt: skip
        axis.axhline(100 * target, **DASHED)
        axis.set(xlabel="load (requests/s)", ylim=(0, 105))
    return finish(figure, f"{source}; dashed: {target:.0%} of the requests", axes[0], ncols=2)


def planning_curves(planned: Frame) -> Figure:
    """P99 of a step against new requests, a panel per number of running ones, a line per number of tiers."""
    running = sorted(set(planned["running"]))
    titles = [f"{count} running requests" for count in running]
    figure, axes = panels(titles, (3.8, 3), (0, 0), "step with a planning, P99 (ms)", sharey=True)
    palette = sns.color_palette("colorblind", planned["tiers"].max() + 1)
    for axis, count in zip(axes, running, strict=True):
        for tiers, curve in planned[planned["running"] == count].groupby("tiers"):
            axis.plot(curve["new"], curve["step_p99"], marker=MARKERS[tiers], color=palette[tiers], label=str(tiers))
        for limit, word in ((paper("planning_ms"), "paper's longest"), (2, "paper's usual")):
            axis.axhline(limit, **DASHED)
            axis.annotate(f"{word}, {limit:g} ms", (1, limit), xytext=(0, 2), textcoords="offset points", fontsize=7)
        axis.set(xscale="log", yscale="log", xlabel="new requests")
    said = "measured on this machine's CPU: whole steps, from the view to the batch"
    return finish(figure, said, axes[0], title="TPOT tiers", loc="outside right upper")


def simulation_bars(simulated: Frame) -> Figure:
    """CPU seconds per 1,000 simulated requests, a bar per policy and kind of lengths."""
    cases = unique(zip(simulated["scenario"], simulated["lengths"], strict=True))
    systems = unique(simulated["system"])
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for i, (system, color) in enumerate(colors(systems).items()):
        at = np.arange(len(cases)) + (i - (len(systems) - 1) / 2) * 0.2
        values = select(simulated, system=system)["cpu_seconds"]
        axis.bar(at, values, 0.2, color=color, hatch=HATCHES[i], edgecolor="black", label=name_of(system))
    axis.set_xticks(range(len(cases)), [f"{scenario}, {lengths} lengths" for scenario, lengths in cases])
    axis.set_ylabel("CPU s per 1,000 requests")
    axis.legend(fontsize=8, frameon=False)
    return finish(figure, "measured on this machine's CPU, one replica near its capacity, one core")
