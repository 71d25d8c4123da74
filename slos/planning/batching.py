"""From a plan to the next batch (paper, section 4.2; dynamic batch size).

One rule forms every batch: it lasts until the earliest token deadline; decodes go first, then
prefill by earliest deadline. Where that would make a prefill late, only decodes that cannot wait
for another such step go before it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, Roofline, batch_fits, batch_time, least_time, slowness
from slos.core.types import View


class Engine(NamedTuple):
    """What kernels know of a replica: its roofline (planes, tile, k_ctx, chunk) and its KV cache
    (blocks, of block_size tokens).

    longest: seconds of a step at the most; fixed: if above 0, every batch holds so many tokens,
    decodes first, whatever is due. Blocks that several requests hold are left out.
    """

    planes: np.ndarray
    tile: int
    k_ctx: float
    chunk: float
    longest: float
    fixed: int
    blocks: int
    block_size: int


def engine_of(roofline: Roofline, view: View, longest: float = 0.15, fixed: int = 0) -> Engine:
    hardware = roofline.array, roofline.tile, float(roofline.k_ctx), roofline.chunk
    longest, blocks = float(longest) * slowness(roofline), view.total_blocks
    if any(p.shared for p in view.running):
        # held for ever, as it were, because none of those that hold them gives them back for sure
        blocks = view.free_blocks + sum(map(view.frees, view.running))
    return Engine(*hardware, longest, fixed, blocks, view.block_size)


class Owed(NamedTuple):
    """Tokens that all jobs together have left, those that they have in the KV cache, and when the
    earliest decode is due (s)."""

    tokens: float
    context: float
    soonest: float


@kernel
def form(now, jobs, engine):
    """The next step's seconds, and its tokens of each job: float [jobs].

    A job that is late beyond cure no longer shortens the step for others.
    """
    tokens = np.empty(len(jobs))
    prefills, owed = scan(jobs, tokens)
    return fill(now, jobs, prefills, owed, engine, tokens), tokens


@kernel
def scan(jobs, tokens):
    """One token for every decode, none for others, whose indices are returned, earliest deadline
    first; and what all are owed."""
    prefills = np.empty(len(jobs), np.int64)
    count, total, context, soonest = 0, 0.0, 0.0, np.inf
    for j in range(len(jobs)):
        job = jobs[j]
        total += job.left
        context += job.computed
        tokens[j] = job.left == 1
        if job.left == 1:
            soonest = min(soonest, job.due)
        else:
            prefills[count] = j
            count += 1
    prefills = prefills[:count]
    sort(prefills, jobs)
    return prefills, Owed(total, context, soonest)


@kernel
def fill(now, jobs, prefills, owed, engine, tokens):
    """`form` after `scan`."""
    decodes, fixed = owed.tokens, engine.fixed
    for j in prefills:
        decodes -= jobs[j].left
    limit = _limit(now, jobs, prefills, decodes, owed, engine)
    # whole tiles: the rest of one is free
    budget = max(float(engine.tile), batch_fits(engine, limit, context=owed.context))
    if fixed:
        budget = max(decodes, float(fixed))
    if owed.tokens <= budget:
        for j in prefills:
            tokens[j] = jobs[j].left
        return batch_time(engine, owed.tokens, context=owed.context)
    rate = (budget - decodes) / limit
    if decodes > budget or (not fixed and _too_slow(now, jobs, prefills, rate)):
        used = _urgent_first(now + 2 * limit, jobs, prefills, budget, tokens)
    else:
        used = _give(jobs, prefills, decodes, budget, tokens)
    context = 0.0
    for j in range(len(jobs)):
        context += jobs[j].computed if tokens[j] else 0.0
    return batch_time(engine, used, context=context)


@kernel
def longest_step(engine, context):
    """Seconds of a step at the most. Where `context` alone takes long, twice the shortest step. One
    of more tokens than `chunk` takes longer for each: a deadline further away would make prompts
    later."""
    most = max(engine.longest, 2 * batch_time(engine, 1.0, context=context))
    if engine.chunk < np.inf:
        most = min(most, batch_time(engine, engine.chunk, context=context))
    return most


@kernel
def _limit(now, jobs, prefills, decodes, owed, engine):
    """Seconds that a step may last: until the earliest deadline that can be met."""
    least = batch_time(engine, max(decodes, 1.0), context=owed.context)
    limit = max(least, min(longest_step(engine, owed.context), owed.soonest - now))
    for j in prefills:
        slack = jobs[j].due - now
        if slack + EPS >= least_time(engine, jobs[j].left):
            limit = min(limit, slack)
    return limit


@kernel
def _too_slow(now, jobs, prefills, rate):
    """Whether some prefill will be late at so many tokens per second for all of them."""
    left = 0.0
    for j in prefills:
        left += jobs[j].left
        if left > rate * (jobs[j].due - now):
            return True
    return False


@kernel
def _urgent_first(until, jobs, prefills, budget, tokens):
    """Decodes due before `until`, then prefills, then other decodes; what is used of the budget."""
    decoding = np.flatnonzero(tokens)
    sort(decoding, jobs)
    urgent = np.searchsorted(jobs.due[decoding], until)  # so many of them
    tokens[:] = 0.0
    order = np.concatenate((decoding[:urgent], prefills, decoding[urgent:]))
    return _give(jobs, order, 0.0, budget, tokens)


@kernel
def sort(some, jobs):
    """Sort indices in place, earliest deadline first, ties as they were."""
    if len(some) > 1:
        some[:] = some[np.argsort(jobs.due[some], kind="mergesort")]


@kernel
def _give(jobs, some, used, budget, tokens):
    """Give `some` jobs in turn what they have left, as far as `budget` goes; what is then used of
    it."""
    for j in some:
        if used >= budget:
            break
        tokens[j] = min(jobs[j].left, budget - used)
        used += tokens[j]
    return used


@kernel
def latest_end(now, jobs, tokens, engine, cushion):
    """Until when this step may be stretched for best effort.

    No deadline passes, and every job keeps `cushion` seconds beyond the time of a step of decodes;
    `now` if a guaranteed prefill is left over, which has a better use for the time.
    """
    end, context = np.inf, 0.0
    for j in range(len(jobs)):
        job = jobs[j]
        waits = job.left > tokens[j]
        if waits and job.left > 1:
            return now
        end = min(end, job.due - cushion if waits else job.due)
        context += job.computed + tokens[j]
    end = min(end, now + longest_step(engine, context))
    ahead = batch_time(engine, float(len(jobs)), context=context) + cushion
    for j in range(len(jobs)):
        job = jobs[j]
        # one that sets its schedule anew has its whole pace for the next token, however long it is
        if job.left == tokens[j] and job.remaining > 1 and not job.opens:
            end = min(end, job.due + job.tpot - ahead)
    return end
