"""Admission against a brute force over all subsets, written as the definition reads."""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import compress, product
from math import inf
from pathlib import Path
from time import thread_time
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import examples

from slos.core.roofline import Plane, Roofline
from slos.planning import planner
from slos.planning.fluid import prefill_rates
from slos.planning.planner import Problem


@dataclass(frozen=True)
class Instance:
    """One planning problem, arrays over requests but for `decoding`, which is over tiers. longest:
    seconds of a batch while nobody decodes, who would have a pace to keep."""

    now: float
    tpots: np.ndarray
    decoding: np.ndarray
    deadline: np.ndarray
    prefill: np.ndarray
    memory: np.ndarray
    value: np.ndarray
    tier: np.ndarray
    forced: np.ndarray
    blocks: int
    context: int = 0
    longest: float = 0.15


class Admission(NamedTuple):
    accepted: np.ndarray
    value: float
    feasible: bool


def admit(problem: Instance, roofline: Roofline) -> Admission:
    tau, n = np.asarray(problem.tpots, np.float64), problem.decoding.astype(np.float64)
    if problem.longest > tau.max(initial=0.0):
        tau, n = np.append(tau, problem.longest), np.append(n, 0.0)
    given = problem.deadline, problem.prefill, problem.memory, problem.value
    D, p, m, v = (np.asarray(array, np.float64) for array in given)
    tier, forced = np.asarray(problem.tier, np.int64), np.asarray(problem.forced, np.bool_)
    rates, blocks = prefill_rates(tau, roofline, problem.context), float(problem.blocks)
    size, now = len(tier), float(problem.now)
    kernels = Problem(now, tau, rates, n, D, p, m, v, tier, forced, blocks, size)
    return Admission(*planner.sweep(kernels))


def feasible(
    problem: Instance, roofline: Roofline, chosen: Sequence[bool], slack: Fraction = Fraction(0)
) -> bool:
    """Whether `chosen` can be served: a sweep over the deadlines in exact fractions. slack:
    relative, forgiven."""
    tpots = [Fraction(float(t)) for t in problem.tpots]
    rates = [
        max(
            Fraction(0),
            min(
                (t - Fraction(roofline.k_ctx) * problem.context - Fraction(p.b)) / Fraction(p.k1)
                for p in roofline.planes
            ),
        )
        / t
        # the last: while nobody decodes
        for t in [*tpots, max(Fraction(problem.longest), tpots[-1])]
    ]

    def rho(n: list[int]) -> Fraction:
        busy = [tier for tier, count in enumerate(n) if count]
        return rates[busy[0] if busy else -1] - sum(
            Fraction(c) / t for c, t in zip(n, tpots, strict=True)
        )

    n = [int(c) for c in problem.decoding]
    clock, budget, memory = Fraction(float(problem.now)), Fraction(0), Fraction(0)
    if rho(n) < -slack * rates[-1]:
        return False
    for i in sorted(compress(range(len(chosen)), chosen), key=lambda i: problem.deadline[i]):
        until = max(clock, Fraction(float(problem.deadline[i])))
        budget += rho(n) * (until - clock) - Fraction(float(problem.prefill[i]))
        clock = until
        if not problem.forced[i]:
            memory += Fraction(float(problem.memory[i]))
        n[problem.tier[i]] += 1
        if (
            budget < -slack * (1 + sum(problem.prefill))
            or memory > problem.blocks
            or rho(n) < -slack * rates[-1]
        ):
            return False
    return True


def brute_force(
    problem: Instance, roofline: Roofline, slack: Fraction = Fraction(0)
) -> tuple[bool, float]:
    """Whether the forced requests alone can be served, and the most value of new ones beside
    them."""
    subsets = product(*[(True,) if f else (False, True) for f in problem.forced])
    worth = [
        float(
            sum(
                v
                for v, c, f in zip(problem.value, chosen, problem.forced, strict=True)
                if c and not f
            )
        )
        for chosen in subsets
        if feasible(problem, roofline, chosen, slack)
    ]
    return bool(worth), max(worth, default=0.0)


def check(problem: Instance, roofline: Roofline) -> Admission:
    found = admit(problem, roofline)
    possible, value = brute_force(problem, roofline)
    assert found.feasible == possible
    assert found.value == value
    if not possible:
        assert not found.accepted.any()
        return found
    assert found.accepted[problem.forced].all(), "the forced ones are mandatory"
    assert feasible(problem, roofline, [bool(a) for a in found.accepted])
    assert problem.value[found.accepted & ~problem.forced].sum() == found.value
    return found


# Dyadic numbers, so that floats add up exactly: instances on the very edge of feasible are judged
# alike.
DYADIC = Roofline((Plane(1 / 1024, 0.0, 1 / 64), Plane(1 / 512, 0.0, 1 / 256)))


