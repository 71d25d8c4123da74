"""The blocks of a prefix cache one by one, written as plainly as possible: what the run-length
ledger of the simulator is held against."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from slos.core.types import Request


@dataclass(eq=False)
class Block:
    """content: all tokens up to its end once it is full, None before; held: by so many requests."""

    content: tuple | None = None
    held: int = 0


@dataclass
class Pool:
    """free: what is taken next is first; full: blocks by content, the oldest first."""

    total: int
    size: int
    free: list[Block] = field(init=False)
    full: dict[tuple, list[Block]] = field(init=False, default_factory=dict)
    tables: dict[str, list[Block]] = field(init=False, default_factory=dict)
    evicted: int = 0

    def __post_init__(self) -> None:
        self.free = [Block() for _ in range(self.total)]

    @property
    def held(self) -> int:
        return self.total - len(self.free)

    def content(self, request: Request, block: int) -> tuple:
        """All tokens up to the end of a block: of whom, and which."""
        tokens = [(name, k) for name, n in request.prefix for k in range(n)]
        own = ((request, k) for k in range((block + 1) * self.size))
        return (*tokens, *own)[: (block + 1) * self.size]

    def found(self, request: Request, tokens: int) -> list[Block]:
        """Never the last token."""
        blocks = []
        for i in range((tokens - 1) // self.size):
            same = self.full.get(self.content(request, i))
            if not same:
                break
            blocks.append(same[0])
        return blocks

    def start(self, request: Request, tokens: int) -> int:
        """Hold what is found beyond what is held; how many tokens that is in all."""
        table = self.tables.setdefault(request.id, [])
        for block in self.found(request, tokens)[len(table) :]:
            if not block.held:
                self.free.remove(block)
            block.held += 1
            table.append(block)
        return len(table) * self.size

    def grow(self, request: Request, tokens: int) -> None:
        """Take new blocks for so many tokens."""
        table = self.tables[request.id]
        while len(table) < -(-tokens // self.size):
            block = self.free.pop(0)
            if block.content is not None:
                self.evicted += 1
                self.full[block.content].remove(block)
            block.content, block.held = None, 1
            table.append(block)

    def fill(self, request: Request, tokens: int) -> None:
        """So many tokens are known and computed: what is full can be found."""
        for i, block in enumerate(self.tables[request.id][: tokens // self.size]):
            if block.content is None:
                block.content = self.content(request, i)
                self.full.setdefault(block.content, []).append(block)

    def release(self, id: str) -> None:
        """The last block goes first, and one with nothing to find in it before all others."""
        for block in reversed(self.tables.pop(id, [])):
            block.held -= 1
            if not block.held:
                self.free.insert(len(self.free) if block.content else 0, block)

    def shared(self, blocks: Iterable[Block], beside: int) -> int:
        """How many of the blocks more than `beside` requests hold."""
        return sum(block.held > beside for block in blocks)
