"""What vLLM's prefix cache has of the requests that wait, before the policy plans.

Looking changes neither what is evicted next nor vLLM's statistics. The engine's own objects are
used by duck typing: nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from slos.serving.tracked import Tracked

Found = tuple[int, Sequence[Sequence[Any]]]  # tokens, and blocks by KV cache group


class PrefixHits:
    """manager: vLLM's `KVCacheManager`. found: of each that waits, kept from step to step."""

    def __init__(self, manager: Any) -> None:
        self.manager, self.pool = manager, manager.block_pool
        self.found: dict[str, Found] = {}
        self.held: list[Sequence[Any]] = []
        self.runs: Collection[tuple[str, int]] = ()

    def show(self, waiting: Sequence[Tracked], running: Sequence[Tracked]) -> None:
        """Write down what each would find if it started now, and what it shares with others."""
        if not self.manager.enable_caching:
            return
        before, self.found = self.found, {}
        for t in waiting:
            p, id = t.progress, t.request.request_id
            p.cached = p.shared = 0
            if found := self._find(t.request, before.get(id)):
                self.found[id] = found
                p.cached, p.shared = found[0], self._count(found[1], others=0)
        runs = {(t.request.request_id, t.request.num_preemptions) for t in running}
        if runs == self.runs:
            return
        self.runs = runs
        for t in running:
            blocks = self.manager.get_blocks(t.request.request_id).blocks
            t.progress.cached, t.progress.shared = 0, self._count(blocks, others=1)

    def _count(self, blocks: Sequence[Sequence[Any]], others: int) -> int:
        """Blocks of each group that more than `others` requests hold."""
        held = sum(b.ref_cnt > others and not b.is_null for group in blocks for b in group)
        return held // max(1, len(blocks))

    def _find(self, request: Any, before: Found | None) -> Found | None:
        """As before, where the last block is still cached and the next one is not: a request that
        holds a block also holds those before it, and frees them later."""
        hashes, most = request.block_hashes, request.num_tokens - 1
        if getattr(request, "skip_reading_prefix_cache", False) or not hashes:
            return None
        if len(self.manager.kv_cache_config.kv_cache_groups) == 1:
            if not self.pool.get_cached_block(hashes[0], [0]):
                return None
            if before and self._same(before, hashes, most):
                return before
        blocks, tokens = self.manager.coordinator.find_longest_cache_hit(hashes, most)[:2]
        return (tokens, blocks) if tokens else None

    def _same(self, before: Found, hashes: Sequence[Any], most: int) -> bool:
        tokens, (blocks,) = before
        end, last = len(blocks), self.pool.get_cached_block(hashes[len(blocks) - 1], [0])
        if tokens > most or not last or last[0] is not blocks[-1]:
            return False
        more = end < min(len(hashes), most * end // tokens)
        return not more or not self.pool.get_cached_block(hashes[end], [0])

    def hold(self, ids: Collection[str]) -> None:
        """Keep what these find from being evicted by others in the step about to be formed."""
        for id in [id for id in self.found if id in ids]:
            for group in filter(None, self.found[id][1]):
                # a group may have a pool of its own, which vLLM looks for only to free blocks
                (getattr(group[0], "pool", None) or self.pool).touch(group)
                self.held.append(group)

    def release(self) -> None:
        """The step is formed: requests that started hold their blocks themselves."""
        while self.held:
            self.pool.free_blocks(reversed(self.held.pop()))