@st.composite
def instances(draw: st.DrawFn, unequal: bool = True, memory: bool = True) -> Instance:
    tiers = draw(st.integers(1, 4))
    tpots = sorted(
        draw(
            st.lists(
                st.sampled_from([1 / 32, 1 / 16, 1 / 8, 1 / 4]), min_size=tiers, max_size=tiers,
                unique=True,
            )
        )
    )  # fmt: skip
    new, forced = draw(st.integers(0, 8)), draw(st.integers(0, 3))
    n = new + forced

    def numbers(values: st.SearchStrategy, kind: type = float) -> np.ndarray:
        return np.array(draw(st.lists(values, min_size=n, max_size=n)), kind)

    return Instance(
        now=1.0,
        tpots=np.array(tpots),
        decoding=numbers_of(draw, tiers, st.sampled_from([0, 0, 1, 4, 9])),
        # overdue ones and ties
        deadline=numbers(st.sampled_from([0.5, 1.0, 1.25, 1.25, 1.5, 1.75, 2.0, 3.0])),
        prefill=numbers(st.sampled_from([0, 1, 16, 60, 128, 200, 333])),
        memory=numbers(st.integers(0, 6)) if memory else numbers(st.just(1)),
        value=numbers(st.sampled_from([0.5, 1.0, 1.0, 2.0, 3.5])) if unequal else np.ones(n),
        tier=numbers(st.integers(0, tiers - 1), int),
        forced=np.array(draw(st.permutations([True] * forced + [False] * new)), bool),
        blocks=draw(st.sampled_from([0, 5, 12, 100])) if memory else 100,
        longest=draw(st.sampled_from([0.0, 1 / 32, 3 / 16, 1 / 2])),
    )


def numbers_of(draw: st.DrawFn, n: int, values: st.SearchStrategy[int]) -> np.ndarray:
    return np.array(draw(st.lists(values, min_size=n, max_size=n)), int)


@examples(300)
@given(instances())
def test_equals_brute_force(problem: Instance) -> None:
    check(problem, DYADIC)


@examples(120)
@given(instances(unequal=False))
def test_equals_brute_force_with_equal_values(problem: Instance) -> None:
    check(problem, DYADIC)


@examples(120)
@given(instances(), st.floats(0.5, 2.0), st.sampled_from([0.0, 1e-5]))
def test_equals_brute_force_off_the_grid(problem: Instance, scale: float, k_ctx: float) -> None:
    """Any numbers: the value lies between the brute force's with a little less and a little more to
    give."""
    roofline = Roofline((Plane(6.878e-4, 0.0, 0.0148), Plane(7.523e-4, 0.0, 0.00303)), k_ctx)
    problem = replace(
        problem,
        tpots=problem.tpots * scale,
        deadline=problem.deadline * scale**2,
        context=70,
        value=problem.value / 3,
    )
    found = admit(problem, roofline)
    (hard, least), (soft, most) = (
        brute_force(problem, roofline, Fraction(s, 10**8)) for s in (-1, 1)
    )
    assert hard <= found.feasible <= soft
    assert least - 1e-9 <= found.value <= most + 1e-9
    if found.feasible:
        assert feasible(problem, roofline, [bool(a) for a in found.accepted], Fraction(1, 10**8))


def simple(prefill: Sequence[float], **changes: Any) -> Instance:
    """Requests of one tier, due in a second from now, in which DYADIC computes 1000 tokens at the
    TPOT of 1/4 s."""
    n = len(prefill)
    problem = Instance(
        now=0.0, tpots=np.array([0.25]), decoding=np.array([0]), deadline=np.ones(n),
        prefill=np.array(prefill), memory=np.ones(n), value=np.ones(n), tier=np.zeros(n, int),
        forced=np.zeros(n, bool), blocks=100,
    )  # fmt: skip
    return replace(problem, **changes)


def test_rates_by_hand() -> None:
    # T = max(n/1024 + 1/64, n/512 + 1/256): 126 tokens in 1/4 s by the steeper plane, hence 504 a
    # second.
    assert prefill_rates(np.array([0.25]), DYADIC) == pytest.approx([504.0])
    assert prefill_rates(np.array([1 / 512, 0.25]), DYADIC).tolist() == [0.0, 504.0]
    assert prefill_rates(
        np.array([0.25]), replace(DYADIC, k_ctx=1 / 1024), context=64
    ) == pytest.approx([376.0])


