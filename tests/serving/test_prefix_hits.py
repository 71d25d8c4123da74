"""What is found in vLLM's prefix cache, without vLLM."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from slos.serving.prefix_hits import PrefixHits


class Pool:
    """Frees blocks of any pool, as vLLM's does, but touches its own."""

    def touch(self, blocks: list[Any]) -> None:
        for block in blocks:
            assert block.pool in (self, None)
            block.ref_cnt += 1

    def free_blocks(self, blocks: Any) -> None:
        for block in blocks:
            block.ref_cnt -= 1


def test_blocks_are_held_in_the_pool_that_they_are_of() -> None:
    hits = PrefixHits(SimpleNamespace(block_pool=Pool()))
    gpu, host, older = (SimpleNamespace(ref_cnt=0, pool=p) for p in (hits.pool, Pool(), None))
    hits.found = {"r": (16, [[gpu], [host], [], [older]])}
    hits.hold({"r", "other"})
    assert [b.ref_cnt for b in (gpu, host, older)] == [1, 1, 1]
    hits.release()
    assert [b.ref_cnt for b in (gpu, host, older)] == [0, 0, 0] and not hits.held
