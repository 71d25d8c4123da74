"""Speculative decoding: what a draft length is worth, and how often drafts are accepted (paper,
section 4.3).

A guaranteed request drafts for one of two ends. Where no prefill is left over, or KV blocks are
short, drafts end it sooner, which gives its blocks back. Else they bring it ahead of its pace, so
that it can sit out the batches of a burst: only who is less than AHEAD tokens ahead drafts then, at
most as far as its tier pays in the long run.

alpha is the chance that a draft token is accepted given that those before it were; a step with s
drafts yields A(s) = 1 + alpha + ... + alpha^s = (1 - alpha^(s+1)) / (1 - alpha) tokens in
expectation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import Roofline
from slos.core.types import Progress, View, require
from slos.planning.batching import Engine, advance, form, latest_end
from slos.planning.jobs import COMPUTED, DUE, LEFT, REMAINING, TPOT, needed
from slos.planning.lookahead import OK, look_ahead

# tokens: who is further ahead of its pace after the step needs no drafts while prefill is left over
AHEAD = 2.0


@kernel
def expected_tokens(alpha: float, drafts: int) -> float:
    """A(s): tokens of a step with `drafts` draft tokens."""
    return drafts + 1.0 if alpha == 1 else (1 - alpha ** (drafts + 1)) / (1 - alpha)


@kernel
def draft_lengths(planes, reading, alpha, worth, limit, tokens, seconds):
    """Draft lengths [requests] that bring the most worth of tokens per second, in a step of at most
    `seconds`.

    worth: of a token of each request; limit: its longest draft; tokens: of the whole batch without
    drafts; reading: seconds that the context takes. The k-th draft of a request brings alpha^k of a
    token, so that for any longest draft and any number of drafts those that bring most are the
    best: both are tried out.
    """
    most, tile = limit.max(), planes[0, 3]
    value, owner = np.empty(limit.sum()), np.empty(limit.sum(), np.int64)
    place = np.empty(limit.sum(), np.int64)
    size = 0
    for k in range(1, most + 1):
        for i in range(len(limit)):
            if k <= limit[i]:
                value[size], owner[size], place[size] = worth[i] * alpha**k, i, k
                size += 1
    order, best, best_drafts, best_longest = np.argsort(-value, kind="mergesort"), 0.0, 0, 0
    for longest in range(most + 1):
        gained, drafts, at = worth.sum(), 0, 0
        while True:
            time = 0.0
            for plane in planes:
                time = max(
                    time,
                    plane[0] * np.ceil((tokens + drafts) / tile) * tile
                    + plane[1] * longest
                    + plane[2],
                )
            time += reading
            if longest and time > seconds:
                break
            if gained / time > best:
                best, best_drafts, best_longest = gained / time, drafts, longest
            while at < size and place[order[at]] > longest:
                at += 1
            if at == size:
                break
            gained, drafts, at = gained + value[order[at]], drafts + 1, at + 1
    lengths = np.zeros(len(limit), np.int64)
    for j in order:
        if best_drafts and place[j] <= best_longest:
            lengths[owner[j]], best_drafts = place[j], best_drafts - 1
    return lengths


@kernel
def drafting(planes, drafts, tokens):
    """The roofline's planes for the rest of a batch in which `tokens` are drafts, the longest of
    `drafts`."""
    planes = planes.copy()
    tile = planes[0, 3]
    planes[:, 2] += planes[:, 1] * drafts + planes[:, 0] * np.ceil(tokens / tile) * tile
    return planes


@kernel
def tier_lengths(planes, reading, alpha, tpots, counts, most, longest):
    """Draft lengths [tiers] that leave the most tokens per second to prefills, and how many:
    rho(n).

    Of `counts` requests at `tpots` each decodes at its pace: with s drafts in a step of every A(s)
    * tpot seconds, so that the step lasts as long as the tier at the bottleneck allows, `longest`
    at the most, and a tier that could wait longer sits out some. For a given step the shortest
    draft that keeps the pace is the cheapest, so that only the bottleneck and its draft are to be
    chosen. reading: seconds that the context takes; most: drafts that are allowed.
    """
    lengths, best = np.zeros(len(tpots), np.int64), -np.inf
    mine = lengths.copy()
    for tier in range(len(tpots)):
        for s in range(most + 1):
            seconds, cost = min(longest, tpots[tier] * expected_tokens(alpha, s)), 0.0
            longest_draft, possible = 0, True
            for other in range(len(tpots)):
                n = 0
                while n < most and tpots[other] * expected_tokens(alpha, n) < seconds:
                    n += 1
                pace = tpots[other] * expected_tokens(alpha, n)
                possible &= counts[other] == 0 or pace >= seconds
                if counts[other]:
                    mine[other], longest_draft = n, max(longest_draft, n)
                    cost += counts[other] * (n + 1) * min(1.0, seconds / pace)
            tokens = np.inf
            for k in range(len(planes)):
                room = seconds - reading - planes[k, 2] - planes[k, 1] * longest_draft
                tokens = min(tokens, max(0.0, room) / planes[k, 0])
            rate = (np.floor(tokens / planes[0, 3]) * planes[0, 3] - cost) / seconds
            if possible and rate > best:
                lengths[:], best = mine, rate
    return lengths, best


@dataclass(slots=True)
class Acceptance:
    """alpha, learned from what became of the drafts that were given out; `prior` counts as `weight`
    draft tokens.

    ahead: by id, tokens that were accepted and that no proof has counted on yet.
    """

    prior: float = 0.7
    weight: float = 50.0
    ahead: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _tried: float = field(init=False, repr=False, default=0.0)
    _accepted: float = field(init=False, repr=False, default=0.0)
    _given: dict[str, tuple[int, int, int]] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(0 <= self.prior <= 1, "acceptance", self.prior, "in [0, 1]")

    @property
    def alpha(self) -> float:
        return (self._accepted + self.prior * self.weight) / (self._tried + self.weight)

    def give(self, p: Progress, drafts: int) -> None:
        """Remember that `p` verifies `drafts` drafts in this step."""
        self._given[p.id] = (p.stage, p.generated, drafts)

    def learn(self, running: Sequence[Progress]) -> None:
        """See how far the requests of the last step have come. A stage's end hides what was
        accepted: not counted."""
        for p in running if self._given else ():
            stage, before, drafts = self._given.get(p.id, (-1, 0, 0))
            if stage == p.stage and p.generated > before:
                accepted = p.generated - before - 1
                self._accepted += accepted
                self.ahead[p.id] = self.ahead.get(p.id, 0) + accepted
                self._tried += min(accepted + 1, drafts)
        self._given.clear()


def left_over(jobs: np.ndarray, share: np.ndarray) -> bool:
    """Whether a step that computes `share` of the jobs leaves some prefill for another."""
    return bool((share < jobs[:, LEFT])[jobs[:, LEFT] > 1].any())


@dataclass(frozen=True, slots=True)
class Drafting:
    """How drafts are put into a step that is formed already. short: of KV blocks."""

    view: View
    roofline: Roofline
    acceptance: Acceptance
    engine: Engine
    short: bool

    def _form(self, jobs: np.ndarray, planes: np.ndarray, share: np.ndarray) -> None:
        form(
            self.view.now,
            jobs,
            np.ones(len(jobs), np.bool_),
            self.engine._replace(planes=planes),
            share,
        )

    def _proven(self, now: float, jobs: np.ndarray, alive: np.ndarray) -> bool:
        return look_ahead(now, jobs, alive, self.engine)[0] == OK

    def spread(
        self, requests: Sequence[Progress], jobs: np.ndarray, share: np.ndarray, seconds: float
    ) -> np.ndarray:
        """Drafts of every job, int [jobs], beside its `share` of a step of `seconds`, which is
        changed for them.

        Drafts may take from prefill that is left over, if the look ahead passes whether all or none
        are accepted. Where it fails for what came of them between the two, the step is formed as if
        none had been: that was proven.
        """
        view, none, planes = self.view, np.zeros(len(jobs), np.int64), self.engine.planes
        if not left_over(jobs, share):
            self.acceptance.ahead.clear()
            return self.lengths(jobs, share, seconds)
        if self.acceptance.ahead and not self._proven(view.now, jobs, np.ones(len(jobs), np.bool_)):
            held = jobs.copy()
            ahead = np.array([self.acceptance.ahead.get(p.id, 0) for p in requests])
            held[:, DUE] -= ahead * jobs[:, TPOT]
            held[:, REMAINING] += ahead
            self._form(held, planes, share)
            return none
        self.acceptance.ahead.clear()
        drafts, rest = self.lengths(jobs, share, seconds), np.zeros(len(jobs))
        if drafts.any():
            self._form(jobs, drafting(planes, drafts.max(), drafts.sum()), rest)
            drafts[rest == 0] = 0
            context = int(jobs[rest > 0, COMPUTED].sum())
            end = view.now + self.roofline.time(
                int((rest + drafts).sum()), int(drafts.max()), context
            )
            after = (advance(end, jobs, rest, accepted) for accepted in (none, drafts))
            fits = needed(jobs, rest + drafts, view.block_size)[0] <= view.free_blocks
            if fits and all(
                in_time and self._proven(end, then, alive) for then, alive, in_time in after
            ):
                share[:] = rest
                return drafts
        return none

    def lengths(self, jobs: np.ndarray, share: np.ndarray, seconds: float) -> np.ndarray:
        """Drafts that pay beside `share` in a step of `seconds`: int [jobs]."""
        now, engine, most = self.view.now, self.engine, self.view.max_drafts
        alpha = self.acceptance.alpha
        decoding, drafts = (jobs[:, LEFT] == 1) & (share > 0), np.zeros(len(jobs), np.int64)
        if not decoding.any():
            return drafts
        reading = engine.k_ctx * jobs[share > 0, COMPUTED].sum()
        left = np.maximum(jobs[:, REMAINING], 1)
        limit = np.minimum(most, left - 1).astype(np.int64)
        if not left_over(jobs, share):
            spare = latest_end(now, jobs, share, engine, 0.0) - now
            # Smith's rule, dampened: the KV that each token left holds
            worth = np.sqrt(jobs[:, COMPUTED] / left)
            decodes = worth[decoding], limit[decoding]
            drafts[decoding] = draft_lengths(
                engine.planes, reading, alpha, *decodes, share.sum(), spare
            )
            return drafts
        tpots, tier, counts = np.unique(
            jobs[decoding, TPOT], return_inverse=True, return_counts=True
        )
        drafts[decoding] = tier_lengths(
            engine.planes, reading, alpha, tpots, counts, most, engine.longest
        )[0][tier]
        if not self.short:
            steps = np.array([expected_tokens(alpha, n) for n in range(most + 1)])
            lead = (jobs[:, DUE] - now - seconds) / jobs[:, TPOT]
            drafts = np.minimum(drafts, np.searchsorted(steps, AHEAD - lead))
        return np.minimum(drafts, limit)
