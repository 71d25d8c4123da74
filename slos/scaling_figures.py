"""Figures on many replicas, in the style of `slos.figures`."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from slos.ablation import CLAIMS, PARTS
from slos.compare import Frame, mean_of
from slos.figures import HATCHES, MARKERS, colors, name_of, note
from slos.report import paper
from slos.topology import POOLED

LABELS = {POOLED: "one large engine", "": "one replica"}


def routing_chart(table: Frame, replicas: int, source: str, paper: float = 1.19) -> Figure:
    """What each router carries over round robin on the same system, per scenario."""
    scenarios = list(dict.fromkeys(table["scenario"]))
    kinds = list(dict.fromkeys(map(tuple, table[["system", "what"]].values.tolist())))
    figure, axis = plt.subplots(figsize=(1.5 * len(scenarios) + 1.5, 3.6), layout="constrained")
    palette = colors([what for _, what in kinds])
    for i, (system, what) in enumerate(kinds):
        mine = table[(table["system"] == system) & (table["what"] == what)].set_index("scenario").reindex(scenarios)
        x = np.arange(len(scenarios)) + (i - (len(kinds) - 1) / 2) * 0.11
        bounds = np.maximum(0, np.array([mine["ratio"] - mine["low"], mine["high"] - mine["ratio"]]))
        axis.errorbar(x, mine["ratio"], yerr=bounds, fmt=MARKERS[i], capsize=2, color=palette[what],
                      markeredgecolor="black", markeredgewidth=0.4,
                      label=f"{name_of(system)}, {LABELS.get(what, what)}")  # fmt: skip
    axis.axhline(1, color="black", linewidth=0.8)
    axis.axhline(paper, color="black", linewidth=0.8, linestyle="--")
    axis.annotate(f"paper, geometric mean: {paper:g}x", (-0.45, paper), va="bottom", fontsize=8)
    axis.set_xticks(range(len(scenarios)), scenarios)
    axis.set_ylabel("capacity over round robin (x)")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    sns.despine(ax=axis)
    note(
        figure, f"{source}; {replicas} replicas, each system against itself with round robin; whiskers: 95 % over seeds"
    )
    return figure


def scaling_chart(table: Frame, source: str, paper: float = 6.2) -> Figure:
    """Total load of many replicas over that of one, per scenario; dashed: in proportion."""
    scenarios = list(dict.fromkeys(table["scenario"]))
    columns = min(3, len(scenarios))
    lines = -(-len(scenarios) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 2.5 * lines + 0.7), layout="constrained", squeeze=False
    )
    kinds = [k for k in dict.fromkeys(map(tuple, table[["system", "what"]].values.tolist())) if k[1]]
    palette = colors([str(k) for k in kinds])
    for axis, scenario in zip(axes.flat, scenarios, strict=False):
        rows = table[table["scenario"] == scenario]
        most = rows["replicas"].max()
        axis.plot([1, most], [1, most], color="black", linewidth=0.8, linestyle="--")
        for i, (system, router) in enumerate(kinds):
            mine = rows[(rows["system"] == system) & rows["what"].isin((router, ""))].sort_values("replicas")
            axis.plot(mine["replicas"], mine["replicas"] * mine["ratio"], marker=MARKERS[i], markersize=5, linewidth=1,
                      color=palette[str((system, router))], markeredgecolor="black", markeredgewidth=0.3,
                      label=f"{name_of(system)}, {router}")  # fmt: skip
        if most >= 4:
            axis.plot(4, paper, marker="_", markersize=16, color="black", label=f"paper's best at 4: {paper:g}x")
        axis.set_title(scenario, fontsize=10)
        axis.set_xticks(sorted(rows["replicas"].unique()))
        axis.set_xlabel("replicas")
        sns.despine(ax=axis)
    for axis in axes[:, 0]:
        axis.set_ylabel("load over one replica's (x)")
    for axis in list(axes.flat)[len(scenarios) :]:
        axis.set_visible(False)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    note(figure, f"{source}; dashed: in proportion to the replicas")
    return figure


def disaggregation_bars(best: Frame, source: str) -> Figure:
    """Capacity per GPU of prefill and decode apart, and side by side on as many GPUs, with the same router."""
    scenarios, systems = list(dict.fromkeys(best["scenario"])), list(dict.fromkeys(best["system"]))
    names = [t or f"{n} together" for t, n in zip(best["topology"], best["replicas"], strict=True)]
    best = best.assign(name=names)
    kinds = sorted(set(names), key=lambda name: (":" in name, name))
    figure, axes = plt.subplots(
        1, len(scenarios), figsize=(2.3 * len(scenarios) + 0.6, 3.4), layout="constrained", squeeze=False
    )
    palette = colors(kinds)
    for axis, scenario in zip(axes[0], scenarios, strict=True):
        rows = best[best["scenario"] == scenario]
        for k, kind in enumerate(kinds):
            mine = rows[rows["name"] == kind].set_index("system").reindex(systems)
            x = np.arange(len(systems)) + (k - (len(kinds) - 1) / 2) * 0.17
            axis.bar(x, mine["capacity"], 0.17, color=palette[kind], hatch=HATCHES[k], edgecolor="black", linewidth=0.5,
                     label=kind)  # fmt: skip
        axis.set_title(scenario, fontsize=10)
        axis.set_xticks(range(len(systems)), [name_of(s) for s in systems], rotation=30, ha="right", fontsize=8)
        sns.despine(ax=axis)
    axes[0][0].set_ylabel("capacity (requests/s per GPU)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(kinds), frameon=False, fontsize=9)
    note(figure, f"{source}; 1:1, 2:1, 1:2: prefill to decode replicas; all with the router least-loaded")
    return figure


def ablation_chart(table: Frame, source: str) -> Figure:
    """What each part brings, off alone and on alone, a panel per part: scenarios, geometric mean last, the paper's."""
    parts = [part for part in PARTS if part in set(table["part"])]
    names = [*dict.fromkeys(table["scenario"]), "geometric mean"]
    figure, axes = plt.subplots(
        1, len(parts), figsize=(2.3 * len(parts) + 1.2, 0.42 * len(names) + 1.5), layout="constrained", sharey=True,
        sharex=True, squeeze=False,
    )  # fmt: skip
    hows = ("off alone", "on alone")
    palette = colors(hows)
    for axis, part in zip(axes[0], parts, strict=True):
        for i, how in enumerate(hows):
            mine = table[(table["part"] == part) & (table["how"] == how)]
            mean, low, high = mean_of(mine)
            x = [*mine["ratio"], mean]
            lows, highs = [*mine["low"], low], [*mine["high"], high]
            bounds = np.maximum(0, [np.subtract(x, lows), np.subtract(highs, x)])
            y = [names.index(name) + (i - 0.5) * 0.26 for name in (*mine["scenario"], names[-1])]
            axis.errorbar(x, y, xerr=bounds, fmt=MARKERS[i], color=palette[how], capsize=2, label=how,
                          markeredgecolor="black", markeredgewidth=0.4)  # fmt: skip
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axhline(len(names) - 1.5, color="0.7", linewidth=0.8)
        if part in CLAIMS:
            said = paper(CLAIMS[part])
            axis.axvline(said, color="black", linewidth=0.8, linestyle="--")
            axis.annotate(f" paper: {said:g}x", (said, -0.45), fontsize=7)
        axis.set_title(PARTS[part], fontsize=10)
        axis.set_xscale("log")
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 1.2, 1.5, 2, 3, 5, 7)))
        axis.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.set_xlabel("capacity, with over without")
        sns.despine(ax=axis)
    axes[0][0].set_yticks(range(len(names)), names)
    axes[0][0].set_ylim(len(names) - 0.4, -0.6)
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=2, frameon=False, fontsize=9)
    note(figure, f"{source}; off alone: all parts over all but one; on alone: the base with one part over the base; "
         "whiskers: 95 % over seeds; speculation: where there is a draft model")  # fmt: skip
    return figure
