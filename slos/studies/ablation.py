"""What each part of SLOs-Serve is worth, and all of them against the baselines, with speculation,
on several replicas.

A part is off alone (the whole system without it) or on alone (added to a base that has none of
them). The base starts whoever's prompt fits the KV cache, in order of arrival, in batches of a
fixed size, without drafts, behind round robin.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import Any, TypeVar

import pandas as pd
from matplotlib.figure import Figure

from slos.core.types import require
from slos.evaluation import plots
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import (
    BEST_ROUTER,
    MAX_DRAFTS,
    PLAIN,
    RIVAL_ROUTER,
    RIVALS,
    can_draft,
    fixed_drafts,
    run_searches,
    typical,
)
from slos.evaluation.plots import DASHED, colors, finish, panels, seeds_said, unique, whiskers
from slos.evaluation.runs import hardware_of, parse_setting
from slos.evaluation.sizes import scale_of
from slos.evaluation.stats import interval, mean_of, over, over_each, rows_of, select
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import Spread, paper
from slos.sim.cluster import roles
from workloads import SCENARIOS

PARTS = {
    "speculation": "speculation",
    "best_effort": "burst resilience",
    "routing": "routing",
    "batching": "dynamic batch size",
    "admission": "admission control",
}
"""The parts and what figures call them: the one place where they are named; `case_of` says what
each switches."""

CLAIMS = {
    "speculation": "ablation_speculation",
    "best_effort": "ablation_burst",
    "routing": "ablation_routing",
}
"""Those that the paper has a number for, and its key in `results/paper.yaml`."""

BUDGETS = (512, 1024, 2048)  # tokens of a batch, what is tried where it is fixed


Key = TypeVar("Key", bound=Hashable)


def case_of(scenario: str, parts: Collection[str], batch_tokens: int = 0, **where: Any) -> Search:
    """Our policy with these parts alone. batch_tokens: of every batch without "batching". where:
    fields of a search."""
    for part in parts:
        require(part in PARTS, "part", part, f"one of {', '.join(PARTS)}")
    off = [f"{part}=0" for part in ("admission", "best_effort") if part not in parts]
    off += [f"batch_tokens={batch_tokens}"] if "batching" not in parts else []
    router = BEST_ROUTER if "routing" in parts else PLAIN
    drafts = (
        MAX_DRAFTS
        if "speculation" in parts and can_draft(scenario, where.get("profile", ""))
        else 0
    )
    where = {"router": router if where.get("replicas", 1) > 1 else "", "max_drafts": drafts} | where
    return Search(scenario, OURS, ",".join(off), **where)


def tuned(
    size: str, groups: Mapping[Key, Sequence[Search]], workers: int | None = None
) -> dict[Key, Search]:
    """Of each group the case that carries most, with one seed and as many replicas as it is
    about."""
    s = scale_of(size)
    small = {"precision": s.tuning_precision, "seed": 0}
    tried = {
        key: [
            replace(
                c, num_requests=s.tuning_requests * c.replicas * len(roles(c.topology)), **small
            )
            for c in cases
        ]
        for key, cases in groups.items()
    }
    found = carried(size, [case for cases in tried.values() for case in cases], workers)
    best = {
        key: max(range(len(cases)), key=lambda i: found[cases[i]].rate)
        for key, cases in tried.items()
    }
    return {key: groups[key][i] for key, i in best.items()}


def carried(size: str, cases: Sequence[Search], workers: int | None = None) -> dict[Search, Any]:
    """The row of each case that is its capacity: `rate` is in requests per second and GPU."""
    cases = list(dict.fromkeys(cases))
    probes = run_searches(size, cases, workers, "ablation")
    return dict(zip(cases, rows_of(probes[probes["capacity"]]), strict=True))


def variants(
    size: str,
    scenarios: Sequence[str] = (),
    workers: int | None = None,
    replicas: int = 0,
    profile: str = "",
) -> dict[tuple[str, str], Search]:
    """By scenario and name: "all", "without PART", "base" and "only PART", of the first seed."""
    s, whole = scale_of(size, replicas), frozenset(PARTS)
    sets = {"all": whole, "base": frozenset()}
    sets |= {f"without {part}": whole - {part} for part in PARTS}
    sets |= {f"only {part}": frozenset({part}) for part in PARTS}
    scenarios = scenarios or s.scenarios
    for name in scenarios:
        require(name in SCENARIOS, "scenario", name, f"one of {', '.join(SCENARIOS)}")
        hardware_of(name, profile)
    alone, off = frozenset(), whole - {"batching"}  # where a batch is fixed, and its size is chosen
    options = {
        (name, parts): [case_of(name, parts, n, profile=profile) for n in BUDGETS]
        for name, parts in product(scenarios, (alone, off))
    }
    budgets = {
        k: int(parse_setting(case.setting)["batch_tokens"])
        for k, case in tuned(size, options, workers).items()
    }
    where = {"num_requests": s.replicas * s.requests, "precision": s.precision}
    where |= {"replicas": s.replicas, "profile": profile}
    return {
        (scenario, name): case_of(
            scenario, parts, budgets[scenario, off if parts == off else alone], **where
        )
        for scenario in scenarios
        for name, parts in sets.items()
    }


def rivals(
    size: str,
    scenarios: Sequence[str] = (),
    workers: int | None = None,
    replicas: int = 0,
    profile: str = "",
) -> dict[tuple[str, str], Search]:
    """By scenario and name: each baseline at its best on as many GPUs.

    First the token budget or the topology is chosen, drafting as is `typical` where there is a
    draft model; then the draft length, none among them.
    """
    s = scale_of(size, replicas)
    # of each setting or topology all draft lengths
    tries: dict[tuple[str, str], list[list[Search]]] = {}
    for scenario, (name, options) in product(scenarios or s.scenarios, RIVALS.items()):
        tries[scenario, name] = []
        for engine, setting, topology in options:
            n = max(1, s.replicas // len(roles(topology)))
            router = RIVAL_ROUTER if n * len(roles(topology)) > 1 else ""
            case = Search(
                scenario, engine, setting, profile, replicas=n, router=router, topology=topology
            )
            tries[scenario, name].append(
                [case, *(fixed_drafts(case) if can_draft(scenario, profile) else ())]
            )
    best = tuned(size, {key: [typical(t) for t in each] for key, each in tries.items()}, workers)
    best = tuned(
        size, {key: next(t for t in tries[key] if case in t) for key, case in best.items()}, workers
    )
    return {
        key: replace(
            c, num_requests=s.requests * c.replicas * len(roles(c.topology)), precision=s.precision
        )
        for key, c in best.items()
    }


def measured(
    size: str, cases: Mapping[tuple[str, str], Search], workers: int | None = None
) -> Frame:
    """A row per scenario and name: capacity with its interval over seeds, that of each seed, and
    what ran."""
    seeds = range(scale_of(size).seeds)
    found = carried(
        size, [replace(case, seed=seed) for case in cases.values() for seed in seeds], workers
    )
    rows = []
    for (scenario, name), case in cases.items():
        mine = [found[replace(case, seed=seed)] for seed in seeds]
        where = (case.setting, case.replicas, case.topology, case.router, case.max_drafts)
        each = [row.rate for row in mine]
        rows.append(
            (scenario, name, *where, case.hardware.name, mine[0].source, *interval(each), each)
        )
    where = ["setting", "replicas", "topology", "router", "max_drafts", "profile", "source"]
    return pd.DataFrame(
        rows, columns=["scenario", "name", *where, "capacity", "low", "high", "rate"]
    )


def named(best: Frame, name: str) -> Frame:
    return select(best, name=name)[["scenario", "rate"]]


def gains(best: Frame) -> Frame:
    """What each part brings: the whole system over it without the part, and the base with the part
    over the base.

    Columns: scenario, part, how ("off alone" | "on alone"), ratio, low, high, each. Speculation:
    where drafts are.
    """
    tables, drafting = [], set(select(best, name="all").query("max_drafts > 0")["scenario"])
    for part in PARTS:
        drafted = (
            best["scenario"].isin(drafting) if part == "speculation" else best["scenario"].notna()
        )
        for how, mine, theirs in (
            ("off alone", "all", f"without {part}"),
            ("on alone", f"only {part}", "base"),
        ):
            if drafted.any():
                tables.append(
                    over(named(best[drafted], mine), named(best, theirs)).assign(part=part, how=how)
                )
    return pd.concat(tables, ignore_index=True)


def against(best: Frame) -> Frame:
    """The whole system over each baseline and over the best of them: scenario, against, ratio, low,
    high, each."""
    theirs = best[best["name"].isin(RIVALS)]
    return over_each(named(best, "all"), theirs, "name", list(RIVALS)).drop(columns="name")


def numbers(best: Frame) -> dict[str, Spread]:
    """What stands beside the paper's, by key of `results/paper.yaml`: value, low, high."""
    parts, others = gains(best), against(best)
    found = {}
    for part in ("speculation", "best_effort"):  # `03_scaling` tells what routing brings
        table = select(parts, part=part, how="off alone")
        if len(table):
            found[CLAIMS[part]] = mean_of(table)
    for name, table in others.groupby("against", sort=False):
        found[f"headline_vs_{name}".replace("-", "_")] = mean_of(table)
    return found


