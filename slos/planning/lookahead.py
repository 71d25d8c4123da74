"""The look ahead: the rule of `slos.planning.batching` run forward under the same roofline, which
proves a set of promises.

A set of requests that it passes is served in time, step by step, as long as no other is admitted.
"""

from __future__ import annotations

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, batch_time, least_time
from slos.planning.batching import Owed, fill, scan
from slos.planning.jobs import advance, blocks_of, slack_per_token

OK, LATE, MEMORY = 0, 1, 2
SETTLE = 32  # decode steps looked ahead, after the last prefill, until every job keeps pace
# candidates that the planner's fluid view left out and the look ahead is asked about all the same
SECOND_TRIES = 4


@kernel
def choose(now, jobs, proposed, seats, engine):
    """Which of the last jobs, those that are `proposed` or others like them, to admit beside all
    before them: bool [proposed].

    Of the proposed the costliest to blame go, as in Moore and Hodgson's rule for late jobs, until
    the look ahead passes; then some of those left out, smallest prefill per value first, are let in
    if it still passes. At most `seats` are admitted.
    """
    inside = np.ones(len(jobs), np.bool_)
    mine, ours = inside[len(jobs) - len(proposed) :], jobs[len(jobs) - len(proposed) :]
    mine[:] = proposed
    while mine.any():
        some, verdict, at = jobs[inside], OK, -1
        if mine.sum() <= seats:
            verdict, at = look_ahead(now, some, engine)
            if verdict == OK:
                break
        mine[_costliest(ours, mine, np.inf if at < 0 else some[at].due, verdict == MEMORY)] = False
    tries = SECOND_TRIES
    for c in np.argsort(ours.left / ours.value, kind="mergesort"):
        if not mine[c] and tries > 0 and mine.sum() < seats:
            tries -= 1
            mine[c] = True
            mine[c] = proven(now, jobs[inside], engine)
    return mine


@kernel
def _costliest(jobs, mine, until, memory):
    """Index of that of `mine` due by `until`, or later if none is, with the most prefill tokens
    left per value; where `memory` is short, of the largest size."""
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
    """Whether all jobs are served in time, as long as no other is admitted."""
    return look_ahead(now, jobs, engine)[0] == OK


@kernel
def look_ahead(now, jobs, engine):
    """Run the rule forward until it can be argued on: (OK | LATE | MEMORY, the job that failed or
    -1).

    Once every job decodes in every step of at most the tightest TPOT none loses slack, and memory
    is checked at each finish. Where some must sit out batches, the pace is checked as a rate and
    memory by final sizes. An admitted job that cannot be in time even alone is not checked, so that
    it does not forbid others.
    """
    jobs, alive, tokens = jobs.copy(), np.ones(len(jobs), np.bool_), np.empty(len(jobs))
    strict, hopeless = _can_be_in_time(now, jobs, engine)
    if hopeless >= 0:
        return LATE, hopeless
    prefills, owed = scan(jobs, tokens)
    settle = SETTLE
    while settle > 0:
        if not len(prefills):
            settle -= 1
            if _steady(now, jobs, alive, strict, engine):
                return (OK if _peak(jobs, alive, engine) <= engine.blocks else MEMORY), -1
        now += fill(now, jobs, prefills, owed, engine, tokens)
        verdict, late, owed = _step(now, jobs, alive, strict, engine, tokens)
        if verdict != OK:
            return verdict, late
        prefills = prefills[alive[prefills] & (jobs.left[prefills] > 1)]
    return _in_the_long_run(now, jobs, alive, engine), -1


@kernel
def _can_be_in_time(now, jobs, engine):
    """Which jobs can be in time if they are computed alone: bool [jobs]; and the first new one that
    cannot, or -1."""
    strict = np.ones(len(jobs), np.bool_)
    for j in range(len(jobs)):
        job = jobs[j]
        strict[j] = now + least_time(engine, job.left) <= job.due + EPS
        if job.new and not strict[j]:
            return strict, j
    return strict, -1