def test_by_hand() -> None:
    assert admit(simple([504.0]), DYADIC).accepted.all(), "exactly what a second holds"
    assert not admit(simple([505.0]), DYADIC).accepted.any()
    assert not admit(simple([504.0], decoding=np.array([1])), DYADIC).accepted.any(), (
        "a decode takes four of them"
    )
    assert admit(simple([500.0], decoding=np.array([1])), DYADIC).accepted.all()
    assert admit(simple([0.0], deadline=np.array([-5.0])), DYADIC).accepted.all(), (
        "overdue, but nothing left to do"
    )
    assert admit(
        simple([300.0, 300.0, 200.0], value=np.array([1.0, 3.0, 1.0])), DYADIC,
    ).accepted.tolist() == [False, True, True,]  # fmt: skip
    assert admit(simple([1.0, 1.0], blocks=1), DYADIC).value == 1
    late = admit(simple([1.0, 505.0], forced=np.array([False, True])), DYADIC)
    assert not late.feasible and not late.accepted.any() and late.value == 0
    nobody = admit(simple([]), DYADIC)
    assert nobody.feasible and nobody.value == 0 and len(nobody.accepted) == 0
    assert not admit(simple([], decoding=np.array([127])), DYADIC).feasible, (
        "126 tokens fit a batch"
    )


def test_one_point_a_count_keeps_the_best() -> None:
    # The first and the third fit together. The second, alone, leaves less budget but also less
    # memory behind.
    problem = simple(
        [1.0, 504.0, 300.0], deadline=np.array([0.5, 1.0, 1.25]), memory=np.array([2.0, 1.0, 1.0])
    )
    assert brute_force(problem, DYADIC) == (True, 2.0)
    assert admit(problem, DYADIC).value == 2


def test_what_is_accepted_after_a_cut_can_be_served(monkeypatch: pytest.MonkeyPatch) -> None:
    dice, ours, most = np.random.default_rng(0), 0.0, 0.0
    monkeypatch.setattr(planner, "WIDTH", 2)
    for kernel in ("_bounds", "sweep"):  # plain Python sees the new width
        monkeypatch.setattr(planner, kernel, getattr(planner, kernel).py_func)
    for _ in range(60):
        n = 9
        problem = simple(
            dice.integers(1, 250, n).tolist(), value=dice.integers(1, 40, n).astype(float),
            blocks=12, memory=dice.integers(1, 6, n).astype(float),
            deadline=dice.uniform(0.3, 1.5, n),
        )  # fmt: skip
        found, (_, best) = admit(problem, DYADIC), brute_force(problem, DYADIC)
        assert problem.value[found.accepted].sum() == found.value <= best
        assert feasible(problem, DYADIC, [bool(a) for a in found.accepted])
        ours, most = ours + found.value, most + best
    assert 0.95 * most < ours < most, "a cut costs something, but little"


FOLDER = os.environ.get("SLOS_PLANNER_INSTANCES", "")


def authors_instances() -> Iterator[tuple[Instance, Roofline, list[bool], float]]:
    """The instances, whom the authors' planner admits, and its seconds; of one that it did not
    finish nobody and infinite seconds."""
    for path in sorted(Path(FOLDER).glob("*.jsonl.gz")):
        for raw in map(json.loads, gzip.decompress(path.read_bytes()).decode().splitlines()):
            new = [r for r in raw["requests"] if r["is_new"]]
            tiers = [r["tier"] for r in raw["requests"] if not r["is_new"]]
            deadline, prefill, memory, value = (
                np.array([float(r[key]) for r in new])
                for key in ("ddl", "input_length", "mem", "profit")
            )
            problem = Instance(
                raw["now"], np.array(raw["tpots"]), np.bincount(tiers, minlength=len(raw["tpots"])),
                deadline, prefill, memory, value, np.array([r["tier"] for r in new]),
                np.zeros(len(new), bool), raw["M"],
            )  # fmt: skip
            roofline = Roofline(tuple(Plane(*plane) for plane in raw["perf"]))
            answer = raw["authors"]
            theirs = [r["id"] in answer.get("accepted_new", ()) for r in new]
            yield problem, roofline, theirs, answer.get("seconds_best", inf)


def seconds_of(problem: Instance, roofline: Roofline) -> float:
    start = thread_time()
    admit(problem, roofline)
    return thread_time() - start


@pytest.mark.skipif(
    not FOLDER, reason="SLOS_PLANNER_INSTANCES names no folder with the authors' instances"
)
def test_at_least_the_authors_value() -> None:
    """And ours can be served, by our fluid view; the authors' answer, where their program has one,
    mostly as well."""
    count, faster = 0, []
    for problem, roofline, theirs, seconds in authors_instances():
        found = admit(problem, roofline)
        assert not found.feasible or feasible(
            problem, roofline, [bool(a) for a in found.accepted], Fraction(1, 10**8)
        )
        assert found.value >= sum(compress(problem.value, theirs)) - 1e-9
        count += any(theirs)
        faster.append(min(seconds_of(problem, roofline) for _ in range(2)) < seconds)
    assert count > 20 and sum(faster) > 0.9 * len(faster)
