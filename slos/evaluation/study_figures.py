"""Figures of the performance model, of beliefs, of what is varied, of bursts in windows, of parts and of replicas."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from slos.core.roofline import Plane, Roofline
from slos.evaluation import plots
from slos.evaluation.plots import DASHED, HATCHES, MARKERS, colors, dots, finish, name_of, panels, unique, whiskers
from slos.evaluation.stats import Frame, mean_of, select
from slos.records.report import paper
from slos.sim.cluster import POOLED
from slos.studies.ablation import CLAIMS, PARTS
from slos.studies.performance import FitCase

LABELS = {
    "slo_scale": "objectives (times the paper's)",
    "target": "attainment asked for",
    "kv_scale": "KV memory (times the profile's)",
    "belief": "batch times as believed (times the true ones)",
}
WHERE = {POOLED: "one large engine", "": "one replica"}


def _rooflines(table: Frame, kind: str, gpu: str) -> dict[str, Roofline]:
    """The fitted forms of a GPU at the smallest degree of parallelism, by name."""
    mine = select(table, kind=kind, gpu=gpu)
    mine = mine[mine["tp"] == mine["tp"].min()].drop_duplicates(["context", "tile"])
    return {
        f"{'with' if r.context else 'no'} context, tile {r.tile}": Roofline(
            tuple(Plane(k1, 0.0, b) for k1, b in (map(float, p.split()) for p in r.planes.split(" | "))),
            r.k_ctx, r.tile,
        )
        for r in mine.itertuples()
    }  # fmt: skip


def steps_and_fits(table: Frame, source: str, most: int = 1024) -> Figure:
    """Steps by tokens, prompts alone, with the paper's form and ours with tiles, a panel per GPU."""
    kind = "kernels" if "kernels" in set(table["kind"]) else "stand-in"
    gpus = unique(table["gpu"])
    figure, axes = panels([gpu.upper() for gpu in gpus], (4.8, 3.4), (0, 0), "time of a step (ms)")
    for axis, gpu in zip(axes, gpus, strict=True):
        steps = FitCase(kind, gpu, 1, False, 1).steps()
        steps = steps[(steps["context"] == 0) & (steps["tokens"] <= most)]
        axis.plot(steps["tokens"], 1e3 * steps["seconds"], ".", color="0.55", markersize=3, label="steps of prompts")
        n = np.arange(1, most + 1)
        looks = (("no context, tile 1", "#0072B2", "--"), ("with context, tile 128", "#D55E00", "-"))
        for name, color, style in looks:
            roofline = _rooflines(table, kind, gpu)[name]
            axis.plot(n, [1e3 * roofline.time(int(t)) for t in n], style, color=color, linewidth=1.3, label=name)
        axis.set(xlabel="tokens of a step", xlim=(0, most), ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, source)


def errors_by_size(table: Frame, source: str) -> Figure:
    """Mean (bars) and largest (marks) relative error by batch size, a panel per GPU and kind of steps."""
    shown = unique(zip(table["kind"], table["gpu"], strict=True))
    least = table.groupby(["kind", "gpu"])["tp"].min()
    titles = [f"{gpu.upper()}, {kind}, TP{least[kind, gpu]}" for kind, gpu in shown]
    figure, axes = panels(titles, (5, 2.5), (0, 0.5), "error (%)", 2, sharey=True)
    looks = ((False, 1, "paper's form", "#0072B2", ""), (True, 1, "with context", "#56B4E9", "//"),
             (True, 128, "with context and tiles of 128", "#D55E00", ".."))  # fmt: skip
    for axis, (kind, gpu) in zip(axes, shown, strict=True):
        mine = select(table, kind=kind, gpu=gpu, tp=least[kind, gpu])
        sizes = sorted(set(mine["tokens"]))
        for i, (context, tile, label, color, hatch) in enumerate(looks):
            rows = select(mine, context=context, tile=tile).set_index("tokens").reindex(sizes)
            x = np.arange(len(sizes)) + (i - 1) * 0.27
            edge = {"edgecolor": "black", "linewidth": 0.4}
            axis.bar(x, 100 * rows["mean_error"], 0.27, color=color, hatch=hatch, label=label, **edge)
            axis.scatter(x, 100 * rows["max_error"], s=18, marker="v", color=color, zorder=3, **edge)
        axis.set_xticks(range(len(sizes)), [str(s) for s in sizes], fontsize=7)
        axis.set_xlabel("tokens of a step, up to")
    return finish(figure, f"{source}; bars: mean error, triangles: largest", axes[0], ncols=3)


