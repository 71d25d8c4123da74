"""KV blocks and seats while a batch is put together."""

from __future__ import annotations

from slos.core.types import Progress, View


class Room:
    """KV blocks and seats while a batch is put together; takes both from the tail of `evictable`
    when they run out."""

    def __init__(self, view: View, best_effort: list[Progress]) -> None:
        self.view, self.evictable = view, list(best_effort)
        self.free, self.seats = view.free_blocks, view.max_seqs - len(view.running)
        self.victims: list[Progress] = []
        self.shared = 0  # blocks that starts count on running requests for
        self.gained = 0  # blocks, by preemption

    def give_all(
        self, requests: list[Progress], wanted: list[int], need: float, starts: int
    ) -> dict[str, int]:
        """Give guaranteed `requests` what is `wanted`: all at once where none has to go, else in
        turn.

        need, starts: blocks and seats for all. Where best effort gives too little the last in turn
        go too.
        """
        if need <= self.free and starts <= self.seats:
            self.free, self.seats = self.free - int(need), self.seats - starts
            return {p.id: n for p, n in zip(requests, wanted, strict=True) if n}
        best_effort = self.evictable
        self.evictable = [p for p in requests if p.computed] + best_effort
        tokens = {p.id: n for p, n in zip(requests, wanted, strict=True) if n and self.give(p, n)}
        self.evictable = [p for p in best_effort if p not in self.victims]
        return tokens

    def give(self, p: Progress, tokens: int) -> bool:
        """Find the blocks for `tokens` more of `p`, then safe from eviction; False if there are
        none."""
        if p in self.victims:
            return False
        starts, need, shared = not p.computed, self.view.needs(p, tokens), 0
        if not starts:
            self.evictable.remove(p)
        elif self.victims:
            need += p.shared
        else:
            shared = p.shared
        while self.evictable and (need > self.free or (starts and not self.seats)):
            # perhaps it was the one that had what they share
            need, shared, self.free, self.shared = need + shared, 0, self.free - self.shared, 0
            self._evict(self.evictable.pop())
        if need > self.free or (starts and not self.seats):
            return False
        self.free -= need
        self.seats -= starts
        self.shared += shared
        return True

    def _evict(self, victim: Progress) -> None:
        self.victims.append(victim)
        self.seats += 1
        gained = self.view.frees(*self.victims)
        self.free, self.gained = self.free + gained - self.gained, gained
