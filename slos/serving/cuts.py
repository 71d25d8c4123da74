"""What a step may hold: where a chunk of a prompt may end, which requests may run together, and in
which order they start.

vLLM applies these rules before the plug-in sets its caps, and assumes that every running request is
in the step and every chunk as long as it made it. The plug-in skips some and cuts others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from slos.serving.tracked import Tracked

FIRST = ("kv_holding_waiting", "skipped_waiting")  # vLLM's queues: from 0.32 on, and before


def cut(t: Tracked, computed: int, n: int, cap: int, config: Any) -> int:
    """How many of the `n` tokens after `computed` ones that vLLM would schedule a request gets.

    cap: what the policy gave it. It is more where no chunk may end: until the end of the prompt,
    or of an image that has to be whole. config: vLLM's `SchedulerConfig`.
    """
    if not cap:
        return 0
    if not config.enable_chunked_prefill and t.request.num_tokens - computed > 1:
        return n
    # it may find more in the cache than the policy saw: what this step computes for others
    found = max(0, computed - t.progress.computed - t.progress.cached)
    end = computed + max(1, cap - found)
    for feature in t.request.mm_features if config.disable_chunked_mm_input else ():
        place = feature.mm_position
        if place.offset < end < place.offset + place.length:
            end = place.offset + place.length
    return min(n, end - computed)


def sort_waiting(scheduler: Any, ready: Collection[str], place: Callable[[str], int]) -> None:
    """Put vLLM's waiting requests into the order of their places, by id. ready: those that could
    start.

    It serves another queue first, of those that it skipped or whose KV blocks were loaded. One that
    is ready there and holds no block, as its grammar was compiled only now or its blocks could not
    be loaded, goes to the others: without a token it would block them all.
    """
    waiting, moved = scheduler.waiting, list[Any]()
    for name in FIRST:
        queue: Any = getattr(scheduler, name, ())
        if some := [r for r in queue if r.request_id in ready and not r.num_computed_tokens]:
            queue.remove_requests(some)
            moved += some
    moved += waiting
    waiting.clear()
    waiting.extend(sorted(moved, key=lambda r: place(r.request_id)))


class Adapters:
    """The LoRA adapters of one step. most: for so many vLLM has room, and fails with more."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.ids: set[int] = set()

    def take(self, request: Any) -> bool:
        """Whether the step has the request's adapter, or room for it, which it then takes."""
        id = request.lora_request.lora_int_id if request.lora_request else 0
        if id and id not in self.ids:
            if len(self.ids) >= self.most:
                return False
            self.ids.add(id)
        return True
