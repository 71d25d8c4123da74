"""The paper's other claims in its own setting: at 98 % attainment, and what rests on a length of
drafts that was not published; and runs that remove the cause of what ours misses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from slos.evaluation.grids import (
    AS_PUBLISHED,
    PLAIN,
    behind,
    can_draft,
    case_of_rival,
)
from slos.evaluation.sizes import scale_of
from slos.evaluation.stats import mean_of, over, over_each, select
from slos.files import Frame
from slos.records.claims import Spread
from slos.studies.ablation import PARTS, case_of
from slos.studies.rivals import Cases, at_scale, measured, tuned

STRICT = 0.98
LENGTHS = (1, 3, 5)  # of drafts


def strict(size: str, workers: int | None = None, replicas: int = 0) -> Frame:
    """Ours over each baseline as the paper had it, in chatbot, where nearly all requests must
    attain: against, ratio, low, high, each."""
    s, where = scale_of(size, replicas), dict[str, Any](target=STRICT)
    groups = {("chatbot", "ours"): [case_of("chatbot", PARTS, replicas=s.replicas, **where)]}
    for name, tries in AS_PUBLISHED.items():
        plain = [replace(case_of_rival("chatbot", r, s.replicas), **where) for r in tries]
        groups["chatbot", name] = [c for case in plain for c in behind(case, (PLAIN,))]
    best = measured(size, at_scale(tuned(size, groups, workers), size), workers)
    theirs = best[best["name"] != "ours"]
    table = over_each(select(best, name="ours"), theirs, "name", list(AS_PUBLISHED))
    return table.drop(columns="name")


def draft_lengths(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0
) -> Frame:
    """Ours over vLLM as the paper had it, by the draft length of vLLM: scenario, drafts, ratio,
    low, high, each. Only where there is a draft model."""
    s, cases = scale_of(size, replicas), Cases()
    for scenario in filter(can_draft, scenarios or s.scenarios):
        cases[scenario, "ours"] = case_of(scenario, PARTS, replicas=s.replicas)
        for n in LENGTHS:
            rival = AS_PUBLISHED["vllm"][0]._replace(drafts=n)
            [cases[scenario, str(n)]] = behind(case_of_rival(scenario, rival, s.replicas), (PLAIN,))
    best = measured(size, at_scale(cases, size), workers).rename(columns={"name": "drafts"})
    columns = ["scenario", "drafts", "rate"]
    ours = best["drafts"] == "ours"
    return over(best[ours][["scenario", "rate"]], best[~ours][columns])


def numbers(table: Frame) -> dict[str, Spread]:
    """Of `strict`, by key of `results/paper.yaml`."""
    return {f"strict_vs_{name}": mean_of(rows) for name, rows in table.groupby("against")}
