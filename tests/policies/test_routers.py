"""Routers: whom they ask, in which order, and how fast."""

import time
from dataclasses import replace
from random import Random
from statistics import median

import pytest

from slos.core.attainment import attainment
from slos.core.roofline import Plane
from slos.core.types import SLO, Progress, Request, Stage
from slos.hardware.profiles import profile
from slos.hardware.shapes import kv_bytes
from slos.policies.oracle import Fixed, Oracle
from slos.policies.routers import (
    ROUTERS,
    Cheapest,
    LeastLoaded,
    LMetric,
    Load,
    PolyServe,
    RoundRobin,
    Sequential,
    make_router,
)
from slos.sim.cluster import cluster, link, roles
from slos.sim.simulator import stream
from workloads import build

HARDWARE = profile("opt-6.7b-a100")
ORACLE = Oracle([Request("x", 0.0, (Stage(800, 200, SLO(0.05)),))])
X = Progress("x", 1.0, 800, 1.3, 0.05)
IDLE = Load("", 1.0, 0, 0, 2687, 2687)


def loads(*changes: dict) -> list[Load]:
    return [replace(IDLE, replica="abcd"[i], **change) for i, change in enumerate(changes)]


def test_round_robin_and_the_papers_go_in_turn() -> None:
    three = loads({}, {}, {})
    robin, paper = RoundRobin(), Sequential(hops=1)
    assert [robin.rank(X, three) for _ in range(4)] == [["a"], ["b"], ["c"], ["a"]]
    assert [paper.rank(X, three) for _ in range(3)] == [["a", "b"], ["b", "c"], ["c", "a"]]
    assert Sequential(hops=9).rank(X, three) == ["a", "b", "c"], "nobody is asked twice"


@pytest.mark.parametrize("name", ["round-robin", "least-loaded", "lmetric", "sequential"])
def test_prefill_and_decode_replicas_have_turns_of_their_own(name: str) -> None:
    """Each request reaches the decode replicas before the next one comes."""
    router, cached = make_router(name, HARDWARE.roofline, ORACLE), replace(X, computed=799)
    prefill, decode = loads({}, {}, {}, {})[:2], loads({}, {}, {}, {})[2:]
    first = [(router.rank(X, prefill)[0], router.rank(cached, decode)[0]) for _ in range(4)]
    assert first == 2 * [("a", "c"), ("b", "d")]


@pytest.mark.parametrize(
    ("few", "many"),
    [
        ({"prefill_tokens": 100}, {"prefill_tokens": 200}),
        ({"running": 50}, {"prefill_tokens": 1}),  # decodes of others hardly slow a prompt down
        ({"running": 9}, {"running": 10}),
        ({"waiting": 9}, {"waiting": 3, "running": 7}),
    ],
)
def test_the_least_loaded_has_the_least_left_to_compute(few: dict, many: dict) -> None:
    router = LeastLoaded()
    assert [router.rank(X, loads(many, few, many)) for _ in range(3)] == [["b"]] * 3
    assert [router.rank(X, loads(few, many, few)) for _ in range(3)] == [["c"], ["a"], ["c"]], (
        "equals go in turn"
    )


def test_a_few_requests_more_make_nobody_the_busier_one() -> None:
    router = LeastLoaded()
    three = loads({"running": 14}, {"running": 19}, {"waiting": 3, "running": 7})
    assert [router.rank(X, three) for _ in range(4)] == [["a"], ["b"], ["c"], ["a"]]


