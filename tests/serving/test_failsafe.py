"""Guards of what may fail in an engine."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from slos.core.types import Progress
from slos.policies.predictors import MaxTokens, Quantile
from slos.serving.lengths import FailsafeLengths

ASKED = ("remaining", "after_stage", "at_least")
ANSWERS = {"a fraction": 0.5, "nothing": None, "below 0": -3, "no number": float("nan")}


def progress() -> Progress:
    p = Progress("r", 0.0, 100, 1.0, 0.1)
    p.limit = 150
    return p


def fails() -> int:
    raise KeyError("a mistake of a newcomer")


FAULTS: dict[str, Callable[[], Any]] = {name: lambda a=a: a for name, a in ANSWERS.items()}


@pytest.mark.parametrize("fault", [fails, *FAULTS.values()], ids=["raises", *FAULTS])
@pytest.mark.parametrize("method", ASKED)
def test_lengths_are_their_limits_once_a_predictor_fails(method: str, fault: Any, caplog) -> None:
    caplog.set_level(logging.ERROR)
    faulty = Quantile()
    setattr(faulty, method, lambda progress: fault())
    logging.getLogger("vllm.slos").addHandler(caplog.handler)
    lengths = FailsafeLengths(faulty)
    for _ in range(2):
        assert getattr(lengths, method)(progress()) == getattr(MaxTokens(), method)(progress())
    lengths.began(progress())
    lengths.ended(progress(), True)
    lengths.aborted(progress())
    logging.getLogger("vllm.slos").removeHandler(caplog.handler)
    messages = {r.getMessage() for r in caplog.records}
    said = "the length predictor Quantile failed: max_tokens is every length from now on"
    assert messages == {said} and lengths.remaining(progress()) == 50


def test_a_predictor_that_works_is_asked(caplog) -> None:
    lengths, plain = FailsafeLengths(Quantile()), Quantile()
    for method in ASKED:
        assert getattr(lengths, method)(progress()) == getattr(plain, method)(progress())
    assert not caplog.records
