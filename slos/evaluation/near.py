"""Where searches begin: near capacities that are known, so that most take two or three runs, the
two of the capacity and of the next load among them.

Known are those of the reference, its `near.csv` included: what other runs found, written by `python
-m slos.evaluation.near quick full` of results/quick and results/full. What a search finds does not
depend on them where attainment falls as the load grows (see `capacity_search.capacity`); where it
wavers at the target, they choose among loads that are no further apart than it wavers. One that is
not there begins at what was found with the nearest number of requests by searches that differ in
effort alone, or in the number of replicas.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from math import log
from pathlib import Path
from typing import TypeVar

import pandas as pd

from slos.core.types import require
from slos.evaluation.capacity_search import Search
from slos.evaluation.stats import geometric_mean
from slos.files import ROOT, results_dir, write_whole

REFERENCE = ROOT / "results" / "reference"
COLUMNS = ("run", "rate", "capacity", "status")
SEARCH = r", \d+ requests, target [\d.]+ to [\d.]+, seed \d+$"
Case = TypeVar("Case")
Found = dict[str, dict[int, list[float]]]
"""Requests per second and GPU by what was searched for and the number of requests."""


def begun(cases: Sequence[Case]) -> list[Case]:
    """The same cases; the searches among them begin near what is known."""
    return [
        replace(case, near=rate(case) * case.gpus) if isinstance(case, Search) else case
        for case in cases
    ]


def rate(case: Search) -> float:
    """Requests per second and GPU that a search is to find about; 0 where nothing is known."""
    for found, key in zip(known(), kin(str(case)), strict=True):
        if counts := found.get(key):
            nearest = min(counts, key=lambda n: abs(log(n / case.num_requests)))
            return geometric_mean(counts[nearest])
    return 0.0


def kin(key: str) -> tuple[str, str, str]:
    """The key of a search, then without requests, precision and seed, then without replicas."""
    what, _, target, _ = key.rsplit(", ", 3)
    alike = f"{what}, {target.split(' to ')[0]}"
    return key, alike, re.sub(r" \d+x\b", "", alike)


@cache
def known() -> tuple[Found, Found, Found]:
    """What the reference holds, by each key of `kin`."""
    groups: tuple[Found, Found, Found] = {}, {}, {}
    for key, found in capacities(REFERENCE):
        requests = int(key.rsplit(", ", 3)[1].split()[0])
        for group, k in zip(groups, kin(key), strict=True):
            group.setdefault(k, {}).setdefault(requests, []).append(found)
    return groups


def capacities(folder: Path) -> Iterator[tuple[str, float]]:
    """Keys of the searches behind a folder's rows, and what they found."""
    for path in sorted(folder.glob("*.csv")):
        rows = pd.read_csv(path, usecols=lambda name: name in COLUMNS)
        if {"run", "rate"} <= {*rows}:
            runs = rows["run"].str
            one = runs.contains(SEARCH) & ~runs.contains(" or ")  # not the best of several
            rows = rows[one & (rows["rate"] > 0)]
            rows = rows[rows["status"] == "simulated"] if "status" in rows else rows  # no bounds
            rows = rows[rows["capacity"]] if "capacity" in rows else rows
            yield from zip(rows["run"], rows["rate"], strict=True)


def main(sizes: Sequence[str] = ()) -> None:
    """Write what runs of these sizes found and no other file of the reference holds."""
    require(len(sizes) > 0, "sizes", list(sizes), "at least one", "name them: quick full")
    for size in sizes:
        there, bound = results_dir(size).is_dir(), f"one that has run ({results_dir(size)})"
        require(there, "size", size, bound, f"./run_all.sh {size} makes it")
    path = REFERENCE / "near.csv"
    path.unlink(missing_ok=True)
    held = dict(capacities(REFERENCE))
    found = dict(pair for size in sizes for pair in capacities(results_dir(size)))
    rows = sorted((key, rate) for key, rate in found.items() if key not in held)
    table = pd.DataFrame(rows, columns=["run", "rate"])
    write_whole(path, table.to_csv(index=False, float_format="%.4g"))


if __name__ == "__main__":
    main(sys.argv[1:])
