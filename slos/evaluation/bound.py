"""How far from the possible: the largest load at which any scheduler, even one that knows the
future, could attain the target.

The bound is a linear program. Take any schedule, and any plane (k1, b) of the roofline: a step of n
tokens takes at least k1 n + b seconds. (A plane with b < 0 becomes k1 / (1 - b / T) and 0, T being
the least seconds of a step: from s >= k1 n + b, s >= T follows s (1 - b / T) >= k1 n.) The KV
caches of the requests that a step computes fit the cache of M tokens, so their sizes over M sum up
to at most 1, and each of them may be charged

    k1 * its tokens + b * its KV cache / M + k_ctx * the context that it reads

without the charges of a step exceeding its seconds. A prompt that is computed in several steps is
charged no less than in one. Spread each charge evenly over its step. Then

- in no interval are more seconds charged than it has, times the number of replicas;
- what is charged for a request begins no earlier than it may: at its arrival or that of its round,
  and for token n after n - 1 steps more, each of at least T seconds;
- of an attained request the prompt is charged in full when its first token is due, and its first n
  tokens by a time that depends on its rule of pace (`slos.core.pace`).

Let t0 be the latest time that the rule allows for the first token of a stage. By the paper's rule
the first n tokens after it are charged by t0 + n * TPOT wherever the pace is looked at. By the
clients' rule all N of them have come by t0 + N * TPOT, since the first one comes by t0 and their
mean is within TPOT; and the last N - n, one a step, take (N - n) T seconds. So the first n are
charged by t0 + N * TPOT - (N - n) T: no request has less time than by the paper's rule, as T is at
most TPOT where both can be met. A stage that goes on without a prompt has no deadline for its first
token: by the paper's rule the pace is first looked at some tokens later, and by the clients' rule
at its end, by which all its tokens have come, one TPOT each after the latest end of the one before.

So the shares x of requests that are attained, with the seconds charged for every piece of them (the
prompt; the tokens between looks at the pace, joined to `PIECES`) in slots of time, solve the
program: maximise the sum of x, where each piece has its x-fold charge within the slots that touch
its window, and each slot is charged at most its length. Whatever is left out only lets the optimum
grow: windows are rounded to whole slots, long ones to longer slots, and a stage that follows
another one begins somewhere between its earliest and its latest. The number attained is whole, so
the sum is rounded down. Of few requests many can be served after the last has come. So there is a
second bound, of a stream of such requests that does not end (`long_run`): what is charged for the
cheapest of them, as many as the target says, takes no longer than they come. It is the same by both
rules.

Neither holds with drafts, whose steps yield several tokens, or with a prefix cache, which spares
prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array

from slos.core.attainment import CHECK_EVERY
from slos.core.pace import CLIENT, TOLERANCE
from slos.core.roofline import Plane
from slos.core.types import Request, require
from slos.evaluation.capacity_search import Search, capacity, requests_of, row_of
from slos.hardware.profiles import Profile

SLOT = 0.05  # seconds: short against the objectives of a first token
COARSE = 20  # fine slots, at least, in a coarse one, of which long windows consist
WINDOW = 12  # coarse slots, at most, in a long window of median length
PIECES = 3  # of an answer


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a request: seconds that it is charged, between `start` and `due`."""

    request: int
    start: float
    due: float
    seconds: float


def planes_of(hardware: Profile) -> list[Plane]:
    """The roofline's planes, none with b below 0."""
    least = hardware.roofline.time(1)
    known = hardware.roofline.planes
    return [p if p.b >= 0 else Plane(p.k1 / (1 - p.b / least), p.k2, 0.0) for p in known]


