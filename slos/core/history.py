"""Predictors of lengths that learn from requests that have finished, and all predictors by name.

A class is a request's kind, and of each of its stages the lengths are learned apart: what is
expected of a request that has generated g tokens is told by those of its class that generated
more. Until one of them is known, all classes stand for it, and then Lindy's law: as much again.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from slos.core.lengths import UNKNOWN, MaxTokens, Noisy, Oracle, Told
from slos.core.types import LengthPredictor, Progress, Request, require

WINDOW = 512  # finished requests of a class that are remembered


@dataclass(slots=True)
class Window:
    """The newest lengths, and the same ascending."""

    newest: deque[int] = field(default_factory=deque)
    ascending: list[int] = field(default_factory=list)
    answers: dict[int, int] = field(default_factory=dict)  # by tokens generated, while none is new

    def add(self, length: int) -> None:
        if len(self.newest) == WINDOW:
            oldest = self.newest.popleft()
            del self.ascending[bisect_right(self.ascending, oldest) - 1]
        self.newest.append(length)
        insort(self.ascending, length)
        self.answers.clear()

    def longer(self, than: int) -> list[int]:
        return self.ascending[bisect_right(self.ascending, than) :]


class Learned(Told):
    """What `estimate` makes of the lengths of those that generated more."""

    def __init__(self, classes: bool = True) -> None:
        self._classes = classes
        self._own: dict[tuple[str, int], Window] = {}
        self._later: dict[tuple[str, int], Window] = {}
        self._all = Window()
        # by id, the stages that have ended and the context then
        self._ended: dict[str, list[tuple[tuple[str, int], int]]] = {}

    def estimate(self, longer: Sequence[int]) -> int:
        """The length of a request that is one of these, ascending and at least one."""
        raise NotImplementedError

    def in_stage(self, progress: Progress) -> int:
        g = progress.generated
        window = self._own.get((progress.kind, progress.stage), self._all)
        known = window.answers.get(g)
        if known is None:
            longer = window.longer(g)
            known = self.estimate(longer) - g if longer else g + UNKNOWN
            window.answers[g] = known
        return known

    def later(self, progress: Progress) -> int:
        window = self._later.get((progress.kind, progress.stage))
        return self.estimate(window.ascending) if window else UNKNOWN

    def ended(self, progress: Progress, last: bool) -> None:
        p, key = progress, (progress.kind, progress.stage)
        self._all.add(p.generated)
        if self._classes:
            self._own.setdefault(key, Window()).add(p.generated)
        before = self._ended.pop(p.id, [])
        if not last:
            self._ended[p.id] = [*before, (key, p.tokens)]
            return
        for key, tokens in before:
            self._later.setdefault(key, Window()).add(p.tokens - tokens)


class Mean(Learned):
    """The mean over all answers that went on for longer, whatever their class."""

    def __init__(self) -> None:
        super().__init__(classes=False)

    def estimate(self, longer: Sequence[int]) -> int:
        return -(-sum(longer) // len(longer))


class Quantile(Learned):
    """The empirical quantile of those of its class that went on for longer."""

    def __init__(self, level: float = 0.9) -> None:
        require(0 < level < 1, "level", level, "in (0, 1)")
        super().__init__()
        self._level = level

    def estimate(self, longer: Sequence[int]) -> int:
        return longer[int(self._level * len(longer))]


class ClassMean(Learned):
    def estimate(self, longer: Sequence[int]) -> int:
        return -(-sum(longer) // len(longer))


PREDICTORS: dict[str, Callable[..., LengthPredictor]] = {
    "oracle": Oracle,
    "noisy": Noisy,
    "max-tokens": lambda requests: MaxTokens(),
    "mean": lambda requests: Mean(),
    "quantile": lambda requests, level=0.9: Quantile(level),
    "class-mean": lambda requests: ClassMean(),
}


def make_predictor(text: str, requests: Sequence[Request] = ()) -> LengthPredictor:
    name, _, dial = text.partition(":")
    require(name in PREDICTORS, "predictor", name, f"one of {', '.join(PREDICTORS)}")
    return PREDICTORS[name](requests, *([float(dial)] if dial else []))


class Sampled(Quantile):
    """Each request at a level of its own."""

    def __init__(self, low: float = 0.0) -> None:
        super().__init__(0.5)
        self._low = low

    def in_stage(self, progress: Progress) -> int:
        from zlib import crc32
        g = progress.generated
        window = self._own.get((progress.kind, progress.stage), self._all)
        longer = window.longer(g)
        u = self._low + (1 - self._low) * crc32(progress.id.encode()) / 2**32
        return longer[int(u * len(longer))] - g if longer else g + UNKNOWN


PREDICTORS["sampled"] = lambda requests, low=0.0: Sampled(low)
