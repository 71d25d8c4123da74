"""The look ahead: the rule of `slos.planning.batching` run forward under the same roofline, which
proves a set of promises.

A set of requests that it passes is served in time, step by step, as long as nobody else is
admitted.
"""

from __future__ import annotations

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, batch_fits, batch_time
from slos.planning.batching import fill, scan, sort
from slos.planning.jobs import COMPUTED, DUE, LATER, LEFT, NEW, REMAINING, SWITCH, TPOT

OK, LATE, MEMORY = 0, 1, 2
SETTLE = 32  # decode steps looked ahead, after the last prefill, until everybody keeps pace


@kernel
def choose(now, jobs, old, proposed, value, seats, tries, engine):
    """Which of the jobs from `old` on, as many as `proposed`, to admit beside all others: bool
    [new].

    Of the `proposed` the costliest to blame go, as in Moore and Hodgson's rule for late jobs, until
    the look ahead passes; then `tries` of those left out, smallest prefill first, are let in if it
    still passes. Cost: prefill tokens for a deadline missed, whole size where memory is short, per
    value. At most `seats` are admitted.
    """
    new = len(proposed)
    inside = np.ones(len(jobs), np.bool_)
    mine = inside[old : old + new]
    mine[:] = proposed
    prefill = np.empty(new)
    for c in range(new):
        prefill[c] = jobs[old + c, LEFT] / value[c]
    while mine.any():
        verdict, at = OK, -1
        if mine.sum() <= seats:
            verdict, at = look_ahead(now, jobs, inside, engine)
            if verdict == OK:
                break
        until = np.inf if at < 0 or at >= old + new else jobs[at, DUE]
        worst, highest = -1, -1.0
        for c in range(new):
            cost = prefill[c] + (jobs[old + c, REMAINING] / value[c] if verdict == MEMORY else 0.0)
            cost += 1e12 * (jobs[old + c, DUE] <= until)
            if mine[c] and cost > highest:
                worst, highest = c, cost
        mine[worst] = False
    for c in np.argsort(prefill, kind="mergesort"):
        if not mine[c] and tries > 0 and mine.sum() < seats:
            tries -= 1
            mine[c] = True
            if look_ahead(now, jobs, inside, engine)[0] != OK:
                mine[c] = False
    return mine


