"""Admission: the set of requests of greatest value that prefill budget, memory and pace allow
(paper, section 4).

Glossary, in the paper's symbols: tau[l] the TPOT of tier l, ascending; n[l] admitted requests of
tier l; p[i], D[i], m[i], v[i] the prefill tokens left, prefill deadline, KV blocks and value of
request i; M the blocks there are to give; rho(n) the largest rate of prefill tokens while every
admitted request decodes at its TPOT.

Sweeping the deadlines, a state is the count vector of accepted new requests; it keeps the Pareto
set of (value, prefill budget left, memory used). Between deadlines a state gathers rho(n) * dt of
budget; at D[i] request i is paid for with p[i].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from slos.core.kernels import kernel
from slos.core.roofline import Roofline
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
        require(
            bool((np.diff(self.tpots) > 0).all()), "tpots", self.tpots, "ascending and distinct"
        )
        size = len(self.deadline)
        for name in ("prefill", "memory", "value", "tier", "forced"):
            require(
                len(getattr(self, name)) == size,
                f"len({name})",
                len(getattr(self, name)),
                f"{size} like deadline",
            )
        require(
            len(self.decoding) == len(self.tpots),
            "len(decoding)",
            len(self.decoding),
            "one count per tier",
        )


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


def prefill_rates(tpots: np.ndarray, roofline: Roofline, context: int = 0) -> np.ndarray:
    """Tokens per second of full batches that last each tier's TPOT: [tiers]. rho(n) =
    rates[tightest] - sum n/tpot."""
    reading, tile = roofline.k_ctx * context, roofline.tile
    most = [
        (max(0.0, min((t - reading - p.b) / p.k1 for p in roofline.planes)), t)
        for t in tpots.tolist()
    ]
    return np.array([(n if tile == 1 else n // tile * tile) / t for n, t in most])


def admit(problem: Instance, roofline: Roofline) -> Admission:
    """Choose the new requests of greatest total value; the forced ones are mandatory.

    Where the forced ones alone are infeasible all new ones are declined: never fails.
    """
    tpots, decoding = np.asarray(problem.tpots, np.float64), problem.decoding.astype(np.float64)
    if problem.longest > tpots.max(initial=0.0):
        tpots, decoding = np.append(tpots, problem.longest), np.append(decoding, 0.0)
    accepted, value, feasible, loss = sweep(
        problem.now,
        tpots,
        prefill_rates(tpots, roofline, problem.context),
        decoding,
        np.asarray(problem.deadline, np.float64),
        np.asarray(problem.prefill, np.float64),
        np.asarray(problem.memory, np.float64),
        np.asarray(problem.value, np.float64),
        np.asarray(problem.tier, np.int64),
        np.asarray(problem.forced, np.bool_),
        float(problem.blocks),
        len(problem.tier),
    )
    return Admission(accepted, float(value), feasible, float(loss))


@kernel
def _insert(size, value, budget, memory, node, s, v, b, m, k, width):
    """Add point (v, b, m) to the Pareto set of state s unless dominated; the value of a point that
    had to go, or 0."""
    kept = 0
    for e in range(size[s]):
        if value[s, e] >= v and budget[s, e] >= b and memory[s, e] <= m:
            return 0.0
    for e in range(size[s]):
        if not (v >= value[s, e] and b >= budget[s, e] and m <= memory[s, e]):
            value[s, kept], budget[s, kept] = value[s, e], budget[s, e]
            memory[s, kept], node[s, kept] = memory[s, e], node[s, e]
            kept += 1
    dropped = 0.0
    if kept == width:
        worst = 0
        for e in range(1, kept):
            if value[s, e] < value[s, worst] or (
                value[s, e] == value[s, worst] and budget[s, e] < budget[s, worst]
            ):
                worst = e
        if v < value[s, worst] or (v == value[s, worst] and b <= budget[s, worst]):
            size[s] = kept
            return v
        kept -= 1
        dropped = value[s, worst]
        for row in (value, budget, memory):
            row[s, worst] = row[s, kept]
        node[s, worst] = node[s, kept]
    value[s, kept], budget[s, kept], memory[s, kept], node[s, kept] = v, b, m, k
    size[s] = kept + 1
    return dropped


@kernel
def _order(deadline, prefill, forced):
    """Indices by deadline; of those due at once the forced ones first, then the short ones."""
    order = np.argsort(prefill, kind="mergesort")
    order = np.concatenate((order[forced[order]], order[~forced[order]]))
    return order[np.argsort(deadline[order], kind="mergesort")]


@kernel
def sweep(
    now, tpots, rates, decoding, deadline, prefill, memory, value, tier, forced, blocks, seats
):
    """`admit` on the fields of an `Instance`; rates: see `prefill_rates`. The fields of an
    `Admission`.

    seats: no more new requests of a tier than that are accepted.
    """
    tiers, states = len(tpots), 1
    counts = np.zeros(tiers, np.int64)
    plain, total, first = True, 0.0, -1
    for i in range(len(tier)):
        if not forced[i]:
            first = i if first < 0 else first
            counts[tier[i]] = min(counts[tier[i]] + 1, seats)
            plain &= value[i] == value[first]
            total += memory[i]
    weigh = 1.0 if total > blocks else 0.0  # memory that cannot run out need not be told apart
    width = 1 if plain and not weigh else WIDTH
    stride = np.ones(tiers, np.int64)
    for t in range(tiers):
        stride[t] = states
        states *= counts[t] + 1
    size = np.zeros(states, np.int64)
    best_value = np.empty((states, width))
    budget = np.empty((states, width))
    used = np.empty((states, width))
    node = np.empty((states, width), np.int64)
    # traceback: the item that a node accepted, and the node before it
    parent = np.empty(1024, np.int64)
    item = np.empty(1024, np.int64)
    nodes, most = 0, 0.0
    size[0] = 1
    best_value[0, 0] = budget[0, 0] = used[0, 0] = 0.0
    node[0, 0] = -1
    # rho of a state: full batches of the tightest tier that decodes (of the loosest if none does)
    # less what is owed.
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
    clock = now
    # the states with points, ascending; `fresh` ones are found in descending order
    live = np.empty(states, np.int64)
    fresh = np.empty(states, np.int64)
    # rest: value of the new ones still to be seen
    live[0], alive, rest = 0, 1, value[~forced].sum()
    for i in _order(deadline, prefill, forced):
        dt = max(0.0, deadline[i] - clock)
        clock += dt
        found, alive = alive, 0
        for s in live[:found]:
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
            if kept:
                live[alive] = s
                alive += 1
        if not alive:
            return forced.copy() & False, 0.0, False, 0.0
        mine = tier[i]
        if forced[i]:
            base += 1 / tpots[mine]
            base_tightest = min(base_tightest, mine)
            continue
        found, rest = 0, rest - value[i]
        for s in live[:alive][::-1]:
            if count[s, mine] == counts[mine]:
                continue
            to = s + stride[mine]
            if rates[min(base_tightest, tightest[to])] - base - owed[to] < 0:
                continue
            before = size[to]
            for e in range(size[s]):
                left, full = budget[s, e] - prefill[i], used[s, e] + weigh * memory[i]
                if left < -EPS * prefill[i] - EPS or full > blocks:
                    continue
                if width == 1 and size[to] and budget[to, 0] >= left:
                    continue
                if nodes == len(parent):
                    parent = np.concatenate((parent, np.empty(nodes, np.int64)))
                    item = np.concatenate((item, np.empty(nodes, np.int64)))
                parent[nodes], item[nodes] = node[s, e], i
                v = best_value[s, e] + value[i]
                if width == 1:  # of one value per state the largest budget is best
                    size[to], best_value[to, 0], budget[to, 0], used[to, 0], node[to, 0] = (
                        1,
                        v,
                        left,
                        full,
                        nodes,
                    )
                else:
                    dropped = _insert(
                        size, best_value, budget, used, node, to, v, left, full, nodes, width
                    )
                    most = max(most, dropped + rest if dropped else 0.0)
                nodes += 1
            if before == 0 < size[to]:
                fresh[found] = to
                found += 1
        a, b, alive = alive - 1, 0, alive + found
        for c in range(alive - 1, -1, -1):  # merge
            if b == found:
                break
            if a >= 0 and live[a] > fresh[b]:
                live[c] = live[a]
                a -= 1
            else:
                live[c] = fresh[b]
                b += 1
    best, at = -1.0, -1
    for s in live[:alive]:
        if rates[min(base_tightest, tightest[s])] - base - owed[s] < least:
            continue
        for e in range(size[s]):
            if best_value[s, e] > best:
                best, at = best_value[s, e], node[s, e]
    if best < 0:
        return forced.copy() & False, 0.0, False, 0.0
    accepted = forced.copy()
    while at >= 0:
        accepted[item[at]] = True
        at = parent[at]
    return accepted, best, True, max(0.0, most - best)
