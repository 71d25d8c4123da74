"""The study of deciding a step ahead: its cases, its gains, and what each system keeps."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest

from slos.core.pace import CLIENT
from slos.evaluation.capacity_search import requests_of
from slos.policies import OURS
from slos.studies import step_ahead, today
from workloads import SCENARIOS
from workloads.scenarios import LONGER

END, AHEAD = step_ahead.WAYS


def rows(*carried: tuple[str, str, str, float]) -> pd.DataFrame:
    """Capacities of two seeds, the second one's twice as large."""
    return pd.DataFrame([
        {
            "scenario": "mixed", "lengths": "dataset", "system": system, "setting": setting,
            "profile": step_ahead.MEASURED, "rule": CLIENT, "target": 0.9,
            "decided": decided, "seed": seed,
            "rate": rate * (1 + seed), "capacity": True, "source": "s", "status": "simulated",
        }
        for system, setting, decided, rate in carried
        for seed in range(2)
    ])  # fmt: skip


def test_every_system_is_tried_in_both_ways_wherever_ours_is() -> None:
    cases = [*step_ahead.cases("full")]
    assert len({str(c) for c in cases}) == len(cases) == 3 * len(step_ahead.TRIES) * 14
    assert {c.scenario for c in cases} == {*step_ahead.EXACT, *step_ahead.ON_IT}
    assert {c.rule for c in cases} == {CLIENT} and not any(c.asynchronous for c in cases)
    assert not any(s.goes_on for c in cases for r in requests_of(c, 1.0)[0][:5] for s in r.stages)
    assert len(step_ahead.EXACT) == len(LONGER) - 2, "all but reasoning"
    for c in cases:
        short = c.scenario in SCENARIOS
        assert c.hardware.name == (step_ahead.MEASURED if short else today.MAIN)
        assert str(replace(c, asynchronous=True)) != str(c)


def test_gains_compare_the_same_way_of_deciding() -> None:
    found = step_ahead.best(rows(
        (OURS, "", END, 6.0), (OURS, "", AHEAD, 4.0),
        ("vllm-v1", "a", END, 3.0), ("vllm-v1", "a", AHEAD, 1.0), ("vllm-v1", "b", AHEAD, 2.5),
        ("scorpio", "", END, 4.0), ("scorpio", "", AHEAD, 2.0),
    ))  # fmt: skip
    found = found.assign(bound=8.0)
    gains = step_ahead.gains(found).set_index("decided")
    assert gains["most"].to_dict() == pytest.approx(
        {END: 8 / (4 * 2**0.5), AHEAD: 8 / (2.5 * 2**0.5)}
    )
    assert gains["ratio"].to_dict() == pytest.approx({END: 1.5, AHEAD: 1.6})
    assert gains["against"].to_dict() == {END: "scorpio", AHEAD: "vllm-v1"}
    kept = step_ahead.kept(found).set_index("system")["ratio"]
    expected = {OURS: 4 / 6, "vllm-v1": 2.5 / 3, "scorpio": 0.5}
    assert kept.to_dict() == pytest.approx(expected)


def test_a_new_arrival_waits_for_one_step_more(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    found = step_ahead.best(step_ahead.run("smoke", 1))
    kept = step_ahead.kept(found)
    assert set(kept["system"]) == {name for name, _ in step_ahead.TRIES}
    assert (kept["ratio"] <= 1).all() and kept["ratio"].min() < 1
    assert (tmp_path / "smoke" / "step_ahead_1.csv").exists()
