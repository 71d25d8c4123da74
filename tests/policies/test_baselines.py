"""The baselines against traces worked out by hand from their originals' rules: blocks of 4 tokens,
T = 0.1 + 0.01 n."""

from dataclasses import dataclass, field, replace

import pytest

from slos.core.attainment import Outcome
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, Policy, Request, Stage, View
from slos.policies.baselines import VLLM, VLLMV1, Sarathi
from slos.sim.replica import World
from slos.sim.simulator import simulate

PACE = SLO(tpot=1.0, slowdown=5.0)


@dataclass
class Recorder:
    """Lets a policy answer for one step at a time, and writes down what it says."""

    policy: Policy
    said: list[tuple[dict[str, int], tuple[str, ...]]] = field(default_factory=list)

    def step(self, view: View) -> Batch:
        batch = replace(self.policy.step(view), repeat=1)
        self.said.append((dict(batch.tokens), batch.preempt))
        return batch


def trace(policy: Policy, *requests: Request, blocks: int = 20, max_seqs: int = 256):
    """What the policy says step by step, as (tokens, preempted) or tokens alone; and the finish
    times by id."""
    recorder = Recorder(policy)
    world = World(Roofline((Plane(0.01, 0.0, 0.1),)), blocks, block_size=4, max_seqs=max_seqs)
    outcomes: list[Outcome] = simulate(requests, recorder, world)
    steps = [(tokens, gone) if gone else tokens for tokens, gone in recorder.said]
    assert [list(s) for s in recorder.said]
    return steps, {o.id: pytest.approx(o.finish) for o in outcomes}


def req(id: str, prompt: int, output: int, arrival: float = 0.0) -> Request:
    return Request(id, arrival, (Stage(prompt, output, PACE),))


# vLLM before V1: whole prompts, prefill first, else everybody decodes.


def test_vllm_prefill_stalls_decodes() -> None:
    steps, finish = trace(VLLM(), req("a", 4, 3), req("b", 8, 2, arrival=0.05))
    assert steps == [
        {"a": 4},  # 0.00 to 0.14, a's first token
        {"b": 8},  # 0.14 to 0.32: b came meanwhile, and a prompt goes before all decodes: a stalls
        {"a": 1, "b": 1},  # 0.32 to 0.44: nobody waits, everybody decodes; b has its two
        {"a": 1},  # 0.44 to 0.55
    ]
    assert finish == {"b": 0.44, "a": 0.55}


def test_vllm_token_limit_and_first_come_first_served() -> None:
    steps, _ = trace(
        VLLM(max_batched_tokens=8), req("a", 4, 1), req("b", 12, 1), req("c", 2, 1), req("d", 6, 1)
    )
    assert steps == [
        {"a": 4},  # b would exceed the 8 tokens; c would fit but does not overtake
        {"b": 12},  # longer than the limit: alone
        {"c": 2, "d": 6},  # just 8
    ]


def test_vllm_watermark_holds_back_admission() -> None:
    # 2 of 10 blocks stay free. a takes 4; b's 5 of the 6 left would leave 1, so b waits, and c
    # behind it, until a ends. Alone on the machine b may go under the watermark: else it would wait
    # for ever.
    steps, _ = trace(
        VLLM(watermark=0.2),
        req("a", 16, 3),
        req("b", 20, 1),
        req("c", 4, 1),
        req("d", 36, 1),
        blocks=10,
    )
    assert steps == [{"a": 16}, {"a": 1}, {"a": 1}, {"b": 20, "c": 4}, {"d": 36}]


def test_vllm_recomputes_the_youngest_when_out_of_blocks() -> None:
    # 4 blocks: one each after the prompts, two each from the fifth token on, and none for the
    # ninth.
    steps, _ = trace(VLLM(), req("a", 4, 6), req("b", 4, 7), blocks=4)
    assert steps == [
        {"a": 4, "b": 4},
        *[{"a": 1, "b": 1}] * 4,  # 8 tokens each computed, 5 each generated: full
        ({"a": 1}, ("b",)),  # a, the elder, needs a third block; a ends with its sixth token
        {"b": 9},  # its prompt and the 5 tokens that it had made are one prompt now; the sixth
        {"b": 1},  # the seventh
    ]


def test_vllm_gives_itself_up_if_it_is_the_youngest() -> None:
    # 3 blocks: a's fifth token takes the last, then b finds none, and is the youngest itself. b (2
    # blocks) does not fit beside a's 2 until a ends.
    steps, _ = trace(VLLM(), req("a", 4, 3), req("b", 4, 2), blocks=3)
    assert steps == [{"a": 4, "b": 4}, ({"a": 1}, ("b",)), {"a": 1}, {"b": 5}]


def test_vllm_max_seqs() -> None:
    steps, _ = trace(VLLM(), req("a", 4, 2), req("b", 4, 1), req("c", 4, 1), max_seqs=2)
    assert steps == [{"a": 4, "b": 4}, {"c": 4}, {"a": 1}]


# vLLM V1: running requests in order of admission, then waiting ones, chunked, in one token budget.


def test_v1_mixes_chunks_with_decodes() -> None:
    steps, finish = trace(
        VLLMV1(max_batched_tokens=8), req("a", 4, 3), req("b", 12, 2, arrival=0.05)
    )
    assert steps == [
        {"a": 4},  # to 0.14
        # to 0.32: a is running and goes first, b's prompt takes the 7 tokens left
        {"a": 1, "b": 7},
        {"a": 1, "b": 5},  # to 0.48: a ends, b's first token
        {"b": 1},  # to 0.59
    ]
    assert finish == {"a": 0.48, "b": 0.59}


