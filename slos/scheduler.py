"""SLOs-Serve as a policy: admit by the planner, prove by looking ahead, batch by the same rule, give the rest away.

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

REPEAT = 64  # steps for which a steady batch is promised, so that the context term stays within its bound


@final
@dataclass(slots=True)
class SLOsServe:
    """The paper's scheduler for autoregressive decoding.

    roofline, lengths: what is believed of the hardware and of output lengths. longest_step: cap on a batch, seconds, so that
    arrivals are seen in time. cushion: seconds that every guaranteed request is ahead of its pace before best effort runs.
    """

    roofline: Roofline
    lengths: LengthPredictor
    longest_step: float = 0.1
    cushion: float = 0.05
    _planes: np.ndarray = field(init=False, repr=False)
    _admitted: set[str] = field(init=False, repr=False, default_factory=set)

    def __post_init__(self) -> None:
        require(self.longest_step > 0, "longest_step", self.longest_step, "positive (seconds)")
        require(self.cushion >= 0, "cushion", self.cushion, "at least 0 (seconds)")
        self._planes = self.roofline.array()

    def step(self, view: View) -> Batch:
        """Admit, decline, and form the next batch."""
        guaranteed, candidates, declined = [], [], []
        for p in view.running:
            if p.left > 1 and p.due < view.now and not p.best_effort:
                declined.append(p)  # its first token is late whatever happens now
            elif not p.best_effort:
                guaranteed.append(p)
        best_effort = [p for p in view.running if p.best_effort] + declined
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
        return self._batch(view, guaranteed, best_effort, waiting, [p.id for p in declined])

    def _jobs(self, requests: Sequence[Progress], new: bool = False) -> np.ndarray:
        rows = [(p.tokens - p.computed, p.due, p.tpot, self.lengths.remaining(p), p.computed, new) for p in requests]
        return np.array(rows, dtype=np.float64).reshape(-1, 6)

    def _admit(self, view: View, guaranteed: list[Progress], candidates: list[Progress]) -> list[Progress]:
        """The candidates to guarantee from now on: the planner proposes, the look ahead disposes."""
        forced = self._jobs(guaranteed)
        jobs = self._jobs(candidates, new=True)
        chosen = list(np.flatnonzero(self._propose(view, guaranteed, candidates)))
        values = np.array([p.value for p in candidates])
        prefill, size = jobs[:, LEFT] / values, (jobs[:, LEFT] + jobs[:, REMAINING]) / values
        while len(chosen) > view.max_seqs - len(guaranteed):
            chosen.remove(max(chosen, key=prefill.__getitem__))
        while chosen:
            everyone = np.concatenate((forced, jobs[chosen]))
            verdict, at = self._look_ahead(view, everyone)
            if verdict == OK:
                break
            cost = size if verdict == MEMORY else prefill
            earlier = [c for c in chosen if at >= 0 and jobs[c, DUE] <= everyone[at, DUE]]
            chosen.remove(max(earlier or chosen, key=cost.__getitem__))
        return [candidates[c] for c in chosen]

    def _look_ahead(self, view: View, jobs: np.ndarray) -> tuple[int, int]:
        return batching.look_ahead(
            view.now, jobs, view.total_blocks, view.block_size, self._planes, self.roofline.k_ctx, self.longest_step
        )

    def _propose(self, view: View, guaranteed: list[Progress], candidates: list[Progress]) -> np.ndarray:
        """The planner's choice among candidates, bool; memory is bounded by what is held now, the look ahead does the rest."""
        everyone = guaranteed + candidates
        tpots = np.array(sorted({p.tpot for p in everyone}))
        tier = {tpot: i for i, tpot in enumerate(tpots)}
        prefilling = [p for p in guaranteed if p.left > 1]
        decoding = [p for p in guaranteed if p.left == 1]
        held = sum(view.blocks(p.tokens) for p in guaranteed)
        rows = prefilling + candidates
        answer = admit(
            Instance(
                now=view.now,
                tpots=tpots,
                decoding=np.bincount([tier[p.tpot] for p in decoding], minlength=len(tpots)),
                deadline=np.array([p.due for p in rows]),
                prefill=np.array([p.left for p in rows]),
                memory=np.array([view.blocks(p.tokens) for p in rows]),
                value=np.array([p.value for p in rows]),
                tier=np.array([tier[p.tpot] for p in rows]),
                forced=np.arange(len(rows)) < len(prefilling),
                blocks=max(0, view.total_blocks - held),
                context=sum(p.computed for p in decoding),
            ),
            self.roofline,
        )
        return answer.accepted[len(prefilling) :]

    def _batch(
        self, view: View, guaranteed: list[Progress], best_effort: list[Progress], waiting: list[Progress], declined: list[str]
    ) -> Batch:
        """Guaranteed tokens by the rule, then best effort: those running, oldest first, then those waiting."""
        jobs, share = self._jobs(guaranteed), np.zeros(len(guaranteed))
        alive = np.ones(len(guaranteed), np.bool_)
        planes, k_ctx, now = self._planes, self.roofline.k_ctx, view.now
        batching.form(now, jobs, alive, planes, k_ctx, self.longest_step, share)
        free, evictable = view.free_blocks, list(best_effort)
        tokens: dict[str, int] = {}
        preempt: list[str] = []
        context = seats = 0
        for j in np.lexsort((jobs[:, DUE], -share.clip(max=1))):
            p, n = guaranteed[j], int(share[j])
            need = view.blocks(p.computed + n) - view.blocks(p.computed)
            while evictable and (need > free or (not p.computed and len(view.running) + seats >= view.max_seqs)):
                victim = evictable.pop()
                free += view.blocks(victim.computed)
                seats -= 1
                preempt.append(victim.id)
            if n and need <= free:
                tokens[p.id] = n
                free -= need
                seats += not p.computed
                context += p.computed
        self._admitted = {p.id for p in guaranteed if not p.computed and p.id not in tokens}
        if not best_effort and not waiting:
            alone = len(guaranteed) == len(view.running) and len(tokens) == len(guaranteed) and (jobs[:, LEFT] == 1).all()
            on_pace = alone and batching.steady(now, jobs, alive, alive, planes, k_ctx) and not declined
            return Batch(tokens, decline=tuple(declined), repeat=REPEAT if on_pace else 1)
        end = batching.latest_end(now, jobs, share, planes, k_ctx, self.longest_step, self.cushion if len(jobs) else 0.0)
        room = self.roofline.fits(end - now, 0, context) - sum(tokens.values())
        for p in evictable + waiting:
            n = min(p.left, room)
            held = view.blocks(p.computed)
            need = view.blocks(p.computed + n) - held
            starts = not p.computed
            if n < 1 or p.id in preempt or (starts and (view.blocks(p.tokens) > free or len(view.running) + seats >= view.max_seqs)):
                continue
            while need > free and evictable and evictable[-1] is not p:
                victim = evictable.pop()
                if victim.id in tokens:
                    evictable.append(victim)
                    break
                free += view.blocks(victim.computed)
                preempt.append(victim.id)
            if need <= free:
                tokens[p.id] = n
                room -= n
                free -= need
                seats += starts
        return Batch(tokens, preempt=tuple(preempt), decline=tuple(declined))
