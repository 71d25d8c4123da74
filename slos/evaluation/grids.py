"""What is tried: settings, routers and draft lengths of each system, and grids of runs of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from slos.core.pace import PAPER, RULES
from slos.core.types import require
from slos.evaluation import near
from slos.evaluation.capacity_search import Probe, Search, search
from slos.evaluation.runs import hardware_of
from slos.evaluation.sizes import Size, check_names, size_of
from slos.files import ROOT, Frame, results_dir
from slos.policies import POLICIES, ordinary
from slos.policies.routers import ROUTERS
from slos.records.provenance import Code
from slos.records.sweep import sweep
from slos.sim.cluster import roles
from workloads import SCENARIOS

SETTINGS: dict[str, tuple[str, ...]] = {
    "vllm": ("max_batched_tokens=2048", "max_batched_tokens=4096"),
    "vllm-v1": tuple(f"max_batched_tokens={n}" for n in (512, 1024, 2048, 8192)),
    "sarathi": ("chunk=512", "chunk=1024", "chunk=2048"),
    "qoserve": ("", "margin=1,free=1", "margin=1,free=1,hybrid=0", "margin=1,free=1,relegate=0"),
    "fair-batching": ("", "relegate=1"),
    "scorpio": ("", "chunk=1024", "chunk=512", "reject=0"),
    "adaserve": ("", "margin=1,free=1", "margin=1,free=1,hybrid=0"),
}
"""What is tried of each system but ours, so that its best is reported: those of the later ones
begin with what was published (""), the others tune it. A system that is not named runs with its
defaults."""
PLAIN, BEST_ROUTER = "round-robin", "cheapest"
BASELINE = "vllm-v1"
RATIOS = ("1:1", "2:1", "1:2")  # prefill to decode replicas, the paper's
MAX_DRAFTS = 10  # the paper's longest draft
FIXED_DRAFTS = (1, 2, 3, 5)  # what is tried of each baseline
TYPICAL_DRAFTS = 3  # with which its other settings are chosen
RIVAL_ROUTERS = ("round-robin", "least-loaded")  # of which each baseline has the better


class Rival(NamedTuple):
    """A baseline as it is tried; drafts: its fixed draft length, where there is a draft model."""

    engine: str
    setting: str = ""
    topology: str = ""
    drafts: int = 0


ENGINES = ("vllm", "vllm-v1")
RIVALS = {
    name: [Rival(name, setting) for setting in SETTINGS[name]] for name in (*ENGINES, "sarathi")
}
RIVALS["distserve"] = [Rival(e, SETTINGS[e][-1], ratio) for e in ENGINES for ratio in RATIOS]
"""Of each baseline what is tried today."""
AS_PUBLISHED = {
    "vllm": [Rival("vllm", "max_batched_tokens=2048", drafts=3)],
    "sarathi": [Rival("sarathi", "chunk=512")],
    "distserve": [Rival("vllm", "max_batched_tokens=2048", ratio) for ratio in RATIOS],
}
"""The same, as the paper had them, behind round robin: vLLM 0.5.1 (of July 2024) batches prompts to
2048 tokens, and its drafts have one fixed length, which was not published; Sarathi-Serve has that
version's default with chunks, and cannot draft with them; DistServe has the best ratio."""
AUTHORS = {"vllm": [Rival("vllm-authors")], "sarathi": [Rival("sarathi-authors")]}
"""The same in the authors' simulation."""
AUTHORS_MEMORY = 10e9  # bytes of KV cache there, of every system


def check_cases(
    scenarios: Sequence[str],
    systems: Sequence[str] = (),
    profile: str = "",
    routers: Sequence[str] = (),
) -> None:
    """Refuse unknown names before the first run."""
    check_names("scenario", scenarios, SCENARIOS)
    check_names("system", systems, POLICIES)
    check_names("router", routers, ROUTERS)
    for scenario in scenarios:
        hardware_of(scenario, profile)


def searches(
    size: str, scenarios: Sequence[str] = tuple(SCENARIOS),
    systems: Sequence[str] = tuple(ordinary()), profile: str = "", target: float = 0.9,
    rule: str = PAPER,
) -> list[Search]:  # fmt: skip
    """Every scenario, system, setting of it, and seed. Raises ValueError for unknown names."""
    s = size_of(size)
    check_cases(scenarios, systems, profile)
    check_names("rule", [rule], RULES)
    where: dict[str, Any] = {"profile": profile, "target": target, "rule": rule}
    return [
        case
        for lengths in s.lengths
        for case in crossed(s, settings_of(systems), scenarios, lengths=lengths, **where)
        if lengths == "dataset" or SCENARIOS[case.scenario].has_trace
    ]