def pieces(i: int, request: Request, hardware: Profile, plane: Plane) -> Iterator[Piece]:
    """The pieces of the i-th request as the plane charges them."""
    step, planes = hardware.roofline.time(1), planes_of(hardware)
    kv = plane.b / (hardware.kv_blocks * hardware.block_size)  # seconds per token of KV cache
    reads = hardware.roofline.k_ctx
    client = request.rule == CLIENT
    early = late = request.arrival  # when the stage begins
    tokens = computed = 0
    for stage in request.stages:
        if stage.wait:
            computed = 0
        tokens += stage.prompt
        fresh, tau, last = tokens - computed, stage.slo.tpot, stage.output - 1
        zero_load = hardware.roofline.time(fresh)
        t0 = due = late + stage.wait + stage.slo.first_token(zero_load) + TOLERANCE
        if stage.goes_on:
            t0 = late + tau + (TOLERANCE if client else 0.0)
            due = t0 + (last * (tau + TOLERANCE - step) if client else min(last, CHECK_EVERY) * tau)
        early += stage.wait
        yield Piece(i, early, due, plane.k1 * fresh + kv * tokens + reads * computed)
        first = early + max(p.k1 * fresh + p.b for p in planes)
        late = t0 + last * (tau + TOLERANCE if client else tau)
        each = -(-max(1, last) // (PIECES * CHECK_EVERY)) * CHECK_EVERY
        for n in range(0, last, each):
            end = min(n + each, last)
            due = late - (last - end) * (step if client else tau)
            context = (end - n) * tokens + (end * (end + 1) - n * (n + 1)) / 2
            seconds = (plane.k1 - reads) * (end - n) + (kv + reads) * context
            yield Piece(i, first + n * step, due, seconds)
        early = first + last * step
        tokens += stage.output
        computed = tokens - 1


def attainable(requests: Sequence[Request], hardware: Profile, replicas: int = 1) -> float:
    """No scheduler attains a larger share of these requests."""
    require(len(requests) > 0, "requests", len(requests), "at least one")
    most = float(len(requests))
    for plane in planes_of(hardware):
        made = [p for i, r in enumerate(requests) for p in pieces(i, r, hardware, plane)]
        most = min(most, _optimum(made, len(requests), replicas))
    return int(most + 1e-4) / len(requests)  # the solver is exact to 1e-7 a row


def _optimum(made: Sequence[Piece], count: int, replicas: int) -> float:
    """The largest sum of x. Variables: x [count], the seconds of pieces in slots, those of every
    slot that are left to the long ones."""
    request = np.array([p.request for p in made])
    start, due = np.array([p.start for p in made]), np.array([p.due for p in made])
    seconds = np.array([p.seconds for p in made])
    first, last = (start / SLOT).astype(np.int64), (due / SLOT).astype(np.int64)
    long = last - first >= 2 * COARSE
    typical = np.median((last - first)[long]) if long.any() else 0
    coarse = max(COARSE, int(typical / WINDOW))
    slots = (int(last.max()) // coarse + 1) * coarse
    # a coarse slot has its number behind those of the fine ones
    first, last = (np.where(long, slots + a // coarse, a) for a in (first, last))
    slots_of = np.maximum(last - first + 1, 0)  # none where the work is due before it can begin
    piece = np.repeat(np.arange(len(made)), slots_of)
    where = np.arange(len(piece)) - np.repeat(np.cumsum(slots_of) - last - 1, slots_of)
    own, lent = count + np.arange(len(piece)), count + len(piece) + np.arange(slots)
    size = count + len(piece) + slots
    # of each piece as much as its request is attained
    rows = np.concatenate([piece, np.arange(len(made))])
    columns = np.concatenate([own, request])
    values = np.concatenate([np.ones(len(piece)), -seconds])
    equal = coo_array((values, (rows, columns)), (len(made), size)).tocsr()
    # of each slot no more than there is: own pieces and what it lends; of a coarse one what is lent
    fine = np.arange(slots)
    rows = np.concatenate([where, fine, slots + fine // coarse])
    columns = np.concatenate([own, lent, lent])
    values = np.concatenate([np.ones(len(piece) + slots), -np.ones(slots)])
    within = coo_array((values, (rows, columns)), (slots + slots // coarse, size)).tocsr()
    limits = np.concatenate([np.full(slots, replicas * SLOT), np.zeros(slots // coarse)])
    value = np.zeros(size)
    value[:count] = -1
    bounds = np.zeros((size, 2))
    bounds[:, 1] = np.where(np.arange(size) < count, 1, inf)
    found = linprog(value, within, limits, equal, np.zeros(len(made)), bounds, method="highs")
    require(found.status == 0, "linear program", found.message, "solved")
    return -found.fun


def long_run(requests: Sequence[Request], hardware: Profile, target: float = 0.9) -> float:
    """The rate of an endless stream of these above which one replica misses `target`."""
    most, count = inf, int(np.ceil(target * len(requests) - 1e-9))
    for plane in planes_of(hardware):
        each = (pieces(i, r, hardware, plane) for i, r in enumerate(requests))
        charged = sorted(sum(p.seconds for p in some) for some in each)
        most = min(most, len(requests) / sum(charged[:count]))
    return most


@dataclass(frozen=True, slots=True)
class Bound:
    """What no scheduler exceeds, in the long run or with these requests, by a rule of pace:
    requests per second and GPU."""

    scenario: str
    lengths: str
    profile: str
    replicas: int
    seed: int
    rule: str
    target: float
    slo_scale: float
    kv_scale: float
    rate: float
    source: str
    status: str = "computed"


def bound(case: Search) -> list[Bound]:
    """The bound of a search's workload, hardware, rule and target, whatever its system."""
    require(case.max_drafts == 0, "max_drafts", case.max_drafts, "0 for a bound")
    require(not case.topology, "topology", case.topology, "'' for a bound")
    require(not case.prefix_cache, "prefix_cache", True, "False for a bound")
    hardware = case.hardware

    def attained_at(rate: float) -> float:
        return attainable(requests_of(case, rate)[0], hardware, case.replicas)

    some, source = requests_of(case, 1.0)
    rate = long_run(some, hardware, case.target) * case.replicas
    if attained_at(rate) < case.target:  # else these few ask for no less
        _, tried = capacity(attained_at, case.target, rate, case.precision)
        rate = min(t.rate for t in tried if t.attainment < case.target)
    return [row_of(Bound, case, rate=rate / case.gpus, source=source)]


def bound_of(case: Search) -> Search:
    """The one search of those that have the same bound that stands for them."""
    plain = {"system": "slos-serve", "setting": "", "router": "", "belief": ""}
    return replace(case, **plain, predictor="oracle", start=0.0)
