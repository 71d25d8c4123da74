"""Predictors of how many tokens a request will still add to its context: the oracle, which knows.

`slos.policies.predictors` has those that know less; they serve both the simulator and the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slos.core.types import LengthPredictor, Progress, Request


@dataclass(frozen=True, slots=True)
class Fixed(LengthPredictor):
    """Every request has `tokens` output tokens to go, all of them in its current stage."""

    tokens: int

    def remaining(self, progress: Progress) -> int:
        return self.tokens

    def after_stage(self, progress: Progress) -> int:
        return 0


class Oracle(LengthPredictor):
    """Knows every length, as the paper assumes for every system in its comparison."""

    def __init__(self, requests: Sequence[Request]) -> None:
        # for each stage: its output tokens, and the tokens that follow it without a wait
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
