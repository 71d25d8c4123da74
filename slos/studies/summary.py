"""The summary: every number of the paper next to ours, from the rows of a size."""

from __future__ import annotations

from math import nan

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from slos.evaluation import plots
from slos.evaluation.plots import DASHED, HATCHES, finish
from slos.evaluation.sizes import check_names
from slos.files import Frame, results_dir
from slos.records.claims import read_claims, read_headlines, verdict
from slos.records.report import SIZES


def table(size: str) -> Frame:
    """A row per claim: paper, ours, verdict, and ours over the paper's (of times, the inverse)."""
    check_names("size", [size], SIZES)
    ours = {h.key: h for h in read_headlines(results_dir(size) / "headlines.csv")}
    rows = []
    for c in read_claims():
        value, low, high, status, against = nan, nan, nan, "", nan
        if h := ours.get(c.key):
            value, low, high, status = h.value, h.low, h.high, h.status
            against = value / c.value if c.better == "higher" else c.value / value
        said = verdict(value if status else None, c)
        rows.append((c.key, str(c), c.value, value, low, high, status, against, said, c.why))
    columns = ["key", "what", "paper", "ours", "low", "high", "status", "against", "verdict", "why"]
    return pd.DataFrame(rows, columns=columns).astype({"paper": float})


def source(size: str) -> str:
    """What the rows were made from."""
    rows = read_headlines(results_dir(size) / "headlines.csv")
    said = ", ".join(sorted({f"{h.status} ({h.source})" for h in rows}))
    return f"{size}: {said or 'no notebook has run'}"


def summary_chart(table: Frame, source: str) -> Figure:
    """Ours over the paper's, a bar per claim that was run: to the right of 1 is better."""
    table = table[table["against"].notna()]
    figure, axis = plt.subplots(figsize=(9, 0.34 * max(4, len(table)) + 1.4), layout="constrained")
    colors = (("OK", "#009E73", 0), ("NEAR", "#E69F00", 1), ("MISS", "#D55E00", 3))
    looks = {
        verdict: {"facecolor": color, "hatch": HATCHES[i], "edgecolor": "black", "linewidth": 0.5}
        for verdict, color, i in colors
    }
    beside = {"xycoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 8}
    for i, r in enumerate(table.iloc[::-1].itertuples()):
        axis.barh(i, r.against - 1, left=1, **looks[r.verdict])
        axis.annotate(f" {r.ours:.3g} of {r.paper:g}", (1, i), **beside)
    axis.set_yticks(range(len(table)), table["what"].iloc[::-1], fontsize=8)
    axis.axvline(1, **DASHED)
    axis.set_xscale("log")
    plots.plain_log(axis.xaxis, ticks=(0.25, 0.5, 1, 2, 4, 8))
    low, high = table["against"].min(), table["against"].max()
    axis.set_xlim(min(0.45, 0.9 * low), max(2.2, 1.1 * high))
    axis.set_xlabel("ours over the paper's\n(of times, the inverse)")
    keys = [Patch(label=verdict, **look) for verdict, look in looks.items()]
    above = {"loc": "outside upper center", "ncols": 3, "frameon": False, "fontsize": 9}
    figure.legend(handles=keys, **above)
    return finish(figure, source)
