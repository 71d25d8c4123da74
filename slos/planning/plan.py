"""The plan of one step while it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import numpy as np

from slos.core.types import Progress, View
from slos.planning.batching import Engine
from slos.planning.lookahead import keeps_pace
from slos.planning.room import Room

REPEAT = 64  # most steps for which a steady batch is announced


@dataclass(slots=True)
class Plan:
    """The plan of one step: `sort` fills in the lists, `admit` the jobs, `form` the tokens of the
    guaranteed requests, `fill` those of best effort.

    guaranteed: admitted; unproven: no look-ahead of this step found room for those of them that
    have not started, as where steps take longer than was believed or lengths are predicted;
    candidates: to be decided, and after `admit` those that keep waiting;
    best_effort: running ones; waiting: best effort without KV blocks; declined: in this step.
    jobs: of the guaranteed and the candidates, after `admit` of the guaranteed only. share: their
    tokens without drafts; seconds: of the step with these; draft: the longest draft. context,
    tightest: their KV tokens and TPOT; spare: KV tokens until memory is short; repeat: steps for
    which best effort stays the same; ages: from when on the oldest of it asks to be promised its
    end, infinite if none is to ask.
    """

    view: View
    engine: Engine
    guaranteed: list[Progress] = field(default_factory=list)
    unproven: bool = False
    candidates: list[Progress] = field(default_factory=list)
    best_effort: list[Progress] = field(default_factory=list)
    waiting: list[Progress] = field(default_factory=list)
    declined: list[Progress] = field(default_factory=list)
    jobs: np.ndarray = field(init=False)
    share: np.ndarray = field(init=False)
    seconds: float = 0.0
    draft: int = 0
    context: float = 0.0
    tightest: float = inf
    spare: float = 0.0
    repeat: float = REPEAT
    ages: float = inf
    room: Room = field(init=False)
    tokens: dict[str, int] = field(default_factory=dict)

    def steady(self) -> float:
        """For how many steps this one can be repeated if no candidate waits."""
        running, jobs = len(self.view.running), self.jobs
        if self.repeat <= 1 or sum(self.tokens.values()) != running or len(self.tokens) != running:
            return 1
        if self.room.victims or self.declined or (jobs["left"] != 1).any():
            return 1
        # twice as long as these steps take, for they may read more, or take longer than is believed
        if self.ages < self.view.now + 2 * REPEAT * self.seconds:
            return 1
        # a job whose schedule restarts loses its slack in this step
        steady = not jobs["opens"].any() and keeps_pace(self.view.now, jobs, self.engine)
        return max(1, self.repeat) if steady else 1
