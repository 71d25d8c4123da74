"""SLOs-Serve as a policy: the planner proposes what to admit, the look-ahead proves it, and one
rule forms every batch.

A waiting request is a candidate at every step until it starts, which is the promise to serve it in
time, or until it cannot be in time even alone. Then it is declined into best effort, which gets the
tokens and KV blocks that guaranteed requests leave and is preempted, newest first, when they need
the memory. After a while the oldest of them is promised an easy pace, so none starves.

By the clients' rule of pace a decode may sit out steps for a prefill, as long as the tokens that
are sure to come can make up for it (`slos.planning.jobs.lent`).

A round that comes back from a tool is a candidate of its own, because the time that a tool takes
is unknown: a promise covers a request up to its next wait for a tool.

Of the candidates the planner *proposes* some, the look-ahead *chooses* among these, and the chosen
ones are *guaranteed*, with the *forced* ones, which were so before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from operator import attrgetter
from sys import maxsize

import numpy as np

from slos.core.roofline import EPS, Roofline
from slos.core.types import Batch, LengthPredictor, Progress, View, require
from slos.planning import batching, lookahead
from slos.planning.batching import engine_of
from slos.planning.candidates import MOST_PLANNED, due_first, planned, rounded
from slos.planning.fluid import propose
from slos.planning.jobs import jobs_of, needed, totals
from slos.planning.plan import Plan
from slos.planning.room import Room
from slos.planning.speculation import Acceptance, Drafting

# Seconds are those of usual hardware: `Roofline.slowness` multiplies them on slower hardware. Best
# effort gets what is left, but time and memory that look idle are also what the next burst needs.
CUSHION = 0.05  # seconds by which guaranteed requests stay ahead of their pace
BUSY = 0.6  # share of the KV cache or of the tightest TPOT in use, above which best effort yields
STRETCH = 0.1  # largest share by which it lengthens a step then
RESERVE = 0.2  # share of the KV cache that it leaves free when it starts next to guaranteed ones
AGE = 30.0  # seconds after which the oldest best-effort request is promised its end
PATIENCE = 10.0  # what it is promised: so many times its TPOT, its first token in so many seconds


@dataclass(slots=True)
class SLOsServe:
    """The paper's scheduler.

    roofline, lengths: beliefs about the hardware and output lengths; a host that learns may replace
    them between steps. longest_step: the most seconds of a batch, so that arrivals are seen in
    time. speculate: use drafts if the engine can; no promise rests on future drafts, which only
    bring slack and free KV blocks sooner. batch_tokens: fixed size of every batch, 0 if it follows
    from the deadlines. The variants of the ablation are in `slos.policies.ablated`.
    """

    roofline: Roofline
    lengths: LengthPredictor
    longest_step: float = 0.15
    speculate: bool = True
    batch_tokens: int = 0
    _acceptance: Acceptance = field(init=False, repr=False, default_factory=Acceptance)
    # guaranteed, but without KV blocks again: served before any candidate is decided on
    _preempted: set[str] = field(init=False, repr=False, default_factory=set)
    # by the last proof, and not begun yet: still candidates, and that proof is fallen back on
    _chosen: set[str] = field(init=False, repr=False, default_factory=set)
    # best effort that is promised its end, by id, with the easier objectives
    _aged: dict[str, Progress] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(self.longest_step > 0, "longest_step", self.longest_step, "positive (seconds)")
        require(self.batch_tokens >= 0, "batch_tokens", self.batch_tokens, "at least 0 tokens")

    def step(self, view: View) -> Batch:
        """Admit, decline, and form the next batch."""
        self._acceptance.learn(view.running)
        plan = self.sort(view)
        self._age(plan)
        self.admit(plan)
        self._form(plan)
        self._fill(plan)
        preempted = tuple(p.id for p in plan.room.victims)
        lost = self._preempted.difference(plan.tokens).union(preempted)
        self._preempted = {p.id for p in plan.guaranteed if p.id in lost} if lost else set()
        self._chosen.difference_update(plan.tokens)
        return Batch(plan.tokens, preempted, tuple(p.id for p in plan.declined), self.repeat(plan))

    def sort(self, view: View) -> Plan:
        """Sort requests into promised ones, candidates, and best effort."""
        waiting, first = due_first(view, self.roofline)
        plan = self.told_apart(view, waiting)
        if not first:
            return plan
        # more than one planning takes are due before all others, none of which was promised
        sure = sum(p in first and not p.generated for p in plan.candidates)
        if sure > MOST_PLANNED and {p.id for p in waiting} >= self._preempted | self._chosen:
            return plan
        return self.told_apart(view, view.waiting)

    def told_apart(self, view: View, waiting: Sequence[Progress]) -> Plan:
        """`sort` for the view's running requests and the `waiting` ones given."""
        plan = Plan(view, engine_of(self.roofline, view, self.longest_step, self.batch_tokens))
        for p in view.running:
            if p.best_effort:
                plan.best_effort.append(p)
            elif p.tokens - p.computed > 1 and self.hopeless(p.due, view.now):
                plan.declined.append(p)
                plan.best_effort.append(p)
            else:
                plan.guaranteed.append(p)
        most, end = 0, view.now  # the longest prompt so far, and when it would end
        for p in waiting:
            if p.best_effort:
                plan.waiting.append(p)
                continue
            left, due = p.left, p.due + EPS
            if left > most:
                most, end = left, view.now + self.roofline.least_time(left)
            if due < end and self.hopeless(due, view.now + self.roofline.least_time(left)):
                plan.declined.append(p)
                plan.waiting += () if p.elsewhere else (p,)
            else:
                (plan.guaranteed if p.id in self._preempted else plan.candidates).append(p)
        return plan

    def hopeless(self, due: float, end: float) -> bool:
        """Whether a prefill that ends at `end` at the earliest becomes best effort."""
        return due < end

    def planned(self, candidates: list[Progress]) -> tuple[list[Progress], list[Progress]]:
        """The candidates that one planning takes; and the others."""
        return planned(candidates, self._chosen)

    def _age(self, plan: Plan) -> None:
        """Move the oldest best-effort request to the guaranteed ones, at an easy pace, if all
        promises still hold."""
        now, queue = plan.view.now, [*plan.best_effort, *plan.waiting]
        old = [p for p in queue if p.id in self._aged] if self._aged else []
        if not old and queue and len(plan.guaranteed) < plan.view.max_seqs:
            oldest = min(queue, key=attrgetter("arrival"))
            plan.ages = oldest.arrival + AGE * self.roofline.slowness
            old = [oldest] if now > plan.ages else []
        before, self._aged = self._aged, {}
        for p in old:
            easy = before.get(p.id)
            if easy:  # much faster than a new copy
                easy.tokens, easy.computed, easy.generated = p.tokens, p.computed, p.generated
                easy.cached, easy.shared = p.cached, p.shared
            if not easy or easy.stage != p.stage or now > easy.due:
                easy = self._eased(p, now)
            together = [*plan.guaranteed, easy]
            if p.id not in before and not lookahead.proven(now, self.jobs(together), plan.engine):
                continue
            self._aged[p.id] = easy
            plan.guaranteed.append(easy)
            (plan.best_effort if p in plan.best_effort else plan.waiting).remove(p)

    def _eased(self, p: Progress, now: float) -> Progress:
        """A request with the objectives that it is promised once it has waited long."""
        tpot, later = PATIENCE * p.tpot, PATIENCE * p.later_tpot
        first = max(PATIENCE * self.roofline.slowness, 2 * self.roofline.time(p.left))
        t0 = now + first - p.generated * tpot
        return replace(p, best_effort=False, t0=t0, tpot=tpot, later_tpot=later, client=False)

    def jobs(self, requests: Sequence[Progress], new: int = 0) -> np.ndarray:
        """A record of each, the last `new` of which ask for admission: `JOB` [requests]."""
        return jobs_of(requests, self.lengths, new, self.roofline.least_time(1))

    def admit(self, plan: Plan) -> None:
        """Admit the candidates that can be served in addition to all promised requests."""
        candidates, unplanned = self.planned(plan.candidates)
        old, new = len(plan.guaranteed), len(candidates)
        plan.jobs = self.jobs([*plan.guaranteed, *candidates], new)
        if self._preempted:  # they lost their blocks: is there room for them again?
            plan.unproven = not lookahead.proven(plan.view.now, plan.jobs[:old], plan.engine)
        if not candidates:
            return
        chosen, left_out = self.choose(plan, candidates), list[Progress]()
        if not chosen.any():
            plan.jobs = plan.jobs[:old]
        elif not chosen.all():
            plan.jobs = plan.jobs[np.concatenate((np.ones(old, np.bool_), chosen))]
        for p, yes in zip(candidates, chosen, strict=True):
            # another replica may have room for it
            (plan.guaranteed if yes else plan.declined if p.elsewhere else left_out).append(p)
        self._chosen = {p.id for p in plan.guaranteed[old:]}
        plan.candidates = left_out + unplanned
        if not plan.guaranteed and not plan.best_effort:  # there is nothing to wait for
            plan.declined += left_out
            plan.waiting += left_out

    def choose(self, plan: Plan, candidates: Sequence[Progress]) -> np.ndarray:
        """Which candidates, the last of the plan's jobs, to guarantee from now on: bool
        [candidates]. The planner proposes, the look-ahead proves."""
        now, jobs, engine, new = plan.view.now, plan.jobs, plan.engine, len(candidates)
        old, seats = len(jobs) - new, plan.view.max_seqs - (len(jobs) - new)
        proposed = propose(now, rounded(jobs, new), engine, max(0, seats))[-new:]
        chosen = lookahead.choose(now, jobs, proposed, seats, engine)
        if chosen.any():
            plan.unproven = False
        elif self._chosen:
            before = np.array([p.id in self._chosen for p in candidates])
            # the last proof included them; without them a new proof is needed
            if before.any() and not lookahead.proven(now, jobs[:old], engine):
                plan.unproven = True
                return before
        return chosen

    def _form(self, plan: Plan) -> None:
        """Give guaranteed requests tokens by the rule, then drafts, as far as KV blocks allow."""
        view, jobs, guaranteed = plan.view, plan.jobs, plan.guaranteed
        if plan.unproven:
            plan.share, some = np.zeros(len(jobs)), lookahead.startable(jobs, plan.engine)
            plan.seconds, plan.share[some] = batching.form(view.now, jobs[some], plan.engine)
        else:
            plan.seconds, plan.share = batching.form(view.now, jobs, plan.engine)
        held, plan.context, plan.tightest = totals(jobs, view.block_size)
        plan.spare = BUSY * view.total_blocks * view.block_size - held
        drafts = self._drafts(plan) if self.speculate and view.max_drafts > 0 else ()
        urgent = np.argsort(jobs["due"], kind="stable")
        room = plan.room = Room(view, plan.best_effort)
        need, starts = needed(jobs, plan.share, view.block_size)
        wanted = plan.share[urgent].astype(np.int64).tolist()
        in_turn = [guaranteed[j] for j in urgent.tolist()]
        if any([p.cached for p in in_turn]):  # `needed` takes cached tokens for held ones
            need, wanted = inf, [min(n, p.left) for n, p in zip(wanted, in_turn, strict=True)]
        plan.tokens = room.give_all(in_turn, wanted, need, starts)
        for p, n in drafts:
            need = view.blocks(p.computed + 1 + n) - view.blocks(p.computed + 1)
            if p.id in plan.tokens and need <= room.free:
                room.free -= need
                plan.tokens[p.id] += n
                plan.draft = max(plan.draft, n)
                self._acceptance.give(p, n)

    def _drafts(self, plan: Plan) -> list[tuple[Progress, int]]:
        """The requests that verify drafts in this step, and how many; prefill may give way."""
        view, jobs, engine = plan.view, plan.jobs, plan.engine
        drafting = Drafting(view, self.roofline, self._acceptance, engine, plan.spare < 0)
        drafts, plan.share = drafting.spread(plan.guaranteed, jobs, plan.share, plan.seconds)
        # if prefill gave way, the step was proven with its shorter time
        size, context = (plan.share + drafts).sum(), jobs["computed"][plan.share > 0].sum()
        plan.seconds = min(plan.seconds, self.roofline.time(size, drafts.max(initial=0), context))
        plan.repeat = 1  # the next step may draft with the slack that this one brings
        return [(plan.guaranteed[j], int(drafts[j])) for j in np.flatnonzero(drafts).tolist()]

    def _fill(self, plan: Plan) -> None:
        """Give best effort the rest of the step: running requests, oldest first, then waiting
        ones."""
        view, room, tokens, engine = plan.view, plan.room, plan.tokens, plan.engine
        if not (room.evictable or plan.waiting):
            return
        context, used = plan.context, sum(tokens.values())
        # the rest of the last tile costs nothing
        least = view.now + self.roofline.time(used, plan.draft, context)
        seconds = max(self._latest_end(plan), least) - view.now
        free = room.free - int(RESERVE * view.total_blocks) * (len(plan.jobs) > 0)
        for p in [*room.evictable, *plan.waiting]:
            read = context + p.computed + p.cached
            fits = min(self.roofline.fits(seconds, plan.draft, read), self.batch_tokens or maxsize)
            # something must run, even if no step is short enough
            n = min(p.left, fits - used if tokens else max(fits, engine.tile))
            if n < 1:
                plan.repeat = 1
                break
            if free < 1 and tokens and not p.computed:  # all others wait, too
                break
            whole = 0 if p.computed else view.needs(p, p.left + self.lengths.remaining(p))
            # a running request needs no reserve, nor does one that would run alone
            fitting = whole <= max(0, free) or not (tokens or view.running)
            if fitting and room.give(p, n):
                tokens[p.id] = n
                context, used, free = read, used + n, free - whole
        if engine.k_ctx or self.roofline.time(used) > plan.tightest:
            plan.repeat = 1

    def _latest_end(self, plan: Plan) -> float:
        """The latest end to which best effort may stretch the step."""
        now, jobs = plan.view.now, plan.jobs
        if not len(jobs):
            first = (plan.room.evictable or plan.waiting)[0]
            return now + batching.longest_step(plan.engine, float(first.computed))
        cushion = CUSHION * self.roofline.slowness
        if not lookahead.keeps_pace(now, jobs, plan.engine):  # the proof counts on all slack
            return now + plan.seconds
        end = batching.latest_end(now, jobs, plan.share, plan.engine, cushion)
        if plan.spare < 0 or plan.seconds > BUSY * plan.tightest:
            return min(end, now + plan.seconds * (1 + STRETCH))
        plan.repeat = min(plan.repeat, plan.spare // len(jobs))
        return end

    def repeat(self, plan: Plan) -> float:
        """For how many steps the answer stays the same; with candidates it may change at any."""
        return 1 if plan.candidates else plan.steady()
