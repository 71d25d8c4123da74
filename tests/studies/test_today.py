"""The study of today's hardware: its cases, its tables, and planning that is charged."""

from dataclasses import replace

import pandas as pd
import pytest

from slos.core.attainment import attainment
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.policies.baselines import VLLMV1
from slos.sim.simulator import World, simulate
from slos.studies import gpu, today
from workloads import SCENARIOS, build
from workloads.scenarios import LONGER, by_name


def test_longer_scenarios_are_known_by_name_alone() -> None:
    assert not LONGER.keys() & SCENARIOS.keys()
    assert by_name("chatbot-8k").max_context == 8192
    with pytest.raises(ValueError, match="scenario = 'chatbot-9k' must be one of chatbot, "):
        by_name("chatbot-9k")
    made = build("mixed-8k-mlperf", 1.0, 60)
    assert {r.kind for r in made.requests} == set(LONGER["mixed-8k-mlperf"].parts)
    assert {s.slo.tpot for r in made.requests for s in r.stages} == {0.03, 0.1}


def test_the_gain_is_over_the_other_that_carries_most() -> None:
    def row(system: str, setting: str, seed: int, rate: float) -> today.Carried:
        words = ("chatbot-8k", "dataset", system, setting, today.MAIN, 0, "90 %", seed, rate)
        return today.Carried(*words, 0.0, 0.1, 0.01, "real traces", "simulated")

    rates = {"slos-serve": (3.0, 4.0), "vllm-v1": (2.0, 2.0), "sarathi": (1.0, 1.0)}
    rows = [row(s, "", seed, r) for s, both in rates.items() for seed, r in enumerate(both)]
    rows += [row("vllm-v1", "max_batched_tokens=8192", seed, 1.5) for seed in (0, 1)]
    found = today.table(pd.DataFrame(rows))
    assert found.loc[0, "which"] == "vllm-v1" and found.loc[0, "setting"] == ""
    assert found.loc[0, "gain"] == pytest.approx((1.5 * 2.0) ** 0.5)
    [mean] = today.means(found)["gain"]
    assert mean == found.loc[0, "gain"]


@pytest.mark.parametrize(("drafting", "setting"), [(1.5, ""), (2.5, "drafts=1")])
def test_a_baseline_drafts_only_where_it_carries_more_by_that(
    drafting: float, setting: str
) -> None:
    def row(system: str, setting: str, profile: str, drafts: int, rate: float) -> today.Carried:
        return today.Carried(
            "chatbot-8k", "dataset", system, setting, profile, drafts, "90 %", 0, rate
        )

    rows = [row("slos-serve", "", today.MAIN, 0, 9.0), row("vllm-v1", "", today.MAIN, 0, 2.0)]
    rows += [row("slos-serve", "", today.DRAFTING, 5, 4.0)]
    rows += [row("vllm-v1", "drafts=1", today.DRAFTING, 5, drafting)]
    found = today.table(pd.DataFrame(rows)).set_index("drafts").loc[5]
    assert (found["setting"], found["best other"]) == (setting, max(drafting, 2.0))
    assert (found["ours"], found["profile"]) == (4.0, today.DRAFTING)


def test_every_case_is_asked_for_once() -> None:
    cases = [*today.cases("full")]
    assert len({str(c) for c in cases}) == len(cases)
    assert {c.hardware.name for c in cases} >= {today.MAIN, today.DRAFTING, *today.OTHERS}
    with pytest.raises(ValueError, match="size = 'huge' must be one of"):
        today.run("huge")


def test_a_step_waits_for_its_planning() -> None:
    requests = [Request(str(i), 0.0, (Stage(10, 5, SLO(1.0, 1.0)),)) for i in range(2)]
    world = World(Roofline((Plane(1e-6, 0.0, 0.01),)), 100)

    def end(**changes: object) -> float:
        outcomes = simulate(requests, VLLMV1(), replace(world, **changes))
        assert attainment(outcomes) == 1
        return max(o.finish for o in outcomes)

    free = end()
    assert end(planning=(0.002, 0.001)) == pytest.approx(free + 5 * (0.002 + 2 * 0.001))
    assert end(planning=(0.002, 0.001), asynchronous=True) == free
    long = end(planning=(0.02, 0.0), asynchronous=True)
    assert long == pytest.approx(5 * 0.02)
    with pytest.raises(ValueError, match="planning"):
        replace(world, planning=(-1.0, 0.0))


def test_what_was_measured_is_a_line() -> None:
    for system in gpu.BUDGETS:
        first, each, mean = gpu.line(system)
        assert 0 <= first <= mean < 0.005 and each >= 0


def test_a_key_has_one_colour_in_all_panels() -> None:
    asked = ["90 %", "98 %", "90 %, clients' rule"]
    rows = [(today.MAIN, 0, a, "chatbot-8k", 2.0, 1.9, 2.1) for a in asked]
    rows += [(today.MAIN, 0, asked[2], "chatbot-8k-mlperf", 0.5, 0.5, 0.5)]
    rows += [(today.OTHERS[0], 0, asked[0], "chatbot-8k", 3.0, 3.0, 3.0)]
    found = pd.DataFrame(
        rows, columns=["profile", "drafts", "asked", "scenario", "gain", "low", "high"]
    )
    figure = today.chart(found, "made up")
    paper, mlperf, profiles = figure.axes
    colors = [c[0].get_facecolor() for c in paper.containers[1::2]]
    [one] = [c[0] for c in mlperf.containers if len(c) == 1 and hasattr(c[0], "get_height")]
    assert one.get_facecolor() == colors[2] and one.get_height() == -0.5
    single = today.chart(found.assign(low=found["gain"], high=found["gain"]), "made up")
    for drawn, said in (figure, "95 % over seeds, cut off"), (single, "so no interval; cut off"):
        assert said in " ".join(drawn.get_supxlabel().split())
    legend = profiles.get_legend()
    assert legend is not None and len(legend.get_texts()) == 2
