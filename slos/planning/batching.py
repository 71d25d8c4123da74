"""Batch formation (paper, section 4.2; dynamic batch size).

One rule forms every batch: the batch lasts until the earliest token deadline; decodes go first,
then prefills by earliest deadline. Where this would make a prefill late, the only decodes that go
before it are those that cannot wait for another such step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, Roofline, batch_fits, batch_time, least_time
from slos.core.types import View
from slos.planning.jobs import lent


class Engine(NamedTuple):
    """What kernels know of a replica: its roofline (planes, tile, k_ctx, chunk) and its KV cache
    (blocks, of block_size tokens).

    longest: the most seconds of a step; fixed: if above 0, every batch has so many tokens, decodes
    first, whatever the deadlines. Blocks that several requests share are not counted.
    """

    planes: np.ndarray
    tile: int
    k_ctx: float
    chunk: float
    longest: float
    fixed: int
    blocks: int
    block_size: int


def engine_of(roofline: Roofline, view: View, longest: float, fixed: int) -> Engine:
    hardware = roofline.array, roofline.tile, float(roofline.k_ctx), roofline.chunk
    longest, blocks = float(longest) * roofline.slowness, view.total_blocks
    if any([p.shared for p in view.running]):
        # shared blocks count as held forever: no single holder is sure to free them
        blocks = view.free_blocks + sum(map(view.frees, view.running))
    return Engine(*hardware, longest, fixed, blocks, view.block_size)


@kernel
def form(now, jobs, engine):
    """The next step: its seconds, and its tokens for each job, float [jobs].

    A job that can no longer be in time does not shorten the step.
    """
    decodes, prefills = np.flatnonzero(jobs.left == 1), np.flatnonzero(jobs.left > 1)
    sort(prefills, jobs)
    context = jobs.computed.sum()
    # how long, in seconds: until the earliest deadline that can still be met
    limit = _limit(now, jobs, decodes, prefills, context, engine)
    # how many tokens: as many as take that long, in whole tiles, since the rest of one is free
    budget = max(engine.tile, batch_fits(engine, limit, 0, context))
    if engine.fixed:
        budget = max(len(decodes), engine.fixed)
    # in which order: decodes, then prefills, at a rate of tokens per second that decodes leave
    first, rate = len(decodes), (budget - len(decodes)) / limit
    if rate < 0 or (not engine.fixed and _too_slow(now, jobs, prefills, rate)):
        # only decodes that are due before the end of the next such step go before prefills
        sort(decodes, jobs)
        first = np.searchsorted(jobs.due[decodes], now + 2 * limit)
    tokens, used, context = np.zeros(len(jobs)), 0.0, 0.0
    for j in np.concatenate((decodes[:first], prefills, decodes[first:])):
        if used >= budget:
            break
        given = min(jobs[j].left, budget - used)
        tokens[j] = given
        used += given
        context += jobs[j].computed
    return batch_time(engine, used, 0, context), tokens


@kernel
def longest_step(engine, context):
    """The most seconds of a step; if reading `context` alone takes long, twice the shortest step. A
    step of more than `chunk` tokens takes longer per token: a later deadline would only delay
    prefills."""
    most = max(engine.longest, 2 * batch_time(engine, 1, 0, context))
    if engine.chunk < np.inf:
        most = min(most, batch_time(engine, engine.chunk, 0, context))
    return most


@kernel
def _limit(now, jobs, decodes, prefills, context, engine):
    """Seconds that a step may last: until the earliest deadline that can still be met."""
    soonest = np.inf
    for j in decodes:
        soonest = min(soonest, jobs[j].due)
    least = batch_time(engine, max(len(decodes), 1), 0, context)
    limit = max(least, min(longest_step(engine, context), soonest - now))
    for j in prefills:
        slack = jobs[j].due - now
        if slack + EPS >= least_time(engine, jobs[j].left):
            limit = min(limit, slack)
    return limit


@kernel
def _too_slow(now, jobs, prefills, rate):
    """Whether some prefill will be late if all prefills together get `rate` tokens per second."""
    left = 0.0
    for j in prefills:
        left += jobs[j].left
        if left > rate * (jobs[j].due - now):
            return True
    return False


@kernel
def sort(some, jobs):
    """Sort indices in place, earliest deadline first; ties keep their order."""
    if len(some) > 1:
        some[:] = some[np.argsort(jobs.due[some], kind="mergesort")]


@kernel
def latest_end(now, jobs, tokens, engine, cushion):
    """The latest end to which best effort or drafts may stretch this step.

    No deadline passes, even with no time lent (`slos.planning.jobs.lent`), and every job stays
    `cushion` seconds ahead, beyond the time of a step of decodes. It is `now` if a guaranteed
    prefill is left over, because it makes better use of the time.
    """
    end, context = np.inf, 0.0
    for j in range(len(jobs)):
        job = jobs[j]
        waits = job.left > tokens[j]
        if waits and job.left > 1:
            return now
        end = min(end, job.due - lent(job) - (cushion if waits else 0.0))
        context += job.computed + tokens[j]
    end = min(end, now + longest_step(engine, context))
    ahead = batch_time(engine, len(jobs), 0, context) + cushion
    for j in range(len(jobs)):
        job = jobs[j]
        # a job whose schedule restarts has a whole TPOT for its next token, whenever this one comes
        if job.left == tokens[j] and job.remaining > 1 and not job.opens:
            end = min(end, job.due - lent(job) + job.tpot - ahead)
    return end
