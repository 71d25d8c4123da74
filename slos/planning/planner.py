"""Admission: the set of requests of greatest value that prefill budget, memory and pace allow
(paper, section 4).

In the paper's symbols: tau[l] the TPOT of tier l, ascending; n[l] admitted requests of tier l;
p[i], D[i], m[i], v[i] the prefill tokens left, prefill deadline, KV blocks and value of request i;
M the blocks there are to give; rho(n) the largest rate of prefill tokens while every admitted
request decodes at its TPOT.

Sweeping the deadlines, a state is the count vector of accepted new requests; it keeps the Pareto
set of points (value v, prefill budget left b, memory used m). Between deadlines D[i-1] and D[i]

    gather:  (v, b, m)  ->  (v, b + rho(n) * (D[i] - D[i-1]), m)        of each state n,

and at D[i] request i is paid for: an admitted one always, b - p[i]; a new one by choice,

    accept:  n, (v, b, m)  ->  n + e[l], (v + v[i], b - p[i], m + m[i]),

where b - p[i] >= 0, m + m[i] <= M and rho(n + e[l]) >= 0. The best point at the end is traced back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import Roofline, tokens_in
from slos.core.types import require

EPS = 1e-9  # relative slack for sums of floats
# Pareto points kept per count vector; beyond, those of least value and then least budget are
# dropped
WIDTH = 64


@dataclass(frozen=True, slots=True)
class Instance:
    """One planning problem.

    Arrays over requests: deadline (s, absolute), prefill (tokens), memory (blocks), value, tier
    (index into tpots), forced (already admitted). `decoding`: per tier, admitted requests past
    their prefill; `blocks` are there to give; `longest`: seconds of a batch while nobody decodes,
    who would have a pace to keep.
    """

    now: float
    tpots: np.ndarray
    decoding: np.ndarray
    deadline: np.ndarray
    prefill: np.ndarray
    memory: np.ndarray
    value: np.ndarray
    tier: np.ndarray
    forced: np.ndarray
    blocks: int
    context: int = 0
    longest: float = 0.15

    def __post_init__(self) -> None:
        ascending = bool((np.diff(self.tpots) > 0).all())
        require(ascending, "tpots", self.tpots, "ascending and distinct")
        size, tiers, decoding = len(self.deadline), len(self.tpots), len(self.decoding)
        for name in ("prefill", "memory", "value", "tier", "forced"):
            n = len(getattr(self, name))
            require(n == size, f"len({name})", n, f"{size} like deadline")
        require(decoding == tiers, "len(decoding)", decoding, "one count per tier")


@dataclass(frozen=True, slots=True)
class Admission:
    """accepted: bool per request, forced ones included if feasible; value: of the new ones.

    feasible: whether the forced requests alone can be served. loss: how much more value there can
    be at the most; above 0 only if a Pareto set had to be cut: nothing better can come of a point
    that was dropped than its own value and that of all new requests after it. What is accepted can
    be served all the same, and it is never missed that the forced ones can, since the state that
    accepts nobody new is one point.
    """

    accepted: np.ndarray
    value: float
    feasible: bool
    loss: float


class Problem(NamedTuple):
    """An `Instance` for kernels, in the paper's symbols; every number is a float but tier, forced
    and seats.

    rates: see `prefill_rates`; n: those who decode already; seats: no more new requests of a tier
    than that are accepted.
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


class Table(NamedTuple):
    """The states, and the Pareto points of each.

    counts, and how many new requests of each tier there are: int [states, tiers] and [tiers]; one
    more of tier l is the state stride[l] further on. weigh: 0 where memory cannot run out, else 1.
    owed: sum of n[l] / tau[l]; tightest: tier; size: points. v, b, m of points, and their nodes in
    the trace: [states, width].
    """

    counts: np.ndarray
    most: np.ndarray
    stride: np.ndarray
    weigh: float
    owed: np.ndarray
    tightest: np.ndarray
    size: np.ndarray
    v: np.ndarray
    b: np.ndarray
    m: np.ndarray
    node: np.ndarray


