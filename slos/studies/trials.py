"""Which setting, router and draft length a system has its best capacity with: all are tried by one
seed and coarsely, near what a first look found, and the best one is measured by every seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slos.evaluation.capacity_search import NoCapacity, Probe, Search, search
from slos.evaluation.grids import (
    BEST_ROUTER,
    RIVAL_ROUTERS,
    SETTINGS,
    behind,
    fixed_drafts,
    typical,
)
from slos.policies import OURS, POLICIES
from slos.records.sweep import sweep

SCOUTING = 0.2  # precision of a first look
TUNING, TUNED = 1200, 0.05  # requests per replica by which a setting is chosen, and the precision
ROWS = "your_own.csv"


def tried(case: Search) -> list[Probe]:
    """Every load of a search; none where no load attains the target."""
    try:
        return search(case)
    except NoCapacity:
        return []


def carried(cases: Sequence[Search], seeds: int, folder: Path) -> list[Probe]:
    """The capacities, seed by seed, of those cases that have one for every seed."""
    runs = [replace(case, seed=seed) for case in cases for seed in range(seeds)]
    rows = [row for row in sweep(tried, runs, folder / ROWS, Probe) if row.capacity]
    found = Counter((row.system, row.setting, row.router) for row in rows)
    return [row for row in rows if found[row.system, row.setting, row.router] == seeds]


def scouted(case: Search, systems: Sequence[str], folder: Path) -> float:
    """What ours, or the first of the systems, carries about, in requests per second, by one seed; 0
    where it carries nothing."""
    system = OURS if OURS in systems else systems[0]
    [case] = behind(replace(case, system=system, precision=SCOUTING), (BEST_ROUTER,))
    rows = carried([case], 1, folder)
    return float(f"{rows[0].rate * case.gpus:.3g}") if rows else 0.0


def tuned(tries: Sequence[Sequence[Search]], near: float, folder: Path) -> list[Search]:
    """Of each group the case that carries most by one seed, to begin near there; without groups
    that carry nothing. near: requests per second where the search begins."""

    def small(case: Search) -> Search:
        n = min(case.num_requests, TUNING * case.replicas)
        return replace(case, num_requests=n, precision=TUNED, start=near)

    small_ones = [small(c) for group in tries for c in group if len(group) > 1]
    found = {(r.system, r.setting, r.router): r.rate for r in carried(small_ones, 1, folder)}
    best = [replace(c, start=near) for group in tries for c in group if len(group) == 1]
    for group in tries:
        rates = [found.get((c.system, c.setting, c.router), 0.0) for c in group]
        if rate := max(rates):  # 0 of one that had nothing to choose from
            case = group[rates.index(rate)]
            best.append(replace(case, start=float(f"{rate * case.gpus:.3g}")))
    return best


def probed(case: Search, systems: Sequence[str], seeds: int, folder: Path) -> list[Probe]:
    """`carried` of the best setting and router of each system, and of its best draft length at the
    setting that is best with a typical one. case: of no system yet."""
    near = scouted(case, systems, folder)
    groups = [
        [
            each
            for text in SETTINGS.get(name, ("",))
            for each in behind(
                replace(case, system=name, setting=text),
                (BEST_ROUTER,) if name == OURS else RIVAL_ROUTERS,
            )
        ]
        for name in dict.fromkeys(systems)
    ]
    best = tuned(groups, near, folder)
    able = [g for g in groups if case.max_drafts and hasattr(POLICIES[g[0].system], "drafts")]
    for group in able:
        tries = [fixed_drafts(c, case.max_drafts) for c in group]
        usual = [typical([c, *each]) for c, each in zip(group, tries, strict=True)]
        for found in tuned([usual], near, folder):
            each = tries[usual.index(replace(found, start=0.0))]
            best += tuned([each], found.start, folder)
    return carried(best, seeds, folder)
