"""What a simulation rests on: the hardware and the requests; and what it shows: the steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from slos.core.attainment import Live
from slos.core.roofline import Roofline
from slos.core.types import require
from slos.hardware.profiles import Profile


@dataclass(frozen=True, slots=True)
class World:
    """The hardware that requests really run on. `max_seqs` as in vLLM; `noise`: log-normal sigma of
    step times.

    max_drafts: longest draft, 0 without a draft model; acceptance: chance of each draft token, if
    those before it were. zero_load: by which objectives that are slowdowns become seconds, its own
    roofline unless given. max_context: tokens to which a request may grow. prefix_cache: whether KV
    blocks are kept and found again, as in `slos.sim.prefix_cache`. planning: seconds that a policy
    takes to decide on a step, and more for each request that it sees; a step waits for it.
    asynchronous: a step is decided while the one before it runs, as vLLM does: it waits only for
    what that does not hide of the planning, and requests that came meanwhile are not in view.
    """

    roofline: Roofline
    kv_blocks: int
    block_size: int = 16
    max_seqs: int = 256
    noise: float = 0.0
    max_drafts: int = 0
    acceptance: float = 0.7
    zero_load: Roofline | None = None
    prefix_cache: bool = False
    max_context: float = inf
    planning: tuple[float, float] = (0.0, 0.0)
    asynchronous: bool = False

    def __post_init__(self) -> None:
        require(self.kv_blocks >= 1, "kv_blocks", self.kv_blocks, "at least 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1 token")
        require(self.max_seqs >= 1, "max_seqs", self.max_seqs, "at least 1")
        require(self.noise >= 0, "noise", self.noise, "at least 0")
        require(self.max_drafts >= 0, "max_drafts", self.max_drafts, "at least 0")
        require(min(self.planning) >= 0, "planning", self.planning, "at least 0 seconds")
        require(0 <= self.acceptance <= 1, "acceptance", self.acceptance, "in [0, 1]")

    def seconds(self, step: float, seen: int) -> float:
        """Of a step with its planning; step: without it; seen: requests in view."""
        first, each = self.planning
        planning = first + each * seen
        return max(step, planning) if self.asynchronous else step + planning

    @classmethod
    def of(cls, profile: Profile, **changes: Any) -> World:
        """The hardware of a profile, but for the `changes`."""
        own: dict[str, Any] = {"max_seqs": profile.max_seqs, "max_context": profile.max_context}
        return cls(profile.roofline, profile.kv_blocks, profile.block_size, **(own | changes))


@dataclass(slots=True, eq=False)
class Simulated(Live):
    """A request in service, and what only the simulator knows of it.

    claim: KV blocks that it will have held at its end, by its replica's predictor; came: when it
    was queued there; route: replicas still to ask; seed: of what becomes of its drafts; content:
    names of its KV blocks, where there is a prefix cache.
    """

    claim: int = 0
    came: float = 0.0
    route: list[str] = field(default_factory=list)
    seed: str = ""
    dice: Random | None = None
    content: Any = None

    def draft(self, drafts: int, acceptance: float) -> int:
        """Tokens that a step with `drafts` drafts yields: those accepted in a row, and one of the
        model's own."""
        accepted, self.dice = 0, self.dice or Random(self.seed)
        while accepted < drafts and self.dice.random() < acceptance:
            accepted += 1
        p = self.progress
        return min(accepted + 1, self.output - p.generated)


@dataclass(frozen=True, slots=True)
class Step:
    """One executed batch, or `count` equal ones in a row, from `start` to `end`, for timelines and
    laws."""

    start: float
    end: float
    count: int
    prefill: int
    decode: int
    best_effort: int
    waiting: int
    running: int
    free_blocks: int
