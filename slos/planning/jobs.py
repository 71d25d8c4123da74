"""Requests as records, for kernels, and what a step does to one."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from struct import pack_into

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS
from slos.core.types import LengthPredictor, Progress

FIELDS = "left due tpot remaining computed new switch later value opens reopens shared"
JOB = np.dtype([(name, np.float64) for name in FIELDS.split()])
"""left: tokens to compute until the next one appears; due: its deadline (s); tpot (s); remaining:
tokens still to be generated; computed: tokens in the KV cache; new: 1 while not yet admitted;
value. Of one whose stages go on without a prompt, switch: remaining when the next begins, and
later: the TPOT then. opens: how many of the next tokens set the schedule anew, 1 at the beginning
of a stage by the clients' rule (`slos.core.pace`), else 0; reopens: how many when the next stage
begins, infinite where others follow that one, since it is not known here when they begin. shared:
its KV blocks that others hold too, which the engine's `blocks` leave out."""


def jobs_of(requests: Sequence[Progress], lengths: LengthPredictor, new: int = 0) -> np.ndarray:
    """A record of each request, the last `new` of which ask to be admitted: `JOB` [requests].

    What these find in a prefix cache they hold if they start now. Others that wait were promised
    before, and what they would find may be gone when they start: they are to compute it again.
    """
    n, old = len(requests), len(requests) - new
    computed = [p.computed for p in requests[:old]]
    computed += [p.computed + p.cached for p in requests[old:]]
    left = [p.tokens - have for p, have in zip(requests, computed, strict=True)]
    due, tpot = [p.t0 + p.generated * p.tpot for p in requests], [p.tpot for p in requests]
    later, value = [p.later_tpot for p in requests], [p.value for p in requests]
    opens = [p.client and not p.generated for p in requests]
    shared = [p.shared if p.computed else 0 for p in requests]
    switch, reopens = [0] * n, [0.0] * n
    for j in [j for j, pace in enumerate(later) if pace < inf]:
        p = requests[j]
        switch[j] = lengths.after_stage(p)
        reopens[j] = 0.0 if not p.client else 1.0 if p.stages_left == 1 else inf
    columns = np.empty((len(JOB), n))  # filled by struct, several times as fast as np.array
    pack_into(
        f"{columns.size}d", columns.data, 0, *left, *due, *tpot, *map(lengths.remaining, requests),
        *computed, *[0] * old, *[1] * new, *switch, *later, *value, *opens, *reopens, *shared,
    )  # fmt: skip
    return np.ascontiguousarray(columns.T).view(JOB).reshape(n)


@kernel
def advance(job, tokens, drafts, now):
    """Compute `tokens` of a job until `now`; whether that ends with its next one, and with `drafts`
    accepted beside, as many as its stage has left."""
    if tokens < job.left:
        job.left -= tokens
        job.computed += tokens
        return False
    said = 1 + min(drafts, max(0.0, job.remaining - job.switch - 1))
    job.computed += tokens + said - 1
    job.left = 1.0
    job.remaining -= said
    if job.opens:
        job.due = now
        job.opens -= 1.0
    job.due += (said - 1) * job.tpot
    if job.remaining == job.switch:
        job.tpot = job.later
        job.opens = job.reopens
        job.switch = job.reopens = 0.0
    job.due += job.tpot
    return True


@kernel
def slack_per_token(job, now):
    """Seconds by which one ahead of its pace may be slower with each token to come: slack lasts to
    its end, by the clients' rule of pace to its stage's."""
    if job.opens:
        return 0.0
    tokens = job.remaining - (job.switch if job.reopens else 0.0)
    return max(0.0, job.due - job.tpot - now) / tokens


@kernel
def advanced(now, jobs, tokens, drafts):
    """The jobs after a step that ends at `now` and gave them `tokens`, all drafts accepted; which
    go on; whether all are in time.

    To be proven afterwards: one that could be in time before and no more can fails there.
    """
    jobs, alive, in_time = jobs.copy(), np.ones(len(jobs), np.bool_), True
    for j in range(len(jobs)):
        job = jobs[j]
        job.new = 1.0
        due = job.due
        if advance(job, tokens[j], drafts[j], now):
            in_time &= now <= due + EPS
            alive[j] = job.remaining > 0
    return jobs, alive, in_time


@kernel
def blocks_of(job, tokens, block_size):
    """KV blocks of a job with so many tokens, those that are shared left out."""
    return np.ceil(tokens / block_size) - job.shared


@kernel
def needed(jobs, tokens, block_size):
    """KV blocks, and seats, that a step with `tokens` takes beyond those that its jobs have."""
    blocks, starts = 0.0, 0
    for j in range(len(jobs)):
        if tokens[j]:
            had = jobs[j].computed
            blocks += np.ceil((had + tokens[j]) / block_size) - np.ceil(had / block_size)
            starts += had == 0
    return blocks, starts
