"""What each part of SLOs-Serve is worth, with speculation, on several replicas.

A part is off alone (the whole system without it) or on alone (added to a base that has none of
them). The base starts whoever's prompt fits the KV cache, in order of arrival, in batches of a
fixed size, without drafts, behind round robin.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slos.core.types import require
from slos.evaluation import plots
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import BEST_ROUTER, MAX_DRAFTS, PLAIN, can_draft
from slos.evaluation.plots import DASHED, colors, finish, panels, seeds_said, unique, whiskers
from slos.evaluation.runs import hardware_of, parse_setting
from slos.evaluation.sizes import scale_of
from slos.evaluation.stats import mean_of, over, select
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import Spread, claim
from slos.studies.rivals import tuned
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

ROWS = "ablation"  # the file of their rows
BUDGETS = (512, 1024, 2048)  # tokens of a batch, what is tried where it is fixed


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
        for k, case in tuned(size, options, workers, ROWS).items()
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


def numbers(best: Frame) -> dict[str, Spread]:
    """What stands beside the paper's, by key of `results/paper.yaml`: value, low, high, of the
    scenario that it is about."""
    parts, found = gains(best), {}
    for part in ("speculation", "best_effort"):  # `03_scaling` tells what routing brings
        table = select(parts, part=part, how="off alone")
        table = select(table, scenario=claim(CLAIMS[part]).scenario)
        if len(table):
            found[CLAIMS[part]] = mean_of(table)
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
            said = claim(CLAIMS[part])
            axis.axvline(said.value, **DASHED)
            of = f", {said.scenario}" if said.scenario else ""
            axis.annotate(f" paper{of}: {said.value:g}x", (said.value, -0.45), fontsize=7)
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
