"""SLOs-Serve as a policy: the planner proposes whom to admit, the look ahead proves it, one rule forms every batch.

A waiting request, also one that comes back from a tool, is a candidate at every step until it starts, which is the
promise to serve it in time, or until it cannot be in time even alone: then it is declined into best effort, which
lives on what batches and KV blocks have left and is preempted, newest first, when guaranteed requests need the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import final

import numpy as np

from slos import batching
from slos.batching import COMPUTED, DUE, LEFT, REMAINING, TPOT
from slos.planner import Instance, admit
from slos.roofline import Roofline
from slos.speculation import Acceptance, draft_length
from slos.types import Batch, LengthPredictor, Progress, View, require

REPEAT = 64  # steps for which a steady batch is promised
SECOND_TRIES = 4  # candidates that the planner's fluid view left out and the look ahead is asked about all the same

# Best effort takes what is left, but time and memory that look idle are also what the next burst will be carried by.
CUSHION = 0.05  # seconds that guaranteed requests are kept ahead of their pace
BUSY = 0.6  # pressure (share of KV cache held, or of the tightest TPOT used) from which best effort is held back:
STRETCH = 0.1  # it then lengthens a step by this share at most,
RESERVE = 0.2  # and always starts a request only if this share of the KV cache stays free beside guaranteed ones


@final
@dataclass(slots=True)
class SLOsServe:
    """The paper's scheduler.

    roofline, lengths: what is believed of the hardware and of output lengths. longest_step: cap on a batch, seconds, so
    that arrivals are seen in time. speculate: draft where the engine can. What is promised never rests on drafts: they
    are an advance on it, which gives slack and KV blocks back sooner.
    """

    roofline: Roofline
    lengths: LengthPredictor
    longest_step: float = 0.15
    speculate: bool = True
    _acceptance: Acceptance = field(init=False, repr=False, default_factory=Acceptance)
    _planes: np.ndarray = field(init=False, repr=False, compare=False)
    _preempted: set[str] = field(init=False, repr=False, default_factory=set)  # guaranteed, but not running now

    def __post_init__(self) -> None:
        require(self.longest_step > 0, "longest_step", self.longest_step, "positive (seconds)")

    def step(self, view: View) -> Batch:
        """Admit, decline, and form the next batch."""
        self._acceptance.learn(view.running)
        self._planes = self.roofline.array()  # a host that learns gives a new one
        guaranteed, candidates, best_effort, declined = [], [], [], []
        for p in view.running:
            if p.best_effort:
                best_effort.append(p)
            elif p.left > 1 and p.due < view.now:  # its first token is late whatever happens now
                declined.append(p)
                best_effort.append(p)
            else:
                guaranteed.append(p)
        waiting = []
        for p in view.waiting:
            if p.best_effort:
                waiting.append(p)
            elif view.now + self.roofline.time(p.left) > p.due + batching.EPS:
                declined.append(p)
                waiting.append(p)
            elif p.id in self._preempted:
                guaranteed.append(p)
            else:
                candidates.append(p)
        jobs = self._jobs(guaranteed)
        if candidates:
            jobs = np.concatenate((jobs, self._jobs(candidates, new=True)))
            admitted = self._admit(view, jobs, candidates)
            jobs = jobs[np.concatenate((np.ones(len(guaranteed), np.bool_), admitted))]
            guaranteed += [p for p, yes in zip(candidates, admitted, strict=True) if yes]
            candidates = [p for p, yes in zip(candidates, admitted, strict=True) if not yes]
            if not guaranteed and not best_effort:  # nothing runs that they could wait for
                declined += candidates
                waiting += candidates
        batch = self._batch(view, jobs, guaranteed, best_effort, waiting, tuple(p.id for p in declined))
        return replace(batch, repeat=1) if candidates else batch

    def _jobs(self, requests: Sequence[Progress], new: bool = False) -> np.ndarray:
        """Jobs as in `slos.batching`."""
        remaining, after = self.lengths.remaining, self.lengths.after_stage
        rows = [
            (
                p.tokens - p.computed,
                p.t0 + p.generated * p.tpot,
                p.tpot,
                remaining(p),
                p.computed,
                new,
                after(p) if p.later_tpot < inf else 0,
                p.later_tpot,
            )
            for p in requests
        ]
        return np.array(rows, dtype=np.float64).reshape(-1, 8)

    def _admit(self, view: View, jobs: np.ndarray, candidates: list[Progress]) -> np.ndarray:
        """Which candidates, the last of `jobs`, to guarantee from now on: bool [candidates].

        The planner's problem: a request ahead of its schedule counts in the loosest tier that its slack allows, and
        memory is bounded by what is held now; when blocks come back is for the look ahead to see.
        """
        new, old = len(candidates), len(jobs) - len(candidates)
        if old >= view.max_seqs:
            return np.zeros(new, np.bool_)
        value = np.array([p.value for p in candidates])
        tpots = np.unique(jobs[:, TPOT])
        tpots = np.append(tpots, 2 * tpots[-1])
        decoding = jobs[:old][jobs[:old, LEFT] == 1]
        pace = (
            decoding[:, TPOT]
            + np.maximum(0.0, decoding[:, DUE] - decoding[:, TPOT] - view.now) / decoding[:, REMAINING]
        )
        blocks = np.ceil((jobs[:, COMPUTED] + jobs[:, LEFT]) / view.block_size)
        open_ = np.append(np.flatnonzero(jobs[:old, LEFT] > 1), np.arange(old, len(jobs)))
        problem = Instance(
            now=view.now,
            tpots=tpots,
            decoding=np.bincount(np.searchsorted(tpots, pace, side="right") - 1, minlength=len(tpots)),
            deadline=jobs[open_, DUE],
            prefill=jobs[open_, LEFT],
            memory=blocks[open_],
            value=np.append(np.ones(len(open_) - new), value),
            tier=np.searchsorted(tpots, jobs[open_, TPOT]),
            forced=open_ < old,
            blocks=max(0, view.total_blocks - int(blocks[:old].sum())),
            context=int(decoding[:, COMPUTED].sum()),
            seats=view.max_seqs - old,
        )
        proposed = admit(problem, self.roofline).accepted[len(open_) - new :]
        return batching.choose(
            view.now, jobs, new, proposed, value, view.max_seqs - old, SECOND_TRIES,
            view.total_blocks, view.block_size, self._planes, self.roofline.k_ctx, self.longest_step,
        )  # fmt: skip

    def _batch(
        self,
        view: View,
        jobs: np.ndarray,
        guaranteed: list[Progress],
        best_effort: list[Progress],
        waiting: list[Progress],
        declined: tuple[str, ...],
    ) -> Batch:
        """Guaranteed tokens by the rule, then best effort: those running, oldest first, then those waiting."""
        share, alive = np.zeros(len(guaranteed)), np.ones(len(guaranteed), np.bool_)
        planes, k_ctx = self._planes, self.roofline.k_ctx
        seconds = batching.form(view.now, jobs, alive, planes, k_ctx, self.longest_step, share)
        urgent = np.argsort(jobs[:, DUE], kind="stable")
        last_resort = [guaranteed[j] for j in urgent if guaranteed[j].computed]
        room = _Room(view, last_resort + best_effort)
        tokens = room.give_all([guaranteed[j] for j in urgent], jobs[urgent, COMPUTED], share[urgent], best_effort)
        length = 0
        if self.speculate and view.max_drafts:
            length = self._draft(view, jobs, guaranteed, share, tokens, room)
        self._preempted = {p.id for p in guaranteed if p.id in self._preempted and p.id not in tokens}
        self._preempted.update(p.id for p in last_resort if p.id in room.preempted)
        used, context = sum(tokens.values()), jobs[:, COMPUTED].sum()
        steps = float(REPEAT)  # for which this batch stays as it is
        if best_effort or waiting:
            end = view.now + self.longest_step
            if guaranteed:
                end = batching.latest_end(view.now, jobs, share, planes, k_ctx, self.longest_step, CUSHION)
                at_ease = BUSY * view.total_blocks * view.block_size - context
                if at_ease < 0 or seconds > BUSY * jobs[:, TPOT].min():
                    end = min(end, view.now + seconds * (1 + STRETCH))
                else:
                    steps = min(steps, at_ease // len(guaranteed))
            spare = room.free - int(RESERVE * view.total_blocks) * bool(guaranteed)
            for p in [*room.evictable, *waiting]:
                n = min(p.left, self.roofline.fits(end - view.now, length, context + p.computed) - used)
                if n < 1:
                    steps = 1
                    break
                whole = view.blocks(p.tokens + self.lengths.remaining(p))
                if (p.computed or whole <= spare) and room.give(p, n):
                    tokens[p.id] = n
                    used, context = used + n, context + p.computed
                    spare -= whole if not p.computed else 0
            if k_ctx or (guaranteed and self.roofline.time(used) > jobs[:, TPOT].min()):
                steps = 1
        settled = used == len(tokens) == len(view.running) and (jobs[:, LEFT] == 1).all()
        calm = settled and not room.preempted and not declined
        if not (calm and batching.steady(view.now, jobs, alive, alive, planes, k_ctx)):
            steps = 1
        return Batch(tokens, tuple(room.preempted), declined, max(1, steps))

    def _draft(
        self,
        view: View,
        jobs: np.ndarray,
        guaranteed: list[Progress],
        share: np.ndarray,
        tokens: dict[str, int],
        room: _Room,
    ) -> int:
        """Add drafts to the decodes of a batch where that pays; the length of the longest."""
        decoding = [p for p in guaranteed if p.left == 1 and p.id in tokens]
        end = batching.latest_end(view.now, jobs, share, self._planes, self.roofline.k_ctx, self.longest_step, 0.0)
        total, context = sum(tokens.values()), sum(p.computed for p in guaranteed if p.id in tokens)
        alpha, longest = self._acceptance.alpha, 0
        length = draft_length(self.roofline, alpha, len(decoding), total, context, end - view.now, view.max_drafts)
        for p in decoding if length else ():
            drafts = min(length, self.lengths.remaining(p) - 1)
            need = view.blocks(p.computed + 1 + drafts) - view.blocks(p.computed + 1)
            if drafts > 0 and need <= room.free:
                room.free -= need
                tokens[p.id] += drafts
                longest = max(longest, drafts)
                self._acceptance.give(p, drafts)
        return longest


class _Room:
    """KV blocks and seats while a batch is put together; takes both from the tail of `evictable` when they run out."""

    def __init__(self, view: View, evictable: list[Progress]) -> None:
        self.view, self.evictable = view, evictable
        self.free, self.seats = view.free_blocks, view.max_seqs - len(view.running)
        self.preempted: list[str] = []

    def give_all(
        self, requests: list[Progress], computed: np.ndarray, share: np.ndarray, best_effort: list[Progress]
    ) -> dict[str, int]:
        """Give to guaranteed `requests` in turn; all at once where nobody has to go. Then only best effort may go."""
        size, some = self.view.block_size, share > 0
        need = int((np.ceil((computed + share) / size) - np.ceil(computed / size)).sum())
        starts = int((some & (computed == 0)).sum())
        wanted = zip(requests, share.astype(np.int64).tolist(), strict=True)
        if need <= self.free and starts <= self.seats:
            tokens = {p.id: n for p, n in wanted if n}
            self.free, self.seats = self.free - need, self.seats - starts
        else:
            tokens = {p.id: n for p, n in wanted if n and self.give(p, n)}
        self.evictable = [p for p in best_effort if p.id not in self.preempted]
        return tokens

    def give(self, p: Progress, tokens: int) -> bool:
        """Find the blocks for `tokens` more of `p`, who is then safe from eviction; False if there are none."""
        if p.id in self.preempted:
            return False
        blocks = self.view.blocks
        starts, need = not p.computed, blocks(p.computed + tokens) - blocks(p.computed)
        if not starts:
            self.evictable.remove(p)
        while self.evictable and (need > self.free or (starts and not self.seats)):
            victim = self.evictable.pop()
            self.free += blocks(victim.computed)
            self.seats += 1
            self.preempted.append(victim.id)
        if need > self.free or (starts and not self.seats):
            return False
        self.free -= need
        self.seats -= starts
        return True
