"""The two rules of pace: from what time on the tokens of a stage are counted.

Token n after a stage's first one is due at t0 + n * TPOT. By the paper's rule t0 is the deadline of
the first token, or its time if it came later: an early first token buys slack for the tokens after
it. By the clients' rule (`vllm bench serve --goodput`, GuideLLM and SGLang take the mean time per
token after the first one) t0 is the time of the first token, early or late. A stage that goes on
where another ends has no deadline for its first token: by the paper's rule it keeps the schedule,
by the clients' rule its tokens are counted from the last one before it.
"""

from __future__ import annotations

PAPER, CLIENT = "paper", "client"
RULES = {
    PAPER: "the paper's rule (token n by the first token's deadline + n x TPOT)",
    CLIENT: "the clients' rule (mean time per token after the first one)",
}
TOLERANCE = 1e-6  # seconds of lateness that count as rounding


def other(rule: str) -> str:
    """The other one of the two rules."""
    return CLIENT if rule == PAPER else PAPER


def start(t0: float, first: float, client: bool, goes_on: bool = False) -> float:
    """The start (s) of the schedule of a stage whose first token was due at `t0` and came at
    `first`. goes_on: it continues the stage before it, and `t0` stands."""
    moves = not goes_on and (client or first > t0 + TOLERANCE)
    return first if moves else t0


def continued(t0: float, generated: int, tpot: float, last: float, client: bool) -> float:
    """The time (s) from which a stage counts its tokens that goes on after another, whose schedule
    began at `t0` and whose last of `generated` tokens came at `last`."""
    return last if client else t0 + (generated - 1) * tpot
