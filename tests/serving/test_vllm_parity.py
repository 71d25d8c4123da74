"""What is simulated is what is served: the same policy on the same trace in the simulator and
inside vLLM.

The engine core is vLLM's own, over an executor without a model whose clock advances by the same
roofline; every step must be the same batch at the same time, to the bit. The stock scheduler is
held against our model of it, too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)
from engine import Recorder, answer, engine, profile_file, serve

from slos.core.pace import CLIENT, PAPER
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, Policy, Request, Stage, View
from slos.policies import OURS, POLICIES, make_policy
from slos.policies.baselines import VLLMV1
from slos.policies.oracle import Oracle
from slos.policies.predictors import make_predictor
from slos.policies.slos_serve import SLOsServe
from slos.sim.prefix_cache import PrefixCache
from slos.sim.replica import Replica, World
from slos.sim.simulator import simulate, stream

pytestmark = pytest.mark.filterwarnings("ignore")

ROOFLINE = Roofline((Plane(1e-4, 0.0, 5e-3), Plane(1.2e-4, 0.0, 2e-3)), k_ctx=1e-7)
Names = list[tuple[str, int]]  # of a prefix
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


# where a stage goes on after another, an asynchronous vLLM learns of it a step later
@pytest.mark.parametrize(
    ("thinks", "ahead"), [(False, False), (True, False), (False, True)],
    ids=["one-pace", "thinks", "asynchronous"],
)  # fmt: skip
@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
@pytest.mark.parametrize(("name", "rule"), RULED)
def test_the_simulator_and_vllm_take_the_same_steps(
    model, tmp_path, name, rule, blocks, thinks, ahead
):
    requests, prompts = workload(seed=blocks + thinks, rate=14, thinks=thinks, rule=rule)
    simulated = Recorder(make_policy(name, ROOFLINE, Oracle(requests)))
    simulate(requests, simulated, World(ROOFLINE, blocks, max_seqs=24, asynchronous=ahead))
    slos = {"policy": name, "profile": profile_file(tmp_path, ROOFLINE), "learn": False}
    core, clock = engine(
        model, ROOFLINE, slos, blocks=blocks, max_seqs=24, max_num_batched_tokens=8192,
        asynchronous=ahead,
    )  # fmt: skip
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


def stock_steps(model, blocks, requests, prompts, most, caching=False):
    """When vLLM's own scheduler begins each step, and the tokens of it."""
    core, clock = engine(
        model, ROOFLINE, stock=True, blocks=blocks, max_seqs=24, max_num_batched_tokens=most,
        caching=caching,
    )  # fmt: skip
    steps, schedule = [], core.scheduler.schedule

    def watched(*args, **kwargs):
        out, now = schedule(*args, **kwargs), clock.now
        if out.num_scheduled_tokens:
            steps.append((now, dict(out.num_scheduled_tokens)))
        return out

    core.scheduler.schedule = watched
    serve(core, clock, requests, prompts)
    return steps


@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
def test_the_simulated_vllm_v1_is_vllm(model, blocks):
    requests, prompts = workload(seed=3, rate=14, thinks=False)
    simulated = Recorder(VLLMV1(max_batched_tokens=256))
    simulate(requests, simulated, World(ROOFLINE, blocks, max_seqs=24))
    steps = stock_steps(model, blocks, requests, prompts, 256)
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


@pytest.mark.parametrize("predictor", ["quantile", "mean", "max-tokens"])
def test_lengths_that_nobody_knows_are_learned_alike(model, tmp_path, predictor):
    """Answers end with one of some tokens, long before `max_tokens`."""
    requests, prompts = workload(seed=9, rate=20, thinks=False)
    stops, most = set(range(5, 20)), 400
    said = {id: answer(prompt, most) for id, prompt in prompts.items()}
    said = {id: a[: next(i + 1 for i, t in enumerate(a) if t in stops)] for id, a in said.items()}
    requests = [
        replace(r, stages=(replace(r.stages[0], output=len(said[r.id])),)) for r in requests
    ]
    policy = SLOsServe(ROOFLINE, make_predictor(predictor))
    simulated, blocks = Limited(policy, {r.id: r.stages[0].prompt + most for r in requests}), 120
    simulate(requests, simulated, World(ROOFLINE, blocks, max_seqs=24))
    slos = {"profile": profile_file(tmp_path, ROOFLINE), "learn": False, "predictor": predictor}
    core, clock = engine(model, ROOFLINE, slos, blocks=blocks, max_seqs=24)
    served = core.scheduler.slo_policy = Recorder(core.scheduler.slo_policy)
    stop = {"ignore_eos": False, "stop_token_ids": sorted(stops), "max_tokens": most}
    assert serve(core, clock, requests, prompts, **stop) == said
    assert [s for s in served.steps if s.tokens] == [s for s in simulated.steps if s.tokens]
    assert len({len(a) for a in said.values()}) > 20 and not core.scheduler.failed


class Limited(Recorder):
    """Shows a policy the `max_tokens` of each request, which the simulator does not have."""

    def __init__(self, policy: SLOsServe, limits: dict[str, int]) -> None:
        super().__init__(policy)
        self.limits, self.lengths = limits, policy.lengths

    def step(self, view: View) -> Batch:
        for p in (*view.waiting, *view.running):
            p.limit = self.limits[p.id]
        return super().step(view)


