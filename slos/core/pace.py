"""The two rules of pace: from what time on the tokens of a stage are counted.

Token n after a stage's first one is due at t0 + n * TPOT. By the paper's rule t0 is the deadline of
the first token, or its time if it came later: an early first token buys slack for the tokens after
it. By the clients' rule (`vllm bench serve --goodput`, GuideLLM and SGLang take the mean time per
token after the first one) t0 is the time of the first token, early or late.
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
    `first`. goes_on: it continues the stage before it, whose schedule the paper's rule keeps.
    """
    if client or (not goes_on and first > t0 + TOLERANCE):
        return first
    return t0