@kernel
def _step(now, jobs, alive, strict, engine, tokens):
    """Let a step with `tokens` end at `now`: the verdict, the job that is late or -1, and what is
    then owed. `tokens` become 1 for each decode."""
    held = freed = total = context = 0.0
    soonest, verdict = np.inf, OK
    for j in range(len(jobs)):
        if not alive[j]:
            continue
        job = jobs[j]
        if strict[j] and now > job.due + EPS:
            return LATE, j, Owed(total, context, soonest)
        spoke = advance(job, tokens[j], 0.0, now)
        held += job.computed - job.shared * engine.block_size
        if spoke and job.remaining == 0:
            alive[j] = False
            tokens[j] = 0.0
            freed += blocks_of(job, job.computed, engine.block_size)
            continue
        total += job.left
        context += job.computed
        tokens[j] = job.left == 1
        if job.left == 1 and job.due < soonest:
            soonest = job.due
    # perhaps not, if blocks are counted one by one
    if held + len(jobs) * (engine.block_size - 1) > engine.blocks * engine.block_size:
        for j in range(len(jobs)):
            freed += blocks_of(jobs[j], jobs[j].computed, engine.block_size) if alive[j] else 0.0
        verdict = MEMORY if freed > engine.blocks else OK
    return verdict, -1, Owed(total, context, soonest)


@kernel
def _in_the_long_run(now, jobs, alive, engine):
    """The verdict on jobs that all decode: whether each can wait for steps of all of them, with
    what slack it has left, and whether the KV cache holds their final sizes.

    Decodes sit out only for prompts, so without one every step is a step of all.
    """
    seconds, blocks = _at_the_end(jobs, alive, engine)
    for j in range(len(jobs)):
        if alive[j]:
            job = jobs[j]
            pace = _tightest(job) + slack_per_token(job, now)
            if (min(pace, job.later) if job.reopens else pace) < seconds:
                return LATE
    return OK if blocks <= engine.blocks else MEMORY


@kernel
def _tightest(job):
    """The smallest TPOT of what a job still has to say."""
    changes = job.switch > 0 and job.remaining > job.switch
    return min(job.tpot, job.later) if changes else job.tpot


@kernel
def _steady(now, jobs, alive, strict, engine):
    """Whether all alive can decode in every step from now to the end without losing slack."""
    seconds, _ = _at_the_end(jobs, alive, engine)
    for j in range(len(jobs)):
        if alive[j]:
            job = jobs[j]
            wait = _tightest(job) + min(0.0, slack_per_token(job, now))
            if seconds > (min(wait, job.due - now) if strict[j] else wait) + EPS:
                return False
    return True


@kernel
def keeps_pace(now, jobs, engine):
    """Whether all jobs can decode in every step from now to the end without losing slack."""
    everyone = np.ones(len(jobs), np.bool_)
    return _steady(now, jobs, everyone, everyone, engine)


@kernel
def _at_the_end(jobs, alive, engine):
    """Seconds of a step in which all alive decode, and their KV blocks, at their final sizes."""
    count = context = shared = blocks = 0.0
    for j in range(len(jobs)):
        if alive[j]:
            size = jobs[j].computed + jobs[j].remaining
            count += 1
            context += size
            shared += jobs[j].shared
            blocks += blocks_of(jobs[j], size, engine.block_size)
    # a step reads no more than the cache holds, in which several may read the shared blocks
    context = min(context, (engine.blocks + shared) * engine.block_size)
    return batch_time(engine, count, 0, context), blocks


@kernel
def _peak(jobs, alive, engine):
    """Most KV blocks held at once, or slightly more, while all alive decode to their ends one token
    a step; 0 where all of them fit anyway."""
    them, size = jobs[np.flatnonzero(alive)], engine.block_size
    held, grows = them.computed - them.shared * size, them.remaining + size - 1
    if (held + grows).sum() <= engine.blocks * size:
        return 0.0
    peak, count, context = 0.0, len(them), held.sum()
    for j in np.argsort(them.remaining, kind="mergesort"):
        peak = max(peak, context + count * grows[j])
        count -= 1
        context -= held[j]
    return peak / size
