"""Predictors of lengths: what each says of a request, and that what is learned is what was seen."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from math import ceil, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.core.types import SLO, Progress, Request, Stage
from slos.policies.oracle import Oracle
from slos.policies.predictors import (
    BLIND,
    LEVEL,
    SURE,
    TRUE,
    UNKNOWN,
    WINDOW,
    MaxTokens,
    Mean,
    Noisy,
    Quantile,
    make_predictor,
)

PACE = SLO(0.1)
lengths = st.lists(st.integers(1, 300), min_size=1, max_size=40)


def asked(generated: int = 0, **fields) -> Progress:
    return Progress("r", 0.0, 50 + generated, 1.0, 0.1, generated=generated, **fields)


def seen(predictor, outputs, **fields):
    for n in outputs:
        predictor.ended(asked(n, **fields), last=True)
    return predictor


@given(lengths, st.integers(0, 300), st.sampled_from([0.1, LEVEL, 0.5, 0.9]))
def test_only_those_that_generated_more_tell_the_rest(outputs, done, level):
    longer = sorted(n for n in outputs if n > done)
    rest = seen(Quantile(level), outputs).remaining(asked(done))
    mean = seen(Mean(), outputs).remaining(asked(done))
    if not longer:  # each token is the last one as often as it was
        pace = sum(outputs) / len(outputs)
        assert (0 <= mean - pace < 1 and 0 <= rest + pace * log(1 - level) < 1) or rest == 1
        return
    below = sum(n < done + rest for n in longer)
    assert done + rest in longer
    assert below <= level * len(longer) < below + longer.count(done + rest) + 1e-9
    assert 0 <= done + mean - sum(longer) / len(longer) < 1


@given(st.lists(st.integers(1, 50), min_size=WINDOW + 1, max_size=WINDOW + 40))
def test_the_oldest_are_forgotten(outputs):
    all_of_them, newest = seen(Quantile(), outputs), seen(Quantile(), outputs[-WINDOW:])
    for done in (0, 3, 20, 60):
        assert all_of_them.remaining(asked(done)) == newest.remaining(asked(done))


def test_those_that_go_on_are_known_to_be_longer():
    """Of ten that began, two ended at once; before any other ends the rest tells of long ones."""
    q, mean = Quantile(), Mean()
    waiting = asked(limit=1000)
    for predictor in (q, mean):
        assert predictor.remaining(waiting) == UNKNOWN
        going = [replace(asked(1), id=f"r{i}") for i in range(10)]
        for p in going:
            predictor.began(p)
        for p in going:
            p.generated = 8
        for p in going[:2]:
            predictor.ended(p, True)
        for p in going[2:]:
            p.generated = 100
    # a fifth ended at 8; of 816 tokens two were the last, and so it goes on after the 100th
    pace = (2 * 8 + 8 * 100) / 2
    assert q.remaining(waiting) == ceil(100 + pace * log(0.8 / 0.75))
    assert mean.remaining(waiting) == round(0.2 * 8 + 0.8 * (100 + pace))
    assert q.remaining(replace(going[2])) == ceil(pace * log(4 / 3))


@given(lengths, st.lists(st.integers(1, 300), max_size=20), st.sampled_from([0.1, LEVEL, 0.9]))
def test_the_estimate_is_kaplan_and_meier_s(outputs, cut, level):
    """Against the textbook's product over the times of deaths, where it comes to the quantile."""
    q = Quantile(level)
    for i, n in enumerate(cut):
        q.began(replace(asked(n), id=f"cut-{i}"))
        if i % 2:
            q.aborted(replace(asked(n), id=f"cut-{i}"))
    seen(q, outputs)
    longer = 1.0
    for n in sorted(set(outputs)):
        longer *= 1 - outputs.count(n) / sum(m >= n for m in [*outputs, *cut])
        if longer < 1 - level - 1e-9:
            assert q.remaining(asked()) == n
            return
    assert q.remaining(asked()) >= max(*outputs, *cut, 0)


def test_nothing_is_kept_of_those_that_are_over():
    q = Quantile()
    thinks, answers, leaves = (replace(asked(5, later_tpot=0.1), id=i) for i in "tal")
    for p in (thinks, answers, leaves):
        q.began(p)
    for p in (thinks, answers):
        q.ended(p, last=False)
        p.stage = 1
    assert q._begun.keys() | q._ended.keys() == set("tal"), "those that are not over"
    q.began(answers)
    q.ended(answers, last=True)
    q.aborted(thinks)
    q.aborted(leaves)
    q.aborted(leaves)
    assert not (q._begun or q._ended)


def test_classes_and_stages_are_told_apart():
    q = seen(Quantile(), [10], kind="short")
    # until one of a class is known, all classes stand for it
    assert q.remaining(asked(kind="long")) == 10
    seen(q, [200], kind="long")
    assert (q.remaining(asked(kind="short")), q.remaining(asked(kind="long"))) == (10, 200)
    assert seen(seen(Mean(), [10], kind="short"), [200], kind="long").remaining(asked()) == 105
    seen(q, [30], kind="long", stage=1)
    assert q.remaining(asked(kind="long", stage=1)) == 30
    assert q.remaining(asked(kind="long")) == 200


