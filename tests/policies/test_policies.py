"""The registry, a newcomer's policy, and what the core may import."""

from dataclasses import dataclass

import pytest
from laws import FAST

from slos.core.attainment import attainment
from slos.core.types import SLO, Batch, LengthPredictor, Request, Stage, View
from slos.policies import POLICIES, make_policy
from slos.policies.baselines import VLLM, Sarathi
from slos.policies.oracle import Oracle
from slos.policies.slos_serve import SLOsServe
from slos.sim.replica import World
from slos.sim.simulator import simulate

WORK = [
    Request(f"r{i}", 0.1 * i, (Stage(10 + i, 5, SLO(tpot=0.1, slowdown=5.0)),)) for i in range(4)
]


def test_make_policy_gives_beliefs_and_settings() -> None:
    lengths = Oracle(WORK)
    policy = make_policy("slos-serve", FAST, lengths, longest_step=0.07)
    assert isinstance(policy, SLOsServe)
    assert (policy.roofline, policy.lengths, policy.longest_step) == (FAST, lengths, 0.07)
    assert make_policy("sarathi", FAST, lengths, chunk=64) == Sarathi(chunk=64)
    assert make_policy("vllm", FAST, lengths) == VLLM()
    assert make_policy("slos-serve", FAST, lengths) is not make_policy("slos-serve", FAST, lengths)


def test_make_policy_names_the_choices() -> None:
    with pytest.raises(
        ValueError,
        match=r"policy = 'fcfs' must be one of vllm, vllm-v1, sarathi, slos-serve, .*; or add",
    ):
        make_policy("fcfs", FAST, Oracle(WORK))
    with pytest.raises(
        ValueError,
        match=r"setting of policy 'sarathi' = 'chunks' must be one of chunk, .*watermark",
    ):
        make_policy("sarathi", FAST, Oracle(WORK), chunks=3)
    with pytest.raises(ValueError, match="chunk = 0"):
        make_policy("sarathi", FAST, Oracle(WORK), chunk=0)


@dataclass
class ShortestFirst:
    """A newcomer's policy: whole requests one after the other, the shortest first."""

    lengths: LengthPredictor
    most: int = 1000

    def step(self, view: View) -> Batch:
        p = view.running[0] if view.running else min(view.waiting, key=self.lengths.remaining)
        return Batch({p.id: min(p.left, self.most)})


def test_a_newcomers_policy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "shortest-first", ShortestFirst)
    policy = make_policy("shortest-first", FAST, Oracle(WORK), most=6)
    outcomes = simulate(WORK, policy, World(FAST, 10))
    assert [o.id for o in outcomes] == ["r0", "r1", "r2", "r3"] and attainment(outcomes) > 0
    with pytest.raises(ValueError, match=r"setting of policy .* = 'least' must be one of most"):
        make_policy("shortest-first", FAST, Oracle(WORK), least=1)
