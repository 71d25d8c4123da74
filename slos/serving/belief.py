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
FEW = 8  # of a size that suffice without those of an idle engine
SHORT = 0.4  # of the median of its size: too little for a step
KEPT = 48  # steps kept of each
TOGETHER = 16  # most steps whose time is shared out
Measured = tuple[int, int, int, float]
"""Tokens, draft steps, context tokens, and seconds of one executed step."""


@dataclass(slots=True)
class Learned:
    """`roofline`, what is typical: from a profile, or None until enough steps were observed.

    Kept are the latest steps of every batch size, so that a long run of small batches does not push
    out the few large ones. Those that an idle engine began with count where there are few others:
    nothing hides then how long they take to launch. caution: share of the steps that must not take
    longer than `cautious` says.
    """

    roofline: Roofline | None = None
    caution: float = 0.75
    margin: float = 1.0
    _seen: int = field(init=False, default=0)
    _next: int = field(init=False, default=FIRST)
    # by size, and whether the engine was idle before
    _steps: dict[tuple[int, bool], deque[Measured]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(0 < self.caution < 1, "caution", self.caution, "in (0, 1)")

    @property
    def cautious(self) -> Roofline | None:
        """The roofline to plan with: `roofline`, slower by what steps of the past took longer."""
        return scaled(self.roofline, self.margin) if self.roofline else None

    @property
    def steps(self) -> list[Measured]:
        """What a fit rests on. One that took far less than its like, since the one before it was
        seen to end late, is not among them: its relative error would outweigh all others."""
        busy = {
            size for (size, idle), alike in self._steps.items() if not idle and len(alike) >= FEW
        }
        found = []
        for (size, idle), alike in self._steps.items():
            if not (idle and size in busy):
                least = SHORT * float(np.median([step[3] for step in alike]))
                found += [step for step in alike if step[3] >= least]
        return found

    def observe(self, step: Measured, idle: bool = False) -> bool:
        """Take one executed step into account; True when it is time to `refit`."""
        tokens, _, _, seconds = step
        if seconds <= 0 or tokens < 1:
            return False
        self._steps.setdefault((tokens.bit_length(), idle), deque(maxlen=KEPT)).append(step)
        self._seen += 1
        if self._seen < self._next or len({size for size, _ in self._steps}) < SIZES:
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


def shared_out(steps: list[Measured], roofline: Roofline | None) -> list[Measured]:
    """The same steps, the seconds of all divided among them as `roofline` says, if there is one."""
    if not roofline or len(steps) == 1:
        return steps
    said = [roofline.time(*s[:3]) for s in steps]
    share = sum(s[3] for s in steps) / sum(said)
    return [(*s[:3], share * x) for s, x in zip(steps, said, strict=True)]


@dataclass(slots=True)
class Flying:
    """A step in flight: `idle` if the engine was before it; prompts: whether it has any."""

    begin: float
    idle: bool
    prompts: bool
    tokens: int
    draft_steps: int
    context: int

    @property
    def work(self) -> tuple[int, int, int]:
        return self.tokens, self.draft_steps, self.context


class Belief:
    """Steps in flight, what is `learned` of those that ended, and the `roofline` that is believed
    now: deadlines of requests to come are set by it.

    vLLM sees that a step has ended once the next one is launched. For decodes that is at once, as
    one CUDA graph; for a prompt it takes tens of milliseconds, by which the step before it seems
    longer and its own shorter. So the time of such steps together is what is measured, and shared
    out among them as is believed.

    profile_of: the profile of what was learned from so many steps, to be saved.
    """

    def __init__(self, settings: Settings, profile_of: Callable[[Learned, int], Profile]) -> None:
        self.settings, self.profile_of = settings, profile_of
        start = settings.start
        self.roofline: Roofline | None = start and start.roofline
        self.learned = Learned(self.roofline, settings.caution, start.margin if start else 1.0)
        self.fitter = ThreadPoolExecutor(1, "slos-fit")
        self.flying: deque[Flying] = deque()
        self.together: list[Measured] = []  # steps whose ends are not told apart yet
        self.idle = False  # before the first of them
        self.last_end, self.busy = 0.0, False

    def began(self, start: float, out: Any, requests: Mapping[str, Any]) -> None:
        """A step was formed from `start` on; out: vLLM's, of `requests`, perhaps of none."""
        ran = out.num_scheduled_tokens
        if ran:
            lengths = [*map(len, out.scheduled_spec_decode_tokens.values())]
            context = sum(requests[id].num_computed_tokens - n for id, n in ran.items())
            tokens, idle = out.total_num_scheduled_tokens, not self.busy and not self.flying
            begin = start if idle or self.flying else self.last_end
            work = tokens, max(lengths, default=0), context
            self.flying.append(Flying(begin, idle, tokens > len(ran) + sum(lengths), *work))
        self.busy = bool(ran)

    def ended(self, now: float) -> Measured:
        """The oldest step in flight, which has ended."""
        step = self.flying.popleft()
        seconds, self.last_end = now - max(step.begin, self.last_end), now
        if not self.together:
            self.idle = step.idle
        return *step.work, seconds

    def expected(self, step: Measured) -> float | None:
        """Seconds that it should have taken, None where nothing is believed."""
        return self.roofline and self.roofline.time(*step[:3])

    def flown(self, now: float) -> float:
        """When the steps in flight will have ended, each of which begins with the end of the one
        before it."""
        if not self.roofline or not self.flying:
            return now
        end = self.last_end
        for step in self.flying:
            end = max(step.begin, end) + self.roofline.time(*step.work)
        return max(now, end)

    def learn(self, step: Measured) -> None:
        """Take the step that has just ended into account, once it is told apart from the next."""
        if not self.settings.learn:
            return
        self.together.append(step)
        if self.flying and self.flying[0].prompts and len(self.together) < TOGETHER:
            return
        steps, self.together = shared_out(self.together, self.roofline), []
        due = [self.learned.observe(s, self.idle and i == 0) for i, s in enumerate(steps)]
        if any(due):
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