def prefill_rates(tpots: np.ndarray, roofline: Roofline, context: int = 0) -> np.ndarray:
    """Tokens per second of full batches that last each tier's TPOT: [tiers]. rho(n) =
    rates[tightest] - sum n/tpot."""
    reading, tile = roofline.k_ctx * context, roofline.tile
    most = [(max(0.0, tokens_in(roofline.rows, t - reading)), t) for t in tpots.tolist()]
    return np.array([(n if tile == 1 else n // tile * tile) / t for n, t in most])


def admit(problem: Instance, roofline: Roofline) -> Admission:
    """Choose the new requests of greatest total value; the forced ones are mandatory.

    Where the forced ones alone are infeasible all new ones are declined: never fails.
    """
    tau, n = np.asarray(problem.tpots, np.float64), problem.decoding.astype(np.float64)
    if problem.longest > tau.max(initial=0.0):
        tau, n = np.append(tau, problem.longest), np.append(n, 0.0)
    given = problem.deadline, problem.prefill, problem.memory, problem.value
    D, p, m, v = (np.asarray(array, np.float64) for array in given)
    tier, forced = np.asarray(problem.tier, np.int64), np.asarray(problem.forced, np.bool_)
    rates, now, M = prefill_rates(tau, roofline, problem.context), problem.now, problem.blocks
    kernels = Problem(float(now), tau, rates, n, D, p, m, v, tier, forced, float(M), len(tier))
    accepted, value, feasible, loss = sweep(kernels)
    return Admission(accepted, float(value), feasible, float(loss))


@kernel
def sweep(problem):
    """The fields of an `Admission`: run the recurrence over the deadlines."""
    D, v, tier, forced = problem.D, problem.v, problem.tier, problem.forced
    table = _table(problem, *_bounds(problem))
    # the states that have points, ascending; at first the one that accepts none
    live, trace = np.zeros(1, np.int64), np.empty((1024, 2), np.int64)
    trace[0] = 1, -1
    clock, rest, most = problem.now, v[~forced].sum(), 0.0
    owed, tightest = _pace(problem.n, problem.tau)
    rho = _rho(problem, table, owed, tightest)
    for i in _order(D, problem.p, forced):
        dt = max(0.0, D[i] - clock)
        clock += dt
        live = gather(problem, table, rho, i, dt, live)
        if not len(live):
            break
        if forced[i]:
            owed += 1 / problem.tau[tier[i]]
            tightest = min(tightest, tier[i])
            rho = _rho(problem, table, owed, tightest)
            continue
        rest -= v[i]
        trace = _grown(trace, table.size[live].sum())
        live, dropped = accept(problem, table, rho, i, live, trace)
        most = max(most, dropped + rest if dropped else 0.0)
    best, at = _best(problem, table, rho, live)
    if best < 0:
        return forced & False, 0.0, False, 0.0
    return forced | traced(trace, at, len(forced)), best, True, max(0.0, most - best)


@kernel
def gather(problem, table, rho, i, dt, live):
    """Give every point of the `live` states rho * dt of budget, and pay for request i if it is
    forced; the states that are still live."""
    alive, forced, p = 0, problem.forced[i], problem.p[i]
    for s in live:
        if rho[s] < -EPS * problem.rates[-1]:
            table.size[s] = 0
            continue
        kept = 0
        for e in range(table.size[s]):
            b = table.b[s, e] + rho[s] * dt
            if forced:
                b -= p
                if b < -EPS * p - EPS:
                    continue
            _put(table, s, kept, (table.v[s, e], b, table.m[s, e]), table.node[s, e])
            kept += 1
        table.size[s] = kept
        if kept:
            live[alive] = s
            alive += 1
    return live[:alive]


@kernel
def accept(problem, table, rho, i, live, trace):
    """Add to every state the points that come of accepting new request i: the states that are live
    then; and the most value of a point that had to go, or 0."""
    k, p, m = problem.tier[i], problem.p[i], table.weigh * problem.m[i]
    fresh, found, most = np.empty(len(live), np.int64), len(live), 0.0
    for s in live[::-1]:  # descending, so that it is accepted once
        if table.counts[s, k] == table.most[k] or rho[s + table.stride[k]] < 0:
            continue
        to = s + table.stride[k]
        if table.size[to] == 0:
            found -= 1
            fresh[found] = to
        for e in range(table.size[s]):
            point = table.v[s, e] + problem.v[i], table.b[s, e] - p, table.m[s, e] + m
            if point[1] < -EPS * p - EPS or point[2] > problem.M or _dominated(table, to, point):
                continue
            node = trace[0, 0]
            trace[node] = i, table.node[s, e]
            trace[0, 0] += 1
            most = max(most, _insert(table, to, point, node))
        if table.size[to] == 0:
            found += 1
    return _merged(live, fresh[found:]), most


@kernel
def traced(trace, node, size):
    """The requests accepted on the way to a node: bool [size]. Each row of the trace is a node: the
    request that it accepted, and the node before; the first holds how many there are."""
    accepted = np.zeros(size, np.bool_)
    while node > 0:
        accepted[trace[node, 0]] = True
        node = trace[node, 1]
    return accepted


@kernel
def _bounds(problem):
    """Per tier, how many new requests there are, or seats for them; how many points a state may
    have, one where the largest budget is best; and whether memory weighs, 0 or 1."""
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
    """All states, the first of which, none accepted, has its point."""
    tiers, states = len(most), 1
    stride = np.ones(tiers, np.int64)
    for k in range(tiers):
        stride[k] = states
        states *= most[k] + 1
    counts, size = np.zeros((states, tiers), np.int64), np.zeros(states, np.int64)
    owed, tightest = np.zeros(states), np.empty(states, np.int64)
    for s in range(states):
        for k in range(tiers):
            counts[s, k] = (s // stride[k]) % (most[k] + 1)
        owed[s], tightest[s] = _pace(counts[s], problem.tau)
    v, b, m = np.empty((states, width)), np.empty((states, width)), np.empty((states, width))
    node = np.zeros((states, width), np.int64)
    size[0], v[0, 0], b[0, 0], m[0, 0] = 1, 0.0, 0.0, 0.0
    return Table(counts, most, stride, weigh, owed, tightest, size, v, b, m, node)


@kernel
def _pace(n, tau):
    """What n[l] requests of each tier are owed, tokens per second; and the tightest tier of them,
    the loosest if there are none."""
    owed, tightest = 0.0, len(tau) - 1
    for k in range(len(tau) - 1, -1, -1):
        owed += n[k] / tau[k]
        if n[k] > 0:
            tightest = k
    return owed, tightest


@kernel
def _rho(problem, table, owed, tightest):
    """rho of every state beside admitted requests that are owed so much: full batches of the
    tightest tier that decodes, less what all are owed."""
    rho = np.empty(len(table.owed))
    for s in range(len(rho)):
        rho[s] = problem.rates[min(tightest, table.tightest[s])] - owed - table.owed[s]
    return rho


@kernel
def _dominated(table, s, point):
    """Whether state s has a point of as much value and budget with as little memory."""
    for e in range(table.size[s]):
        if table.v[s, e] >= point[0] and table.b[s, e] >= point[1] and table.m[s, e] <= point[2]:
            return True
    return False


@kernel
def _insert(table, s, point, node):
    """Add a point to the Pareto set of state s; the value of one that had to go, or 0."""
    v, b, m = point
    kept = 0
    for e in range(table.size[s]):
        old = table.v[s, e], table.b[s, e], table.m[s, e]
        if not (v >= old[0] and b >= old[1] and m <= old[2]):
            _put(table, s, kept, old, table.node[s, e])
            kept += 1
    table.size[s] = kept
    if kept < table.v.shape[1]:
        _put(table, s, kept, point, node)
        table.size[s] = kept + 1
        return 0.0
    worst = 0
    for e in range(1, kept):
        if _worse(table.v[s, e], table.b[s, e], table.v[s, worst], table.b[s, worst]):
            worst = e
    if not _worse(table.v[s, worst], table.b[s, worst], v, b):
        return v
    dropped, last = table.v[s, worst], kept - 1
    old = table.v[s, last], table.b[s, last], table.m[s, last]
    _put(table, s, worst, old, table.node[s, last])
    _put(table, s, last, point, node)
    return dropped


@kernel
def _worse(v, b, than_v, than_b):
    return v < than_v or (v == than_v and b < than_b)


@kernel
def _put(table, s, e, point, node):
    table.v[s, e], table.b[s, e], table.m[s, e] = point
    table.node[s, e] = node


@kernel
def _merged(some, others):
    """Two ascending lists as one."""
    both = np.empty(len(some) + len(others), np.int64)
    a = b = 0
    for c in range(len(both)):
        if b == len(others) or (a < len(some) and some[a] < others[b]):
            both[c] = some[a]
            a += 1
        else:
            both[c] = others[b]
            b += 1
    return both


@kernel
def _grown(trace, more):
    """The trace with room for so `more` nodes."""
    if trace[0, 0] + more > len(trace):
        trace = np.concatenate((trace, np.empty((len(trace) + more, 2), np.int64)))
    return trace


@kernel
def _order(deadline, prefill, forced):
    """Indices by deadline; of those due at once the forced ones first, then the short ones."""
    order = np.argsort(prefill, kind="mergesort")
    order = np.concatenate((order[forced[order]], order[~forced[order]]))
    return order[np.argsort(deadline[order], kind="mergesort")]


@kernel
def _best(problem, table, rho, live):
    """The most value of a point whose state can decode, and its node in the trace; (-1, -1) if
    there is none."""
    best, at = -1.0, -1
    for s in live:
        if rho[s] >= -EPS * problem.rates[-1]:
            for e in range(table.size[s]):
                if table.v[s, e] > best:
                    best, at = table.v[s, e], table.node[s, e]
    return best, at
