"""Admission by `SLOsServe` where nobody is set aside as best effort: in order of arrival, for the
ablation."""

from __future__ import annotations

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import EPS, batch_time
from slos.planning.jobs import COMPUTED, DUE, LEFT, NEW, REMAINING, SWITCH, TPOT
from slos.planning.lookahead import OK, look_ahead


@kernel
def in_turn(now, jobs, old, new, seats, before, engine):
    """Of the jobs from `old` on, in order of arrival, those up to the first that the look ahead
    refuses: bool [new].

    Nobody is set aside: who cannot be in time has its turn, too, when all others can beside it. At
    least one job runs. before: how many were let in by the last proof, and are likely to pass
    together.
    """
    inside = np.ones(len(jobs), np.bool_)
    mine = inside[old : old + new]
    mine[:] = False
    for job in jobs[old : old + new]:
        job[NEW] = now + batch_time(engine, job[LEFT], 0.0) <= job[DUE] + EPS
    first = max(0, min(before, new, seats))
    mine[:first] = True
    while first and look_ahead(now, jobs, inside, engine)[0] != OK:
        first //= 2
        mine[first:] = False
    for c in range(first, min(new, seats)):
        mine[c] = True
        if look_ahead(now, jobs, inside, engine)[0] != OK:
            mine[c] = old == 0 and mine.sum() == 1
            break
    return mine


@kernel
def refused(now, jobs, inside, first, running, steps, engine):
    """For how many `steps` of decodes, as many as `running`, job `first` is refused by `in_turn`,
    the ones before it being those decodes that are guaranteed.
    """
    inside = inside.copy()
    inside[first] = True
    jobs, inside = jobs[inside], np.ones(inside.sum(), np.bool_)
    for k in range(1, steps):
        now += batch_time(engine, running, 0.0)
        for job in jobs[:first]:
            if job[REMAINING] == job[SWITCH]:
                return k
            job[COMPUTED], job[REMAINING], job[DUE] = (
                job[COMPUTED] + 1,
                job[REMAINING] - 1,
                job[DUE] + job[TPOT],
            )
        job = jobs[first]
        job[NEW] = now + batch_time(engine, job[LEFT], 0.0) <= job[DUE] + EPS
        if look_ahead(now, jobs, inside, engine)[0] == OK:
            return k
    return steps
