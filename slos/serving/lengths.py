"""A guard around length predictors, which users may add: a mistake there must not end an engine."""

from __future__ import annotations

from operator import index
from typing import Any, final

from slos.core.types import LengthPredictor, Progress, require
from slos.policies.predictors import MaxTokens
from slos.serving.failsafe import logger


@final
class FailsafeLengths(LengthPredictor):
    """`predictor`, or `MaxTokens` for good from the first call at which it raises or answers with
    something else than a count of tokens: with lengths at their limits no promise fails for memory.
    """

    def __init__(self, predictor: LengthPredictor) -> None:
        self.predictor = predictor

    def remaining(self, progress: Progress) -> int:
        return self._call("remaining", 1, progress)

    def after_stage(self, progress: Progress) -> int:
        return self._call("after_stage", 0, progress)

    def at_least(self, progress: Progress) -> int:
        return self._call("at_least", 1, progress)

    def began(self, progress: Progress) -> None:
        self._call("began", None, progress)

    def ended(self, progress: Progress, last: bool) -> None:
        self._call("ended", None, progress, last)

    def aborted(self, progress: Progress) -> None:
        self._call("aborted", None, progress)

    def _call(self, method: str, least: int | None, *args: Any) -> Any:
        """least: the smallest answer that makes sense; None for a method without an answer."""
        try:
            answer = getattr(self.predictor, method)(*args)
            if least is None:
                return None
            tokens = index(answer)
            require(tokens >= least, f"tokens by {method}", tokens, f"at least {least}")
            return tokens
        except Exception:
            if isinstance(self.predictor, MaxTokens):
                raise
            said = "the length predictor %s failed: max_tokens is every length from now on"
            logger.exception(said, type(self.predictor).__name__)
            self.predictor = MaxTokens()
            return self._call(method, least, *args)
