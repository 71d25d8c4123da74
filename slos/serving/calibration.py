"""A roofline that is learned from the steps of a running engine."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from slos.core.roofline import Roofline, scaled
from slos.core.types import require
from slos.hardware.fit import OUTLIER, fit

FIRST, EVERY = 24, 128  # steps until the first fit, which doubles from fit to fit, and the most
# Batch sizes, by powers of two, without which no fit can tell a token's cost from a step's.
SIZES = 3
KEPT = 48  # steps kept of each
Measured = tuple[int, int, int, float]
"""Tokens, draft steps, context tokens, and seconds of one executed step."""


@dataclass(slots=True)
class Learned:
    """`roofline`, what is typical: from a profile, or None until enough steps were observed.

    Kept are the latest steps of every batch size, so that a long run of small batches does not push
    out the few large ones. caution: share of the steps that must not take longer than `cautious`
    says.
    """

    roofline: Roofline | None = None
    caution: float = 0.75
    margin: float = 1.0
    _seen: int = field(init=False, default=0)
    _next: int = field(init=False, default=FIRST)
    _steps: dict[int, deque[Measured]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(0 < self.caution < 1, "caution", self.caution, "in (0, 1)")

    @property
    def cautious(self) -> Roofline | None:
        """The roofline to plan with: `roofline`, slower by what steps of the past took longer."""
        return scaled(self.roofline, self.margin) if self.roofline else None

    @property
    def steps(self) -> list[Measured]:
        """What a fit rests on."""
        return [step for steps in self._steps.values() for step in steps]

    def observe(self, tokens: int, draft_steps: int, context: int, seconds: float) -> bool:
        """Take one executed step into account; True when it is time to `refit`."""
        if seconds <= 0 or tokens < 1:
            return False
        alike = self._steps.setdefault(tokens.bit_length(), deque(maxlen=KEPT))
        alike.append((tokens, draft_steps, context, seconds))
        self._seen += 1
        if self._seen < self._next or len(self._steps) < SIZES:
            return False
        self._next = self._seen + min(self._next, EVERY)
        return True

    def refit(self, steps: list[Measured]) -> None:
        """Fit the roofline to `steps`: some ten milliseconds, so not in the engine's thread."""
        kept, roofline = steps, fit(steps, context=True).roofline
        usual = [s for s in steps if s[3] <= OUTLIER * roofline.time(*s[:3])]
        if len(steps) > len(usual) >= FIRST // 2:
            kept, roofline = usual, fit(usual, context=True).roofline
        # Least squares of relative errors leans to the fast side: all steps together must take as
        # long as they took.
        took, said = sum(s[3] for s in kept), sum(roofline.time(*s[:3]) for s in kept)
        roofline = scaled(roofline, took / said)
        ratios = [s[3] / roofline.time(*s[:3]) for s in steps]
        self.margin, self.roofline = max(1.0, float(np.quantile(ratios, self.caution))), roofline
