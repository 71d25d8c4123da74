"""Several replicas under one clock: the laws of each and of all, requests that are passed on, and
hand-overs."""

import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import (
    ABLATED,
    EVERY,
    FAST,
    PATHOLOGICAL,
    Lawful,
    Place,
    build,
    examples,
    requests,
    worlds,
)

from slos.core.attainment import Outcome
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, Progress, Request, Stage, View
from slos.hardware.profiles import profile
from slos.policies.baselines import VLLM
from slos.policies.oracle import Oracle
from slos.policies.routers import Load
from slos.sim.cluster import pooled
from slos.sim.replica import Replica, World
from slos.sim.simulator import Link, simulate, stream

PACE = SLO(tpot=1.0, ttft=10.0)
SLOW = Roofline((Plane(0.01, 0.0, 0.1),))


def req(id: str, prompt: int, output: int, arrival: float = 0.0) -> Request:
    return Request(id, arrival, (Stage(prompt, output, PACE),))


def shuffled(request: Progress, loads: Sequence[Load]) -> list[str]:
    """An arbitrary route, which changes with everything that a router is shown; replicas may be in
    it twice."""
    digest = crc32(repr((request.id, request.tokens, request.due, list(loads))).encode())
    names = [load.replica for load in loads]
    return [names[(digest >> 4 * i) % len(names)] for i in range(1 + digest % 4)]


