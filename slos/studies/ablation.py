"""What each part of SLOs-Serve is worth, and all of them against the baselines, with speculation, on several replicas.

A part is off alone (the whole system without it) or on alone (added to a base that has none of them). The base starts
whoever's prompt fits the KV cache, in order of arrival, in batches of a fixed size, without drafts, behind round robin.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, TypeVar

import pandas as pd

from slos.core.types import require
from slos.evaluation.capacity_search import Search, hardware_of, parse_setting
from slos.evaluation.stats import Frame, Spread, mean_of, over, over_each, rows_of, select, told
from slos.metrics import interval
from slos.records.report import paper
from slos.sim.cluster import roles
from slos.studies.capacity import OURS, SETTINGS, run_searches
from slos.studies.scaling import BEST_ROUTER, PLAIN, RATIOS
from workloads import SCENARIOS

PARTS = {
    "speculation": "speculation",
    "best_effort": "burst resilience",
    "routing": "routing",
    "batching": "dynamic batch size",
    "admission": "admission control",
}
"""The parts and what figures call them: the one place where they are named; `case_of` says what each switches."""

CLAIMS = {"speculation": "ablation_speculation", "best_effort": "ablation_burst", "routing": "ablation_routing"}
"""Those that the paper has a number for, and its key in `results/paper.yaml`."""

MAX_DRAFTS = 10  # the paper's longest draft
FIXED_DRAFTS = (1, 2, 3, 5)  # what is tried of each baseline
TYPICAL_DRAFTS = 3  # with which its other settings are chosen
BUDGETS = (512, 1024, 2048)  # tokens of a batch, what is tried where it is fixed
RIVAL_ROUTER = "least-loaded"
RIVALS = {name: [(name, setting, "") for setting in SETTINGS[name]] for name in ("vllm", "vllm-v1", "sarathi")} | {
    "distserve": [(engine, SETTINGS[engine][-1], ratio) for engine in ("vllm", "vllm-v1") for ratio in RATIOS]
}
"""Of each baseline what is tried: engine, setting, topology."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is: replicas, requests per simulation and replica, seeds, precision of a capacity; of the runs
    of one seed in which settings are chosen; and which scenarios.

    With too few requests all of them are served at once, and capacities of a machine that never fills are too high.
    """

    replicas: int
    requests: int
    seeds: int
    precision: float
    tuning_requests: int
    tuning_precision: float
    scenarios: tuple[str, ...] = tuple(SCENARIOS)


SCALES = {
    "smoke": Scale(2, 60, 1, 0.5, 60, 0.5),
    "quick": Scale(2, 250, 1, 0.1, 120, 0.15, tuple(name for name in SCENARIOS if SCENARIOS[name].drafting)),
    "full": Scale(4, 250, 3, 0.05, 250, 0.1),
}
Key = TypeVar("Key", bound=Hashable)


def scale_of(size: str, replicas: int = 0) -> Scale:
    """replicas: 0 for those of the size."""
    require(size in SCALES, "size", size, f"one of {', '.join(SCALES)}")
    require(replicas >= 0, "replicas", replicas, "at least 1, or 0 for those of the size")
    return replace(SCALES[size], replicas=replicas or SCALES[size].replicas)


def can_draft(scenario: str, profile: str = "") -> bool:
    """Whether there is a draft model."""
    return hardware_of(scenario, profile, drafts=True).drafts


def case_of(scenario: str, parts: Collection[str], batch_tokens: int = 0, **where: Any) -> Search:
    """Our policy with these parts alone. batch_tokens: of every batch without "batching". where: fields of a search."""
    for part in parts:
        require(part in PARTS, "part", part, f"one of {', '.join(PARTS)}")
    off = [f"{part}=0" for part in ("admission", "best_effort") if part not in parts]
    off += [f"batch_tokens={batch_tokens}"] if "batching" not in parts else []
    router = BEST_ROUTER if "routing" in parts else PLAIN
    drafts = MAX_DRAFTS if "speculation" in parts and can_draft(scenario, where.get("profile", "")) else 0
    where = {"router": router if where.get("replicas", 1) > 1 else "", "max_drafts": drafts} | where
    return Search(scenario, OURS, ",".join(off), **where)


def tuned(size: str, groups: Mapping[Key, Sequence[Search]], workers: int | None = None) -> dict[Key, Search]:
    """Of each group the case that carries most, with one seed and as many replicas as it is about."""
    s = scale_of(size)
    small = {"precision": s.tuning_precision, "seed": 0}
    tried = {
        key: [replace(c, num_requests=s.tuning_requests * c.replicas * len(roles(c.topology)), **small) for c in cases]
        for key, cases in groups.items()
    }
    found = carried(size, [case for cases in tried.values() for case in cases], workers)
    best = {key: max(range(len(cases)), key=lambda i: found[cases[i]].rate) for key, cases in tried.items()}
    return {key: groups[key][i] for key, i in best.items()}


def carried(size: str, cases: Sequence[Search], workers: int | None = None) -> dict[Search, Any]:
    """The row of each case that is its capacity: `rate` is in requests per second and GPU."""
    cases = list(dict.fromkeys(cases))
    probes = run_searches(size, cases, workers, "ablation")
    return dict(zip(cases, rows_of(probes[probes["capacity"]]), strict=True))


def variants(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0, profile: str = ""
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
    budgets = {k: int(parse_setting(case.setting)["batch_tokens"]) for k, case in tuned(size, options, workers).items()}
    where = {"num_requests": s.replicas * s.requests, "precision": s.precision}
    where |= {"replicas": s.replicas, "profile": profile}
    return {
        (scenario, name): case_of(scenario, parts, budgets[scenario, off if parts == off else alone], **where)
        for scenario in scenarios
        for name, parts in sets.items()
    }


def fixed_drafts(case: Search, max_drafts: int = MAX_DRAFTS) -> list[Search]:
    """A baseline's case with each draft length that is tried, none longer than `max_drafts`."""
    lengths = sorted({min(n, max_drafts) for n in FIXED_DRAFTS})
    return [replace(case, setting=f"{case.setting},drafts={n}".lstrip(","), max_drafts=max_drafts) for n in lengths]