def sensitivity(table: Frame, by: str, source: str, value: str = "capacity", ylabel: str = "") -> Figure:
    """`value` against what was varied: a panel per scenario, a line per system; bars where that is the hardware."""
    if by == "profile":
        return plots.capacity_bars(table.assign(scenario=table["scenario"] + "\n" + table["profile"]), source)
    scenarios, systems = unique(table["scenario"]), unique(table["system"])
    figure, axes = panels(scenarios, (4.2, 3.1), (0, 0), ylabel or "capacity (requests/s per GPU)")
    for axis, scenario in zip(axes, scenarios, strict=True):
        for i, (system, color) in enumerate(colors(systems).items()):
            rows = select(table, scenario=scenario, system=system).sort_values(by)
            whiskers(axis, rows[by], rows, i, value, color=color, label=name_of(system))
        axis.set(xlabel=LABELS[by], ylim=(0, None))
        if by in ("slo_scale", "kv_scale", "belief"):
            axis.set_xscale("log")
        axis.set_xticks(sorted(set(table[by])), [f"{v:g}" for v in sorted(set(table[by]))])
        axis.minorticks_off()
    keys = axes[0] if len(systems) > 1 else None
    return finish(figure, f"{source}; whiskers: 95 % interval over seeds", keys, ncols=len(systems))


def belief_curves(table: Frame, source: str) -> Figure:
    """Capacity over that of the true belief, against how long the policy takes batches for, a line per scenario."""
    told = table["belief"].map(lambda text: float(text.split("=")[1]) if text else 1.0)
    figure = sensitivity(table.assign(belief=told), "belief", source, "ratio", "capacity over that of the truth (x)")
    for axis in figure.axes:
        axis.axvline(1, **DASHED)
    return figure


def windowed(tables: Mapping[str, Frame], width: float, source: str, target: float = 0.9) -> Figure:
    """Load, P99 TTFT and TPOT over their targets, attainment and share of best effort, in windows, by system."""
    panels = (
        ("arrivals", "load\n(requests/s)", None),
        ("ttft_p99", "P99 TTFT\nover its SLO", 1),
        ("tpot_p99", "P99 TPOT\nover its SLO", 1),
        ("attained", "attained (%)", 100 * target),
        ("best_effort", "best effort\n(% of requests)", None),
    )
    figure, axes = plt.subplots(len(panels), 1, figsize=(8, 9), layout="constrained", sharex=True)
    palette = colors(list(tables))
    for axis, (column, label, aim) in zip(axes, panels, strict=True):
        for i, (system, table) in enumerate(tables.items()):
            if column == "arrivals" and i:
                continue
            color = "black" if column == "arrivals" else palette[system]
            axis.plot(table["time"], table[column], marker=MARKERS[i], markersize=4, linewidth=1.3, color=color,
                      label=name_of(system))  # fmt: skip
        if aim is not None:
            axis.axhline(aim, **DASHED)
        if column.endswith("p99"):
            axis.set_yscale("log")
            plots.plain_log(axis.yaxis, 1, 2, 5)
        axis.set_ylabel(label)
    axes[-1].set_xlabel("time of arrival (s)")
    said = f"{source}; windows of {width:g} s by arrival; dashed: target"
    return finish(figure, said, axes[1], ncols=len(tables))


