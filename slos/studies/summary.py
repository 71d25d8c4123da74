"""The last word: every number of the paper beside ours, from the rows of a size."""

from __future__ import annotations

import pandas as pd

from slos.core.types import require
from slos.evaluation.stats import Frame
from slos.records.report import SIZES, read_claims, read_headlines, results_dir, verdict


def table(size: str) -> Frame:
    """One row per claim: paper, ours with its interval, verdict, and ours over the paper's (turned over for times)."""
    require(size in SIZES, "size", size, f"one of {', '.join(SIZES)}")
    ours = {h.key: h for h in read_headlines(results_dir(size) / "headlines.csv")}
    rows = []
    for c in read_claims():
        h = ours.get(c.key)
        ratio = None if h is None else h.value / c.value if c.better == "higher" else c.value / h.value
        found = (None, None, None, "") if h is None else (h.value, h.low, h.high, h.status)
        rows.append((c.key, c.what, c.value, *found, ratio, verdict(h.value if h else None, c), c.why))
    columns = ["key", "what", "paper", "ours", "low", "high", "status", "against", "verdict", "why"]
    frame: Frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({name: float for name in ("paper", "ours", "low", "high", "against")})


def source(size: str) -> str:
    """What the rows were made from."""
    rows = read_headlines(results_dir(size) / "headlines.csv")
    return f"{size}: " + (", ".join(sorted({f"{h.status} ({h.source})" for h in rows})) or "no notebook has run")


def what_is_reproduced(table: Frame) -> str:
    """The findings in Markdown, from the numbers."""
    count = table["verdict"].value_counts()
    lines = [f"Of {len(table)} numbers of the paper {count.get('OK', 0)} are reached (within 5 %),"
             f" {count.get('NEAR', 0)} nearly (within 25 %), {count.get('MISS', 0)} are missed and"
             f" {count.get('NOT RUN', 0)} were not run.", ""]  # fmt: skip
    for r in table[table["verdict"].isin(("NEAR", "MISS"))].itertuples():
        why = f": {r.why}" if r.why else "; we have not found out why"
        lines.append(f"- **{r.what}**, {r.ours:.3g} against {r.paper:g} ({r.verdict}){why}.")
    return "\n".join(lines)
