"""What is varied in the studies: objectives, memory, beliefs, bursts; measurements as steps; and
the summary."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from numpy.testing import assert_allclose

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import Search
from slos.evaluation.near import REFERENCE
from slos.evaluation.runs import believed, scaled_slos
from slos.records.claims import Headline, upsert_headlines
from slos.studies import performance, sensitivity, summary, timeline
from slos.studies.timeline import Timeline, windows

TILED = Roofline((Plane(1e-4, 0.0, 0.01), Plane(2e-4, 0.0, 0.0)), 1e-7, 128)


def test_beliefs() -> None:
    assert believed(TILED, "scale=1") == TILED
    assert believed(TILED, "scale=0.5").time(300, 0, 1000) == pytest.approx(
        TILED.time(300, 0, 1000) / 2
    )
    assert believed(TILED, "tile=1,k_ctx=0") == replace(TILED, tile=1, k_ctx=0)
    smooth = believed(TILED, "smooth=1")
    assert smooth.tile == 1
    over = [smooth.time(n) - TILED.time(n) for n in range(257, 385)]
    assert sum(over) == pytest.approx(0, abs=1e-6), "right on the average of a tile"
    with pytest.raises(ValueError, match="belief = 'shape=2' must be made of k_ctx, scale"):
        believed(TILED, "shape=2")


def test_objectives_and_memory_are_scaled() -> None:
    stages = Stage(10, 5, SLO(0.1, slowdown=4.0)), Stage(0, 5, SLO(0.05)), Stage(3, 1, SLO(1, 2.0))
    request = Request("a", 0.0, stages)
    [made] = scaled_slos([request], 0.5)
    assert [s.slo for s in made.stages] == [SLO(0.05, slowdown=2.0), SLO(0.025), SLO(0.5, 1.0)]
    case = Search("chatbot", "slos-serve", kv_scale=0.5, slo_scale=2.0, belief="scale=0.7")
    assert case.hardware.kv_tokens == Search("chatbot", "slos-serve").hardware.kv_tokens // 2
    assert all(word in str(case) for word in ("KV x0.5", "SLOs x2", "belief scale=0.7"))
    with pytest.raises(ValueError, match="slo_scale = 0"):
        scaled_slos([request], 0)


def test_the_settings_of_the_baselines_are_as_good_as_any() -> None:
    rows = pd.read_csv(REFERENCE / "probes.csv", keep_default_na=False)
    for system, kept in sensitivity.SETTINGS.items():
        known = rows[rows["capacity"] & rows["system"].eq(system)]
        rates = known.pivot_table("rate", ["lengths", "scenario"], "setting")
        assert (rates[[*kept]].max(axis=1) >= 0.99 * rates.max(axis=1)).all()


def test_the_key_of_a_run_changes_with_a_file_of_ones_own(tmp_path: Path) -> None:
    mine = tmp_path / "mine.json"
    run = timeline.Bursts("coding", "vllm", str(mine), 1.0, 2.0, (5.0,), 1.0, 1.0, 20.0, 0)
    keys = {str(run)}
    for text in "ab":
        mine.write_text(text)
        keys.add(str(run))
    assert len(keys) == 3


def test_relative_capacity_and_the_best_setting() -> None:
    rows = [
        ("chatbot", "x", setting, 0.9, 1.0, kv, seed, rate * (seed + 1)) for setting, kv,
        rate in (("a", 1.0, 2.0), ("b", 1.0, 3.0), ("a", 0.5, 1.0), ("b", 0.5, 0.0))
        for seed in range(2)
    ]  # fmt: skip
    frame = pd.DataFrame(
        rows,
        columns=[
            "scenario",
            "system",
            "setting",
            "target",
            "slo_scale",
            "kv_scale",
            "seed",
            "rate",
        ],
    ).assign(profile="opt-6.7b-a100")
    other = frame[frame["kv_scale"] == 1.0].assign(
        profile="opt-13b-h100", rate=lambda d: 9 * d["rate"]
    )
    frame = pd.concat([frame, other])
    hardware = sensitivity.against(frame, "profile")
    assert_allclose(
        sensitivity.relative(hardware, "profile", "opt-6.7b-a100")["ratio"].sort_values(),
        [1.0, 9.0],
    )
    best = sensitivity.against(frame, "kv_scale")
    assert dict(zip(best["kv_scale"], best["setting"], strict=True)) == {1.0: "b", 0.5: "a"}
    assert_allclose(sensitivity.relative(best, "kv_scale", 1.0)["ratio"], [1.0, 1 / 3])


def test_a_scenario_is_tried_on_other_models_of_its_family() -> None:
    cases = sensitivity.sensitivity_cases(
        "full", ["chatbot", "tool-calling", "reasoning"], ["slos-serve"]
    )
    models = {(c.scenario, c.hardware.model) for c in cases}
    assert {m for s, m in models if s == "chatbot" and "30B" in m} and (
        "reasoning",
        "OPT-13B",
    ) not in models
    assert ("tool-calling", "Llama-2-7B") in models and sum(
        s == "reasoning" for s, _ in models
    ) == 1


def test_windows_and_bursts() -> None:
    load = {"scenario": "coding", "profile": "", "rate": 3.0, "burst_rate": 10.0}
    load |= {"at": (5.0,), "seconds": 2.0, "width": 5.0}
    [case] = timeline.cases("smoke", ["slos-serve"], **load)
    requests, _ = case.requests()
    assert len(requests) == len({r.id for r in requests}) == 3 * 40 + 20
    assert sum(r.id.startswith("burst") for r in requests) == 20
    outcomes = timeline.timeline(requests, "slos-serve", case.hardware)
    table = windows(outcomes, requests, 5.0)
    assert (table["arrivals"] * 5.0).sum() == pytest.approx(len(requests))
    share = (table["attained"] * table["arrivals"]).sum() / table["arrivals"].sum()
    assert share == pytest.approx(100 * sum(o.attained for o in outcomes.outcomes) / len(requests))
    with pytest.raises(ValueError, match="width = 0"):
        windows(Timeline("x", (), ()), [], 0)
    with pytest.raises(ValueError, match="'nobody'"):
        timeline.cases("smoke", ["nobody"], **load)


def test_a_stand_in_is_fitted_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("SLOS_CACHE", "SLOS_RESULTS"):
        monkeypatch.setenv(variable, str(tmp_path))
    monkeypatch.delenv("SLOS_DATA", raising=False)
    assert not performance.measured()
    table = pd.DataFrame(performance.judge(performance.FitCase("stand-in", "a100", 1, True, 128)))
    assert 0.97 < float(table["r2"].tolist()[0]) < 1
    assert 0.03 < sum(table["mean_error"].tolist()) / len(table) < 0.06
    assert "no measurement" in performance.origin(table).lower()
    performance.save_fits("smoke", performance.forms(table), "x")
    assert not (tmp_path / "smoke" / "headlines.csv").exists()


@pytest.mark.skipif(not performance.measured(), reason="SLOS_DATA has no gpu_profiles")
@pytest.mark.parametrize("gpu", performance.GPUS)
def test_measured_steps_and_their_fit(gpu: str) -> None:
    steps = performance.kernel_steps(gpu, 1)
    alone = steps[steps["context"] == 0].drop_duplicates("tokens").set_index("tokens")["seconds"]
    assert alone[136] > (1.4 if gpu == "a100" else 1.25) * alone[128], "a tile more"
    table = performance.judge(performance.FitCase("kernels", gpu, 1, True, 1))
    assert table[0].r2 >= 0.95
    assert sum(r.steps for r in table) == len(steps)


def test_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    rest = ("simulated", "made up", "p", "c", "m")
    made = [
        Headline("authors_vs_best", 1.1, 1.0, 1.2, *rest),
        Headline("planning_p99_ms", 5.0, 5.0, 5.0, *rest),
    ]
    upsert_headlines(tmp_path / "smoke" / "headlines.csv", made)
    table = summary.table("smoke").set_index("key")
    assert (
        table.loc["authors_vs_best", "verdict"] == "MISS"
        and table.loc["authors_vs_best", "against"] == 0.5
    )
    assert (
        table.loc["planning_p99_ms", "verdict"] == "OK"
        and table.loc["planning_p99_ms", "against"] == 2.0
    )
    assert (table["verdict"] == "NOT RUN").sum() == len(table) - 2
    with pytest.raises(ValueError, match="size = 'huge'"):
        summary.table("huge")
