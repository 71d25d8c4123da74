"""Means and intervals; capacities over capacities; and numbers put next to the paper's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, log, sqrt
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.special import stdtrit

from slos.core.types import require
from slos.files import Frame, commit, results_dir, write_whole
from slos.policies import POLICIES
from slos.records.claims import Spread, put, read_claims
from workloads import SCENARIOS

FINEST = 0.02
"""The precision to which the finest study searches; one that searches to 5 % over six scenarios, on
whose grids errors lie apart, comes to 5 % / sqrt(6), the same."""


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values, at least one."""
    good = len(values) > 0 and min(values) > 0
    require(good, "values", list(values), "positive and at least one")
    return exp(sum(map(log, values)) / len(values))


def interval(values: Sequence[float], precision: float = 0.0) -> tuple[float, float, float]:
    """Geometric mean and its 95 % confidence interval over seeds (Student's t on logarithms): mean,
    low, high.

    values: positive rates or ratios; a single one tells nothing of seeds. precision: of the search
    that found them, as a share; the interval is no narrower, for the loads of all seeds lie on one
    grid. Nor is any over several seeds narrower than `FINEST`.
    """
    n, mean, factor = len(values), geometric_mean(values), 1.0
    if n == 1:
        mean = values[0]
    else:
        precision = max(precision, FINEST)
        t = float(stdtrit(n - 1, 0.975))
        factor = exp(t * sqrt(sum(log(v / mean) ** 2 for v in values) / (n - 1) / n))
    factor = max(factor, 1 + precision)
    return mean, mean / factor, mean * factor


def rows_of(frame: Frame) -> list[Any]:
    return list(frame.itertuples())


def select(frame: Frame, **values: object) -> Frame:
    for name, value in values.items():
        frame = frame[frame[name] == value]
    return frame


def spread(values: Sequence[float], precision: float = 0.0) -> Spread:
    """`interval`, or nothing where a seed has nothing."""
    return interval(values, precision) if min(values) > 0 else (0.0, 0.0, 0.0)


def capacities(probes: Frame, *also: str, precision: float = 0.0) -> Frame:
    """One row per scenario and system: the best setting's capacity, its `interval`, and each
    seed's.

    also: further columns to tell apart, as "replicas" and "router". Raises ValueError where there
    is no capacity at all.
    """
    cure = "check objectives, target and profile"
    require(probes["capacity"].any(), "capacities", "none", "of one system at least", cure)
    columns = ["scenario", "lengths", "system", "setting", "profile", "source", "status", *also]
    best = best_settings(probes[probes.capacity], columns, precision)
    # one order, so one colour, in every figure
    ranks = {n: i for i, n in enumerate(("dataset", "trace", *SCENARIOS, *POLICIES))}
    order = ["lengths", "scenario", "system"]
    best = best.sort_values(order, key=lambda c: c.map(lambda name: ranks.get(name, 99)))
    return best.assign(seeds=best["rate"].map(len)).reset_index(drop=True)


def strongest(best: Frame, *by: str) -> Frame:
    """Of the rows that agree in `by` the one that carries most."""
    return best.loc[best.groupby(list(by), sort=False)["capacity"].idxmax()]


def best_settings(rows: Frame, columns: Sequence[str], precision: float = 0.0) -> Frame:
    """`columns` with capacity, low, high and each seed's rate, of the setting that carries most."""
    found = rows.groupby(list(columns), sort=False)["rate"].agg(list).reset_index()
    found[["capacity", "low", "high"]] = [spread(r, precision) for r in found["rate"]]
    return strongest(found, *(c for c in columns if c not in ("setting", "source", "status")))


def of_every_seed(probes: Frame, *by: str) -> Frame:
    """The rows of settings that have a capacity for all seeds; by: what tells settings apart."""
    found = probes[probes["capacity"]].groupby([*by], as_index=False)["seed"].nunique()
    return probes.merge(select(found, seed=probes["seed"].nunique())[[*by]], on=[*by])


