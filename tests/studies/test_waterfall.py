"""The waterfall: each step changes what it says, its ends are the capacities of the tables, and
what is made of its rows."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pandas as pd
import pytest

from slos.core.pace import CLIENT
from slos.evaluation.grids import MAX_DRAFTS, PLAIN, RIVAL_ROUTERS, RIVALS
from slos.evaluation.stats import select
from slos.files import ROOT, results_dir
from slos.policies import POLICIES
from slos.records.claims import read_claims, read_headlines
from slos.studies import rivals, waterfall
from slos.studies.ablation import PARTS, case_of
from slos.studies.waterfall import CLIENTS, OURS_IS, PUBLISHED, STEPS, TODAY, TOTALS

pytestmark = pytest.mark.usefixtures("no_data")


@pytest.fixture
def first_of_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is tried: the last one of what could be is taken for the best."""

    def tuned(size: str, groups: dict, workers: int | None = None) -> dict:
        return {key: cases[-1] for key, cases in groups.items()}

    monkeypatch.setattr(rivals, "tuned", tuned)
    monkeypatch.setattr(waterfall, "tuned", tuned)


def test_a_step_changes_what_it_says(first_of_each: None) -> None:
    cases = waterfall._cases("full", ["chatbot", "reasoning"], None, 0)

    def of(step: str, name: str, scenario: str = "chatbot"):
        return cases[scenario, step, name]

    names = [step.name for step in STEPS]
    # ours: less memory at the first step, and what it is judged by at the last
    whole = of(TODAY, OURS_IS)
    assert whole == of(names[1], OURS_IS) and whole.max_drafts == MAX_DRAFTS
    # 10 GB of OPT-6.7B's 0.5 MiB a token
    assert round(43_000 * of(names[0], OURS_IS).kv_scale) == 10e9 // (2 * 2 * 32 * 4096)
    assert replace(of(names[0], OURS_IS), kv_scale=1.0) == whole
    assert of(CLIENTS, OURS_IS) == replace(whole, rule=CLIENT)
    assert of(CLIENTS, "sarathi") == replace(of(TODAY, "sarathi"), rule=CLIENT)
    # the baselines
    for step in STEPS:
        for name in step.tries:
            assert of(step.name, name).router == step.routers[-1]
    assert {c.router for c in map(lambda n: of(n, "vllm"), names[:6])} == {PLAIN}
    assert of(PUBLISHED, "vllm").setting == "max_batched_tokens=2048,drafts=3"
    assert of(PUBLISHED, "vllm", "reasoning").setting == "max_batched_tokens=2048"
    assert of(PUBLISHED, "sarathi").setting == "chunk=512"
    assert of(PUBLISHED, "distserve").topology and not of(PUBLISHED, "distserve").max_drafts
    assert {of(TODAY, name).system for name in RIVALS} <= POLICIES.keys()


def test_the_ends_are_the_capacities_of_the_tables() -> None:
    """Ours is that of the ablation's table, and the baselines are those at their best."""
    best = waterfall.carried_by("smoke", ["coding"], 1)
    today = select(best, step=TODAY).set_index("name")["capacity"]
    table = rivals.measured("smoke", rivals.rivals("smoke", ["coding"], 1), 1)
    table = table.set_index("name")["capacity"]
    assert today["sarathi"] == table["sarathi"] and today["distserve"] == table["distserve"]
    assert today["vllm"] == max(table["vllm"], table["vllm-v1"])
    s = waterfall.scale_of("smoke")
    whole = {("coding", "all"): case_of("coding", PARTS, replicas=s.replicas)}
    [ours] = rivals.measured("smoke", whole, 1)["capacity"]
    assert today[OURS_IS] == ours
    # the chart's first and last level
    falls = waterfall.falls(waterfall.levels(best)).set_index("step")["geometric mean"]
    assert falls[TODAY] == pytest.approx(ours / max(today.drop(OURS_IS)))
    first = select(best, step=STEPS[0].name).set_index("name")["capacity"]
    assert falls.iloc[0] == pytest.approx(first[OURS_IS] / max(first["vllm"], first["sarathi"]))
    assert list(falls.index) == [*(step.name for step in STEPS), TODAY, CLIENTS]
    assert {*TOTALS} <= {*falls.index}
    assert set(best["router"]) <= {*RIVAL_ROUTERS, "cheapest"}
    waterfall.save("smoke", best)
    saved = pd.read_csv(results_dir("smoke") / "waterfall_steps.csv")
    assert list(saved["capacity"]) == pytest.approx(list(best["capacity"]), rel=1e-5)
    rows = pd.read_csv(results_dir("smoke") / "waterfall.csv")
    assert set(rows["capacity"]) == {True} and rows["run"].is_unique, "one of each search"


