"""Routers: which replicas to ask for a request, in turn. The same objects in the simulator and in
front of engines.

A replica that cannot start a request in time passes it on to the next of its route, and the last
keeps it (paper, section 4.4). So the length of a route is the hop limit plus one. A new router is a
class and a line in `ROUTERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from slos.core.roofline import EPS, Roofline
from slos.core.types import LengthPredictor, Load, Progress, Router, make, require
from slos.planning.batching import slowness

FULL = 1e6  # what it costs where something has run out
LONGEST = 1e6  # seconds of a batch
ALIKE = 10  # requests more or less make no replica the busier one


@final
@dataclass(slots=True)
class RoundRobin:
    """Each replica in turn, and nobody is passed on."""

    _next: int = field(init=False, repr=False, default=0)

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        self._next += 1
        return [loads[(self._next - 1) % len(loads)].replica]


@final
@dataclass(slots=True)
class LeastLoaded:
    """The replica with the fewest prompt tokens to compute, then the fewest requests; about equal
    ones in turn.

    Counted by `ALIKE`: by ones, all that come within a moment would go where a few have just ended,
    and their prompts would wait for each other.
    """

    _next: int = field(init=False, repr=False, default=0)

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        n = len(loads)
        work = [(load.prefill_tokens, (load.waiting + load.running) // ALIKE) for load in loads]
        chosen = min(range(n), key=lambda i: (work[i], (i - self._next) % n))
        self._next = chosen + 1
        return [loads[chosen].replica]


@final
@dataclass(slots=True)
class Sequential:
    """The paper's: each in turn, and from one to the next until it is admitted, `hops` times at
    most."""

    hops: int = 3
    _next: int = field(init=False, repr=False, default=0)

    def __post_init__(self) -> None:
        require(self.hops >= 0, "hops", self.hops, "at least 0")

    def rank(self, request: Progress, loads: Sequence[Load]) -> list[str]:
        n, first = len(loads), self._next
        self._next = (first + 1) % n
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
    where nobody decodes, on usual hardware.
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
        longest = self.longest_step * slowness(self.roofline)
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


ROUTERS: dict[str, Callable[..., Router]] = {
    "round-robin": RoundRobin,
    "least-loaded": LeastLoaded,
    "sequential": Sequential,
    "cheapest": Cheapest,
}


def make_router(name: str, roofline: Roofline, lengths: LengthPredictor, **settings: Any) -> Router:
    """A fresh router; one with a field `roofline` or `lengths` is given that belief about hardware
    or lengths."""
    return make("router", ROUTERS, name, settings, roofline=roofline, lengths=lengths)
