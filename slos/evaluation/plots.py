"""Figures: readable in black and white and by the colour-blind, with units and targets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter, StrMethodFormatter

from slos.evaluation.stats import select
from slos.files import Frame
from slos.policies import OURS

NAMES = {
    "vllm": "vLLM (paper's)", "vllm-v1": "vLLM V1", "sarathi": "Sarathi-Serve", OURS: "SLOs-Serve",
    "distserve": "DistServe", "qoserve": "QoServe", "fair-batching": "FairBatching",
    "scorpio": "SCORPIO", "adaserve": "AdaServe",
}  # fmt: skip
MARKERS = "osD^vPX*" * 4
Inches = tuple[float, float]
DASHED = {"color": "black", "linewidth": 0.8, "linestyle": "--"}
ABOVE = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": 3, "fontsize": 8}
ABOVE |= {"frameon": False}  # a legend of one panel, over it
ONE_SEED = "one seed, so no interval"
HATCHES = ("", "//", "..", "xx", "\\\\", "++", "oo", "--") * 4


def name_of(system: str) -> str:
    return NAMES.get(system, system)


def unique(values: Iterable[Any]) -> list[Any]:
    """In the order in which they come."""
    return list(dict.fromkeys(values))


def colors(systems: Sequence[Any]) -> dict[Any, tuple[float, float, float]]:
    """A colour for each, of a palette that is safe for the colour-blind; a system of `NAMES` has
    the same one in every figure."""
    palette = sns.color_palette("colorblind", 10)
    own = {name: palette[i] for i, name in enumerate(NAMES) if name in systems}
    free = cycle(color for color in palette if color not in own.values())
    return {name: own[name] if name in own else next(free) for name in systems}


def panels(
    titles: Sequence[str], each: Inches, edge: Inches, ylabel: str, columns: int = 0, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with a panel per title, `columns` of them in a row (0: all). each, edge: inches of
    and around them; a single narrow panel is drawn wider, for the legend over it."""
    columns = min(columns or len(titles), len(titles))
    lines = -(-len(titles) // columns)
    size = max(6.8, each[0] * columns + edge[0]), each[1] * lines + edge[1]
    figure, axes = plt.subplots(
        lines, columns, figsize=size, layout="constrained", squeeze=False, **shared
    )
    for axis in axes[:, 0]:
        axis.set_ylabel(ylabel)
    for axis in axes.flat[len(titles) :]:
        axis.set_visible(False)
    for axis, title in zip(axes.flat, titles, strict=False):
        axis.set_title(title, fontsize=10)
    return figure, list(axes.flat[: len(titles)])


def lines(
    axes: Sequence[Axes], table: Frame, panel: str, line: str, order: Sequence[Any] = ()
) -> Iterator[tuple[Axes, int, Frame, dict[str, Any]]]:
    """For each value of the column `panel`, on its axis, each value of the column `line` (in their
    `order`, or as they come): its number, its rows, and its looks (colour and label), the same on
    every axis."""
    palette = colors(order or unique(table[line]))
    for axis, name in zip(axes, unique(table[panel]), strict=True):
        for i, (key, color) in enumerate(palette.items()):
            rows = select(table, **{panel: name, line: key})
            yield axis, i, rows, {"color": color, "label": name_of(key)}


WHITE = {"facecolor": "white", "edgecolor": "none", "pad": 0.8}  # the box of a number on a line
BOUND = "bound"
BOUND_SAID = "in the long run no scheduler carries more, but a short run can"


def finish(figure: Figure, text: str, keys: Axes | None = None, **looks: Any) -> Figure:
    """A small line under it: simulated or measured, of what; over it a legend of `keys`, the bound
    last."""
    sns.despine(fig=figure)
    if keys:
        looks = {"loc": "outside upper center", "frameon": False, "fontsize": 9} | looks
        handles, labels = keys.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] == BOUND)
        figure.legend([handles[i] for i in order], [labels[i] for i in order], **looks)
    lines = fill(text, int(18 * figure.get_figwidth()))
    figure.supxlabel(lines, fontsize=7, color="0.35", x=0.01, ha="left")
    return figure


