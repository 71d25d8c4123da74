"""SLOs-Serve as a policy: the planner proposes whom to admit, the look ahead proves it, one rule forms every batch.

A waiting request stays a candidate until it cannot be in time even alone; then it is declined into best effort, which
lives on what batches and KV blocks have left and is preempted, newest first, when guaranteed requests need the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from slos import batching
from slos.batching import DUE, LEFT, MEMORY, OK, REMAINING
from slos.planner import Instance, admit
from slos.roofline import Roofline
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
    """The paper's scheduler, for autoregressive decoding.

    roofline, lengths: what is believed of the hardware and of output lengths. longest_step: cap on a batch, seconds, so
    that arrivals are seen in time.
    """

    roofline: Roofline
    lengths: LengthPredictor
    longest_step: float = 0.15
    _planes: np.ndarray = field(init=False, repr=False)
    _admitted: set[str] = field(init=False, repr=False, default_factory=set)  # guaranteed, but not yet running

    def __post_init__(self) -> None:
        require(self.longest_step > 0, "longest_step", self.longest_step, "positive (seconds)")
        self._planes = self.roofline.array()

    def step(self, view: View) -> Batch:
        """Admit, decline, and form the next batch."""
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
            elif p.id in self._admitted or p.stage > 0:
                guaranteed.append(p)
            else:
                candidates.append(p)
        if candidates:
            guaranteed += self._admit(view, guaranteed, candidates)
        return self._batch(view, guaranteed, best_effort, waiting, tuple(p.id for p in declined))

    def _jobs(self, requests: Sequence[Progress], new: bool = False) -> np.ndarray:
        """Jobs as in `slos.batching`: left, due, tpot, remaining, computed, new."""
        rows = [(p.tokens - p.computed, p.due, p.tpot, self.lengths.remaining(p), p.computed, new) for p in requests]
        return np.array(rows, dtype=np.float64).reshape(-1, 6)

    def _admit(self, view: View, guaranteed: list[Progress], candidates: list[Progress]) -> list[Progress]:
        """The candidates to guarantee from now on.

        Where the look ahead finds a deadline missed or memory short, the costliest of those to blame goes (as in
        Moore and Hodgson's rule for late jobs) until it passes.
        """
        forced, jobs = self._jobs(guaranteed), self._jobs(candidates, new=True)
        values = np.array([p.value for p in candidates])
        prefill, size = jobs[:, LEFT] / values, (jobs[:, LEFT] + jobs[:, REMAINING]) / values
        seats = view.max_seqs - len(guaranteed)
        chosen = sorted(np.flatnonzero(self._propose(view, guaranteed, candidates)), key=prefill.__getitem__)[:seats]
        while chosen:
            everyone = np.concatenate((forced, jobs[chosen]))
            verdict, at = self._look_ahead(view, everyone)
            if verdict == OK:
                break
            blamed = [c for c in chosen if at >= 0 and jobs[c, DUE] <= everyone[at, DUE]] or chosen
            chosen.remove(max(blamed, key=(size if verdict == MEMORY else prefill).__getitem__))
        others = sorted(set(range(len(jobs))) - set(chosen), key=prefill.__getitem__)
        for c in others[:SECOND_TRIES]:
            more = [*chosen, c]
            if len(more) <= seats and self._look_ahead(view, np.concatenate((forced, jobs[more])))[0] == OK:
                chosen = more
        return [candidates[c] for c in chosen]

    def _look_ahead(self, view: View, jobs: np.ndarray) -> tuple[int, int]:
        return batching.look_ahead(
            view.now, jobs, view.total_blocks, view.block_size, self._planes, self.roofline.k_ctx, self.longest_step
        )

    def _propose(self, view: View, guaranteed: list[Progress], candidates: list[Progress]) -> np.ndarray:
        """The planner's choice among the candidates, bool.

        A request ahead of its schedule counts in the loosest tier that its slack allows. Memory is bounded by what is
        held now; when blocks come back is for the look ahead to see.
        """
        rows = [p for p in guaranteed if p.left > 1] + candidates
        decoding = [p for p in guaranteed if p.left == 1]
        tpots = np.array(sorted({p.tpot for p in guaranteed} | {p.tpot for p in candidates}))
        tpots = np.append(tpots, 2 * tpots[-1])
        pace = [p.tpot + max(0.0, p.due - p.tpot - view.now) / self.lengths.remaining(p) for p in decoding]
        problem = Instance(
            now=view.now,
            tpots=tpots,
            decoding=np.bincount(np.searchsorted(tpots, pace, side="right") - 1, minlength=len(tpots)),
            deadline=np.array([p.due for p in rows]),
            prefill=np.array([p.left for p in rows]),
            memory=np.array([view.blocks(p.tokens) for p in rows]),
            value=np.array([p.value for p in rows]),
            tier=np.searchsorted(tpots, [p.tpot for p in rows]),
            forced=np.arange(len(rows)) < len(rows) - len(candidates),
            blocks=max(0, view.total_blocks - sum(view.blocks(p.tokens) for p in guaranteed)),
            context=sum(p.computed for p in decoding),
        )
        return admit(problem, self.roofline).accepted[len(rows) - len(candidates) :]

    def _batch(
        self,
        view: View,
        guaranteed: list[Progress],
        best_effort: list[Progress],
        waiting: list[Progress],
        declined: tuple[str, ...],
    ) -> Batch:
        """Guaranteed tokens by the rule, then best effort: those running, oldest first, then those waiting."""
        jobs, share, alive = self._jobs(guaranteed), np.zeros(len(guaranteed)), np.ones(len(guaranteed), np.bool_)
        planes, k_ctx = self._planes, self.roofline.k_ctx
        seconds = batching.form(view.now, jobs, alive, planes, k_ctx, self.longest_step, share)
        urgent = np.argsort(jobs[:, DUE], kind="stable")
        last_resort = [guaranteed[j] for j in urgent if guaranteed[j].computed]
        room = _Room(view, last_resort + best_effort)
        tokens: dict[str, int] = {}
        for j in urgent:
            if share[j] and room.give(guaranteed[j], int(share[j])):
                tokens[guaranteed[j].id] = int(share[j])
        self._admitted = {p.id for p in guaranteed if p.id not in tokens and not p.computed}
        self._admitted.update(p.id for p in last_resort if p.id in room.preempted)
        if not best_effort and not waiting and not declined:
            settled = len(tokens) == len(guaranteed) == len(view.running) and (jobs[:, LEFT] == 1).all()
            on_pace = settled and batching.steady(view.now, jobs, alive, alive, planes, k_ctx)
            return Batch(tokens, preempt=tuple(room.preempted), repeat=REPEAT if on_pace else 1)
        end = view.now + self.longest_step
        if guaranteed:
            end = batching.latest_end(view.now, jobs, share, planes, k_ctx, self.longest_step, CUSHION)
            held = sum(p.computed for p in guaranteed) / (view.total_blocks * view.block_size)
            if max(held, seconds / jobs[:, batching.TPOT].min()) > BUSY:
                end = min(end, view.now + seconds * (1 + STRETCH))
        context = sum(p.computed for p in guaranteed if p.id in tokens)
        budget = self.roofline.fits(end - view.now, 0, context) - sum(tokens.values())
        spare = room.free - int(RESERVE * view.total_blocks) * bool(guaranteed)
        for p in [p for p in best_effort if p.id not in room.preempted] + waiting:
            if budget < 1:
                break
            whole = view.blocks(p.tokens + self.lengths.remaining(p))
            if (p.computed or whole <= spare) and room.give(p, min(p.left, budget)):
                tokens[p.id] = min(p.left, budget)
                budget -= tokens[p.id]
                spare -= whole if not p.computed else 0
        return Batch(tokens, tuple(room.preempted), declined)


class _Room:
    """KV blocks and seats while a batch is put together; takes both from the tail of `evictable` when they run out."""

    def __init__(self, view: View, evictable: list[Progress]) -> None:
        self.view, self.evictable = view, evictable
        self.free, self.seats = view.free_blocks, view.max_seqs - len(view.running)
        self.preempted: list[str] = []

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