def talks(seed: int, rate: float) -> tuple[list[Request], dict[str, list[int]]]:
    """A shared system prompt, talks whose next prompt is all that was said and a question, and
    prompts that come again as they were, perhaps at the same time."""
    rng, now, requests, prompts = Random(seed), 0.0, [], {}
    system = [rng.randint(5, 499) for _ in range(40)]
    said: list[tuple[list[int], Names]] = [([], []), (system, [("system", 40)])]
    for i in range(90):
        now += rng.expovariate(rate) * rng.choice([0, 1, 2])
        before, names = said[rng.choice([0, 1, rng.randrange(len(said))])]
        more = rng.choice([0, 5, 40, 120] if len(names) > 1 else [5, 40, 120])
        prompt, output = before + [rng.randint(5, 499) for _ in range(more)], rng.randint(2, 50)
        context = len(prompt) + output
        # what nobody adds to goes on as it would have before
        names = [*names, (f"talk {i}", more)] if more else names
        known = sum(n for _, n in names)
        last, tokens = names[-1]
        whole = [*names[:-1], (last, tokens + context - known)]
        slo = SLO(rng.choice([0.02, 0.05]), slowdown=rng.choice([3.0, 10.0]))
        requests.append(
            Request(f"r{i}", now, (Stage(len(prompt), output, slo),), prefix=tuple(whole))
        )
        prompts[f"r{i}"] = prompt
        if context < 420:
            said += [(prompt + answer(prompt, output), whole), (prompt, names)]
    return requests, prompts


@dataclass
class Spy:
    """What a policy is shown of memory at every step, beside what it answers."""

    policy: Policy
    cached: Callable[[], int]
    steps: list[tuple] = field(default_factory=list)

    def step(self, view: View) -> Batch:
        batch = replace(self.policy.step(view), repeat=1)
        shown = [
            sorted((p.id, p.computed, p.cached, p.shared) for p in queue)
            for queue in (view.waiting, view.running)
        ]
        if batch.tokens:
            memory = view.free_blocks, self.cached()
            self.steps.append((view.now, *memory, *shown, dict(batch.tokens), batch.preempt))
        return batch


def names(cache: PrefixCache) -> int:
    """How many different blocks can be found."""
    spans = {(piece, i) for piece, runs in cache.cached.items() for r in runs
             for i in range(r.start, r.end)}  # fmt: skip
    return len(spans)


@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
@pytest.mark.parametrize("name", sorted(POLICIES))
def test_the_simulated_prefix_cache_is_vllms(model, tmp_path, name, blocks):
    """Hits, evictions and free blocks, step by step."""
    for seed in range(3):
        requests, prompts = talks(seed, rate=14)
        world = World(ROOFLINE, blocks, max_seqs=24, prefix_cache=True)
        replica = Replica("", make_policy(name, ROOFLINE, Oracle(requests)), world)
        cache = replica.kv
        assert isinstance(cache, PrefixCache)

        def found(cache: PrefixCache = cache, replica: Replica = replica) -> int:
            for live in replica.live.values():  # which are looked at only when they are shared
                if live.request.id in cache.tables:
                    cache.fill(live, live.progress.computed)
            return names(cache)

        simulated = replica.policy = Spy(replica.policy, found)
        list(stream(requests, [replica]))
        slos = {"policy": name, "profile": profile_file(tmp_path, ROOFLINE), "learn": False}
        core, clock = engine(
            model, ROOFLINE, slos, blocks=blocks, max_seqs=24, max_num_batched_tokens=8192,
            caching=True,
        )  # fmt: skip
        pool = core.scheduler.kv_cache_manager.block_pool
        served = core.scheduler.slo_policy = Spy(
            core.scheduler.slo_policy, lambda pool=pool: len(pool.cached_block_hash_to_block)
        )
        said = serve(core, clock, requests, prompts)
        assert not core.scheduler.failed and not core.scheduler.failsafe.warned
        for mine, theirs in zip(simulated.steps, served.steps, strict=True):
            assert mine == theirs
        assert cache.hits > 1000 and (blocks == ROOMY or cache.evicted > 100)
        assert said == {r.id: answer(prompts[r.id], r.output) for r in requests}


@pytest.mark.parametrize("seed", range(3))
def test_the_simulated_vllm_v1_is_vllm_with_its_prefix_cache_too(model, seed):
    """Where requests that start in one step need nothing of each other: the simulator lets all of
    them hold what they find before blocks are taken, and its policies plan for what the view says;
    vLLM's own scheduler takes for one after the other, which may evict what the next would find,
    and gives the tokens that one need not compute, because another of the step does, to a third."""
    requests, prompts = talks(seed, rate=14)
    world = World(ROOFLINE, ROOMY, max_seqs=24, prefix_cache=True)
    replica = Replica("", Recorder(VLLMV1(max_batched_tokens=8192)), world)
    simulated = []
    list(stream(requests, [replica], observe=lambda replica, step, _: simulated.append(
        (step.start, dict(replica.flight.tokens)))
    ))  # fmt: skip
    assert stock_steps(model, ROOMY, requests, prompts, 8192, caching=True) == simulated
    cache = replica.kv
    assert isinstance(cache, PrefixCache) and cache.hits > 3000 and cache.evicted > 200