STEPS_FILE = ROOT / "results" / "reference" / "waterfall_steps.csv"


@pytest.mark.skipif(not STEPS_FILE.exists(), reason="no full run has written it yet")
def test_the_headlines_of_the_repository_are_the_ends_of_the_waterfall() -> None:
    best = pd.read_csv(STEPS_FILE, keep_default_na=False)
    levels = waterfall.levels(best.assign(rate=[[rate] for rate in best["capacity"]]))
    rows = {h.key: h for h in read_headlines(STEPS_FILE.with_name("headlines.csv"))}
    found = waterfall.numbers(levels)
    assert {"authors_vs_best", "today_vs_best", "clients_vs_best"} <= found.keys()
    for key, (value, _, _) in found.items():
        assert rows[key].value == pytest.approx(value, rel=1e-4)


def test_what_is_made_of_the_rows() -> None:
    rows = [
        (step, scenario, name, rate, [rate, rate])
        for step in (STEPS[0].name, PUBLISHED, TODAY, CLIENTS)
        for scenario, factor in (("coding", 1.0), ("reasoning", 4.0))
        for name, rate in ((OURS_IS, 4.0 * factor), ("vllm", 2.0), ("sarathi", factor))
    ]
    best = pd.DataFrame(rows, columns=["step", "scenario", "name", "capacity", "rate"])
    levels = waterfall.levels(best)
    found = {key: value[0] for key, value in waterfall.numbers(levels).items()}
    assert found["published_vs_vllm"] == pytest.approx(sqrt(2 * 8))
    assert found["today_vs_sarathi"] == pytest.approx(4)
    assert found["authors_vs_best"] == pytest.approx(sqrt(2 * 4)), "vLLM here, Sarathi-Serve there"
    assert (found["published_coding"], found["published_reasoning"]) == (2, 4)
    falls = waterfall.falls(levels)
    assert list(falls["times"])[1:] == pytest.approx([1, 1, 1])
    single = levels.assign(each=levels["each"].str[:1])
    several = "lines: 95 % interval over seeds"
    for table, said in (levels, several), (single, "one seed, so no interval"):
        label = waterfall.waterfall_chart(table, "made up").get_supxlabel()
        assert said in " ".join(label.split())
    [axis] = waterfall.waterfall_chart(levels, "made up").axes
    names = [tick.get_text() for tick in axis.get_yticklabels()]
    assert [n.split(":")[0] for n in names if ":" in n] == list(TOTALS.values())
    strict = pd.DataFrame({"against": ["vllm", "best"], "each": [[2.0, 2.0], [1.5, 1.5]]})
    numbers = waterfall.strict_numbers(strict)
    assert numbers["strict_vs_vllm"] == pytest.approx((2, 2 / 1.02, 2 * 1.02))
    mine = {c.key for c in read_claims() if c.notebook == "17_waterfall"}
    known = {*found, *numbers, "published_tool_calling"}
    assert {key for key in mine if not key.endswith("distserve")} - known == {"strict_vs_sarathi"}


def test_strict_targets_and_draft_lengths() -> None:
    strict = waterfall.at_98_percent("smoke", 1)
    assert set(strict["against"]) == {"vllm", "sarathi", "distserve", "best"}
    lengths = waterfall.draft_lengths("smoke", ["coding", "reasoning"], 1)
    told = list(zip(lengths["target"], lengths["scenario"], lengths["drafts"], strict=True))
    assert told == [
        (target, scenario, drafts)
        for target, scenario in ((0.9, "coding"), (0.98, "chatbot"))
        for drafts in ("0", "1", "3", "5")
    ]
