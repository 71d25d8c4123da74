"""Requests as rows of numbers, for kernels.

Jobs are float64 [jobs, 8]: left (tokens to compute until the next one appears), due (its deadline,
s), tpot (s), remaining (tokens still to be generated), computed (tokens in the KV cache), new (1
while not yet admitted), and, for one whose stages go on without a prompt, switch (remaining when
the next begins) and later (the tpot then).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from struct import pack_into

import numpy as np

from slos.core.kernels import kernel
from slos.core.types import LengthPredictor, Progress

LEFT, DUE, TPOT, REMAINING, COMPUTED, NEW, SWITCH, LATER = range(8)


def jobs_of(requests: Sequence[Progress], lengths: LengthPredictor) -> np.ndarray:
    """One row each, none of them new."""
    n, later = len(requests), [p.later_tpot for p in requests]
    tokens, computed = [p.tokens for p in requests], [p.computed for p in requests]
    generated, remaining = [p.generated for p in requests], map(lengths.remaining, requests)
    # filled by struct, several times as fast as np.array
    ints, floats = np.empty((4, n), np.int64), np.empty((3, n))
    pack_into(f"{4 * n}q", ints.data, 0, *tokens, *computed, *generated, *remaining)
    pack_into(
        f"{3 * n}d", floats.data, 0, *[p.t0 for p in requests], *[p.tpot for p in requests], *later
    )
    jobs = np.zeros((n, 8))
    jobs[:, LEFT] = ints[0] - ints[1]
    jobs[:, DUE] = floats[0] + ints[2] * floats[1]
    jobs[:, TPOT], jobs[:, LATER] = floats[1:]
    jobs[:, REMAINING], jobs[:, COMPUTED] = ints[3], ints[1]
    for j in np.flatnonzero(floats[2] < inf).tolist():
        jobs[j, SWITCH] = lengths.after_stage(requests[j])
    return jobs


@kernel
def fluid(now, jobs, new, value, blocks, block_size, tpots):
    """The planner's view of `jobs`, of which the last `new` ask to be admitted: what
    `planner.sweep` takes from `decoding` on; those jobs that it is about come in their order.

    A request ahead of its schedule counts in the loosest tier that its slack allows, and memory is
    bounded by what is held now; when blocks come back is for the look ahead to see. tpots:
    ascending, one tier looser than any job last.
    """
    size, old = len(jobs), len(jobs) - new
    decoding = np.zeros(len(tpots))
    some = np.empty(size, np.int64)
    memory = np.empty(size)
    count, room = 0, blocks
    for j in range(size):
        tier, job = 0, jobs[j]
        memory[j] = np.ceil((job[COMPUTED] + job[LEFT]) / block_size)
        room -= memory[j] if j < old else 0.0
        if j >= old or job[LEFT] > 1:
            some[count] = j
            count += 1
        else:
            pace = job[TPOT] + max(0.0, job[DUE] - job[TPOT] - now) / job[REMAINING]
            while tier + 1 < len(tpots) and tpots[tier + 1] <= pace:
                tier += 1
            decoding[tier] += 1
    some = some[:count]
    values = np.concatenate((np.ones(count - new), value))
    tiers = np.searchsorted(tpots, jobs[some, TPOT])
    return (
        decoding, jobs[some, DUE], jobs[some, LEFT], memory[some], values, tiers, some < old,
        max(0.0, room),
    )  # fmt: skip


@kernel
def needed(jobs, tokens, block_size):
    """KV blocks, and seats, that a step with `tokens` takes beyond those that its jobs have."""
    blocks, starts = 0.0, 0
    for j in range(len(jobs)):
        if tokens[j]:
            blocks += np.ceil((jobs[j, COMPUTED] + tokens[j]) / block_size) - np.ceil(
                jobs[j, COMPUTED] / block_size
            )
            starts += jobs[j, COMPUTED] == 0
    return blocks, starts
