"""Which candidates one planning considers, and in which TPOT tiers. The planner's count vectors
grow with the product of the tiers, and the cost of a step must not grow with the waiting queue."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Sequence
from math import inf, prod

import numpy as np

from slos.core.roofline import Roofline
from slos.core.types import Progress, View

STATES = 1 << 14  # most count vectors of a planning; further candidates wait for the next one
MOST_PLANNED = 256  # most candidates of a planning
MOST_SCANNED = 1024  # waiting requests; if there are more, a step does not look at all of them
TIERS = 8  # most TPOTs that are planned with as they are
ROUNDED_TIERS = 4  # more TPOTs than that are rounded down to so many
ALWAYS_PLANNED = 40  # in any spread over ROUNDED_TIERS so many have at most STATES count vectors


def too_many(tpots: Sequence[float]) -> bool:
    """Whether requests with these TPOTs have more than STATES count vectors."""
    # n requests have at most 2^n
    return 1 << len(tpots) > STATES and prod(n + 1 for n in Counter(tpots).values()) > STATES


def due_first(view: View, roofline: Roofline) -> tuple[Sequence[Progress], set[Progress]]:
    """The waiting requests to consider, in order: all; or, of very many, the first to be due, also
    returned as a set, and those that are best effort or may be too late even alone."""
    waiting, first = view.waiting, set[Progress]()
    if len(waiting) <= MOST_SCANNED:
        return waiting, first
    # none is due before t0; twice as many as a planning takes, since some may be declined
    t0 = np.array([inf if p.best_effort else p.t0 for p in waiting])
    until = float(np.partition(t0, 2 * MOST_PLANNED)[2 * MOST_PLANNED])
    if until == inf:
        return waiting, first
    some = np.flatnonzero(t0 <= until)  # all of them, if all came at once
    some = some[np.argsort(t0[some], kind="stable")[: 2 * MOST_PLANNED]]
    first.update(waiting[i] for i in some.tolist())
    most = roofline.fits(until - view.now - 1e-3)  # a millisecond for rounding
    return [p for p in waiting if p in first or p.tokens > most or p.best_effort], first


def planned(
    candidates: list[Progress], admitted: Collection[str]
) -> tuple[list[Progress], list[Progress]]:
    """The candidates that one planning takes, `admitted` ones first, then by deadline; and the
    others."""
    if len(candidates) <= MOST_PLANNED and not too_many([p.tpot for p in candidates]):
        return candidates, []
    new = np.array([p.id not in admitted for p in candidates])
    due = np.array([p.due for p in candidates])
    candidates = [candidates[i] for i in np.lexsort((due, new)).tolist()]
    tpots = [p.tpot for p in candidates[:MOST_PLANNED]]

    def crowded(n: int) -> bool:
        """Whether the first n have too many tiers or count vectors."""
        return len(set(tpots[:n])) > TIERS or too_many(tpots[:n])

    last = bisect_left(range(len(tpots) + 1), True, key=crowded) - 1
    last = min(max(last, ALWAYS_PLANNED), len(tpots))
    return candidates[:last], candidates[last:]


def rounded(jobs: np.ndarray, new: int) -> np.ndarray:
    """The jobs to plan with, the last `new` of which are candidates: unchanged, or with their TPOTs
    rounded down to a few tiers if there are too many count vectors."""
    tpots = jobs["tpot"].tolist()
    if len(set(tpots)) <= TIERS and not too_many(tpots[len(tpots) - new :]):
        return jobs
    jobs = jobs.copy()
    tau = np.unique(np.quantile(tpots, np.arange(ROUNDED_TIERS) / ROUNDED_TIERS, method="lower"))
    jobs["tpot"] = tau[np.searchsorted(tau, tpots, side="right") - 1]
    return jobs
