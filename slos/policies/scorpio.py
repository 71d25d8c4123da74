"""SCORPIO (Tang et al., arXiv 2505.23022) as a policy: two guards in front of one batch.

The TTFT guard takes prompts by deadline and rejects one when the predicted times of the prompts
before it and its own add up to more than it has. The TPOT guard lets a request decode as often as
it must: each step a decode earns its share, the tightest TPOT over its own, and it joins the batch
when it has saved up a whole one. So a batch is as large as the shares add up to (*virtual batch
size*), and a request is admitted while a step of that size still keeps the tightest TPOT.

A rejected request is gone there. Here it is served to its end while there is no other, and gives
way at once. Known from the paper alone; its lengths, which it predicts, are not asked for here,
because it uses them for its predictor of memory only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import final

from slos.core.roofline import Roofline
from slos.core.types import FOREVER, Batch, Progress, View, require
from slos.policies.baselines import admit, decodes_first


@final
@dataclass(slots=True)
class Scorpio:
    """roofline: predicts steps and prompts (theirs: analytical, fitted to the GPU).

    chunk: tokens of a step (vLLM's default, on which it is built). reject: the TTFT guard rejects;
    else it only orders.
    """

    roofline: Roofline
    chunk: int = 2048
    reject: bool = True
    _credit: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1 token")

    def step(self, view: View) -> Batch:
        gone = [p for p in view.running if p.best_effort]
        there = [p for p in view.running if not p.best_effort]
        waiting = sorted((p for p in view.waiting if not p.best_effort), key=lambda p: p.due)
        late = self.late(view.now, [p for p in there if p.left > 1], waiting)
        waiting = [p for p in waiting if p.id not in late]
        if not (there or waiting):
            again = [p for p in view.waiting if not (p.elsewhere and p.id in late)]
            return replace(self.batch(view, again), decline=late)
        if gone:  # who waits may share blocks with them
            waiting = [replace(p, shared=0) for p in waiting]
        free = view.free_blocks + view.frees(*gone)
        batch = self.batch(replace(view, running=there, waiting=waiting, free_blocks=free), waiting)
        preempt = (*batch.preempt, *(p.id for p in gone))
        return replace(batch, preempt=preempt, decline=late, repeat=1 if gone else batch.repeat)

    def late(
        self, now: float, prompts: Sequence[Progress], waiting: Sequence[Progress]
    ) -> tuple[str, ...]:
        """The TTFT guard: whom of those waiting, by deadline, to reject."""
        end, late = now + sum(self.roofline.time(p.left) for p in prompts), []
        for p in waiting if self.reject else ():
            seconds = self.roofline.time(p.left)
            # one that has begun to answer was preempted, and goes on
            if end + seconds > p.due and not p.generated:
                late.append(p.id)
            else:
                end += seconds
        return tuple(late)

    def batch(self, view: View, waiting: Sequence[Progress]) -> Batch:
        """The TPOT guard: decodes that have saved up their credit, then chunks of prompts."""
        tokens, preempted, prompts, free = decodes_first(view)
        decoding = [p for p in view.running if p.id in tokens]
        tightest = min((p.tpot for p in decoding), default=inf)
        earned = {p.id: self._credit.get(p.id, 0.0) + tightest / p.tpot for p in decoding}
        tokens = {id: 1 for id, credit in earned.items() if credit >= 1}
        self._credit = {id: credit - (id in tokens) for id, credit in earned.items()}
        queue = prompts if preempted else [*prompts, *self.admitted(view, waiting)]
        _, left = admit(view, tokens, queue, (self.chunk - len(tokens), free))
        paced = all(p.tpot == tightest for p in decoding)
        steady = paced and not (prompts or preempted or view.waiting)
        return Batch(tokens, tuple(preempted), repeat=FOREVER if steady and left == free else 1)

    def admitted(self, view: View, waiting: Sequence[Progress]) -> list[Progress]:
        """Those, by deadline, with whom a step of the virtual batch size keeps the tightest TPOT;
        at least one where nothing runs."""
        tpots, chosen = [p.tpot for p in view.running], []
        context = sum(p.computed for p in view.running)
        for p in waiting:
            tightest = min(p.tpot, *tpots) if tpots else p.tpot
            size = sum(tightest / tpot for tpot in (*tpots, p.tpot))
            context += p.tokens
            if tpots and self.roofline.time(size, 0, context) > tightest:
                break
            tpots.append(p.tpot)
            chosen.append(p)
        return chosen
