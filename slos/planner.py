"""Admission: the set of requests of greatest value that prefill budget, memory and pace allow (paper, section 4).

Glossary, in the paper's symbols: tau[l] the TPOT of tier l, ascending; n[l] admitted requests of tier l; p[i], D[i],
m[i], v[i] the prefill tokens left, prefill deadline, KV blocks and value of request i; M the blocks there are to give;
rho(n) the largest rate of prefill tokens while every admitted request decodes at its TPOT.

Sweeping the deadlines, a state is the count vector of accepted new requests; it keeps the Pareto set of (value,
prefill budget left, memory used). Between deadlines a state gathers rho(n) * dt of budget; at D[i] request i is
paid for with p[i].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit

from slos.roofline import Roofline
from slos.types import require

EPS = 1e-9  # relative slack for sums of floats
WIDTH = 64  # Pareto points kept per count vector; beyond, those of least value and then least budget are dropped


@dataclass(frozen=True, slots=True)
class Instance:
    """One planning problem.

    Arrays over requests: deadline (s, absolute), prefill (tokens), memory (blocks), value, tier (index into tpots),
    forced (already admitted). `decoding`: per tier, admitted requests past their prefill; `blocks` are there to give,
    and `seats` are free for new requests: no more of a tier are accepted.
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
    seats: int = 1 << 30

    def __post_init__(self) -> None:
        require(bool((np.diff(self.tpots) > 0).all()), "tpots", self.tpots, "ascending and distinct")
        size = len(self.deadline)
        for name in ("prefill", "memory", "value", "tier", "forced"):
            require(len(getattr(self, name)) == size, f"len({name})", len(getattr(self, name)), f"{size} like deadline")
        require(len(self.decoding) == len(self.tpots), "len(decoding)", len(self.decoding), "one count per tier")


@dataclass(frozen=True, slots=True)
class Admission:
    """accepted: bool per request, forced ones included if feasible; value: of the new ones.

    feasible: whether the forced requests alone can be served; exact: False if a Pareto set had to be cut.
    """

    accepted: np.ndarray
    value: float
    feasible: bool
    exact: bool


def prefill_rates(tpots: np.ndarray, roofline: Roofline, context: int = 0) -> np.ndarray:
    """Tokens per second of full batches that last each tier's TPOT: [tiers]. rho(n) = rates[tightest] - sum n/tpot."""
    room = np.asarray(tpots)[:, None] - roofline.k_ctx * context - np.array([p.b for p in roofline.planes])
    return np.maximum(0.0, (room / np.array([p.k1 for p in roofline.planes])).min(axis=1)) / tpots


def admit(problem: Instance, roofline: Roofline) -> Admission:
    """Choose the new requests of greatest total value; the forced ones are mandatory.

    Where the forced ones alone are infeasible all new ones are declined: never fails.
    """
    order = np.lexsort((problem.prefill, ~problem.forced, problem.deadline))
    order = order[(problem.forced | (problem.memory <= problem.blocks))[order]]  # others do not even fit alone
    new = order[~problem.forced[order]]
    counts = np.array([_most(problem, new[problem.tier[new] == t]) for t in range(len(problem.tpots))])
    values = problem.value[new]
    plain = len(new) == 0 or (values == values[0]).all()
    bound = problem.memory[new].sum() > problem.blocks
    memory = problem.memory if bound else np.zeros(len(problem.memory))
    accepted, value, feasible, exact = _sweep(
        problem.now,
        np.asarray(problem.tpots, np.float64),
        prefill_rates(problem.tpots, roofline, problem.context),
        problem.decoding.astype(np.float64),
        order,
        np.asarray(problem.deadline, np.float64),
        np.asarray(problem.prefill, np.float64),
        np.asarray(memory, np.float64),
        np.asarray(problem.value, np.float64),
        np.asarray(problem.tier, np.int64),
        np.asarray(problem.forced, np.bool_),
        counts,
        float(problem.blocks),
        1 if plain and not bound else WIDTH,
    )
    return Admission(accepted, float(value), feasible, exact)


def _most(problem: Instance, tier: np.ndarray) -> int:
    """How many of these new requests, of one tier, could be accepted at all."""
    fit = np.searchsorted(np.sort(problem.memory[tier]).cumsum(), problem.blocks, side="right")
    return min(int(fit), problem.seats)


