"""The paper's models, against baselines of both kinds."""

from __future__ import annotations

import pandas as pd
import pytest

from slos.studies import sensitivity
from slos.studies.sensitivity import KINDS, MODELS


def test_both_kinds_of_baselines_on_each_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def tuned(size: str, groups: dict, workers: int | None = None) -> dict:
        return {key: cases[0] for key, cases in groups.items()}

    monkeypatch.setattr(sensitivity, "tuned", tuned)
    monkeypatch.setattr("slos.studies.rivals.tuned", tuned)
    for profile, drafts in (("opt-13b-a100x2", 10), ("opt-13b-h100", 0)):
        cases = sensitivity._model_cases("full", ["chatbot", "coding"], profile, None)
        assert {case.hardware.name for case in cases.values()} == {profile}
        assert {kind for _, kind, _ in cases} == {*KINDS, ""}
        ours, vllm = cases["coding", "", "ours"], cases["coding", KINDS[0], "vllm"]
        assert (ours.max_drafts, vllm.max_drafts) == (drafts, drafts) and not ours.router
        assert ("drafts=3" in vllm.setting) == bool(drafts)


def test_ours_over_the_best_of_each_kind() -> None:
    rates = {
        ("", "ours"): 6.0,
        (KINDS[0], "vllm"): 2.0,
        (KINDS[0], "sarathi"): 3.0,
        (KINDS[1], "vllm"): 4.0,
    }
    rows = [
        ("chatbot", model, *name, rate, [rate, rate])
        for model in MODELS
        for name, rate in rates.items()
    ]
    best = pd.DataFrame(rows, columns=["scenario", "model", "kind", "name", "capacity", "rate"])
    table = sensitivity.against_best(best)
    assert dict(zip(table["kind"], table["ratio"], strict=True)) == {KINDS[0]: 2.0, KINDS[1]: 1.5}
    assert len(table) == 2 * len(MODELS)
    figure = sensitivity.models_chart(table, "made up")
    assert [axis.get_title() for axis in figure.axes] == list(KINDS)
