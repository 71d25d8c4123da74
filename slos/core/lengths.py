"""Who knows what a request will still add to its context: predictors of lengths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from slos.core.types import Progress, Request


class Oracle:
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
class FirstToken:
    """What a prefill replica has to expect of a request: the first token, with which it leaves."""

    def remaining(self, progress: Progress) -> int:
        return 1

    def after_stage(self, progress: Progress) -> int:
        return 0
