"""The baselines as the paper had them against traces worked out by hand: blocks of 4 tokens,
T = 0.1 + 0.01 n, so that the cap is 65 tokens at a TPOT of 1 s and 33 at 0.5 s."""

from __future__ import annotations

import pytest
from test_baselines import Recorder

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Progress, Request, Stage
from slos.evaluation.capacity_search import search
from slos.evaluation.grids import AS_PUBLISHED, AUTHORS, PLAIN, tries_of
from slos.hardware.profiles import profile
from slos.policies import POLICIES, make_policy
from slos.policies.as_published import cap
from slos.policies.oracle import Oracle
from slos.sim.replica import World
from slos.sim.simulator import simulate

ROOFLINE = Roofline((Plane(0.01, 0.0, 0.1),))


def req(id: str, prompt: int, output: int, arrival: float = 0.0, tpot: float = 1.0) -> Request:
    return Request(id, arrival, (Stage(prompt, output, SLO(tpot, slowdown=5.0)),))


def trace(name: str, *requests: Request, blocks: int = 99, **setting: object):
    """What the policy says step by step, as (tokens, preempted) or tokens alone; and who is
    declined."""
    recorder = Recorder(make_policy(name, ROOFLINE, Oracle(requests), **setting))
    outcomes = simulate(requests, recorder, World(ROOFLINE, blocks, block_size=4))
    steps = [(tokens, gone) if gone else tokens for tokens, gone in recorder.said]
    return steps, {o.id for o in outcomes if o.declined}


@pytest.mark.parametrize(
    ("hardware", "tpot", "tokens"),
    [
        ("opt-6.7b-a100", 0.05, 353),
        ("opt-6.7b-a100", 0.1, 1089),
        ("toolllama-7b-a100", 0.05, 321),
        ("r1-qwen-1.5b-a100", 0.05, 97),
        ("r1-qwen-1.5b-a100", 0.01, 1),  # no step is as short as that
    ],
)
def test_the_cap_is_the_authors(hardware: str, tpot: float, tokens: int) -> None:
    slow, fast = Progress("", 0.0, 9, 0.0, 9.0), Progress("", 0.0, 9, 0.0, tpot)
    assert cap(profile(hardware).roofline, [slow, fast]) == tokens


def test_vllm_a_prompt_a_batch_then_all_decode() -> None:
    steps, _ = trace("vllm-authors", req("a", 4, 3), req("b", 8, 2), req("c", 4, 2, 0.35))
    assert steps == [
        {"a": 4},  # to 0.14: b waits, though both would fit a batch
        {"b": 8},  # to 0.32
        {"a": 1, "b": 1},  # to 0.44: b ends; c came meanwhile
        {"c": 4},  # to 0.58: a stalls
        {"a": 1, "c": 1},
    ]


def test_sarathi_splits_what_decodes_leave_equally() -> None:
    prompts = req("c", 60, 1, 0.1), req("d", 20, 2, 0.1)
    steps, _ = trace("sarathi-authors", req("a", 40, 4), req("b", 30, 3), *prompts)
    assert steps == [
        {"a": 40, "b": 30},  # nobody decodes: whole, more than the cap
        {"a": 1, "b": 1, "c": 31, "d": 20},  # (65 - 2) // 2 = 31 each; what d leaves is not used
        {"a": 1, "b": 1, "d": 1, "c": 29},  # (65 - 3) // 1
        {"a": 1},
    ]


def test_sarathi_keeps_to_the_strictest_pace_of_those_who_decode() -> None:
    fast = req("a", 4, 3, tpot=0.5)
    steps, _ = trace("sarathi-authors", fast, req("b", 40, 1, 0.1), req("c", 7, 1, 0.1))
    assert steps == [
        {"a": 4},
        {"a": 1, "b": 16, "c": 7},  # (33 - 1) // 2
        {"a": 1, "b": 24},  # 32 fit
    ]
    steps, _ = trace("sarathi-capped", fast, req("b", 40, 1, 0.1), req("c", 7, 1, 0.1))
    assert steps == [
        {"a": 4},
        {"a": 1, "b": 32},  # the engine: in turn
        {"a": 1, "b": 8, "c": 7},
    ]


def test_sarathi_capped_by_everybody_while_nobody_decodes() -> None:
    steps, _ = trace("sarathi-capped", req("a", 40, 1), req("b", 40, 1, tpot=0.5))
    assert steps == [{"a": 33}, {"a": 7, "b": 26}, {"b": 14}]


@pytest.mark.parametrize("name", ["vllm-authors", "sarathi-authors"])
def test_what_does_not_fit_whole_is_declined_and_served_last(name: str) -> None:
    # 10 blocks. a will have 6, so b's 5 do not fit and c's 4 do: b is declined at once, and has
    # its turn, alone, when a and c are gone. d makes it give its blocks back.
    requests = req("a", 16, 8), req("b", 16, 4), req("c", 8, 8), req("d", 4, 1, 2.0)
    steps, declined = trace(name, *requests, blocks=10)
    assert declined == {"b"}
    first = [{"a": 16}, {"c": 8}] if name == "vllm-authors" else [{"a": 16, "c": 8}]
    assert steps[: len(first)] == first
    together = [s for s in steps if s == {"a": 1, "c": 1}]
    assert len(together) == 7  # a's and c's tokens after their first ones, to 1.4 or 1.3
    assert steps[len(first) + 7 :] == [
        {"b": 16},  # to 1.6
        {"b": 1},
        {"b": 1},
        {"b": 1},
        {"d": 4},
    ]


def test_one_that_is_declined_gives_way_at_once() -> None:
    requests = req("a", 16, 2), req("b", 20, 3), req("c", 12, 2, 0.45)
    steps, declined = trace("sarathi-authors", *requests, blocks=7)
    assert declined == {"b"}
    assert steps == [
        {"a": 16},  # to 0.26; a will have 5 blocks
        {"a": 1},  # to 0.37
        {"b": 20},  # to 0.67: c came
        ({"c": 12}, ("b",)),  # b's 5 blocks leave room for 2 of c's 4
        {"c": 1},
        {"b": 21},  # again, with the token that it had
        {"b": 1},
    ]


def test_sarathi_paged_declines_nobody() -> None:
    steps, declined = trace(
        "sarathi-authors", req("a", 16, 2), req("b", 20, 1), blocks=6, paged=True
    )
    assert not declined
    assert steps == [{"a": 16}, {"a": 1}, {"b": 20}]


def test_they_are_named_apart_from_todays() -> None:
    rivals = [rival for kinds in (AS_PUBLISHED, AUTHORS) for r in kinds.values() for rival in r]
    assert {r.engine for r in rivals} & POLICIES.keys() == {"vllm", "sarathi"}  # settings of then
    for rival in rivals:
        [case] = tries_of("coding", [rival], 2, (PLAIN,), num_requests=99)
        assert max(p.rate for p in search(case) if p.capacity) > 0
