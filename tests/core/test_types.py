"""The contracts: what is refused, and the few sums that records do."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from slos.core.types import SLO, Progress, Request, Stage, View
from slos.policies.oracle import Oracle

PACE = SLO(tpot=0.1, slowdown=3.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SLO(tpot=0.0), "tpot = 0.0 must be positive; give seconds per output token"),
        (lambda: SLO(tpot=float("nan")), "tpot = nan"),
        (lambda: SLO(tpot=0.1, ttft=-1.0), "ttft = -1.0 must be positive"),
        (lambda: SLO(tpot=0.1, slowdown=0.5), "slowdown = 0.5 must be at least 1"),
        (lambda: SLO(tpot=0.1, ttft=1.0, slowdown=3.0), "give only one"),
        (lambda: Stage(-1, 1, PACE), "prompt = -1"),
        (lambda: Stage(1, 0, PACE), "output = 0 must be at least 1 token"),
        (lambda: Stage(1, 1, PACE, wait=float("inf")), "wait = inf"),
        (lambda: Request("r", -1.0, (Stage(1, 1, PACE),)), "r: arrival = -1.0"),
        (lambda: Request("r", 0.0, ()), "r: stages"),
        (lambda: Request("r", 0.0, (Stage(0, 1, PACE),)), "r: first prompt = 0"),
        (
            lambda: Request("r", 0.0, (Stage(1, 1, PACE, wait=1.0),)),
            "r: first wait = 1.0 must be 0; move the arrival",
        ),
        (lambda: Request("r", 0.0, (Stage(1, 1, PACE),), value=0.0), "r: value = 0.0"),
        (
            lambda: Request("r", 0.0, (Stage(1, 1, PACE),), prefix=(("system", 0),)),
            "r: tokens of a prefix = 0 must be at least 1",
        ),
    ],
)
def test_what_is_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        make()
    assert message in str(error.value)


def test_first_token() -> None:
    assert SLO(tpot=0.1, ttft=2.0).first_token(7.0) == 2.0
    assert SLO(tpot=0.1, slowdown=3.0).first_token(7.0) == 21.0
    assert SLO(tpot=0.1).first_token(7.0) == 0.1


def test_records() -> None:
    p = Progress("r", 0.0, tokens=10, t0=1.0, tpot=0.5, generated=4, computed=9)
    assert p.left == 1 and p.due == 3.0
    view = View(0.0, [], [p], free_blocks=1, total_blocks=2, block_size=4)
    assert [view.blocks(n) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
    with pytest.raises(FrozenInstanceError):
        view.now = 1.0  # type: ignore[misc]
    r = Request("r", 0.0, (Stage(5, 2, PACE), Stage(0, 3, PACE)))
    assert (r.prompt, r.output, r.context) == (5, 5, 10)


def test_oracle_counts_until_the_blocks_come_back() -> None:
    # Thinking, response, then a tool takes the blocks away, then one more round with a turn behind
    # it.
    stages = (Stage(5, 20, PACE), Stage(0, 7, PACE), Stage(3, 4, PACE, wait=1.0), Stage(6, 2, PACE))
    oracle = Oracle([Request("r", 0.0, stages)])
    p = Progress("r", 0.0, 5, 0.0, 0.1)
    for stage, generated, remaining in (
        (0, 0, 27),
        (0, 5, 22),
        (1, 0, 7),
        (1, 6, 1),
        (2, 0, 12),
        (3, 1, 1),
    ):
        p.stage, p.generated = stage, generated
        assert oracle.remaining(p) == remaining
    after = []
    for p.stage in range(4):
        after.append(oracle.after_stage(p))
    assert after == [7, 0, 8, 0]


def test_what_two_share_is_free_when_both_are_gone() -> None:
    a, b = (Progress(i, 0.0, 16, 9.0, 0.1, computed=16, shared=3) for i in "ab")
    shown = View(0.0, [], [a, b], 5, 10, 4)
    assert (shown.frees(a), shown.frees(a, b)) == (1, 5)