def test_v1_does_not_put_decodes_first() -> None:
    # a's second turn is a prompt of 17 tokens, one more with the token that ended the first: a was
    # admitted before b, and takes the whole budget of 8 twice while b's decode waits.
    a = Request("a", 0.0, (Stage(2, 2, PACE), Stage(17, 1, PACE)))
    steps, _ = trace(VLLMV1(max_batched_tokens=8), a, req("b", 3, 4))
    assert steps == [
        {"a": 2, "b": 3},
        {"a": 1, "b": 1},
        {"a": 8},
        {"a": 8},
        {"a": 2, "b": 1},
        {"b": 1},
    ]


def test_v1_head_of_line_waits_for_its_whole_prompt() -> None:
    # 4 blocks. b needs 3 and a holds 2 (3 for its second token): b waits, and c, who would fit,
    # does not overtake.
    steps, _ = trace(
        VLLMV1(max_batched_tokens=8), req("a", 8, 2), req("b", 12, 1), req("c", 2, 1), blocks=4
    )
    assert steps == [{"a": 8}, {"a": 1}, {"b": 8}, {"b": 4, "c": 2}]


def test_v1_preempts_the_youngest_and_admits_nobody_then() -> None:
    steps, _ = trace(
        VLLMV1(max_batched_tokens=8), req("a", 4, 6), req("b", 4, 7), req("c", 4, 1, 0.2), blocks=4
    )
    assert steps == [
        {"a": 4, "b": 4},  # to 0.18
        {"a": 1, "b": 1},  # to 0.30: c comes, and finds no block
        *[{"a": 1, "b": 1}] * 3,
        # a's third block; one of b's two is left, which c would fit, but nobody is admitted now
        ({"a": 1}, ("b",)),
        # b is first in the queue again, 9 tokens, chunked like any prompt; its 3 blocks leave 1, no
        # budget
        {"b": 8},
        {"b": 1, "c": 4},
        {"b": 1},
    ]


def test_v1_max_seqs_counts_the_running() -> None:
    steps, _ = trace(VLLMV1(), req("a", 4, 2), req("b", 4, 1), req("c", 4, 1), max_seqs=2)
    assert steps == [{"a": 4, "b": 4}, {"a": 1, "c": 4}]


# Sarathi-Serve: all decodes, then prompts under way, then new ones, in chunks.


def test_sarathi_does_not_stall_decodes() -> None:
    steps, finish = trace(
        Sarathi(chunk=8), req("a", 4, 4), req("b", 12, 1, 0.05), req("c", 4, 1, 0.05)
    )
    assert steps == [
        {"a": 4},  # to 0.14
        {"a": 1, "b": 7},  # to 0.32: the decode first, then 7 of b's prompt
        {"a": 1, "b": 5, "c": 2},  # to 0.50: the rest of b, then c
        {"a": 1, "c": 2},  # to 0.63
    ]
    assert finish == {"b": 0.50, "a": 0.63, "c": 0.63}


def test_sarathi_sets_a_prompts_blocks_aside_and_takes_them_back() -> None:
    # 5 blocks: a's prompt takes 1, b's 4 are set aside whole though its first chunk fills 1. So a's
    # fifth token finds none free and takes b's; b (4 blocks) waits until a (2) has ended.
    steps, _ = trace(Sarathi(chunk=8), req("a", 4, 3), req("b", 16, 1), req("c", 8, 1), blocks=5)
    assert steps == [{"a": 4, "b": 4}, ({"a": 1}, ("b",)), {"a": 1}, {"b": 8}, {"b": 8}, {"c": 8}]


def test_sarathi_watermark_and_max_seqs() -> None:
    # 2 of 6 blocks stay free: a (1) and b (2) leave 3, so c's 2 must wait until a is gone. c alone
    # would have fitted.
    late = [req("a", 4, 1), req("b", 8, 2), req("c", 8, 1)]
    assert trace(Sarathi(watermark=0.4), *late, blocks=6)[0] == [
        {"a": 4, "b": 8},
        {"b": 1},
        {"c": 8},
    ]
    assert trace(Sarathi(), *late, max_seqs=2)[0] == [{"a": 4, "b": 8}, {"b": 1, "c": 8}]


def test_sarathi_preempts_the_youngest_decode() -> None:
    steps, _ = trace(Sarathi(chunk=8), req("a", 4, 6), req("b", 4, 7), blocks=4)
    assert steps == [
        {"a": 4, "b": 4},
        *[{"a": 1, "b": 1}] * 4,
        ({"a": 1}, ("b",)),
        {"b": 8},
        {"b": 1},
        {"b": 1},
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VLLM(max_batched_tokens=0), "max_batched_tokens = 0 must be at least 1"),
        (lambda: VLLM(watermark=1.0), r"watermark = 1.0 must be in \[0, 1\)"),
        (lambda: VLLMV1(max_batched_tokens=-1), "max_batched_tokens = -1 must be at least 1"),
        (lambda: Sarathi(chunk=0), "chunk = 0 must be at least 1 token"),
        (lambda: Sarathi(watermark=-0.1), "watermark = -0.1"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("kind", [VLLM, VLLMV1, Sarathi])
@pytest.mark.parametrize("spare", [0, 1])
def test_drafts_evict_nobody_from_a_cache_that_just_fits_it(kind: type, spare: int) -> None:
    """For ever: a request alone had its blocks taken for drafts that it never had room for."""
    work = [req("a", 30, 10), req("b", 30, 10)]
    world = World(Roofline((Plane(0.01, 0.0, 0.1),)), 10 + spare, block_size=4, max_drafts=4)
    outcomes = simulate(work, kind(drafts=4), world)
    assert len(outcomes) == 2 and outcomes[0].preemptions == 0
