"""The simulator: laws after every step for every policy, leaps, illegal batches, and the paper's
rule by hand."""

from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import EVERY, FAST, Lawful, examples, requests, run, worlds

from slos.core.attainment import Live, Outcome
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, Policy, Progress, Request, Stage, View
from slos.policies.baselines import VLLM, VLLMV1, Sarathi
from slos.sim.replica import World
from slos.sim.simulator import simulate

PACE = SLO(tpot=1.0, ttft=10.0)
SLOW = Roofline((Plane(0.01, 0.0, 0.1),))


def req(id: str, *stages: tuple[int, int], arrival: float = 0.0, wait: float = 0.0) -> Request:
    return Request(
        id, arrival, tuple(Stage(p, o, PACE, wait if i else 0.0) for i, (p, o) in enumerate(stages))
    )


@pytest.mark.parametrize("name", EVERY)
@examples(80)
@given(data=st.data())
def test_laws(name: str, data: st.DataObject) -> None:
    work = data.draw(requests())
    world, seed = data.draw(worlds(work, caching=True, ahead=True)), data.draw(st.integers(0, 3))
    outcomes = run(name, work, world, seed)
    assert run(name, work, world, seed) == outcomes, "not the same for the same seed"


@pytest.mark.parametrize("name", EVERY)
@examples(80)
@given(data=st.data())
def test_leaps_change_nothing(name: str, data: st.DataObject) -> None:
    """To the last bit; only the order of requests that finish in the same instant may differ."""
    work = data.draw(requests())
    world = data.draw(worlds(work, noise=0.0, caching=True, ahead=True))
    leaps = run(name, work, world)
    steps = run(name, work, world, repeats=False)
    assert sorted(leaps, key=lambda o: o.id) == sorted(steps, key=lambda o: o.id)


def test_leaps_while_a_candidate_waits() -> None:
    prompts = {"a": (33, 4, 1.0, 2.0), "b": (1, 1, 3.0, 1.0), "c": (5, 2, 5.0, 1.0)}
    work = [
        Request(i, 0.0, (Stage(p, o, SLO(0.03, slowdown=s)),), v)
        for i, (p, o, s, v) in prompts.items()
    ]
    world = World(FAST, 11, block_size=4, max_seqs=2)
    assert run("slos-serve", work, world) == run("slos-serve", work, world, repeats=False)


def test_leaps_where_slack_grows_until_drafts_pay() -> None:
    work = [
        Request("a", 0.0, (Stage(1, 5, SLO(0.03, slowdown=1.0, rule="client")),)),
        Request("b", 0.0, (Stage(46, 1, SLO(0.03, slowdown=1.0)),)),
    ]
    world = World(FAST, 13, block_size=4, max_seqs=2, max_drafts=3, acceptance=0.0)
    assert run("in-turn", work, world) == run("in-turn", work, world, repeats=False)


def test_leaps_while_a_prefix_that_a_candidate_shares_grows() -> None:
    """What a and b have filled of it, c need not hold again."""
    sizes = {"a": (4, 6), "b": (7, 6), "c": (10, 2)}
    work = [
        Request(id, 0.03 * i, (Stage(*size, PACE),), prefix=(("talk", 20),))
        for i, (id, size) in enumerate(sizes.items())
    ]
    world = World(FAST, 4, block_size=4, prefix_cache=True)
    assert run("vllm", work, world) == run("vllm", work, world, repeats=False)


def test_leaps_while_best_effort_comes_of_age() -> None:
    """b has no room but what is kept in reserve, until it is promised its end after 30 seconds."""
    work = [
        Request("a", 0.0, (Stage(4000, 2500, SLO(0.1, ttft=20.0)),)),
        Request("b", 3.0, (Stage(2424, 3, SLO(0.1, ttft=0.01)),)),
    ]
    world = World(FAST, 500)
    leaps = run("slos-serve", work, world)
    assert leaps[0].id == "b" and 33 < leaps[0].finish < 36
    assert leaps == run("slos-serve", work, world, repeats=False)


