"""Draft lengths and the learned acceptance, against the obvious way to know them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.roofline import Plane, Roofline, profile
from slos.simulator import World, simulate
from slos.speculation import Acceptance, draft_length, expected_tokens
from slos.types import SLO, Oracle, Progress, Request, Stage


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.7, 1.0])
def test_expected_tokens_is_what_dice_give(alpha: float) -> None:
    dice, total, steps = Random(1), 0, 20_000
    for _ in range(steps):
        accepted = 0
        while accepted < 4 and dice.random() < alpha:
            accepted += 1
        total += accepted + 1
    assert expected_tokens(alpha, 4) == pytest.approx(total / steps, rel=0.02)


@given(
    st.floats(0, 1), st.integers(1, 100), st.integers(0, 1000), st.floats(0, 0.3), st.integers(0, 10),
    st.floats(1e-5, 1e-3), st.floats(0, 5e-3), st.floats(0, 0.05),
)  # fmt: skip
def test_draft_length_is_the_best_that_fits(alpha, decodes, prefill, seconds, most, k1, k2, b) -> None:
    roofline = Roofline((Plane(k1, k2, b), Plane(2 * k1, 0.0, 0.0)))
    tokens = decodes + prefill
    times = {s: roofline.time(tokens + decodes * s, s) for s in range(most + 1)}
    fitting = [s for s in times if s == 0 or times[s] <= seconds]
    found = draft_length(roofline, alpha, decodes, tokens, 0, seconds, most)
    best = max(expected_tokens(alpha, s) / times[s] for s in fitting)
    assert found in fitting and expected_tokens(alpha, found) / times[found] == pytest.approx(best)


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_acceptance_is_learned(alpha: float) -> None:
    dice, learned = Random(2), Acceptance(prior=0.6)
    p = Progress("a", 0.0, 10, 0.0, 0.1)
    assert learned.alpha == 0.6
    for _ in range(3000):
        learned.give(p, 3)
        accepted = 0
        while accepted < 3 and dice.random() < alpha:
            accepted += 1
        p.generated += accepted + 1
        learned.learn([p])
    assert learned.alpha == pytest.approx(alpha, abs=0.03)


def test_a_bad_prior_is_refused() -> None:
    with pytest.raises(ValueError, match=r"acceptance = 1.5 must be in \[0, 1\]"):
        Acceptance(prior=1.5)


def test_speculation_ends_chats_sooner_and_keeps_promises() -> None:
    from slos.scheduler import SLOsServe

    hardware = profile("opt-6.7b-draft-a100")
    work = [Request(f"r{i}", 0.4 * i, (Stage(300, 200, SLO(0.1, slowdown=5)),)) for i in range(20)]
    ends = {}
    for drafts in (0, 8):
        world = World.of(hardware, max_drafts=drafts)
        outcomes = simulate(work, SLOsServe(hardware.roofline, Oracle(work)), world)
        assert all(o.attained for o in outcomes)
        ends[drafts] = sum(o.finish - o.arrival for o in outcomes)
    assert ends[8] < 0.7 * ends[0]
