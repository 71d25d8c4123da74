"""Speculative decoding: what a draft length is worth, and how often drafts are accepted (paper,
section 4.3).

A guaranteed request drafts for one of two reasons. If no prefill is left over, or KV blocks are
short, drafts finish the request sooner, which frees its blocks. Otherwise drafts bring it ahead of
its pace, so that it can sit out the batches of a burst: then only requests that are less than AHEAD
tokens ahead draft, and no further than pays for their tier in the long run.

alpha is the probability that a draft token is accepted if those before it were; a step with s
drafts yields A(s) = 1 + alpha + ... + alpha^s = (1 - alpha^(s+1)) / (1 - alpha) expected tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import Roofline, batch_fits, batch_time
from slos.core.types import Progress, View
from slos.planning.batching import Engine, form, latest_end
from slos.planning.jobs import advanced, lent_to, needed
from slos.planning.lookahead import keeps_pace, proven

# tokens: a request further ahead of its pace needs no drafts while prefill is left over
AHEAD = 2.0
PRIOR, WEIGHT = 0.7, 50.0  # alpha at first, which counts as so many draft tokens


@kernel
def expected_tokens(alpha: float, drafts: int) -> float:
    """A(s): expected tokens of a step with `drafts` draft tokens."""
    return drafts + 1.0 if alpha == 1 else (1 - alpha ** (drafts + 1)) / (1 - alpha)


@kernel
def draft_lengths(engine, context, alpha, wanted, tokens, seconds):
    """Draft lengths [requests] with the greatest worth of tokens per second, in a step of at most
    `seconds`.

    wanted: the worth of a token of each request, and its longest draft; tokens: of the whole batch
    without drafts. The k-th draft of a request brings alpha^k tokens, so for any longest draft and
    any number of drafts the most valuable drafts are the best choice: both numbers are tried out.
    """
    worth, limit = wanted
    value, owner, place = _each_draft(alpha, worth, limit)
    order = np.argsort(-value, kind="mergesort")
    best, best_drafts, best_longest = worth.sum() / batch_time(engine, tokens, 0, context), 0, 0
    for longest in range(1, limit.max() + 1):
        gained, drafts = worth.sum(), 0
        for j in order[place[order] <= longest]:
            gained, drafts = gained + value[j], drafts + 1
            time = batch_time(engine, tokens + drafts, longest, context)
            if time > seconds:
                break
            if gained / time > best:
                best, best_drafts, best_longest = gained / time, drafts, longest
    lengths = np.zeros(len(limit), np.int64)
    for j in order[place[order] <= best_longest][:best_drafts]:
        lengths[owner[j]] = place[j]
    return lengths


@kernel
def _each_draft(alpha, worth, limit):
    """For every draft of every request, the first ones first: its value, its owner, and its place
    in the draft."""
    size = limit.sum()
    value = np.empty(size)
    owner, place = np.empty(size, np.int64), np.empty(size, np.int64)
    size = 0
    for k in range(1, limit.max() + 1):
        for i in range(len(limit)):
            if k <= limit[i]:
                value[size], owner[size], place[size] = worth[i] * alpha**k, i, k
                size += 1
    return value, owner, place


def drafted(engine: Engine, drafts: int, tokens: int) -> Engine:
    """The engine for the rest of a batch with `tokens` draft tokens, the longest draft `drafts`."""
    planes, tile = engine.planes.copy(), engine.tile
    planes["b"] += planes["k2"] * drafts + planes["k1"] * np.ceil(tokens / tile) * tile
    return engine._replace(planes=planes)


@kernel
def tier_lengths(engine, context, alpha, tpots, counts, most):
    """Draft lengths [tiers] that leave the most tokens per second for prefills, and how many those
    are: rho(n).

    Of the requests, `counts` per tier at `tpots`, each decodes at its pace, with s drafts in a step
    every A(s) * tpot seconds. So the step lasts as long as the bottleneck tier allows, at most the
    engine's longest, and a tier that could wait longer sits out some. For a given step the shortest
    draft that keeps the pace is the cheapest, so only the bottleneck tier and its draft have to be
    chosen. most: drafts that are allowed.
    """
    lengths, best = np.zeros(len(tpots), np.int64), -np.inf
    for tier in range(len(tpots)):
        for s in range(most + 1):
            seconds = min(engine.longest, tpots[tier] * expected_tokens(alpha, s))
            mine, cost, possible = _shortest(seconds, alpha, tpots, counts, most)
            rate = (batch_fits(engine, seconds, mine.max(), context, 0.0) - cost) / seconds
            if possible and rate > best:
                lengths, best = mine, rate
    return lengths, best


@kernel
def _shortest(seconds, alpha, tpots, counts, most):
    """The shortest drafts [tiers] that keep each tier's pace in steps of `seconds`, their cost in
    tokens per step, and whether all tiers keep their pace."""
    lengths, cost, possible = np.zeros(len(tpots), np.int64), 0.0, True
    for tier in range(len(tpots)):
        n = 0
        while n < most and tpots[tier] * expected_tokens(alpha, n) < seconds:
            n += 1
        pace = tpots[tier] * expected_tokens(alpha, n)
        if counts[tier]:
            possible &= pace >= seconds
            lengths[tier] = n
            cost += counts[tier] * (n + 1) * min(1.0, seconds / pace)
    return lengths, cost, possible


@dataclass(slots=True)
class Acceptance:
    """alpha, learned from the drafts that were verified.

    ahead: by id, accepted tokens that no proof has counted on yet.
    """

    ahead: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _tried: float = field(init=False, repr=False, default=0.0)
    _accepted: float = field(init=False, repr=False, default=0.0)
    _given: dict[str, tuple[int, int, int]] = field(init=False, repr=False, default_factory=dict)

    @property
    def alpha(self) -> float:
        return (self._accepted + PRIOR * WEIGHT) / (self._tried + WEIGHT)

    def give(self, p: Progress, drafts: int) -> None:
        """Remember that `p` verifies `drafts` draft tokens in this step."""
        self._given[p.id] = (p.stage, p.generated, drafts)

    def learn(self, running: Sequence[Progress]) -> None:
        """Learn from how far the requests of the last step have come. The end of a stage hides how
        much was accepted and is not counted."""
        for p in running if self._given else ():
            stage, before, drafts = self._given.get(p.id, (-1, 0, 0))
            if stage == p.stage and p.generated > before:
                accepted = p.generated - before - 1
                self._accepted += accepted
                self.ahead[p.id] = self.ahead.get(p.id, 0) + accepted
                self._tried += min(accepted + 1, drafts)
        self._given.clear()


def left_over(jobs: np.ndarray, share: np.ndarray) -> bool:
    """Whether a step with `share` tokens per job leaves some prefill for another step."""
    return bool((share < jobs["left"])[jobs["left"] > 1].any())


@dataclass(frozen=True, slots=True)
class Drafting:
    """Adds drafts to a step that is formed already. short: whether KV blocks are short."""

    view: View
    roofline: Roofline
    acceptance: Acceptance
    engine: Engine
    short: bool

    def spread(
        self, requests: Sequence[Progress], jobs: np.ndarray, share: np.ndarray, seconds: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Drafts of every job, int [jobs], and its share of the step next to them; without drafts
        it was `share` of `seconds`.

        Drafts may take from prefill that is left over, and from slack that a promise counts on, if
        the look-ahead passes both with all and with no drafts accepted. If the outcome was between
        the two and it fails now, the step is formed as if none had been accepted: that was proven.
        """
        now, ahead, rest = self.view.now, self.acceptance.ahead, share
        none, idle = np.zeros(len(jobs), np.int64), not left_over(jobs, share)
        if idle and keeps_pace(now, jobs, self.engine):
            ahead.clear()
            return self.lengths(jobs, share, seconds), share
        if ahead and not proven(now, jobs, self.engine):
            held, tokens = jobs.copy(), np.array([ahead.get(p.id, 0) for p in requests])
            held["remaining"] += tokens
            held["sure"] += tokens
            held["due"] += lent_to(held) - lent_to(jobs) - tokens * jobs["tpot"]
            return none, form(now, held, self.engine)[1]
        ahead.clear()
        drafts = self.lengths(jobs, share, seconds)
        if not drafts.any():
            return none, share
        if not idle:
            engine = drafted(self.engine, int(drafts.max()), int(drafts.sum()))
            rest = form(now, jobs, engine)[1]
            drafts[rest == 0] = 0
        return (drafts, rest) if self._proven(jobs, rest, drafts) else (none, share)

    def _proven(self, jobs: np.ndarray, share: np.ndarray, drafts: np.ndarray) -> bool:
        """Whether there is memory for a step of `share` and `drafts`, and all promises hold after
        it, both if all and if none of the drafts are accepted."""
        size, context = int((share + drafts).sum()), int(jobs["computed"][share > 0].sum())
        end = self.view.now + self.roofline.time(size, int(drafts.max()), context)
        if needed(jobs, share + drafts, self.view.block_size)[0] > self.view.free_blocks:
            return False
        for accepted in (np.zeros_like(drafts), drafts):
            then, in_time = advanced(end, jobs, share, accepted)
            if not in_time or not proven(end, then, self.engine):
                return False
        return True

    def lengths(self, jobs: np.ndarray, share: np.ndarray, seconds: float) -> np.ndarray:
        """Drafts that pay in addition to `share` in a step of `seconds`: int [jobs]."""
        now, engine, most = self.view.now, self.engine, self.view.max_drafts
        alpha, drafts = self.acceptance.alpha, np.zeros(len(jobs), np.int64)
        decoding = (jobs["left"] == 1) & (share > 0)
        if not decoding.any():
            return drafts
        context, left = jobs["computed"][share > 0].sum(), np.maximum(jobs["remaining"], 1)
        limit = np.minimum(most, left - 1).astype(np.int64)
        if not left_over(jobs, share):
            spare = latest_end(now, jobs, share, engine, 0.0) - now
            # Smith's rule, dampened: KV tokens held per token left
            worth = np.sqrt(jobs["computed"] / left)
            wanted = worth[decoding], limit[decoding]
            drafts[decoding] = draft_lengths(engine, context, alpha, wanted, share.sum(), spare)
            return drafts
        paces = np.unique(jobs["tpot"][decoding], return_inverse=True, return_counts=True)
        tpots, tier, counts = paces
        drafts[decoding] = tier_lengths(engine, context, alpha, tpots, counts, most)[0][tier]
        if not self.short:
            steps = np.array([expected_tokens(alpha, n) for n in range(most + 1)])
            lead = (jobs["due"] - lent_to(jobs) - now - seconds) / jobs["tpot"]
            drafts = np.minimum(drafts, np.searchsorted(steps, AHEAD - lead))
        return np.minimum(drafts, limit)