def test_a_step_that_is_decided_ahead_knows_nothing_of_what_came_meanwhile() -> None:
    """The prompt of a ends at 0.14; b comes during it, c while the engine runs nothing."""
    work = [req("a", (4, 3)), req("b", (4, 1), arrival=0.1), req("c", (4, 1), arrival=9.0)]
    world = World(SLOW, 20)
    for ahead, first in ((False, 0.14), (True, 0.14 + 0.11)):
        ends = {o.id: o for o in simulate(work, VLLMV1(), replace(world, asynchronous=ahead))}
        # its own step has b's prompt and a decode of a
        assert ends["b"].finish == pytest.approx(first + 0.15)
        assert ends["c"].finish == pytest.approx(9.14)


def test_leaps_are_taken() -> None:
    watched = Lawful(VLLM(), [req("a", (4, 100))], World(SLOW, 100))
    simulate(watched.requests, watched, watched.world, 0, watched.observe)
    assert len(watched.batches) == 3, "a prefill, 64 decodes and 35"


def test_seeds_differ() -> None:
    world = World(SLOW, 10, noise=0.2)
    assert simulate([req("a", (4, 3))], VLLM(), world, 1) != simulate(
        [req("a", (4, 3))], VLLM(), world, 2
    )


# a second turn without a wait: 7 tokens more, of which no admission knew
TURN = req("c", (2, 2), (7, 1))


@pytest.mark.parametrize("policy", [VLLM(), VLLMV1(), Sarathi()])
def test_a_prompt_that_goes_on_beside_decodes(policy: Policy) -> None:
    """In 3 blocks of 4 all three need their next block at once: one must go, and two go on."""
    assert (
        len(
            simulate(
                [req("a", (3, 5)), req("b", (3, 5)), TURN], policy, World(SLOW, 3, block_size=4)
            )
        )
        == 3
    )


@pytest.mark.parametrize("policy", [VLLM(), VLLMV1(), Sarathi()])
def test_two_prompts_that_go_on(policy: Policy) -> None:
    assert len(simulate([TURN, replace(TURN, id="d")], policy, World(SLOW, 3, block_size=4))) == 2


@dataclass
class Says:
    """Answers with one batch for ever."""

    batch: Batch

    def step(self, view: View) -> Batch:
        return self.batch


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Batch({"x": 1}), "'x'"),
        (Batch({"a": 0}), "0 tokens to 'a'; bound: 1 to the 4"),
        (Batch({"a": 5}), "5 tokens to 'a'; bound: 1 to the 4"),
        (Batch({"a": 4, "b": 43}), "needs 12 KV blocks; bound: 11 free"),
        (Batch({"a": 1, "b": 1, "c": 1}), "runs 3 requests; bound: max_seqs = 2"),
        (Batch({"a": 4}, preempt=("b",)), "'b' is not running"),
        (Batch({"a": 4}, preempt=("x",)), "'x'"),
        (Batch({"a": 4}, decline=("x",)), "'x'"),
    ],
)
def test_illegal_batches(batch: Batch, message: str) -> None:
    work = [req("a", (4, 2)), req("b", (43, 1)), req("c", (4, 1))]
    with pytest.raises(ValueError, match=message):
        simulate(work, Says(batch), World(SLOW, 11, block_size=4, max_seqs=2))


def test_impossible_runs() -> None:
    with pytest.raises(RuntimeError, match="Says runs nothing though 1 requests are waiting"):
        simulate([req("a", (4, 2))], Says(Batch()), World(SLOW, 11))
    with pytest.raises(ValueError, match="a: KV blocks of the whole request = 2 must be at most 1"):
        simulate([req("a", (14, 4))], VLLM(), World(SLOW, 1))
    for setting in (
        {"kv_blocks": 0},
        {"block_size": 0},
        {"max_seqs": 0},
        {"noise": -1.0},
        {"max_drafts": -1},
        {"acceptance": 1.1},
    ):
        with pytest.raises(ValueError, match=next(iter(setting))):
            World(SLOW, **({"kv_blocks": 1} | setting))  # type: ignore[arg-type]
    assert simulate([], VLLM(), World(SLOW, 1)) == []


