"""A request inside a real engine, as its policy sees it: what `slos.core.attainment` is to the
simulator.

The engine's own requests are read by duck typing: nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from slos.core.pace import CLIENT, start
from slos.core.roofline import Roofline
from slos.core.types import LengthPredictor, Progress
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
        progress.kind, progress.told_stage = objectives.kind, objectives.phases[0].tokens or 0
        progress.limit = request.num_tokens + request.max_tokens
        progress.told = request.num_tokens + told_output(request, objectives)
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

    def finished(self) -> Progress:
        """The policy's record of a request that is over."""
        r, p = self.request, self.progress
        p.tokens, p.generated = r.num_tokens, r.num_output_tokens - self.phase_start
        return p

    def emitted(self, now: float, lengths: LengthPredictor) -> None:
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
                p.generated, p.tokens = generated, r.num_prompt_tokens + self.seen
                lengths.ended(p, False)
                tpot, p.told_stage = phases[p.stage + 1].slo.tpot, phases[p.stage + 1].tokens or 0
                p.t0 = p.t0 + (generated - 1) * p.tpot + tpot
                p.stage, p.tpot, self.phase_start = p.stage + 1, tpot, self.seen
                p.later_tpot, p.stages_left = self.objectives.later(p.stage)


def told_output(request: Any, objectives: Objectives) -> int:
    """Output tokens that the client says there will be, 0 if it does not: one that must not stop
    early says it by `max_tokens`, for others that is only a bound."""
    params, most = getattr(request, "sampling_params", None), request.max_tokens
    exact = params is not None and (params.ignore_eos or params.min_tokens >= most)
    return most if exact else min(objectives.output, most)
