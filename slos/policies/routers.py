"""Routers: which replicas to ask for a request, in turn. The same objects in the simulator and in
front of engines.

A replica that cannot start a request in time passes it on to the next of its route, and the last
keeps it (paper, section 4.4). So the length of a route is the hop limit plus one. A new router is a
class and a line in `ROUTERS`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, final

from slos.core.roofline import EPS, Roofline
from slos.core.types import LengthPredictor, Progress, require
from slos.policies import make

FULL = 1e6  # what it costs where something has run out
LONGEST = 1e6  # seconds of a batch
ALIKE = 10  # requests more or less make no replica the busier one


@dataclass(frozen=True, slots=True)
class Load:
    """What a router may know of one replica, as it will be when the step in flight ends.

    step_end: the end of that step, now if none is in flight. waiting, running: requests; those
    whose KV caches are on their way wait. The others leave out best effort, which gives way:
    `prefill_tokens` left to compute; `decodes` as (TPOT, requests), ascending; `claimed_blocks`,
    the KV blocks that these requests hold at their ends.
    """

    replica: str
    step_end: float
    waiting: int
    running: int
    free_blocks: int
    total_blocks: int
    block_size: int = 16
    prefill_tokens: int = 0
    decodes: tuple[tuple[float, int], ...] = ()
    claimed_blocks: int = 0


class Router(Protocol):
    """Names the replicas to ask for a request, in order, as a policy would see it at its arrival.
    Each may pass it on to the next, and the last one keeps it. `loads` is never empty."""

    def rank(self, request: Progress, loads: Sequence[Load]) -> Sequence[str]: ...


@final
@dataclass(slots=True)
class RoundRobin:
    """Each replica in turn, and no request is passed on. Those that take KV caches have turns of
    their own: of one counter for both, each would see every second number only."""

    _next: Counter[bool] = field(init=False, repr=False, default_factory=Counter)

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        apart = request.computed > 0
        first, self._next[apart] = self._next[apart], self._next[apart] + 1
        return [loads[first % len(loads)].replica]


@dataclass(slots=True)
class Least:
    """The replica with the least work; equal ones in turn, as in `RoundRobin`."""

    _next: Counter[bool] = field(init=False, repr=False, default_factory=Counter)

    def work(self, request: Progress, load: Load) -> Any:
        raise NotImplementedError

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        n, work = len(loads), [self.work(request, load) for load in loads]
        apart = request.computed > 0
        chosen = min(range(n), key=lambda i: (work[i], (i - self._next[apart]) % n))
        self._next[apart] = chosen + 1
        return [loads[chosen].replica]


@final
@dataclass(slots=True)
class LeastLoaded(Least):
    """The fewest prompt tokens to compute, then the fewest requests.

    Counted by `ALIKE`: by ones, all that come within a moment would go where a few have just ended,
    and their prompts would wait for each other.
    """

    def work(self, request: Progress, load: Load) -> tuple[int, int]:
        return load.prefill_tokens, (load.waiting + load.running) // ALIKE


@final
@dataclass(slots=True)
class Sequential:
    """The paper's: each in turn, as in `RoundRobin`, and from one to the next until it is admitted,
    `hops` times at most."""

    hops: int = 3
    _next: Counter[bool] = field(init=False, repr=False, default_factory=Counter)

    def __post_init__(self) -> None:
        require(self.hops >= 0, "hops", self.hops, "at least 0")

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        n, apart = len(loads), request.computed > 0
        first, self._next[apart] = self._next[apart], self._next[apart] + 1
        return [loads[(first + i) % n].replica for i in range(min(n, self.hops + 1))]


@final
@dataclass(frozen=True, slots=True)
class Cheapest:
    """Ours: first where admitting costs least of what is scarce there, then on as in the paper; the
    best one keeps it.

    Scarce are seconds until the first token is due, tokens per second that decoding leaves over,
    and KV blocks. What a request takes of each is set against what the replica has left, and the
    shares add up. A request with a tighter TPOT than those already there shortens every batch,
    which costs tokens per second: so tiers gather where they fit. longest_step: seconds of a batch
    where no request decodes, on usual hardware.
    """

    roofline: Roofline
    lengths: LengthPredictor
    hops: int = 3
    longest_step: float = 0.15
    _rates: dict[float, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        require(self.hops >= 0, "hops", self.hops, "at least 0")

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        costs = sorted((self.cost(request, load), i, load.replica) for i, load in enumerate(loads))
        route = [name for *_, name in costs[: self.hops + 1]]
        return [*route, route[0]] if len(route) > 1 else route

    def cost(self, request: Progress, load: Load) -> float:
        """The shares that it would take of what the replica has left, `FULL` and more where there
        is not enough."""
        longest = self.longest_step * self.roofline.slowness
        tightest = load.decodes[0][0] if load.decodes else longest
        owed = 0.0
        for tpot, count in load.decodes:
            owed += count / tpot
        before = self._rate(tightest) - owed
        after = self._rate(min(tightest, request.tpot)) - owed - 1 / request.tpot
        alone = self._rate(longest)
        if before <= 0 or after <= 0 or alone <= 0:
            return FULL - after
        need = (request.tokens + self.lengths.remaining(request)) / load.block_size
        free = load.total_blocks - load.claimed_blocks
        if free < need:
            return FULL + need - free
        wait, left = load.step_end - request.arrival, request.tokens - request.computed
        first = wait + max((load.prefill_tokens + left) / before, left / alone)
        due = max(EPS, request.due - request.arrival)
        return first / due + need / free + 1 - after / before

    def _rate(self, seconds: float) -> float:
        """Tokens per second of full batches of that length, bounded so that none overflows."""
        seconds = min(seconds, LONGEST)
        if seconds not in self._rates:
            self._rates[seconds] = self.roofline.fits(seconds) / seconds
        return self._rates[seconds]


@final
@dataclass(slots=True)
class LMetric(Least):
    """LMetric's (Zhang et al., OSDI'26, arXiv 2603.15202): the product of prompt tokens to compute,
    its own included, and requests in the batch.

    The product has no weights to tune. Its prompt tokens are those that no prefix cache saves.
    """

    def work(self, request: Progress, load: Load) -> int:
        left = request.tokens - request.computed
        return (load.prefill_tokens + left) * (load.waiting + load.running + 1)


@final
@dataclass(slots=True)
class PolyServe:
    """PolyServe's (Zhu et al., arXiv 2507.17769): replicas form bins, one for each TPOT, and the
    fullest of its bin that can still serve a request in time has it, so that others stay free.

    Where its bin is full, the request takes an idle replica into it; then it is promoted to the
    next tighter bin; and only then does it make a looser one tighter. Where none can, the one with
    the least to compute has it. Theirs predicts by profiled steps, ours by the roofline; a bin is
    what its replica has been sent since it was idle.
    """

    roofline: Roofline
    lengths: LengthPredictor
    _bins: dict[str, float] = field(init=False, repr=False, default_factory=dict)

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        busy = {load.replica: load.waiting + load.running for load in loads}
        self._bins = {name: tpot for name, tpot in self._bins.items() if busy.get(name)}
        able = [load for load in loads if self._can_serve(request, load)]
        if able:
            chosen = min(able, key=lambda load: (*self._choice(request, load), -busy[load.replica]))
        else:
            chosen = min(loads, key=lambda load: (load.prefill_tokens, busy[load.replica]))
        tpot = self._bins.get(chosen.replica, request.tpot)
        self._bins[chosen.replica] = min(tpot, request.tpot)
        return [chosen.replica]

    def _choice(self, request: Progress, load: Load) -> tuple[int, float]:
        """Its own bin, an idle replica, the tighter bins, the looser ones: the nearest first."""
        tpot = self._bins.get(load.replica)
        if tpot is None:
            return 1, 0.0
        kind = 0 if tpot == request.tpot else 2 if tpot < request.tpot else 3
        return kind, abs(tpot - request.tpot)

    def _can_serve(self, request: Progress, load: Load) -> bool:
        """Whether its prompt is in time, all paces are kept, and its blocks last to its end."""
        seconds = min(request.tpot, self._bins.get(load.replica, LONGEST), LONGEST)
        rate = (self.roofline.fits(seconds) - load.waiting - load.running - 1) / seconds
        left = load.prefill_tokens + request.tokens - request.computed
        need = (request.tokens + self.lengths.remaining(request)) / load.block_size
        roomy = load.claimed_blocks + need <= load.total_blocks
        return rate > 0 and roomy and load.step_end + left / rate <= request.due


ROUTERS: dict[str, Callable[..., Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "sequential": Sequential,
    "cheapest": Cheapest,
    "lmetric": LMetric,
    "polyserve": PolyServe,
}


def make_router(name: str, roofline: Roofline, lengths: LengthPredictor, **settings: Any) -> Router:
    """A fresh router; one with a field `roofline` or `lengths` is given that belief about hardware
    or lengths."""
    return make("router", ROUTERS, name, settings, roofline=roofline, lengths=lengths)
