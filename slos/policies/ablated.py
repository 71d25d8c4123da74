"""SLOs-Serve without a part of it, for the ablation: policies of their own around the same parts.

Without admission control whatever prompt fits the free KV blocks starts, in order of arrival.
Without best effort no request is set aside: one that cannot be in time has its turn, too, and is in
the way of those behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, Roofline, batch_time, least_time
from slos.core.types import LengthPredictor, Progress, View
from slos.planning.jobs import advance
from slos.planning.lookahead import proven
from slos.planning.plan import Plan
from slos.policies.slos_serve import SLOsServe

IN_TURN = 64  # candidates looked at in a step


def by_arrival(candidates: list[Progress]) -> tuple[list[Progress], list[Progress]]:
    candidates = sorted(candidates, key=lambda p: p.arrival)
    return candidates[:IN_TURN], candidates[IN_TURN:]


@final
@dataclass(slots=True)
class FirstCome(SLOsServe):
    """No admission control. best_effort: whether those that cannot be in time are set aside."""

    best_effort: bool = field(default=True, kw_only=True)

    def sort(self, view: View) -> Plan:
        self._preempted.clear()  # nothing is promised
        return self.told_apart(view, view.waiting)

    def hopeless(self, due: float, end: float) -> bool:
        return self.best_effort and due < end

    def planned(self, candidates: list[Progress]) -> tuple[list[Progress], list[Progress]]:
        return by_arrival(candidates)

    def choose(self, plan: Plan, candidates: Sequence[Progress]) -> np.ndarray:
        """Those whose prompts fit, with a block left for each of the others to grow into."""
        old, new = len(plan.guaranteed), np.arange(len(candidates))
        jobs, size = plan.jobs, plan.engine.block_size
        claimed = np.ceil((jobs["computed"] + jobs["left"]) / size) - jobs["shared"]
        free = plan.engine.blocks - claimed[:old].sum() - old
        fits = (claimed[old:].cumsum() <= free) & (new < plan.view.max_seqs - old)
        return fits | (new + old == 0)

    def repeat(self, plan: Plan) -> float:
        if not plan.candidates:
            return plan.steady()
        # no other gets in before one ends
        return 1 if self.best_effort or plan.engine.k_ctx else plan.steady()


@final
@dataclass(slots=True)
class InTurn(SLOsServe):
    """No best effort: requests are admitted in order of arrival, each when its turn comes."""

    _asked: np.ndarray = field(init=False, repr=False)  # the jobs of the last `choose`

    def sort(self, view: View) -> Plan:
        return self.told_apart(view, view.waiting)

    def hopeless(self, due: float, end: float) -> bool:
        return False

    def planned(self, candidates: list[Progress]) -> tuple[list[Progress], list[Progress]]:
        return by_arrival(candidates)

    def choose(self, plan: Plan, candidates: Sequence[Progress]) -> np.ndarray:
        self._asked = plan.jobs
        new, seats = len(candidates), plan.view.max_seqs - len(plan.guaranteed)
        before = next((i for i, p in enumerate(candidates) if p.id not in self._chosen), new)
        chosen = in_turn(plan.view.now, plan.jobs, new, seats, before, plan.engine)
        plan.unproven &= not chosen.any()
        return chosen

    def repeat(self, plan: Plan) -> float:
        steps = plan.steady()
        if steps == 1 or not plan.candidates:
            return steps
        jobs = self._asked[: len(plan.guaranteed) + 1]
        if plan.engine.k_ctx or len(jobs) == len(plan.guaranteed):
            return 1
        ends = (jobs["remaining"] - jobs["switch"])[:-1].min(initial=steps)
        return refused(plan.view.now, jobs, len(plan.tokens), int(ends), plan.engine)


def slos_serve(  # noqa: PLR0913  # the settings by which the table of policies knows it
    roofline: Roofline, lengths: LengthPredictor, longest_step: float = 0.15,
    speculate: bool = True, batch_tokens: int = 0, admission: bool = True, best_effort: bool = True,
) -> SLOsServe:  # fmt: skip
    """SLOs-Serve with all its parts, or without one or two of them."""
    settings = roofline, lengths, longest_step, speculate, batch_tokens
    if not admission:
        return FirstCome(*settings, best_effort=bool(best_effort))
    return (SLOsServe if best_effort else InTurn)(*settings)


@kernel
def in_turn(now, jobs, new, seats, before, engine):
    """Of the last `new` jobs, in order of arrival, those up to the first that the look ahead
    refuses: bool [new].

    One that cannot be in time has its turn when all others still can. At least one job runs.
    before: how many were let in by the last proof, and are likely to pass together.
    """
    old, inside = len(jobs) - new, np.ones(len(jobs), np.bool_)
    mine = inside[old:]
    mine[:] = False
    for j in range(old, len(jobs)):
        _strict(now, jobs[j], engine)
    first = max(0, min(before, new, seats))
    mine[:first] = True
    while first and not proven(now, jobs[inside], engine):
        first //= 2
        mine[first:] = False
    for c in range(first, min(new, seats)):
        mine[c] = True
        if not proven(now, jobs[inside], engine):
            mine[c] = old == 0 and mine.sum() == 1
            break
    return mine


@kernel
def _strict(now, job, engine):
    """Let a job be checked only if it can be in time."""
    job.new = now + least_time(engine, job.left) <= job.due + EPS


@kernel
def refused(now, jobs, running, steps, engine):
    """For how many `steps` of decodes, as many as `running`, the last job is refused by `in_turn`,
    the ones before it being those decodes that are guaranteed."""
    jobs = jobs.copy()
    for k in range(1, steps):
        now += batch_time(engine, float(running))
        for j in range(len(jobs) - 1):
            advance(jobs[j], 1.0, 0.0, now)
        _strict(now, jobs[len(jobs) - 1], engine)
        if proven(now, jobs, engine):
            return k
    return max(1, steps)
