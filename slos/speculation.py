"""Speculative decoding: what a draft length is worth, and how often drafts are accepted (paper, section 4.3).

alpha is the chance that a draft token is accepted given that those before it were; a step with s drafts yields
A(s) = 1 + alpha + ... + alpha^s = (1 - alpha^(s+1)) / (1 - alpha) tokens in expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from slos.roofline import Roofline
from slos.types import Progress, require


def expected_tokens(alpha: float, drafts: int) -> float:
    """A(s): tokens of a step with `drafts` draft tokens."""
    return float(drafts + 1) if alpha == 1 else (1 - alpha ** (drafts + 1)) / (1 - alpha)


def draft_length(
    roofline: Roofline, alpha: float, decodes: int, tokens: int, context: int, seconds: float, most: int
) -> int:
    """The draft length that gives `decodes` requests the most tokens per second, within a step of `seconds`.

    tokens: of the whole batch without drafts; context: KV tokens that it reads; most: drafts that the engine allows.
    Every request of the batch drafts alike: the next draft token of the one with the shortest draft is worth most.
    """
    best, best_rate = 0, expected_tokens(alpha, 0) / roofline.time(tokens, 0, context)
    for s in range(1, most + 1):
        time = roofline.time(tokens + decodes * s, s, context)
        if time > seconds:
            break
        if expected_tokens(alpha, s) / time > best_rate:
            best, best_rate = s, expected_tokens(alpha, s) / time
    return best


@dataclass(slots=True)
class Acceptance:
    """alpha, learned from what became of the drafts that were given out; `prior` counts as `weight` draft tokens."""

    prior: float = 0.7
    weight: float = 50.0
    _tried: float = field(init=False, repr=False, default=0.0)
    _accepted: float = field(init=False, repr=False, default=0.0)
    _given: dict[str, tuple[int, int, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(0 <= self.prior <= 1, "acceptance", self.prior, "in [0, 1]")

    @property
    def alpha(self) -> float:
        return (self._accepted + self.prior * self.weight) / (self._tried + self.weight)

    def give(self, p: Progress, drafts: int) -> None:
        """Remember that `p` verifies `drafts` drafts in this step."""
        self._given[p.id] = (p.stage, p.generated, drafts)

    def learn(self, running: Sequence[Progress]) -> None:
        """See how far the requests of the last step have come. A stage's end hides what was accepted: not counted."""
        for p in running if self._given else ():
            stage, before, drafts = self._given.get(p.id, (-1, 0, 0))
            if stage == p.stage and p.generated > before:
                accepted = p.generated - before - 1
                self._accepted += accepted
                self._tried += min(accepted + 1, drafts)
        self._given.clear()
