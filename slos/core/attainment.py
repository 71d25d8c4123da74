"""Attainment: a request in service as its host knows it, and the outcome when it has ended.

A request attains its objectives by its own rule of pace (`slos.core.pace`); an outcome also says
whether it would by the other rule. By both rules the first token of every stage must come within
its TTFT objective. By the paper's rule the pace is checked every 10 tokens and at the end; by the
clients' rule the mean time per token of every stage counts. A declined request attains by neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import inf
from operator import attrgetter

from slos.core.pace import CLIENT, PAPER, RULES, TOLERANCE, continued, start
from slos.core.roofline import Roofline
from slos.core.types import Progress, Request, require

# output tokens between two checks of the pace, because speculation emits several at once
CHECK_EVERY = 10


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request. Times in seconds; `lateness` is the worst over all checks of the
    paper's rule, negative if all were early.

    attained: by its own `rule`; the next two fields are by each rule. replica: where it ended;
    hops: how often it was passed on to another replica.
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
    attained_paper: bool
    attained_client: bool
    rule: str
    replica: str = ""
    hops: int = 0


@dataclass(slots=True, eq=False)
class Live:
    """The host's record of a request: the truth that its `progress` does not show, and measurements
    so far. t0: where the schedule starts by the paper's rule, whatever the request's rule is;
    output: tokens of its stage; since: from when its mean pace counts, over `gaps` tokens; last:
    when the last token came."""

    request: Request
    progress: Progress
    t0: float = 0.0
    output: int = 0
    since: float = 0.0
    gaps: int = 0
    last: float = 0.0
    ttft: float = 0.0
    ttft_slo: float = 0.0
    lateness: float = -1e9
    decode_time: float = 0.0
    preemptions: int = 0
    late_first: bool = False
    client_ok: bool = True
    replica: str = ""
    hops: int = 0

    def start_stage(self, stage: int, now: float, roofline: Roofline) -> None:
        """Begin `stage`: its prompt joins the context and its first token gets a deadline."""
        spec, p = self.request.stages[stage], self.progress
        p.tokens += spec.prompt
        if spec.goes_on:
            before, tau = (p.generated, p.tpot, self.last), spec.slo.tpot
            p.t0 = continued(p.t0, *before, p.client) + tau
            self.t0 = continued(self.t0, *before, False) + tau
            self.since, self.gaps = self.last, spec.output
        else:
            p.arrival = now
            p.t0 = self.t0 = now + spec.slo.first_token(roofline.time(p.tokens - p.computed))
        p.stage, p.generated, self.output = stage, 0, spec.output
        p.tpot, p.client = spec.slo.tpot, spec.slo.rule == CLIENT
        p.follows = spec.goes_on
        following = takewhile(lambda s: s.wait == 0, self.request.stages[stage + 1 :])
        paces = [s.slo.tpot for s in following]
        p.later_tpot, p.stages_left = min(paces, default=inf), len(paces)

    def emit(self, times: list[float]) -> bool:
        """Record tokens that appeared at `times`; returns True if they end the stage."""
        p, n = self.progress, self.progress.generated
        if n == 0:
            first, goes_on = times[0], self.request.stages[p.stage].goes_on
            if p.stage == 0:
                self.ttft, self.ttft_slo = first - p.arrival, p.t0 - p.arrival
            if not goes_on:
                self.late_first |= first > self.t0 + TOLERANCE
                self.since, self.gaps = first, self.output - 1
            self.t0 = start(self.t0, first, False, goes_on)
            p.t0 = start(p.t0, first, p.client, goes_on)
        p.generated = end = n + len(times)
        p.tokens += end - n
        i = n + -n % CHECK_EVERY or CHECK_EVERY
        while i < end:
            self.lateness = max(self.lateness, times[i - n] - (self.t0 + i * p.tpot))
            i += CHECK_EVERY
        if end < self.output:
            return False
        self.last = last = times[-1]
        self.lateness = max(self.lateness, last - (self.t0 + (end - 1) * p.tpot))
        self.decode_time += last - self.since
        self.client_ok &= last - self.since <= self.gaps * (p.tpot + TOLERANCE)
        return True

    def outcome(self, finish: float) -> Outcome:
        r, gaps = self.request, sum(s.output - (not s.goes_on) for s in self.request.stages)
        in_time = not self.late_first and not self.progress.best_effort
        paper, client = in_time and self.lateness <= TOLERANCE, in_time and self.client_ok
        return Outcome(
            r.id, r.kind, r.arrival, finish, r.prompt, r.output, r.value, self.ttft, self.ttft_slo,
            self.decode_time / gaps if gaps else 0.0, self.lateness, self.preemptions,
            self.progress.best_effort, paper if r.rule == PAPER else client, paper, client, r.rule,
            self.replica, self.hops,
        )  # fmt: skip


def attainment(outcomes: Sequence[Outcome], rule: str = "") -> float:
    """Share of requests that met every objective, each by its own rule of pace or all by `rule`."""
    require(len(outcomes) > 0, "outcomes", len(outcomes), "at least one")
    require(rule in ("", *RULES), "rule", rule, f"one of {', '.join(RULES)}, or nothing")
    met = attrgetter(f"attained_{rule}" if rule else "attained")
    return sum(map(met, outcomes)) / len(outcomes)
