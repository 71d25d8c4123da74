"""`slos.studies.bounds`: what has a bound, and what stands beside capacities."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from slos.core.pace import CLIENT, PAPER
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.stats import capacities
from slos.policies import OURS
from slos.studies import bounds, capacity

pytestmark = pytest.mark.usefixtures("no_data")
CASE = Search("coding", OURS, num_requests=60, precision=0.5)


def test_all_systems_have_one_bound_by_each_rule_and_others_none() -> None:
    other = replace(CASE, system="sarathi", setting="chunk=512", num_requests=90)
    without = [replace(CASE, max_drafts=3), replace(CASE, replicas=2), replace(CASE, seed=1)]
    without += [replace(CASE, prefix_cache=True), replace(CASE, topology="1:1")]
    more = [replace(CASE, target=0.98), replace(CASE, rule=CLIENT)]
    found = bounds.run("smoke", [CASE, other, *more, *without], 1)
    assert list(found["target"]) == [0.9, 0.98, 0.9] and set(found["seed"]) == {0}
    assert list(found["rule"]) == [PAPER, PAPER, CLIENT]
    first, strict, client = found["rate"]
    assert strict <= first <= client, "more that must attain; no request has less time"
    assert bounds.run("smoke", without, 1).empty


def test_a_share_is_of_the_bound_by_the_same_rule() -> None:
    best = pd.DataFrame(
        [("coding", OURS, PAPER, 6.0), ("coding", OURS, CLIENT, 6.0), ("coding", "x", CLIENT, 3.0)],
        columns=["scenario", "system", "rule", "capacity"],
    )
    found = pd.DataFrame(
        [("coding", PAPER, 12.0), ("coding", CLIENT, 24.0)], columns=["scenario", "rule", "rate"]
    )
    told = bounds.beside(best, found)
    assert list(told["bound"]) == pytest.approx([12, 24, 24])
    assert list(told[bounds.SHARE]) == pytest.approx([0.5, 0.25, 0.125])
    by_rule = bounds.shares(told, "scenario")["ours"]
    assert by_rule.to_dict() == {(PAPER, "coding"): "50%", (CLIENT, "coding"): "25%"}
    with pytest.raises(KeyError, match="rule"):
        bounds.beside(best.drop(columns="rule"), found)


def test_the_share_stands_beside_capacities_and_in_the_figure() -> None:
    cases = [CASE, replace(CASE, system="vllm"), replace(CASE, system="sarathi")]
    best = capacities(
        pd.DataFrame([row for case in cases for row in search(case)]), *capacity.ASKED
    )
    assert bounds.beside(best, pd.DataFrame()) is best
    told = bounds.beside(best, bounds.run("smoke", cases, 1))
    share = told.set_index("system")[bounds.SHARE]
    assert (share < 1).all() and share[OURS] == share.max()
    [row] = bounds.shares(told, "scenario").itertuples()
    theirs = share.drop(OURS).max()
    assert tuple(row) == ((PAPER, "coding"), f"{share[OURS]:.0%}", f"{theirs:.0%}")
    twice = pd.concat([told, told.assign(scenario="again", **{bounds.SHARE: 4 * share.values})])
    [row] = bounds.shares(twice, "target").itertuples()
    assert row[1] == f"{2 * share[OURS]:.0%}", "geometric mean of once and four times"
    [axis] = capacity.capacity_bars(told, "made up").axes
    [line] = [x for x in axis.get_lines() if x.get_label() == "bound"]
    assert list(np.asarray(line.get_ydata())) == [told["bound"].iloc[0]] * 2
    assert axis.get_ylim()[1] > told["bound"].iloc[0]