def summary_chart(table: Frame, source: str) -> Figure:
    """Ours over the paper's number, a bar per claim that was run; 1 is the paper's value, right of it is better."""
    table = table[table["against"].notna()]
    figure, axis = plt.subplots(figsize=(8, 0.34 * max(4, len(table)) + 1.2), layout="constrained")
    looks = {"OK": ("#009E73", HATCHES[0]), "NEAR": ("#E69F00", HATCHES[1]), "MISS": ("#D55E00", HATCHES[3])}
    for i, r in enumerate(table.iloc[::-1].itertuples()):
        color, hatch = looks[r.verdict]
        axis.barh(i, r.against, color=color, hatch=hatch, edgecolor="black", linewidth=0.5)
        axis.annotate(f"{r.ours:.3g} of {r.paper:g}", (r.against, i), xytext=(3, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axis.set_yticks(range(len(table)), [r.what for r in table.iloc[::-1].itertuples()], fontsize=8)
    axis.axvline(1, **DASHED)
    axis.set_xscale("log")
    plots.plain_log(axis.xaxis, ticks=(0.25, 0.5, 1, 2, 4, 8))
    axis.set_xlabel("ours over the paper's (of times, the inverse)")
    keys = [Patch(facecolor=c, hatch=h, edgecolor="black", label=verdict) for verdict, (c, h) in looks.items()]
    axis.legend(handles=keys, frameon=False, fontsize=8, loc="lower right")
    axis.margins(x=0.15)
    return finish(figure, source)


def routing_chart(table: Frame, replicas: int, source: str) -> Figure:
    """What each router carries over round robin on the same system, per scenario."""
    kinds = unique(zip(table["system"], table["what"], strict=True))
    palette, reported = colors([what for _, what in kinds]), paper("ablation_routing")
    groups = {
        f"{name_of(system)}, {WHERE.get(what, what)}": (palette[what], select(table, system=system, what=what))
        for system, what in kinds
    }
    figure, axis = plt.subplots(figsize=(max(7.5, 1.5 * table["scenario"].nunique() + 1.5), 3.6), layout="constrained")
    dots(axis, table, groups, 0.11, reported)
    axis.annotate(f"paper, geometric mean: {reported:g}x", (-0.45, reported), va="bottom", fontsize=8)
    axis.set_ylabel("capacity over round robin (x)")
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="lower left", bbox_to_anchor=(0, 1))
    said = f"{source}; {replicas} replicas, each system against itself with round robin; whiskers: 95 % over seeds"
    return finish(figure, said)


def scaling_chart(table: Frame, source: str) -> Figure:
    """Total load of many replicas over that of one, per scenario; dashed: in proportion."""
    scenarios = unique(table["scenario"])
    figure, axes = panels(scenarios, (3.4, 2.5), (0, 0.7), "load over one replica's (x)", 3)
    kinds = [kind for kind in unique(zip(table["system"], table["what"], strict=True)) if kind[1]]
    palette, reported = colors([str(k) for k in kinds]), paper("scaling_4_replicas")
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = table[table["scenario"] == scenario]
        most = rows["replicas"].max()
        axis.plot([1, most], [1, most], **DASHED)
        for i, (system, router) in enumerate(kinds):
            mine = rows[(rows["system"] == system) & rows["what"].isin((router, ""))].sort_values("replicas")
            mine = mine.assign(**{name: mine["replicas"] * mine[name] for name in ("ratio", "low", "high")})
            looks = {"color": palette[str((system, router))], "label": f"{name_of(system)}, {router}"}
            whiskers(axis, mine["replicas"], mine, i, markersize=5, linewidth=1, **looks)
        if most >= 4:
            axis.plot(4, reported, marker="_", markersize=16, color="black", label=f"paper's best at 4: {reported:g}x")
        axis.set_xticks(sorted(rows["replicas"].unique()))
        axis.set_xlabel("replicas")
    said = f"{source}; dashed: in proportion to the replicas; whiskers: 95 % over seeds"
    return finish(figure, said, axes[0], ncols=3, fontsize=8)


def disaggregation_bars(best: Frame, source: str) -> Figure:
    """Capacity per GPU of prefill and decode apart, and side by side on as many GPUs, with the same router."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    best = best.assign(kind=[t or f"{n} together" for t, n in zip(best["topology"], best["replicas"], strict=True)])
    kinds = sorted(set(best["kind"]), key=lambda kind: (":" in kind, kind))
    figure, axes = panels(scenarios, (2.3, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    for axis, scenario in zip(axes, scenarios, strict=True):
        for k, (kind, color) in enumerate(colors(kinds).items()):
            mine = select(best, scenario=scenario, kind=kind).set_index("system").reindex(systems)
            x = np.arange(len(systems)) + (k - (len(kinds) - 1) / 2) * 0.17
            axis.bar(x, mine["capacity"], 0.17, color=color, hatch=HATCHES[k], edgecolor="black", linewidth=0.5,
                     label=kind)  # fmt: skip
            bounds = np.maximum(0, [mine["capacity"] - mine["low"], mine["high"] - mine["capacity"]])
            axis.errorbar(x, mine["capacity"], yerr=bounds, fmt="none", color="black", linewidth=0.8)
        axis.set_xticks(range(len(systems)), [name_of(s) for s in systems], rotation=30, ha="right", fontsize=8)
    said = f"{source}; 1:1, 2:1, 1:2: prefill to decode replicas; all with the router least-loaded; "
    said += "whiskers: 95 % over seeds"
    return finish(figure, said, axes[0], ncols=len(kinds))


def ablation_chart(table: Frame, source: str) -> Figure:
    """What each part brings, off alone and on alone, a panel per part: scenarios, geometric mean last, the paper's."""
    parts = [part for part in PARTS if part in set(table["part"])]
    names = [*unique(table["scenario"]), "geometric mean"]
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
            axis.axvline(said, **DASHED)
            axis.annotate(f" paper: {said:g}x", (said, -0.45), fontsize=7)
        axis.set_xscale("log")
        plots.plain_log(axis.xaxis, 1, 1.2, 1.5, 2, 3, 5, 7)
        axis.set_xlabel("capacity, with over without")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    said = f"{source}; off alone: all parts over all but one; on alone: the base with one part over the base; "
    said += "whiskers: 95 % over seeds; speculation: where there is a draft model"
    return finish(figure, said, axes[0], ncols=2)
