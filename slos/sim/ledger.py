"""The KV ledger of one engine: who has which of its blocks."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Ledger:
    """`total` KV blocks of `block_size` tokens. Each is free, held by a request here, or lent.

    Lent are the blocks of KV caches on their way to another replica or from it; no policy sees
    them. Requests are named by their ids. Nothing here may take more than is free: who asks for
    blocks has looked.
    """

    total: int
    block_size: int
    free: int = field(init=False)
    held: dict[str, int] = field(init=False, default_factory=dict)
    loans: dict[str, int] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.free = self.total

    @property
    def lent(self) -> int:
        return sum(self.loans.values())

    def blocks(self, tokens: int) -> int:
        """Blocks that `tokens` tokens of KV cache occupy."""
        return -(-tokens // self.block_size)

    def need(self, id: str, tokens: int) -> int:
        """Blocks that a request lacks to have `tokens` tokens in the cache."""
        return -(-tokens // self.block_size) - self.held.get(id, 0)

    def grow(self, id: str, tokens: int) -> None:
        """Give a request what it lacks to have `tokens` tokens in the cache."""
        self.free -= self.need(id, tokens)
        self.held[id] = self.blocks(tokens)

    def release(self, id: str) -> None:
        self.free += self.held.pop(id)

    def lend(self, id: str) -> None:
        """A request leaves; its cache stays until it is fetched."""
        self.loans[id] = self.held.pop(id)

    def reserve(self, id: str, tokens: int) -> None:
        """Room for a cache that is on its way here."""
        self.loans[id] = self.blocks(tokens)
        self.free -= self.loans[id]

    def fetched(self, id: str) -> None:
        """Its cache has left."""
        self.free += self.loans.pop(id)

    def landed(self, id: str) -> None:
        """Its cache is here, and the request with it."""
        self.held[id] = self.loans.pop(id)
