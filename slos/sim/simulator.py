"""A discrete-event simulator that hosts real policies: the only place where simulated time passes.

One clock drives any number of replicas. At every instant the steps that end are accounted for, then
requests arrive and are routed, then idle replicas ask their policies. Requests are read as they
arrive and forgotten when they are served: memory grows with those that are live.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from math import inf
from random import Random

import numpy as np

from slos.core.attainment import Live, Outcome
from slos.core.roofline import Roofline
from slos.core.types import Load, Policy, Progress, Request, Router, require
from slos.sim.replica import Replica, Step, World

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
    requests: Iterable[Request],
    policy: Policy,
    world: World,
    seed: int = 0,
    observe: Observer | None = None,
) -> list[Outcome]:
    """Serve `requests`, sorted by arrival, to the end on one replica; outcomes in the order in
    which they finished.

    `observe` is called after every executed step. Raises ValueError for an illegal batch and
    RuntimeError if the policy leaves requests unserved for ever.
    """
    return list(stream(requests, [Replica("", policy, world)], seed=seed, observe=observe))


def stream(
    requests: Iterable[Request],
    replicas: Sequence[Replica],
    router: Router | None = None,
    seed: int = 0,
    link: Link | None = None,
    observe: Observer | None = None,
    zero_load: Roofline | None = None,
) -> Iterator[Outcome]:
    """Serve `requests`, sorted by arrival, on fresh replicas that share one clock; outcomes as they
    finish.

    router: asked at every arrival, at that of a stage after a wait, and at every hand-over; one
    replica needs none. link: between prefill and decode replicas, without it a hand-over takes no
    time. zero_load: by which objectives that are slowdowns become seconds, by default the first
    replica's.
    """
    return _Run(replicas, router, seed, link or Link(0.0, 1.0), observe, zero_load).outcomes(
        requests
    )


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
    """The clock, the heaps of what is to come, and who lives where."""

    def __init__(
        self, replicas: Sequence[Replica], router: Router | None, seed: int, link: Link,
        observe: Observer | None, zero_load: Roofline | None,
    ) -> None:  # fmt: skip
        self.replicas, self.router, self.seed, self.link = replicas, router, seed, link
        self.observe = observe
        self.index = {r.name: i for i, r in enumerate(replicas)}
        names, roles = [r.name for r in replicas], {r.role for r in replicas}
        require(
            0 < len(names) == len(self.index), "replicas", names, "at least one, of different names"
        )
        require(
            roles >= {"prefill", "decode"} or roles == {""},
            "roles",
            roles,
            "prefill beside decode",
            "add one",
        )
        self.entry = [r for r in replicas if r.role != "decode"]
        self.decode = [r for r in replicas if r.role == "decode"]
        choice = len(self.entry) > 1 or len(self.decode) > 1
        require(
            router is not None or not choice,
            "router",
            router,
            "given where there are several to choose from",
        )
        for i, r in enumerate(replicas):
            r.rng = np.random.default_rng([seed, i] if i else seed)
        self.roofline = zero_load or self.entry[0].world.roofline
        self.caches = {(r.world.kv_blocks, r.world.block_size) for r in replicas}
        # a heap; an entry holds while that replica's step still ends then
        self.ends: list[tuple[float, int]] = []
        self.later: list[tuple[float, int, Callable[[float], None]]] = []  # a heap
        self.order = count()
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
                raise RuntimeError(
                    f"{type(r.policy).__name__} runs nothing though {left} requests are waiting"
                )

    def _next_end(self) -> float:
        while self.ends:
            time, i = self.ends[0]
            ends = self.replicas[i].ends
            if ends and ends[-1] == time:
                return time
            heapq.heappop(self.ends)
        return inf

    def _touch(self, replica: Replica) -> None:
        i = self.index[replica.name]
        self.touched.add(i)
        if replica.ends:
            heapq.heappush(self.ends, (replica.ends[-1], i))

    def _end_steps(self, now: float) -> list[tuple[Replica, Step, tuple[Outcome, ...]]]:
        """Account for all steps that end now, those within a run of repeated ones included; what to
        observe."""
        if len(self.replicas) > 1:
            for r in self.replicas:
                if len(r.ends) > 1 and r.ends[bisect_left(r.ends, now)] == now:
                    r.cut(now)
                    self._touch(r)
        observed = []
        while self._next_end() == now:
            r = self.replicas[heapq.heappop(self.ends)[1]]
            step, before = r.describe() if self.observe else None, len(self.done)
            sent = r.batch.tokens.items() if r.role == "prefill" else ()
            first = [r.live[id] for id, n in sent if n >= r.live[id].progress.left]
            for live in r.finish():
                stages, following = live.request.stages, live.progress.stage + 1
                if following == len(stages):
                    r.release(live)
                    self.ids.remove(live.request.id)
                    self.done.append(live.outcome(now))
                elif stages[following].wait:
                    r.release(live)
                    self._at(now + stages[following].wait, partial(self._arrive, live, following))
                else:
                    live.start_stage(following, now, self.roofline)
            self._hand_over(r, first, now)
            self._touch(r)
            if step:
                observed.append((r, step, tuple(self.done[before:])))
        return observed

    def _at(self, time: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self.later, (time, next(self.order), action))

    def _enter(self, request: Request, now: float) -> None:
        require(
            request.id not in self.ids, "request id", request.id, "different from those in service"
        )
        for most, size in self.caches:
            need = -(-request.context // size)
            require(
                need <= most,
                f"{request.id}: KV blocks of the whole request",
                need,
                f"at most {most}",
                "drop it",
            )
        self.ids.add(request.id)
        progress = Progress(request.id, now, 0, 0.0, 1.0, request.value)
        self._arrive(Live(request, progress, dice=Random(f"{self.seed}/{request.id}")), 0, now)

    def _arrive(self, live: Live, stage: int, now: float) -> None:
        live.start_stage(stage, now, self.roofline)
        live.route = self._rank(live, self.entry, now)
        self._ask(live, now)

    def _rank(self, live: Live, among: list[Replica], now: float) -> list[str]:
        if len(among) == 1 or self.router is None:
            return [among[0].name]
        route = list(self.router.rank(live.progress, _Loads(among, now)))
        known = {r.name for r in among}
        require(bool(route) and known.issuperset(route), "route", route, f"some of {sorted(known)}")
        return route

    def _ask(self, live: Live, now: float) -> None:
        """Let the next replica of its route have a request."""
        replica, p = self.replicas[self.index[live.route.pop(0)]], live.progress
        p.elsewhere = bool(live.route) and not p.best_effort
        replica.arrive(live, now)
        self._touch(replica)

    def _begin_steps(self, now: float) -> None:
        while self.touched:
            i = min(self.touched)
            self.touched.remove(i)
            r = self.replicas[i]
            if r.ends:
                continue
            self._pull(r, now)
            for live in r.begin(now) if r.live else ():
                live.hops += 1
                self._ask(live, now)
            if r.ends:
                heapq.heappush(self.ends, (r.ends[-1], i))

    def _hand_over(self, source: Replica, first: list[Live], now: float) -> None:
        """Requests that have their first token leave; their blocks stay until the KV cache is
        fetched."""
        for live in first:
            if live.request.id in source.live and live.progress.left == 1:
                source.lend(live)
                target = self.replicas[self.index[self._rank(live, self.decode, now)[0]]]
                target.offered.append((live, source))
                target.cut(now)
                self._touch(target)

    def _pull(self, target: Replica, now: float) -> None:
        """Fetch KV caches in turn, as far as memory and seats go; who was preempted here comes
        first."""
        while (
            target.offered
            and not target.waiting
            and len(target.running) + target.coming < target.world.max_seqs
        ):
            live, source = target.offered[0]
            need = -(-live.progress.computed // target.world.block_size)
            if need > target.free:
                break
            target.offered.popleft()
            target.coming += 1
            target.free, target.lent = target.free - need, target.lent + need
            source.sends = max(now, source.sends) + self.link.seconds(live.progress.computed)
            self._at(source.sends, partial(self._land, live, source, target, need))

    def _land(self, live: Live, source: Replica, target: Replica, blocks: int, now: float) -> None:
        source.free, source.lent = source.free + live.blocks, source.lent - live.blocks
        target.lent, live.blocks, target.coming = target.lent - blocks, blocks, target.coming - 1
        target.arrive(live, now)
        source.cut(now)
        self._touch(source)
        self._touch(target)
