"""Attainment, and what it is told by: a request in service as its host knows it, and what became of
it.

Attainment is by the paper's rule: the first token of every stage within its TTFT objective, and
token n after it by t0 + n * TPOT, looked at every 10 tokens and at the end, where t0 is the first
token's deadline. Beside it the rule that clients use: TTFT, and the mean time per token from the
first one on. A declined request attains neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf
from random import Random
from typing import Any

from slos.core.roofline import Roofline
from slos.core.types import Progress, Request, require

# output tokens between two looks at the pace, because speculation emits several at once
CHECK_EVERY = 10
TOLERANCE = 1e-6  # seconds of lateness forgiven to rounding


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Seconds; `lateness` is the worst over all pace checks, negative
    if always early.

    replica: where it ended; hops: how often it was passed on to another one.
    """

    id: str
    kind: str
    arrival: float
    finish: float
    prompt: int
    output: int
    value: float
    ttft: float
    ttft_slo: float
    tpot: float
    lateness: float
    preemptions: int
    declined: bool
    attained: bool
    attained_client: bool
    replica: str = ""
    hops: int = 0


@dataclass(slots=True, eq=False)
class Live:
    """The host's own record of a request: the truth that its `progress` does not show, and its
    measurements so far."""

    request: Request
    progress: Progress
    first: float = 0.0
    ttft: float = 0.0
    ttft_slo: float = 0.0
    lateness: float = -1e9
    decode_time: float = 0.0
    preemptions: int = 0
    late_first: bool = False
    client_ok: bool = True
    claim: int = 0  # blocks that it will have held at its end, by its replica's predictor
    route: list[str] = field(default_factory=list)  # replicas still to ask
    replica: str = ""
    hops: int = 0
    dice: Random = field(default_factory=Random)
    content: Any = None  # names of its KV blocks, where there is a prefix cache

    def start_stage(self, stage: int, now: float, roofline: Roofline) -> None:
        """Enter `stage`: its prompt joins the context and its first token gets a deadline."""
        spec, p = self.request.stages[stage], self.progress
        p.tokens += spec.prompt
        if spec.goes_on:
            p.t0 = p.t0 + (p.generated - 1) * p.tpot + spec.slo.tpot
        else:
            p.arrival = now
            p.t0 = now + spec.slo.first_token(roofline.time(p.tokens - p.computed))
        p.stage, p.generated, p.tpot = stage, 0, spec.slo.tpot
        following = takewhile(lambda s: s.wait == 0, self.request.stages[stage + 1 :])
        p.later_tpot = min((s.slo.tpot for s in following), default=inf)

    def draft(self, drafts: int, acceptance: float) -> int:
        """Tokens that a step with `drafts` drafts yields: those accepted in a row, and one of the
        model's own."""
        accepted = 0
        while accepted < drafts and self.dice.random() < acceptance:
            accepted += 1
        p = self.progress
        return min(accepted + 1, self.request.stages[p.stage].output - p.generated)

    def emit(self, times: list[float]) -> bool:
        """Record tokens that appeared at `times`; True when they end the stage."""
        p, stage = self.progress, self.request.stages[self.progress.stage]
        n = p.generated
        if n == 0:
            self.first = times[0]
            if p.stage == 0:
                self.ttft, self.ttft_slo = times[0] - p.arrival, p.t0 - p.arrival
            if not stage.goes_on and times[0] > p.t0 + TOLERANCE:
                self.late_first, p.t0 = True, times[0]
        p.generated = end = n + len(times)
        p.tokens += end - n
        for i in range(n + -n % CHECK_EVERY, end, CHECK_EVERY):
            if i:
                self.lateness = max(self.lateness, times[i - n] - (p.t0 + i * p.tpot))
        if end < stage.output:
            return False
        last = times[-1]
        self.lateness = max(self.lateness, last - (p.t0 + (end - 1) * p.tpot))
        self.decode_time += last - self.first
        self.client_ok &= end == 1 or (last - self.first) / (end - 1) <= p.tpot + TOLERANCE
        return True

    def outcome(self, finish: float) -> Outcome:
        r, gaps = self.request, sum(s.output - 1 for s in self.request.stages)
        in_time = not self.late_first and not self.progress.best_effort
        return Outcome(
            r.id, r.kind, r.arrival, finish, r.prompt, r.output, r.value, self.ttft, self.ttft_slo,
            self.decode_time / gaps if gaps else 0.0, self.lateness, self.preemptions,
            self.progress.best_effort, in_time and self.lateness <= TOLERANCE,
            in_time and self.client_ok, self.replica, self.hops,
        )  # fmt: skip


def attainment(outcomes: Sequence[Outcome], client: bool = False) -> float:
    """Share of requests that met every objective: the paper's rule, or mean TPOT from the first
    token (`client`)."""
    require(len(outcomes) > 0, "outcomes", len(outcomes), "at least one")
    return sum(o.attained_client if client else o.attained for o in outcomes) / len(outcomes)
