"""A discrete-event simulator that hosts real policies: the only place where simulated time passes.

One clock drives any number of replicas. At every instant the steps that end are accounted for, then
requests arrive and are routed, then idle replicas ask their policies. Requests are read as they
arrive and forgotten when they are served: memory grows with those that are live.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf

from slos.core.attainment import Outcome
from slos.core.types import Policy, Progress, Request, require
from slos.policies.routers import Load, Router
from slos.sim.prefix_cache import Contents
from slos.sim.replica import Replica
from slos.sim.world import Simulated, Step, World

__all__ = ["Link", "Observer", "Replica", "Step", "World", "simulate", "stream"]
Observer = Callable[[Replica, Step, tuple[Outcome, ...]], None]


@dataclass(frozen=True, slots=True)
class Link:
    """What a KV hand-over costs: bytes per token, bytes per second out of one replica, and seconds
    for each."""

    bytes_per_token: float
    bandwidth: float
    latency: float = 0.0

    def __post_init__(self) -> None:
        require(self.bytes_per_token >= 0, "bytes_per_token", self.bytes_per_token, "at least 0")
        require(self.bandwidth > 0, "bandwidth", self.bandwidth, "positive (bytes per second)")
        require(self.latency >= 0, "latency", self.latency, "at least 0 seconds")

    def seconds(self, tokens: int) -> float:
        return self.latency + tokens * self.bytes_per_token / self.bandwidth


def simulate(
    requests: Iterable[Request], policy: Policy, world: World, seed: int = 0,
    observe: Observer | None = None,
) -> list[Outcome]:  # fmt: skip
    """Serve `requests`, sorted by arrival, to the end on one replica; outcomes in the order in
    which they finished.

    `observe` is called after every executed step. Raises ValueError for an illegal batch and
    RuntimeError if the policy leaves requests unserved for ever.
    """
    replica = Replica("", policy, world, lengths=getattr(policy, "lengths", None))
    return list(stream(requests, [replica], seed=seed, observe=observe))


def stream(
    requests: Iterable[Request], replicas: Sequence[Replica], router: Router | None = None,
    seed: int = 0, link: Link | None = None, observe: Observer | None = None,
) -> Iterator[Outcome]:  # fmt: skip
    """Serve `requests`, sorted by arrival, on fresh replicas that share one clock; outcomes as they
    finish.

    router: asked at every arrival, at that of a stage after a wait, and at every hand-over; one
    replica needs none. link: between prefill and decode replicas, without it a hand-over takes no
    time. Objectives that are slowdowns become seconds by the first replica's world.
    """
    return _Run(replicas, router, seed, link or Link(0.0, 1.0), observe).outcomes(requests)


class _Loads(Sequence[Load]):
    """Loads of some replicas, looked at only if the router does."""

    def __init__(self, replicas: Sequence[Replica], now: float) -> None:
        self._replicas, self._now = replicas, now

    def __len__(self) -> int:
        return len(self._replicas)

    def __getitem__(self, i):
        found = self._replicas[i]
        return [r.load(self._now) for r in found] if isinstance(i, slice) else found.load(self._now)


class _Run:
    """The clock, the heaps of what is to come, and which replica a request goes to."""

    def __init__(
        self, replicas: Sequence[Replica], router: Router | None, seed: int, link: Link,
        observe: Observer | None,
    ) -> None:  # fmt: skip
        self.replicas, self.router, self.seed = replicas, router, seed
        self.link, self.observe = link, observe
        self.index = {r.name: i for i, r in enumerate(replicas)}
        names, roles = [r.name for r in replicas], {r.role for r in replicas}
        distinct = 0 < len(names) == len(self.index)
        require(distinct, "replicas", names, "at least one, of different names")
        whole = roles >= {"prefill", "decode"} or roles == {""}
        require(whole, "roles", roles, "prefill and decode", "add one")
        self.entry = [r for r in replicas if r.role != "decode"]
        self.decode = [r for r in replicas if r.role == "decode"]
        routed = router is not None or max(len(self.entry), len(self.decode)) == 1
        require(routed, "router", router, "given where there are several to choose from")
        for i, r in enumerate(replicas):
            r.seed([seed, i] if i else seed)
        self.zero_load = self.entry[0].world.zero_load or self.entry[0].world.roofline
        self.caches = {(r.world.kv_blocks, r.world.block_size) for r in replicas}
        sizes = {r.world.block_size for r in replicas if r.world.prefix_cache}
        require(len(sizes) <= 1, "block sizes of prefix caches", sizes, "the same everywhere")
        self.contents = Contents(sizes.pop()) if sizes else None
        most = min(r.world.max_context for r in replicas)
        self.limit = min(most, *(blocks * size for blocks, size in self.caches))
        # a heap; an entry holds while that replica's flight still ends then
        self.ends: list[tuple[float, int]] = []
        # a heap; each request has one entry at most, so that ids say who is first at one instant
        self.later: list[tuple[float, str, Callable[[float], None]]] = []
        self.touched: set[int] = set()  # replicas whose policy has something new to see
        self.ids: set[str] = set()
        self.done: list[Outcome] = []

    def outcomes(self, requests: Iterable[Request]) -> Iterator[Outcome]:
        coming = iter(requests)
        request = next(coming, None)
        while True:
            now = min(
                request.arrival if request else inf,
                self.later[0][0] if self.later else inf,
                self._next_end(),
            )
            if now == inf:
                break
            steps = self._end_steps(now)
            while request and request.arrival <= now:
                at = f"{request.id}: arrival"
                require(request.arrival == now, at, request.arrival, f"at least {now}", "sort them")
                self._enter(request, now)
                request = next(coming, None)
            while self.later and self.later[0][0] <= now:
                heapq.heappop(self.later)[2](now)
            if self.observe:
                for step in steps:
                    self.observe(*step)
            self._begin_steps(now)
            yield from self.done
            self.done.clear()
        for r in self.replicas:
            if left := len(r.live) + len(r.offered):
                name = type(r.policy).__name__
                raise RuntimeError(f"{name} runs nothing though {left} requests are waiting")

    def _next_end(self) -> float:
        while self.ends:
            time, i = self.ends[0]
            ends = self.replicas[i].flight.ends
            if ends and ends[-1] == time:
                return time
            heapq.heappop(self.ends)
        return inf

    def _touch(self, replica: Replica) -> None:
        """Its policy is asked when its flight ends, which may be earlier than it was."""
        i = self.index[replica.name]
        self.touched.add(i)
        if replica.flight.ends:
            heapq.heappush(self.ends, (replica.flight.end, i))

    def _at(self, time: float, live: Simulated, action: Callable[[float], None]) -> None:
        heapq.heappush(self.later, (time, live.request.id, action))

    # Steps

    def _end_steps(self, now: float) -> list[tuple[Replica, Step, tuple[Outcome, ...]]]:
        """Account for all steps that end now, those within a leap included; what to observe."""
        if len(self.replicas) > 1:
            for r in self.replicas:
                if r.flight.ends_within(now):
                    r.flight.cut(now)
                    self._touch(r)
        observed = []
        while self._next_end() == now:
            r = self.replicas[heapq.heappop(self.ends)[1]]
            step, before = r.describe() if self.observe else None, len(self.done)
            sent = r.flight.tokens.items() if r.role == "prefill" else ()
            first = [r.live[id] for id, n in sent if n >= r.live[id].progress.left]
            for live in r.finish():
                self._end_stage(live, r, now)
            for live in first:
                if live.request.id in r.live and live.progress.left == 1:
                    self._hand_over(live, r, now)
            self._touch(r)
            if step:
                observed.append((r, step, tuple(self.done[before:])))
        return observed

    def _end_stage(self, live: Simulated, replica: Replica, now: float) -> None:
        stages, following = live.request.stages, live.progress.stage + 1
        last = following == len(stages) or stages[following].wait > 0
        if replica.lengths:
            replica.lengths.ended(live.progress, last)
        if following == len(stages):
            replica.release(live)
            self.ids.remove(live.request.id)
            self.done.append(live.outcome(now))
        elif stages[following].wait:
            replica.release(live)
            self._at(now + stages[following].wait, live, partial(self._arrive, live, following))
        else:
            live.start_stage(following, now, self.zero_load)

    def _begin_steps(self, now: float) -> None:
        while self.touched:
            i = min(self.touched)
            self.touched.remove(i)
            r = self.replicas[i]
            if r.flight.ends:
                continue
            for live, source in r.fetch() if r.offered else ():
                sent = source.send(self.link.seconds(live.progress.computed), now)
                self._at(sent, live, partial(self._land, live, source, r))
            for live in r.begin(now) if r.live else ():
                live.hops += 1
                self._ask(live, now)
            if r.flight.ends:
                heapq.heappush(self.ends, (r.flight.end, i))

    # Requests on their way

    def _enter(self, request: Request, now: float) -> None:
        known = request.id in self.ids
        require(not known, "request id", request.id, "different from those in service")
        for most, size in self.caches:
            what, need = "KV blocks of the whole request", -(-request.context // size)
            require(need <= most, f"{request.id}: {what}", need, f"at most {most}", "drop it")
        self.ids.add(request.id)
        progress = Progress(request.id, now, 0, 0.0, 1.0, request.value)
        progress.kind, progress.limit = request.kind, self.limit
        live = Simulated(request, progress, seed=f"{self.seed}/{request.id}")
        live.content = self.contents.of(request) if self.contents else None
        self._arrive(live, 0, now)

    def _arrive(self, live: Simulated, stage: int, now: float) -> None:
        live.start_stage(stage, now, self.zero_load)
        live.route = self._rank(live, self.entry, now)
        self._ask(live, now)

    def _rank(self, live: Simulated, among: list[Replica], now: float) -> list[str]:
        if len(among) == 1 or self.router is None:
            return [among[0].name]
        route = list(self.router.rank(live.progress, _Loads(among, now)))
        known = {r.name for r in among}
        require(bool(route) and known.issuperset(route), "route", route, f"some of {sorted(known)}")
        return route

    def _ask(self, live: Simulated, now: float) -> None:
        """Let the next replica of its route have a request."""
        replica, p = self.replicas[self.index[live.route.pop(0)]], live.progress
        p.elsewhere = bool(live.route) and not p.best_effort
        replica.arrive(live, now)
        self._touch(replica)

    def _hand_over(self, live: Simulated, source: Replica, now: float) -> None:
        """A request that has its first token leaves; its blocks stay until its KV cache is
        fetched."""
        source.lend(live)
        target = self.replicas[self.index[self._rank(live, self.decode, now)[0]]]
        target.offer(live, source, now)
        self._touch(target)

    def _land(self, live: Simulated, source: Replica, target: Replica, now: float) -> None:
        target.land(live, source, now)
        self._touch(source)
        self._touch(target)
