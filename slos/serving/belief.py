"""What an engine believes of its hardware: how long steps take, learned from those that it has
run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from slos.core.roofline import Roofline
from slos.core.types import require
from slos.hardware.fit import OUTLIER, fit
from slos.hardware.profiles import Profile, save, scaled
from slos.serving.failsafe import logger
from slos.serving.settings import Settings

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
        """Fit the roofline to `steps`: a few milliseconds, but not in the engine's thread."""
        kept, roofline = steps, fit(steps, context=True, quick=True).roofline
        usual = [s for s in steps if s[3] <= OUTLIER * roofline.time(*s[:3])]
        if len(steps) > len(usual) >= FIRST // 2:
            kept, roofline = usual, fit(usual, context=True, quick=True).roofline
        # Least squares of relative errors leans to the fast side: all steps together must take as
        # long as they took.
        took, said = sum(s[3] for s in kept), sum(roofline.time(*s[:3]) for s in kept)
        roofline = scaled(roofline, took / said)
        ratios = [s[3] / roofline.time(*s[:3]) for s in steps]
        self.margin, self.roofline = max(1.0, float(np.quantile(ratios, self.caution))), roofline


class Belief:
    """Steps in flight, what is `learned` of those that ended, and the `roofline` that is believed
    now: deadlines of requests to come are set by it.

    profile_of: the profile of what was learned from so many steps, to be saved.
    """

    def __init__(self, settings: Settings, profile_of: Callable[[Learned, int], Profile]) -> None:
        self.settings, self.profile_of = settings, profile_of
        start = settings.start
        self.roofline: Roofline | None = start and start.roofline
        self.learned = Learned(self.roofline, settings.caution, start.margin if start else 1.0)
        self.fitter = ThreadPoolExecutor(1, "slos-fit")
        # start, tokens, draft steps, context of steps
        self.flying: deque[tuple[float, int, int, int]] = deque()
        self.last_end, self.busy = 0.0, False

    def began(self, start: float, out: Any, requests: Mapping[str, Any]) -> None:
        """A step was formed from `start` on; out: vLLM's, of `requests`, perhaps of none."""
        ran = out.num_scheduled_tokens
        if ran:
            drafts = max(map(len, out.scheduled_spec_decode_tokens.values()), default=0)
            context = sum(requests[id].num_computed_tokens - n for id, n in ran.items())
            begin = self.last_end if self.busy and not self.flying else start
            self.flying.append((begin, out.total_num_scheduled_tokens, drafts, context))
        self.busy = bool(ran)

    def ended(self, now: float) -> Measured:
        """The oldest step in flight, which has ended."""
        begin, tokens, drafts, context = self.flying.popleft()
        seconds, self.last_end = now - max(begin, self.last_end), now
        return tokens, drafts, context, seconds

    def expected(self, step: Measured) -> float | None:
        """Seconds that it should have taken, None where nothing is believed."""
        return self.roofline and self.roofline.time(*step[:3])

    def flown(self, now: float) -> float:
        """When the steps in flight will have ended, each of which begins with the end of the one
        before it."""
        if not self.roofline or not self.flying:
            return now
        end = self.last_end
        for begin, *step in self.flying:
            end = max(begin, end) + self.roofline.time(*step)
        return max(now, end)

    def learn(self, step: Measured) -> None:
        if self.settings.learn and self.learned.observe(*step):
            self.fitter.submit(self._refit, self.learned.steps)

    def _refit(self, steps: list[Measured]) -> None:
        """In a thread of its own: learn from these steps, and keep what is known of this engine."""
        try:
            self.learned.refit(steps)
            if self.settings.save:
                save(self.profile_of(self.learned, len(steps)), self.settings.save)
        except Exception:
            logger.exception("the roofline could not be fitted or saved: the last one stays")

    def news(self) -> Roofline | None:
        """Believe what was learned by now: the roofline to plan with, if it is another one."""
        # in this order, as the fitter may write both meanwhile
        roofline = self.learned.roofline
        if roofline is self.roofline:
            return None
        self.roofline = roofline
        return self.learned.cautious
