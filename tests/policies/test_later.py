"""The schedulers that came after the paper, against steps worked out by hand, T = 0.1 + 0.01 n
seconds, and against what their authors report of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf

import numpy as np
import pytest
from test_baselines import Recorder

from slos.core.attainment import Outcome, attainment
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Progress, Request, Stage, View
from slos.evaluation.grids import SETTINGS
from slos.evaluation.runs import hardware_of, serve
from slos.policies import make_policy
from slos.policies.adaserve import AdaServe, lengthened
from slos.policies.fair_batching import FairBatching
from slos.policies.oracle import Oracle
from slos.policies.qoserve import QoServe, peak
from slos.policies.scorpio import Scorpio
from slos.sim.replica import World
from slos.sim.simulator import simulate
from workloads import build

ROOFLINE = Roofline((Plane(0.01, 0.0, 0.1),))
NONE = Oracle([])


def prompt(id: str, tokens: int, due: float, tpot: float = 1.0) -> Progress:
    return Progress(id, 0.0, tokens, due, tpot)


def decode(id: str, due: float, tpot: float = 1.0, computed: int = 7) -> Progress:
    return Progress(id, 0.0, computed + 1, due - tpot, tpot, generated=1, computed=computed)


def view(running: Sequence[Progress] = (), waiting: Sequence[Progress] = (), **more) -> View:
    return View(0.0, list(waiting), list(running), more.pop("free", 900), 1000, 4, **more)


def trace(name: str, *requests: Request, blocks: int = 200, **settings: float):
    recorder = Recorder(make_policy(name, ROOFLINE, Oracle(requests), **settings))
    simulate(requests, recorder, World(ROOFLINE, blocks, block_size=4))
    return [tokens for tokens, _ in recorder.said]


# QoServe: as many tokens as the most urgent decode has slack for.

SHORT = Request("a", 0.0, (Stage(4, 3, SLO(5.0, slowdown=5.0)),))
LONG = Request("b", 0.05, (Stage(600, 1, SLO(5.0, slowdown=5.0)),))


def test_qoserve_sizes_a_step_by_slack() -> None:
    assert trace("qoserve", SHORT, LONG) == [
        {"a": 4},  # to 0.14, and due at 0.70; its next token at 5.70
        # 1.2 times the 3.94 s of 384 tokens fit the slack of 5.56 s, the 5.22 s of 512 do not
        {"a": 1, "b": 383},  # to 4.08
        {"a": 1, "b": 217},  # 6.62 s of slack: 512, more than there is
    ]


def test_qoserve_sizes_a_step_freely_without_margin() -> None:
    steps = trace("qoserve", SHORT, LONG, margin=1.0, free=True)
    assert steps == [{"a": 4}, {"a": 1, "b": 545}, {"a": 1, "b": 55}]  # just 5.56 s


def test_qoserve_goes_on_where_no_size_fits() -> None:
    late = [decode("a", -1.0)], [prompt("b", 600, 99.0)]
    assert QoServe(ROOFLINE, NONE).step(view(*late)).tokens == {"a": 1, "b": 127}


def test_qoserve_orders_by_deadline_and_length_and_relegates() -> None:
    # due at 10 + 4.8 and 12 + 0.8 s; c cannot be in time at 8,500 tokens per second
    b, a, c = prompt("b", 600, 10.0), prompt("a", 100, 12.0), prompt("c", 600, 0.05)

    def order(**settings: float) -> str:
        policy = QoServe(ROOFLINE, NONE, **settings)  # type: ignore[arg-type]
        return "".join(p.id for p in policy.ordered(view(waiting=[b, a, c]), [b, a, c]))

    assert order() == "abc"
    assert order(hybrid=0.0) == "bac"
    assert order(hybrid=0.0, relegate=False) == "cba"
    assert order(by_deadline=False) == "bac"  # of arrival, but for the relegated
    assert order(by_deadline=False, relegate=False) == "bac"


def test_qoserve_relegates_once_and_never_what_has_started() -> None:
    policy, p, q = QoServe(ROOFLINE, NONE), prompt("p", 600, 0.05), prompt("q", 600, 50.0)
    assert [*policy.step(view(waiting=[p, q])).tokens] == ["q"]
    p.t0 = 99.0  # it stays behind, though it has time again
    assert policy.ordered(view(waiting=[p, q]), [p, q]) == [q, p]
    q.computed, q.t0 = 128, -1.0
    assert policy.ordered(view([q], [p]), [q, p]) == [q, p]


def test_qoserve_foresees_memory() -> None:
    assert peak([(2, 10), (5, 4)]) == max(14 + 2 * 2, 4 + 5)
    work = [Request(f"{i}", 0.0, (Stage(8, 9, SLO(9.0, ttft=99.0)),)) for i in range(2)]
    one, both = trace("qoserve", *work, blocks=6, foresee=True), trace("qoserve", *work, blocks=6)
    # 17 tokens each at their ends, of 24 that fit: at once they start, and one is preempted
    assert both[0] == {"0": 8, "1": 8} and sum(map(len, one)) < sum(map(len, both)) + 2
    assert one[0] == {"0": 8} and all(len(step) == 1 for step in one)


# FairBatching: decodes that cannot wait, prompts, other decodes.


@pytest.mark.parametrize(
    ("tokens", "given"),
    [
        (200, {"x": 1, "z": 89}),  # 90 tokens last until x is due, and y can wait for the next step
        (50, {"x": 1, "z": 50, "y": 1}),
    ],
)
def test_fair_batching_lets_decodes_sit_out(tokens: int, given: dict[str, int]) -> None:
    x, y = decode("x", 1.0, 0.5), decode("y", 9.0, 0.5)
    batch = FairBatching(ROOFLINE).step(view([y, x], [prompt("z", tokens, 9.0)]))
    assert (batch.tokens, list(batch.tokens)) == (given, list(given))


def test_fair_batching_does_not_hurry_for_who_is_late() -> None:
    late, x = decode("late", -1.0), decode("x", 1.0)
    z = prompt("z", 200, 9.0)
    assert FairBatching(ROOFLINE).step(view([late, x], [z])).tokens == {"late": 1, "x": 1, "z": 88}
    assert FairBatching(ROOFLINE).step(view([late], [z])).tokens == {"late": 1, "z": 89}


def test_fair_batching_repeats_no_step_that_has_not_a_token_for_everybody() -> None:
    """All three are urgent; with the token that it gets, z is ahead, and can sit out."""
    running = [decode("x", 0.2, 0.1), decode("y", 0.2, 0.1), decode("z", 0.25)]
    policy = FairBatching(ROOFLINE, most=2)
    assert policy.step(view(running)).tokens == {"x": 1, "y": 1, "z": 1}
    assert policy.step(view(running)).repeat == 1
    assert FairBatching(ROOFLINE, most=3).step(view(running)).repeat == inf


def test_fair_batching_serves_in_order_of_arrival_unless_it_relegates() -> None:
    late, soon = prompt("late", 90, 0.5), prompt("soon", 90, 2.0)
    assert FairBatching(ROOFLINE, most=90).step(view(waiting=[late, soon])).tokens == {"late": 90}
    policy = FairBatching(ROOFLINE, most=90, relegate=True)
    assert policy.step(view(waiting=[late, soon])).tokens == {"soon": 90}


# SCORPIO: guards of the first token and of the pace.


def test_scorpio_rejects_what_those_before_it_make_late() -> None:
    # 0.2 s each: b would end at 0.4, and without it c does
    waiting = [prompt("c", 10, 0.5), prompt("b", 10, 0.3), prompt("a", 10, 0.25)]
    batch = Scorpio(ROOFLINE).step(view(waiting=waiting))
    assert (batch.tokens, batch.decline) == ({"a": 10, "c": 10}, ("b",))
    batch = Scorpio(ROOFLINE, reject=False).step(view(waiting=waiting))
    assert (batch.tokens, batch.decline) == ({"a": 10, "b": 10, "c": 10}, ())


def test_scorpio_decodes_as_often_as_it_must() -> None:
    policy, running = Scorpio(ROOFLINE), [decode("x", 9.0, 1.0), decode("y", 9.0, 2.5)]
    steps = ["".join(policy.step(view(running)).tokens) for _ in range(6)]
    assert steps == ["x", "x", "xy", "x", "xy", "x"]  # 0.4 a step: 1.2 in the third, 1.0 then


def test_scorpio_admits_while_the_virtual_batch_keeps_the_tightest_pace() -> None:
    # a step of 10 takes 0.2 s; two at 0.4 s count as one
    running = [decode(f"{i}", 9.0, 0.2) for i in range(9)]
    several = [prompt(id, 1, 9.0, 0.4) for id in "abc"]
    assert [p.id for p in Scorpio(ROOFLINE).admitted(view(running), several)] == ["a", "b"]


def test_scorpio_counts_no_block_twice_that_the_rejected_share() -> None:
    """`found` is to have 4 of the 5 blocks that `gone` gives back; none is left for `more`."""
    gone = replace(decode("gone", 9.0, computed=20), best_effort=True)
    found = replace(prompt("found", 24, 9.0), cached=16, shared=4)
    batch = Scorpio(ROOFLINE).step(view([gone], [found, prompt("more", 16, 9.5)], free=1))
    assert (batch.tokens, batch.preempt) == ({"found": 8}, ("gone",))


def test_scorpio_serves_the_rejected_when_there_is_no_other() -> None:
    gone, here = decode("gone", 9.0), decode("here", 9.0)
    gone.best_effort = True
    both = Scorpio(ROOFLINE).step(view([gone, here]))
    assert (both.tokens, both.preempt) == ({"here": 1}, ("gone",))
    assert Scorpio(ROOFLINE).step(view([gone])).tokens == {"gone": 1}


# AdaServe: drafts by objective.


@pytest.mark.parametrize(
    ("end", "drafts"),
    [
        (1.0, 0),  # due at 1.0: one token
        (1.3, 1),  # 1.6 tokens, and one draft brings 1.7 where 0.7 of them are accepted
        (1.6, 3),  # 2.2: two drafts bring 2.19, three 2.53
        (9.0, 4),  # as many as the engine takes
    ],
)
def test_adaserve_drafts_as_far_as_a_pace_needs(end: float, drafts: int) -> None:
    assert AdaServe(ROOFLINE, NONE).needed(decode("a", 1.0, 0.5), end, 4) == drafts


def test_adaserve_gives_what_is_left_to_the_likeliest_drafts() -> None:
    running = [decode("a", 9.0, computed=6), decode("b", 8.0, computed=6)]
    batch = AdaServe(ROOFLINE, NONE, budget=5).step(view(running, max_drafts=4))
    assert batch.tokens == {"a": 2, "b": 3} and batch.repeat == 1  # the most urgent first
    slow = AdaServe(ROOFLINE, NONE, margin=80.0).step(view(running, max_drafts=4))
    assert slow.tokens == {"a": 1, "b": 1}, "no step is longer for drafts than slack allows"
    tokens = {"a": 1, "b": 1}  # of 7 and 8 tokens, the second would open a block
    assert lengthened(view(running, free=0), tokens, [*running, *running], (9, 0)) == (7, 0)
    assert tokens == {"a": 2, "b": 2}


def test_adaserve_without_a_draft_model_is_qoserve() -> None:
    work, hardware = build("mixed", 6.0, 150).requests, hardware_of("mixed")
    assert serve(work, "adaserve", hardware) == serve(work, "qoserve", hardware)


def test_adaserve_gains_by_drafts() -> None:
    work, hardware = build("chatbot", 3.6, 300).requests, hardware_of("chatbot", drafts=True)
    with_drafts, without = (
        attainment(serve(work, "adaserve", hardware, "margin=1,free=1", max_drafts=n))
        for n in (10, 0)
    )
    assert with_drafts > without + 0.05


# What their authors report, in kind


def served(system: str, setting: str, scenario: str, rate: float) -> list[Outcome]:
    return serve(build(scenario, rate, 300).requests, system, hardware_of(scenario), setting)


@pytest.mark.parametrize(("scenario", "rate"), [("coding", 15.0), ("mixed", 5.2)])
def test_qoserve_attains_more_than_sarathi_under_load(scenario: str, rate: float) -> None:
    """Whatever the token budget (ASPLOS'26: 1.5 to 2.4 times the goodput)."""
    theirs = [attainment(served("sarathi", s, scenario, rate)) for s in SETTINGS["sarathi"]]
    assert attainment(served("qoserve", "margin=1,free=1", scenario, rate)) > max(theirs) + 0.05


def test_fair_batching_cuts_the_tail_of_first_tokens_and_keeps_the_pace() -> None:
    """Against stall-free batches of as many tokens as take a TPOT (up to 2.29 times)."""
    budget = hardware_of("coding").roofline.fits(0.05)
    theirs = served("sarathi", f"chunk={budget}", "coding", 8.0)
    fair = served("fair-batching", "", "coding", 8.0)
    tails = [float(np.quantile([o.ttft for o in each], 0.99)) for each in (theirs, fair)]
    assert tails[0] > 1.4 * tails[1]
    assert sum(o.lateness <= 0 for o in fair) >= sum(o.lateness <= 0 for o in theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QoServe(ROOFLINE, NONE, margin=0.0), "margin = 0.0 must be positive"),
        (lambda: QoServe(ROOFLINE, NONE, hybrid=-1.0), "hybrid = -1.0 must be at least 0"),
        (lambda: FairBatching(ROOFLINE, most=0), "most = 0 must be at least 1 token"),
        (lambda: Scorpio(ROOFLINE, chunk=0), "chunk = 0 must be at least 1 token"),
        (lambda: AdaServe(ROOFLINE, NONE, budget=-1), "budget = -1 must be at least 0"),
    ],
)
def test_bad_settings(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_they_know_that_a_context_is_read() -> None:
    """999 tokens take one of the 3.3 seconds that x can wait."""
    reads = Roofline(ROOFLINE.planes, k_ctx=0.001)
    x, z = decode("x", 3.3, computed=999), prompt("z", 600, 9.0)
    assert QoServe(reads, NONE).step(view([x], [z])).tokens == {"x": 1, "z": 127}
    assert FairBatching(reads).step(view([x], [z])).tokens == {"x": 1, "z": 219}
    assert not Scorpio(reads).admitted(view([x]), [prompt("p", 1, 9.0)])


def test_scorpio_counts_prompts_under_way_and_rejects_none_that_has_begun() -> None:
    begun = replace(prompt("u", 10, 9.0), computed=4)
    assert Scorpio(ROOFLINE).step(view([begun], [prompt("a", 10, 0.3)])).decline == ("a",)
    again = replace(prompt("b", 10, -1.0), generated=1)
    assert not Scorpio(ROOFLINE).step(view(waiting=[again])).decline


def test_adaserve_learns_what_is_accepted() -> None:
    policy, p = AdaServe(ROOFLINE, NONE), decode("a", 9.0, computed=6)
    for _ in range(100):  # nothing is
        assert policy.step(view([p], max_drafts=4)).tokens["a"] > 1
        p.tokens, p.computed, p.generated = p.tokens + 1, p.computed + 1, p.generated + 1
    assert policy.needed(decode("a", 1.0, 0.5), 1.3, 4) == 4


@pytest.mark.parametrize(("free", "most"), [(8000, 2552), (7999, 512)])
def test_qoserve_takes_large_steps_where_memory_is_plenty(free: int, most: int) -> None:
    shown = View(0.0, [prompt("z", 3000, 999.0)], [], free, 9999, 4)
    assert QoServe(ROOFLINE, NONE).step(shown).tokens == {"z": most}


def test_qoserve_believes_one_slow_step_little() -> None:
    policy = QoServe(ROOFLINE, NONE)
    policy.step(view(waiting=[prompt("z", 600, 99.0)]))
    waiting = [prompt("calm", 600, 200.0), prompt("soon", 600, 100.1)]
    assert policy.step(replace(view(waiting=waiting), now=100.0)).tokens == {"soon": 512}
