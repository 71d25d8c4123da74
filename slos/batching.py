"""From a plan to the next batch, and the look ahead that proves a plan (paper, section 4.2; dynamic batch size).

One rule forms every batch: it lasts until the earliest token deadline; decodes go first, then prefill by earliest
deadline. Where that would make a prefill late, only decodes that cannot wait for another such step go before it. The
look ahead runs the same rule forward under the same roofline, so a set of requests that it passes is served in time,
step by step, as long as nobody else is admitted.

Jobs are float64 [jobs, 8]: left (tokens to compute until the next one appears), due (its deadline, s), tpot (s),
remaining (tokens still to be generated), computed (tokens in the KV cache), new (1 while not yet admitted), and, for
one whose stages follow each other without a wait, switch (remaining when the next begins) and later (the tpot then).
"""

from __future__ import annotations

import numpy as np
from numba import njit

LEFT, DUE, TPOT, REMAINING, COMPUTED, NEW, SWITCH, LATER = range(8)
OK, LATE, MEMORY = 0, 1, 2
EPS = 1e-9  # seconds
SETTLE = 32  # decode steps looked ahead, after the last prefill, until everybody keeps pace


@njit(cache=True)
def batch_time(planes, k_ctx, tokens, context):
    longest = 0.0
    for k in range(len(planes)):
        longest = max(longest, planes[k, 0] * tokens + planes[k, 2])
    return longest + k_ctx * context


@njit(cache=True)
def batch_fits(planes, k_ctx, seconds, context):
    room = seconds - k_ctx * context + EPS
    tokens = np.inf
    for k in range(len(planes)):
        tokens = min(tokens, (room - planes[k, 2]) / planes[k, 0])
    return max(0.0, np.floor(tokens))


@njit(cache=True)
def form(now, jobs, alive, planes, k_ctx, longest, tokens):
    """Fill `tokens` [jobs] with this step's tokens of the jobs that are `alive`; returns the step's seconds.

    longest: the cap on a step's length. A job that is late beyond cure no longer shortens the step for others.
    """
    total = decodes = context = 0.0
    for j in range(len(jobs)):
        tokens[j] = 0.0
        if alive[j]:
            total += jobs[j, LEFT]
            context += jobs[j, COMPUTED]
            decodes += jobs[j, LEFT] == 1
    limit, floor = longest, batch_time(planes, k_ctx, max(decodes, 1.0), context)
    for j in range(len(jobs)):
        if alive[j]:
            slack = jobs[j, DUE] - now
            if jobs[j, LEFT] == 1:
                limit = min(limit, max(slack, floor))
            elif slack + EPS >= batch_time(planes, k_ctx, jobs[j, LEFT], 0.0):
                limit = min(limit, slack)
    budget = max(1.0, batch_fits(planes, k_ctx, limit, context))
    if total <= budget:
        for j in range(len(jobs)):
            if alive[j]:
                tokens[j] = jobs[j, LEFT]
        return batch_time(planes, k_ctx, total, context)
    prefills = _earliest_first(jobs, alive, True, np.inf)
    rate, owed, tight = (budget - decodes) / limit, 0.0, decodes > budget
    for j in prefills:
        owed += jobs[j, LEFT]
        tight |= owed > rate * (jobs[j, DUE] - now)
    used = 0.0
    if tight:
        used = _give(jobs, _earliest_first(jobs, alive, False, now + 2 * limit), used, budget, tokens)
        used = _give(jobs, prefills, used, budget, tokens)
        if used < budget:
            used = _give(jobs, _earliest_first(jobs, alive, False, np.inf), used, budget, tokens)
    else:
        for j in range(len(jobs)):
            if alive[j] and jobs[j, LEFT] == 1:
                tokens[j] = 1.0
        used = _give(jobs, prefills, decodes, budget, tokens)
    context = 0.0
    for j in range(len(jobs)):
        context += jobs[j, COMPUTED] if tokens[j] else 0.0
    return batch_time(planes, k_ctx, used, context)


@njit(cache=True)
def _earliest_first(jobs, alive, prefill, before):
    """Indices of the prefilling, or else the decoding, jobs due before some time, earliest deadline first."""
    found = np.empty(len(jobs), np.int64)
    count = 0
    for j in range(len(jobs)):
        if alive[j] and (jobs[j, LEFT] > 1) == prefill and jobs[j, DUE] < before:
            at = count
            while at > 0 and jobs[found[at - 1], DUE] > jobs[j, DUE]:
                found[at] = found[at - 1]
                at -= 1
            found[at] = j
            count += 1
    return found[:count]


@njit(cache=True)
def _give(jobs, order, used, budget, tokens):
    for j in order:
        if used >= budget:
            break
        if tokens[j] == 0:
            tokens[j] = min(jobs[j, LEFT], budget - used)
            used += tokens[j]
    return used


@njit(cache=True)
def latest_end(now, jobs, tokens, planes, k_ctx, longest, cushion):
    """Until when this step may be stretched for best effort.

    No deadline passes, and everybody keeps `cushion` seconds beyond the time of a step of decodes; `now` if a
    guaranteed prefill is left over, which has a better use for the time.
    """
    end, count, context = now + longest, 0.0, 0.0
    for j in range(len(jobs)):
        if jobs[j, LEFT] > tokens[j]:
            if jobs[j, LEFT] > 1:
                return now
            end = min(end, jobs[j, DUE] - cushion)
        else:
            end = min(end, jobs[j, DUE])
        count += 1
        context += jobs[j, COMPUTED] + tokens[j]
    ahead = batch_time(planes, k_ctx, count, context) + cushion
    for j in range(len(jobs)):
        if jobs[j, LEFT] == tokens[j] and jobs[j, REMAINING] > 1:
            end = min(end, jobs[j, DUE] + jobs[j, TPOT] - ahead)
    return end


