"""Where a chunk may end, whose adapters go together, and who starts first: vLLM's rules, without
vLLM."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from slos.serving.cuts import FIRST, Adapters, cut, sort_waiting

Places = Sequence[tuple[int, int]]


def gets(
    cap: int, n: int = 100, computed: int = 0, cached: int = 0, images: Places = (),
    **config: bool,
) -> int:  # fmt: skip
    """What a request of 200 tokens, with images at (place, tokens), gets of `n` behind `computed`;
    the policy saw none computed, and `cached` in the prefix cache."""
    places = [SimpleNamespace(offset=at, length=length) for at, length in images]
    features = [SimpleNamespace(mm_position=place) for place in places]
    request = SimpleNamespace(num_tokens=200, mm_features=features)
    t: Any = SimpleNamespace(request=request, progress=SimpleNamespace(computed=0, cached=cached))
    usual = {"enable_chunked_prefill": True, "disable_chunked_mm_input": False}
    return cut(t, computed, n, cap, SimpleNamespace(**(usual | config)))


def test_a_policy_has_its_way_within_what_vllm_gives() -> None:
    assert [gets(cap) for cap in (0, 1, 30, 100, 999)] == [0, 1, 30, 100, 100]


def test_what_is_found_beyond_what_was_told_is_taken_off_but_a_token() -> None:
    assert gets(30, computed=48, cached=48) == 30
    assert gets(30, computed=64, cached=48) == 14
    assert gets(30, computed=96, cached=48) == 1


@pytest.mark.parametrize("cap", [1, 30, 99])
def test_a_prompt_that_may_not_be_cut_is_taken_whole_or_not_at_all(cap: int) -> None:
    assert gets(cap, n=200, enable_chunked_prefill=False) == 200
    assert gets(0, n=200, enable_chunked_prefill=False) == 0
    assert gets(cap, n=4, computed=199, cached=199, enable_chunked_prefill=False) == min(cap, 4)


def test_no_chunk_ends_within_an_image_that_has_to_be_whole() -> None:
    images = [(20, 30), (50, 30), (90, 40)]
    for cap, whole in ((20, 20), (21, 50), (50, 50), (51, 80), (80, 80), (85, 85)):
        assert gets(cap, images=images) == cap, "where it need not be"
        assert gets(cap, images=images, disable_chunked_mm_input=True) == whole
    # vLLM itself ended before the third one, for which it has no room
    assert gets(95, n=90, images=images, disable_chunked_mm_input=True) == 90
    assert gets(5, n=60, computed=30, cached=30, images=images, disable_chunked_mm_input=True) == 20


@pytest.mark.parametrize("name", FIRST)
def test_one_that_holds_no_blocks_goes_to_those_that_wait(name: str) -> None:
    class Queue(list):
        def remove_requests(self, requests: Any) -> None:
            self[:] = [r for r in self if r not in requests]

    waits = {id: SimpleNamespace(request_id=id, num_computed_tokens=0) for id in "abcd"}
    holds = SimpleNamespace(request_id="e", num_computed_tokens=9)
    waiting, first = Queue([waits["a"], waits["b"]]), Queue([waits["c"], holds, waits["d"]])
    scheduler = SimpleNamespace(waiting=waiting, **{name: first})
    sort_waiting(scheduler, {*"abce"}, {"c": 0, "b": 1, "a": 2}.__getitem__)
    assert [r.request_id for r in waiting] == ["c", "b", "a"]
    assert [r.request_id for r in first] == ["e", "d"], "d is not ready: it is loading"


def test_a_step_has_no_more_adapters_than_there_is_room_for() -> None:
    adapters = Adapters(2)
    plain = SimpleNamespace(lora_request=None)
    own = [SimpleNamespace(lora_request=SimpleNamespace(lora_int_id=i)) for i in (1, 2, 3)]
    took = [adapters.take(r) for r in (own[0], plain, own[1], own[2], own[0], plain)]
    assert took == [True, True, True, False, True, True]
    adapters.ids.clear()
    assert adapters.take(own[2])