def ablation_chart(table: Frame, source: str) -> Figure:
    """What each part brings, off alone and on alone, a panel per part: scenarios, geometric mean
    last, the paper's."""
    parts = [part for part in PARTS if part in set(table["part"])]
    names = [*unique(table["scenario"]), "geometric mean"]
    counts = {part: table.loc[table["part"] == part, "scenario"].nunique() for part in parts}
    titles = [
        PARTS[p] + f"\nmean of {n} of {len(names) - 1}" * (n < len(names) - 1)
        for p, n in counts.items()
    ]
    each = 2.3, 0.42 * len(names)
    figure, axes = panels(titles, each, (1.2, 1.5), "", sharey=True, sharex=True)
    hows = ("off alone", "on alone")
    palette = colors(hows)
    for axis, part in zip(axes, parts, strict=True):
        for i, how in enumerate(hows):
            mine = select(table, part=part, how=how)[["scenario", "ratio", "low", "high", "each"]]
            mean = pd.DataFrame(
                [(names[-1], *mean_of(mine))], columns=["scenario", "ratio", "low", "high"]
            )
            rows = pd.concat([mine, mean])
            y = [names.index(name) + (i - 0.5) * 0.26 for name in rows["scenario"]]
            whiskers(axis, y, rows, i, across=True, linestyle="none", color=palette[how], label=how)
        axis.axvline(1, color="black", linewidth=0.8)
        axis.axhline(len(names) - 1.5, color="0.7", linewidth=0.8)
        if part in CLAIMS:
            said = paper(CLAIMS[part])
            axis.axvline(said, **DASHED)
            axis.annotate(f" paper: {said:g}x", (said, -0.45), fontsize=7)
        axis.set_xscale("log")
        plots.plain_log(axis.xaxis, 1, 1.2, 1.5, 2, 3, 5, 7)
        axis.set_xlabel("capacity, with over without")
    axes[0].set_yticks(range(len(names)), names)
    axes[0].set_ylim(len(names) - 0.4, -0.6)
    said = (
        f"{source}; off alone: all parts over all but one; on alone: the base with one part over "
        "the base; "
    )
    said += f"{seeds_said(table)}; speculation: where there is a draft model"
    return finish(figure, said, axes[0], ncols=2)