def test_what_follows_a_stage_is_learned_too():
    q, first = Quantile(), {"kind": "thinks", "later_tpot": 0.2}
    assert q.after_stage(asked(**first)) == UNKNOWN
    q.ended(asked(40, **first), last=False)
    p = asked(7, kind="thinks", stage=1)
    p.tokens = 50 + 40 + 7
    q.ended(p, last=True)
    assert q.remaining(asked(**first)) == 40 + 7 and q.after_stage(asked(**first)) == 7
    assert q.remaining(asked(39, **first)) == 1 + 7
    assert 1 <= q.remaining(p) < 7


@pytest.mark.parametrize("name", sorted(BLIND))
def test_what_the_client_says_goes_first_and_the_limit_holds(name):
    predictor = seen(make_predictor(name), [20])
    assert predictor.remaining(asked(told=58)) == 8
    assert predictor.remaining(asked(7, told=58)) == 1
    within, beyond = asked(limit=60), asked(8, told=58, limit=65)
    assert predictor.remaining(within) <= 10 and predictor.remaining(beyond) <= 7
    assert predictor.remaining(asked(limit=50)) == 1
    thinks = asked(told=90, told_stage=30, later_tpot=0.1)
    assert (predictor.remaining(thinks), predictor.after_stage(thinks)) == (40, 10)
    assert predictor.after_stage(asked(told=90, later_tpot=0.1)) == 20


@given(st.lists(st.integers(1, 300), min_size=1, max_size=200))
def test_all_but_a_few_come_to_what_is_called_sure(outputs):
    """However far one has come: those that are longer than most were no surer at their start."""
    q = seen(Quantile(), outputs)
    for done in (0, 10):
        q.remaining(asked(done))
        sure = done + q.at_least(asked(done))
        assert sum(n < sure for n in outputs) <= SURE * len(outputs) or sure == done + 1
        assert sure == done + 1 or len(outputs) >= 1 / SURE


def test_what_is_sure():
    fifty = seen(Quantile(), [40] * 50)
    assert fifty.at_least(asked()) == 1, "nothing was looked at yet"
    assert fifty.remaining(asked(7)) == fifty.at_least(asked(7)) == 33
    assert fifty.at_least(asked(60)) == 1
    few = seen(Quantile(), [40] * 49)
    assert few.remaining(asked()) == 40 and few.at_least(asked()) == 1
    work = [Request("r", 0.0, (Stage(50, 30, PACE), Stage(0, 9, PACE)))]
    assert Oracle(work).at_least(asked(10)) == 20 and Noisy(work).at_least(asked(10)) == 1
    for name in BLIND:  # what the client says
        assert make_predictor(name).at_least(asked(10, told=90)) == 30
        assert make_predictor(name).at_least(asked(10, told=90, later_tpot=0.1)) == 1
        assert make_predictor(name).at_least(asked(10, told_stage=40)) == 30
        assert make_predictor(name).at_least(asked(10, told_stage=5)) == 1


def test_max_tokens_takes_the_limit():
    assert MaxTokens().remaining(asked(3, limit=100)) == 47
    assert MaxTokens().remaining(asked(3)) == 3 + UNKNOWN


def test_a_noisy_oracle_sees_no_more_after_a_stage_than_the_limit_leaves():
    work = [Request("r", 0.0, (Stage(50, 20, PACE), Stage(0, 80, PACE)))]
    noisy = Noisy(work, 1.0)
    for generated, limit in product(range(0, 30, 3), range(81, 200)):
        p = asked(generated, limit=limit, later_tpot=0.1)
        assert 0 <= noisy.after_stage(p) < noisy.remaining(p) <= limit - p.tokens


@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=4), st.sampled_from([0.0, 0.3, 2.0]),
    st.data(),
)  # fmt: skip
def test_a_noisy_oracle_errs_by_one_factor_of_the_request(outputs, sigma, data):
    work = [Request(f"r{i}", 0.0, (Stage(9, n, PACE), Stage(0, n, PACE)))
            for i, n in enumerate(outputs)]  # fmt: skip
    noisy, same, true = Noisy(work, sigma), Noisy(work[:1], sigma), Oracle(work)
    for r in work:
        done = data.draw(st.integers(0, r.stages[0].output - 1))
        p = Progress(r.id, 0.0, 9 + done, 1.0, 0.1, generated=done, later_tpot=0.1)
        assert 1 <= noisy.after_stage(p) < noisy.remaining(p)
        if sigma == 0:
            assert noisy.remaining(p) == true.remaining(p)
            assert noisy.after_stage(p) == true.after_stage(p)
        if r is work[0]:
            assert noisy.remaining(p) == same.remaining(p)


def test_names_and_dials():
    assert set(make_predictor(name, []).__class__ for name in TRUE | BLIND) >= {Oracle, Quantile}
    long = seen(make_predictor("quantile:0.9"), range(1, 101)).remaining(asked())
    assert long == 91 > seen(make_predictor("quantile"), range(1, 101)).remaining(asked())
    for text, says in (
        ("guess", "predictor = 'guess' must be one of quantile, mean, max-tokens"),
        ("oracle", "predictor = 'oracle' must be one of quantile"),
        ("mean:2", "must be without a dial: mean has none"),
        ("quantile:1", r"'quantile:1': level = 1.0 must be in \(0, 1\)"),
        ("quantile:most", "predictor 'quantile:most'"),
    ):
        with pytest.raises(ValueError, match=says):
            make_predictor(text)
    with pytest.raises(ValueError, match="sigma = -1"):
        make_predictor("noisy:-1", [])
