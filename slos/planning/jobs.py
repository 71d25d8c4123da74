"""Requests as records, for kernels, and what a step does to one."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from struct import Struct

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS
from slos.core.types import LengthPredictor, Progress

FIELDS = "left due tpot remaining computed new switch later value opens reopens shared sure gain"
JOB = np.dtype([(name, np.float64) for name in FIELDS.split()])
"""left: tokens to compute until the next one appears; due: until when it may come (s): its deadline
and, by the clients' rule, the time lent to it; tpot (s); remaining: output tokens still to come;
computed: tokens in the KV cache; new: 1 where it must be in time for certain, as it asks to be
admitted, 0 where it is promised: if it cannot be in time even alone it is not checked; value. For a
request whose stages follow each other without a prompt, switch: `remaining` when the next stage
begins; later: the TPOT from then on. opens: how many of the next tokens restart the schedule, by
the clients' rule (`slos.core.pace`) a stage's first one, else none; reopens: how many do from the
last token of this stage on: that one, or, if more than one stage follows, all, because it is not
known here which of them end stages.
shared: its KV blocks that other requests hold too; the engine's `blocks` do not count them.

By the clients' rule only the mean pace of a stage counts, so a token may come late if the tokens
after it make up for that. `due` is then the latest time from which they can, each `gain` seconds
faster than its TPOT; sure: how many tokens of the stage are sure to come, 0 if that is not known,
as when a promise looks beyond a stage: nothing is lent in the stages that follow."""

PACK = Struct(f"{len(FIELDS.split())}d").pack
LEND = 0.3  # of the time by which a token can be faster than its TPOT, this share is counted on
LENT = 8.0  # most TPOTs by which a token may come later than at its pace


def jobs_of(
    requests: Sequence[Progress], lengths: LengthPredictor, new: int = 0, shortest: float = inf
) -> np.ndarray:
    """A record of each request, the last `new` of which ask to be admitted: `JOB` [requests].
    shortest: the least seconds of a step."""
    rows, started, lend = list[bytes](), len(requests) - new, False
    remaining = lengths.remaining
    for p in requests:
        left, computed = p.tokens - p.computed, p.computed
        if p.cached and len(rows) >= started:
            # It gets what it finds in a prefix cache if it starts now. Other waiting requests were
            # admitted before, and what they would find may be gone when they start.
            left, computed = left - p.cached, computed + p.cached
        goes_on, opens, reopens, sure = p.later_tpot < inf, 0.0, 0.0, 0.0
        switch = lengths.after_stage(p) if goes_on else 0.0
        if p.client:
            lend, opens = True, p.generated == 0 and not p.follows
            reopens = 0.0 if not goes_on else 1.0 if p.stages_left == 1 else inf
            sure = 0.0 if p.follows else lengths.at_least(p)
        # several times faster than filling an array
        row = PACK(
            left, p.t0 + p.generated * p.tpot, p.tpot, remaining(p), computed, 0, switch,
            p.later_tpot, p.value, opens, reopens,
            p.shared if p.computed else 0, sure, 0,
        )  # fmt: skip
        rows.append(row)
    jobs = np.frombuffer(bytearray().join(rows), JOB)
    jobs["new"][started:] = 1
    if lend:
        jobs["gain"] = LEND * np.maximum(0.0, jobs["tpot"] - shortest)
        jobs["due"] += lent_to(jobs)
    return jobs


@kernel
def lent(job):
    """Seconds by which the next token may come later than at its pace; 0 for a stage's first."""
    return 0.0 if job.opens else min(LENT * job.tpot, job.gain * max(0.0, job.sure - 1))


@kernel
def lent_to(jobs):
    """`lent` of each job: [jobs]."""
    seconds = np.empty(len(jobs))
    for j in range(len(jobs)):
        seconds[j] = lent(jobs[j])
    return seconds


@kernel
def advance(job, tokens, drafts, now):
    """Compute `tokens` of a job until `now`. Returns whether its next token then appears; if so,
    so do up to `drafts` accepted ones, as many as its stage has left."""
    if tokens < job.left:
        job.left -= tokens
        job.computed += tokens
        return False
    said = 1 + min(drafts, max(0.0, job.remaining - job.switch - 1))
    job.computed += tokens + said - 1
    job.left = 1.0
    job.remaining -= said
    job.due -= lent(job)
    job.sure -= said
    if job.opens:
        job.due = now
        job.opens -= 1.0
    job.due += (said - 1) * job.tpot
    if job.remaining == job.switch:
        job.tpot = job.later
        if job.reopens:
            job.due = now
            job.opens = job.reopens - 1
        job.switch = job.reopens = job.sure = 0.0
    job.due += job.tpot + lent(job)
    return True


@kernel
def slack_per_token(job, now):
    """Seconds by which each token to come may be slower, for a job ahead of its pace: its slack is
    spread over all tokens to its end, by the clients' rule to its stage's end. Below 0: how much
    faster each token must be, for a job that was lent time."""
    if job.opens:
        return 0.0
    slack = job.due - lent(job) - job.tpot - now
    if slack < 0:
        return max(-job.gain, slack / job.sure) if job.sure > 1 else 0.0
    return slack / (job.remaining - (job.switch if job.reopens else 0.0))


@kernel
def advanced(now, jobs, tokens, drafts):
    """The jobs that continue after a step that ends at `now` and gave them `tokens`, with all
    drafts accepted; and whether all are in time.

    The caller proves them afterwards: that fails for a job that could be in time and no longer can.
    """
    jobs, alive, in_time = jobs.copy(), np.ones(len(jobs), np.bool_), True
    for j in range(len(jobs)):
        job = jobs[j]
        job.new = 1.0
        due = job.due
        if advance(job, tokens[j], drafts[j], now):
            in_time &= now <= due + EPS
            alive[j] = job.remaining > 0
    return jobs[alive], in_time


@kernel
def blocks_of(job, tokens, block_size):
    """KV blocks of a job with `tokens` tokens, without its shared blocks."""
    return np.ceil(tokens / block_size) - job.shared


@kernel
def totals(jobs, block_size):
    """Over all jobs: KV tokens in unshared blocks, all KV tokens, and the tightest TPOT."""
    held, context, tightest = 0.0, 0.0, np.inf
    for j in range(len(jobs)):
        held += jobs[j].computed - jobs[j].shared * block_size
        context += jobs[j].computed
        tightest = min(tightest, jobs[j].tpot)
    return held, context, tightest


@kernel
def needed(jobs, tokens, block_size):
    """KV blocks and seats that a step with `tokens` takes beyond those that its jobs hold."""
    blocks, starts = 0.0, 0
    for j in range(len(jobs)):
        if tokens[j]:
            had = jobs[j].computed
            blocks += np.ceil((had + tokens[j]) / block_size) - np.ceil(had / block_size)
            starts += had == 0
    return blocks, starts
