"""Who knows what a request will still add to its context: the oracle, which is shown the truth.

`slos.policies.predictors` has those that know less, the same in the simulator and in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slos.core.types import Progress, Request


class Unmoved:
    """One that learns nothing of what its host tells it."""

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


@dataclass(frozen=True, slots=True)
class FirstToken(Unmoved):
    """What a prefill replica has to expect of a request: the first token, with which it leaves."""

    def remaining(self, progress: Progress) -> int:
        return 1

    def after_stage(self, progress: Progress) -> int:
        return 0
