"""The fluid view of a replica: what the planner is asked (paper, section 4), where tokens flow at a
rate and steps do not show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import Roofline, tokens_in
from slos.planning.jobs import blocks_of, slack_per_token


class Problem(NamedTuple):
    """One planning. Seconds, tokens, blocks; every number is a float but tier, forced and seats.

    tau, rates (see `prefill_rates`) and n, requests that decode already, are over tiers. D
    (absolute), p, m, v, tier and forced (admitted already) are over requests. seats: no more new
    requests of a tier than that are accepted.
    """

    now: float
    tau: np.ndarray
    rates: np.ndarray
    n: np.ndarray
    D: np.ndarray
    p: np.ndarray
    m: np.ndarray
    v: np.ndarray
    tier: np.ndarray
    forced: np.ndarray
    M: float
    seats: int


def prefill_rates(tpots: np.ndarray, roofline: Roofline, context: int = 0) -> np.ndarray:
    """Tokens per second of full batches that last each tier's TPOT: [tiers]. rho(n) =
    rates[tightest] - sum n/tpot."""
    reading, tile = roofline.k_ctx * context, roofline.tile
    most = [(max(0.0, tokens_in(roofline.planes, t - reading)), t) for t in tpots.tolist()]
    return np.array([(n if tile == 1 else n // tile * tile) / t for n, t in most])


@kernel
def fluid(now, jobs, tau, rates, engine, seats):
    """The planner's view of `jobs`: prefills are requests, decodes are counted.

    A request ahead of its schedule counts in the loosest tier that its slack allows, and memory is
    bounded by what is held now; when blocks come back is for the look ahead to see. tau: ascending,
    one tier looser than any job last; rates: see `prefill_rates`.
    """
    n = np.zeros(len(tau))
    some = np.empty(len(jobs), np.int64)
    memory = np.empty(len(jobs))
    count, room = 0, float(engine.blocks)
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
    some = some[:count]
    them = jobs[some]
    return Problem(
        now, tau, rates, n, them.due.copy(), them.left.copy(), memory[some], them.value.copy(),
        np.searchsorted(tau, them.tpot), them.new == 0, max(0.0, room), seats,
    )  # fmt: skip
