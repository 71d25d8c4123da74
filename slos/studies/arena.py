"""The arena: schedulers that came after the paper, compared with it and its baselines, on the same
traces, roofline and objectives. All simulated.

A star: of each system the best setting counts, found on one replica without drafts at 90 % by the
paper's rule of pace. It is kept where one of these is changed: four replicas, drafts, 98 %, the
clients' rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slos.core.pace import CLIENT
from slos.evaluation import grids, plots, stats
from slos.evaluation.capacity_search import Probe, Search, tried
from slos.evaluation.grids import BEST_ROUTER, MAX_DRAFTS, can_draft, fixed_drafts, settings_of
from slos.evaluation.plots import colors, unique
from slos.evaluation.sizes import Size, of_size
from slos.evaluation.stats import capacities, over, rows_of, select, strongest
from slos.files import Frame
from slos.policies import LATER, OURS, POLICIES

CHANGES: tuple[dict[str, Any], ...] = (
    {"rule": CLIENT},
    {"target": 0.98},
    {"replicas": 4, "num_requests": 1200},
    {"max_drafts": MAX_DRAFTS},
)
COARSER = 0.05  # the precision of a capacity where something is changed
SIZES = {
    "smoke": (Size(40, 1, 0.5, scenarios=("coding",)), ({"replicas": 2},)),
    "quick": (Size(200, 1, 0.08, scenarios=("coding", "summarization", "mixed")), CHANGES[:1]),
    "full": (Size(600, 3, 0.03), CHANGES),
}
"""And what is changed."""
ROUTERS = (BEST_ROUTER, "least-loaded", "lmetric", "polyserve")
WHERE = ("target", "drafts", "replicas", "rule")

FREE = "margin=1,free=1"
LADDER = {
    "Sarathi-Serve": settings_of(["sarathi"]),
    "+ dynamic step": [("qoserve", f"{FREE},by_deadline=0,relegate=0")],
    "+ deadline order": [("qoserve", f"{FREE},{h}relegate=0") for h in ("", "hybrid=0,")],
    "+ relegation": [("qoserve", f"{FREE}{h}") for h in ("", ",hybrid=0")],
    "+ memory ahead": [("qoserve", f"{FREE}{h},foresee=1") for h in ("", ",hybrid=0")],
    "SLOs-Serve": [(OURS, "")],
}
"""From Sarathi-Serve to ours, an idea at a time: what runs and with which settings, of which the
best counts. The last step is what is left: admission and batches that are proven ahead."""


def run(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Rows of `Probe` with their longest draft, from results/<size>/arena_*.csv where they lie
    already; of each system and setting only if every seed has a capacity."""
    parts, cases = [], list(dict.fromkeys(cases))
    for target, drafts in dict.fromkeys((c.target, c.max_drafts) for c in cases):
        mine = [c for c in cases if (c.target, c.max_drafts) == (target, drafts)]
        rows = grids.swept(size, f"arena_{target:g}_{drafts}", tried, mine, Probe, workers)
        parts.append(rows.assign(drafts=drafts))
    rows = pd.concat(parts, ignore_index=True)
    return stats.of_every_seed(rows, "scenario", "system", "setting", "router", *WHERE)


def cases(
    size: str, scenarios: Sequence[str] = (), systems: Sequence[str] = (), profile: str = ""
) -> list[Search]:
    """Every scenario, system, setting and seed on one replica without drafts."""
    s, _ = of_size(size, SIZES)
    scenarios, systems = scenarios or s.scenarios, systems or tuple(POLICIES)
    grids.check_cases(scenarios, systems, profile)
    return grids.crossed(s, settings_of(systems), scenarios, profile=profile)


def best(probes: Frame) -> Frame:
    """Of each scenario, system and place (`WHERE`) the setting and router that carries most."""
    return strongest(capacities(probes, "router", *WHERE), "scenario", "system", *WHERE)


def further(size: str, found: Frame, profile: str = "") -> list[Search]:
    """The same with one thing changed, each system at the setting that `best` found: several
    replicas, where each router is tried, and drafts in the scenarios that have a draft model."""
    (s, changes), grid = of_size(size, SIZES), []
    coarse = replace(s, precision=max(s.precision, COARSER)).effort
    for change, row, seed in product(changes, rows_of(found), range(s.seeds)):
        case = Search(row.scenario, row.system, row.setting, profile, seed=seed)
        case = replace(case, **coarse | change)
        if case.max_drafts and not can_draft(row.scenario, profile):
            continue
        if case.replicas > 1 and not can_draft(row.scenario):
            continue
        fixed = case.max_drafts and hasattr(POLICIES[row.system], "drafts")
        for c in [case, *fixed_drafts(case)] if fixed else [case]:
            grid += [replace(c, router=r) for r in ROUTERS] if c.replicas > 1 else [c]
    return grid


def ladder_cases(size: str, scenarios: Sequence[str] = (), profile: str = "") -> list[Search]:
    """What the rungs of `LADDER` run that `cases` does not."""
    s, _ = of_size(size, SIZES)
    return grids.crossed(s, dict.fromkeys(chain(*LADDER.values())), scenarios, profile=profile)


def save(size: str, found: Frame, climbed: Frame) -> None:
    """Write the capacities to arena.csv of a size, what each idea is worth to arena_ladder.csv."""
    columns = ["scenario", "system", "setting", "profile", "router", *WHERE]
    columns += ["capacity", "low", "high", "seeds", "source", "status"]
    stats.write(size, "arena", found[columns], float_format="%.6g")
    stats.write(size, "arena_ladder", climbed.drop(columns="each"), float_format="%.6g")


def ahead(found: Frame) -> Frame:
    """Ours over the best of the later ones (`against`), per scenario and place."""
    keep = ["scenario", *WHERE, "rate"]
    rivals = strongest(found[found["system"].isin(LATER)], "scenario", *WHERE)
    ours = found.loc[found["system"] == OURS, keep]
    return over(ours, rivals[[*keep, "system"]]).rename(columns={"system": "against"})


def ladder(probes: Frame) -> Frame:
    """Capacity of each rung over that of the first, per scenario."""
    named = []
    for rung, several in LADDER.items():
        mask = [(r.system, r.setting) in several for r in rows_of(probes)]
        named.append(capacities(probes[mask].assign(system=rung)))
    found = pd.concat(named)[["scenario", "system", "rate"]]
    return over(found, select(found, system=next(iter(LADDER))).drop(columns="system"))


def ladder_chart(table: Frame, source: str) -> Figure:
    """Capacity over Sarathi-Serve's with each idea added, a line per scenario and their mean."""
    figure, [axis] = plots.panels([""], (7.5, 3.6), (0, 0), "capacity over Sarathi-Serve's (x)")
    rungs, mean = list(LADDER), "geometric mean"
    lines = pd.concat([table, stats.geometric_means(table, "system").assign(scenario=mean)])
    for i, (name, color) in enumerate(colors(unique(lines["scenario"])).items()):
        looks: dict[str, Any] = {"color": color, "linewidth": 1, "label": name}
        looks |= {"color": "black", "linewidth": 2.2} if name == mean else {}
        rows = select(lines, scenario=name).set_index("system").loc[rungs]
        plots.whiskers(axis, range(len(rungs)), rows, i, **looks)
    axis.set_xticks(range(len(rungs)), rungs)
    axis.axhline(1, color="0.7", linewidth=0.8, zorder=0)
    return plots.finish(figure, f"{source}; {plots.seeds_said(table)}", axis, ncols=4)