@kernel
def look_ahead(now, jobs, inside, engine):
    """Run the rule forward for the jobs `inside` until it can be argued on: (OK | LATE | MEMORY,
    who failed or -1).

    Once everybody decodes in every step of at most the tightest TPOT nobody loses slack, and memory
    is checked at each finish. Where some must sit out batches, the pace is checked as a rate and
    memory by final sizes. An admitted job that cannot be in time even alone is not checked, so that
    it does not forbid others.
    """
    jobs, alive = jobs.copy(), inside.copy()
    size, blocks, block_size = len(jobs), engine.blocks, engine.block_size
    strict = np.ones(size, np.bool_)
    tokens = np.empty(size)
    for j in range(size):
        if alive[j]:
            strict[j] = now + batch_time(engine, jobs[j, LEFT], 0.0) <= jobs[j, DUE] + EPS
            if jobs[j, NEW] and not strict[j]:
                return LATE, j
    prefills = np.empty(size, np.int64)
    count, total, context, soonest = scan(jobs, alive, prefills, tokens)
    sort(prefills[:count], jobs)
    settle = SETTLE
    while settle > 0:
        if not count:
            settle -= 1
            if steady(now, jobs, alive, strict, engine):
                return (OK if _peak(jobs, alive, engine) <= blocks else MEMORY), -1
        seconds = fill(now, jobs, prefills[:count], total, context, soonest, engine, tokens)
        now += seconds
        held = freed = total = context = 0.0
        soonest = np.inf
        for j in range(size):
            if not alive[j]:
                continue
            if strict[j] and now > jobs[j, DUE] + EPS:
                return LATE, j
            jobs[j, COMPUTED] += tokens[j]
            held += jobs[j, COMPUTED]
            if jobs[j, LEFT] > tokens[j]:
                jobs[j, LEFT] -= tokens[j]
            else:
                jobs[j, REMAINING] -= 1
                jobs[j, LEFT] = 1
                if jobs[j, REMAINING] == jobs[j, SWITCH]:
                    if jobs[j, REMAINING] == 0:
                        alive[j] = False
                        tokens[j] = 0.0
                        freed += np.ceil(jobs[j, COMPUTED] / block_size)
                        continue
                    jobs[j, TPOT], jobs[j, SWITCH] = jobs[j, LATER], 0.0
                jobs[j, DUE] += jobs[j, TPOT]
            total += jobs[j, LEFT]
            context += jobs[j, COMPUTED]
            tokens[j] = jobs[j, LEFT] == 1
            if jobs[j, LEFT] == 1 and jobs[j, DUE] < soonest:
                soonest = jobs[j, DUE]
        kept = 0
        for j in prefills[:count]:
            if alive[j] and jobs[j, LEFT] > 1:
                prefills[kept] = j
                kept += 1
        count = kept
        # perhaps not, if blocks are counted one by one
        if held + size * (block_size - 1) > blocks * block_size:
            held = freed
            for j in range(size):
                held += np.ceil(jobs[j, COMPUTED] / block_size) if alive[j] else 0.0
            if held > blocks:
                return MEMORY, -1
    tightest, owed, final, context = np.inf, 0.0, 0.0, 0.0
    for j in range(size):
        if alive[j]:
            # One that is ahead may spread its slack over all that it still has to say: a looser
            # pace.
            pace = (
                _tightest(jobs[j])
                + max(0.0, jobs[j, DUE] - jobs[j, TPOT] - now) / jobs[j, REMAINING]
            )
            tightest = min(tightest, pace)
            final += np.ceil((jobs[j, COMPUTED] + jobs[j, REMAINING]) / block_size)
            owed += 1.0 / pace
            context += jobs[j, COMPUTED]
    if owed * tightest > batch_fits(engine, tightest, context):
        return LATE, -1
    return (OK if final <= blocks else MEMORY), -1


@kernel
def _tightest(job):
    """The smallest TPOT of what a job still has to say."""
    return (
        min(job[TPOT], job[LATER])
        if job[SWITCH] > 0 and job[REMAINING] > job[SWITCH]
        else job[TPOT]
    )


@kernel
def steady(now, jobs, alive, strict, engine):
    """Whether everybody alive can decode in every step from now to the end without losing slack."""
    count = context = 0.0
    slack = tightest = np.inf
    for j in range(len(jobs)):
        if alive[j]:
            count += 1
            context += jobs[j, COMPUTED] + jobs[j, REMAINING]
            tightest = min(tightest, _tightest(jobs[j]))
            if strict[j]:
                slack = min(slack, jobs[j, DUE] - now)
    return count == 0 or batch_time(engine, count, context) <= min(slack, tightest) + EPS


@kernel
def _peak(jobs, alive, engine):
    """Most KV blocks held at once, or slightly more, while everybody alive decodes to its end one
    token a step.

    Not told apart below `blocks`.
    """
    count = context = final = 0.0
    block_size = engine.block_size
    for j in range(len(jobs)):
        if alive[j]:
            count += 1
            context += jobs[j, COMPUTED]
            final += jobs[j, COMPUTED] + jobs[j, REMAINING] + block_size - 1
    if final <= engine.blocks * block_size:
        return 0.0
    peak = 0.0
    for j in np.argsort(jobs[:, REMAINING], kind="mergesort"):
        if alive[j]:
            peak = max(peak, context + count * (jobs[j, REMAINING] + block_size - 1))
            count -= 1
            context -= jobs[j, COMPUTED]
    return peak / block_size
