"""Attainment, the capacity search and the statistics over seeds, by hand."""

from collections.abc import Callable
from dataclasses import replace
from math import exp, inf, nan, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.core.attainment import attainment
from slos.core.pace import CLIENT
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import STRIDE, NoCapacity, Search, capacity, search, tried
from slos.evaluation.stats import FINEST, geometric_mean, interval
from slos.policies.baselines import VLLM
from slos.sim.replica import World
from slos.sim.simulator import simulate


def test_attainment_counts_by_either_rule() -> None:
    # T = 0.1 + 0.01 n. Alone: first token at 0.11, then one every 0.11 s, so token n is at 0.11 (n
    # + 1). a: token 14, its last, is at 1.65, due at 0.5 + 1.4 = 1.9: attained; its mean TPOT is
    # 0.11: not for the client. b: attained by both. c: its first token is late by both.
    objectives = {
        "a": SLO(tpot=0.1, ttft=0.5),
        "b": SLO(tpot=0.2, ttft=0.5),
        "c": SLO(tpot=0.2, ttft=0.1),
    }
    work = [
        Request(id, 10.0 * i, (Stage(1, 15, slo),))
        for i, (id, slo) in enumerate(objectives.items())
    ]
    outcomes = simulate(work, VLLM(), World(Roofline((Plane(0.01, 0.0, 0.1),)), 100))
    assert [(o.attained, o.attained_client) for o in outcomes] == [
        (True, False),
        (True, True),
        (False, False),
    ]
    assert attainment(outcomes) == pytest.approx(2 / 3)
    assert attainment(outcomes, CLIENT) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="outcomes = 0 must be at least one"):
        attainment([])


@given(st.floats(0.01, 100), st.floats(0.05, 20), st.sampled_from([0.02, 0.1]), st.floats(0.5, 1))
def test_capacity_finds_the_step(
    threshold: float, start: float, precision: float, target: float
) -> None:
    asked = []

    def attained_at(rate: float) -> float:
        asked.append(rate)
        return target if rate <= threshold else target - 0.01

    found, probes = capacity(attained_at, target, start, precision)
    assert threshold / (1 + precision) <= found <= threshold
    assert [p.rate for p in probes] == asked and all(
        (p.attainment >= target) == (p.rate <= threshold) for p in probes
    )


LOADS = st.floats(0.01, 100), st.floats(0.05, 20), st.sampled_from([0.02, 0.04, 0.06, 0.1, 0.2])


@given(*LOADS)
def test_the_loads_are_those_of_growth_and_bisection_to_the_last_bit(
    threshold: float, start: float, precision: float
) -> None:
    rates, low, high, rate = [], 0.0, inf, start
    while not low or high > low * (1 + precision):
        rates.append(rate)
        low, high = (rate, high) if rate <= threshold else (low, rate)
        rate = high / STRIDE if not low else low * STRIDE if high == inf else sqrt(low * high)
    found, probes = capacity(lambda r: float(r <= threshold), 0.9, start, precision)
    assert (found, [p.rate for p in probes]) == (low, rates)


@given(*LOADS, st.floats(0.2, 5))
def test_it_finds_the_same_from_wherever_it_begins(
    threshold: float, start: float, precision: float, off: float
) -> None:
    def attained_at(rate: float) -> float:
        return float(rate <= threshold)

    found, _ = capacity(attained_at, 0.9, start, precision)
    assert capacity(attained_at, 0.9, start, precision, near=off * threshold)[0] == found
    again, probes = capacity(attained_at, 0.9, start, precision, near=found * (1 + 1e-4))
    assert again == found and len(probes) == 2, "it and the next one prove it"


@pytest.mark.parametrize("system", ["slos-serve", "sarathi"])
def test_a_search_that_begins_near_its_capacity_finds_it_in_two_runs(system: str) -> None:
    case = Search("coding", system, num_requests=80, precision=0.1)
    [plain] = [row for row in search(case) if row.capacity]
    rows = search(replace(case, near=float(f"{plain.rate:.4g}")))
    assert len(rows) == 2 and [row for row in rows if row.capacity] == [plain]


def test_a_case_that_no_load_attains_is_named_and_its_loads_are_kept() -> None:
    case = Search("chatbot", "vllm", num_requests=20, precision=0.5, slo_scale=0.2)
    rows = tried(case)
    assert len(rows) > 30 and not any(row.capacity or row.attainment for row in rows)
    with pytest.raises(NoCapacity, match=r"chatbot .* vllm SLOs x0\.2, .*: not even .* attain"):
        search(case)


@pytest.mark.parametrize("attained_at", [lambda rate: 1.0, lambda rate: 0.0, lambda rate: nan])
def test_capacity_without_a_bracket(attained_at: Callable[[float], float]) -> None:
    every = attained_at(1.0) == 1.0
    kind, cause = (
        (ValueError, "even .*; take more requests")
        if every
        else (NoCapacity, "not even .*; check SLOs")
    )
    with pytest.raises(kind, match=f"no capacity near start = 1 at target 0.9: {cause}") as error:
        capacity(attained_at)
    assert isinstance(error.value, NoCapacity) != every


@pytest.mark.parametrize(
    "wrong", [{"target": 0.0}, {"target": 1.1}, {"start": 0.0}, {"precision": 1.0}]
)
def test_capacity_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        capacity(lambda rate: 1.0, **wrong)  # type: ignore[arg-type]


def test_means() -> None:
    assert geometric_mean([1.0, 4.0]) == pytest.approx(2)
    assert geometric_mean([2.2]) == pytest.approx(2.2)
    for wrong in ([], [1.0, 0.0]):
        with pytest.raises(ValueError, match="values"):
            geometric_mean(wrong)
    # Logarithms 0, 1, 2: mean 1, standard deviation 1, t(2 degrees of freedom) = 4.303: 4.303 /
    # sqrt(3) = 2.4843.
    assert interval([1.0, exp(1), exp(2)]) == pytest.approx(
        (exp(1), exp(1 - 2.4843), exp(1 + 2.4843)), rel=1e-3
    )
    assert interval([5.0]) == pytest.approx((5, 5, 5))
    # seeds on one grid of loads: no narrower than the distance of two loads
    assert interval([1.32] * 3, 0.05) == pytest.approx((1.32, 1.32 / 1.05, 1.32 * 1.05))
    assert interval([1.0] * 30) == pytest.approx((1, 1 / (1 + FINEST), 1 + FINEST))
    assert interval([1.0, exp(1), exp(2)], 0.02) == interval([1.0, exp(1), exp(2)])
    mean, low, high = interval([float(i) for i in range(1, 101)])
    assert mean / 1.25 < low < mean < high < 1.25 * mean
