"""The bound: above every policy, tight where that can be told, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import POLICIES, build, requests, worlds

from slos.core.attainment import attainment
from slos.core.pace import CLIENT, PAPER, RULES
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.evaluation.bound import SLOT, attainable, bound, bound_of, long_run
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.runs import by_rule, hardware_of
from slos.hardware.profiles import Profile
from slos.sim.simulator import simulate
from slos.sim.world import World


def profile_of(roofline: Roofline, kv_tokens: int, block_size: int = 16) -> Profile:
    return Profile("t", "m", "g", 1, roofline, kv_tokens, 4096, "made up for a test", block_size)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_no_policy_attains_more(name, data):
    work = by_rule(data.draw(requests()), data.draw(st.sampled_from([*RULES])))
    world: World = data.draw(worlds(work, noise=0.0, drafts=0))
    hardware = profile_of(world.roofline, world.kv_blocks * world.block_size, world.block_size)
    outcomes = simulate(work, build(name, work, world), world)
    assert attainment(outcomes) <= attainable(work, hardware)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["slos-serve", "sarathi"])
@given(data=st.data())
def test_no_policy_attains_more_where_all_have_to_hurry(name, rule, data):
    """Many alike at a machine of which one plane falls below 0."""
    steep = Roofline((Plane(0.0005, 0.0, 0.02), Plane(0.001, 0.0, -0.01)))
    world = World(steep, data.draw(st.sampled_from([30, 200])), block_size=4)
    count, prompt = data.draw(st.integers(5, 40)), data.draw(st.integers(5, 60))
    slo = SLO(tpot=data.draw(st.sampled_from([0.03, 0.06])), slowdown=2.0)
    stage = Stage(prompt, data.draw(st.integers(1, 40)), slo)
    work = by_rule([Request(f"r{i}", 0.1 * (i // 5), (stage,)) for i in range(count)], rule)
    most = attainable(work, profile_of(steep, world.kv_blocks * 4, 4))
    assert attainment(simulate(work, build(name, work, world), world)) <= most


def feasible(jobs: tuple[tuple[int, int], ...]) -> bool:
    """Whether jobs of one slot each, released and due at the ends of slots, can all be in time:
    earliest deadline first, slot by slot."""
    left, now = sorted(jobs), 0
    while left:
        ready = [job for job in left if job[0] <= now]
        if ready:
            job = min(ready, key=lambda job: job[1])
            left.remove(job)
            if now + 1 > job[1]:
                return False
        now += 1
    return True


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), min_size=1, max_size=7),
    st.sampled_from([1, 2]),
)
def test_it_is_what_can_be_done_where_prompts_take_a_slot_each(made, replicas):
    """Against brute force over all subsets; two replicas are as good as half the prompts."""
    jobs = [(release, release + window) for release, window in made]
    tokens = round(SLOT / 1e-3) * replicas
    work = [
        Request(f"r{i}", release * SLOT,
                (Stage(tokens, 1, SLO(tpot=1.0, ttft=(due - release) * SLOT - 1e-3)),))
        for i, (release, due) in enumerate(sorted(jobs))
    ]  # fmt: skip
    most = next(
        n for n in range(len(jobs), -1, -1) if any(map(feasible, combinations(sorted(jobs), n)))
    )
    hardware = profile_of(Roofline((Plane(1e-3, 0.0, 1e-9),)), 10**6)
    assert round(attainable(work, hardware, replicas) * len(work)) == most


SLOTWISE = profile_of(Roofline((Plane(SLOT, 0.0, 1e-9),)), 10**6)
"""A token takes a slot, alone or in a batch: a schedule is an order of tokens."""
FIRST = 6  # slots until all first tokens are due


def asked(prompt: int, output: int, pace: int, rule: str) -> Request:
    """At time 0, with a pace in slots per token."""
    slo = SLO(tpot=pace * SLOT, ttft=FIRST * SLOT - 1e-3, rule=rule)
    return Request(f"{prompt}", 0.0, (Stage(prompt, output, slo),))


def in_order(work: tuple[Request, ...], pace: int, rule: str) -> bool:
    """Whether all can attain: earliest deadline first, for all slots that the first tokens may end
    in. The pace of so short answers is looked at with their last token."""
    ends = [range(r.prompt, FIRST + 1) for r in work]
    for firsts in product(*ends):
        jobs = []
        for r, first in zip(work, firsts, strict=True):
            last = r.output - 1
            due = (FIRST if rule == PAPER else first) + last * pace
            jobs += [(0, first - n) for n in range(r.prompt)]
            jobs += [(first + n, due - last + n + 1) for n in range(last)]
        if feasible(tuple(jobs)):
            return True
    return False


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from([*RULES]),
)  # fmt: skip
def test_it_is_what_can_be_done_with_answers(prompts, output, pace, rule):
    work = [asked(prompt, output, pace, rule) for prompt in sorted(prompts)]
    most = next(
        n
        for n in range(len(work), -1, -1)
        if any(in_order(some, pace, rule) for some in combinations(work, n))
    )
    assert round(attainable(work, SLOTWISE) * len(work)) == most


@pytest.mark.parametrize(("rule", "share"), [(PAPER, 0.5), (CLIENT, 1.0)])
def test_an_answer_may_stall_and_catch_up_by_the_clients_rule_only(rule, share):
    """21 tokens at two slots each, while a prompt in between takes 20 slots: the pace is looked at
    after 10 tokens by one rule, and at the end by the other."""
    slo = SLO(tpot=1.0, ttft=20 * SLOT, rule=rule)
    work = [asked(1, 21, 2, rule), Request("urgent", FIRST * SLOT, (Stage(20, 1, slo),))]
    assert attainable(work, SLOTWISE) == share


@pytest.mark.parametrize("rule", RULES)
def test_there_is_no_pause_before_a_stage_that_goes_on(rule):
    """Its tokens are counted from the last one before it: a prompt of 12 slots does not fit in."""
    thinks, slo = asked(1, 11, 1, rule), SLO(SLOT, ttft=12 * SLOT, rule=rule)
    again = Stage(0, 11, SLO(SLOT, rule=rule))
    thinks = replace(thinks, stages=(*thinks.stages, again))
    urgent = Request("urgent", 17 * SLOT, (Stage(12, 1, slo),))
    assert attainable([thinks, urgent], SLOTWISE) == 0.5
    assert attainable([thinks, replace(urgent, arrival=40 * SLOT)], SLOTWISE) == 1.0


def test_memory_bounds_where_tokens_cost_nothing():
    """Each answer is a hundred steps of 20 ms in a cache that two fill: one a second."""
    hardware = profile_of(Roofline((Plane(1e-9, 0.0, 0.02),)), 2 * 1050)
    stage = Stage(1000, 101, SLO(tpot=0.02, ttft=0.02))
    work = [Request(f"r{i}", i * 0.5, (stage,)) for i in range(200)]
    assert 0.49 < attainable(work, hardware) < 0.53
    assert long_run(work, hardware, 0.9) == pytest.approx(1 / 0.9, rel=0.02)
    # half of them are half as long, and those that are declined are the long ones
    short = replace(stage, output=51)
    work = [replace(r, stages=(short if i % 2 else stage,)) for i, r in enumerate(work)]
    assert long_run(work, hardware, 0.5) == pytest.approx(4.0, rel=0.05)


def test_a_search_has_a_bound():
    case = Search("coding", "slos-serve", num_requests=60, precision=0.1)
    [row] = bound(case)
    [found] = [p for p in search(case) if p.capacity]
    assert found.rate < row.rate and row.profile == hardware_of("coding").name
    assert (row.seed, row.rule, row.target, row.status) == (0, PAPER, 0.9, "computed")
    assert bound_of(replace(case, system="vllm", rule=CLIENT)).rule == CLIENT
    with pytest.raises(ValueError, match="max_drafts = 3 must be 0 for a bound"):
        bound(Search("coding", "slos-serve", max_drafts=3))
    with pytest.raises(ValueError, match="topology = '1:1'"):
        bound(Search("coding", "slos-serve", topology="1:1"))
    with pytest.raises(ValueError, match="requests = 0 must be at least one"):
        attainable([], hardware_of("coding"))


@pytest.mark.usefixtures("no_data")
def test_the_long_run_of_four_replicas_is_four_times_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slos.evaluation.bound.attainable", lambda *_: 1.0)
    case = Search("coding", "slos-serve", num_requests=60)
    [one], [four] = bound(case), bound(replace(case, replicas=4))
    assert four.rate == pytest.approx(one.rate)
