"""The step that an engine is at, or a leap over several equal ones.

While every request of a batch decodes, one step is like the one before it. A policy that would
answer the same for the next `Batch.repeat` steps is asked once, and the ends of all of them are
computed at once: a leap. It spares two thirds of the time of a simulation and changes no outcome:

- it ends with the first stage that ends (`Replica` sees to that), when the free KV blocks do, and
  when a request that waits would find more or less of its prefix (`leap`);
- there is none with prompts or drafts in the batch, with noise, and on a prefill replica, which
  every request leaves with its first token;
- what is new cuts it: steps that have not begun by then are forgotten (`cut`), and the policy is
  asked again;
- a router sees blocks, tokens and the end of the one step under way (`under_way`).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from math import inf

from slos.sim.ledger import Ledger
from slos.sim.world import Simulated, World

MAX_LEAP = 64  # most steps, so that an arrival cuts little work


@dataclass(slots=True)
class Flight:
    """batch: its requests; tokens: of each, by id and in that order; need: KV blocks that its first
    step takes; ends: of each step, none while the engine is idle; last: when the last step that
    ended began and ended; freed: KV blocks of requests that ended with it."""

    batch: Sequence[Simulated] = ()
    tokens: Mapping[str, int] = field(default_factory=dict)
    start: float = 0.0
    need: int = 0
    ends: list[float] = field(default_factory=list)
    last: tuple[float, float] = (-inf, -inf)
    freed: int = 0

    @property
    def end(self) -> float:
        """Of the last step; infinite while the engine is idle."""
        return self.ends[-1] if self.ends else inf

    def under_way(self, now: float) -> int:
        """Which of the steps runs at `now`, or ends then: 0 is the first."""
        return bisect_left(self.ends, now)

    def ends_within(self, now: float) -> bool:
        """Whether one step of a leap ends now and others are to follow."""
        ends = self.ends
        return len(ends) > 1 and ends[-1] > now == ends[bisect_left(ends, now)]

    def growth(self, steps: int, size: int) -> int:
        """KV blocks of `size` tokens that `steps` decodes of each request of the batch take."""
        blocks = 0
        for live in self.batch:
            computed = live.progress.computed
            blocks += -(-(computed + steps) // size) + -computed // size
        return blocks

    def leap(self, steps: float, kv: Ledger) -> int:
        """As many of `steps` decodes of the batch as change nothing for anybody else."""
        if steps <= 1:
            return 1
        most, blocks = kv.unnoticed(self.batch)
        steps = int(min(steps, most, MAX_LEAP))
        while steps > 1 and self.growth(steps, kv.block_size) > blocks:
            steps //= 2
        return steps

    def land(self) -> None:
        """All its steps have ended."""
        self.last, self.freed = ([self.start, *self.ends][-2], self.end), 0
        self.ends = []

    def cut(self, now: float) -> None:
        """Forget the steps that have not begun before `now`."""
        del self.ends[bisect_left(self.ends, now) + 1 :]


def ends_of(
    now: float, world: World, work: tuple[int, int, int], seen: int, steps: int, noise: float
) -> list[float]:
    """When `steps` steps end that follow one another from `now`, in seconds.

    work: tokens, draft steps and context tokens of the first; each adds its tokens to the context.
    seen: requests that the policy sees; noise: what each step is multiplied by.
    """
    roofline, (total, drafts, context) = world.roofline, work
    if roofline.k_ctx == 0:
        times = repeat(roofline.time(total, drafts), steps)
    else:
        times = (roofline.time(total, drafts, context + i * total) for i in range(steps))
    if any(world.planning):
        times = (world.seconds(time, seen) for time in times)
    if noise != 1:
        times = (time * noise for time in times)
    return list(accumulate(times, initial=now))[1:]
