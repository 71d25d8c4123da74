"""Figures on many replicas, in the style of `slos.evaluation.figures`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.evaluation.ablation import CLAIMS, PARTS
from slos.evaluation.compare import Frame, mean_of, select
from slos.evaluation.figures import HATCHES, MARKERS, colors, dots, finish, name_of, panels, plain_log, whiskers
from slos.report import paper
from slos.topology import POOLED

LABELS = {POOLED: "one large engine", "": "one replica"}


def routing_chart(table: Frame, replicas: int, source: str) -> Figure:
    """What each router carries over round robin on the same system, per scenario."""
    kinds = list(dict.fromkeys(map(tuple, table[["system", "what"]].values.tolist())))
    palette, reported = colors([what for _, what in kinds]), paper("ablation_routing")
    groups = {
        f"{name_of(system)}, {LABELS.get(what, what)}": (palette[what], select(table, system=system, what=what))
        for system, what in kinds
    }
    figure, axis = plt.subplots(figsize=(1.5 * table["scenario"].nunique() + 1.5, 3.6), layout="constrained")
    dots(axis, table, groups, 0.11, reported)
    axis.annotate(f"paper, geometric mean: {reported:g}x", (-0.45, reported), va="bottom", fontsize=8)
    axis.set_ylabel("capacity over round robin (x)")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    said = f"{source}; {replicas} replicas, each system against itself with round robin; whiskers: 95 % over seeds"
    return finish(figure, said)


def scaling_chart(table: Frame, source: str) -> Figure:
    """Total load of many replicas over that of one, per scenario; dashed: in proportion."""
    scenarios = list(dict.fromkeys(table["scenario"]))
    figure, axes = panels(scenarios, (3.4, 2.5), (0, 0.7), "load over one replica's (x)", 3)
    kinds = [k for k in dict.fromkeys(map(tuple, table[["system", "what"]].values.tolist())) if k[1]]
    palette, reported = colors([str(k) for k in kinds]), paper("scaling_4_replicas")
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = table[table["scenario"] == scenario]
        most = rows["replicas"].max()
        axis.plot([1, most], [1, most], color="black", linewidth=0.8, linestyle="--")
        for i, (system, router) in enumerate(kinds):
            mine = rows[(rows["system"] == system) & rows["what"].isin((router, ""))].sort_values("replicas")
            axis.plot(mine["replicas"], mine["replicas"] * mine["ratio"], marker=MARKERS[i], markersize=5, linewidth=1,
                      color=palette[str((system, router))], markeredgecolor="black", markeredgewidth=0.3,
                      label=f"{name_of(system)}, {router}")  # fmt: skip
        if most >= 4:
            axis.plot(4, reported, marker="_", markersize=16, color="black", label=f"paper's best at 4: {reported:g}x")
        axis.set_xticks(sorted(rows["replicas"].unique()))
        axis.set_xlabel("replicas")
    return finish(figure, f"{source}; dashed: in proportion to the replicas", axes[0], ncols=3, fontsize=8)


def disaggregation_bars(best: Frame, source: str) -> Figure:
    """Capacity per GPU of prefill and decode apart, and side by side on as many GPUs, with the same router."""
    scenarios, systems = list(dict.fromkeys(best["scenario"])), list(dict.fromkeys(best["system"]))
    names = [t or f"{n} together" for t, n in zip(best["topology"], best["replicas"], strict=True)]
    best = best.assign(name=names)
    kinds = sorted(set(names), key=lambda name: (":" in name, name))
    figure, axes = panels(scenarios, (2.3, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    palette = colors(kinds)
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = best[best["scenario"] == scenario]
        for k, kind in enumerate(kinds):
            mine = rows[rows["name"] == kind].set_index("system").reindex(systems)
            x = np.arange(len(systems)) + (k - (len(kinds) - 1) / 2) * 0.17
            axis.bar(x, mine["capacity"], 0.17, color=palette[kind], hatch=HATCHES[k], edgecolor="black", linewidth=0.5,
                     label=kind)  # fmt: skip
        axis.set_xticks(range(len(systems)), [name_of(s) for s in systems], rotation=30, ha="right", fontsize=8)
    said = f"{source}; 1:1, 2:1, 1:2: prefill to decode replicas; all with the router least-loaded"
    return finish(figure, said, axes[0], ncols=len(kinds))


def ablation_chart(table: Frame, source: str) -> Figure:
    """What each part brings, off alone and on alone, a panel per part: scenarios, geometric mean last, the paper's."""
    parts = [part for part in PARTS if part in set(table["part"])]
    names = [*dict.fromkeys(table["scenario"]), "geometric mean"]
    each, titles = (2.3, 0.42 * len(names)), [PARTS[part] for part in parts]
    figure, axes = panels(titles, each, (1.2, 1.5), "", sharey=True, sharex=True)
    hows = ("off alone", "on alone")
    palette = colors(hows)
    for axis, part in zip(axes, parts, strict=True):
        for i, how in enumerate(hows):
            mine = select(table, part=part, how=how)[["scenario", "ratio", "low", "high", "each"]]
            mean = pd.DataFrame([(names[-1], *mean_of(mine))], columns=["scenario", "ratio", "low", "high"])
            rows = pd.concat([mine, mean])
            y = [names.index(name) + (i - 0.5) * 0.26 for name in rows["scenario"]]
            whiskers(axis, y, rows, i, across=True, linestyle="none", color=palette[how], label=how)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axhline(len(names) - 1.5, color="0.7", linewidth=0.8)
        if part in CLAIMS:
            said = paper(CLAIMS[part])
            axis.axvline(said, color="black", linewidth=0.8, linestyle="--")
            axis.annotate(f" paper: {said:g}x", (said, -0.45), fontsize=7)
        axis.set_xscale("log")
        plain_log(axis.xaxis, 1, 1.2, 1.5, 2, 3, 5, 7)
        axis.set_xlabel("capacity, with over without")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    said = f"{source}; off alone: all parts over all but one; on alone: the base with one part over the base; "
    said += "whiskers: 95 % over seeds; speculation: where there is a draft model"
    return finish(figure, said, axes[0], ncols=2)
