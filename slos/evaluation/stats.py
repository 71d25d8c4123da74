"""Capacities over capacities, seed by seed; geometric means over scenarios; and numbers put beside the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from slos.metrics import geometric_mean, interval
from slos.records.report import Frame, Headline, results_dir, upsert_headlines
from slos.records.sweep import commit
from workloads import SCENARIOS

Spread = tuple[float, float, float]  # a mean over seeds, and its 95 % interval


def rows_of(frame: Frame) -> list[Any]:
    return list(frame.itertuples())


def select(frame: Frame, **values: object) -> Frame:
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def spread(values: Sequence[float]) -> Spread:
    """`interval`, or nothing where a seed has nothing."""
    return interval(values) if min(values) > 0 else (0.0, 0.0, 0.0)


def strongest(best: Frame, *by: str) -> Frame:
    """Of the rows that agree in `by` the one that carries most."""
    return best.loc[best.groupby(list(by), sort=False)["capacity"].idxmax()]


def best_settings(rows: Frame, columns: Sequence[str]) -> Frame:
    """`columns` with capacity, low, high and each seed's rate, of the setting that carries most."""
    found = rows.groupby(list(columns), sort=False)["rate"].agg(list).reset_index()
    found[["capacity", "low", "high"]] = [spread(rates) for rates in found["rate"]]
    return strongest(found, *(c for c in columns if c not in ("setting", "source", "status")))


def over(mine: Frame, theirs: Frame) -> Frame:
    """Each row of `mine` over those of `theirs` that agree in all columns which both have, but for the rate.

    rate: of each seed. Instead of it: ratio, its interval as low and high, and each seed's.
    """
    pairs = mine.merge(theirs, on=[c for c in mine if c in theirs and c != "rate"])
    each = [[a / b for a, b in zip(r.rate_x, r.rate_y, strict=True)] for r in rows_of(pairs)]
    pairs[["ratio", "low", "high"]] = [spread(ratios) for ratios in each] or None
    return pairs.drop(columns=["rate_x", "rate_y"]).assign(each=each)


def over_each(mine: Frame, theirs: Frame, by: str, rivals: Sequence[str]) -> Frame:
    """`mine` over each of `theirs`, named in `by`, as `against`; and, as "best", over the strongest of the `rivals`."""
    best = strongest(theirs[theirs[by].isin(rivals)], "scenario").assign(against="best")
    named = pd.concat([theirs.assign(against=theirs[by]), best])
    return over(mine[["scenario", "rate"]], named[["scenario", "against", by, "rate"]])


def mean_of(table: Frame) -> Spread:
    """Geometric mean over the scenarios of a table, with its interval over seeds."""
    return interval([geometric_mean(seed) for seed in zip(*table["each"], strict=True)])


def geometric_means(table: Frame) -> Frame:
    """`mean_of` per system that is compared `against`, and of how many scenarios."""
    rows = [(name, *mean_of(group), len(group)) for name, group in table.groupby("against", sort=False)]
    return pd.DataFrame(rows, columns=["against", "ratio", "low", "high", "scenarios"])


def told(table: Frame) -> str:
    """`mean_of` in words."""
    mean, low, high = mean_of(table)
    several = len(table["each"].iloc[0]) > 1
    return f"{mean:.2f}x " + (f"[{low:.2f}, {high:.2f}]" if several else "(one seed)")


def put(size: str, notebook: str, numbers: Mapping[str, Spread], status: str, source: str, hardware: str) -> Frame:
    """Put numbers, by key of `results/paper.yaml`, into results/<size>/headlines.csv; what was put there."""
    command = f"./run_all.sh{'' if size == 'quick' else ' ' + size} ({notebook})"
    rest = status, source, hardware, commit(), command
    rows = [Headline(key, float(mean), float(low), float(high), *rest) for key, (mean, low, high) in numbers.items()]
    upsert_headlines(results_dir(size) / "headlines.csv", rows)
    return pd.DataFrame(rows)


def save(size: str, best: Frame, notebook: str, numbers: Mapping[str, Spread]) -> Frame:
    """Put numbers made from `best` beside the paper's; a run of some scenarios or on other hardware puts none there."""
    own = {name: (scenario.profile, scenario.drafting) for name, scenario in SCENARIOS.items()}
    if set(best["scenario"]) != set(own) or any(r.profile not in own[r.scenario] for r in rows_of(best)):
        return pd.DataFrame()
    sources = " and ".join(sorted(set(best["source"])))
    return put(size, notebook, numbers, "simulated", sources, f"{best['profile'].nunique()} profiles")
