"""A request inside a real engine, as its policy sees it: what `slos.core.attainment` is to the
simulator.

The engine's own requests are read by duck typing: nothing here imports it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Any

from slos.core.attainment import CHECK_EVERY
from slos.core.pace import CLIENT, continued, start
from slos.core.roofline import Roofline
from slos.core.types import LengthPredictor, Progress
from slos.serving.objectives import LEAST, Objectives


@dataclass(slots=True, eq=False)
class Tracked:
    """A request of vLLM's, with what the policy sees of it. `phase_start`: output tokens before its
    present phase.

    claim: tokens that it will have at its end, by what was known of its length when it came. turn:
    its place among those that run, if it was admitted, by admission; else among those that wait, as
    vLLM would serve them.
    """

    request: Any
    progress: Progress
    objectives: Objectives
    phase_start: int = 0
    seen: int = 0  # output tokens that phases and deadlines have been checked for
    claim: int = 0
    turn: int = 0
    admitted: bool = False
    declined: bool = False  # it ends unserved
    lateness: float = -inf  # of the latest of its tokens that were looked at, in seconds
    first: float = 0.0  # when its first token appeared
    first_due: float = 0.0  # by the objective on it alone
    due: float | None = None  # of a phase's first token, while that is in flight

    @classmethod
    def of(
        cls, request: Any, objectives: Objectives, roofline: Roofline | None,
        lengths: LengthPredictor | None = None,
    ) -> Tracked:  # fmt: skip
        """Give a request that has just arrived its deadlines.

        One on the end becomes, by the length that is expected of it, a TTFT and a TPOT that imply
        it: without others each as many times as long as alone on the engine.
        """
        first = objectives.phases[0].slo
        arrival = min(request.arrival_time, objectives.arrival or inf)
        prompt = roofline.time(request.num_tokens) if roofline else 0.0
        due = arrival + first.first_token(prompt)
        pace = due, first.tpot, objectives.value
        progress = Progress(request.request_id, arrival, request.num_tokens, *pace)
        progress.later_tpot, progress.stages_left = objectives.later(0)
        progress.elsewhere, progress.client = objectives.elsewhere, first.rule == CLIENT
        progress.kind, progress.told_stage = objectives.kind, objectives.phases[0].tokens or 0
        progress.limit = request.num_tokens + request.max_tokens
        progress.told = request.num_tokens + told_output(request, objectives)
        if (end := objectives.e2e) is not None:
            more = (lengths.remaining(progress) if lengths else request.max_tokens) - 1
            decodes = more * (roofline.time(1) if roofline else 0.0)
            ttft = min(due - arrival, end * prompt / (prompt + decodes) if prompt else end / 2)
            progress.t0 = arrival + ttft
            progress.tpot = min(first.tpot, max(LEAST, (end - ttft) / max(1, more)))
        left = lengths.remaining(progress) if lengths else request.max_tokens
        return cls(request, progress, objectives, claim=progress.tokens + left, first_due=due)

    @property
    def done(self) -> bool:
        """Whether its last token is in flight already (asynchronous scheduling)."""
        flying = self.request.num_output_placeholders
        return flying > 0 and self.request.num_output_tokens + flying >= self.request.max_tokens

    @property
    def untouched(self) -> bool:
        """Whether it has not started."""
        return not (self.request.num_computed_tokens or self.request.num_output_tokens)

    @property
    def stops(self) -> bool:
        """Whether an abort is taken for its end: the front-end, which alone looks for stop strings,
        aborts a request at one. It does the same where a client leaves."""
        return bool(self.request.sampling_params.stop) and self.request.num_output_tokens > 0

    def sync(self, now: float | None = None) -> Progress:
        """Bring the record up to date; tokens in flight count as done, as vLLM itself counts. now:
        when they will have appeared; a first token among them begins the schedule then."""
        r, p = self.request, self.progress
        p.tokens = r.num_tokens + r.num_output_placeholders
        p.computed = r.num_computed_tokens
        p.generated = r.num_output_tokens + r.num_output_placeholders - self.phase_start
        if now is not None and p.generated and self.seen == self.phase_start and self.due is None:
            self.due = p.t0
            p.t0 = start(p.t0, now, p.client, p.stage > 0)
        # only before it starts
        p.elsewhere = p.elsewhere and self.untouched
        return p

    def finished(self) -> Progress:
        """The policy's record of a request that is over."""
        r, p = self.request, self.progress
        p.tokens, p.generated = r.num_tokens, r.num_output_tokens - self.phase_start
        return p

    def emitted(self, now: float, lengths: LengthPredictor | None = None) -> None:
        """Look at the tokens that have appeared: one may move the schedule, or end a phase."""
        r, p, phases = self.request, self.progress, self.objectives.phases
        while self.seen < r.num_output_tokens:
            if self.seen == self.phase_start:
                self._first(now)
                if lengths:
                    lengths.began(p)
            if p.stage + 1 == len(phases):
                self._look(now, r.num_output_tokens)
                self.seen = r.num_output_tokens
                return
            self._look(now, self.seen + 1)
            token, self.seen = r.output_token_ids[self.seen], self.seen + 1
            generated = self.seen - self.phase_start
            if self.objectives.ends(p.stage, token, generated):
                p.generated, p.tokens = generated, r.num_prompt_tokens + self.seen
                self.lateness = max(self.lateness, now - p.t0 - (generated - 1) * p.tpot)
                if lengths:
                    lengths.ended(p, False)
                tpot, p.told_stage = phases[p.stage + 1].slo.tpot, phases[p.stage + 1].tokens or 0
                p.t0 = continued(p.t0, generated, p.tpot, now, p.client) + tpot
                p.stage, p.tpot, p.follows, self.phase_start = p.stage + 1, tpot, True, self.seen
                p.later_tpot, p.stages_left = self.objectives.later(p.stage)

    def _first(self, now: float) -> None:
        """A phase's first token has appeared."""
        p = self.progress
        if self.due is not None:
            p.t0, self.due = self.due, None
        if not p.stage:
            self.lateness, self.first = now - p.t0, now
        p.t0 = start(p.t0, now, p.client, p.stage > 0)

    def _look(self, now: float, end: int) -> None:
        """At the pace of the output tokens from `seen` to `end`, as the paper's rule has it."""
        first, p = self.seen - self.phase_start, self.progress
        token = max(CHECK_EVERY, first + -first % CHECK_EVERY)
        if not p.client and token < end - self.phase_start:
            self.lateness = max(self.lateness, now - p.t0 - token * p.tpot)

    def late(self, now: float) -> float:
        """Seconds by which the worst deadline was missed of a request whose last token appeared at
        `now`, at most 0 if none was: by its rule of pace, as `slos.core.attainment` has it. With a
        deadline for the end the pace is a mean by either rule."""
        self.emitted(now)
        if self.objectives.e2e is not None:
            gaps, tpot = self.request.num_output_tokens - 1, self.objectives.phases[0].slo.tpot
            end = now - self.progress.arrival - self.objectives.e2e
            return max(end, self.first - self.first_due, now - self.first - gaps * tpot)
        p, generated = self.progress, self.request.num_output_tokens - self.phase_start
        last = now - p.t0 - (generated - 1) * p.tpot if generated else 0.0
        return max(self.lateness, last)


def told_output(request: Any, objectives: Objectives) -> int:
    """Output tokens that the client says there will be, 0 if it does not: one that must not stop
    early says it by `max_tokens`, for others that is only a bound."""
    params, most = getattr(request, "sampling_params", None), request.max_tokens
    if params is not None:
        stops = not params.ignore_eos or params.stop or params.stop_token_ids
        if params.min_tokens >= most or not stops:
            return most
    return min(objectives.output, most)
