"""SLOs-Serve as a policy: the planner proposes whom to admit, the look ahead proves it, one rule
forms every batch.

A waiting request is a candidate at every step until it starts, which is the promise to serve it in
time, or until it cannot be in time even alone: then it is declined into best effort, which lives on
what batches and KV blocks have left and is preempted, newest first, when guaranteed requests need
the memory. The oldest of it is in time promised an easy pace, so that nobody starves.

A round that comes back from a tool is a candidate of its own, since nothing foresees when tools
answer: the promise covers what a request does until it waits for one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import final

import numpy as np

from slos.core.roofline import EPS, Roofline
from slos.core.types import Batch, LengthPredictor, Progress, View, require
from slos.planning import batching, lookahead
from slos.planning.batching import Engine
from slos.planning.jobs import (
    COMPUTED,
    DUE,
    LEFT,
    NEW,
    TPOT,
    fluid,
    jobs_of,
    needed,
)
from slos.planning.planner import prefill_rates, sweep
from slos.planning.room import Room
from slos.planning.speculation import Acceptance, Drafting
from slos.policies import ablated

REPEAT = 64  # steps for which a steady batch is promised
STATES = 1 << 14  # count vectors of a planning at the most; candidates beyond wait for the next one
IN_TURN = 64  # candidates looked at in a step where nobody is set aside
# candidates that the planner's fluid view left out and the look ahead is asked about all the same
SECOND_TRIES = 4
# Best effort takes what is left, but time and memory that look idle are also what the next burst
# will be carried by.
CUSHION = 0.05  # seconds that guaranteed requests are kept ahead of their pace
# pressure (share of KV cache held, or of the tightest TPOT used) from which best effort is held
# back:
BUSY = 0.6
STRETCH = 0.1  # it then lengthens a step by this share at most,
# and always starts a request only if this share of the KV cache stays free beside guaranteed ones
RESERVE = 0.2
AGE = 30.0  # seconds after which the oldest of best effort is promised to end too,
PATIENCE = 10.0  # at so many times its TPOT, its first token in so many seconds


@final
@dataclass(slots=True)
class SLOsServe:
    """The paper's scheduler.

    roofline, lengths: what is believed of the hardware and of output lengths; a host that learns
    may assign better ones between steps. longest_step: cap on a batch, seconds, so that arrivals
    are seen in time. speculate: draft where the engine can; no promise rests on drafts to come,
    they bring slack and give KV blocks back sooner. For ablations: without `admission` whoever's
    prompt fits the free KV blocks starts, in order of arrival; without `best_effort` nobody is set
    aside, and who cannot be in time is in the way of those behind; batch_tokens is the size of
    every batch, 0 where it follows from what is due.
    """

    roofline: Roofline
    lengths: LengthPredictor
    longest_step: float = 0.15
    speculate: bool = True
    admission: bool = True
    best_effort: bool = True
    batch_tokens: int = 0
    _acceptance: Acceptance = field(init=False, repr=False, default_factory=Acceptance)
    # promised for good, but not running
    _started: set[str] = field(init=False, repr=False, default_factory=set)
    # promised unless another proof is found
    _admitted: set[str] = field(init=False, repr=False, default_factory=set)
    # stage and t0, by id
    _aged: dict[str, tuple[int, float]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(self.longest_step > 0, "longest_step", self.longest_step, "positive (seconds)")
        require(
            self.batch_tokens >= 0,
            "batch_tokens",
            self.batch_tokens,
            "at least 0 (0: as the deadlines ask)",
        )

    def step(self, view: View) -> Batch:
        """Admit, decline, and form the next batch."""
        self._acceptance.learn(view.running)
        guaranteed, candidates, best_effort, waiting, declined = [], [], [], [], []
        for p in view.running:
            if p.best_effort:
                best_effort.append(p)
            # late whatever happens now
            elif self.best_effort and p.tokens - p.computed > 1 and p.due < view.now:
                declined.append(p)
                best_effort.append(p)
            else:
                guaranteed.append(p)
        for p in view.waiting:
            if p.best_effort:
                waiting.append(p)
            elif self.best_effort and view.now + self.roofline.time(p.left) > p.due + EPS:
                declined.append(p)
                waiting += () if p.elsewhere else (p,)
            elif p.id in self._started and self.admission:
                guaranteed.append(p)
            else:
                candidates.append(p)
        self._age(view, guaranteed, best_effort, waiting)
        candidates, unplanned = self.planned(candidates)
        old = len(guaranteed)
        jobs = jobs_of([*guaranteed, *candidates], self.lengths)
        jobs[old:, NEW] = 1
        everyone, inside = jobs, np.ones(len(jobs), np.bool_)
        if candidates:
            inside[old:] = admitted = self.admit(view, jobs, candidates)
            jobs = jobs[inside]
            guaranteed += [p for p, yes in zip(candidates, admitted, strict=True) if yes]
            self._admitted = {p.id for p in guaranteed[old:]}
            left_out = [p for p, yes in zip(candidates, admitted, strict=True) if not yes]
            # another replica may have room for them now
            declined += [p for p in left_out if p.elsewhere]
            candidates = [p for p in left_out if not p.elsewhere]
            if not guaranteed and not best_effort:  # nothing runs that they could wait for
                declined += candidates
                waiting += candidates
        batch = self._batch(view, jobs, guaranteed, best_effort, waiting, declined)
        self._admitted.difference_update(batch.tokens)
        if not (candidates or unplanned):
            return batch
        steps = 1 if self.best_effort or self.roofline.k_ctx else batch.repeat
        if steps > 1 and self.admission:  # without it nobody gets in before somebody ends
            steps = ablated.refused(
                view.now, everyone, inside, old, len(batch.tokens), int(steps), self._engine(view)
            )
        return replace(batch, repeat=steps)

    def planned(self, candidates: list[Progress]) -> tuple[list[Progress], list[Progress]]:
        """As many as one planning takes, those admitted already and then the most urgent first; and
        the others."""
        if not (self.admission and self.best_effort):
            candidates = sorted(candidates, key=lambda p: p.arrival)
            return candidates[:IN_TURN], candidates[IN_TURN:]
        counts = Counter(p.tpot for p in candidates)
        if prod(n + 1 for n in counts.values()) <= STATES:
            return candidates, []
        candidates = sorted(candidates, key=lambda p: (p.id not in self._admitted, p.due))
        last = len(candidates)
        while prod(n + 1 for n in counts.values()) > STATES:
            last -= 1
            counts[candidates[last].tpot] -= 1
        return candidates[:last], candidates[last:]

    def _age(
        self,
        view: View,
        guaranteed: list[Progress],
        best_effort: list[Progress],
        waiting: list[Progress],
    ) -> None:
        """Move the oldest of best effort to the guaranteed ones, at an easy pace, if all promises
        hold beside it."""
        queue = [*best_effort, *waiting]
        old = [p for p in queue if p.id in self._aged]
        if not old and queue:
            oldest = min(queue, key=lambda p: p.arrival)
            old = (
                [oldest]
                if view.now - oldest.arrival > AGE and len(guaranteed) < view.max_seqs
                else []
            )
        before, self._aged = self._aged, {}
        for p in old:
            stage, t0 = before.get(p.id, (-1, 0.0))
            tpot = PATIENCE * p.tpot
            if stage != p.stage or view.now > t0 + p.generated * tpot:
                t0 = view.now + max(PATIENCE, 2 * self.roofline.time(p.left)) - p.generated * tpot
            easy = replace(
                p, best_effort=False, t0=t0, tpot=tpot, later_tpot=PATIENCE * p.later_tpot
            )
            if p.id not in before:
                jobs = jobs_of([*guaranteed, easy], self.lengths)
                if not self._proven(view, jobs, np.ones(len(jobs), np.bool_)):
                    continue
            self._aged[p.id] = p.stage, t0
            guaranteed.append(easy)
            (best_effort if p in best_effort else waiting).remove(p)

    def admit(self, view: View, jobs: np.ndarray, candidates: Sequence[Progress]) -> np.ndarray:
        """Which candidates, the last of `jobs`, to guarantee from now on: bool [candidates]."""
        new, old = len(candidates), len(jobs) - len(candidates)
        engine = self._engine(view)
        seats = view.max_seqs - old
        if not self.admission:
            claimed = np.ceil((jobs[:, COMPUTED] + jobs[:, LEFT]) / engine.block_size)
            free = engine.blocks - claimed[:old].sum() - old  # a block for each to grow into
            return (claimed[old:].cumsum() <= free) & (np.arange(new) < seats) | (
                np.arange(old, new + old) == 0
            )
        if not self.best_effort:
            before = next((i for i, p in enumerate(candidates) if p.id not in self._admitted), new)
            return ablated.in_turn(view.now, jobs, old, new, seats, before, engine)
        value = np.array([p.value for p in candidates])
        paces = sorted(set(jobs[:, TPOT].tolist()))
        tpots = np.array([*paces, 2 * paces[-1]])
        context = (
            int(jobs[:old, COMPUTED][jobs[:old, LEFT] == 1].sum()) if self.roofline.k_ctx else 0
        )
        rates = prefill_rates(tpots, self.roofline, context)
        if self.batch_tokens:
            rates[:] = self.batch_tokens / self.roofline.time(self.batch_tokens, 0, context)
        problem = fluid(view.now, jobs, new, value, engine.blocks, engine.block_size, tpots)
        proposed = sweep(view.now, tpots, rates, *problem, max(0, seats))[0][-new:]
        chosen = lookahead.choose(view.now, jobs, old, proposed, value, seats, SECOND_TRIES, engine)
        before = np.array([p.id in self._admitted for p in candidates])
        # the last proof counted on them: without them it takes one of its own
        if before.any() and not chosen.any():
            return chosen if self._proven(view, jobs, np.arange(old + new) < old) else before
        return chosen

    def _engine(self, view: View) -> Engine:
        rule = self.roofline.array, self.roofline.k_ctx, float(self.longest_step), self.batch_tokens
        return Engine(*rule, view.total_blocks, view.block_size)

    def _proven(self, view: View, jobs: np.ndarray, inside: np.ndarray) -> bool:
        """Whether the jobs `inside` are all served in time."""
        return lookahead.look_ahead(view.now, jobs, inside, self._engine(view))[0] == lookahead.OK

    def _batch(
        self, view: View, jobs: np.ndarray, guaranteed: list[Progress], best_effort: list[Progress],
        waiting: list[Progress], declined: list[Progress],
    ) -> Batch:  # fmt: skip
        """Guaranteed tokens by the rule, then drafts, then best effort."""
        share, alive = np.zeros(len(guaranteed)), np.ones(len(guaranteed), np.bool_)
        engine = self._engine(view)
        seconds = batching.form(view.now, jobs, alive, engine, share)
        drafts, longest_draft = np.zeros(len(jobs), np.int64), 0
        # KV tokens until memory is short
        spare = BUSY * view.total_blocks * view.block_size - jobs[:, COMPUTED].sum()
        if self.speculate and view.max_drafts > 0:
            drafting = Drafting(view, self.roofline, self._acceptance, engine, bool(spare < 0))
            drafts = drafting.spread(guaranteed, jobs, share, seconds)
        urgent = np.argsort(jobs[:, DUE], kind="stable")
        room = Room(view, best_effort)
        need, starts = needed(jobs, share, view.block_size)
        wanted = share[urgent].astype(np.int64).tolist()
        tokens = room.give_all([guaranteed[j] for j in urgent.tolist()], wanted, need, starts)
        for j in np.flatnonzero(drafts).tolist():
            p, n = guaranteed[j], int(drafts[j])
            need = view.blocks(p.computed + 1 + n) - view.blocks(p.computed + 1)
            if p.id in tokens and need <= room.free:
                room.free -= need
                tokens[p.id] += n
                longest_draft = max(longest_draft, n)
                self._acceptance.give(p, n)
        gone = self._started.difference(tokens).union(room.preempted)
        self._started = {p.id for p in guaranteed if p.id in gone} if gone else set()
        steps = float(REPEAT)
        if best_effort or waiting:
            steps = self._fill(
                view, jobs, share, seconds, spare, room, waiting, tokens, longest_draft
            )
        used = sum(tokens.values())
        calm = used == len(tokens) == len(view.running) and not (room.preempted or declined)
        calm = (
            calm
            and (jobs[:, LEFT] == 1).all()
            and lookahead.steady(view.now, jobs, alive, alive, engine)
        )
        steps = max(1, steps) if calm else 1
        return Batch(tokens, tuple(room.preempted), tuple(p.id for p in declined), steps)

    def _fill(
        self, view: View, jobs: np.ndarray, share: np.ndarray, seconds: float, spare: float,
        room: Room, waiting: list[Progress], tokens: dict[str, int], longest_draft: int,
    ) -> float:  # fmt: skip
        """Give best effort what is left of a step of `seconds`: those running, oldest first, then
        those waiting.

        spare: KV tokens until memory is short. For how many steps it may stay so.
        """
        engine, context, used = self._engine(view), jobs[:, COMPUTED].sum(), sum(tokens.values())
        steps = float(REPEAT)
        end = view.now + engine.longest
        if len(jobs):
            end = batching.latest_end(view.now, jobs, share, engine, CUSHION)
            if spare < 0 or seconds > BUSY * jobs[:, TPOT].min():
                end = min(end, view.now + seconds * (1 + STRETCH))
            else:
                steps = min(steps, spare // len(jobs))
        # the rest of the last tile is free
        end = max(end, view.now + self.roofline.time(used, longest_draft, context))
        free = room.free - int(RESERVE * view.total_blocks) * (len(jobs) > 0)
        fits = self.roofline.fits(end - view.now, longest_draft, context)
        for p in [*room.evictable, *waiting]:
            if engine.k_ctx:
                fits = self.roofline.fits(end - view.now, longest_draft, context + p.computed)
            n = min(
                p.tokens - p.computed,
                (min(fits, self.batch_tokens) if self.batch_tokens else fits) - used,
            )
            if n < 1:
                steps = 1.0
                break
            whole = 0 if p.computed else view.blocks(p.tokens + self.lengths.remaining(p))
            # who runs already is let in whatever is free
            if whole <= max(0, free) and room.give(p, n):
                tokens[p.id] = n
                used, context, free = used + n, context + p.computed, free - whole
        if engine.k_ctx or (len(jobs) and self.roofline.time(used) > jobs[:, TPOT].min()):
            steps = 1.0
        return steps