@njit(cache=True)
def _insert(size, value, budget, memory, node, s, v, b, m, k, width):
    """Add point (v, b, m) to the Pareto set of state s unless dominated; False if a point had to be dropped."""
    kept = 0
    for e in range(size[s]):
        if value[s, e] >= v and budget[s, e] >= b and memory[s, e] <= m:
            return True
    for e in range(size[s]):
        if not (v >= value[s, e] and b >= budget[s, e] and m <= memory[s, e]):
            value[s, kept], budget[s, kept] = value[s, e], budget[s, e]
            memory[s, kept], node[s, kept] = memory[s, e], node[s, e]
            kept += 1
    exact = True
    if kept == width:
        worst = 0
        for e in range(1, kept):
            if value[s, e] < value[s, worst] or (value[s, e] == value[s, worst] and budget[s, e] < budget[s, worst]):
                worst = e
        if v < value[s, worst] or (v == value[s, worst] and b <= budget[s, worst]):
            size[s] = kept
            return False
        exact = False
        kept -= 1
        for row in (value, budget, memory):
            row[s, worst] = row[s, kept]
        node[s, worst] = node[s, kept]
    value[s, kept], budget[s, kept], memory[s, kept], node[s, kept] = v, b, m, k
    size[s] = kept + 1
    return exact


@njit(cache=True)
def _sweep(now, tpots, rates, decoding, order, deadline, prefill, memory, value, tier, forced, counts, blocks, width):
    tiers, states = len(tpots), 1
    stride = np.ones(tiers, np.int64)
    for t in range(tiers):
        stride[t] = states
        states *= counts[t] + 1
    size = np.zeros(states, np.int64)
    best_value = np.empty((states, width))
    budget = np.empty((states, width))
    used = np.empty((states, width))
    node = np.empty((states, width), np.int64)
    parent = np.empty(1024, np.int64)  # traceback: the item that a node accepted, and the node before it
    item = np.empty(1024, np.int64)
    nodes, exact = 0, True
    size[0] = 1
    best_value[0, 0] = budget[0, 0] = used[0, 0] = 0.0
    node[0, 0] = -1
    # rho of a state: full batches of the tightest tier that decodes (of the loosest if none does) less what is owed.
    count = np.zeros((states, tiers), np.int64)
    owed = np.zeros(states)
    tightest = np.full(states, tiers - 1)
    for s in range(states):
        for t in range(tiers - 1, -1, -1):
            count[s, t] = (s // stride[t]) % (counts[t] + 1)
            owed[s] += count[s, t] / tpots[t]
            if count[s, t] > 0:
                tightest[s] = t
    base = 0.0
    base_tightest = tiers - 1
    for t in range(tiers - 1, -1, -1):
        base += decoding[t] / tpots[t]
        if decoding[t] > 0:
            base_tightest = t
    least = -EPS * rates[tiers - 1]
    clock, reached = now, 0
    for i in order:
        dt = max(0.0, deadline[i] - clock)
        clock += dt
        alive = False
        for s in range(reached + 1):
            if size[s] == 0:
                continue
            rate = rates[min(base_tightest, tightest[s])] - base - owed[s]
            if rate < least:
                size[s] = 0
                continue
            kept = 0
            for e in range(size[s]):
                left = budget[s, e] + rate * dt
                if forced[i]:
                    left -= prefill[i]
                    if left < -EPS * prefill[i] - EPS:
                        continue
                best_value[s, kept], budget[s, kept] = best_value[s, e], left
                used[s, kept], node[s, kept] = used[s, e], node[s, e]
                kept += 1
            size[s] = kept
            alive = alive or kept > 0
        if not alive:
            return forced.copy() & False, 0.0, False, True
        mine = tier[i]
        if forced[i]:
            base += 1 / tpots[mine]
            base_tightest = min(base_tightest, mine)
            continue
        top = reached
        for s in range(reached, -1, -1):
            if size[s] == 0 or count[s, mine] == counts[mine]:
                continue
            to = s + stride[mine]
            if rates[min(base_tightest, tightest[to])] - base - owed[to] < 0:
                continue
            for e in range(size[s]):
                left, full = budget[s, e] - prefill[i], used[s, e] + memory[i]
                if left < -EPS * prefill[i] - EPS or full > blocks:
                    continue
                if nodes == len(parent):
                    parent = np.concatenate((parent, np.empty(nodes, np.int64)))
                    item = np.concatenate((item, np.empty(nodes, np.int64)))
                parent[nodes], item[nodes] = node[s, e], i
                v = best_value[s, e] + value[i]
                exact &= _insert(size, best_value, budget, used, node, to, v, left, full, nodes, width)
                nodes += 1
                top = max(top, to)
        reached = top
    best, at = -1.0, -1
    for s in range(reached + 1):
        if size[s] and rates[min(base_tightest, tightest[s])] - base - owed[s] < least:
            continue
        for e in range(size[s]):
            if best_value[s, e] > best:
                best, at = best_value[s, e], node[s, e]
    if best < 0:
        return forced.copy() & False, 0.0, False, True
    accepted = forced.copy()
    while at >= 0:
        accepted[item[at]] = True
        at = parent[at]
    return accepted, best, True, exact
