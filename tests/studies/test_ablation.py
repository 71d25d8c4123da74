"""Each part's switch does what it should, and what is made of the rows, with numbers worked out by
hand."""

from dataclasses import replace
from math import isnan
from typing import Any

import pandas as pd
import pytest
from laws import FAST, Lawful, Watch

from slos.core.attainment import Outcome
from slos.core.types import SLO, Batch, Request, Stage, View
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.grids import BEST_ROUTER, MAX_DRAFTS, PLAIN, RIVALS, sized
from slos.evaluation.runs import hardware_of, serve
from slos.evaluation.sizes import SCALES
from slos.evaluation.stats import by_scenario, over
from slos.policies import OURS, make_policy
from slos.policies.oracle import Oracle
from slos.policies.slos_serve import SLOsServe
from slos.records.claims import read_claims
from slos.sim.replica import World
from slos.sim.simulator import simulate
from slos.studies import ablation
from slos.studies import rivals as rivals_module
from slos.studies.ablation import PARTS, case_of, named, numbers, variants
from slos.studies.rivals import rivals
from workloads import SCENARIOS, build

pytestmark = pytest.mark.usefixtures("no_data")
ALL, FOUR = frozenset(PARTS), {"replicas": 4, "num_requests": 80, "precision": 0.2}


# The switches


def test_all_parts_are_the_plain_policy() -> None:
    whole = case_of("chatbot", ALL, **FOUR)
    assert whole == Search("chatbot", OURS, router=BEST_ROUTER, max_drafts=MAX_DRAFTS, **FOUR)
    assert case_of("tool-calling", ALL) == Search("tool-calling", OURS), (
        "no draft model, one replica: nothing to set"
    )


@pytest.mark.parametrize("part", PARTS)
def test_a_part_changes_one_thing(part: str) -> None:
    changes = {
        "speculation": {"max_drafts": 0},
        "routing": {"router": PLAIN},
        "best_effort": {"setting": "best_effort=0"},
        "admission": {"setting": "admission=0"},
        "batching": {"setting": "batch_tokens=512"},
    }
    off = case_of("chatbot", ALL - {part}, 512, **FOUR)
    assert off == replace(case_of("chatbot", ALL, **FOUR), **changes[part])
    assert search(off) != search(case_of("chatbot", ALL, **FOUR)), "and it matters"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="part = 'magic' must be one of speculation"):
        case_of("chatbot", {"magic"})
    with pytest.raises(ValueError, match="gaming"):
        variants("smoke", ["gaming"])
    with pytest.raises(
        ValueError, match="max_drafts = 5 must be 0: toolllama-7b-a100 has no draft model"
    ):
        search(Search("tool-calling", OURS, max_drafts=5, num_requests=5))


def watched(
    work: list[Request], blocks: int = 400, **settings: Any
) -> tuple[dict[str, Outcome], list[Batch]]:
    """Outcomes under the laws of the simulator, and every batch."""
    world, batches = World(FAST, blocks), []
    policy = make_policy(OURS, FAST, Oracle(work), **settings)

    class Listen:
        def step(self, view: View) -> Batch:
            batches.append(policy.step(view))
            return batches[-1]

    lawful = Lawful(Listen(), work, world)
    outcomes = simulate(work, lawful, world, 0, lawful.observe)
    lawful.end(outcomes)
    return {o.id: o for o in outcomes}, batches


def burst(n: int = 12, prompt: int = 100, output: int = 10) -> list[Request]:
    return [
        Request(f"r{i:02}", 0.0, (Stage(prompt, output, SLO(tpot=0.05, slowdown=3.0)),))
        for i in range(n)
    ]


@pytest.mark.parametrize("admission", [True, False])
def test_without_best_effort_nobody_is_set_aside_and_the_burst_takes_its_turn(
    admission: bool,
) -> None:
    outcomes, batches = watched(burst(), best_effort=False, admission=admission)
    assert not any(o.declined for o in outcomes.values()) and not any(b.decline for b in batches)
    finishes = [outcomes[f"r{i:02}"].finish for i in range(12)]
    assert finishes == sorted(finishes), "in order of arrival"
    with_tier, _ = watched(burst())
    assert any(o.declined for o in with_tier.values())
    late = Request("late", 0.5, (Stage(100, 10, SLO(tpot=0.05, slowdown=3.0)),))
    held, _ = watched([*burst(40), late], best_effort=False, admission=admission)
    free, _ = watched([*burst(40), late])
    assert free["late"].attained and not held["late"].attained, "those before it are in the way"


def test_without_admission_everybody_starts_who_fits() -> None:
    """12 prompts of 7 blocks: all at once with 400 blocks, 11 with 80."""
    for blocks, started in ((400, 12), (80, 11)):
        _, batches = watched(
            burst(), blocks, admission=False, best_effort=False, batch_tokens=10_000
        )
        assert len(batches[0].tokens) == started
    _, planned = watched(burst())
    assert len(planned[0].tokens) < 4, "as many as can be in time"


def test_a_fixed_batch_is_full_whatever_is_due() -> None:
    for size in (64, 256):
        _, batches = watched(burst(), batch_tokens=size, admission=False, best_effort=False)
        assert [sum(b.tokens.values()) for b in batches[:3]] == [size] * 3
        assert all(sum(b.tokens.values()) <= size for b in batches)
    with pytest.raises(ValueError, match="batch_tokens = -1 must be at least 0"):
        SLOsServe(FAST, Oracle([]), batch_tokens=-1)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("size", [64, 256, 1024])
