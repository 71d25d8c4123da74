"""Draft lengths and the learned acceptance, against the obvious way to know them."""

from itertools import product
from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Progress, Request, Stage, View
from slos.hardware.profiles import profile
from slos.planning.batching import Engine
from slos.planning.jobs import JOB
from slos.planning.speculation import (
    Acceptance,
    Drafting,
    draft_lengths,
    expected_tokens,
    tier_lengths,
)
from slos.policies.oracle import Oracle
from slos.sim.replica import World
from slos.sim.simulator import simulate


def engine(roofline: Roofline, longest: float = 0.15) -> Engine:
    return Engine(roofline.array, roofline.tile, 0.0, roofline.chunk, longest, 0, 1000, 16)


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
    st.lists(st.tuples(st.floats(0.1, 10), st.integers(0, 3)), min_size=1, max_size=4),
    st.floats(0, 1), st.integers(0, 1000), st.floats(0, 0.3), st.floats(1e-5, 1e-2),
    st.floats(0, 5e-3), st.floats(0, 0.05), st.sampled_from([1, 4]),
)  # fmt: skip
def test_draft_lengths_are_the_best_that_fit(
    requests, alpha, prefill, seconds, k1, k2, b, tile
) -> None:
    roofline = Roofline((Plane(k1, k2, b), Plane(2 * k1, 0.0, 0.0)), tile=tile)
    worth, limit = np.array([w for w, _ in requests]), np.array([n for _, n in requests])
    tokens = len(requests) + prefill

    def rate(lengths: tuple[int, ...]) -> float:
        """Worth per second; 0 where the step takes too long. Some step there is, with or without
        drafts."""
        time = roofline.time(tokens + sum(lengths), max(lengths))
        gained = sum(w * expected_tokens(alpha, s) for w, s in zip(worth, lengths, strict=True))
        return gained / time if not any(lengths) or time <= seconds else 0.0

    found = draft_lengths(engine(roofline), 0.0, alpha, (worth, limit), tokens, seconds)
    assert (found <= limit).all()
    best = max(rate(lengths) for lengths in product(*(range(n + 1) for n in limit)))
    assert rate(tuple(found.tolist())) == pytest.approx(best)


@given(
    st.lists(
        st.tuples(st.sampled_from([0.02, 0.03, 0.05, 0.1]), st.integers(1, 40)), min_size=1,
        max_size=3,
    ),
    st.floats(0, 1), st.integers(0, 4), st.floats(1e-5, 1e-3), st.floats(0, 5e-3),
    st.floats(0, 0.03), st.sampled_from([1, 16]), st.floats(0.03, 0.3),
)  # fmt: skip
def test_tier_lengths_leave_the_most_to_prefills(
    tiers, alpha, most, k1, k2, b, tile, longest
) -> None:
    roofline = Roofline((Plane(k1, k2, b), Plane(2 * k1, 0.0, 0.0)), tile=tile)
    paces = sorted(set(t for t, _ in tiers))
    counts = [sum(n for t, n in tiers if t == pace) for pace in paces]

    def rate(lengths: tuple[int, ...]) -> float:
        """rho(n) with these draft lengths, as the paper writes it."""
        each = [t * expected_tokens(alpha, s) for t, s in zip(paces, lengths, strict=True)]
        seconds = min(longest, *each)
        cost = sum(
            n * (s + 1) * min(1, seconds / e) for n, s, e in zip(counts, lengths, each, strict=True)
        )
        return (roofline.fits(seconds, max(lengths)) - cost) / seconds

    best = max(rate(lengths) for lengths in product(range(most + 1), repeat=len(paces)))
    args = np.array(paces), np.array(counts), most
    lengths, found = tier_lengths(engine(roofline, longest), 0.0, alpha, *args)
    step = 1.01 * tile / min(longest, *paces)  # one tile more or less in a step, by rounding
    assert found == pytest.approx(best, rel=1e-6, abs=step)
    assert rate(tuple(lengths)) == pytest.approx(best, rel=1e-6, abs=step)


def test_drafts_where_prefill_is_left_over_are_for_who_is_not_ahead() -> None:
    roofline = profile("opt-6.7b-draft-a100").roofline
    jobs = np.zeros(4, JOB)
    jobs["left"], jobs["remaining"], jobs["tpot"] = (1, 1, 1, 5000), (50, 2, 50, 50), 0.05
    jobs["due"] = 0.05, 0.05, 1.0, 0.5
    share = np.array([1, 1, 1, 300.0])
    view = View(0.0, [], [], 1000, 1000, 16, 256, max_drafts=8)

    def drafts(short: bool) -> list[int]:
        drafting = Drafting(view, roofline, Acceptance(), engine(roofline), short)
        return drafting.lengths(jobs, share, 0.05).tolist()

    some, everybody = drafts(short=False), drafts(short=True)
    assert some[0] > some[1] == 1 and some[2] == some[3] == 0
    assert everybody[0] == everybody[2] >= some[0] and everybody[3] == 0


@pytest.mark.parametrize("alpha", [0.2, 0.9])
def test_acceptance_is_learned(alpha: float) -> None:
    dice, learned = Random(2), Acceptance()
    p = Progress("a", 0.0, 10, 0.0, 0.1)
    assert learned.alpha == 0.7
    for _ in range(3000):
        learned.give(p, 3)
        accepted = 0
        while accepted < 3 and dice.random() < alpha:
            accepted += 1
        p.generated += accepted + 1
        learned.learn([p])
    assert learned.alpha == pytest.approx(alpha, abs=0.03)


def test_speculation_ends_chats_sooner_and_keeps_promises() -> None:
    from slos.policies.slos_serve import SLOsServe

    hardware = profile("opt-6.7b-draft-a100")
    work = [Request(f"r{i}", 0.4 * i, (Stage(300, 200, SLO(0.1, slowdown=5)),)) for i in range(20)]
    ends = {}
    for drafts in (0, 8):
        world = World.of(hardware, max_drafts=drafts)
        outcomes = simulate(work, SLOsServe(hardware.roofline, Oracle(work)), world)
        assert all(o.attained for o in outcomes)
        ends[drafts] = sum(o.finish - o.arrival for o in outcomes)
    assert ends[8] < 0.7 * ends[0]
