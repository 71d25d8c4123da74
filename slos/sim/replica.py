"""One simulated engine that hosts a real policy: its queues, its KV ledger, and the step in flight.

It shows its policy a `View`, checks the answer against the ledger, and lets the step last as long
as the world's roofline says. What the policy believes about the hardware is the policy's own
affair. Time passes in `slos.sim.simulator`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from itertools import accumulate, repeat

import numpy as np

from slos.core.attainment import Live
from slos.core.roofline import Roofline
from slos.core.types import Batch, LengthPredictor, Load, Policy, Progress, View, require
from slos.hardware.profiles import Profile

ROLES = ("", "prefill", "decode")
MAX_LEAP = 64  # steps taken at once at the most, so that an arrival cuts little work


@dataclass(frozen=True, slots=True)
class World:
    """The hardware that requests really run on. `max_seqs` as in vLLM; `noise`: log-normal sigma of
    step times.

    max_drafts: longest draft, 0 without a draft model; acceptance: chance of each draft token, if
    those before it were.
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
    """One executed batch, or `count` equal ones in a row, from `start` to `end`, for timelines and
    laws."""

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
    """One engine, for one simulation: a fresh policy, queues, KV ledger, and the step in flight.

    role: "prefill" hands requests over after a stage's first token, "decode" takes them. lengths:
    by which it says what its requests will have claimed of its KV cache; without, what they hold.
    `lent` blocks belong to requests whose KV cache is on its way to another replica or from it: no
    policy sees them.
    """

    name: str
    policy: Policy
    world: World
    role: str = ""
    lengths: LengthPredictor | None = None
    waiting: list[Progress] = field(init=False, default_factory=list)
    running: list[Progress] = field(init=False, default_factory=list)
    live: dict[str, Live] = field(init=False, default_factory=dict)
    free: int = field(init=False)
    lent: int = field(init=False, default=0)
    start: float = field(init=False, default=0.0)
    # of each step in flight; empty while idle
    ends: list[float] = field(init=False, default_factory=list)
    batch: Batch = field(init=False, default_factory=Batch)
    need: int = field(init=False, default=0)  # blocks that the first step in flight takes
    rng: np.random.Generator = field(init=False)  # of noise, given by the simulation
    # KV caches, and who has them
    offered: deque[tuple[Live, Replica]] = field(init=False, default_factory=deque)
    coming: int = field(init=False, default=0)  # KV caches under way
    sends: float = field(init=False, default=0.0)  # until when its link is busy

    def __post_init__(self) -> None:
        require(self.role in ROLES, f"{self.name}: role", self.role, f"one of {ROLES}")
        self.free = self.world.kv_blocks

    def arrive(self, live: Live, now: float) -> None:
        """Queue a request, or let one run that brings its KV cache along."""
        self.live[live.request.id], p, live.replica = live, live.progress, self.name
        live.claim = -(
            -(p.tokens + (self.lengths.remaining(p) if self.lengths else 0))
            // self.world.block_size
        )
        (self.running if live.blocks else self.waiting).append(p)
        self.cut(now)

    def cut(self, now: float) -> None:
        """Of a run of repeated steps keep only those that have begun before `now`."""
        del self.ends[bisect_left(self.ends, now) + 1 :]

    def begin(self, now: float) -> list[Live]:
        """Ask the policy for a step and start it, if it runs anything; the requests that leave for
        another replica."""
        w, total, passed = self.world, self.world.kv_blocks - self.lent, []
        view = View(
            now,
            self.waiting,
            self.running,
            self.free,
            total,
            w.block_size,
            w.max_seqs,
            w.max_drafts,
        )
        batch = self.batch = self.policy.step(view)
        for id in batch.decline:
            p = self._find(id).progress
            if p.elsewhere:
                passed.append(self.live.pop(id))
                self.waiting.remove(p)
            else:
                p.best_effort = True
        for id in batch.preempt:
            live = self._find(id)
            if live.progress not in self.running:
                raise ValueError(
                    f"preempted request {id!r} is not running; preempt only ids of view.running"
                )
            self._stop(live)
            self.waiting.insert(0, live.progress)
            live.preemptions += 1
        if batch.tokens:
            self._start(now, batch)
        return passed

    def _start(self, now: float, batch: Batch) -> None:
        w = self.world
        size = w.block_size
        context = need = drafts = 0
        decodes, steps = True, batch.repeat if not w.noise else 1
        started: list[Live] = []
        for id, n in batch.tokens.items():
            live = self._find(id)
            p, computed = live.progress, live.progress.computed
            if n == 1 == p.tokens - computed:
                if steps > 1:
                    steps = min(steps, live.request.stages[p.stage].output - p.generated)
            else:
                left = p.tokens - computed
                most = left if left > 1 else 1 + w.max_drafts
                if not 1 <= n <= most:
                    raise ValueError(
                        f"batch gives {n} tokens to {id!r}; bound: 1 to the {most} that it has left"
                    )
                decodes = False
                drafts = max(drafts, n - 1 if left == 1 else 0)
            need += -(-(computed + n) // size) - live.blocks
            context += computed
            if not live.blocks:
                started.append(live)
        if need > self.free:
            raise ValueError(
                f"batch needs {need} KV blocks; bound: {self.free} free; preempt somebody first"
            )
        if started:
            ids = {live.request.id for live in started}
            self.waiting = [p for p in self.waiting if p.id not in ids]
            for live in started:
                live.progress.elsewhere = False
                self.running.append(live.progress)
            if len(self.running) > w.max_seqs:
                raise ValueError(
                    f"batch runs {len(self.running)} requests; bound: max_seqs = {w.max_seqs}"
                )
        self.start, self.need = now, need
        leap = decodes and self.role != "prefill"  # there everybody leaves with the first token
        steps, total = int(min(steps, MAX_LEAP)) if leap else 1, sum(batch.tokens.values())
        self.ends = self._ends(now, total, drafts, context, steps)

    def _find(self, id: str) -> Live:
        if id not in self.live:
            raise ValueError(
                f"batch names request {id!r}, which is not here; name only ids of the view"
            )
        return self.live[id]

    def _ends(self, now: float, total: int, drafts: int, context: int, steps: int) -> list[float]:
        """End times of up to `steps` equal decode steps, as many as the free blocks carry."""
        w = self.world
        while steps > 1 and self._growth(steps) > self.free:
            steps //= 2
        if w.noise:
            seconds = w.roofline.time(total, drafts, context) * self.rng.lognormal(
                -0.5 * w.noise**2, w.noise
            )
            return [now + seconds]
        if w.roofline.k_ctx == 0:
            times = repeat(w.roofline.time(total, drafts), steps)
        else:
            times = (w.roofline.time(total, drafts, context + i * total) for i in range(steps))
        return list(accumulate(times, initial=now))[1:]

    def load(self, now: float) -> Load:
        """What a router is shown. A run of repeated steps looks as if they were taken one by
        one."""
        at = bisect_left(self.ends, now)
        tokens = self.batch.tokens if self.ends else {}
        tiers: dict[float, int] = {}
        prefill = claimed = 0
        for id, live in self.live.items():
            p = live.progress
            if not p.best_effort:
                claimed += live.claim
                left = p.tokens - p.computed
                left -= tokens.get(id, 0) if left > 1 else p.computed > 0 or id in tokens
                prefill += left
                if not left:
                    tiers[p.tpot] = tiers.get(p.tpot, 0) + 1
        taken = 0 if not self.ends else self.need if len(self.ends) == 1 else self._growth(at + 1)
        return Load(
            self.name, self.ends[at] if self.ends else now, len(self.waiting), len(self.running),
            self.free - taken, self.world.kv_blocks - self.lent, self.world.block_size, prefill,
            tuple(sorted(tiers.items())), claimed,
        )  # fmt: skip

    def _growth(self, steps: int) -> int:
        size = self.world.block_size
        lives = (self.live[id] for id in self.batch.tokens)
        return sum(-(-(live.progress.computed + steps) // size) - live.blocks for live in lives)

    def finish(self) -> list[Live]:
        """Account for the steps that just ended; the requests whose stage ended with them."""
        ended: list[Live] = []
        ends, size, count = self.ends, self.world.block_size, len(self.ends)
        for id, n in self.batch.tokens.items():
            live = self.live[id]
            p = live.progress
            if n > 1 and p.tokens - p.computed == 1:
                times = ends * live.draft(n - 1, self.world.acceptance)
                p.computed += len(times)
                finished = live.emit(times)
            else:
                p.computed += n * count
                finished = p.computed == p.tokens + count - 1 and live.emit(ends)
            if p.computed > live.blocks * size:
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
        self._stop(live)

    def lend(self, live: Live) -> None:
        """Take a request off this replica; its blocks stay occupied."""
        del self.live[live.request.id]
        self.running.remove(live.progress)
        self.lent += live.blocks

    def _stop(self, live: Live) -> None:
        self.running.remove(live.progress)
        self.free += live.blocks
        live.blocks = live.progress.computed = 0

    def describe(self) -> Step:
        """The step in flight."""
        prefill = decode = best_effort = 0
        for id, n in self.batch.tokens.items():
            p = self.live[id].progress
            if p.best_effort:
                best_effort += n
            elif p.left == 1:
                decode += n
            else:
                prefill += n
        return Step(
            self.start, self.ends[-1], len(self.ends), prefill, decode, best_effort,
            len(self.waiting), len(self.running), self.free,
        )  # fmt: skip