def test_promises_hold_with_a_fixed_batch(size: int, seed: int) -> None:
    """The proof looks ahead with the same batches."""
    hardware, work = hardware_of("mixed"), build("mixed", 6.0, 150, seed).requests
    watch = Watch(SLOsServe(hardware.roofline, Oracle(work), batch_tokens=size))
    outcomes = simulate(work, watch, World.of(hardware), seed)
    assert {o.id for o in outcomes if o.attained} == watch.admitted and watch.admitted


def test_drafts_reach_ours_and_the_baselines() -> None:
    work = build("chatbot", 1.0, 12).requests
    hardware = hardware_of("chatbot", drafts=True)
    assert hardware.name == "opt-6.7b-draft-a100"
    for system, setting in (
        (OURS, ""),
        ("vllm", "drafts=3"),
        ("vllm-v1", "drafts=3"),
        ("sarathi", "drafts=3"),
    ):
        ends = [
            sum(
                o.finish - o.arrival
                for o in serve(work, system, hardware, setting, max_drafts=n, acceptance=a)
            )
            for n, a in ((0, 0.7), (10, 0.7), (10, 1.0))
        ]
        assert ends[2] < ends[1] < ends[0], system


# The grids


def test_the_variants_of_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget of 1024 is made the best."""
    fake = {"512": 1.0, "1024": 3.0, "2048": 2.0, "4096": 0.5, "8192": 0.5}
    asked: list[Search] = []

    def carried(size: str, cases: list[Search], workers: int | None, _: str) -> dict[Search, Any]:
        asked.extend(cases)
        rows = {}
        for c in cases:
            parts = dict(pair.split("=") for pair in c.setting.split(",") if pair)
            budget = (
                parts.get("batch_tokens")
                or parts.get("chunk")
                or parts.get("max_batched_tokens", "")
            )
            rate = (
                fake.get(budget, 0.1)
                + (0.1 if parts.get("drafts") == "2" else 0)
                + (c.topology == "2:1")
            )
            rows[c] = pd.Series({"rate": rate})
        return rows

    monkeypatch.setattr(rivals_module, "carried", carried)
    cases, s = variants("full"), SCALES["full"]
    assert len(cases) == len(SCENARIOS) * (2 + 2 * len(PARTS))
    assert {c.replicas for c in cases.values()} == {s.replicas}
    assert cases["chatbot", "base"].setting == "admission=0,best_effort=0,batch_tokens=1024"
    assert cases["chatbot", "base"].router == PLAIN and cases["chatbot", "base"].max_drafts == 0
    assert cases["coding", "without batching"].setting == "batch_tokens=1024"
    assert {c.replicas for c in asked} == {1} and {c.seed for c in asked} == {0}
    asked.clear()
    found = rivals("full")
    assert len(found) == len(SCENARIOS) * len(RIVALS)
    settings = {
        c.setting for c in asked if (c.scenario, c.system, c.topology) == ("chatbot", "sarathi", "")
    }
    assert settings == {
        # first the budget, while drafting
        *(f"chunk={n},drafts=3" for n in (512, 1024, 2048)),
        *("chunk=1024", *(f"chunk=1024,drafts={n}" for n in (1, 2, 5))),
    }
    assert {c.replicas for c in asked if not c.topology} == {s.replicas} and {
        c.seed for c in asked
    } == {0}
    assert all(c.num_requests == s.tuning_requests * c.gpus / c.hardware.gpus for c in asked)
    assert found["chatbot", "vllm"].setting == "max_batched_tokens=2048,drafts=2"
    assert found["reasoning", "vllm"].max_drafts == 0
    apart = sized(found["chatbot", "distserve"], s.num_requests, s.precision)
    assert (apart.topology, apart.replicas, apart.gpus) == ("2:1", 1, 3)
    assert (apart.num_requests, apart.precision) == (3 * s.num_requests, s.precision)


# What is made of the rows


def frame(scenarios: dict[str, dict[str, float]]) -> pd.DataFrame:
    rows = [
        (c, name, x, [x, x], "made up", "p")
        for c, named in scenarios.items()
        for name, x in named.items()
    ]
    made = pd.DataFrame(rows, columns=["scenario", "name", "capacity", "rate", "source", "profile"])
    return made.assign(
        max_drafts=[MAX_DRAFTS * bool(SCENARIOS[c].drafting) for c in made["scenario"]]
    )


def capacities(factor: float) -> dict[str, float]:
    found = {"all": 4.0 * factor, "base": 1.0}
    found |= {f"without {part}": 2.0 for part in PARTS} | {f"only {part}": 1.5 for part in PARTS}
    return found | {"vllm": 1.0, "vllm-v1": 2.0, "sarathi": 2.0, "distserve": 0.5}


def test_gains_and_headlines() -> None:
    best = frame({"chatbot": capacities(1.0), "reasoning": capacities(4.0)})
    assert list(over(named(best, "all"), named(best, "vllm"))["ratio"]) == pytest.approx([4, 16])
    found = {k: v[0] for k, v in numbers(best).items()}
    assert found == {"ablation_speculation": pytest.approx(2)}, (
        "of chatbot; and coding is not there"
    )
    more = pd.concat([best, frame({"coding": capacities(2.0)})])
    assert numbers(more)["ablation_burst"][0] == pytest.approx(4)
    claims = {c.key for c in read_claims() if c.notebook == "02_ablation"}
    assert claims == numbers(more).keys()
    grid = by_scenario(ablation.gains(best), "part", "how")
    assert grid.loc[("speculation", "off alone"), "geometric mean"] == pytest.approx(2)
    assert isnan(grid.loc[("speculation", "on alone"), "reasoning"])
    assert grid.loc[("batching", "off alone"), ["chatbot", "reasoning"]].tolist() == pytest.approx(
        [2, 8]
    )
