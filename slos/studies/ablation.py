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

from slos.evaluation import plots
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import BEST_ROUTER, MAX_DRAFTS, PLAIN, can_draft, check_cases
from slos.evaluation.plots import DASHED, seeds_said, unique
from slos.evaluation.runs import parse_setting
from slos.evaluation.sizes import check_names, scale_of
from slos.evaluation.stats import geometric_means, mean_of, over, select
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import Spread, claim
from slos.studies.rivals import tuned

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
    """Our policy with these parts alone; batches of `batch_tokens` where "batching" is not one."""
    check_names("part", parts, PARTS)
    off = [f"{part}=0" for part in ("admission", "best_effort") if part not in parts]
    off += [f"batch_tokens={batch_tokens}"] if "batching" not in parts else []
    router = BEST_ROUTER if "routing" in parts else PLAIN
    drafts = "speculation" in parts and can_draft(scenario, where.get("profile", ""))
    where |= {"router": router if where.get("replicas", 1) > 1 else ""}
    where |= {"max_drafts": MAX_DRAFTS if drafts else 0}
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
    check_cases(scenarios, profile=profile)
    alone, off = frozenset(), whole - {"batching"}  # where a batch is fixed, and its size is chosen
    options = {
        (name, parts): [case_of(name, parts, n, profile=profile) for n in BUDGETS]
        for name, parts in product(scenarios, (alone, off))
    }
    budgets = {
        k: int(parse_setting(case.setting)["batch_tokens"])
        for k, case in tuned(size, options, workers, ROWS).items()
    }
    where = {"replicas": s.replicas, "profile": profile}
    return {
        (scenario, name): case_of(
            scenario, parts, budgets[scenario, off if parts == off else alone], **where
        )
        for scenario, (name, parts) in product(scenarios, sets.items())
    }


def named(best: Frame, name: str) -> Frame:
    return select(best, name=name)[["scenario", "rate"]]


def gains(best: Frame) -> Frame:
    """What each part brings: the whole system over it without the part, "off alone" (`how`), and
    the base with the part over the base, "on alone". Speculation: where drafts are."""
    tables, drafting = [], select(best, name="all").query("max_drafts > 0")["scenario"]
    for part in PARTS:
        known = best[best["scenario"].isin(drafting)] if part == "speculation" else best
        pairs = {"off alone": ("all", f"without {part}"), "on alone": (f"only {part}", "base")}
        for how, (mine, theirs) in pairs.items() if len(known) else ():
            ratios = over(named(known, mine), named(best, theirs))
            tables.append(ratios.assign(part=part, how=how))
    return pd.concat(tables, ignore_index=True)


def numbers(best: Frame) -> dict[str, Spread]:
    """Our numbers for the paper's claims, each of its own scenario: value, low, high by key."""
    parts, found = gains(best), {}
    for part in ("speculation", "best_effort"):  # `03_scaling` tells what routing brings
        table = select(parts, part=part, how="off alone")
        table = select(table, scenario=claim(CLAIMS[part]).scenario)
        if len(table):
            found[CLAIMS[part]] = mean_of(table)
    return found


def ablation_chart(table: Frame, source: str) -> Figure:
    """What each part brings, a panel per part: scenarios, geometric mean last, the paper's. A part
    that is not known for all scenarios has no mean, which would be shown next to those of all."""
    parts = [part for part in PARTS if part in set(table["part"])]
    names = [*unique(table["scenario"]), "geometric mean"]
    counts, most = table.groupby("part")["scenario"].nunique().to_dict(), len(names) - 1
    titles = [PARTS[p] + f"\n{counts[p]} of {most}, so no mean" * (counts[p] < most) for p in parts]
    each = 2.3, 0.42 * len(names)
    figure, axes = plots.panels(titles, each, (1.2, 1.5), "", sharey=True, sharex=True)
    means = geometric_means(table, "part", "how").assign(scenario=names[-1])
    lines = pd.concat([table, means[means["scenarios"] == most]])
    for axis, i, rows, looks in plots.lines(axes, lines, "part", "how"):
        y = [names.index(name) + (i - 0.5) * 0.26 for name in rows["scenario"]]
        plots.whiskers(axis, y, rows, i, across=True, linestyle="none", **looks)
    for axis, part in zip(axes, parts, strict=True):
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
    said = f"{source}; off alone: all parts over all but one; on alone: the base with one part over"
    said += f" the base; {seeds_said(table)}"
    return plots.finish(
        figure, f"{said}; speculation: where there is a draft model", axes[0], ncols=2
    )
