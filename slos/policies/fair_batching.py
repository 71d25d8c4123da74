"""FairBatching (Lyu et al., arXiv 2510.14392) as a policy: fair between prompts and decodes.

Sarathi-Serve gives every decode its token in every step, needed or not, and prompts wait for what
is left. Here a step lasts as long as the most urgent decode can wait, and its tokens go to

1. decodes that could not wait for another step,
2. prompts, first come, first served,
3. decodes that are ahead of their deadlines, and may sit a step out.

It admits whatever prompt fits the KV cache. Known from the paper alone: its code is not public, and
how near a deadline has to be, what decodes do that are late already, and the order of
prompts are read into it here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from slos.core.roofline import Roofline
from slos.core.types import FOREVER, Batch, Progress, View, require
from slos.policies.baselines import admit, decodes_first


@final
@dataclass(slots=True)
class FairBatching:
    """roofline: seconds of a step (theirs: a + b * tokens + c * context, fitted as it serves).

    most: tokens of a step, which bounds it where no request decodes; vLLM's default, on which
    theirs is built. relegate: not theirs but QoServe's rule: a prompt that cannot be in time any
    more goes behind all others.
    """

    roofline: Roofline
    most: int = 2048
    relegate: bool = False

    def __post_init__(self) -> None:
        require(self.most >= 1, "most", self.most, "at least 1 token")

    def step(self, view: View) -> Batch:
        every, preempted, prompts, free = decodes_first(view)
        decoding = [p for p in view.running if p.id in every]
        size, until = self.capacity(view, decoding)
        urgent = [p for p in decoding if p.due < until]
        tokens = {p.id: 1 for p in urgent}
        queue = prompts if preempted else [*prompts, *view.waiting]
        queue = self.ordered(view, queue)
        size, _ = admit(view, tokens, queue, (size - len(tokens), free))
        others = sorted((p for p in decoding if p.due >= until), key=lambda p: p.due)
        tokens |= {p.id: 1 for p in others[: max(0, size)]}
        # of more decodes than a step has tokens, others sit out in the next one
        every_one = len(decoding) <= self.most
        steady = every_one and not (prompts or preempted or view.waiting)
        return Batch(tokens, tuple(preempted), repeat=FOREVER if steady else 1)

    def capacity(self, view: View, decoding: Sequence[Progress]) -> tuple[int, float]:
        """Tokens of the step; and until when a decode must be due to be urgent: it could not wait
        for this step and then for another one of the tightest TPOT."""
        if not decoding:
            return self.most, view.now
        context = sum(p.computed for p in decoding)
        tightest = min(p.tpot for p in decoding)
        # one that is late already cannot be helped by a shorter step
        slack = min((p.due - view.now for p in decoding if p.due >= view.now), default=tightest)
        seconds = max(slack, self.roofline.time(len(decoding), 0, context))
        size = max(len(decoding), self.roofline.fits(seconds, 0, context))
        return min(size, self.most), view.now + seconds + tightest

    def ordered(self, view: View, prompts: Sequence[Progress]) -> list[Progress]:
        """First come, first served, but for those that are relegated."""
        if not self.relegate:
            return [*prompts]
        earliest = {p.id: view.now + self.roofline.time(p.left) for p in prompts}
        return sorted(prompts, key=lambda p: earliest[p.id] > p.due)
