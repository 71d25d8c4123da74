"""The arena: schedulers that came after the paper beside it and its baselines, on the same traces,
roofline and objectives. All simulated.

A star: of each system the best setting counts, found on one replica without drafts at 90 % by the
paper's rule of pace. It is kept where one of these is changed: four replicas, drafts, 98 %, the
clients' rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slos.core.pace import CLIENT
from slos.core.types import require
from slos.evaluation.capacity_search import Probe, Search, tried
from slos.evaluation.grids import (
    BEST_ROUTER,
    MAX_DRAFTS,
    SETTINGS,
    can_draft,
    fixed_drafts,
)
from slos.evaluation.plots import colors, finish, name_of, panels, seeds_said, unique, whiskers
from slos.evaluation.runs import hardware_of
from slos.evaluation.stats import (
    capacities,
    mean_of,
    of_every_seed,
    over,
    rows_of,
    select,
    strongest,
)
from slos.files import Frame, commit, results_dir, write_whole
from slos.policies import LATER, OURS, POLICIES
from slos.records.sweep import sweep
from workloads import SCENARIOS


@dataclass(frozen=True, slots=True)
class Size:
    """Requests per simulation, seeds, precision of a capacity, scenarios, and what is changed."""

    num_requests: int
    seeds: int
    precision: float
    scenarios: tuple[str, ...] = tuple(SCENARIOS)
    changes: tuple[dict[str, Any], ...] = ()


CHANGES: tuple[dict[str, Any], ...] = (
    {"rule": CLIENT},
    {"target": 0.98},
    {"replicas": 4, "num_requests": 1200},
    {"max_drafts": MAX_DRAFTS},
)
COARSER = 0.05  # the precision of a capacity where something is changed
SIZES = {
    "smoke": Size(40, 1, 0.5, ("coding",), ({"replicas": 2},)),
    "quick": Size(200, 1, 0.08, ("coding", "summarization", "mixed"), CHANGES[:1]),
    "full": Size(600, 3, 0.03, changes=CHANGES),
}
ROUTERS = (BEST_ROUTER, "least-loaded", "lmetric", "polyserve")
WHERE = ("target", "drafts", "replicas", "rule")

FREE = "margin=1,free=1"
LADDER = {
    "Sarathi-Serve": [("sarathi", text) for text in SETTINGS["sarathi"]],
    "+ dynamic step": [("qoserve", f"{FREE},by_deadline=0,relegate=0")],
    "+ deadline order": [("qoserve", f"{FREE},{h}relegate=0") for h in ("", "hybrid=0,")],
    "+ relegation": [("qoserve", f"{FREE}{h}") for h in ("", ",hybrid=0")],
    "+ memory ahead": [("qoserve", f"{FREE}{h},foresee=1") for h in ("", ",hybrid=0")],
    "SLOs-Serve": [(OURS, "")],
}
"""From Sarathi-Serve to ours, an idea at a time: what runs and with which settings, of which the
best counts. The last step is what is left: admission and batches that are proven ahead."""


def size_of(name: str) -> Size:
    require(name in SIZES, "size", name, f"one of {', '.join(SIZES)}")
    return SIZES[name]


def run(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Rows of `Probe` with their longest draft, from results/<size>/arena_*.csv where they lie
    already; of each system and setting only if every seed has a capacity."""
    parts, cases = [], list(dict.fromkeys(cases))
    for target, drafts in dict.fromkeys((c.target, c.max_drafts) for c in cases):
        mine = [c for c in cases if (c.target, c.max_drafts) == (target, drafts)]
        path = results_dir(size) / f"arena_{target:g}_{drafts}.csv"
        rows = pd.DataFrame(sweep(tried, mine, path, Probe, workers))
        parts.append(rows.assign(drafts=drafts))
    rows = pd.concat(parts, ignore_index=True)
    key = ["scenario", "system", "setting", "router", *WHERE]
    return of_every_seed(rows, len({c.seed for c in cases}), *key)


def cases(
    size: str, scenarios: Sequence[str] = (), systems: Sequence[str] = (), profile: str = ""
) -> list[Search]:
    """Every scenario, system, setting and seed on one replica without drafts. Raises ValueError for
    unknown names."""
    s = size_of(size)
    scenarios, systems = scenarios or s.scenarios, systems or tuple(POLICIES)
    for what, names, known in (("scenario", scenarios, SCENARIOS), ("system", systems, POLICIES)):
        for name in names:
            require(name in known, what, name, f"one of {', '.join(known)}")
    grid = []
    for scenario, system in product(scenarios, systems):
        hardware_of(scenario, profile)  # an unknown profile is refused before the first run
        case = Search(scenario, system, profile=profile, num_requests=s.num_requests)
        grid += [
            replace(case, setting=text, seed=seed, precision=s.precision)
            for text in SETTINGS.get(system, ("",)) for seed in range(s.seeds)
        ]  # fmt: skip
    return grid


