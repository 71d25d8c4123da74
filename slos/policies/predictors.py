"""Predictors of lengths by name: those that learn from requests that are served, and others.

A class is a request's kind, and the stages of its requests are learned apart. What is expected of a
request that has generated g tokens is told by those of its class that generated more. Until one of
the class has ended all classes stand for it, and at first nothing does. Those that still go on
count for what they came to: the first to end are the short ones, and by them alone an engine that
fills up for the first time promises memory that it does not have.

What is predicted is planned with as if it were true, and anew at every step; a request that
outlives what was expected of it is then like one that is longer. Nothing else is reserved. A low
quantile carries most: the look ahead lets requests of which the same is expected end, and be
largest, at one moment, while their true ends are scattered and give blocks back before. Far beyond
capacity, where lost blocks cost more, a higher one does.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from inspect import signature
from math import ceil, exp, inf, log
from random import Random
from typing import final

from slos.core.types import LengthPredictor, Progress, Request, require
from slos.policies.oracle import Oracle

UNKNOWN = 64  # output tokens of one of which nothing at all is known
WINDOW = 512  # requests of a class that are remembered
LEVEL = 0.25
SURE = 0.02  # the share of requests that may end before what is called sure has come
ROUNDING = 1e-9


@final
class Noisy(Oracle):
    """An oracle that is off by a factor, the same for all of a request: log-normal with `sigma` and
    median 1. One that outlives what was said is said to be longer by half, again and again."""

    def __init__(self, requests: Sequence[Request], sigma: float = 0.5) -> None:
        require(sigma >= 0, "sigma", sigma, "at least 0")
        super().__init__(requests)
        self._factor = {r.id: exp(Random(r.id).gauss(0.0, sigma)) for r in requests}

    def remaining(self, progress: Progress) -> int:
        said = self._factor[progress.id] * self._stages[progress.id][progress.stage][0]
        while said < progress.generated + 1:
            said = 1.5 * said + 1
        left = round(said) - progress.generated + self._later(progress)
        return int(max(1, min(left, progress.limit - progress.tokens)))

    def after_stage(self, progress: Progress) -> int:
        return min(self._later(progress), self.remaining(progress) - 1)

    def _later(self, progress: Progress) -> int:
        """What would follow this stage if there were no limit."""
        after = super().after_stage(progress)
        return max(1, round(self._factor[progress.id] * after)) if after else 0

    def at_least(self, progress: Progress) -> int:
        return 1


class Told(LengthPredictor):
    """What the client says. Where it says nothing, or less than came, it is `in_stage`, the output
    tokens still to come in this stage, and `later`, what follows it; never beyond the request's
    limit."""

    def remaining(self, progress: Progress) -> int:
        p = progress
        left = p.told - p.tokens
        if left <= 0:
            left = self.in_stage(p) + (self.later(p) if p.later_tpot < inf else 0)
        return int(max(1, min(left, p.limit - p.tokens)))

    def after_stage(self, progress: Progress) -> int:
        p, left = progress, self.remaining(progress)
        if p.told_stage:
            return max(0, left - max(1, p.told_stage - p.generated))
        return min(left - 1, left // 2 if p.told > p.tokens else self.later(p))

    def at_least(self, progress: Progress) -> int:
        p = progress
        alone = p.told > p.tokens and p.later_tpot == inf
        said = p.told_stage - p.generated if p.told_stage else alone * (p.told - p.tokens)
        return max(1, said) if said else self.sure_in_stage(p)

    def in_stage(self, progress: Progress) -> int:
        raise NotImplementedError

    def sure_in_stage(self, progress: Progress) -> int:
        return 1

    def later(self, progress: Progress) -> int:
        raise NotImplementedError


@final
class MaxTokens(Told):
    """Every request grows to its limit: no promise fails for memory, and most of it lies idle."""

    def in_stage(self, progress: Progress) -> int:
        left = progress.limit - progress.tokens
        return int(left) if left < inf else progress.generated + UNKNOWN

    def later(self, progress: Progress) -> int:
        return self.in_stage(progress) // 2


@dataclass(slots=True, eq=False)
class Seen:
    """A request in a stage: its `progress` as long as that goes on, then the output tokens, and
    whether it ended by itself."""

    progress: Progress | None
    length: int = 0
    whole: bool = False

    def over(self, length: int, whole: bool) -> None:
        self.progress, self.length, self.whole = None, length, whole


@dataclass(slots=True)
class Window:
    """The newest of a class that began to answer, and what share of them ends within so many
    tokens: the product-limit estimate (Kaplan and Meier, J. Am. Stat. Assoc. 53, 1958).

    Of one that goes on, or was aborted, it is known that it is longer. Beyond the longest one in
    `pace` tokens ends.
    """

    newest: deque[Seen] = field(default_factory=lambda: deque(maxlen=WINDOW))
    learned: bool = False  # whether one of the class has ended
    ascending: list[int] = field(default_factory=list)
    within: list[float] = field(default_factory=list)  # the share that ends by each of these
    pace: float = 0.0
    sure: int = 1  # to which all but a share of SURE come
    known: dict[int, int] = field(default_factory=dict)  # answers until the next one ends

    def ended(self) -> None:
        self.learned = True
        self.known.clear()

    def look(self) -> None:
        """Look at all anew."""
        seen = sorted(
            (s.length, not s.whole) if s.progress is None else (s.progress.generated, True)
            for s in self.newest
        )
        longer, self.within = 1.0, []
        for left, (_, goes_on) in zip(range(len(seen), 0, -1), seen, strict=True):
            longer *= 1.0 if goes_on else (left - 1) / left
            self.within.append(1.0 - longer)
        self.ascending = [length for length, _ in seen]
        self.pace = sum(self.ascending) / max(1, sum(not goes_on for _, goes_on in seen))
        some = len(seen) - ceil(1 / SURE)  # of which as many are known to be as long
        at = min(bisect_right(self.within, SURE), some)
        self.sure = self.ascending[at] if at >= 0 else 1


class Learned(Told):
    """What `estimate` makes of the lengths of those that generated more."""

    classes = True  # whether they are told apart

    def __init__(self) -> None:
        self._own: defaultdict[tuple[str, int], Window] = defaultdict(Window)
        self._later: defaultdict[tuple[str, int], Window] = defaultdict(Window)
        self._all = Window()
        self._begun: dict[str, Seen] = {}  # by id
        # by id, the stages that have ended, and the context then
        self._ended: dict[str, list[tuple[tuple[str, int], int]]] = {}

    def estimate(self, window: Window, first: int, g: int) -> float:
        """The length of a request of a window with g tokens, which those from the `first` on have
        passed."""
        raise NotImplementedError

    def in_stage(self, progress: Progress) -> int:
        g = progress.generated
        return self._expected(self._window(progress), g) - g

    def sure_in_stage(self, progress: Progress) -> int:
        window = self._window(progress)
        return max(1, window.sure - progress.generated) if window.learned else 1

    def later(self, progress: Progress) -> int:
        window = self._later.get((progress.kind, progress.stage))
        return self._expected(window, 0) if window else UNKNOWN

    def _window(self, progress: Progress) -> Window:
        """Who tell of its stage."""
        own = self._own.get((progress.kind, progress.stage), self._all)
        return own if own.learned else self._all

    def _expected(self, window: Window, g: int) -> int:
        """The length of one that has generated g tokens."""
        if g not in window.known:
            if not window.known:
                window.look()
            first = bisect_right(window.ascending, g)
            said = self.estimate(window, first, g) if window.learned else 2 * g + UNKNOWN
            window.known[g] = max(g + 1, ceil(said - ROUNDING))
        return window.known[g]

    def began(self, progress: Progress) -> None:
        seen = self._begun[progress.id] = Seen(progress)
        self._all.newest.append(seen)
        if self.classes:
            self._own[progress.kind, progress.stage].newest.append(seen)

    def ended(self, progress: Progress, last: bool) -> None:
        p, key = progress, (progress.kind, progress.stage)
        if p.id not in self._begun:
            self.began(p)
        self._begun.pop(p.id).over(p.generated, whole=True)
        self._all.ended()
        if self.classes:
            self._own[key].ended()
        before = self._ended.pop(p.id, [])
        if not last:
            self._ended[p.id] = [*before, (key, p.tokens)]
            return
        for key, tokens in before:
            self._later[key].newest.append(Seen(None, p.tokens - tokens, whole=True))
            self._later[key].ended()

    def aborted(self, progress: Progress) -> None:
        self._ended.pop(progress.id, None)
        if seen := self._begun.pop(progress.id, None):
            seen.over(progress.generated, whole=False)


@final
class Mean(Learned):
    """The mean of all that went on for longer, whatever their class."""

    classes = False

    def estimate(self, window: Window, first: int, g: int) -> float:
        share = alone = 1.0 - (window.within[first - 1] if first else 0.0)
        if not share:
            return g + window.pace
        tokens, last = 0.0, g
        for length, within in zip(window.ascending[first:], window.within[first:], strict=True):
            tokens += share * (length - last)
            last, share = length, 1.0 - within
        return g + (tokens + share * window.pace) / alone


@final
class Quantile(Learned):
    """The quantile of those of its class that went on for longer. level: in (0, 1)."""

    def __init__(self, level: float = LEVEL) -> None:
        require(0 < level < 1, "level", level, "in (0, 1)")
        super().__init__()
        self._level = level

    def estimate(self, window: Window, first: int, g: int) -> float:
        before = window.within[first - 1] if first else 0.0
        asked = before + self._level * (1.0 - before)
        at = bisect_right(window.within, asked + ROUNDING, first)
        if at < len(window.within):
            return window.ascending[at]
        if first == at:
            return g - window.pace * log(1.0 - self._level)
        return window.ascending[-1] + window.pace * log((1.0 - window.within[-1]) / (1.0 - asked))


TRUE: dict[str, Callable[..., LengthPredictor]] = {"oracle": Oracle, "noisy": Noisy}
"""Those that are shown the truth: in a simulation only."""
BLIND: dict[str, Callable[..., LengthPredictor]] = {
    "quantile": Quantile,
    "mean": Mean,
    "max-tokens": MaxTokens,
}


def make_predictor(text: str, requests: Sequence[Request] | None = None) -> LengthPredictor:
    """A fresh predictor, named as in "mean", or with its dial as in "quantile:0.9".

    requests: the truth, without it those that need it are unknown. Raises ValueError for unknown
    names and dials that are none.
    """
    name, colon, dial = text.partition(":")
    known = BLIND if requests is None else TRUE | BLIND
    require(name in known, "predictor", name, f"one of {', '.join(known)}")
    truth = () if name in BLIND else (requests,)
    dials = list(signature(known[name]).parameters)[len(truth) :]
    require(bool(dials) or not colon, "predictor", text, f"without a dial: {name} has none")
    try:
        return known[name](*truth, *([float(dial)] if colon else []))
    except ValueError as error:
        raise ValueError(f"predictor {text!r}: {error}") from None
