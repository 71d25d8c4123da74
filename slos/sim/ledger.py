"""The KV ledger of one engine that caches nothing; `slos.sim.prefix_cache` has the other one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from sys import maxsize

from slos.core.types import Progress
from slos.sim.world import Simulated


@dataclass(slots=True)
class Ledger:
    """`total` KV blocks of `block_size` tokens. Each is free, held by a request here, or lent.

    Lent are those of KV caches on their way to another replica or from it; no policy sees them. A
    request holds `blocks(computed)` as long as it is here. Nothing here may take more than is free:
    who takes has looked.
    """

    total: int
    block_size: int
    free: int = field(init=False)
    lent: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.free = self.total

    @property
    def held(self) -> int:
        return self.total - self.free - self.lent

    def blocks(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of KV cache occupy."""
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        """What requests here have come to hold."""
        self.free -= blocks

    def release(self, live: Simulated) -> None:
        """A request gives back what it held."""
        self.free += self.blocks(live.progress.computed)

    def lend(self, live: Simulated) -> None:
        """A request leaves; its cache stays until it is fetched."""
        self.lent += self.blocks(live.progress.computed)

    def fetched(self, live: Simulated) -> None:
        """Its cache has left."""
        self.lent -= self.blocks(live.progress.computed)
        self.free += self.blocks(live.progress.computed)

    def reserve(self, tokens: int) -> None:
        """Room for a cache that is on its way here."""
        self.take(self.blocks(tokens))
        self.lent += self.blocks(tokens)

    def landed(self, live: Simulated) -> None:
        """That cache is here, and its request holds it."""
        self.lent -= self.blocks(live.progress.computed)

    # What a cache would do; nothing is found here

    def unnoticed(self, batch: Sequence[Simulated]) -> tuple[int, int]:
        """How many decodes of each request of a batch, and how many blocks that are taken, change
        nothing that requests which wait would find."""
        return maxsize, self.free

    def expect(self, live: Simulated) -> None:
        """A request waits, and may find something when it starts."""

    def forget(self, live: Simulated) -> None:
        """It waits no longer."""

    def show(self, running: Sequence[Progress]) -> None:
        """Write down what would be found for those that wait, and what all share with running
        ones."""

    def hold(
        self, batch: Sequence[Simulated], starts: Sequence[Simulated], tokens: Mapping[str, int]
    ) -> tuple[Mapping[str, int], int]:
        """Let those of a batch that start hold what is found for them. The tokens that are left to
        compute, and how many were found that the view had not told of."""
        return tokens, 0

    def fill(self, live: Simulated, tokens: int) -> None:
        """A request has computed so many tokens, or will have after this step: blocks that are full
        then can be found from now on."""
