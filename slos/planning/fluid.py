"""The fluid view of a replica, from which the planner's problem is made (paper, section 4): tokens
flow at a rate, and single steps do not show."""

from __future__ import annotations

import numpy as np

from slos.core.kernels import jitable, kernel
from slos.core.roofline import batch_time, tokens_in
from slos.planning.jobs import blocks_of, slack_per_token
from slos.planning.planner import Problem, sweep


@jitable
def prefill_rates(tau, hardware, context=0.0):
    """Tokens per second of full batches that last each tier's TPOT, while decodes read `context`:
    [tiers]. rho(n) = rates[tightest] - sum n/tau."""
    rates, tile = np.empty(len(tau)), hardware.tile
    for k in range(len(tau)):
        most = max(0.0, tokens_in(hardware.planes, tau[k] - hardware.k_ctx * context))
        rates[k] = (most if tile == 1 else most // tile * tile) / tau[k]
    return rates


@kernel
def propose(now, jobs, engine, seats):
    """The prefill jobs that the planner accepts: bool [prefills], in their order."""
    return sweep(fluid(now, jobs, engine, seats))[0]


@kernel
def fluid(now, jobs, engine, seats):
    """The planner's view of `jobs`: prefills are requests, decodes are counted.

    A request ahead of its schedule counts in the loosest tier that its slack allows; the last tier
    is looser than any job. Memory is bounded by what is free now; the look-ahead accounts for
    blocks that are given back later.
    """
    tau = np.unique(jobs.tpot.copy())
    tau = np.append(tau, 2 * tau[-1])
    n = np.zeros(len(tau))
    some = np.empty(len(jobs), np.int64)
    memory = np.empty(len(jobs))
    count, room, context = 0, float(engine.blocks), 0.0
    for j in range(len(jobs)):
        tier, job = 0, jobs[j]
        memory[j] = blocks_of(job, job.computed + job.left, engine.block_size)
        room -= 0.0 if job.new else memory[j]
        if job.new or job.left > 1:
            some[count] = j
            count += 1
        else:
            pace = job.tpot + slack_per_token(job, now)
            while tier + 1 < len(tau) and tau[tier + 1] <= pace:
                tier += 1
            n[tier] += 1
            context += job.computed
    rates = prefill_rates(tau, engine, context)
    if engine.fixed:
        rates[:] = engine.fixed / batch_time(engine, engine.fixed, 0, context)
    some = some[:count]
    them = jobs[some]
    return Problem(
        now, tau, rates, n, them.due.copy(), them.left.copy(), memory[some], them.value.copy(),
        np.searchsorted(tau, them.tpot), them.new == 0, max(0.0, room), seats,
    )  # fmt: skip