@njit(cache=True)
def choose(now, jobs, new, proposed, value, seats, tries, blocks, block_size, planes, k_ctx, longest):
    """Which of the last `new` jobs to admit beside the others: bool [new].

    Of the `proposed` the costliest to blame go, as in Moore and Hodgson's rule for late jobs, until the look ahead
    passes; then `tries` of those left out, smallest prefill first, are let in if it still passes. Cost: prefill tokens
    for a deadline missed, whole size where memory is short, per value. At most `seats` are admitted.
    """
    old = len(jobs) - new
    inside = np.ones(len(jobs), np.bool_)
    inside[old:] = proposed
    prefill = np.empty(new)
    for c in range(new):
        prefill[c] = jobs[old + c, LEFT] / value[c]
    while inside[old:].any():
        verdict, at = OK, -1
        if inside[old:].sum() <= seats:
            verdict, at = look_ahead(now, jobs[inside], blocks, block_size, planes, k_ctx, longest)
            if verdict == OK:
                break
        until = np.inf if at < 0 else jobs[inside][at, DUE]
        worst, highest = -1, -1.0
        for c in range(new):
            cost = prefill[c] + (jobs[old + c, REMAINING] / value[c] if verdict == MEMORY else 0.0)
            cost += 1e12 * (jobs[old + c, DUE] <= until)
            if inside[old + c] and cost > highest:
                worst, highest = c, cost
        inside[old + worst] = False
    for c in np.argsort(prefill, kind="mergesort"):
        if not inside[old + c] and tries > 0 and inside[old:].sum() < seats:
            tries -= 1
            inside[old + c] = True
            if look_ahead(now, jobs[inside], blocks, block_size, planes, k_ctx, longest)[0] != OK:
                inside[old + c] = False
    return inside[old:]


@njit(cache=True)
def look_ahead(now, jobs, blocks, block_size, planes, k_ctx, longest):
    """Run the rule forward until it can be argued on: (OK | LATE | MEMORY, the job that failed or -1).

    Once everybody decodes in every step of at most the tightest TPOT nobody loses slack, and memory is checked at each
    finish. Where some must sit out batches, the pace is checked as a rate and memory by final sizes. An admitted job
    that cannot be in time even alone is not checked, so that it does not forbid others.
    """
    jobs = jobs.copy()
    size = len(jobs)
    alive = np.ones(size, np.bool_)
    strict = np.ones(size, np.bool_)
    tokens = np.empty(size)
    for j in range(size):
        in_time = now + batch_time(planes, k_ctx, jobs[j, LEFT], 0.0) <= jobs[j, DUE] + EPS
        if jobs[j, NEW] and not in_time:
            return LATE, j
        strict[j] = in_time
    settle = SETTLE
    while settle > 0:
        pending = False
        for j in range(size):
            pending |= alive[j] and jobs[j, LEFT] > 1
        if not pending:
            settle -= 1
            if steady(now, jobs, alive, strict, planes, k_ctx):
                return (OK if _peak(jobs, alive, block_size) <= blocks else MEMORY), -1
        now += form(now, jobs, alive, planes, k_ctx, longest, tokens)
        held = 0.0
        for j in range(size):
            if not alive[j]:
                continue
            jobs[j, LEFT] -= tokens[j]
            jobs[j, COMPUTED] += tokens[j]
            held += np.ceil(jobs[j, COMPUTED] / block_size)
            if strict[j] and now > jobs[j, DUE] + EPS:
                return LATE, j
            if jobs[j, LEFT] == 0:
                jobs[j, REMAINING] -= 1
                jobs[j, LEFT] = 1
                if jobs[j, REMAINING] == jobs[j, SWITCH]:
                    jobs[j, TPOT] = jobs[j, LATER]
                jobs[j, DUE] += jobs[j, TPOT]
                alive[j] = jobs[j, REMAINING] > 0
        if held > blocks:
            return MEMORY, -1
    tightest, owed, final, context = np.inf, 0.0, 0.0, 0.0
    for j in range(size):
        if alive[j]:
            # One that is ahead may spread its slack over all that it still has to say: a looser pace.
            pace = _tightest(jobs[j]) + max(0.0, jobs[j, DUE] - jobs[j, TPOT] - now) / jobs[j, REMAINING]
            tightest = min(tightest, pace)
            final += np.ceil((jobs[j, COMPUTED] + jobs[j, REMAINING]) / block_size)
            owed += 1.0 / pace
            context += jobs[j, COMPUTED]
    if owed * tightest > batch_fits(planes, k_ctx, tightest, context):
        return LATE, -1
    return (OK if final <= blocks else MEMORY), -1


@njit(cache=True)
def _tightest(job):
    """The smallest TPOT of what a job still has to say."""
    return min(job[TPOT], job[LATER]) if job[SWITCH] > 0 and job[REMAINING] > job[SWITCH] else job[TPOT]


@njit(cache=True)
def steady(now, jobs, alive, strict, planes, k_ctx):
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
    return count == 0 or batch_time(planes, k_ctx, count, context) <= min(slack, tightest) + EPS


@njit(cache=True)
def _peak(jobs, alive, block_size):
    """Most KV blocks held at once, or slightly more, while everybody alive decodes to its end one token a step."""
    order = np.argsort(jobs[:, REMAINING], kind="mergesort")
    count, context = 0.0, 0.0
    for j in order:
        if alive[j]:
            count += 1
            context += jobs[j, COMPUTED]
    peak = 0.0
    for j in order:
        if alive[j]:
            peak = max(peak, context + count * (jobs[j, REMAINING] + block_size - 1))
            count -= 1
            context -= jobs[j, COMPUTED]
    return peak / block_size
