"""Which setting, router and draft length a system has its best capacity with: all are tried by one
seed and coarsely, near what a first look found, and the best one is measured by every seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt
from pathlib import Path

from slos.evaluation.capacity_search import Probe, Search, probe, tried
from slos.evaluation.grids import BEST_ROUTER, SETTINGS, behind, fixed_drafts, typical
from slos.policies import OURS, POLICIES
from slos.records.sweep import sweep

SCOUTING = 0.2  # precision of a first look
TUNING, TUNED = 1200, 0.05  # requests per replica by which a setting is chosen, and the precision
BETTER = 0.02  # by so much another one must carry more
ROWS, CHOICES = "your_own.csv", "your_own_choices.csv"


def carried(cases: Sequence[Search], seeds: int, folder: Path) -> list[Probe]:
    """The capacities, seed by seed, of those cases that have one for every seed."""
    runs = [replace(case, seed=seed) for case in cases for seed in range(seeds)]
    rows = [row for row in sweep(tried, runs, folder / ROWS, Probe) if row.capacity]
    found = Counter((row.system, row.setting, row.router) for row in rows)
    return [row for row in rows if found[row.system, row.setting, row.router] == seeds]


def scout(case: Search, systems: Sequence[str]) -> Search:
    """The case of ours, or of the first of the systems, for a first look."""
    system = OURS if OURS in systems else systems[0]
    [case] = behind(replace(case, system=system, precision=SCOUTING), (BEST_ROUTER,))
    return case


def scouted(case: Search, folder: Path) -> float:
    """What a case of `scout` carries about, in requests per second, by one seed; 0 where it carries
    nothing. It is at most sqrt(1 + SCOUTING) times that."""
    rows = carried([case], 1, folder)
    return middle(rows[0].rate * case.gpus, SCOUTING) if rows else 0.0


def middle(rate: float, precision: float) -> float:
    """Where a capacity lies about that a search of a precision has found."""
    return float(f"{rate * sqrt(1 + precision):.3g}")


@dataclass(frozen=True, slots=True)
class Choice:
    """Cases of one system and seed, of which the best is looked for."""

    cases: tuple[Search, ...]

    @property
    def system(self) -> str:
        return self.cases[0].system

    def __str__(self) -> str:
        return " or ".join(map(str, self.cases))


def choose(choice: Choice) -> list[Probe]:
    """Every load that was tried, marked the capacity of the case that carries most: one that does
    not attain the target at a load just above the best one's is no better."""
    rows: list[Probe] = []
    best: Probe | None = None
    for case in choice.cases:
        if best:
            above = best.rate * case.gpus * (1 + BETTER)
            rows.append(probe(case, above))
            if rows[-1].attainment < case.target:
                continue
            case = replace(case, start=above)
        found = tried(case)
        rows += [replace(row, capacity=False) for row in found]
        better = [row for row in found if row.capacity and (not best or row.rate > best.rate)]
        best = better[0] if better else best
    marked = replace(best, capacity=False) if best else None
    return [replace(row, capacity=row == marked) for row in rows]


def tuned(tries: Sequence[Sequence[Search]], near: float, folder: Path) -> list[Search]:
    """Of each group, of one system, the case that carries most by one seed, to begin near there;
    without groups that carry nothing. near: requests per second where the search begins."""

    def small(case: Search) -> Search:
        n = min(case.num_requests, TUNING * case.replicas)
        return replace(case, num_requests=n, precision=TUNED, start=near)

    several = [group for group in tries if len(group) > 1]
    choices = [Choice(tuple(map(small, group))) for group in several]
    rows = [row for row in sweep(choose, choices, folder / CHOICES, Probe) if row.capacity]
    found = {(row.system, row.setting, row.router): row.rate for row in rows}
    best = [replace(group[0], start=near) for group in tries if len(group) == 1]
    for case in (c for group in several for c in group):
        if rate := found.get((case.system, case.setting, case.router)):
            best.append(replace(case, start=middle(rate * case.gpus, TUNED)))
    return best


def probed(case: Search, systems: Sequence[str], seeds: int, folder: Path) -> list[Probe]:
    """`carried` of the best setting and router of each system, and of its best draft length at the
    setting that is best with a typical one. case: of no system yet."""
    near, groups = case.start or scouted(scout(case, systems), folder), []
    for name in dict.fromkeys(systems):
        how = {"routers": (BEST_ROUTER,)} if name == OURS else {}
        plain = [replace(case, system=name, setting=text) for text in SETTINGS.get(name, ("",))]
        groups.append([each for c in plain for each in behind(c, **how)])
    best = tuned(groups, near, folder)
    able = [g for g in groups if case.max_drafts and hasattr(POLICIES[g[0].system], "drafts")]
    for group in able:
        tries = [fixed_drafts(c, case.max_drafts) for c in group]
        usual = [typical([c, *each]) for c, each in zip(group, tries, strict=True)]
        for found in tuned([usual], near, folder):
            each = tries[usual.index(replace(found, start=case.start))]
            best += tuned([each], found.start, folder)
    return carried(best, seeds, folder)
