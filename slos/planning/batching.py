"""From a plan to the next batch (paper, section 4.2; dynamic batch size).

One rule forms every batch: it lasts until the earliest token deadline; decodes go first, then
prefill by earliest deadline. Where that would make a prefill late, only decodes that cannot wait
for another such step go before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, batch_fits, batch_time
from slos.planning.jobs import COMPUTED, DUE, LATER, LEFT, NEW, REMAINING, SWITCH, TPOT


class Engine(NamedTuple):
    """What kernels know of a replica. planes, k_ctx: its roofline; longest: seconds of a step at
    the most; fixed: if above 0, every batch holds so many tokens, decodes first, whatever is due;
    blocks, of block_size tokens: for KV."""

    planes: np.ndarray
    k_ctx: float
    longest: float
    fixed: int
    blocks: int
    block_size: int


@kernel
def form(now, jobs, alive, engine, tokens):
    """Fill `tokens` [jobs] with this step's tokens of the jobs that are `alive`; returns the step's
    seconds.

    A job that is late beyond cure no longer shortens the step for others.
    """
    prefills = np.empty(len(jobs), np.int64)
    count, total, context, soonest = scan(jobs, alive, prefills, tokens)
    sort(prefills[:count], jobs)
    return fill(now, jobs, prefills[:count], total, context, soonest, engine, tokens)


@kernel
def scan(jobs, alive, prefills, tokens):
    """One token for every decode, none for others, whose indices go to `prefills`.

    Returns how many these are, and of all: tokens left, context (tokens), when the earliest decode
    is due.
    """
    count, total, context, soonest = 0, 0.0, 0.0, np.inf
    for j in range(len(jobs)):
        tokens[j] = 0.0
        if alive[j]:
            total += jobs[j, LEFT]
            context += jobs[j, COMPUTED]
            if jobs[j, LEFT] == 1:
                tokens[j] = 1.0
                soonest = min(soonest, jobs[j, DUE])
            else:
                prefills[count] = j
                count += 1
    return count, total, context, soonest


@kernel
def fill(now, jobs, prefills, total, context, soonest, engine, tokens):
    """`form` after `scan`, with `prefills` sorted by deadline."""
    decodes, fixed = total, engine.fixed
    for j in prefills:
        decodes -= jobs[j, LEFT]
    limit = min(engine.longest, max(soonest - now, batch_time(engine, max(decodes, 1.0), context)))
    for j in prefills:
        if jobs[j, DUE] - now + EPS >= batch_time(engine, jobs[j, LEFT], 0.0):
            limit = min(limit, jobs[j, DUE] - now)
    # whole tiles: the rest of one is free
    whole = max(engine.planes[0, 3], batch_fits(engine, limit, context))
    budget = max(decodes, fixed) if fixed else whole
    if total <= budget:
        for j in prefills:
            tokens[j] = jobs[j, LEFT]
        return batch_time(engine, total, context)
    rate, owed, tight = (budget - decodes) / limit, 0.0, decodes > budget
    for j in prefills:
        owed += jobs[j, LEFT]
        tight |= not fixed and owed > rate * (jobs[j, DUE] - now)
    used = decodes
    if tight:
        decoding = np.flatnonzero(tokens)
        urgent = jobs[decoding, DUE] < now + 2 * limit
        tokens[:] = 0.0
        first, last = decoding[urgent], decoding[~urgent]
        if len(first) > budget:
            sort(first, jobs)
        used = _give(jobs, first, 0.0, budget, tokens)
        used = _give(jobs, prefills, used, budget, tokens)
        if used < budget:
            sort(last, jobs)
            used = _give(jobs, last, used, budget, tokens)
    else:
        used = _give(jobs, prefills, used, budget, tokens)
    if engine.k_ctx > 0:
        context = 0.0
        for j in range(len(jobs)):
            context += jobs[j, COMPUTED] if tokens[j] else 0.0
    return batch_time(engine, used, context)


@kernel
def sort(some, jobs):
    """Sort indices in place, earliest deadline first, ties as they were."""
    if len(some) > 1:
        some[:] = some[np.argsort(jobs[some, DUE], kind="mergesort")]


@kernel
def _give(jobs, some, used, budget, tokens):
    """Give `some` jobs in turn what they have left, as far as `budget` goes; what is then used of
    it."""
    for j in some:
        if used >= budget:
            break
        tokens[j] = min(jobs[j, LEFT], budget - used)
        used += tokens[j]
    return used


@kernel
def latest_end(now, jobs, tokens, engine, cushion):
    """Until when this step may be stretched for best effort.

    No deadline passes, and everybody keeps `cushion` seconds beyond the time of a step of decodes;
    `now` if a guaranteed prefill is left over, which has a better use for the time.
    """
    end, count, context = now + engine.longest, 0.0, 0.0
    for j in range(len(jobs)):
        if jobs[j, LEFT] > tokens[j]:
            if jobs[j, LEFT] > 1:
                return now
            end = min(end, jobs[j, DUE] - cushion)
        else:
            end = min(end, jobs[j, DUE])
        count += 1
        context += jobs[j, COMPUTED] + tokens[j]
    ahead = batch_time(engine, count, context) + cushion
    for j in range(len(jobs)):
        if jobs[j, LEFT] == tokens[j] and jobs[j, REMAINING] > 1:
            end = min(end, jobs[j, DUE] + jobs[j, TPOT] - ahead)
    return end


@kernel
def advance(now, jobs, tokens, drafts):
    """The jobs after a step that ends at `now` and gave them `tokens`, all drafts accepted; whether
    all are in time.

    To be proven afterwards: who could be in time before and no more can fails there.
    """
    jobs, alive, in_time = jobs.copy(), np.ones(len(jobs), np.bool_), True
    for j in range(len(jobs)):
        job = jobs[j]
        job[NEW] = 1
        if tokens[j] < job[LEFT]:
            job[LEFT] -= tokens[j]
            job[COMPUTED] += tokens[j]
            continue
        in_time &= now <= job[DUE] + EPS
        said = 1 + min(drafts[j], max(0.0, job[REMAINING] - job[SWITCH] - 1))
        job[COMPUTED] += tokens[j] + said - 1
        job[LEFT], job[REMAINING] = 1, job[REMAINING] - said
        job[DUE] += (said - 1) * job[TPOT]
        alive[j] = job[REMAINING] > 0
        if job[REMAINING] == job[SWITCH]:
            job[TPOT], job[SWITCH] = job[LATER], 0.0
        job[DUE] += job[TPOT]
    return jobs, alive, in_time
