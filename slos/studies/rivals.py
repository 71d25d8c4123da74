"""The baselines on several replicas: at their best today, or as the paper had them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

import pandas as pd

from slos.core.pace import PAPER
from slos.evaluation.capacity_search import Probe, Search, search
from slos.evaluation.grids import RIVALS, can_draft, fixed_drafts, sized, swept, tries_of, typical
from slos.evaluation.sizes import scale_of
from slos.evaluation.stats import best_settings, rows_of
from slos.files import Frame

Key = TypeVar("Key", bound=Hashable)
Cases = dict[Any, Search]
"""A case, of the first seed, by a tuple of scenario and names."""
ROWS = "waterfall"  # the file of their rows


def carries(case: Search) -> list[Probe]:
    """The row of a case that is its capacity, alone: there are many cases."""
    return [row for row in search(case) if row.capacity]


def carried(
    size: str, cases: Sequence[Search], workers: int | None = None, name: str = ROWS
) -> dict[Search, Any]:
    """The row of `Probe` of each case that is its capacity, from results/<size>/<name>.csv where it
    lies already: `rate` is in requests per second and GPU."""
    cases = list(dict.fromkeys(cases))
    return dict(zip(cases, rows_of(swept(size, name, carries, cases, Probe, workers)), strict=True))


def tuned(
    size: str, groups: Mapping[Key, Sequence[Search]], workers: int | None = None, name: str = ROWS
) -> dict[Key, Search]:
    """Of each group the case that carries most, with one seed, and its own number of replicas."""
    s = scale_of(size)

    def small(case: Search) -> Search:
        return replace(sized(case, s.tuning_requests, s.tuning_precision), seed=0)

    several = {key: cases for key, cases in groups.items() if len(cases) > 1}
    tries = [small(case) for cases in several.values() for case in cases]
    found = carried(size, tries, workers, name)
    best = {k: max(cases, key=lambda c: found[small(c)].rate) for k, cases in several.items()}
    return {key: best.get(key, cases[0]) for key, cases in groups.items()}


def rivals(
    size: str,
    scenarios: Sequence[str] = (),
    workers: int | None = None,
    replicas: int = 0,
    profile: str = "",
    rule: str = PAPER,
) -> Cases:
    """By scenario and name: each baseline at its best on as many GPUs, by a rule of pace. (Of four,
    a topology of three uses three.)

    First the token budget or the topology is chosen, and the router, drafting as is `typical` where
    there is a draft model; then the draft length, none among them.
    """
    s = scale_of(size, replicas)
    # of each setting, topology and router all draft lengths
    tries: dict[tuple[str, str], list[list[Search]]] = {}
    for scenario, (name, options) in product(scenarios or s.scenarios, RIVALS.items()):
        plain = tries_of(scenario, options, s.replicas, profile=profile, rule=rule)
        drafts = can_draft(scenario, profile)
        tries[scenario, name] = [[c, *(fixed_drafts(c) if drafts else ())] for c in plain]
    best = tuned(size, {key: [typical(t) for t in each] for key, each in tries.items()}, workers)
    lengths = {key: next(t for t in tries[key] if case in t) for key, case in best.items()}
    return tuned(size, lengths, workers)


def measured(
    size: str, cases: Cases, workers: int | None = None, name: str = ROWS,
    by: Sequence[str] = ("name",),
) -> Frame:  # fmt: skip
    """What ran, with the requests, precision and seeds of the size: its capacity with interval, and
    the `rate` of each seed; by: what the names of the cases are."""
    s = scale_of(size)
    runs = [
        (key, replace(sized(case, s.num_requests, s.precision), seed=seed))
        for key, case in cases.items()
        for seed in range(s.seeds)
    ]
    found = carried(size, [case for _, case in runs], workers, name)
    names = ["scenario", *by]
    rows = [
        found[case]._asdict() | {"max_drafts": case.max_drafts} | dict(zip(names, key, strict=True))
        for key, case in runs
    ]
    where = ["setting", "replicas", "topology", "router", "max_drafts", "profile", "source"]
    return best_settings(pd.DataFrame(rows), [*names, *where]).reset_index(drop=True)