def over(mine: Frame, theirs: Frame) -> Frame:
    """Each row of `mine` over those of `theirs` that agree in all columns which both have, but for
    the rate, and that carry something at every seed.

    rate: of each seed. Instead of it: ratio, its interval as low and high, and each seed's.
    """
    theirs = theirs[theirs["rate"].map(min) > 0]
    pairs = mine.merge(theirs, on=[c for c in mine if c in theirs and c != "rate"])
    each = [[a / b for a, b in zip(r.rate_x, r.rate_y, strict=True)] for r in rows_of(pairs)]
    pairs[["ratio", "low", "high"]] = [spread(ratios) for ratios in each] or None
    return pairs.drop(columns=["rate_x", "rate_y"]).assign(each=each)


def over_each(mine: Frame, theirs: Frame, by: str, *also: str) -> Frame:
    """`mine` over each of `theirs`, named in `by`, as `against`; and, as "best", over the strongest
    of them; per scenario and `also`."""
    keys = [*also, "scenario"]
    best = strongest(theirs, *keys).assign(against="best")
    named = pd.concat([theirs.assign(against=theirs[by]), best])
    return over(mine[[*keys, "rate"]], named[[*keys, "against", by, "rate"]])


def mean_of(table: Frame) -> Spread:
    """Geometric mean over the scenarios of a table, with its interval over seeds; 0 where one has
    nothing at some seed."""
    seeds = [*zip(*table["each"], strict=True)]
    return spread([geometric_mean(each) if min(each) > 0 else 0.0 for each in seeds])


def geometric_means(table: Frame, *by: str) -> Frame:
    """`mean_of` the rows that agree in `by` ("against" unless given), and of how many scenarios."""
    columns = list(by or ("against",))
    rows = [(*key, *mean_of(g), len(g)) for key, g in table.groupby(columns, sort=False)]
    return pd.DataFrame(rows, columns=[*columns, "ratio", "low", "high", "scenarios"])


def told(table: Frame, *by: str) -> Frame:
    """The ratios of a table with their intervals, in words: a column per scenario, and their
    geometric mean; a row per value of `by`."""
    means = geometric_means(table, *by).assign(scenario="geometric mean")
    rows = pd.concat([table, means], ignore_index=True)
    cells = [f"{r.ratio:.2f} [{r.low:.2f}, {r.high:.2f}]" for r in rows_of(rows)]
    return rows.assign(cell=cells).pivot_table("cell", [*by], "scenario", "first", sort=False)


def by_scenario(table: Frame, *by: str) -> Frame:
    """The ratios of a table: a column per scenario, then `geometric_means` and of how many; a row
    per value of `by`."""
    columns = list(by or ("against",))
    grid = table.pivot_table("ratio", columns, "scenario", sort=False)
    means = geometric_means(table, *by)
    return grid.join(means.rename(columns={"ratio": "geometric mean"}).set_index(columns))


def write(size: str, name: str, table: Frame, **how: Any) -> Path:
    """Write a table to results/<size>/<name>.csv, with the commit. how: more for `to_csv`."""
    path = results_dir(size) / f"{name}.csv"
    write_whole(path, table.assign(commit=commit()).to_csv(index=False, **how))
    return path


def save(size: str, best: Frame, notebook: str, numbers: Mapping[str, Spread]) -> Frame:
    """Put numbers made from `best` next to the paper's, if it has its scenarios and hardware; each
    with the profiles and sources of its scenario, or of all if it is a mean."""
    own = {name: (scenario.profile, scenario.drafting) for name, scenario in SCENARIOS.items()}
    pairs = [*zip(best["scenario"], best["profile"], strict=True)]
    if set(best["scenario"]) != set(own) or any(at not in own[name] for name, at in pairs):
        return pd.DataFrame(columns=["not all six scenarios on their own hardware: nothing is put"])
    rows = []
    for key, number in numbers.items():
        name = scenario_of(key)
        mine = select(best, scenario=name) if name else best
        profiles = sorted(set(mine["profile"]))
        hardware = " and ".join(profiles) if name else f"{len(profiles)} profiles"
        sources = " and ".join(sorted(set(mine["source"])))
        rows.append(put(size, notebook, {key: number}, "simulated", sources, hardware))
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame()


def scenario_of(key: str) -> str:
    """The scenario that a number of the paper, or of ours by its name, is of; "" for a mean."""
    known = {c.key: c.scenario for c in read_claims()}
    named = (name for name in SCENARIOS if f"_{name}_".replace("-", "_") in f"_{key}_")
    return known.get(key) or next(named, "")
