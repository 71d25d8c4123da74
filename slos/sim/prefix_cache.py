"""The KV ledger of an engine with a prefix cache, as vLLM V1 has it (`vllm/v1/core` of 0.32).

Full blocks have names that stand for all tokens up to their ends. What a request has computed stays
behind in the free blocks, and one that starts later takes from there what its context begins with:
a hit. Free blocks with nothing in them are taken first, then the least recently used; the blocks of
a request are given back last one first, so that beginnings stay longest. Two requests that compute
the same at the same time have a copy each, as there.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain, count
from sys import maxsize

from slos.core.attainment import Live
from slos.core.types import Progress, Request
from slos.sim.ledger import Ledger

BLOCKS = 1 << 32  # more than any context has: names of different contents stay apart


@dataclass(frozen=True, slots=True)
class Content:
    """The names of a request's blocks. The blocks up to `ends[i]` that are not in a piece before
    are named bases[i] + their number; shared: whether others may have the same ones."""

    ends: tuple[int, ...]
    bases: tuple[int, ...]

    @property
    def shared(self) -> bool:
        return len(self.bases) > 1

    def name(self, block: int) -> int:
        return self.bases[bisect_left(self.ends, block + 1)] + block

    def names(self, start: int, end: int) -> Sequence[int]:
        """Of blocks `start` to `end`, the last one not included."""
        if len(self.bases) == 1:
            return range(self.bases[0] + start, self.bases[0] + end)
        pieces, low = [], start
        for stop, base in zip(self.ends, self.bases, strict=True):
            high = min(stop, end)
            if low < high:
                pieces.append(range(base + low, base + high))
                low = high
        return [*chain(*pieces)]


@dataclass(slots=True)
class Contents:
    """Names for what requests are made of, the same for the same content on all replicas."""

    block_size: int
    _known: dict[tuple[int, int, str | int], int] = field(default_factory=dict)
    _fresh: Iterable[int] = field(default_factory=lambda: count(0, BLOCKS))

    def of(self, request: Request) -> Content:
        """The end of a block says in which piece it is: that piece, and all before, are its
        tokens."""
        ends, bases, end, last = [], [], 0, (-1, 0)
        for name, tokens in request.prefix:
            base = self._known.get((*last, name))
            if base is None:
                base = self._known[*last, name] = next(self._fresh)  # type: ignore[call-overload]
            end, last = end + tokens, (base, tokens)
            ends.append(end // self.block_size)
            bases.append(base)
        return Content((*ends, maxsize), (*bases, next(self._fresh)))  # type: ignore[call-overload]


@dataclass(slots=True)
class PrefixCache(Ledger):
    """A `Ledger` whose free blocks keep what they hold until they are taken.

    A block goes by the name of its content, a second copy of that by a number below 0. tables: the
    full blocks of each request here; idle: free blocks that hold something, least recently used
    first; cached: the block that a hit finds, by name; copies: other blocks of that name, in the
    order in which they were computed; holders: of each block that more than one request holds, how
    many; leaving: tables of those lent, and how many blocks count as that. hits: tokens found.
    """

    tables: dict[str, list[int]] = field(init=False, default_factory=dict)
    idle: OrderedDict[int, None] = field(init=False, default_factory=OrderedDict)
    cached: dict[int, int] = field(init=False, default_factory=dict)
    copies: dict[int, dict[int, None]] = field(init=False, default_factory=dict)
    names: dict[int, int] = field(init=False, default_factory=dict)  # of copies
    holders: dict[int, int] = field(init=False, default_factory=dict)
    leaving: dict[str, tuple[list[int], int]] = field(init=False, default_factory=dict)
    hits: int = field(init=False, default=0)
    evicted: int = field(init=False, default=0)
    _copied: int = field(init=False, default=0)
    _sharing: bool = field(init=False, default=False)  # changed since requests were told

    # What a request finds

    def found(self, live: Live) -> int:
        """Blocks of its context that are cached, from its beginning on. At least one token is left
        to compute, from which the next one comes. Where a block is cached, so are those before it:
        whoever holds one holds them too, and gives them back after it."""
        content, cached = live.content, self.cached
        most = (live.progress.tokens - 1) // self.block_size
        if most == 0 or content.name(0) not in cached:
            return 0
        if content.name(most - 1) in cached:
            return most
        return bisect_left(range(most), True, key=lambda i: content.name(i) not in cached)

    def start(self, live: Live) -> None:
        """Hold what is found for a request that starts, or is about to."""
        p, table = live.progress, self.tables.setdefault(live.request.id, [])
        for name in live.content.names(len(table), self.found(live)):
            block = self.cached[name]
            if block in self.idle:
                del self.idle[block]
                self.free -= 1
            else:
                self.holders[block] = self.holders.get(block, 1) + 1
                self._sharing = True
            table.append(block)
        p.computed = len(table) * self.block_size

    def show(self, waiting: Sequence[Live], running: Sequence[Progress]) -> None:
        """Write down what would be found for those that wait, and what all share with running
        ones."""
        for live in waiting:
            p, found = live.progress, self.found(live)
            p.cached = found * self.block_size
            p.shared = self._count_held(live.content.names(0, found)) if found else 0
        if self._sharing:
            self._sharing = False
            for p in running:
                p.shared = self._shared(self.tables[p.id])

    def _count_held(self, names: Sequence[int]) -> int:
        """How many of the blocks that would be found are held: whoever holds one, holds those
        before it, if there is one of each."""
        if not self.copies:
            return bisect_left(names, True, key=self.idle.__contains__)
        return sum(self.cached[name] not in self.idle for name in names)

    def _shared(self, table: list[int]) -> int:
        """How many blocks of a request others hold, too."""
        holders = self.holders
        if not self.copies:
            return bisect_left(table, True, key=lambda block: block not in holders)
        return sum(map(holders.__contains__, table))

    # What becomes of blocks

    def fill(self, live: Live, tokens: int) -> None:
        """A request has computed so many tokens, or will have after this step: blocks that are full
        then can be found from now on."""
        table, end = self.tables[live.request.id], tokens // self.block_size
        if end <= len(table):
            return
        names = live.content.names(len(table), end)
        if self.cached.keys().isdisjoint(names):
            self.cached.update(zip(names, names, strict=True))
            table += names
            return
        for name in names:
            block = name
            if name in self.cached:
                self._copied -= 1
                block = self._copied
                self.names[block] = name
                self.copies.setdefault(name, {})[block] = None
            else:
                self.cached[name] = name
            table.append(block)

    def take(self, blocks: int) -> None:
        self.free -= blocks
        idle, cached = self.idle, self.cached
        gone = len(idle) - self.free
        if gone <= 0:
            return
        self.evicted += gone
        for _ in range(gone):
            block = idle.popitem(last=False)[0]
            if self.names:
                self._forget(block)
            else:
                del cached[block]

    def _forget(self, block: int) -> None:
        """Where there are copies: the next one takes its place."""
        name = self.names.pop(block, block)
        others = self.copies.get(name)
        if others is None:
            del self.cached[name]
            return
        if self.cached[name] == block:
            block = self.cached[name] = next(iter(others))
        del others[block]
        if not others:
            del self.copies[name]

    def release(self, live: Live) -> None:
        table = self.tables.pop(live.request.id)
        self._give_back(table, self.blocks(live.progress.computed))

    def _give_back(self, table: list[int], blocks: int) -> None:
        """The full ones, and all; those that others hold stay with them."""
        holders, gone = self.holders, table
        if holders and not holders.keys().isdisjoint(table):
            gone, self._sharing = [], True
            for block in table:
                held = holders.pop(block, 1) - 1
                if held > 1:
                    holders[block] = held
                if not held:
                    gone.append(block)
        self.idle.update(dict.fromkeys(reversed(gone)))
        self.free += blocks - len(table) + len(gone)

    def lend(self, live: Live) -> None:
        table = self.tables.pop(live.request.id)
        alone = self.blocks(live.progress.computed) - self._shared(table)
        self.leaving[live.request.id] = table, alone
        self.lent += alone

    def fetched(self, live: Live) -> None:
        table, alone = self.leaving.pop(live.request.id)
        self.lent -= alone
        self._give_back(table, self.blocks(live.progress.computed))

    def landed(self, live: Live) -> None:
        self.lent -= self.blocks(live.progress.computed)
        self.tables[live.request.id] = []
        self.fill(live, live.progress.computed)