@pytest.mark.parametrize(
    ("scarce", "plenty"),
    [
        ({"claimed_blocks": 2680}, {"claimed_blocks": 2600}),  # 63 blocks needed
        ({"claimed_blocks": 2000}, {"claimed_blocks": 100}),
        ({"prefill_tokens": 1500}, {"prefill_tokens": 100}),
        ({"step_end": 1.14}, {"step_end": 1.02}),
        ({"decodes": ((0.1, 10),)}, {"decodes": ((0.05, 10),)}),  # tiers gather
        ({"decodes": ((0.05, 400),)}, {"claimed_blocks": 2600}),  # no tokens left over at all
    ],
)
def test_ours_asks_first_where_more_is_left(scarce: dict, plenty: dict) -> None:
    router = Cheapest(HARDWARE.roofline, ORACLE)
    assert router.rank(X, loads(scarce, plenty)) == ["b", "a", "b"]
    assert router.rank(X, loads(plenty, scarce)) == ["a", "b", "a"], "and the best one keeps it"
    assert Cheapest(HARDWARE.roofline, ORACLE, hops=0).rank(X, loads(scarce, plenty)) == ["b"]


def test_lmetric_multiplies() -> None:
    # 800 tokens beside 10 requests are 8,800, 2,400 beside 2 are 7,200
    few, many = {"prefill_tokens": 1600, "running": 2}, {"running": 10}
    assert LMetric().rank(X, loads(many, few)) == ["b"]
    assert LMetric().rank(X, loads(few | {"running": 3}, many)) == ["b"]
    router = LMetric()
    assert [router.rank(X, loads({}, {})) for _ in range(3)] == [["a"], ["b"], ["a"]]


def test_polyserve_fills_the_bins() -> None:
    """353 tokens fit in a step of 50 ms, 1,089 in one of 100 ms."""
    router, loose = PolyServe(HARDWARE.roofline, ORACLE), replace(X, tpot=0.1)
    assert router.rank(X, loads({}, {}, {})) == ["a"]
    assert router.rank(loose, loads({"running": 1}, {}, {})) == ["b"], "a bin of its own"
    both = [{"running": 1}, {"running": 1}, {}]
    assert router.rank(loose, loads(*both)) == ["b"] and router.rank(X, loads(*both)) == ["a"]
    busy = {"running": 1, "prefill_tokens": 2600}  # 3,400 in 0.3 s are too many at either pace
    assert router.rank(loose, loads({"running": 1}, busy, {})) == ["c"], "an idle one joins its bin"
    router.rank(loose, loads(*both[:2], {"running": 5}))
    assert router.rank(loose, loads(*both[:2], {"running": 5})) == ["c"], "the fullest"
    tight = loads({"running": 1}, busy, busy)
    assert router.rank(loose, tight) == ["a"], "promoted"
    assert router.rank(loose, loads(busy, busy, {**busy, "prefill_tokens": 2500})) == ["c"]


def test_polyserve_minds_blocks() -> None:
    router = PolyServe(HARDWARE.roofline, ORACLE)
    full = {"claimed_blocks": 2680, "running": 1}  # 63 blocks needed
    assert router.rank(X, loads(full, {"running": 1})) == ["b"]


def decision_seconds(name: str, replicas: int = 16, repeats: int = 300) -> float:
    """Median over random loads, of CPU time: the machine may be busy."""
    rng, times, router = Random(0), [], make_router(name, HARDWARE.roofline, ORACLE)
    for _ in range(repeats):
        some = [
            Load(
                f"r{i}", 1 + rng.random() / 10, rng.randrange(5), rng.randrange(80),
                rng.randrange(2000), 2687, 16, rng.randrange(2000),
                ((0.05, rng.randrange(1, 20)), (0.1, rng.randrange(1, 60))), rng.randrange(2687),
            )
            for i in range(replicas)
        ]  # fmt: skip
        start = time.thread_time()
        router.rank(X, some)
        times.append(time.thread_time() - start)
    return median(times)


