"""What is simulated is what is served: the same policy on the same trace in the simulator and
inside vLLM.

The engine core is vLLM's own, over an executor without a model whose clock advances by the same
roofline; every step must be the same batch at the same time, to the bit. The stock scheduler is
held against our model of it, too.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)
from engine import Recorder, answer, engine, profile_file, serve

from slos.core.lengths import Oracle
from slos.core.pace import CLIENT, PAPER
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.policies import OURS, POLICIES, make_policy
from slos.policies.baselines import VLLMV1
from slos.sim.replica import World
from slos.sim.simulator import simulate

pytestmark = [pytest.mark.xdist_group("vllm"), pytest.mark.filterwarnings("ignore")]

ROOFLINE = Roofline((Plane(1e-4, 0.0, 5e-3), Plane(1.2e-4, 0.0, 2e-3)), k_ctx=1e-7)
TIGHT, ROOMY = 64, 200  # KV blocks: one preempts, the other does not


def workload(
    seed: int, rate: float, thinks: bool, rule: str = PAPER
) -> tuple[list[Request], dict[str, list[int]]]:
    """Two tiers in a random order, answers of one pace or of two, by one rule of pace."""
    rng, now, requests, prompts = Random(seed), 0.0, [], {}
    for i in range(80):
        now += rng.expovariate(rate)
        prompt = [rng.randint(5, 499) for _ in range(rng.randint(5, 300))]
        slo = SLO(rng.choice([0.02, 0.05]), slowdown=rng.choice([3.0, 10.0]))
        stages = [Stage(len(prompt), rng.randint(2, 60), slo)]
        if thinks:
            stages.append(Stage(0, rng.randint(1, 30), SLO(0.03)))
        stages = [replace(s, slo=replace(s.slo, rule=rule)) for s in stages]
        requests.append(Request(f"r{i}", now, tuple(stages)))
        prompts[f"r{i}"] = prompt
    return requests, prompts


# only ours looks at the rule of pace
RULED = [(name, PAPER) for name in sorted(POLICIES)] + [(OURS, CLIENT)]


@pytest.mark.parametrize("thinks", [False, True], ids=["one-pace", "thinks"])
@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
@pytest.mark.parametrize(("name", "rule"), RULED)
def test_the_simulator_and_vllm_take_the_same_steps(model, tmp_path, name, rule, blocks, thinks):
    requests, prompts = workload(seed=blocks + thinks, rate=14, thinks=thinks, rule=rule)
    simulated = Recorder(make_policy(name, ROOFLINE, Oracle(requests)))
    simulate(requests, simulated, World(ROOFLINE, blocks, max_seqs=24))
    slos = {"policy": name, "profile": profile_file(tmp_path, ROOFLINE), "learn": False}
    core, clock = engine(
        model, ROOFLINE, slos, blocks=blocks, max_seqs=24, max_num_batched_tokens=8192
    )
    served = core.scheduler.slo_policy = Recorder(core.scheduler.slo_policy)
    said = serve(core, clock, requests, prompts)
    executed = [[s for s in host.steps if s.tokens] for host in (simulated, served)]
    assert len(executed[0]) > 400
    for mine, theirs in zip(*executed, strict=True):
        assert mine == theirs
        assert list(mine.tokens) == list(theirs.tokens)  # in order, too
    assert blocks == ROOMY or any(s.preempt for s in executed[0])
    assert not core.scheduler.failed
    assert said == {r.id: answer(prompts[r.id], r.output) for r in requests}


@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
def test_the_simulated_vllm_v1_is_vllm(model, blocks):
    requests, prompts = workload(seed=3, rate=14, thinks=False)
    simulated = Recorder(VLLMV1(max_batched_tokens=256))
    simulate(requests, simulated, World(ROOFLINE, blocks, max_seqs=24))
    core, clock = engine(
        model, ROOFLINE, stock=True, blocks=blocks, max_seqs=24, max_num_batched_tokens=256
    )
    steps, schedule = [], core.scheduler.schedule

    def watched(*args, **kwargs):
        out, now = schedule(*args, **kwargs), clock.now
        if out.num_scheduled_tokens:
            steps.append((now, dict(out.num_scheduled_tokens)))
        return out

    core.scheduler.schedule = watched
    serve(core, clock, requests, prompts)
    assert len(steps) > 400
    assert steps == [(s.now, s.tokens) for s in simulated.steps if s.tokens]


def test_arrivals_at_the_same_time_keep_their_order(model, tmp_path):
    requests, prompts = workload(seed=5, rate=14, thinks=False)
    requests = [replace(r, arrival=1.0 + i // 20) for i, r in enumerate(requests)]
    simulated = Recorder(make_policy("slos-serve", ROOFLINE, Oracle(requests)))
    simulate(requests, simulated, World(ROOFLINE, ROOMY, max_seqs=24))
    slos = {"profile": profile_file(tmp_path, ROOFLINE), "learn": False}
    core, clock = engine(model, ROOFLINE, slos, blocks=ROOMY, max_seqs=24)
    served = core.scheduler.slo_policy = Recorder(core.scheduler.slo_policy)
    serve(core, clock, requests, prompts)
    assert [s for s in served.steps if s.tokens] == [s for s in simulated.steps if s.tokens]
