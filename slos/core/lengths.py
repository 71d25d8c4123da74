"""Who knows what a request will still add to its context: the oracle, which is shown the truth.

`slos.policies.predictors` has those that know less, the same in the simulator and in the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slos.core.types import LengthPredictor, Progress, Request


@dataclass(frozen=True, slots=True)
class Fixed(LengthPredictor):
    """Every request has so many `tokens` to go, all of them in its present stage."""

    tokens: int

    def remaining(self, progress: Progress) -> int:
        return self.tokens

    def after_stage(self, progress: Progress) -> int:
        return 0


class Oracle(LengthPredictor):
    """Knows every length, as the paper assumes for every system that it compares."""

    def __init__(self, requests: Sequence[Request]) -> None:
        # the output of each stage, and what follows it without a wait
        self._stages: dict[str, list[tuple[int, int]]] = {}
        for r in requests:
            stages, later = [], 0
            for stage in reversed(r.stages):
                stages.insert(0, (stage.output, later))
                later = 0 if stage.wait else stage.prompt + stage.output + later
            self._stages[r.id] = stages

    def remaining(self, progress: Progress) -> int:
        output, later = self._stages[progress.id][progress.stage]
        return output + later - progress.generated

    def after_stage(self, progress: Progress) -> int:
        return self._stages[progress.id][progress.stage][1]

    def at_least(self, progress: Progress) -> int:
        return self._stages[progress.id][progress.stage][0] - progress.generated