@pytest.mark.parametrize("name", ROUTERS)
def test_a_decision_is_quick_and_every_router_serves(name: str) -> None:
    assert decision_seconds(name) < 200e-6, "50 µs where nothing else runs"
    work = build("mixed", 20.0, 60).requests
    oracle = Oracle(work)
    outcomes = list(
        stream(
            work,
            cluster("slos-serve", HARDWARE, lambda: oracle, 4),
            make_router(name, HARDWARE.roofline, oracle),
        )
    )
    assert (
        len(outcomes) == 60
        and attainment(outcomes) > 0.5
        # a bin that is not full leaves a replica free
        and len({o.replica for o in outcomes}) == (3 if name == "polyserve" else 4)
    )


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match="router = 'dice' must be one of round-robin"):
        make_router("dice", HARDWARE.roofline, ORACLE)
    with pytest.raises(
        ValueError, match="setting of router 'sequential' = 'hop' must be one of hops"
    ):
        make_router("sequential", HARDWARE.roofline, ORACLE, hop=1)
    for router in (Sequential, lambda hops: Cheapest(HARDWARE.roofline, ORACLE, hops)):
        with pytest.raises(ValueError, match="hops = -1"):
            router(hops=-1)


# Topologies


def test_topologies() -> None:
    assert roles("") == ("",) and roles("2:1") == ("prefill", "prefill", "decode")
    nodes = cluster("vllm", HARDWARE, lambda: ORACLE, 2, "1:2")
    assert [n.role for n in nodes] == ["prefill", "decode", "decode"] * 2 and len(
        {n.name for n in nodes}
    ) == 6
    assert nodes[0].lengths == Fixed(1), "it leaves with its first token"
    for bad in ("2", "2:0", "a:b", "1:1:1"):
        with pytest.raises(ValueError, match="topology"):
            roles(bad)


def test_a_hand_over_costs_what_the_link_says() -> None:
    """OPT-6.7B: half a MiB a token, over 300 GB/s."""
    assert kv_bytes("OPT-6.7B") == 2**19
    assert link(HARDWARE).seconds(1000) == pytest.approx(1000 * 2**19 / 300e9)
    assert link(profile("opt-30b-a100x4")).bandwidth == 4 * 300e9
    with pytest.raises(ValueError, match="SHAPES"):
        link(replace(HARDWARE, model="mine"))


@pytest.mark.parametrize("system", ["vllm", "vllm-v1", "sarathi", "slos-serve"])
@pytest.mark.parametrize("scenario", ["chatbot", "tool-calling", "reasoning"])
def test_prefill_and_decode_apart(system: str, scenario: str) -> None:
    work = build(scenario, 0.5, 12).requests
    oracle = Oracle(work)
    nodes = cluster(system, HARDWARE, lambda: oracle, 1, "2:1")
    if scenario == "reasoning":
        nodes = [replace(n, world=replace(n.world, kv_blocks=70_000)) for n in nodes]
    outcomes = list(stream(work, nodes, LeastLoaded(), link=link(HARDWARE)))
    assert len(outcomes) == 12 and attainment(outcomes) > 0.5
    assert {o.replica for o in outcomes if o.output > sum(len(r.stages) for r in work)} <= {
        "decode-02"
    }


def test_a_router_tells_slow_replicas_apart() -> None:
    """A step longer than the longest one of usual hardware leaves no rate of 0 to divide by."""
    slow = replace(HARDWARE.roofline, planes=(Plane(0.0004, 0.0, 0.18),))
    asked = replace(X, tpot=0.4, t0=5.0)
    busy, idle = loads({"prefill_tokens": 2000}, {})
    router = Cheapest(slow, ORACLE)
    assert router.rank(asked, [busy, idle])[0] == "b"
    assert router.cost(asked, idle) < 1 < router.cost(asked, busy) * 10


def test_lmetric_counts_those_that_wait() -> None:
    assert LMetric().rank(X, loads({"waiting": 2}, {"running": 1})) == ["b"]


@pytest.mark.parametrize("busy", [{"waiting": 340}, {"step_end": 1.25}])
def test_polyserve_minds_those_that_wait_and_the_step_in_flight(busy: dict) -> None:
    assert PolyServe(HARDWARE.roofline, ORACLE).rank(X, loads(busy, {})) == ["b"]
