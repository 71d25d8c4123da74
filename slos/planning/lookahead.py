"""The look-ahead: it runs the rule of `slos.planning.batching` forward under the same roofline and
so proves a set of promises.

A set of requests that passes is served in time, step by step, as long as no other is admitted.
"""

from __future__ import annotations

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, batch_time, least_time
from slos.planning.batching import form
from slos.planning.jobs import advance, blocks_of, slack_per_token

OK, LATE, MEMORY = 0, 1, 2
SETTLE = 32  # most decode steps to run, after the last prefill, until every job keeps its pace
# candidates that the planner left out in its fluid view and the look-ahead tries all the same
SECOND_TRIES = 4


@kernel
def choose(now, jobs, proposed, seats, engine):
    """Which of the last jobs, the `proposed` ones or others like them, to admit in addition to all
    jobs before them: bool [proposed].

    Proposed jobs are removed, the costliest culprit first, as in Moore and Hodgson's rule for late
    jobs, until the look-ahead passes. Then some of those left out, the smallest prefill per value
    first, are added if it still passes. At most `seats` are admitted.
    """
    inside = np.ones(len(jobs), np.bool_)
    mine, ours = inside[len(jobs) - len(proposed) :], jobs[len(jobs) - len(proposed) :]
    mine[:] = proposed  # and so in `inside`, of which it is a part
    while mine.any():
        verdict, until = OK, np.inf
        if mine.sum() <= seats:
            verdict, until = look_ahead(now, jobs[inside], engine)
            if verdict == OK:
                break
        mine[_costliest(ours, mine, until, verdict == MEMORY)] = False
    tries = SECOND_TRIES
    for c in np.argsort(ours.left / ours.value, kind="mergesort"):
        if not mine[c] and tries > 0 and mine.sum() < seats:
            tries -= 1
            mine[c] = True
            mine[c] = proven(now, jobs[inside], engine)
    return mine


@kernel
def _costliest(jobs, mine, until, memory):
    """Index of the job of `mine`, among those due by `until` if there are any, with the most
    prefill tokens left per value; if `memory` is short, with the largest size per value."""
    worst, highest = -1, -1.0
    for c in range(len(jobs)):
        job = jobs[c]
        cost = job.left / job.value + (job.remaining / job.value if memory else 0.0)
        cost += 1e12 * (job.due <= until)
        if mine[c] and cost > highest:
            worst, highest = c, cost
    return worst


@kernel
def proven(now, jobs, engine):
    """Whether all jobs are served in time as long as no other is admitted."""
    return look_ahead(now, jobs, engine)[0] == OK


@kernel
def look_ahead(now, jobs, engine):
    """Form and take steps, one by one, until a deadline or the KV cache is missed or the rest is
    proven. Returns OK, LATE or MEMORY, and the present deadline of the job that would be late, else
    infinity.

    Once no prefill is left there are two proofs. Either all jobs can decode in every step to their
    ends without losing slack (`_steady`): then memory has to do at its peak (`_peak`). Or, if that
    has not come true in SETTLE steps, each can wait for steps of all jobs with the slack it has
    (`_in_the_long_run`). A promised job that cannot be in time even alone is not checked, so that
    it does not block others.
    """
    jobs, due, strict = jobs.copy(), jobs.due.copy(), np.ones(len(jobs), np.bool_)
    for j in range(len(jobs)):
        strict[j] = now + least_time(engine, jobs[j].left) <= due[j] + EPS
        if jobs[j].new and not strict[j]:
            return LATE, due[j]
    settle = SETTLE
    while settle > 0:
        if not (jobs.left > 1).any():
            settle -= 1
            if _steady(now, jobs, strict, engine):
                return (OK if _peak(jobs, engine) <= engine.blocks else MEMORY), np.inf
        seconds, tokens = form(now, jobs, engine)
        now, held = now + seconds, 0.0
        for j in range(len(jobs)):
            if strict[j] and now > jobs[j].due + EPS:
                return LATE, due[j]
            advance(jobs[j], tokens[j], 0.0, now)
            held += blocks_of(jobs[j], jobs[j].computed, engine.block_size)
        if held > engine.blocks:
            return MEMORY, np.inf
        goes_on = jobs.remaining > 0
        jobs, due, strict = jobs[goes_on], due[goes_on], strict[goes_on]
    return _in_the_long_run(now, jobs, engine), np.inf


@kernel
def _in_the_long_run(now, jobs, engine):
    """The verdict on jobs that all decode: whether each can wait for steps of all of them, with
    the slack it has left, and whether the KV cache holds them at their final sizes.

    Decodes sit out steps only for prefills, so without one every step has all of them.
    """
    seconds, blocks = _at_the_end(jobs, engine)
    for job in jobs:
        pace = _tightest(job) + slack_per_token(job, now)
        if (min(pace, job.later) if job.reopens else pace) < seconds:
            return LATE
    return OK if blocks <= engine.blocks else MEMORY


@kernel
def _tightest(job):
    """The smallest TPOT of the tokens that a job still has to generate."""
    changes = job.switch > 0 and job.remaining > job.switch
    return min(job.tpot, job.later) if changes else job.tpot


@kernel
def _steady(now, jobs, strict, engine):
    """`keeps_pace`, but only the next tokens of `strict` jobs must be in time."""
    seconds, _ = _at_the_end(jobs, engine)
    for j in range(len(jobs)):
        wait = _tightest(jobs[j]) + min(0.0, slack_per_token(jobs[j], now))
        if seconds > (min(wait, jobs[j].due - now) if strict[j] else wait) + EPS:
            return False
    return True


@kernel
def keeps_pace(now, jobs, engine):
    """Whether all can decode in every step from now to the end in time, without losing slack."""
    return _steady(now, jobs, np.ones(len(jobs), np.bool_), engine)


@kernel
def _at_the_end(jobs, engine):
    """Seconds of a step in which all decode, and their KV blocks, at their final sizes."""
    sizes, shared = jobs.computed + jobs.remaining, jobs.shared.sum()
    # a step reads no more than the cache holds, but several requests may read a shared block
    context = min(sizes.sum(), (engine.blocks + shared) * engine.block_size)
    blocks = np.ceil(sizes / engine.block_size).sum() - shared
    return batch_time(engine, len(jobs), 0, context), blocks


@kernel
def _peak(jobs, engine):
    """The most KV blocks held at once, or slightly more, while all jobs decode to their ends, a
    token per step; 0 if all of them fit anyway."""
    size = engine.block_size
    held, grows = jobs.computed - jobs.shared * size, jobs.remaining + size - 1
    if (held + grows).sum() <= engine.blocks * size:
        return 0.0
    peak, count, context = 0.0, len(jobs), held.sum()
    for j in np.argsort(jobs.remaining, kind="mergesort"):
        peak = max(peak, context + count * grows[j])
        count -= 1
        context -= held[j]
    return peak / size


@kernel
def startable(jobs, engine):
    """Which jobs may take KV blocks now, where no proof says so: bool [jobs]. Those that hold some,
    and then, earliest deadline first, those with which all can grow to their ends, a token per
    step; at least one."""
    grown, inside = jobs.copy(), jobs.computed > 0
    grown.computed[:] = jobs.computed + jobs.left - 1
    for j in np.argsort(jobs.due, kind="mergesort"):
        if not inside[j]:
            inside[j] = True
            inside[j] = inside.sum() == 1 or _peak(grown[inside], engine) <= engine.blocks
    return inside
