"""Simulations in which lengths are not known: lawful, learned as the engine learns them, and no
request is lost for memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import Lawful, build, requests, worlds

from slos.core.types import SLO, LengthPredictor, Progress, Request, Stage
from slos.evaluation.runs import hardware_of, serve
from slos.policies.predictors import BLIND, TRUE, make_predictor
from slos.sim.replica import World
from slos.sim.simulator import simulate
from workloads import build as workload

PREDICTORS = ["quantile", "quantile:0.9", "mean", "max-tokens", "noisy:1.5"]


@pytest.mark.parametrize("predictor", PREDICTORS)
@given(data=st.data())
def test_whatever_is_believed_of_lengths_every_request_is_served(predictor, data):
    work = data.draw(requests())
    world = data.draw(worlds(work))
    policy = build("slos-serve", work, world, make_predictor(predictor, work))
    watched = Lawful(policy, work, world)
    watched.end(simulate(work, watched, world, observe=watched.observe))


class Notes(LengthPredictor):
    """A predictor that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str | int | bool, ...]] = []

    def remaining(self, progress: Progress) -> int:
        return 5

    def after_stage(self, progress: Progress) -> int:
        return 1

    def ended(self, progress: Progress, last: bool) -> None:
        p = progress
        self.told.append((p.kind, p.stage, p.generated, p.tokens, last))

    def began(self, progress: Progress) -> None:
        self.told.append((progress.kind, progress.stage))


def test_a_predictor_is_told_of_every_stage_and_nothing_before():
    slo, world = SLO(0.1, ttft=9.0), World.of(hardware_of("chatbot"))
    stages = (Stage(30, 20, slo), Stage(0, 7, slo), Stage(3, 4, slo, wait=1.0))
    notes = Notes()
    work = [Request("r", 0.0, stages, kind="thinks")]
    simulate(work, build("slos-serve", work, world, notes), world)
    assert notes.told == [
        ("thinks", 0), ("thinks", 0, 20, 50, False),
        ("thinks", 1), ("thinks", 1, 7, 57, True),
        ("thinks", 2), ("thinks", 2, 4, 64, True),
    ]  # fmt: skip


@pytest.mark.parametrize("replicas", [1, 2])
def test_without_an_oracle_the_promises_hold(replicas):
    """At a load at which every tenth request is declined."""
    work = workload("chatbot", 3.2 * replicas, 300 * replicas, 1).requests
    router = "cheapest" if replicas > 1 else ""
    shares = {}
    for predictor in ("oracle", "quantile", "max-tokens"):
        outcomes = serve(
            work, "slos-serve", hardware_of("chatbot"), predictor=predictor, replicas=replicas,
            router=router,
        )  # fmt: skip
        admitted = [o for o in outcomes if not o.declined]
        assert sum(o.attained for o in admitted) >= 0.99 * len(admitted)
        shares[predictor] = sum(o.attained for o in outcomes) / len(outcomes)
    assert shares["quantile"] > 0.95 * shares["oracle"] > shares["max-tokens"]


def test_what_ends_first_does_not_stand_for_all():
    """Four replicas fill up before long answers end; those that ended by then were short."""
    work = workload("chatbot", 15.2, 600, 0).requests
    shares = {}
    for predictor in ("oracle", "quantile"):
        outcomes = serve(
            work, "slos-serve", hardware_of("chatbot"), predictor=predictor, replicas=4,
            router="cheapest",
        )  # fmt: skip
        shares[predictor] = sum(o.attained for o in outcomes) / len(outcomes)
    assert shares["quantile"] > 0.95 * shares["oracle"]


def test_the_names_are_known():
    assert {p.partition(":")[0] for p in PREDICTORS} == (TRUE | BLIND).keys() - {"oracle"}
