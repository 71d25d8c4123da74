"""The KV ledger of an engine with a prefix cache, as vLLM V1 has it (`vllm/v1/core` of 0.32).

What a request has computed in full blocks stays behind when it gives them back, and one that starts
later takes from there what its context begins with: a hit. Free blocks with nothing in them are
taken first, then the least recently used; the blocks of a request are given back last one first, so
that beginnings stay longest. Two requests that compute the same at the same time have a copy each,
and a hit finds the older one. Blocks that are computed, held and given back together are one `Run`
here, which is why a simulation hardly takes longer.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from sys import maxsize

from slos.core.types import Progress, Request
from slos.sim.ledger import Ledger
from slos.sim.world import Simulated


@dataclass(frozen=True, slots=True)
class Content:
    """What a request's blocks hold: pieces, each a number, and the block at which each ends. Others
    may have the same ones, but never the last; shared: whether there are more than that one."""

    pieces: tuple[int, ...]
    ends: tuple[int, ...]
    shared: bool


@dataclass(slots=True)
class Contents:
    """Numbers for what requests are made of, the same for the same content on all replicas."""

    block_size: int
    _known: dict[tuple[int, int, str | int], int] = field(default_factory=dict)
    _fresh: Iterator[int] = field(default_factory=count)

    def of(self, request: Request) -> Content:
        """A block is of the piece in which it ends. A piece stands for all tokens before it, too,
        as the hash of a block does."""
        pieces, ends, end, last = [], [], 0, (-1, 0)
        for name, tokens in request.prefix:
            key = (*last, name)
            if key not in self._known:
                self._known[key] = next(self._fresh)
            end, last = end + tokens, (self._known[key], tokens)
            if end // self.block_size > (ends[-1] if ends else 0):
                pieces.append(last[0])
                ends.append(end // self.block_size)
        return Content((*pieces, next(self._fresh)), (*ends, maxsize), shared=bool(pieces))


@dataclass(slots=True, eq=False)
class Run:
    """Blocks `start` to `end`, the last one not included, of a piece; holders: which requests hold
    them."""

    piece: int
    start: int
    end: int
    holders: set[str]

    @property
    def blocks(self) -> int:
        return self.end - self.start


@dataclass(slots=True)
class PrefixCache(Ledger):
    """A `Ledger` whose free blocks keep what they hold until they are taken.

    cached: all runs by piece, in the order in which they were computed; tables: those of each
    request here, in order; shared: how many blocks of a table others hold, too; idle: runs that
    no request holds, least recently used first, and how many blocks they have; leaving: the runs of
    requests that are lent, and how many blocks count as that; waiting: requests that may find
    something, by piece; changed: pieces of which they may find more or less than they were told.
    hits, evicted: tokens and blocks so far.
    """

    cached: dict[int, list[Run]] = field(init=False, default_factory=dict)
    tables: dict[str, list[Run]] = field(init=False, default_factory=dict)
    shared: Counter[str] = field(init=False, default_factory=Counter)
    idle: OrderedDict[Run, None] = field(init=False, default_factory=OrderedDict)
    idle_blocks: int = field(init=False, default=0)
    leaving: dict[str, tuple[list[Run], int]] = field(init=False, default_factory=dict)
    waiting: dict[int, dict[str, Simulated]] = field(init=False, default_factory=dict)
    changed: set[int] = field(init=False, default_factory=set)
    hits: int = field(init=False, default=0)
    evicted: int = field(init=False, default=0)
    _sharing: bool = field(init=False, default=False)  # changed since requests were told

    # What a request finds

    def _found(self, live: Simulated, start: int = 0) -> Iterator[tuple[Run, int, int]]:
        """What is cached of a request's context from block `start` on: runs, and from which block
        to which each is found. At least one token is left to compute, from which the next comes."""
        most, at = (live.progress.tokens - 1) // self.block_size, start
        for piece, end in zip(live.content.pieces, live.content.ends, strict=True):
            end = min(end, most)
            while at < end:
                runs = self.cached.get(piece, ())
                found = next((i for i, r in enumerate(runs) if r.start <= at < r.end), -1)
                if found < 0:
                    return
                to = min(runs[found].end, end)
                for older in runs[:found]:
                    to = min(to, older.start) if older.start > at else to
                yield runs[found], at, to
                at = to

    def expect(self, live: Simulated) -> None:
        # one that finds nothing now, and shares with no other, never will
        if live.content.shared or live.content.pieces[0] in self.cached:
            for piece in live.content.pieces:
                self.waiting.setdefault(piece, {})[live.request.id] = live
            self.changed.update(live.content.pieces[-1:])

    def forget(self, live: Simulated) -> None:
        for piece in live.content.pieces:
            if known := self.waiting.get(piece):
                known.pop(live.request.id, None)
                if not known:
                    del self.waiting[piece]
        live.progress.cached = live.progress.shared = 0

    def show(self, running: Sequence[Progress]) -> None:
        asked: dict[str, Simulated] = {}
        for piece in self.changed:
            asked |= self.waiting.get(piece, {})
        for live in asked.values():
            end = held = 0
            for run, start, end in self._found(live):
                held += end - start if run.holders else 0
            live.progress.cached, live.progress.shared = end * self.block_size, held
        self.changed.clear()
        if self._sharing:
            self._sharing = False
            for p in running:
                p.shared = self.shared[p.id]

    def unnoticed(self, batch: Sequence[Simulated]) -> tuple[int, int]:
        if not self.waiting:
            return maxsize, self.free
        size, asked = self.block_size, self.waiting.keys()
        last = [p.progress.computed % size for p in batch if not asked.isdisjoint(p.content.pieces)]
        steps = min((size - tokens for tokens in last), default=maxsize)
        kept = takewhile(lambda run: run.piece not in asked, self.idle)
        return steps, self.free - self.idle_blocks + sum(run.blocks for run in kept)

    def start(self, live: Simulated) -> None:
        """Hold what is found for a request that starts, beyond what it holds already."""
        p, id = live.progress, live.request.id
        table = self.tables.setdefault(id, [])
        for run, start, end in [*self._found(live, table[-1].end if table else 0)]:
            if run.start < start:
                self._split(run, start)
            found = self._split(run, end) if end < run.end else run
            if found.holders:
                self._sharing = True
                self.shared[id] += found.blocks
                self._count_alone(found, found.blocks)
            else:
                self.changed.add(found.piece)
                del self.idle[found]
                self.idle_blocks -= found.blocks
                self.free -= found.blocks
            found.holders.add(id)
            table.append(found)
        p.computed = table[-1].end * self.block_size if table else 0

    def hold(
        self, batch: Sequence[Simulated], starts: Sequence[Simulated], tokens: Mapping[str, int]
    ) -> tuple[Mapping[str, int], int]:
        left, within = dict(tokens), 0
        for live in starts:  # first of all what is there
            self.start(live)
        if any(live.content.shared for live in starts):
            for live in batch:  # then, in vLLM's order, what others of the batch compute, too
                if live not in starts:
                    self._will_fill(live, tokens)
        for live in starts:
            p = live.progress
            if live.content.shared:
                self.start(live)
            if more := p.computed - p.cached:
                left[p.id] = max(1, left[p.id] - more)
                within += more
            self.hits += p.computed
            self.forget(live)
            self._will_fill(live, left)
        return left, within

    def _will_fill(self, live: Simulated, tokens: Mapping[str, int]) -> None:
        if live.content.shared:
            p = live.progress
            self.fill(live, min(p.computed + tokens[p.id], p.tokens))

    def _count_alone(self, run: Run, blocks: int) -> None:
        """The one that holds a run, if it is one alone, shares so many blocks more."""
        if len(run.holders) == 1:
            [id] = run.holders
            self.shared[id] += blocks

    def _split(self, run: Run, at: int) -> Run:
        """Let a run begin at a block within it; the new run of what lies before."""
        before = Run(run.piece, run.start, at, {*run.holders})
        run.start = at
        runs = self.cached[run.piece]
        runs.insert(runs.index(run), before)
        for id in run.holders:
            table = self.tables[id] if id in self.tables else self.leaving[id][0]
            table.insert(table.index(run), before)
        if not run.holders:  # the end goes first
            both = {run: (run, before)}
            self.idle = OrderedDict.fromkeys(r for old in self.idle for r in both.get(old, (old,)))
        return before

    # What becomes of blocks

    def fill(self, live: Simulated, tokens: int) -> None:
        id, full = live.request.id, tokens // self.block_size
        table = self.tables[id]
        at = table[-1].end if table else 0
        if at >= full:
            return
        for piece, end in zip(live.content.pieces, live.content.ends, strict=True):
            end = min(end, full)
            if at < end:
                self.changed.add(piece)
                runs = self.cached.setdefault(piece, [])
                last = table[-1] if table else None
                if last and len(last.holders) == 1 and runs and runs[-1] is last:
                    last.end = end
                else:
                    runs.append(Run(piece, at, end, {id}))
                    table.append(runs[-1])
                at = end

    def take(self, blocks: int) -> None:
        self.free -= blocks
        gone = self.idle_blocks - self.free
        if gone <= 0:
            return
        self.evicted += gone
        self.idle_blocks -= gone
        while gone:
            run = next(iter(self.idle))
            self.changed.add(run.piece)
            if run.blocks > gone:
                run.end -= gone
                return
            gone -= run.blocks
            del self.idle[run]
            runs = self.cached[run.piece]
            runs.remove(run)
            if not runs:
                del self.cached[run.piece]

    def release(self, live: Simulated) -> None:
        self._give_back(live, self._table(live))

    def _table(self, live: Simulated) -> list[Run]:
        """Of one that leaves. What is its own can be asked for from now on only."""
        self.fill(live, live.progress.computed)
        return self.tables.pop(live.request.id)

    def _give_back(self, live: Simulated, table: list[Run]) -> None:
        self.free += self.blocks(live.progress.computed) - (table[-1].end if table else 0)
        del self.shared[live.request.id]
        for run in reversed(table):
            run.holders.remove(live.request.id)
            if run.holders:
                self._sharing = True
                self._count_alone(run, -run.blocks)
            else:
                self.changed.add(run.piece)
                self.idle[run] = None
                self.idle_blocks += run.blocks
                self.free += run.blocks

    def lend(self, live: Simulated) -> None:
        table = self._table(live)
        alone = self.blocks(live.progress.computed) - self.shared[live.request.id]
        self.leaving[live.request.id] = table, alone
        self.lent += alone

    def fetched(self, live: Simulated) -> None:
        table, alone = self.leaving.pop(live.request.id)
        self.lent -= alone
        self._give_back(live, table)

    def landed(self, live: Simulated) -> None:
        self.lent -= self.blocks(live.progress.computed)
        self.tables[live.request.id] = []
        if live.content.shared:
            self.fill(live, live.progress.computed)
