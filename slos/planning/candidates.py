"""Which candidates one planning takes, and in which tiers: the count vectors of the planner grow
with the product of the tiers, and what a step costs must not grow with those that wait."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from math import inf, prod

import numpy as np

from slos.core.roofline import Roofline
from slos.core.types import Progress, View

STATES = 1 << 14  # count vectors of a planning at the most; candidates beyond wait for the next one
MOST = 256  # candidates of a planning at the most
MANY = 1024  # that wait: of more than these, not every one is looked at in every step
TIERS = 8  # so many TPOTs are planned with as they are,
FEW = 4  # more of them rounded down to so many tiers
FEWEST = 40  # candidates that have at most STATES count vectors, however they spread over FEW tiers


def vectors(tpots: Iterable[float]) -> int:
    """Count vectors of requests with such TPOTs."""
    return prod(n + 1 for n in Counter(tpots).values())


def due_first(view: View, roofline: Roofline) -> tuple[Sequence[Progress], set[Progress]]:
    """Those waiting, in order, that a step is about: all, or where very many wait the first to be
    due, which are told apart, and those that are best effort or may not be in time alone."""
    waiting, first = view.waiting, set[Progress]()
    if len(waiting) <= MANY:
        return waiting, first
    # none is due before t0; twice as many as are planned, since some may be declined
    t0 = np.array([inf if p.best_effort else p.t0 for p in waiting])
    until = float(np.partition(t0, 2 * MOST)[2 * MOST])
    if until == inf:
        return waiting, first
    some = np.flatnonzero(t0 <= until)  # all of them, where all came at once
    some = some[np.argsort(t0[some], kind="stable")[: 2 * MOST]]
    first.update(waiting[i] for i in some.tolist())
    most = roofline.fits(until - view.now - 1e-3)  # a millisecond for rounding
    return [p for p in waiting if p in first or p.tokens > most or p.best_effort], first


def planned(
    candidates: list[Progress], admitted: Collection[str]
) -> tuple[list[Progress], list[Progress]]:
    """As many as one planning takes, those `admitted` already and then the most urgent first; and
    the others."""
    if len(candidates) <= MOST and vectors(p.tpot for p in candidates) <= STATES:
        return candidates, []
    new = np.array([p.id not in admitted for p in candidates])
    due = np.array([p.due for p in candidates])
    candidates = [candidates[i] for i in np.lexsort((due, new)).tolist()]
    tpots = [p.tpot for p in candidates[:MOST]]

    def crowded(n: int) -> bool:
        """Whether the first n have too many tiers or count vectors."""
        return len(set(tpots[:n])) > TIERS or vectors(tpots[:n]) > STATES

    last = bisect_left(range(len(tpots) + 1), True, key=crowded) - 1
    last = min(max(last, FEWEST), len(tpots))
    return candidates[:last], candidates[last:]


def rounded(jobs: np.ndarray, new: int) -> np.ndarray:
    """The jobs to plan with, the last `new` of which are candidates: as they are, or their TPOTs
    rounded down to a few tiers where there are too many count vectors."""
    tpots = jobs["tpot"].tolist()
    if len(set(tpots)) <= TIERS and vectors(tpots[len(tpots) - new :]) <= STATES:
        return jobs
    jobs = jobs.copy()
    tau = np.unique(np.quantile(tpots, np.arange(FEW) / FEW, method="lower"))
    jobs["tpot"] = tau[np.searchsorted(tau, tpots, side="right") - 1]
    return jobs
