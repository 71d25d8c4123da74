"""Unknown lengths: what is run, what is counted late, and what is made of the rows."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from slos.core.pace import CLIENT, PAPER, TOLERANCE
from slos.evaluation.capacity_search import Search, outcomes_at
from slos.policies import OURS
from slos.policies.predictors import BLIND, TRUE
from slos.studies import unknown_lengths
from slos.studies.unknown_lengths import BASELINE, LEARNED, ORACLE, Promises
from workloads import SCENARIOS


def test_every_predictor_is_tried_everywhere() -> None:
    cases = unknown_lengths.cases("full")
    assert len(cases) == len({str(c) for c in cases})
    ours = [c for c in cases if c.system == OURS]
    assert {c.predictor.partition(":")[0] for c in ours} == TRUE.keys() | BLIND.keys()
    assert {c.predictor for c in cases if c.system != OURS} == {ORACLE}
    places = {(c.replicas, c.rule, c.scenario) for c in ours if c.predictor == LEARNED}
    where = [(1, PAPER), (1, CLIENT), (4, PAPER)]
    assert places == {(*each, name) for each in where for name in SCENARIOS}
    assert places == {(c.replicas, c.rule, c.scenario) for c in cases if c.system == "sarathi"}
    assert all(bool(c.router) == (c.replicas > 1) for c in cases)
    with pytest.raises(ValueError, match="size = 'huge' must be one of smoke, quick, full"):
        unknown_lengths.cases("huge")


@pytest.mark.parametrize("replicas", [1, 2])
def test_tokens_are_counted_once_and_what_was_admitted_is_told(replicas: int) -> None:
    """A policy that admits all, at an easy load and at one far too high."""
    case = Search(
        "coding", "vllm-v1", num_requests=80 * replicas, replicas=replicas,
        router="round-robin" if replicas > 1 else "",
    )  # fmt: skip
    for rate, overloaded in ((2.0, False), (60.0, True)):
        seen = Promises()
        outcomes, _ = outcomes_at(case, rate * replicas, seen)
        assert outcomes == outcomes_at(case, rate * replicas)[0], "watching changes nothing"
        # one that came while its replica was idle had its first step before it was seen
        assert all(o.output - 1 <= seen.said[o.id] <= o.output for o in outcomes if o.output > 1)
        assert seen.promised.keys() >= {o.id for o in outcomes if o.output > 1}
        assert all(seen.late[o.id] for o in outcomes if o.lateness > TOLERANCE and o.output > 1)
        missed, late = seen.broken(outcomes)
        assert (missed > 0, late > 0) == (overloaded, overloaded)


def test_one_that_is_declined_before_it_starts_was_not_admitted() -> None:
    case, seen = Search("coding", OURS, num_requests=80), Promises()
    outcomes, _ = outcomes_at(case, 60.0, seen)
    declined = {o.id for o in outcomes if o.declined}
    assert len(declined) > 5 and not declined & seen.promised.keys()
    assert seen.broken(outcomes) == (0.0, 0.0)


def test_a_promise_lasts_until_a_tool_is_waited_for() -> None:
    """At a load at which later rounds are turned away, too."""
    case, seen = Search("tool-calling", OURS, num_requests=60), Promises()
    outcomes, _ = outcomes_at(case, 1.5, seen)
    turned_away = [o for o in outcomes if o.declined and o.id in seen.promised]
    assert turned_away and all(seen.given_up[o.id] > seen.promised[o.id] for o in turned_away)
    assert seen.broken(outcomes)[0] == 0.0


def rows(*carried: tuple[str, str, str, float, float]) -> pd.DataFrame:
    """Runs of two seeds, the second one's capacity twice as large."""
    fields = {
        "replicas": 1,
        "rule": PAPER,
        "profile": "p",
        "declined": 0.1,
        "late_tokens": 0.0,
        "source": "s",
    }
    return pd.DataFrame(
        [
            {
                "scenario": "coding", "system": system, "setting": setting, "predictor": predictor,
                "seed": seed, "rate": rate * (1 + seed), "late_requests": late, **fields,
            }
            for system, setting, predictor, rate, late in carried for seed in (0, 1)
        ]
    )  # fmt: skip


def test_shares_of_the_oracle_stand_beside_what_is_aimed_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    runs = rows(
        (OURS, "", ORACLE, 10.0, 0.0), (OURS, "", LEARNED, 9.6, 0.005),
        (OURS, "", "mean", 8.0, 0.02), ("sarathi", "chunk=512", ORACLE, 4.0, 0.1),
        ("sarathi", "chunk=1024", ORACLE, 5.0, 0.1), ("vllm-v1", "", ORACLE, 3.0, 0.1),
    )  # fmt: skip
    table = unknown_lengths.shares(runs)
    found = table.set_index("predictor")
    assert found["ratio"].to_dict() == pytest.approx(
        {ORACLE: 1.0, LEARNED: 0.96, "mean": 0.8, BASELINE: 0.5}
    )
    assert found.loc[BASELINE, "system"] == "sarathi"
    assert found["aim"].dropna().to_dict() == {LEARNED: 0.95}
    assert unknown_lengths.aims(table)["reached"].tolist() == [True]
    for changed in ({"ratio": 0.94}, {"late_requests": 0.011}):
        assert not unknown_lengths.aims(table.assign(**changed))["reached"].any()
    assert unknown_lengths.save("smoke", table, runs).empty, "of one scenario no headline"
    saved = pd.read_csv(tmp_path / "smoke" / "unknown_lengths.csv")
    assert saved["ratio"].tolist() == table["ratio"].round(4).tolist()
    assert set(saved["status"]) == {"simulated"}
