"""Workloads for a real engine of any speed: objectives and loads are in steps of that engine,
lengths are small. The pace is counted by the clients' rule, as a server's is."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.pace import CLIENT
from slos.core.types import SLO, Request, Stage
from workloads import build

TIERS = {"interactive": (4.0, 30.0), "batch": (16.0, 75.0), "one": (8.0, 30.0)}
"""TPOT and TTFT of a tier, in steps of 16 decodes of the engine at hand, so that they make sense on
any device. A TTFT is far shorter than a run, or all could come at once and be in time."""


class Lengths(NamedTuple):
    """What becomes of the scenarios' lengths: divided by `shrink`, documents by half of that, and
    cut, in tokens."""

    shrink: float
    prompt: int
    output: int


SMALL = Lengths(4.0, 900, 100)  # for a small model on a CPU
WHOLE = Lengths(1.0, 1800, 100)  # for the paper's on a GPU; answers for runs of seconds
EASY = SLO(tpot=1.0, ttft=60.0)  # of what is sent to calibrate


def bursty(
    rate: float, num_requests: int, seed: int, step: float, lengths: Lengths = SMALL
) -> list[Request]:
    """Two tiers: short interactive chats, and long documents; arrivals of the coding
    trace, in bursts. step: seconds of 16 decodes, the unit of `TIERS`."""
    arrivals = [r.arrival for r in build("coding", rate, num_requests, seed).requests]
    chats = build("chatbot", 1.0, num_requests, seed).requests
    documents = build("summarization", 1.0, num_requests, seed).requests
    half = lengths._replace(shrink=max(1.0, lengths.shrink / 2))
    short = np.random.default_rng(seed).random(num_requests) < 0.5
    return [
        _shrunk(i, t, "interactive", lengths, chats[i], step) if short[i]
        else _shrunk(i, t, "batch", half, documents[i], step)
        for i, t in enumerate(arrivals)
    ]  # fmt: skip


def steady(
    rate: float, num_requests: int, seed: int, step: float, lengths: Lengths = SMALL
) -> list[Request]:
    """One tier and Poisson arrivals: nothing for a planner to gain, nothing that it may lose."""
    documents = build("summarization", rate, num_requests, seed).requests
    return [_shrunk(i, r.arrival, "one", lengths, r, step) for i, r in enumerate(documents)]


def _shrunk(
    i: int, arrival: float, tier: str, lengths: Lengths, of: Request, step: float
) -> Request:
    tpot, ttft = (steps * step for steps in TIERS[tier])
    prompt, output = (int(n / lengths.shrink) for n in (of.prompt, of.output))
    prompt, output = min(max(1, prompt), lengths.prompt), min(max(2, output), lengths.output)
    stage = Stage(prompt, output, SLO(tpot=tpot, ttft=ttft, rule=CLIENT))
    return Request(f"{tier}-{i:04d}", arrival, (stage,), kind=tier)


WORKLOADS = {"bursty": bursty, "steady": steady}


def alone() -> list[Request]:
    """One short request at a time."""
    return [Request(f"c{i}", 0.15 * i, (Stage(64, 4, EASY),)) for i in range(16)]


def ramp(step: float, count: int = 60, longest: int = 600) -> list[Request]:
    """Requests of random lengths that come faster and faster, from one in 16 steps to one in 2.
    longest: tokens of a prompt."""
    rng = np.random.default_rng(0)
    arrivals = np.cumsum(np.linspace(16, 2, count) * step).tolist()
    sizes = rng.integers(8, (longest, 64), (count, 2)).tolist()
    stages = [Stage(prompt, output, EASY) for prompt, output in sizes]
    each = enumerate(zip(arrivals, stages, strict=True))
    return [Request(f"r{i}", t, (stage,)) for i, (t, stage) in each]
