"""Admission: the set of requests of greatest value that prefill budget, memory and pace allow
(paper, section 4).

In the paper's symbols: tau[l] is the TPOT of tier l, ascending; n[l] the admitted requests of tier
l; p[i], D[i], m[i], v[i] the prefill tokens left, prefill deadline, KV blocks and value of request
i; M the free blocks; rho(n) the largest rate of prefill tokens while every admitted request decodes
at its TPOT.

The deadlines are swept in order. A state is the count vector of accepted new requests; it keeps the
Pareto set of points (value v, prefill budget left b, memory used m). Between deadlines D[i-1], D[i]

    gather:  (v, b, m)  ->  (v, b + rho(n) * (D[i] - D[i-1]), m)        in each state n,

and at D[i] request i is paid for: an admitted one always, b - p[i]; a new one by choice,

    accept:  n, (v, b, m)  ->  n + e[l], (v + v[i], b - p[i], m + m[i]),

where b - p[i] >= 0, m + m[i] <= M and rho(n + e[l]) >= 0. The best point at the end is traced back.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel

EPS = 1e-9  # relative slack for sums of floats
# Pareto points kept per count vector; of more, those of least value, then least budget, are cut
WIDTH = 64


class Problem(NamedTuple):
    """One planning, in seconds, tokens and blocks, in the symbols above.

    Per tier: tau; rates (`slos.planning.fluid.prefill_rates`), rho(n) + sum n / tau of the tightest
    tier; n: those that decode already. Per request: D (absolute time), p, m, v, its tier, and
    forced: admitted already. seats: the most new requests of a tier that can be accepted.
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


POINT = np.dtype([("v", np.float64), ("b", np.float64), ("m", np.float64), ("node", np.int64)])
"""Value, prefill budget left and memory used of a set of accepted requests; its trace node."""


class Table(NamedTuple):
    """The states, and the Pareto points of each.

    counts: int [states, tiers]; most: how many new requests of each tier there are, [tiers]. One
    more of tier l is the state stride[l] further on. weigh: 0 if memory cannot run out, else 1.
    owed: sum of n[l] / tau[l]; tightest: tier; size: how many of its `POINT`s [width] a state has.
    """

    counts: np.ndarray
    most: np.ndarray
    stride: np.ndarray
    weigh: float
    owed: np.ndarray
    tightest: np.ndarray
    size: np.ndarray
    points: np.ndarray


@kernel
def sweep(problem):
    """Choose the new requests of greatest total value; the forced ones are mandatory.

    Returns which are accepted (bool per request, forced ones included), the value of the new ones,
    and whether the forced ones alone can be served; if not, all new ones are declined: it never
    fails. Even if a Pareto set had to be cut, the accepted requests can be served, and it is always
    found that the forced ones can, because the state that accepts none has a single point.
    """
    D, tier, forced = problem.D, problem.tier, problem.forced
    table, trace = _table(problem, *_bounds(problem)), np.empty((1024, 2), np.int64)
    trace[0] = 1
    clock, top = problem.now, 1
    owed, tightest = _pace(problem.n, problem.tau)
    rho = _rho(problem, table, owed, tightest)
    for i in _order(D, problem.p, forced):
        dt = max(0.0, D[i] - clock)
        clock += dt
        live = np.flatnonzero(table.size[:top])  # states with points, ascending
        if not len(live):
            break
        gather(problem, table, rho, i, dt, live)
        if forced[i]:
            owed += 1 / problem.tau[tier[i]]
            tightest = min(tightest, tier[i])
            rho = _rho(problem, table, owed, tightest)
            continue
        more = table.size[live].sum()
        if trace[0, 0] + more > len(trace):
            trace = np.concatenate((trace, np.empty((len(trace) + more, 2), np.int64)))
        accept(problem, table, rho, i, live, trace)
        top = live[-1] + table.stride[tier[i]] + 1
    best, at = _best(problem, table, rho[:top])
    if best < 0:
        return np.zeros_like(forced), 0.0, False
    return forced | traced(trace, at, len(forced)), best, True


@kernel
def gather(problem, table, rho, i, dt, live):
    """Give every point of the `live` states rho * dt of budget, and pay for request i if it is
    forced; points that cannot pay are removed."""
    points, size, forced, p = table.points, table.size, problem.forced[i], problem.p[i]
    for s in live:
        kept = 0
        for e in range(size[s] if rho[s] >= -EPS * problem.rates[-1] else 0):
            point = points[s, e]
            point.b += rho[s] * dt
            if forced:
                point.b -= p
                if point.b < -EPS * p - EPS:
                    continue
            points[s, kept] = point
            kept += 1
        size[s] = kept


