"""The bound: above every policy, tight where that can be told, and what it refuses."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import POLICIES, build, requests, worlds

from slos.core.attainment import attainment
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.evaluation.bound import SLOT, _erlang_b, attainable, bound, long_run, loss_system
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.runs import hardware_of
from slos.hardware.profiles import Profile
from slos.sim.simulator import simulate
from slos.sim.world import World


def profile_of(roofline: Roofline, kv_tokens: int, block_size: int = 16) -> Profile:
    return Profile("t", "m", "g", 1, roofline, kv_tokens, 4096, "made up for a test", block_size)


@pytest.mark.parametrize("name", sorted(POLICIES))
@given(data=st.data())
def test_no_policy_attains_more(name, data):
    work = data.draw(requests())
    world: World = data.draw(worlds(work, noise=0.0, drafts=0))
    hardware = profile_of(world.roofline, world.kv_blocks * world.block_size, world.block_size)
    outcomes = simulate(work, build(name, work, world), world)
    assert attainment(outcomes) <= attainable(work, hardware)


@pytest.mark.parametrize("name", ["slos-serve", "sarathi"])
@given(data=st.data())
def test_no_policy_attains_more_where_all_have_to_hurry(name, data):
    """Many alike at a machine of which one plane falls below 0."""
    steep = Roofline((Plane(0.0005, 0.0, 0.02), Plane(0.001, 0.0, -0.01)))
    world = World(steep, data.draw(st.sampled_from([30, 200])), block_size=4)
    count, prompt = data.draw(st.integers(5, 40)), data.draw(st.integers(5, 60))
    slo = SLO(tpot=data.draw(st.sampled_from([0.03, 0.06])), slowdown=2.0)
    stage = Stage(prompt, data.draw(st.integers(1, 40)), slo)
    work = [Request(f"r{i}", 0.1 * (i // 5), (stage,)) for i in range(count)]
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


def test_erlang():
    assert _erlang_b(10, 5.0) == pytest.approx(0.018385, abs=1e-6)
    assert _erlang_b(1, 1.0) == 0.5 and _erlang_b(3, 0.0) == 0.0
    # one server, 100 steps of 20 ms: 1 / (1 + 2 rate) = 0.9
    hardware = profile_of(Roofline((Plane(1e-9, 0.0, 0.02),)), 1100)
    work = [Request("r", 0.0, (Stage(1000, 100, SLO(tpot=0.1, ttft=1.0)),))]
    assert loss_system(work, hardware) == pytest.approx(1 / 18, rel=1e-3)


def test_a_search_has_a_bound():
    case = Search("coding", "slos-serve", num_requests=60, precision=0.1)
    [row] = bound(case)
    [found] = [p for p in search(case) if p.capacity]
    assert found.rate < row.rate and row.profile == hardware_of("coding").name
    assert (row.seed, row.target, row.status) == (0, 0.9, "computed")
    with pytest.raises(ValueError, match="max_drafts = 3 must be 0 for a bound"):
        bound(Search("coding", "slos-serve", max_drafts=3))
    with pytest.raises(ValueError, match="topology = '1:1'"):
        bound(Search("coding", "slos-serve", topology="1:1"))
    with pytest.raises(ValueError, match="requests = 0 must be at least one"):
        attainable([], hardware_of("coding"))
