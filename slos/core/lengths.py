"""Who knows what a request will still add to its context: predictors of lengths.

The same objects in the simulator and in the engine. Only `Oracle` and `Noisy` are shown the truth;
`slos.core.history` has those that learn from requests that have finished.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf
from random import Random
from typing import final

from slos.core.types import Progress, Request, require

UNKNOWN = 64  # output tokens of one of which nothing at all is known


class Unmoved:
    """One that learns nothing of what its host tells it, and is sure of nothing."""

    def at_least(self, progress: Progress) -> int:
        return 1

    def began(self, progress: Progress) -> None:
        pass

    def ended(self, progress: Progress, last: bool) -> None:
        pass

    def aborted(self, progress: Progress) -> None:
        pass


class Oracle(Unmoved):
    """Knows every length, as the paper assumes for every system that it compares."""

    def __init__(self, requests: Sequence[Request]) -> None:
        self._stages = {r.id: r.stages for r in requests}
        # of the context, from the beginning of each stage on
        self._growth: dict[str, list[int]] = {}
        for r in requests:
            growth, later = [], 0
            for stage in reversed(r.stages):
                growth.insert(0, stage.output + later)
                later = 0 if stage.wait else stage.prompt + growth[0]
            self._growth[r.id] = growth

    def remaining(self, progress: Progress) -> int:
        return self._growth[progress.id][progress.stage] - progress.generated

    def after_stage(self, progress: Progress) -> int:
        return (
            self._growth[progress.id][progress.stage]
            - self._stages[progress.id][progress.stage].output
        )

    def at_least(self, progress: Progress) -> int:
        return self._stages[progress.id][progress.stage].output - progress.generated


@final
class Noisy(Oracle):
    """An oracle that is off by a factor, the same for all of a request: log-normal with `sigma` and
    median 1.

    One that outlives what was said is said to be longer by half, again and again.
    """

    def __init__(self, requests: Sequence[Request], sigma: float = 0.5) -> None:
        require(sigma >= 0, "sigma", sigma, "at least 0")
        super().__init__(requests)
        self._factor = {r.id: exp(Random(r.id).gauss(0.0, sigma)) for r in requests}

    def remaining(self, progress: Progress) -> int:
        factor = self._factor[progress.id]
        said = factor * self._stages[progress.id][progress.stage].output
        while said < progress.generated + 1:
            said = 1.5 * said + 1
        left = round(said) - progress.generated + self.after_stage(progress)
        return int(max(1, min(left, progress.limit - progress.tokens)))

    def after_stage(self, progress: Progress) -> int:
        after = super().after_stage(progress)
        return max(1, round(self._factor[progress.id] * after)) if after else 0

    def at_least(self, progress: Progress) -> int:
        return 1


class Told(Unmoved):
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


@dataclass(frozen=True, slots=True)
class FirstToken(Unmoved):
    """What a prefill replica has to expect of a request: the first token, with which it leaves."""

    def remaining(self, progress: Progress) -> int:
        return 1

    def after_stage(self, progress: Progress) -> int:
        return 0
