"""Drafts: a policy that may draft never carries less than one that may not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from slos.core.pace import RULES
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.grids import MAX_DRAFTS, can_draft
from slos.evaluation.runs import hardware_of
from slos.evaluation.stats import geometric_mean
from slos.policies import OURS
from workloads import SCENARIOS

pytestmark = pytest.mark.usefixtures("no_data")
PRECISION, SEEDS = 0.05, range(3)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if can_draft(name)])
def test_a_policy_that_may_draft_carries_no_less(scenario: str, rule: str) -> None:
    """In geometric mean over seeds, to the precision of a search: single seeds fall by it."""
    profile = hardware_of(scenario, drafts=True).name
    without = Search(scenario, OURS, "", profile, num_requests=120, precision=PRECISION, rule=rule)
    ratios = []
    for seed in SEEDS:
        cases = (replace(without, seed=seed, max_drafts=n) for n in (MAX_DRAFTS, 0))
        mine, other = (next(p.rate for p in search(c) if p.capacity) for c in cases)
        ratios.append(mine / other)
    assert geometric_mean(ratios) >= 1 / (1 + PRECISION)
