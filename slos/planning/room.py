"""Allocation of KV blocks and seats while a batch is formed."""

from __future__ import annotations

from slos.core.types import Progress, View


class Room:
    """If blocks or seats run out, the requests at the tail of `evictable` are preempted."""

    def __init__(self, view: View, best_effort: list[Progress]) -> None:
        self.view, self.evictable = view, list(best_effort)
        self.free, self.seats = view.free_blocks, view.max_seqs - len(view.running)
        self.victims: list[Progress] = []
        self.shared = 0  # blocks that starting requests share with running ones
        self.gained = 0  # blocks gained by preemption

    def give_all(
        self, requests: list[Progress], wanted: list[int], need: float, starts: int
    ) -> dict[str, int]:
        """Give guaranteed `requests` the tokens `wanted`: all at once if nothing must be preempted,
        else in turn.

        need, starts: blocks and seats for all. If preempting best effort is not enough, guaranteed
        requests are preempted too, the last in turn first.
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
        """Find the blocks for `tokens` more of `p`, which is then safe from preemption; False if
        there are none."""
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
            # the victim may be the one that it would have shared blocks with
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