def test_ids_must_differ() -> None:
    with pytest.raises(ValueError, match="'a'"):
        simulate([req("a", (4, 2)), req("a", (4, 2))], VLLM(), World(SLOW, 10))


def judge(times: list[float], slo: SLO = PACE) -> Outcome:
    """The verdict on a request that arrives at 0 and emits at `times`."""
    live = Live(Request("a", 0.0, (Stage(1, len(times), slo),)), Progress("a", 0.0, 0, 0.0, 1.0))
    live.start_stage(0, 0.0, SLOW)
    assert [live.emit([t]) for t in times] == [False] * (len(times) - 1) + [True]
    return live.outcome(times[-1])


def test_the_papers_rule_and_the_clients() -> None:
    """First token due at 10, token n at 10 + n, looked at for n = 10, 20, .. and the last; client:
    mean TPOT of 1."""
    steady = [10.0 + n for n in range(13)]
    verdicts = {
        "on time": (steady, True, True),
        "early, then slow: token 10 at 17 of 20, the last at 20 of 22": (
            [2 + 1.5 * n for n in range(13)],
            True,
            False,
        ),
        "a dip between two looks": ([*steady[:5], 16.0, *steady[6:]], True, True),
        "token 10 late, the last in time": ([*steady[:10], 20.5, *steady[11:]], False, True),
        "the last token late": ([*steady[:12], 22.5], False, False),
        "the first token late": ([10.5 + n for n in range(13)], False, False),
        "one token": ([10.0], True, True),
        "one token late": ([10.1], False, False),
    }
    for name, (times, paper, client) in verdicts.items():
        assert (judge(times).attained, judge(times).attained_client) == (paper, client), name
    assert judge([10.5 + n for n in range(13)]).lateness == pytest.approx(0), (
        "t0 moves to the late first token"
    )
    assert judge([2 + 1.5 * n for n in range(13)]).lateness == pytest.approx(-2.0), (
        "the last, 20 of 22"
    )
    assert judge([10.5]).ttft == 10.5 and judge([10.5]).ttft_slo == 10.0
    assert judge([0.5, 1.5], SLO(tpot=1.0, slowdown=5.0)).ttft_slo == pytest.approx(5 * 0.11)


def test_stages_by_hand() -> None:
    """T = 0.1 + 0.01 n. A tool's round brings its whole context again; a stage without prompt goes
    on at its pace."""
    watched = Lawful(VLLM(), [req("a", (4, 2), (3, 1), wait=0.5)], World(SLOW, 10))
    [o] = simulate(watched.requests, watched, watched.world, 0, watched.observe)
    # 4 tokens to 0.14, a decode to 0.25; back at 0.75 with 4 + 2 + 3 tokens, which take 0.19
    assert o.finish == pytest.approx(0.94) and watched.gone["a"].arrived == [
        (0.0, 4),
        (pytest.approx(0.75), 9),
    ]
    [o] = simulate([req("a", (4, 2), (0, 2))], VLLM(), World(SLOW, 10))
    assert o.finish == pytest.approx(0.14 + 3 * 0.11) and o.lateness == pytest.approx(0.25 - 11)
    # Best is the first stage's last token: 0.25, due at 11. Then 0.36 due at 12, and 0.47 due at
    # 13.


def test_a_tool_that_answers_nothing_still_has_a_first_token_due() -> None:
    slo = SLO(tpot=1.0, ttft=0.15)
    work = [Request("a", 0.0, (Stage(4, 2, slo), Stage(0, 3, slo, wait=0.5)))]
    [o] = simulate(work, VLLM(), World(SLOW, 10))  # its 6 tokens take 0.16 s
    assert not o.attained
