"""One simulated engine that hosts a real policy: its queues, its KV ledger, and the step in flight.

It shows its policy a `View`, checks the answer against the ledger, and lets the step last as long
as the world's roofline says. What the policy believes about the hardware is the policy's own
affair. Time passes in `slos.sim.simulator`.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from operator import itemgetter

import numpy as np

from slos.core.types import Batch, LengthPredictor, Policy, Progress, View, require
from slos.policies.routers import Load
from slos.sim.flight import Flight, ends_of
from slos.sim.ledger import Ledger
from slos.sim.prefix_cache import PrefixCache
from slos.sim.world import Simulated, Step, World

__all__ = ["Replica", "Step", "World"]

ROLES = ("", "prefill", "decode")


@dataclass(slots=True, eq=False)
class Replica:
    """One engine, for one simulation: a fresh policy, queues, KV ledger, and the step in flight.

    role: "prefill" hands requests over after a stage's first token, "decode" takes them. lengths:
    by which it says what its requests will have claimed of its KV cache; without, what they hold.
    """

    name: str
    policy: Policy
    world: World
    role: str = ""
    lengths: LengthPredictor | None = None
    waiting: list[Progress] = field(init=False, default_factory=list)
    running: list[Progress] = field(init=False, default_factory=list)
    live: dict[str, Simulated] = field(init=False, default_factory=dict)
    kv: Ledger = field(init=False)
    flight: Flight = field(init=False, default_factory=Flight)
    rng: np.random.Generator = field(init=False)
    # requests to come from prefill replicas, and who has their KV caches
    offered: deque[tuple[Simulated, Replica]] = field(init=False, default_factory=deque)
    coming: list[Simulated] = field(init=False, default_factory=list)  # whose KV caches set out
    sends: float = field(init=False, default=0.0)  # until when its link is busy

    def __post_init__(self) -> None:
        require(self.role in ROLES, f"{self.name}: role", self.role, f"one of {ROLES}")
        kind = PrefixCache if self.world.prefix_cache else Ledger
        self.kv = kind(self.world.kv_blocks, self.world.block_size)

    def seed(self, seed: int | list[int]) -> None:
        """Of the noise of step times."""
        self.rng = np.random.default_rng(seed)

    # Requests that come and go

    def arrive(self, live: Simulated, now: float) -> None:
        """Queue a request, or let one run that brings its KV cache along."""
        p = live.progress
        self.live[p.id], live.replica, live.came = live, self.name, now
        if p.generated and self.lengths:
            self.lengths.began(p)
        live.claim = self.kv.blocks(p.tokens + (self.lengths.remaining(p) if self.lengths else 0))
        (self.running if p.computed else self.waiting).append(p)
        if not p.computed:
            self.kv.expect(live)
        self.flight.cut(now)

    def release(self, live: Simulated) -> None:
        """Take a request off this replica and its blocks with it."""
        del self.live[live.request.id]
        free = self.kv.free
        self._stop(live)
        self.flight.freed += self.kv.free - free

    def _stop(self, live: Simulated) -> None:
        p = live.progress
        self.running.remove(p)
        self.kv.release(live)
        p.computed = p.shared = 0

    def lend(self, live: Simulated) -> None:
        """Take a request off; its blocks stay occupied until its KV cache is fetched."""
        del self.live[live.request.id]
        self.running.remove(live.progress)
        self.kv.lend(live)
        live.progress.shared = 0

    def offer(self, live: Simulated, source: Replica, now: float) -> None:
        """A request is to come here whose KV cache `source` has."""
        self.offered.append((live, source))
        self.flight.cut(now)

    def fetch(self) -> Iterator[tuple[Simulated, Replica]]:
        """The requests whose KV caches set out for here now, and from where: in turn, as far as
        memory and seats go. Those that were preempted here come first."""
        kv, seats = self.kv, self.world.max_seqs - len(self.running)
        while self.offered and not self.waiting and len(self.coming) < seats:
            live, source = self.offered[0]
            if kv.blocks(live.progress.computed) > kv.free:
                return
            self.offered.popleft()
            self.coming.append(live)
            kv.reserve(live.progress.computed)
            yield live, source

    def send(self, seconds: float, now: float) -> float:
        """When a KV cache has left that takes `seconds` of this replica's link."""
        self.sends = max(now, self.sends) + seconds
        return self.sends

    def land(self, live: Simulated, source: Replica, now: float) -> None:
        """The KV cache of a request is here."""
        source.kv.fetched(live)
        source.flight.cut(now)
        self.kv.landed(live)
        self.coming.remove(live)
        self.arrive(live, now)

    # A step

    def begin(self, now: float) -> list[Simulated]:
        """Ask the policy for a step and start it, if it runs anything; the requests that leave for
        another replica."""
        decided, ended = self.flight.last
        if not self.world.asynchronous or ended < now:
            return self._step(now, self.waiting)
        # as it was when the step that has just ended began
        seen = [p for p in self.waiting if self.live[p.id].came <= decided]
        passed = self._step(now, seen, self.flight.freed) if seen or self.running else []
        # an engine that runs nothing meanwhile looks again
        return passed if self.flight.ends else passed + self._step(now, self.waiting)

    def _step(self, now: float, waiting: list[Progress], held: int = 0) -> list[Simulated]:
        """Of `begin`. held: blocks that are free, and not yet known to be."""
        w, kv, passed = self.world, self.kv, []
        kv.show(self.running)
        batch = self.policy.step(
            View(now, waiting, self.running, kv.free - held, kv.total - kv.lent, kv.block_size,
                 w.max_seqs, w.max_drafts)
        )  # fmt: skip
        if held or len(waiting) < len(self.waiting):
            batch = replace(batch, repeat=1)  # more is known of the next step
        for id in batch.decline:
            p = self._find(id).progress
            if p.elsewhere:
                kv.forget(self.live[id])
                passed.append(self.live.pop(id))
                self.waiting.remove(p)
            else:
                p.best_effort = True
        for id in batch.preempt:
            live = self._find(id)
            if live.progress not in self.running:
                cure = "preempt only ids of view.running"
                raise ValueError(f"preempted request {id!r} is not running; {cure}")
            self._stop(live)
            self.waiting.insert(0, live.progress)
            live.preemptions += 1
            kv.expect(live)
        if batch.tokens:
            self._start(now, batch)
        return passed

    def _start(self, now: float, batch: Batch) -> None:
        kv, leap, size, flight = self.kv, batch.repeat, self.world.block_size, self.flight
        if not batch.tokens.keys() <= self.live.keys():
            self._find(next(id for id in batch.tokens if id not in self.live))
        flight.batch = list(map(self.live.__getitem__, batch.tokens))
        tokens, within = batch.tokens, 0
        if starts := [live for live in flight.batch if not live.progress.computed]:
            tokens, within = kv.hold(flight.batch, starts, tokens)
        context, need, drafts = -within, 0, 0
        for live, n in zip(flight.batch, tokens.values(), strict=True):
            p = live.progress
            computed = p.computed
            if n == 1 == p.tokens - computed:
                need += computed % size == 0
                if live.output - p.generated < leap:
                    leap = live.output - p.generated
            else:
                leap, drafts = 1, max(drafts, self._drafts(p, n))
                need += -(-(computed + n) // size) + -computed // size
            context += computed
        if need > kv.free:
            bound = f"{kv.free} free; preempt somebody first"
            raise ValueError(f"batch needs {need} KV blocks; bound: {bound}")
        if starts:
            self._admit([live.progress for live in starts])
        flight.tokens, flight.start, flight.need = tokens, now, need
        sigma = self.world.noise
        steps = 1 if sigma or self.role == "prefill" else flight.leap(leap, kv)
        work, seen = (sum(tokens.values()), drafts, context), len(self.waiting) + len(self.running)
        noise = self.rng.lognormal(-0.5 * sigma**2, sigma) if sigma else 1.0
        flight.ends = ends_of(now, self.world, work, seen, steps, noise)

    def _find(self, id: str) -> Simulated:
        if id not in self.live:
            cure = "name only ids of the view"
            raise ValueError(f"batch names request {id!r}, which is not here; {cure}")
        return self.live[id]

    def _drafts(self, p: Progress, n: int) -> int:
        """Draft tokens among the `n` of a request that is not just a decode of one token."""
        most = p.left if p.left > 1 else 1 + self.world.max_drafts
        if not 1 <= n <= most:
            bound = f"1 to the {most} that it has left"
            raise ValueError(f"batch gives {n} tokens to {p.id!r}; bound: {bound}")
        return n - 1 if p.left == 1 else 0

    def _admit(self, started: list[Progress]) -> None:
        ids = {p.id for p in started}
        self.waiting = [p for p in self.waiting if p.id not in ids]
        for p in started:
            p.elsewhere = False
        self.running += started
        if len(self.running) > self.world.max_seqs:
            many, bound = len(self.running), f"max_seqs = {self.world.max_seqs}"
            raise ValueError(f"batch runs {many} requests; bound: {bound}")

    def finish(self) -> list[Simulated]:
        """Account for the steps that just ended; the requests whose stage ended with them."""
        ended: list[Simulated] = []
        # in which step, whose context, its tokens then
        filled: list[tuple[int, Simulated, int]] = []
        kv, flight, lengths = self.kv, self.flight, self.lengths
        ends, count, size = flight.ends, len(flight.ends), kv.block_size
        taken = flight.need if count == 1 else flight.growth(count, size)
        for live, n in zip(flight.batch, flight.tokens.values(), strict=True):
            p = live.progress
            before, said = p.computed, p.generated
            if drafts := n > 1 and p.tokens - before == 1:
                times = ends * live.draft(n - 1, self.world.acceptance)
                p.computed += len(times)
                taken -= kv.blocks(before + n) - kv.blocks(p.computed)  # of the drafts refused
                finished = live.emit(times)
            else:
                p.computed += n * count
                finished = p.computed == p.tokens + count - 1 and live.emit(ends)
            if live.content and live.content.shared and p.computed // size > before // size:
                if drafts:  # those accepted are known of afterwards
                    filled += (1, live, before + 1), (2, live, p.computed)
                else:
                    filled += ((k, live, before + n * k) for k in range(1, count + 1))
            if not said and p.generated and lengths:
                lengths.began(p)
            if finished:
                ended.append(live)
        # of two copies a hit finds the one that was filled first
        for _, live, tokens in sorted(filled, key=itemgetter(0)):
            kv.fill(live, tokens)
        kv.take(taken)
        flight.land()
        return ended

    # What others see

    def load(self, now: float) -> Load:
        """For a router: leaps as if their steps were taken one by one, what is to come waiting."""
        kv, flight = self.kv, self.flight
        at, tokens, step_end, taken = 0, {}, now, 0
        if flight.ends:
            at, tokens = flight.under_way(now), flight.tokens
            taken = flight.growth(at + 1, kv.block_size) if at else flight.need
            step_end = flight.ends[at]
        tiers: dict[float, int] = {}
        prefill = claimed = 0
        for live in chain(self.live.values(), self.coming, (live for live, _ in self.offered)):
            id, p = live.request.id, live.progress
            if not p.best_effort:
                claimed += live.claim
                left = p.tokens - p.computed
                left -= tokens.get(id, 0) if left > 1 else p.computed > 0 or id in tokens
                prefill += left
                if not left:
                    tiers[p.tpot] = tiers.get(p.tpot, 0) + 1
        return Load(
            self.name, step_end, len(self.waiting) + len(self.coming) + len(self.offered),
            len(self.running), kv.free - taken, kv.total - kv.lent, kv.block_size, prefill,
            tuple(sorted(tiers.items())), claimed,
        )  # fmt: skip

    def describe(self) -> Step:
        """The step in flight."""
        f, tokens = self.flight, Counter[str]()
        for live, n in zip(f.batch, f.tokens.values(), strict=True):
            p = live.progress
            tokens["best" if p.best_effort else "decode" if p.left == 1 else "prefill"] += n
        return Step(
            f.start, f.end, len(f.ends), tokens["prefill"], tokens["decode"], tokens["best"],
            len(self.waiting), len(self.running), self.kv.free,
        )  # fmt: skip
