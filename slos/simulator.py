"""A discrete-event simulator that hosts real policies: the only place where simulated time passes.

One replica runs step after step: it shows its policy a `View`, checks the answer against its KV ledger, and lets the
step last as long as the world's roofline says. What the policy believes about the hardware is the policy's own affair.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from random import Random

import numpy as np

from slos.live import Live, Outcome
from slos.roofline import Profile, Roofline
from slos.types import Batch, Policy, Progress, Request, View, require

MAX_LEAP = 64  # steps taken at once at the most, so that an arrival cuts little work


@dataclass(frozen=True, slots=True)
class World:
    """The hardware that requests really run on. `max_seqs` as in vLLM; `noise`: log-normal sigma of step times.

    max_drafts: longest draft, 0 without a draft model; acceptance: chance of each draft token, if those before it were.
    """

    roofline: Roofline
    kv_blocks: int
    block_size: int = 16
    max_seqs: int = 256
    noise: float = 0.0
    max_drafts: int = 0
    acceptance: float = 0.7

    def __post_init__(self) -> None:
        require(self.kv_blocks >= 1, "kv_blocks", self.kv_blocks, "at least 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1 token")
        require(self.max_seqs >= 1, "max_seqs", self.max_seqs, "at least 1")
        require(self.noise >= 0, "noise", self.noise, "at least 0")
        require(self.max_drafts >= 0, "max_drafts", self.max_drafts, "at least 0")
        require(0 <= self.acceptance <= 1, "acceptance", self.acceptance, "in [0, 1]")

    @classmethod
    def of(cls, profile: Profile, **changes: float) -> World:
        return cls(profile.roofline, profile.kv_blocks, profile.block_size, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Step:
    """One executed batch, or `count` equal ones in a row, from `start` to `end`, for timelines and laws."""

    start: float
    end: float
    count: int
    prefill: int
    decode: int
    best_effort: int
    waiting: int
    running: int
    free_blocks: int


@dataclass(slots=True, eq=False)
class Replica:
    """One engine: queues, KV ledger, and the step in flight."""

    policy: Policy
    world: World
    rng: np.random.Generator
    waiting: list[Progress] = field(default_factory=list)
    running: list[Progress] = field(default_factory=list)
    live: dict[str, Live] = field(default_factory=dict)
    free: int = 0
    start: float = 0.0
    ends: list[float] = field(default_factory=list)  # when each step in flight ends; empty while idle
    batch: Batch = field(default_factory=Batch)

    def __post_init__(self) -> None:
        self.free = self.world.kv_blocks

    def arrive(self, live: Live, now: float) -> None:
        """Queue a request; of a run of repeated steps only those that have begun by `now` remain."""
        self.live[live.request.id] = live
        self.waiting.append(live.progress)
        del self.ends[bisect_left(self.ends, now) + 1 :]

    def begin(self, now: float) -> bool:
        """Ask the policy for a step and start it; False if it has nothing to run."""
        w = self.world
        view = View(now, self.waiting, self.running, self.free, w.kv_blocks, w.block_size, w.max_seqs, w.max_drafts)
        batch = self.batch = self.policy.step(view)
        for id in batch.decline:
            self._find(id).progress.best_effort = True
        for id in batch.preempt:
            self._preempt(self._find(id))
        if not batch.tokens:
            return False
        total = context = need = drafts = 0
        decodes, steps = True, batch.repeat if not w.noise else 1
        for id, n in batch.tokens.items():
            live = self._find(id)
            p = live.progress
            left = p.tokens - p.computed
            most = left if left > 1 else 1 + w.max_drafts
            if not 1 <= n <= most:
                raise ValueError(f"batch gives {n} tokens to {id!r}; bound: 1 to the {most} that it has left")
            if left > 1 or n > 1:
                decodes = False
                drafts = max(drafts, n - 1 if left == 1 else 0)
            else:
                steps = min(steps, live.request.stages[p.stage].output - p.generated)
            need += -(-(p.computed + n) // w.block_size) - live.blocks
            total += n
            context += p.computed
        if need > self.free:
            raise ValueError(f"batch needs {need} KV blocks; bound: {self.free} free; preempt somebody first")
        started = [self.live[id] for id in batch.tokens if not self.live[id].blocks]
        if started:
            ids = {live.request.id for live in started}
            self.waiting = [p for p in self.waiting if p.id not in ids]
            self.running.extend(live.progress for live in started)
            if len(self.running) > w.max_seqs:
                raise ValueError(f"batch runs {len(self.running)} requests; bound: max_seqs = {w.max_seqs}")
        self.start = now
        self.ends = self._ends(now, total, drafts, context, int(min(steps, MAX_LEAP)) if decodes else 1)
        return True

    def _find(self, id: str) -> Live:
        if id not in self.live:
            raise ValueError(f"batch names request {id!r}, which is not here; name only ids of the view")
        return self.live[id]

    def _ends(self, now: float, total: int, drafts: int, context: int, steps: int) -> list[float]:
        """End times of up to `steps` equal decode steps, as many as the free blocks carry."""
        w = self.world
        while steps > 1 and self._growth(steps) > self.free:
            steps //= 2
        if w.noise:
            seconds = w.roofline.time(total, drafts, context) * self.rng.lognormal(-0.5 * w.noise**2, w.noise)
            return [now + seconds]
        if w.roofline.k_ctx == 0:
            times = repeat(w.roofline.time(total, drafts), steps)
        else:
            times = (w.roofline.time(total, drafts, context + i * total) for i in range(steps))
        return list(accumulate(times, initial=now))[1:]

    def _growth(self, steps: int) -> int:
        size = self.world.block_size
        lives = (self.live[id] for id in self.batch.tokens)
        return sum(-(-(live.progress.computed + steps) // size) - live.blocks for live in lives)

    def finish(self) -> list[Live]:
        """Account for the steps that just ended; the requests whose stage ended with them."""
        ended: list[Live] = []
        if not self.ends:
            return ended
        ends, size, single = self.ends, self.world.block_size, len(self.ends) == 1
        count = len(ends)
        for id, n in self.batch.tokens.items():
            live = self.live[id]
            p = live.progress
            if n > 1 and p.tokens - p.computed == 1:
                times = ends * live.draft(n - 1, self.world.acceptance)
                p.computed += len(times)
                finished = live.emit(times)
            else:
                p.computed += n if single else count
                finished = p.computed == p.tokens + (0 if single else count - 1) and live.emit(ends)
            blocks = -(-p.computed // size)
            self.free -= blocks - live.blocks
            live.blocks = blocks
            if finished:
                ended.append(live)
        self.ends = []
        return ended

    def release(self, live: Live) -> None:
        """Take a request off this replica and its blocks with it."""
        del self.live[live.request.id]
        self.running.remove(live.progress)
        self.free += live.blocks
        live.blocks = live.progress.computed = 0

    def _preempt(self, live: Live) -> None:
        if live.progress not in self.running:
            raise ValueError(f"preempted request {live.request.id!r} is not running; preempt only ids of view.running")
        self.running.remove(live.progress)
        self.waiting.insert(0, live.progress)
        self.free += live.blocks
        live.blocks = live.progress.computed = 0
        live.preemptions += 1


def simulate(
    requests: Iterable[Request],
    policy: Policy,
    world: World,
    seed: int = 0,
    observe: Callable[[Replica, Step, tuple[Outcome, ...]], None] | None = None,
) -> list[Outcome]:
    """Serve `requests` to the end on one replica; outcomes in the order in which they finished.

    `observe` is called after every executed step. Raises ValueError for an illegal batch and RuntimeError if the policy
    leaves requests unserved for ever.
    """
    replica = Replica(policy, world, np.random.default_rng(seed))
    outcomes: list[Outcome] = []
    ready = [
        (r.arrival, i, 0, Live(r, Progress(r.id, r.arrival, 0, 0.0, 1.0, r.value), dice=Random(f"{seed}/{r.id}")))
        for i, r in enumerate(requests)
    ]
    heapq.heapify(ready)
    longest = max((-(-live.request.context // world.block_size) for *_, live in ready), default=0)
    require(
        longest <= world.kv_blocks, "longest request in KV blocks", longest, f"at most {world.kv_blocks}", "drop it"
    )
    order = len(ready)
    twice = [id for id, n in Counter(live.request.id for *_, live in ready).items() if n > 1]
    require(not twice, "request ids", twice[:3], "different for every request")

    def arrive() -> None:
        arrival, _, stage, live = heapq.heappop(ready)
        live.start_stage(stage, arrival, world.roofline)
        replica.arrive(live, arrival)

    while ready or replica.live:
        now = replica.ends[-1] if replica.ends else ready[0][0] if ready else None
        if now is None:
            raise RuntimeError(f"{type(policy).__name__} runs nothing though {len(replica.live)} requests are waiting")
        if ready and ready[0][0] < now:
            arrive()
            continue
        done: list[Outcome] = []
        step = _describe(replica) if observe and replica.ends else None
        for live in replica.finish():
            stages, p = live.request.stages, live.progress
            following = p.stage + 1
            if following == len(stages):
                replica.release(live)
                done.append(live.outcome(now))
            elif stages[following].wait:
                replica.release(live)
                heapq.heappush(ready, (now + stages[following].wait, order, following, live))
                order += 1
            else:
                live.start_stage(following, now, world.roofline)
        outcomes += done
        while ready and ready[0][0] <= now:
            arrive()
        if observe and step:
            observe(replica, step, tuple(done))
        if replica.live:
            replica.begin(now)
    return outcomes


def _describe(replica: Replica) -> Step:
    prefill = decode = best_effort = 0
    for id, n in replica.batch.tokens.items():
        p = replica.live[id].progress
        if p.best_effort:
            best_effort += n
        elif p.left == 1:
            decode += n
        else:
            prefill += n
    return Step(
        replica.start, replica.ends[-1], len(replica.ends), prefill, decode, best_effort,
        len(replica.waiting), len(replica.running), replica.free,
    )  # fmt: skip
