"""AdaServe (Li et al., EuroSys'26, arXiv 2501.12162) as a policy: drafts by objective.

At the end of a step of T seconds a decode must have said (elapsed + T) / TPOT tokens, so in the
step it needs A of them, which is how its draft gets its length: the shortest s that brings as many
in expectation, 1 + alpha + ... + alpha^s. Whoever is farthest behind is served first. What is left
of the tokens that a step verifies goes where a draft token is most likely accepted: the k-th of a
draft is with alpha^k. The paper drafts trees and knows the draft model's own probabilities; the
engines here draft chains, and alpha is learned from what was accepted.

It says nothing of prompts and first tokens. So they are QoServe's here, and come between the two:
drafts that keep a pace, then prompts, then the other drafts, which thus shrink under load as the
paper's do. Without a draft model it is QoServe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import final

from slos.core.types import Batch, Progress, View, require
from slos.planning.speculation import Acceptance, expected_tokens
from slos.policies.baselines import admit
from slos.policies.qoserve import QoServe

Left = tuple[int, int]  # tokens and blocks


@final
@dataclass(slots=True)
class AdaServe(QoServe):
    """budget: most tokens that decodes have in a step (theirs is profiled for each GPU, and
    not published)."""

    budget: int = 256
    _acceptance: Acceptance = field(init=False, repr=False, default_factory=Acceptance)

    def __post_init__(self) -> None:
        QoServe.__post_init__(self)
        require(self.budget >= 0, "budget", self.budget, "at least 0 tokens")

    def step(self, view: View) -> Batch:
        self._acceptance.learn(view.running)
        self._acceptance.ahead.clear()  # which is for promises, and there are none
        batch = QoServe.step(self, view)
        return replace(batch, repeat=1) if view.max_drafts else batch

    def fill(
        self, view: View, tokens: dict[str, int], queue: Sequence[Progress], left: Left
    ) -> int:
        decoding = sorted((p for p in view.running if p.id in tokens), key=lambda p: p.due)
        if not (view.max_drafts and decoding):
            return QoServe.fill(self, view, tokens, queue, left)
        context = sum(p.computed for p in decoding)
        size = min(sum(p.left for p in queue), left[0]) + len(tokens)
        end = view.now + self.roofline.time(size, 0, context)
        wanted = [p for p in decoding for _ in range(self.needed(p, end, view.max_drafts))]
        left = admit(view, tokens, queue, lengthened(view, tokens, wanted, left))
        spare = (decoding[0].due - view.now) / self.margin
        verified = sum(tokens[p.id] for p in decoding)
        for k in range(1, view.max_drafts + 1):  # the k-th of a draft is worth alpha^k of a token
            fits = self.roofline.fits(max(0.0, spare), k, context) - sum(tokens.values())
            fits, before = min(fits, left[0], self.budget - verified), left
            wanted = [p for p in decoding if tokens[p.id] == k]
            most, blocks = lengthened(view, tokens, wanted, (fits, left[1]))
            left = before[0] - (fits - most), blocks
            verified += fits - most
        for p in decoding:
            if tokens[p.id] > 1:
                self._acceptance.give(p, tokens[p.id] - 1)
        return left[1]

    def needed(self, p: Progress, end: float, most: int) -> int:
        """The shortest draft, at most `most`, that brings a decode to its pace by `end`."""
        tokens, drafts = (end - p.due) / p.tpot + 1, 0
        while drafts < most and expected_tokens(self._acceptance.alpha, drafts) < tokens:
            drafts += 1
        return drafts


def lengthened(view: View, tokens: dict[str, int], wanted: Sequence[Progress], left: Left) -> Left:
    """Give each of the `wanted` one draft token more, in turn, as far as it goes; what is left."""
    budget, free = left
    for p in wanted:
        if budget <= 0:
            break
        had = p.computed + tokens[p.id]
        need = view.blocks(had + 1) - view.blocks(had)
        if need <= free:
            tokens[p.id], budget, free = tokens[p.id] + 1, budget - 1, free - need
    return budget, free
