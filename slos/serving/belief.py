"""What an engine believes of its hardware: how long steps take, from those that it has run."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slos.core.roofline import Roofline
from slos.hardware.profiles import Profile, profile, save
from slos.serving.beside import logger
from slos.serving.calibration import Learned, Measured
from slos.serving.settings import Settings


class Belief:
    """Steps in flight, what is `learned` of those that ended, and the `roofline` that is believed
    now: deadlines of requests to come are set by it.

    profile_of: the profile of what was learned from so many steps, to be saved.
    """

    def __init__(self, settings: Settings, profile_of: Callable[[Learned, int], Profile]) -> None:
        self.settings, self.profile_of = settings, profile_of
        start = profile(settings.profile) if settings.profile else None
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
        """When the steps in flight will have ended."""
        if self.roofline:
            for begin, *step in self.flying:
                now = max(now, begin + self.roofline.time(*step))
        return now

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
        roofline, cautious = self.learned.roofline, self.learned.cautious
        if roofline is self.roofline:
            return None
        self.roofline = roofline
        return cautious