def settings_of(
    systems: Iterable[str], settings: Mapping[str, Sequence[str]] = SETTINGS
) -> list[tuple[str, str]]:
    """Each system with each of its settings, "" where it has none."""
    return [(name, text) for name in systems for text in settings.get(name, ("",))]


def crossed(
    s: Size, tries: Iterable[tuple[str, str]], scenarios: Sequence[str] = (), **where: Any
) -> list[Search]:
    """Every scenario, those of the size unless given, system with its setting, and seed. where:
    other fields of a search."""
    each = product(scenarios or s.scenarios, tries, range(s.seeds))
    return [
        Search(scenario, system, setting, seed=seed, **s.effort, **where)
        for scenario, (system, setting), seed in each
    ]


def sized(case: Search, requests: int, precision: float) -> Search:
    """A case with so many requests per replica, and searched to a precision."""
    n = requests * case.replicas * len(roles(case.topology))
    return replace(case, num_requests=n, precision=precision)


def swept(
    size: str,
    name: str,
    function: Callable[[Any], Sequence[Any]],
    cases: Sequence[Any],
    row: type,
    workers: int | None = None,
) -> Frame:
    """The rows of `sweep` as a table, from results/<size>/<name>.csv where they lie already. Raises
    ValueError for a policy that only this process knows."""
    written, cure = Code(ROOT).policies, "runs are made in other processes"
    for system in {getattr(case, "system", "") for case in cases} & POLICIES.keys():
        bound = "a policy with a line in slos/policies/__init__.py"
        require(system in written, "system", system, bound, cure)
    path = results_dir(size) / f"{name}.csv"
    rows = sweep(function, near.begun(cases), path, row, workers)
    return pd.DataFrame(rows, columns=[f.name for f in fields(row)])


def run_searches(
    size: str, cases: Sequence[Search], workers: int | None = None, name: str = "probes"
) -> Frame:
    """Rows of `Probe` for all cases, from results/<size>/<name>.csv where they lie already."""
    return swept(size, name, search, cases, Probe, workers)


def can_draft(scenario: str, profile: str = "") -> bool:
    """Whether there is a draft model."""
    return hardware_of(scenario, profile, drafts=True).drafts


def behind(case: Search, routers: Sequence[str] = RIVAL_ROUTERS) -> list[Search]:
    """A baseline's case behind each router, or as it is where there is nothing to choose."""
    several = case.replicas * len(roles(case.topology)) > 1
    return [replace(case, router=router) for router in routers] if several else [case]


def tries_of(
    scenario: str,
    rivals: Sequence[Rival],
    replicas: int,
    routers: Sequence[str] = RIVAL_ROUTERS,
    profile: str = "",
    **where: Any,
) -> list[Search]:
    """What is tried of a baseline on that many replicas, or fewer where its topology takes several:
    each of the `rivals` behind each router. where: fields of a search."""
    found = []
    for engine, setting, topology, drafts in rivals:
        where |= {"topology": topology, "replicas": max(1, replicas // len(roles(topology)))}
        case = Search(scenario, engine, setting, profile, **where)
        drafts = drafts if can_draft(scenario, profile) else 0
        found += behind(drafting(case, drafts) if drafts else case, routers)
    return found


def drafting(case: Search, drafts: int, max_drafts: int = MAX_DRAFTS) -> Search:
    """A baseline's case with a fixed draft length."""
    setting = f"{case.setting},drafts={drafts}".lstrip(",")
    return replace(case, setting=setting, max_drafts=max_drafts)


def fixed_drafts(case: Search, max_drafts: int = MAX_DRAFTS) -> list[Search]:
    """A baseline's case with each draft length that is tried, none longer than `max_drafts`."""
    lengths = sorted({min(n, max_drafts) for n in FIXED_DRAFTS})
    return [drafting(case, n, max_drafts) for n in lengths]


def typical(tries: Sequence[Search]) -> Search:
    """Of a case and its `fixed_drafts`, if there are any, the one by which a token budget is
    chosen: one that is ample without drafts may leave no room for them."""
    return tries[min(1 + FIXED_DRAFTS.index(TYPICAL_DRAFTS), len(tries) - 1)]
