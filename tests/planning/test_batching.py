"""The batch rule and its look ahead, against the same run forward to the very end."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import FAST, examples

from slos.core.kernels import kernel
from slos.core.roofline import Roofline, batch_fits, batch_time
from slos.planning.batching import Engine, form
from slos.planning.fluid import prefill_rates
from slos.planning.jobs import JOB, lent_to
from slos.planning.lookahead import LATE, MEMORY, OK, look_ahead, startable

tiles = st.sampled_from([1, 1, 8, 64])
LONGEST = 0.1
compiled_time, compiled_fits = kernel(batch_time), kernel(batch_fits)


def engine(roofline: Roofline, blocks: int = 1000) -> Engine:
    hardware = roofline.array, roofline.tile, roofline.k_ctx, roofline.chunk
    return Engine(*hardware, LONGEST, 0, blocks, 16)


@st.composite
def job(draw: st.DrawFn) -> tuple[float, ...]:
    """A prompt to come, one under way, or one decoding; perhaps with a stage behind it that goes on
    at another pace."""
    tpot = draw(st.sampled_from([0.03, 0.05, 0.1]))
    left, remaining = draw(st.sampled_from([1, 1, 5, 30, 100])), draw(st.integers(1, 40))
    computed = draw(st.integers(1, 100)) if left == 1 else draw(st.sampled_from([0, 0, 20]))
    if left == 1:
        due = draw(st.floats(0.02, 0.3))
    else:
        due = draw(st.sampled_from([1.0, 1.5, 3.0, 5.0])) * FAST.time(left)
    switch, later = draw(st.integers(0, remaining - 1)), draw(st.sampled_from([0.03, 0.05, 0.1]))
    client = draw(st.booleans())  # the rule of pace
    opens = client and (computed == 0 or draw(st.booleans()))
    reopens = client and switch > 0
    new = float(computed == 0)
    sure = draw(st.integers(0, remaining - switch)) if client else 0  # time is lent
    gain = draw(st.sampled_from([0.0, 0.1, 0.5])) * tpot if client else 0.0
    kind = left, due, tpot, remaining, computed, new, switch, later
    return *kind, 1.0, opens, reopens, 0, sure, gain


jobs = st.lists(job(), min_size=1, max_size=10).map(lambda rows: np.array(rows, JOB))


@given(
    st.integers(1, 3000),
    st.integers(0, 10_000),
    st.floats(0.001, 1),
    st.sampled_from([0.0, 1e-6]),
    tiles,
)
def test_kernels_agree_with_the_roofline(
    tokens: int, context: int, seconds: float, k_ctx: float, tile: int
) -> None:
    r = replace(FAST, k_ctx=k_ctx, tile=tile)
    assert compiled_time(engine(r), tokens, 0, context) == r.time(tokens, 0, context)
    assert compiled_fits(engine(r), seconds, 0, context) == r.fits(seconds, 0, context)
    [rate] = prefill_rates(np.array([seconds]), r, context)
    assert rate * seconds == pytest.approx(
        r.fits(seconds, 0, context), abs=1 if tile == 1 else 1e-6
    )


@examples(300)
@given(jobs, tiles)
def test_every_batch(jobs: np.ndarray, tile: int) -> None:
    world = replace(FAST, tile=tile)
    before = jobs.copy()
    seconds, tokens = form(0.0, jobs, engine(world))
    assert (jobs == before).all()
    left, decoding = jobs["left"], jobs["left"] == 1
    assert (tokens >= 0).all() and (tokens <= left).all() and (tokens == np.floor(tokens)).all()
    assert tokens.sum() >= 1 and seconds == pytest.approx(world.time(int(tokens.sum())))
    most = max(LONGEST, 2 * world.time(1), world.time(int(decoding.sum())))
    assert seconds <= most + 1e-8
    assert (tokens == left).all() or tokens.sum() % tile == 0, "the rest of a tile is free"
    soonest = jobs["due"][decoding].min(initial=np.inf)
    if decoding.any() and soonest >= world.time(int(decoding.sum())):
        assert seconds <= soonest + 1e-8, "longer than until the earliest token is due"


@examples(300)
@given(jobs, st.sampled_from([10, 40, 1000]), tiles)
def test_what_the_look_ahead_passes_is_in_time_to_the_end(
    jobs: np.ndarray, blocks: int, tile: int
) -> None:
    """Those that can still be in time alone are; and where everybody decodes in every step memory
    holds out too."""
    world = replace(FAST, tile=tile)
    alone = np.array([world.time(int(j["left"])) <= j["due"] for j in jobs])
    verdict, blamed = look_ahead(0.0, jobs, engine(world, blocks))
    assert verdict in (OK, LATE, MEMORY)
    assert blamed == np.inf or (verdict == LATE and blamed in jobs["due"])
    if verdict != OK:
        return
    jobs, now = jobs.copy(), 0.0
    while (alive := jobs["remaining"] > 0).any():
        seconds, tokens = form(now, jobs[alive], engine(world))
        now += seconds
        jobs["left"][alive] -= tokens
        jobs["computed"][alive] += tokens
        assert np.ceil(jobs["computed"][alive] / 16).sum() <= blocks
        assert (now <= jobs["due"][alive & alone] + 1e-6).all()
        spoke = alive & (jobs["left"] == 0)
        jobs["due"][spoke] -= lent_to(jobs)[spoke]
        jobs["due"][spoke & (jobs["opens"] > 0)] = now
        jobs["opens"][spoke] = 0
        jobs["sure"][spoke] -= 1
        jobs["remaining"][spoke] -= 1
        jobs["left"][spoke] = 1
        switches = spoke & (jobs["remaining"] == jobs["switch"])
        jobs["tpot"][switches] = jobs["later"][switches]
        jobs["due"][switches & (jobs["reopens"] > 0)] = now
        jobs["sure"][switches] = 0
        jobs["due"][spoke] += (jobs["tpot"] + lent_to(jobs))[spoke]


@examples(300)
@given(jobs, st.sampled_from([10, 40, 160]))
def test_what_may_start_without_a_proof_fits_to_the_end(jobs: np.ndarray, blocks: int) -> None:
    def most(some: np.ndarray) -> float:
        """The most KV blocks, of 16 tokens, while all grow to their ends, a token per step."""
        lives, held = some["remaining"].astype(int), some["computed"] + some["left"] - 1
        steps = range(1, max(lives, default=0) + 1)
        return max((np.ceil((held + k)[lives >= k] / 16).sum() for k in steps), default=0.0)

    chosen, holds = startable(jobs, engine(FAST, blocks)), jobs["computed"] > 0
    assert chosen.any() == (len(jobs) > 0) and chosen[holds].all()
    assert chosen.sum() in (1, holds.sum()) or most(jobs[chosen]) <= blocks
    if np.ceil((jobs["computed"] + jobs["left"] + jobs["remaining"]) / 16 + 1).sum() <= blocks:
        assert chosen.all()


def test_verdicts_by_hand() -> None:
    # T = max(0.02 + n / 5000, 0.001 + n / 1250). 100 tokens take 81 ms.
    def verdict(*rows: tuple[float, ...], blocks: int = 1000) -> tuple[int, float]:
        # no stage behind, by the paper's rule
        padded = np.array([(*row, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0) for row in rows], JOB)
        return look_ahead(0.0, padded, engine(FAST, blocks))

    prompt = (100.0, 0.0811, 0.1, 5.0, 0.0, 1.0)
    assert verdict(prompt) == (OK, np.inf)
    assert verdict((100.0, 0.0809, 0.1, 5.0, 0.0, 1.0)) == (LATE, 0.0809)
    assert verdict(prompt, prompt)[0] == LATE, "161 ms for both"
    assert verdict(prompt, (100.0, 0.1815, 0.1, 5.0, 0.0, 1.0)) == (OK, np.inf)
    assert verdict(prompt, blocks=6) == (MEMORY, np.inf), "100 tokens are 7 blocks"
    assert verdict((1.0, 0.05, 0.01, 50.0, 10.0, 0.0))[0] == LATE, (
        "a pace of 10 ms where a step takes 20"
    )
    assert verdict((50.0, 0.01, 0.1, 5.0, 0.0, 0.0), (1.0, 0.1, 0.1, 5.0, 10.0, 0.0)) == (
        OK,
        np.inf,
    ), "late beyond cure"
