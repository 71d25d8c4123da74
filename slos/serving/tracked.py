"""A request inside a real engine, as its policy sees it: what `slos.core.attainment` is to the
simulator.

The engine's own requests are read by duck typing: nothing here imports it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from slos.core.pace import CLIENT, start
from slos.core.roofline import Roofline
from slos.core.types import Progress
from slos.serving.objectives import Objectives


@dataclass(slots=True, eq=False)
class Tracked:
    """A request of vLLM's, with what the policy sees of it. `phase_start`: output tokens before its
    present phase.

    claim: KV blocks that it will have held at its end, by what was known of its length when it
    came. turn: its place among those that run, if it was admitted, by admission; else among those
    that wait, as vLLM would serve them.
    """

    request: Any
    progress: Progress
    objectives: Objectives
    phase_start: int = 0
    seen: int = 0  # output tokens that phases and deadlines have been checked for
    claim: int = 0
    turn: int = 0
    admitted: bool = False

    @classmethod
    def of(cls, request: Any, objectives: Objectives, roofline: Roofline | None) -> Tracked:
        """Give a request that has just arrived its deadlines."""
        first = objectives.phases[0].slo
        arrival = min(request.arrival_time, objectives.arrival or inf)
        due = arrival + first.first_token(roofline.time(request.num_tokens) if roofline else 0.0)
        progress = Progress(
            request.request_id, arrival, request.num_tokens, due, first.tpot, objectives.value
        )
        progress.later_tpot, progress.stages_left = objectives.later(0)
        progress.elsewhere, progress.client = objectives.elsewhere, first.rule == CLIENT
        return cls(request, progress, objectives)

    @property
    def done(self) -> bool:
        """Whether its last token is in flight already (asynchronous scheduling)."""
        flying = self.request.num_output_placeholders
        return flying > 0 and self.request.num_output_tokens + flying >= self.request.max_tokens

    def sync(self) -> Progress:
        """Bring the policy's record up to date; tokens in flight count as done, as vLLM itself
        counts them."""
        r, p = self.request, self.progress
        p.tokens = r.num_tokens + r.num_output_placeholders
        p.computed = r.num_computed_tokens
        p.generated = r.num_output_tokens + r.num_output_placeholders - self.phase_start
        # only before it starts
        p.elsewhere = p.elsewhere and not (r.num_computed_tokens or r.num_output_tokens)
        return p

    def emitted(self, now: float) -> None:
        """Look at the tokens that have appeared: a phase's first one may move the schedule, and a
        phase may be over."""
        r, p, phases = self.request, self.progress, self.objectives.phases
        while self.seen < r.num_output_tokens:
            if self.seen == self.phase_start:
                p.t0 = start(p.t0, now, p.client, p.stage > 0)
            if p.stage + 1 == len(phases):
                self.seen = r.num_output_tokens
                return
            token, self.seen = r.output_token_ids[self.seen], self.seen + 1
            generated = self.seen - self.phase_start
            if self.objectives.ends(p.stage, token, generated):
                tpot = phases[p.stage + 1].slo.tpot
                p.t0 = p.t0 + (generated - 1) * p.tpot + tpot
                p.stage, p.tpot, self.phase_start = p.stage + 1, tpot, self.seen
                p.later_tpot, p.stages_left = self.objectives.later(p.stage)


class Lengths:
    """A `LengthPredictor`: exact where the client fixes the length, else the mean of what recent
    answers went on for.

    A request that must not stop early says its length by `max_tokens`; for others that is only a
    bound.
    """

    def __init__(self, tracked: Mapping[str, Tracked]) -> None:
        self.tracked = tracked
        self.finished: deque[int] = deque(maxlen=256)

    def remaining(self, progress: Progress) -> int:
        t = self.tracked[progress.id]
        done, most = t.phase_start + progress.generated, t.request.max_tokens
        params = t.request.sampling_params
        if not params.ignore_eos and params.min_tokens < most:
            longer = [n for n in self.finished if n > done]
            most = min(most, sum(longer) // len(longer)) if longer else min(most, 2 * done + 64)
        return max(1, most - done)

    def after_stage(self, progress: Progress) -> int:
        t = self.tracked[progress.id]
        phase = t.objectives.phases[progress.stage]
        left = self.remaining(progress)
        return (
            left // 2
            if phase.tokens is None
            else max(0, left - (phase.tokens - progress.generated))
        )