@kernel
def accept(problem, table, rho, i, live, trace):
    """Add to every state the points that result from accepting new request i, of tier k."""
    k, v, p, m = problem.tier[i], problem.v[i], problem.p[i], table.weigh * problem.m[i]
    least, most_memory = -EPS * p - EPS, problem.M
    new, points, size = np.empty(1, POINT)[0], table.points, table.size
    counts, full, stride = table.counts, table.most[k], table.stride[k]
    for s in live[::-1]:  # descending, so that it is accepted only once
        to = s + stride
        if counts[s, k] == full or rho[to] < 0:
            continue
        for e in range(size[s]):
            point = points[s, e]
            new.v, new.b, new.m = point.v + v, point.b - p, point.m + m
            if new.b < least or new.m > most_memory or _dominated(points, to, size[to], new):
                continue
            new.node = trace[0, 0]
            trace[new.node, 0], trace[new.node, 1] = i, point.node
            trace[0, 0] += 1
            size[to] = _insert(points, to, size[to], new)


@kernel
def traced(trace, node, size):
    """The requests accepted on the way to a node: bool [size]. A row of the trace is a node: the
    request accepted there, and the node before; the first row holds the number of nodes."""
    accepted = np.zeros(size, np.bool_)
    while node > 0:
        accepted[trace[node, 0]] = True
        node = trace[node, 1]
    return accepted


@kernel
def _bounds(problem):
    """Per tier, the number of new requests, at most the seats; the most points of a state, one if
    the largest budget is always best; and whether memory matters, 0 or 1."""
    counts, first = np.zeros(len(problem.tau), np.int64), -1
    plain, total = True, 0.0
    for i in range(len(problem.tier)):
        if not problem.forced[i]:
            k, first = problem.tier[i], i if first < 0 else first
            counts[k] = min(counts[k] + 1, problem.seats)
            plain &= problem.v[i] == problem.v[first]
            total += problem.m[i]
    weigh = 1.0 if total > problem.M else 0.0
    return counts, 1 if plain and not weigh else WIDTH, weigh


@kernel
def _table(problem, most, width, weigh):
    """All states; the first one, with no request accepted, has its point."""
    tiers, states = len(most), 1
    stride = np.ones(tiers, np.int64)
    for k in range(tiers):
        stride[k] = states
        states *= most[k] + 1
    counts, size = np.zeros((states, tiers), np.int64), np.zeros(states, np.int64)
    owed, tightest = np.empty(states), np.empty(states, np.int64)
    for s in range(states):
        for k in range(tiers):
            counts[s, k] = (s // stride[k]) % (most[k] + 1)
        owed[s], tightest[s] = _pace(counts[s], problem.tau)
    points = np.empty((states, width), POINT)
    size[0], first = 1, points[0, 0]
    first.v = first.b = first.m = 0.0
    first.node = 0
    return Table(counts, most, stride, weigh, owed, tightest, size, points)


@kernel
def _pace(n, tau):
    """The tokens per second that n[l] requests of each tier are owed, and their tightest tier, the
    loosest if there are none."""
    owed, tightest = 0.0, len(tau) - 1
    for k in range(len(tau) - 1, -1, -1):
        owed += n[k] / tau[k]
        if n[k] > 0:
            tightest = k
    return owed, tightest


@kernel
def _rho(problem, table, owed, tightest):
    """rho of every state if admitted requests are owed so much in addition: full batches of the
    tightest tier that decodes, minus what all are owed."""
    return problem.rates[np.minimum(tightest, table.tightest)] - owed - table.owed


@kernel
def _dominated(points, s, size, point):
    """Whether a point of state s has at least the value and budget with at most the memory."""
    for e in range(size):
        old = points[s, e]
        if old.v >= point.v and old.b >= point.b and old.m <= point.m:
            return True
    return False


@kernel
def _insert(points, s, size, point):
    """Add a point to the Pareto set of state s, and return its size. If it is full, the point of
    least value, then least budget, is removed."""
    kept = worst = 0
    for e in range(size):
        old = points[s, e]
        if not (point.v >= old.v and point.b >= old.b and point.m <= old.m):
            points[s, kept] = old
            worst = kept if _worse(old, points[s, worst]) else worst
            kept += 1
    if kept < points.shape[1]:
        points[s, kept] = point
        return kept + 1
    if _worse(points[s, worst], point):
        points[s, worst] = points[s, kept - 1]
        points[s, kept - 1] = point
    return kept


@kernel
def _worse(point, than):
    return point.v < than.v or (point.v == than.v and point.b < than.b)


@kernel
def _order(deadline, prefill, forced):
    """Indices by deadline; at equal deadlines the forced ones first, then the shorter ones."""
    order = np.argsort(prefill, kind="mergesort")
    order = np.concatenate((order[forced[order]], order[~forced[order]]))
    return order[np.argsort(deadline[order], kind="mergesort")]


@kernel
def _best(problem, table, rho):
    """The highest value of a point whose state can decode, and its node in the trace; (-1, -1) if
    there is none."""
    best, at = -1.0, -1
    for s in range(len(rho)):
        if rho[s] >= -EPS * problem.rates[-1]:
            for point in table.points[s, : table.size[s]]:
                if point.v > best:
                    best, at = point.v, point.node
    return best, at