def _errors(rows: Frame, value: str) -> list[list[float]]:
    """How far the interval goes below and above `value`: [2, rows]."""
    return np.maximum(0, [rows[value] - rows["low"], rows["high"] - rows[value]]).tolist()


def whiskers(
    axis: Axes,
    x: Any,
    rows: Frame,
    i: int,
    value: str = "ratio",
    across: bool = False,
    **looks: Any,
) -> None:
    """Marks at `value` with its interval, of the i-th system; `across`: x is the other axis."""
    at, error = ((rows[value], x), "xerr") if across else ((x, rows[value]), "yerr")
    axis.errorbar(*at, **{error: _errors(rows, value)}, capsize=2, **marked(i), **looks)


def marked(i: int) -> dict[str, Any]:
    """How the marks of the i-th system look."""
    return {"marker": MARKERS[i], "markeredgecolor": "black", "markeredgewidth": 0.4}


def nested(i: int) -> dict[str, Any]:
    """How large the i-th of several lines and its marks are: smaller than those before, which are
    seen behind where they are alike."""
    return {"markersize": max(4.0, 6.5 - i), "linewidth": max(1.2, 2.4 - 0.4 * i)}


def bars(axis: Axes, x: Any, rows: Frame, i: int, value: str = "capacity", **looks: Any) -> None:
    """Bars at `value`, hatched as those of the i-th system, with its interval if it has one."""
    looks = {"hatch": HATCHES[i], "edgecolor": "black", "linewidth": 0.5} | looks
    if "low" in rows:
        looks |= {"yerr": _errors(rows, value), "error_kw": {"linewidth": 1, "capsize": 2}}
    axis.bar(x, rows[value] - looks.get("bottom", 0), **looks)


def beside(groups: int, i: int, of: int, width: float) -> np.ndarray:
    """Where in each group the i-th of several stands, `width` apart."""
    return np.arange(groups) + (i - (of - 1) / 2) * width


def simulated(rows: Frame, *where: str) -> str:
    """How the caption of simulated `rows` begins: from which lengths and arrivals, and `where`."""
    sources = " and ".join(sorted({*rows["source"]} - {""}))
    return ", ".join(["simulated", sources, *where])


def seeds_said(rows: Frame) -> str:
    """What the whiskers of `rows` are, for a caption. Needs each seed's value in a column `each` or
    `rate`, or their number in `seeds`."""
    values = next((rows[c].map(len) for c in ("each", "rate") if c in rows), None)
    most = int((rows["seeds"] if values is None else values).max())
    return f"whiskers: 95 % interval over {most} seeds" if most > 1 else ONE_SEED


def plain_log(axis: Axis, *subs: float, ticks: Sequence[float] = ()) -> None:
    """A logarithmic axis with plain numbers: `ticks`, or `subs` times the powers of ten."""
    axis.set_major_locator(FixedLocator(ticks) if ticks else LogLocator(subs=subs))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def save(figure: Figure, folder: Path | str, name: str) -> None:
    """Write `name`.png into the folder's figures."""
    path = Path(folder) / "figures" / f"{name}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})


def dots(
    axis: Axes, table: Frame, by: str, palette: Mapping[str, Any], paper: float = 0, of: str = ""
) -> None:
    """Ratios by scenario of a table, side by side for each value of its column `by`, which is its
    label; 1 and the paper's number, unless 0, as lines. of: what that number is of, said next to
    it."""
    scenarios, width = unique(table["scenario"]), 0.8 / max(5, len(palette))
    for i, (key, color) in enumerate(palette.items()):
        rows = select(table, **{by: key}).set_index("scenario").reindex(scenarios)
        x = beside(len(scenarios), i, len(palette), width)
        whiskers(axis, x, rows, i, linestyle="none", color=color, label=key)
    axis.axhline(1, color="black", linewidth=0.8)
    if paper:
        axis.axhline(paper, **DASHED)
    if paper and of:
        at = {"xycoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 8}
        axis.annotate(f" paper, {of}:\n {paper:g}x", (1, paper), **at)
    axis.set_xticks(range(len(scenarios)), scenarios)