def best(probes: Frame) -> Frame:
    """Of each scenario, system and place (`WHERE`) what carries most, of all settings and
    routers."""
    return strongest(capacities(probes, "router", *WHERE), "scenario", "system", *WHERE)


def further(size: str, found: Frame, profile: str = "") -> list[Search]:
    """The same with one thing changed, each system at the setting that `best` found: several
    replicas, where each router is tried, and drafts in the scenarios that have a draft model."""
    s, grid = size_of(size), []
    precision = max(s.precision, COARSER)
    for change, row, seed in product(s.changes, rows_of(found), range(s.seeds)):
        case = Search(
            row.scenario, row.system, row.setting, profile, seed=seed,
            num_requests=s.num_requests, precision=precision,
        )  # fmt: skip
        case = replace(case, **change)
        if (case.max_drafts or case.replicas > 1) and not can_draft(row.scenario):
            continue
        fixed = case.max_drafts and hasattr(POLICIES[row.system], "drafts")
        for c in [case, *fixed_drafts(case)] if fixed else [case]:
            grid += [replace(c, router=r) for r in ROUTERS] if c.replicas > 1 else [c]
    return grid


def ladder_cases(size: str, scenarios: Sequence[str] = (), profile: str = "") -> list[Search]:
    """What the rungs of `LADDER` run that `cases` does not."""
    s = size_of(size)
    rungs = [rung for several in LADDER.values() for rung in several]
    return [
        Search(scenario, system, text, profile, seed=seed, num_requests=s.num_requests,
               precision=s.precision)
        for scenario, (system, text) in product(scenarios or s.scenarios, dict.fromkeys(rungs))
        for seed in range(s.seeds)
    ]  # fmt: skip


def save(size: str, found: Frame, climbed: Frame) -> None:
    """Write the capacities to results/<size>/arena.csv, and what each idea is worth to
    arena_ladder.csv."""
    columns = ["scenario", "system", "setting", "profile", "router", *WHERE]
    columns += ["capacity", "low", "high", "seeds", "source", "status"]
    for name, table in (
        ("arena", found[columns]),
        ("arena_ladder", climbed.drop(columns="each")),
    ):
        text = table.assign(commit=commit()).to_csv(index=False, float_format="%.6g")
        write_whole(results_dir(size) / f"{name}.csv", text)


def ahead(found: Frame, others: Sequence[str] = LATER) -> Frame:
    """Ours over the best of the `others`, per scenario and place: which one that is, the ratio with
    its interval over seeds, and each seed's."""
    keep = ["scenario", *WHERE, "rate"]
    rivals = strongest(found[found["system"].isin(others)], "scenario", *WHERE)
    ours = found.loc[found["system"] == OURS, keep]
    return over(ours, rivals[[*keep, "system"]]).rename(columns={"system": "against"})


def in_all(table: Frame) -> Frame:
    """`ahead` as geometric mean over the scenarios, per place."""
    rows = [(*key, *mean_of(g), len(g)) for key, g in table.groupby([*WHERE], sort=False)]
    return pd.DataFrame(rows, columns=[*WHERE, "ratio", "low", "high", "scenarios"])


def ladder(probes: Frame) -> Frame:
    """Capacity of each rung over that of the first, per scenario, and as geometric mean."""
    named = []
    for rung, several in LADDER.items():
        mask = [(r.system, r.setting) in several for r in rows_of(probes)]
        named.append(capacities(probes[mask].assign(system=rung), "target"))
    found = pd.concat([strongest(part, "scenario", "system") for part in named])
    keep = found[["scenario", "system", "rate"]]
    return over(keep, select(keep, system=next(iter(LADDER))).drop(columns="system"))


def grid(found: Frame) -> Frame:
    """Capacities to be read: a row per system, a column per scenario."""
    table = found.pivot_table("capacity", "system", "scenario", sort=False)
    return table.rename(index=name_of)


def ladder_chart(table: Frame, source: str) -> Figure:
    """Capacity over Sarathi-Serve's with each idea added, a line per scenario and their mean."""
    figure, [axis] = panels([""], (7.5, 3.6), (0, 0), "capacity over Sarathi-Serve's (x)")
    rungs, scenarios = list(LADDER), unique(table["scenario"])
    mean = pd.DataFrame(
        [(r, *mean_of(select(table, system=r))) for r in rungs],
        columns=["system", "ratio", "low", "high"],
    )
    for i, (name, color) in enumerate(colors([*scenarios, "geometric mean"]).items()):
        last = i == len(scenarios)
        rows = mean if last else select(table, scenario=name).set_index("system").loc[rungs]
        looks = {"color": "black", "linewidth": 2.2} if last else {"color": color, "linewidth": 1}
        whiskers(axis, range(len(rungs)), rows, i, label=name, **looks)
    axis.set_xticks(range(len(rungs)), rungs)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    return finish(figure, f"{source}; {seeds_said(table)}", axis, ncols=4)