@dataclass
class LawfulCluster:
    """A router under watch, and the watch of every replica. It sees who goes where, and keeps the
    laws of all."""

    work: Sequence[Request]
    nodes: Sequence[Replica]
    link: Link
    repeats: bool = True
    watched: dict[str, Lawful] = field(default_factory=dict)
    routes: dict[str, list[str]] = field(default_factory=dict)  # replicas still to be asked
    hops: dict[str, int] = field(default_factory=dict)
    # not here: when, and where it stopped
    back: dict[str, tuple[float, Place]] = field(default_factory=dict)
    bound: dict[str, str] = field(default_factory=dict)  # where the KV cache goes
    seen: list[Sequence[Load]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.back = {r.id: (r.arrival, Place()) for r in self.work}
        self.hops = {r.id: 0 for r in self.work}
        for n in self.nodes:
            watch = Lawful(
                n.policy, self.work, n.world, self.repeats, leaves=self.leaves, passed=self.passed
            )
            watch.sends = self.sends if n.role == "prefill" else None
            self.watched[n.name] = watch

    def rank(self, request: Progress, loads: Sequence[Load]) -> Sequence[str]:
        self.seen.append(list(loads))
        route = shuffled(request, loads)
        if request.computed:  # on its way from a prefill replica to a decode replica
            self.bound[request.id] = route[0]
            [source] = [watch for watch in self.watched.values() if request.id in watch.here]
            source.sent[request.id] = replace(request)
            return route
        now, place = self.back.pop(request.id)
        assert now == request.arrival and request.stage == place.stage
        self.routes[request.id] = route[1:]
        self.watched[route[0]].enter(request.id, place, now)
        return route

    def passed(self, id: str, now: float, place: Place) -> None:
        self.hops[id] += 1
        self.watched[self.routes[id].pop(0)].here[id] = place

    def leaves(self, id: str, back: float, place: Place) -> None:
        self.back[id] = back, place

    def sends(self, id: str, now: float, place: Place) -> None:
        self.watched[self.bound.pop(id)].fetched[id] = (
            now + self.link.seconds(place.computed),
            place,
        )

    def observe(self, replica: Replica, step, done: tuple[Outcome, ...]) -> None:
        self.watched[replica.name].observe(replica, step, done)

    def run(self, seed: int) -> list[Outcome]:
        nodes = [replace(n, policy=self.watched[n.name]) for n in self.nodes]
        outcomes = list(stream(self.work, nodes, self, seed, self.link, self.observe))
        assert not self.back and not self.bound
        assert sorted(o.id for o in outcomes) == sorted(r.id for r in self.work), (
            "somebody was lost or served twice"
        )
        assert [o.finish for o in outcomes] == sorted(o.finish for o in outcomes), (
            "the clock went back"
        )
        declined = set().union(*(watch.declined for watch in self.watched.values()))
        for name, watch in self.watched.items():
            assert watch.gone.keys() == {o.id for o in outcomes if o.replica == name}
            watch.declined = declined
            watch.end([o for o in outcomes if o.replica == name])
        assert {o.id: o.hops for o in outcomes} == self.hops
        return outcomes


TOGETHER = ("", ""), ("", "", "")
APART = ("prefill", "prefill", "decode", "decode"), ("", "prefill", "decode", "decode")


def cluster(
    data: st.DataObject, name: str, work: list[Request], noise: float = 0.3, drafts: int = 3
) -> tuple[list[Replica], Link]:
    """Pathological policies count on all blocks while they serve alone, so they get no
    hand-overs."""
    world = data.draw(worlds(work, noise=noise, drafts=drafts))
    kinds = data.draw(st.sampled_from(TOGETHER if name in PATHOLOGICAL else TOGETHER + APART))
    nodes = [
        Replica(f"n{i}", build(name, work, world), world, role, Oracle(work))
        for i, role in enumerate(kinds)
    ]
    return nodes, data.draw(st.sampled_from([Link(0.0, 1.0), Link(1.0, 100.0, 0.01)]))


@pytest.mark.parametrize("name", EVERY)
@examples(40)
@given(data=st.data())
def test_laws(name: str, data: st.DataObject) -> None:
    work = data.draw(requests())
    nodes, link = cluster(data, name, work)
    seed = data.draw(st.integers(0, 3))
    first = LawfulCluster(work, nodes, link)
    outcomes = first.run(seed)
    nodes = [replace(n, policy=build(name, work, n.world)) for n in nodes]
    again = LawfulCluster(work, nodes, link)
    assert again.run(seed) == outcomes and again.seen == first.seen, (
        "not the same for the same seed"
    )


@pytest.mark.parametrize("name", EVERY)
@examples(40)
@given(data=st.data())
def test_leaps_change_nothing(name: str, data: st.DataObject) -> None:
    """Nor what the router sees; only the order of requests that finish in the same instant may
    differ."""
    work = data.draw(requests())
    drafts = 0 if name in ("slos-serve", *ABLATED) else 3  # ours may draft later in a steady run
    nodes, link = cluster(data, name, work, noise=0.0, drafts=drafts)
    runs = []
    for repeats in (True, False):
        fresh = [replace(n, policy=build(name, work, n.world)) for n in nodes]
        watch = LawfulCluster(work, fresh, link, repeats)
        runs.append((sorted(watch.run(0), key=lambda o: (o.finish, o.id)), watch.seen))
    assert runs[0] == runs[1]


@pytest.mark.parametrize("name", EVERY)
@examples(15)
@given(data=st.data())
def test_one_replica_is_the_plain_simulation(name: str, data: st.DataObject) -> None:
    work = data.draw(requests())
    world, seed = data.draw(worlds(work)), data.draw(st.integers(0, 3))
    plain = simulate(work, build(name, work, world), world, seed)
    assert list(stream(work, [Replica("", build(name, work, world), world)], seed=seed)) == plain


class First:
    """Everybody to the replicas in the order in which they are listed."""

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        return [load.replica for load in loads]


class Refuses:
    def step(self, view: View) -> Batch:
        return (
            Batch(decline=tuple(p.id for p in view.waiting if p.elsewhere))
            if view.waiting
            else Batch()
        )


def test_a_declined_request_goes_to_the_next_and_keeps_its_arrival() -> None:
    world = World(SLOW, 10)
    nodes = [
        Replica("a", Refuses(), world),
        Replica("b", Refuses(), world),
        Replica("c", VLLM(), world),
    ]
    [o] = stream([req("x", 4, 2, arrival=1.0)], nodes, First())
    assert (o.replica, o.hops, o.declined, o.arrival) == ("c", 2, False, 1.0)
    assert o.finish == pytest.approx(1.0 + 0.14 + 0.11), "at once: nobody was busy"


def test_the_last_one_keeps_it() -> None:
    nodes = [Replica(name, Refuses(), World(SLOW, 10)) for name in "ab"]
    with pytest.raises(RuntimeError, match="Refuses runs nothing though 1 requests"):
        list(stream([req("x", 4, 2)], nodes, First()))


def test_a_kv_cache_takes_its_time() -> None:
    """4 tokens at 2 bytes over 16 bytes a second, one after the other: 0.5 s each, after a prefill
    of 0.18 s."""
    nodes = [
        Replica("p", VLLM(), World(SLOW, 10), "prefill"),
        Replica("d", VLLM(), World(SLOW, 10), "decode"),
    ]
    outcomes = list(
        stream([req("x", 4, 2), req("y", 4, 1), req("z", 4, 2)], nodes, link=Link(2.0, 16.0))
    )
    assert [(o.id, o.replica) for o in outcomes] == [("y", "p"), ("x", "d"), ("z", "d")]
    assert [o.finish for o in outcomes] == pytest.approx(
        [0.22, 0.22 + 0.5 + 0.11, 0.22 + 1.0 + 0.11]
    )
    assert [o.ttft for o in outcomes] == pytest.approx([0.22] * 3)


def test_a_router_is_shown_what_is_on_its_way() -> None:
    """x and z are handed over at 0.22 s and w at 0.44 s, when the cache of x still travels and that
    of z has no room."""
    seen = {}

    class Watches:
        def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
            if request.computed:
                seen[request.id] = loads[0]
            return [loads[0].replica]

    nodes = [
        Replica("p", VLLM(), World(SLOW, 10), "prefill"),
        *(Replica(name, VLLM(), World(SLOW, 1), "decode") for name in "de"),
    ]
    work = [req("x", 4, 2), req("z", 4, 2), req("w", 4, 2, arrival=0.3)]
    list(stream(work, nodes, Watches(), link=Link(2.0, 16.0)))
    shown = {id: (load.waiting, load.running, load.claimed_blocks) for id, load in seen.items()}
    assert shown == {"x": (0, 0, 0), "z": (1, 0, 1), "w": (2, 0, 2)}
    assert [load.decodes for load in seen.values()] == [(), ((1.0, 1),), ((1.0, 2),)]


def test_a_hand_over_waits_for_memory() -> None:
    """The decode replica holds one of the two, so the prefill replica keeps the other's cache until
    then."""
    nodes = [
        Replica("p", VLLM(), World(SLOW, 4), "prefill"),
        Replica("d", VLLM(), World(SLOW, 2), "decode"),
    ]
    x, y = stream([req("x", 20, 3), req("y", 20, 3)], nodes)
    assert (x.finish, y.finish) == pytest.approx((0.5 + 0.22, 0.5 + 0.44))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Replica("a", VLLM(), World(SLOW, 1), "draft"), "role = 'draft' must be one of"),
        (lambda: Link(-1.0, 1.0), "bytes_per_token"),
        (lambda: Link(1.0, 0.0), "bandwidth"),
        (lambda: Link(1.0, 1.0, -1.0), "latency"),
        (lambda: stream([], []), "replicas = "),
        (lambda: stream([], [Replica("a", VLLM(), World(SLOW, 1))] * 2), "different names"),
        (lambda: stream([], [Replica(n, VLLM(), World(SLOW, 1)) for n in "ab"]), "router"),
        (
            lambda: stream([], [Replica("a", VLLM(), World(SLOW, 1), "prefill")]),
            "prefill and decode",
        ),
        (
            lambda: [
                *stream(
                    [req("x", 4, 2)], [Replica(n, VLLM(), World(SLOW, 1)) for n in "ab"], Nowhere()
                )
            ],
            "route",
        ),
    ],
)
def test_what_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class Nowhere:
    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        return ["somewhere else"]


def test_requests_must_come_in_order() -> None:
    with pytest.raises(ValueError, match=r"y: arrival = 0\.5 must be at least 1\.0; sort them"):
        simulate([req("x", 4, 2, 1.0), req("y", 4, 2, 0.5)], VLLM(), World(SLOW, 10))


def test_memory_grows_with_live_requests_only() -> None:
    def trace(n: int) -> Iterator[Request]:
        return (req(f"r{i}", 4, 2, float(i)) for i in range(n))

    def peak(n: int) -> int:
        tracemalloc.start()
        served = sum(
            1
            for _ in stream(
                trace(n), [Replica(name, VLLM(), World(FAST, 10)) for name in "ab"], First()
            )
        )
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert served == n
        return most

    peak(100)
    assert peak(3000) < 1.5 * peak(300)


def test_a_pool_is_as_fast_as_all_together() -> None:
    one = profile("llama-2-7b-a100")
    four = pooled(one, 4).roofline
    for n, context in ((128, 0), (1280, 40_000)):
        assert four.time(4 * n, 0, 4 * context) == pytest.approx(one.roofline.time(n, 0, context))
    assert four.time(1) == four.time(512)