def typical(tries: Sequence[Search]) -> Search:
    """Of a case and its `fixed_drafts`, if there are any, the one by which a token budget is chosen: one that is ample
    without drafts may leave no room for them."""
    return tries[min(1 + FIXED_DRAFTS.index(TYPICAL_DRAFTS), len(tries) - 1)]


def rivals(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0, profile: str = ""
) -> dict[tuple[str, str], Search]:
    """By scenario and name: each baseline at its best on as many GPUs.

    First the token budget or the topology is chosen, drafting as is `typical` where there is a draft model; then the
    draft length, none among them.
    """
    s = scale_of(size, replicas)
    tries: dict[tuple[str, str], list[list[Search]]] = {}  # of each setting or topology all draft lengths
    for scenario, (name, options) in product(scenarios or s.scenarios, RIVALS.items()):
        tries[scenario, name] = []
        for engine, setting, topology in options:
            n = max(1, s.replicas // len(roles(topology)))
            router = RIVAL_ROUTER if n * len(roles(topology)) > 1 else ""
            case = Search(scenario, engine, setting, profile, replicas=n, router=router, topology=topology)
            tries[scenario, name].append([case, *(fixed_drafts(case) if can_draft(scenario, profile) else ())])
    best = tuned(size, {key: [typical(t) for t in each] for key, each in tries.items()}, workers)
    best = tuned(size, {key: next(t for t in tries[key] if case in t) for key, case in best.items()}, workers)
    return {
        key: replace(c, num_requests=s.requests * c.replicas * len(roles(c.topology)), precision=s.precision)
        for key, c in best.items()
    }


def measured(size: str, cases: Mapping[tuple[str, str], Search], workers: int | None = None) -> Frame:
    """A row per scenario and name: capacity with its interval over seeds, that of each seed, and what ran."""
    seeds = range(scale_of(size).seeds)
    found = carried(size, [replace(case, seed=seed) for case in cases.values() for seed in seeds], workers)
    rows = []
    for (scenario, name), case in cases.items():
        mine = [found[replace(case, seed=seed)] for seed in seeds]
        where = case.setting, case.replicas, case.topology, case.router, case.max_drafts, case.hardware.name
        each = [row.rate for row in mine]
        rows.append((scenario, name, *where, mine[0].source, *interval(each), each))
    where = ["setting", "replicas", "topology", "router", "max_drafts", "profile", "source"]
    return pd.DataFrame(rows, columns=["scenario", "name", *where, "capacity", "low", "high", "rate"])


def named(best: Frame, name: str) -> Frame:
    return select(best, name=name)[["scenario", "rate"]]


def gains(best: Frame) -> Frame:
    """What each part brings: the whole system over it without the part, and the base with the part over the base.

    Columns: scenario, part, how ("off alone" | "on alone"), ratio, low, high, each. Speculation: where drafts are.
    """
    tables, drafting = [], set(select(best, name="all").query("max_drafts > 0")["scenario"])
    for part in PARTS:
        drafted = best["scenario"].isin(drafting) if part == "speculation" else best["scenario"].notna()
        for how, mine, theirs in (("off alone", "all", f"without {part}"), ("on alone", f"only {part}", "base")):
            if drafted.any():
                tables.append(over(named(best[drafted], mine), named(best, theirs)).assign(part=part, how=how))
    return pd.concat(tables, ignore_index=True)


def against(best: Frame) -> Frame:
    """The whole system over each baseline and over the best of them: scenario, against, ratio, low, high, each."""
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


def what_ablation_shows(best: Frame) -> str:
    """The findings in Markdown, from the numbers."""
    table, lines = gains(best), []
    for part, label in PARTS.items():
        says = []
        for how in ("off alone", "on alone"):
            mine = select(table, part=part, how=how)
            if len(mine):
                each = ", ".join(f"{r.scenario} {r.ratio:.2f}" for r in rows_of(mine))
                says.append(f"{how} {told(mine)} ({each})")
        reported = f"{paper(CLAIMS[part]):g}x" if part in CLAIMS else "no number"
        found = "; ".join(says) or "no scenario here has a draft model"
        lines.append(f"- **{label}**: {found}; the paper reports {reported}")
    whole = over(named(best, "all"), named(best, "base"))
    return "\n".join([*lines, f"- **all together** over the base: {mean_of(whole)[0]:.2f}x"])


def what_rivals_show(best: Frame) -> str:
    """The findings in Markdown, from the numbers."""
    lines, table = [], against(best)
    for name, mine in table.groupby("against", sort=False):
        mine = mine.sort_values("ratio")
        worst, top = mine.iloc[0], mine.iloc[-1]
        lines.append(
            f"- over **{'the best of them' if name == 'best' else name}**: {told(mine)}, "
            f"most in {top.scenario} ({top.ratio:.2f}x), least in {worst.scenario} ({worst.ratio:.2f}x)"
        )
    return "\n".join([*lines, "", f"The paper reports {paper('headline_vs_vllm'):g}x over the baselines together."])
