"""The plug-in in vLLM's real engine core: whatever a policy answers, nothing is lost and the tokens
stay what they are.

The executor has no model (see `engine`): its tokens come from what it reads back of the KV blocks,
so they are right only if every step was.
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import runpy
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)
import vllm
from engine import BLOCK, add, answer, drained, engine, profile_file, serve, stop
from laws import PATHOLOGICAL
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.engine import FinishReason
from vllm.v1.request import Request as Asked
from vllm.v1.request import RequestStatus

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, Progress, Request, Stage, View
from slos.hardware.profiles import profile
from slos.policies import POLICIES, make_policy
from slos.policies.predictors import BLIND, MaxTokens, Quantile
from slos.policies.routers import Load
from slos.serving import vllm_plugin
from slos.serving.belief import Learned
from slos.serving.load_report import Report
from slos.serving.objectives import CLASSES, REST, xargs
from slos.serving.vllm_plugin import HOOKS, NEWEST, OLDEST, SLOScheduler

pytestmark = pytest.mark.filterwarnings("ignore")

ROOFLINE = Roofline((Plane(1e-4, 0.0, 5e-3), Plane(1.2e-4, 0.0, 2e-3)), k_ctx=1e-7)
TIGHT, ROOMY = 40, 200  # KV blocks: one preempts, the other does not
LOOPS = {
    "sync": {},
    "async": {"asynchronous": True},
    "async-v2": {"asynchronous": True, "v2": True},
}


def workload(
    seed: int, size: int = 50, rate: float = 20.0, stems: int = 0
) -> tuple[list[Request], dict[str, list[int]]]:
    """Two tiers in a random order; with `stems`, prompts begin with one of so many."""
    rng, now, requests, prompts = Random(seed), 0.0, [], {}
    beginnings = [
        [rng.randint(5, 499) for _ in range(rng.randint(20, 120))] for _ in range(stems)
    ] or [[]]
    for i in range(size):
        now += rng.expovariate(rate)
        prompt = rng.choice(beginnings) + [rng.randint(5, 499) for _ in range(rng.randint(1, 150))]
        slo = SLO(rng.choice([0.02, 0.05]), slowdown=rng.choice([3.0, 10.0]))
        requests.append(Request(f"r{i}", now, (Stage(len(prompt), rng.randint(1, 50), slo),)))
        prompts[f"r{i}"] = prompt
    return requests, prompts


def answers(requests: Iterable[Request], prompts: dict[str, list[int]]) -> dict[str, list[int]]:
    return {r.id: answer(prompts[r.id], r.output) for r in requests}


@pytest.fixture
def build(model: Path, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes one engine after the other, whose profile is right and fixed; `policy` replaces that of
    the settings."""
    cores: list[Any] = []

    def made(
        policy: Any = None,
        slos: dict[str, Any] | None = None,
        roofline: Roofline = ROOFLINE,
        **options: Any,
    ):
        settings = {"profile": profile_file(tmp_path, ROOFLINE), "learn": False} | (slos or {})
        while cores:
            stop(cores.pop())
        core, clock = engine(model, roofline, settings, **options)
        cores.append(core)
        if policy is not None:
            core.scheduler.slo_policy = policy
        return core, clock

    yield made
    for core in cores:
        stop(core)


class Log(logging.Handler):
    """What the plug-in says, to the exclusion of vLLM."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.emit = self.records.append  # type: ignore[method-assign]

    @property
    def text(self) -> str:
        return "\n".join(self.format(r) for r in self.records)


@pytest.fixture
def log() -> Iterator[Log]:
    logger, handler = logging.getLogger("vllm.slos"), Log()
    logger.addFilter(handler.handle)  # a process's first engine drops the handlers
    yield handler
    logger.removeFilter(handler.handle)


def counted(
    core: Any, name: str, what: Callable[..., str] = lambda *a, **k: "calls"
) -> Counter[str]:
    """Count the calls of a method of the scheduler."""
    seen, method = Counter(), getattr(core.scheduler, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen[what(*args, **kwargs)] += 1
        return method(*args, **kwargs)

    setattr(core.scheduler, name, watched)
    return seen


class Chaos:
    """Legal and random: skips, odd chunks, any number of drafts, any order, preempts and declines
    by dice."""

    def __init__(self, seed: int, preempts: float = 0.02) -> None:
        self.dice, self.preempts, self.seen = Random(seed), preempts, Counter()

    def step(self, view: View) -> Batch:
        dice, tokens = self.dice, {}
        everybody = [*view.running, *view.waiting]
        dice.shuffle(everybody)
        for p in everybody:
            if dice.random() < 0.3:
                self.seen["skipped"] += 1
            elif p.left == 1:
                tokens[p.id] = 1 + dice.randint(0, view.max_drafts)
                self.seen["drafted"] += tokens[p.id] > 1
            else:
                tokens[p.id] = p.left if dice.random() < 0.5 else dice.randint(1, p.left)
                self.seen["chunked"] += tokens[p.id] < p.left
        preempt = tuple(p.id for p in view.running if dice.random() < self.preempts)
        self.seen["several"] += len(preempt) > 1
        self.seen["at once"] += any(id in tokens for id in preempt)
        decline = tuple(p.id for p in everybody if not p.best_effort and dice.random() < 0.03)
        self.seen["declined"] += len(decline)
        return Batch(tokens, preempt, decline)


class Odd:
    def __init__(self, answer: Callable[[View], Any]) -> None:
        self.step = answer


# Tokens


@pytest.mark.parametrize("blocks", [TIGHT, ROOMY])
@pytest.mark.parametrize("caching", [False, True], ids=["plain", "cached"])
@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_pattern_of_steps_changes_a_token(build, loop, drafts, caching, blocks):
    requests, prompts = workload(seed=blocks + drafts, stems=3 * caching)
    options = {
        "blocks": blocks,
        "max_seqs": 12,
        "drafts": drafts,
        "caching": caching,
        **LOOPS[loop],
    }
    chaos = Chaos(seed=len(loop) + drafts + caching, preempts=0.05)
    core, clock = build(chaos, **options)
    flying = counted(
        core,
        "_preempt_request",
        lambda r, *a, **k: "in flight" if r.num_in_flight_tokens else "at rest",
    )
    said = serve(core, clock, requests, prompts)
    assert said == answers(requests, prompts)
    assert drained(core) and not core.scheduler.failed
    assert core.model_executor.steps > 200
    assert all(
        chaos.seen[what] for what in ("skipped", "chunked", "several", "at once", "declined")
    )
    assert bool(chaos.seen["drafted"]) == bool(drafts)
    assert flying["in flight" if "async" in loop else "at rest"] > 10


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("loop", LOOPS)
def test_the_stock_scheduler_says_the_same(build, loop, drafts):
    requests, prompts = workload(seed=1, stems=3)
    core, clock = build(
        stock=True, blocks=TIGHT, max_seqs=12, drafts=drafts, caching=True, **LOOPS[loop]
    )
    assert not isinstance(core.scheduler, SLOScheduler)
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", [*POLICIES, *PATHOLOGICAL])
def test_far_more_work_than_kv_blocks_is_served_by_every_policy(build, name, loop):
    requests, prompts = workload(seed=7, size=40, rate=100)
    bad = PATHOLOGICAL[name]() if name in PATHOLOGICAL else None
    core, clock = build(bad, {} if bad else {"policy": name}, blocks=16, max_seqs=12, **LOOPS[loop])
    preempted = counted(core, "_preempt_request")
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and not core.scheduler.failed
    # they keep within it
    assert preempted["calls"] > 5 or name in ("slos-serve", "reject-all", "one-at-a-time")


@pytest.mark.parametrize("loop", LOOPS)
def test_drafts_are_verified_and_pay(build, loop):
    requests, prompts = workload(seed=2, size=8, rate=1000)
    steps = []
    for drafts in (0, 3):
        eager = Odd(
            lambda v: Batch(
                {p.id: p.left + v.max_drafts * (p.left == 1) for p in (*v.running, *v.waiting)}
            )
        )
        core, clock = build(eager, drafts=drafts, **LOOPS[loop])
        assert serve(core, clock, requests, prompts) == answers(requests, prompts)
        assert drained(core) and not core.scheduler.failed
        steps.append(core.model_executor.steps)
    assert steps[1] < 0.7 * steps[0]


# Policies that fail


class Sometimes:
    """Raises on some steps, and else does as another policy."""

    def __init__(self, policy: Any, share: float) -> None:
        self.policy, self.share, self.dice = policy, share, Random(0)

    def step(self, view: View) -> Batch:
        if self.dice.random() < self.share:
            raise ZeroDivisionError("a policy of a newcomer")
        return self.policy.step(view)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("share", [1.0, 0.3], ids=["always", "sometimes"])
def test_where_a_policy_raises_vllm_schedules_and_says_so_once(build, log, share, loop):
    requests, prompts = workload(seed=3)
    core, clock = build(Sometimes(Chaos(3), share), blocks=TIGHT, drafts=3, **LOOPS[loop])
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core)
    [record] = log.records
    assert "slos-serve failed" in record.getMessage() and "a policy of a newcomer" in log.text


class Quits(Sometimes):
    def step(self, view: View) -> Batch:
        if self.dice.random() < self.share:
            raise SystemExit(3)
        return self.policy.step(view)


def test_a_policy_that_quits_does_not_end_the_engine(build, log):
    requests, prompts = workload(seed=3)
    core, clock = build(Quits(Chaos(3), 0.3), blocks=TIGHT)
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and len(log.records) == 1


def test_a_full_disk_does_not_end_the_engine(build, log, tmp_path, monkeypatch):
    path = tmp_path / "load.json"
    core, clock = build(slos={"load": str(path), "learn": True}, blocks=TIGHT)
    os.utime(path, (0, 0))

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Report, "write", full)
    monkeypatch.setattr(Learned, "observe", full)
    requests, prompts = workload(seed=3)
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and "the report of the load" in log.text and "learning" in log.text
    assert len(log.records) == 2, "each is said once"
    assert path.stat().st_mtime > 0, "a sign of life"


def faulty(method: str) -> Quantile:
    """The length predictor of a newcomer, whose `method` raises from the third call on."""
    predictor, calls = Quantile(), count(1)
    right = getattr(predictor, method)

    def counted(*args: Any) -> Any:
        return right(*args) if next(calls) < 3 else {}["a mistake of a newcomer"]

    setattr(predictor, method, counted)
    return predictor


@pytest.mark.parametrize("method", ["remaining", "began", "ended", "aborted"])
def test_where_a_length_predictor_raises_the_engine_goes_on_and_says_so_once(
    build, log, monkeypatch, method
):
    monkeypatch.setitem(BLIND, "quantile", lambda: faulty(method))
    requests, prompts = workload(seed=3, size=20)
    core, clock = build(blocks=TIGHT)

    def abort(step: int) -> None:
        if step in (5, 10, 15, 20):
            core.abort_requests([r.request_id for r in core.scheduler.running[:1]])

    said = serve(core, clock, requests, prompts, between=abort)
    expected = answers(requests, prompts)
    assert drained(core) and all(expected[id][: len(s)] == s for id, s in said.items())
    assert isinstance(core.scheduler.lengths.predictor, MaxTokens) and not core.scheduler.failed
    [record] = log.records
    assert "length predictor Quantile failed" in record.getMessage()


def whole(view: View, **more: Any) -> Batch:
    return Batch({p.id: p.left for p in (*view.running, *view.waiting)} | more)


REFUSED: dict[str, Callable[[View], Any]] = {  # what makes no sense: such a step is vLLM's
    "unknown id": lambda v: whole(v, nobody=3),
    "unknown id to preempt": lambda v: replace(whole(v), preempt=("nobody",)),
    "unknown id to decline": lambda v: replace(whole(v), decline=("nobody",)),
    "an id for ids": lambda v: replace(whole(v), preempt=v.running[0].id if v.running else "r1"),
    "negative": lambda v: Batch({id: -n for id, n in whole(v).tokens.items()}),
    "fractions": lambda v: Batch({id: n / 2 for id, n in whole(v).tokens.items()}),  # type: ignore[arg-type]
    "words": lambda v: Batch({id: "all" for id in whole(v).tokens}),  # type: ignore[misc]
    "a list": lambda v: Batch(list(whole(v).tokens)),  # type: ignore[arg-type]
    "None": lambda v: None,
}
TAKEN: dict[str, Callable[[View], Any]] = {  # what vLLM's own bounds cut to size
    "too many": lambda v: Batch({id: 10**9 for id in whole(v).tokens}),
    "numpy": lambda v: Batch({id: np.int64(n) for id, n in whole(v).tokens.items()}),  # type: ignore[arg-type]
    "preempt one waiting": lambda v: replace(whole(v), preempt=tuple(p.id for p in v.waiting)),
    "preempt one twice": lambda v: replace(
        whole(v),
        preempt=tuple(p.id for p in v.running[-1:] * 2 if p.generated % 5 == 3 and p.left == 1),  # type: ignore[operator]
    ),
    "zeros first": lambda v: Batch(
        {p.id: 0 for p in v.waiting[:-1]} | {p.id: p.left for p in v.waiting[-1:]}
    ),
    "nothing": lambda v: Batch(),
    "only zeros": lambda v: Batch(dict.fromkeys(whole(v).tokens, 0)),
    "decline everybody": lambda v: Batch(decline=tuple(whole(v).tokens)),
    "preempt everybody": lambda v: Batch(preempt=tuple(p.id for p in v.running)),
    "only the last": lambda v: Batch({p.id: p.left for p in [*v.running, *v.waiting][-1:]}),
}


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", [*REFUSED, *TAKEN])
def test_an_odd_answer_costs_nobody_a_token(build, log, name, loop):
    requests, prompts = workload(seed=4, size=20)
    core, clock = build(Odd((REFUSED | TAKEN)[name]), blocks=TIGHT, drafts=3, **LOOPS[loop])
    assert serve(core, clock, requests, prompts, most=5000) == answers(requests, prompts)
    assert drained(core)
    assert core.scheduler.failed == (name in REFUSED) == bool(log.records)


def test_zero_tokens_do_not_block_those_behind(build):
    order = []

    def youngest(view: View) -> Batch:
        *others, last = view.waiting if view.waiting else view.running
        order.append(last.id)
        return Batch({p.id: 0 for p in others} | {last.id: last.left})

    requests, prompts = workload(seed=5, size=6, rate=1e6)
    core, _ = build(Odd(youngest))
    for r in requests:
        add(core, r, prompts[r.id])
    started = []
    for _ in range(6):
        outputs, _ = core.step_fn()
        started += [o.request_id for o in outputs[0].outputs]
    assert started == order == [f"r{i}" for i in range(5, -1, -1)]


def test_one_that_is_declined_and_preempted_at_once_leaves(build):
    requests, prompts = workload(seed=4, size=20)

    def both(view: View) -> Batch:
        ids = tuple(p.id for p in view.waiting)
        return Batch(preempt=ids, decline=ids)

    core, clock = build(Odd(both), {"reject": True})
    assert not any(serve(core, clock, requests, prompts).values())
    assert drained(core) and not core.scheduler.failed


@pytest.mark.parametrize("most", [1, 2])
@pytest.mark.parametrize("loop", LOOPS)
def test_no_step_has_more_adapters_than_vllm_has_room_for(build, loop, most):
    """It asserts so, and skips nobody who runs; a policy does."""
    requests, prompts = workload(seed=18)
    core, clock = build(Chaos(18), blocks=TIGHT, max_seqs=12, **LOOPS[loop])
    s, add_request, seen = core.scheduler, core.scheduler.add_request, Counter()
    s.lora_config, s.adapters.most = SimpleNamespace(max_loras=most), most

    def adapted(request: Any) -> None:
        if adapter := int(request.request_id[1:]) % 4:
            request.lora_request = SimpleNamespace(lora_int_id=adapter)
        add_request(request)

    def look(step: int) -> None:
        seen[len({r.lora_request.lora_int_id for r in s.running if r.lora_request})] += 1

    s.add_request = adapted
    assert serve(core, clock, requests, prompts, between=look) == answers(requests, prompts)
    assert drained(core) and not s.failed
    assert seen[most + 1] > 0, "they run side by side, and take turns"


def test_no_chunk_ends_where_drafters_that_read_ahead_would_lack_the_prompt(build):
    requests, prompts = workload(seed=25)
    core, clock = build(Chaos(25), blocks=TIGHT, max_seqs=12)
    core.scheduler.num_prefill_lookahead, seen = 4, Counter()

    def look(step: int) -> None:
        for r in core.scheduler.running:
            if r.is_prefill_chunk:
                seen[min(4, r.num_tokens - r.num_computed_tokens)] += 1

    assert serve(core, clock, requests, prompts, between=look) == answers(requests, prompts)
    assert drained(core) and {*seen} == {4}


# Clients that leave


@pytest.mark.parametrize("how", ["between steps", "during a step"])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", ["chaos", "slos-serve"])
def test_aborts_leak_nothing_and_change_nobody_elses_tokens(build, name, loop, how):
    requests, prompts = workload(seed=6, size=60, rate=40)
    policy = Chaos(6, preempts=0.1) if name == "chaos" else None
    core, clock = build(policy, blocks=TIGHT, max_seqs=12, drafts=3, caching=True, **LOOPS[loop])
    dice, gone, seen = Random(9), set(), Counter()

    def leave(step: int) -> None:
        present = list(core.scheduler.requests.values())
        for r in present if dice.random() < 0.15 else ():
            if dice.random() < 0.1 or (r.status == RequestStatus.PREEMPTED and dice.random() < 0.3):
                gone.add(r.request_id)
                seen[r.status] += 1
                seen["in flight"] += r.num_in_flight_tokens > 0
                if how == "between steps":
                    core.abort_requests([r.request_id])
                else:
                    core.aborts_queue.put_nowait([r.request_id])

    said = serve(core, clock, requests, prompts, between=leave)
    truth = answers(requests, prompts)
    assert {id: t for id, t in said.items() if id not in gone} == {
        i: t for i, t in truth.items() if i not in gone
    }
    assert all(said[id] == truth[id][: len(said[id])] for id in gone)
    assert drained(core) and not core.scheduler.failed
    statuses = [RequestStatus.WAITING, RequestStatus.RUNNING]
    statuses += [RequestStatus.PREEMPTED] if name == "chaos" else []
    assert all(seen[s] for s in statuses) and len(gone) < len(requests) - 10
    assert bool(seen["in flight"]) == ("async" in loop)


def test_an_idle_engine_holds_on_to_nobody(build):
    requests, prompts = workload(seed=8, size=5)
    core, _ = build(slos={"profile": "", "learn": True})  # nobody asks the policy yet
    for r in requests:
        add(core, r, prompts[r.id])
    core.abort_requests([r.id for r in requests])
    assert drained(core)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_session_of_several_turns_is_vllms_own_and_leaves_nothing(build, loop):
    """Its later turns and its end come as requests of the same id."""
    core, clock = build(blocks=TIGHT, **LOOPS[loop])

    def turn(prompt: list[int], more: bool) -> None:
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
        hasher = core.request_block_hasher
        core.add_request(Asked("s", prompt, params, None, resumable=more, block_hasher=hasher))

    requests, prompts = workload(seed=19, size=20, rate=1e6)
    for r in requests:
        add(core, r, prompts[r.id])
    turn([7] * 30, True)
    turn([8] * 20, True)
    s = core.scheduler
    for _ in range(1000):
        if s.requests["s"].status == RequestStatus.WAITING_FOR_STREAMING_REQ:
            break
        core.step_fn()
    assert s.requests["s"].num_tokens >= 50 and "s" not in s.tracked
    turn([0], False)
    serve(core, clock, [], {})
    assert drained(core) and not s.failed and not s.stuck


def test_one_that_ends_by_an_error_tells_nothing_of_lengths(build):
    core, _ = build()
    requests, prompts = workload(seed=20, size=6, rate=1e6)
    for r in requests:
        add(core, r, prompts[r.id], max_tokens=40)
    for _ in range(3):
        core.step_fn()
    s = core.scheduler
    s.finish_requests([r.id for r in requests], RequestStatus.FINISHED_ERROR)
    assert drained(core) and not s.lengths.predictor._all.learned
    value = s.metrics.registry.get_sample_value
    assert value("slos_requests_total", {"class": "", "outcome": "aborted"}) == len(requests)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_pause_is_no_step_and_nothing_is_decided_in_it(build, loop):
    requests, prompts = workload(seed=23, size=20, rate=1e6)
    core, clock = build(blocks=ROOMY, **LOOPS[loop])
    s, gone = core.scheduler, requests.pop().id
    for r in requests:
        add(core, r, prompts[r.id])
    add(core, Request(gone, 0.0, (Stage(9, 900, SLO(0.1)),)), [7] * 9)
    for _ in range(4):
        core.step_fn()
    core.pause_scheduler("keep", clear_cache=False)
    policy, s.slo_policy = s.slo_policy, Odd(lambda view: 1 / 0)
    core.abort_requests([gone])
    while core.scheduler.has_requests() or core.batch_queue:
        core.step_fn()
    assert not s.failed, "no policy is asked"
    clock.now += 3600.0
    s.slo_policy = policy
    core.resume_scheduler()
    assert serve(core, clock, [], {}).keys() <= {r.id for r in requests}
    assert drained(core) and not s.failed
    assert s.metrics.registry.get_sample_value("slos_step_seconds_sum") < 60.0


@pytest.mark.parametrize("loop", LOOPS)
def test_who_runs_when_vllm_is_to_run_dry_is_served(build, loop):
    """A policy would make room for those that vLLM does not let in."""
    requests, prompts = workload(seed=24, size=20, rate=1e6)
    core, _ = build(Odd(whole), blocks=ROOMY, max_seqs=8, **LOOPS[loop])
    s = core.scheduler
    for r in requests:
        add(core, r, prompts[r.id])
    core.step_fn()
    s.slo_policy = Odd(
        lambda v: Batch({p.id: p.left for p in v.waiting}, tuple(p.id for p in v.running))
    )
    s.set_pause_state(PauseState.PAUSED_NEW)
    started = {r.request_id for r in s.running}
    while core.scheduler.has_requests() or core.batch_queue:
        core.step_fn()
    assert started and not started & s.requests.keys() and len(s.waiting) == len(s.requests) > 0


def test_what_is_kept_of_classes_does_not_grow_with_their_names(build):
    requests, prompts = workload(seed=21, size=3 * CLASSES, rate=1e6)
    core, clock = build(blocks=ROOMY)
    for r in requests:
        add(core, r, prompts[r.id], extra_args={"slo_class": f"user {r.id}"})
    serve(core, clock, [], {})
    kinds = {kind for kind, _ in core.scheduler.lengths.predictor._own}
    assert drained(core) and len(kinds) == CLASSES + 1 and REST in kinds


# Objectives per request


def asked(
    core: Any, id: str = "r", arrival: float = 0.0, tokens: int = 100, **fields: Any
) -> Progress:
    """The policy's view of a request with these `extra_args`."""
    request = Request(id, arrival, (Stage(tokens, 20, SLO(0.1)),))
    add(core, request, [7] * tokens, extra_args=fields)
    return core.scheduler.tracked[id].progress


def test_a_policy_plans_by_the_objectives_of_the_request(build):
    core, _ = build(slos={"slowdown": 4.0, "tpot": 0.07, "value": 3.0})
    zero_load = ROOFLINE.time(100)
    p = asked(core, "ttft", 5.0, slo_ttft=0.3, slo_tpot="0.02", slo_value=2)
    assert (p.t0, p.tpot, p.value, p.arrival) == (5.3, 0.02, 2.0, 5.0)
    p = asked(core, "slowdown", slo_slowdown=6)
    assert (p.t0, p.tpot, p.value) == (6 * zero_load, 0.07, 3.0)
    p = asked(core, "none")
    assert (p.t0, p.tpot, p.value) == (4 * zero_load, 0.07, 3.0)
    p = asked(
        core,
        "stages",
        slo_stages='[{"tpot": 0.05, "tokens": 3}, {"tpot": 0.03, "until": 7}, {"tpot": 0.04}]',
    )
    assert (p.t0, p.tpot, p.later_tpot) == (4 * zero_load, 0.05, 0.03)


MALFORMED: list[dict[Any, Any]] = [
    {"slo_tpot": -1}, {"slo_tpot": "fast"}, {"slo_ttft": float("nan")},
    {"slo_ttft": 1, "slo_slowdown": 2}, {"slo_value": 0}, {"slo_speed": 1}, {"slo_stages": "["},
    {"slo_stages": "[" * 100_000}, {"slo_stages": [1]}, {1: 2},
]  # fmt: skip


def test_malformed_objectives_are_the_defaults_with_a_warning_and_kill_nobody(build, log):
    core, clock = build(slos={"ttft": 0.5, "tpot": 0.07})
    requests, prompts = workload(seed=9, size=len(MALFORMED), rate=1e6)
    requests = [replace(r, arrival=0.0) for r in requests]
    for r, fields in zip(requests, MALFORMED, strict=True):
        add(core, r, prompts[r.id], extra_args=fields)
        p = core.scheduler.tracked[r.id].progress
        assert (p.t0, p.tpot, p.value) == (0.5, 0.07, 1.0)
        assert log.records[-1].levelname == "WARNING"
        assert f"request {r.id} gets the default objectives" in log.records[-1].getMessage()
    assert len(log.records) == len(MALFORMED)
    assert serve(core, clock, [], {}) == answers(requests, prompts) and drained(core)


def test_one_that_is_aborted_at_a_stop_string_has_ended(build):
    """The front-end finds it, and aborts the request in the engine."""
    core, _ = build(Odd(whole), max_seqs=2)
    requests, prompts = workload(seed=26, size=3, rate=1e6)
    for r in requests:
        stop = [] if r.id == "r1" else ["a word"]
        add(core, r, prompts[r.id], max_tokens=40, stop=stop, extra_args={"slo_ttft": 9})
    for _ in range(3):
        core.step_fn()
    s = core.scheduler
    assert [s.requests[r.id].num_output_tokens > 0 for r in requests] == [True, True, False]
    core.abort_requests([r.id for r in requests])
    value = s.metrics.registry.get_sample_value
    for outcome, number in {"attained": 1, "aborted": 2}.items():
        assert value("slos_requests_total", {"class": "", "outcome": outcome}) == number
    assert drained(core) and s.lengths.predictor._all.learned


def test_extreme_objectives_fail_no_policy(build, log):
    extreme = [
        {field: value} for field in ("slo_tpot", "slo_ttft", "slo_value") for value in (1e-4, 1e6)
    ]
    extreme += [
        {"slo_slowdown": 1e6},
        {"slo_tpot": 1e6, "slo_ttft": 1e-4, "slo_value": 1e6},
        {"slo_stages": '[{"tpot": 0.1, "tokens": 1000000}, {"tpot": 0.1}]', "slo_output": 1e6},
    ]
    core, clock = build(blocks=TIGHT)
    requests, prompts = workload(seed=10, size=2 * len(extreme), rate=100)
    for r, fields in zip(requests, extreme, strict=False):
        add(core, r, prompts[r.id], extra_args=fields)
    assert serve(core, clock, requests[len(extreme) :], prompts) == answers(requests, prompts)
    assert drained(core) and not log.records and not core.scheduler.failed


@pytest.mark.parametrize("name", ["reject-all", "slos-serve"])
def test_the_declined_become_best_effort_and_are_served_after_the_others(build, name):
    requests, prompts = workload(seed=11, size=60, rate=60)
    core, clock = build(PATHOLOGICAL[name]() if name in PATHOLOGICAL else None, blocks=TIGHT)
    declined, decide = set(), core.scheduler._decide

    def watched(now: float) -> Batch | None:
        batch = decide(now)
        declined.update(batch.decline if batch else ())
        return batch

    core.scheduler._decide = watched
    finished: dict[str, bool] = {}
    free = core.scheduler._free_request

    def freed(request: Any, *args: Any, **kwargs: Any) -> Any:
        finished[request.request_id] = core.scheduler.tracked[
            request.request_id
        ].progress.best_effort
        return free(request, *args, **kwargs)

    core.scheduler._free_request = freed
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert {id for id, best_effort in finished.items() if best_effort} == declined
    assert 0 < len(declined) <= len(requests)
    if name == "slos-serve":
        order = list(finished)
        ranks = [
            [order.index(id) for id, b in finished.items() if b == best_effort]
            for best_effort in (False, True)
        ]
        assert sum(ranks[0]) / len(ranks[0]) < sum(ranks[1]) / len(ranks[1])


@pytest.mark.parametrize("reject", [False, True])
@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_the_declined_leave_for_another_replica_before_they_start(build, loop, reject):
    """A front-end sees an end by abort without a token; who has started, or has nowhere to go,
    stays, unless the server rejects."""
    requests, prompts = workload(seed=11, size=60, rate=60)
    core, clock = build(slos={"reject": True} if reject else {}, blocks=TIGHT, **loop)
    step, ends = core.step_fn, {}

    def watched():
        outputs, executed = step()
        for output in outputs[0].outputs if outputs and 0 in outputs else ():
            ends.setdefault(output.request_id, output.finish_reason)
        return outputs, executed

    core.step_fn = watched
    for i, r in enumerate(requests):  # every other one may leave
        fields = xargs(r.stages, r.value) | ({"slo_elsewhere": 1} if i % 2 else {})
        add(core, r, prompts[r.id], extra_args=fields)
    said = serve(core, clock, [], prompts)
    left = {id for id, end in ends.items() if end == FinishReason.ABORT}
    assert left and not any(said[id] for id in left)
    assert (left <= {r.id for r in requests[1::2]}) != reject
    assert {id: tokens for id, tokens in said.items() if id not in left} == {
        id: tokens for id, tokens in answers(requests, prompts).items() if id not in left
    }
    assert drained(core) and not core.scheduler.passed and not core.scheduler.failed


def test_a_request_from_another_replica_keeps_its_arrival(build):
    core, clock = build()
    clock.now = 50.0
    assert asked(core, "r", 50.0, slo_ttft=3.0, slo_arrival=48.5).due == 51.5
    assert asked(core, "future", 50.0, slo_ttft=3.0, slo_arrival=99.0).due == 53.0
    assert (
        not asked(core, "here", 50.0, slo_elsewhere=0).elsewhere
        and asked(core, "e", slo_elsewhere=1).elsewhere
    )


@pytest.mark.parametrize("loop", LOOPS.values(), ids=LOOPS)
def test_the_load_is_written_for_a_router(build, tmp_path, loop):
    path = tmp_path / "load.json"
    core, clock = build(slos={"load": str(path)}, blocks=ROOMY, **loop)

    def told() -> Report:
        return Report.parse(path.read_text())

    idle = told()
    assert idle.load == Load("", 0.0, 0, 0, ROOMY, ROOMY, BLOCK) and idle.roofline == ROOFLINE
    requests, prompts = workload(seed=3, size=30, rate=100)
    seen: list[Load] = []

    def look(step: int) -> None:
        report = told()
        seen.append(report.load)
        assert report.at <= clock.now and report.load.step_end >= report.at

    assert serve(core, clock, requests, prompts, between=look) == answers(requests, prompts)
    most = sum(-(-(len(prompts[r.id]) + r.output) // BLOCK) for r in requests)
    assert max(n.claimed_blocks for n in seen) <= most and max(n.running for n in seen) > 3
    for n in seen:
        assert sum(count for _, count in n.decodes) <= n.running and {
            tpot for tpot, _ in n.decodes
        } <= {0.02, 0.05}
        assert n.running == 0 or n.claimed_blocks > 0 or n.waiting == 0
    assert any(n.prefill_tokens for n in seen) and any(len(n.decodes) == 2 for n in seen)
    end = told().load
    assert (end.waiting, end.running, end.claimed_blocks, end.free_blocks) == (0, 0, 0, ROOMY)


def at_every_step(core: Any) -> list[tuple[int, int, int, float, float]]:
    """Of the one request at every step: tokens seen by the host, stage, generated in it, tpot,
    due."""
    seen, policy = [], core.scheduler.slo_policy

    def step(view: View) -> Batch:
        for p in (*view.running, *view.waiting):
            seen.append(
                (
                    core.scheduler.requests[p.id].num_output_tokens,
                    p.stage,
                    p.generated,
                    p.tpot,
                    p.t0,
                )
            )
        return policy.step(view)

    core.scheduler.slo_policy = Odd(step)
    return seen


@pytest.mark.parametrize("drafts", [0, 3])
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("by", ["until", "tokens"])
def test_the_pace_changes_at_the_token_that_ends_a_stage(build, by, loop, drafts):
    prompt = [11, 12, 13]
    truth = answer(prompt, 30)
    ends = 8
    assert truth.index(truth[ends - 1]) == ends - 1
    first = (
        {"tpot": 0.05, "until": truth[ends - 1]}
        if by == "until"
        else {"tpot": 0.05, "tokens": ends}
    )
    stages = [first, {"tpot": 0.1}]
    core, clock = build(drafts=drafts, **LOOPS[loop])
    seen = at_every_step(core)
    request = Request("r", 0.0, (Stage(3, 30, SLO(0.1)),))
    said = serve(
        core,
        clock,
        [request],
        {"r": prompt},
        extra_args={"slo_ttft": 1.0, "slo_stages": json.dumps(stages), "slo_rule": "paper"},
    )
    assert said == {"r": truth}
    assert {stage for _, stage, *_ in seen} == {0, 1}
    for tokens, stage, generated, tpot, t0 in seen:
        assert stage == (tokens >= ends)
        assert tpot == (0.05, 0.1)[stage]
        assert t0 == pytest.approx((1.0, 1.0 + (ends - 1) * 0.05 + 0.1)[stage])
        ahead = generated - (tokens - ends * stage)  # under way, in the asynchronous loop
        assert ahead == 0 if loop == "sync" else 0 <= ahead <= 1 + drafts
    assert drafts == 0 or len(seen) < 25


def test_a_stage_that_is_never_ended_keeps_its_pace(build):
    core, clock = build()
    seen = at_every_step(core)
    stages = '[{"tpot": 0.05, "until": 3}, {"tpot": 0.1}]'  # 3 is never said
    asked = [Request("r", 0.0, (Stage(3, 30, SLO(0.1)),))]
    serve(core, clock, asked, {"r": [4, 5, 6]}, extra_args={"slo_stages": stages})
    assert {(stage, tpot) for _, stage, _, tpot, _ in seen} == {(0, 0.05)}


def test_a_late_first_token_moves_the_schedule(build):
    core, clock = build()
    p = asked(core, slo_ttft=1e-3, slo_tpot=0.05)
    core.step_fn()
    assert clock.now > 1e-3 and p.t0 == clock.now


@pytest.mark.parametrize("rule", [{}, {"slo_rule": "client"}, {"slo_rule": "paper"}])
def test_an_early_first_token_moves_the_schedule_by_the_clients_rule(build, rule):
    core, clock = build()
    stages = '[{"tpot": 0.05, "tokens": 3}, {"tpot": 0.1}]'
    p = asked(core, slo_ttft=9.0, slo_stages=stages, **rule)
    core.step_fn()
    t0 = 9.0 if rule == {"slo_rule": "paper"} else clock.now
    assert (p.t0, p.client) == (t0, t0 < 9)
    while p.stage == 0:
        core.step_fn()
    last = clock.now if p.client else t0 + 2 * 0.05  # of the stage before: as it came, or is due
    assert p.t0 == pytest.approx(last + 0.1), "where the next stage is due"
    core.step_fn()
    assert p.t0 == pytest.approx(last + 0.1), "its first token moves nothing"


# Settings


@pytest.mark.parametrize(
    "slos, message",
    [
        ({"polciy": "sarathi"}, r"slos setting = 'polciy' must be one of policy, options, profile"),
        ({"policy": "fifo"}, r"policy = 'fifo' must be one of .*slos-serve"),
        (
            {"options": {"speed": 1}},
            r"setting of policy 'slos-serve' = 'speed' must be one of .*longest_step",
        ),
        ({"options": {"longest_step": -1}}, r"longest_step = -1 must be positive"),
        ({"profile": "h100"}, r"profile 'h100' is unknown; known: .*, or the path of a JSON file"),
        (
            {"ttft": 1.0, "slowdown": 5.0},
            r"ttft = 1.0 must be None with a slowdown; give only one",
        ),
        ({"tpot": 0}, r"tpot = 0 must be positive"),
        ({"tpot": "fast"}, r"slos setting tpot = 'fast' must be a float"),
        ({"value": -1.0}, r"value = -1.0 must be positive"),
        ({"learn": "yes"}, r"slos setting learn = 'yes' must be a bool"),
        (
            {"profile": "", "learn": False},
            r"slos setting learn = False must be true without a profile",
        ),
        ({"caution": 1.5}, r"caution = 1.5 must be in \(0, 1\)"),
        (
            {"save": "/no/such/folder/p.json"},
            r"save = '/no/such/folder/p.json' must be in a folder that exists; make",
        ),
    ],
)
def test_a_wrong_setting_is_refused_at_once_with_value_bound_and_cure(build, slos, message):
    with pytest.raises(ValueError, match=message):
        build(slos=slos)


def test_another_queue_than_first_come_first_served_is_refused(build):
    with pytest.raises(
        ValueError,
        match="scheduling policy = 'priority' must be fcfs; leave --scheduling-policy out",
    ):
        build(scheduling_policy="priority")


@pytest.mark.parametrize(
    ("change", "slos", "said"),
    [
        (lambda s: setattr(s, "need_mamba_block_aligned_split", True), {},
         "mamba_cache_mode = 'align' must be none; add --no-enable-prefix-caching"),
        (lambda s: setattr(s.parallel_config, "data_parallel_index", 1), {"load": "load.json"},
         "slos setting load = 'load.json' must be of a server with one engine; leave --data-par"),
        (lambda s: setattr(s, "vllm_config", SimpleNamespace(
            additional_config={}, model_config=SimpleNamespace(is_diffusion=True, model="m"))), {},
         "model = 'm' must be one that does not diffuse; add --stock"),
        (lambda s: setattr(s.parallel_config, "pipeline_parallel_size", 2), {},
         "--pipeline-parallel-size = 2 must be 1; use --tensor-parallel-size"),
    ],
)  # fmt: skip
def test_what_the_plug_in_cannot_do_is_refused(build, monkeypatch, change, slos, said):
    made = AsyncScheduler.__init__

    def changed(self: Any, *args: Any, **kwargs: Any) -> None:
        made(self, *args, **kwargs)
        change(self)

    monkeypatch.setattr(AsyncScheduler, "__init__", changed)
    with pytest.raises(ValueError, match=said):
        build(slos=slos)


def test_the_options_reach_the_policy(build):
    core, _ = build(slos={"options": {"longest_step": 0.03}})
    assert core.scheduler.slo_policy.longest_step == 0.03


# Learning


class Inline:
    """Fits at once, where the plug-in has a thread for it."""

    def submit(self, work: Callable[..., None], *args: Any) -> None:
        work(*args)

    def shutdown(self) -> None:
        pass


def near(mine: Roofline, true: Roofline, within: float = 0.1) -> bool:
    return all(
        mine.time(n, 0, c) == pytest.approx(true.time(n, 0, c), rel=within)
        for n in SIZES
        for c in (0, 5000)
    )


SIZES = (1, 4, 16, 64, 150, 300)


def test_layers_of_several_kinds_share_the_blocks_of_a_saved_profile(build):
    core, _ = build()
    s = core.scheduler
    s.kv_cache_config = SimpleNamespace(kv_cache_groups=[None, None])
    assert s._profile(Learned(ROOFLINE), 9).kv_tokens == 64 // 2 * BLOCK


def times(roofline: Roofline, factor: float) -> Roofline:
    planes = tuple(Plane(p.k1 * factor, p.k2 * factor, p.b * factor) for p in roofline.planes)
    return Roofline(planes, roofline.k_ctx * factor)


@pytest.mark.parametrize("loop", LOOPS)
def test_without_a_profile_vllm_schedules_until_a_roofline_is_learned(
    build, log, tmp_path, model, loop
):
    requests, prompts = workload(seed=12, size=80)
    path = tmp_path / "learned.json"
    core, clock = build(slos={"profile": "", "learn": True, "save": str(path)}, **LOOPS[loop])
    s = core.scheduler
    s.belief.fitter.shutdown()
    s.belief.fitter = Inline()
    steps = []
    s._decide = lambda now, decide=s._decide: steps.append(batch := decide(now)) or batch
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core)
    # of somebody there
    assert steps[:20] == [None] * 20 and steps[60:].count(None) < len(steps[60:]) / 10
    assert [
        r.getMessage().startswith("a roofline is learned, slos-serve schedules")
        for r in log.records
    ] == [True]
    assert near(s.belief.learned.roofline, ROOFLINE), s.belief.learned.roofline
    kept = profile(str(path))
    learned = s.belief.learned
    assert kept.roofline == s.belief.roofline == learned.roofline and kept.margin == learned.margin
    assert (kept.kv_tokens, kept.block_size, kept.max_context, kept.gpus, kept.gpu) == (
        64 * 16,
        16,
        1024,
        1,
        "cpu",
    )
    assert "measured by slos.serving.vllm_plugin in vLLM" in kept.source and kept.model == str(
        model
    )
    again, _ = build(slos={"profile": str(path)})
    belief = again.scheduler.belief
    assert belief.roofline == kept.roofline and belief.learned.margin == kept.margin


@pytest.mark.parametrize("loop", LOOPS)
# the engine, to the profile
@pytest.mark.parametrize("factor", [0.2, 5.0], ids=["5x too slow", "5x too fast"])
def test_a_wrong_profile_serves_everybody_and_is_corrected(build, factor, loop):
    requests, prompts = workload(seed=13, size=80)
    core, clock = build(slos={"learn": True}, roofline=times(ROOFLINE, factor), **LOOPS[loop])
    s = core.scheduler
    s.belief.fitter.shutdown()
    s.belief.fitter = Inline()
    assert not near(s.belief.roofline, times(ROOFLINE, factor), within=0.5)
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and not s.failed
    assert near(s.belief.roofline, times(ROOFLINE, factor)), s.belief.roofline
    assert near(s.slo_policy.roofline, times(ROOFLINE, factor), within=0.2), s.slo_policy.roofline
    view = View(clock.now, [asked(core, "new", clock.now)], [], 60, 64)
    fresh = make_policy("slos-serve", s.slo_policy.roofline, s.lengths)
    assert s.slo_policy.step(view) == fresh.step(view)


@pytest.mark.parametrize("loop", LOOPS)
def test_what_is_learned_from_noise_serves_everybody_and_fails_no_policy(build, log, loop):
    dice = Random(17)

    class Noisy:
        def time(self, *step: int) -> float:
            return ROOFLINE.time(*step) * dice.lognormvariate(0, 0.8)

    requests, prompts = workload(seed=17, size=80, rate=40)
    core, clock = build(
        slos={"learn": True}, roofline=Noisy(), blocks=60, max_seqs=8, drafts=3, **LOOPS[loop]
    )
    core.scheduler.belief.fitter.shutdown()
    core.scheduler.belief.fitter = Inline()
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and not core.scheduler.failed and not log.records


def test_the_fit_runs_beside_the_engine_and_a_failing_one_changes_nothing(
    build, log, tmp_path, monkeypatch
):
    requests, prompts = workload(seed=14)
    core, clock = build(slos={"learn": True})
    monkeypatch.setattr(Learned, "refit", lambda *a: 1 / 0)
    before = core.scheduler.belief.roofline
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    core.scheduler.belief.fitter.shutdown()
    assert "could not be fitted or saved" in log.text and core.scheduler.belief.roofline is before


def test_the_steps_learned_from_are_those_that_were_executed(build):
    requests, prompts = workload(seed=15)
    core, clock = build(slos={"learn": True}, asynchronous=True)
    seen = []
    observe = core.scheduler.belief.learned.observe
    core.scheduler.belief.learned = Spy(seen)
    serve(core, clock, requests, prompts)
    assert len(seen) == core.model_executor.steps
    for tokens, drafts, context, seconds in seen:
        assert seconds == pytest.approx(ROOFLINE.time(tokens, drafts, context), rel=1e-6)
    assert observe((1, 0, 0, 0.0)) is False  # no time passed: no step


class Spy:
    roofline = cautious = None

    def __init__(self, seen: list) -> None:
        self.seen = seen

    def observe(self, step: Any, idle: bool) -> bool:
        self.seen.append(step)
        return False


# The contract with vLLM


@pytest.mark.parametrize("loop", LOOPS)
def test_every_step_passes_through_the_hooks_once(build, loop):
    requests, prompts = workload(seed=16, size=20)
    core, clock = build(**LOOPS[loop])
    calls = {name: counted(core, name) for name in HOOKS}
    caps = counted(core, "_reserve_prefill_lookahead", lambda r, *a: r.request_id)
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    steps = core.model_executor.steps
    times = {name: c["calls"] for name, c in calls.items()}
    assert times["add_request"] == times["_free_request"] == len(requests)
    assert times["schedule"] == times["_update_after_schedule"] >= steps
    assert times["update_from_output"] == times["schedule"]
    assert set(caps) == set(prompts) and caps.total() >= steps
    assert times["_update_request_with_output"] == sum(r.output for r in requests)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_policy_is_shown_the_time_at_which_its_step_begins(build, loop):
    """Asynchronously that is when the step in flight ends, which began when another one did."""
    requests, prompts = workload(seed=22, size=30)
    core, clock = build(**LOOPS[loop])
    policy, executor = core.scheduler.slo_policy, core.model_executor
    shown, begun, run = [], [], executor._run

    def step(view: View) -> Batch:
        shown[:] = [view.now]
        return policy.step(view)

    def ran(out: Any) -> Any:
        if out.num_scheduled_tokens and shown:
            begun.append((shown.pop(), max(clock.now, executor.end)))
        return run(out)

    core.scheduler.slo_policy, executor._run = Odd(step), ran
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert len(begun) > 100
    for at, start in begun:
        assert at == pytest.approx(start, abs=1e-9)


def test_the_plug_in_takes_no_name_that_vllm_has(build):
    core, _ = build(stock=True, asynchronous=True)
    theirs = set(dir(core.scheduler)) | set(vars(core.scheduler))
    tree = ast.parse(inspect.getsource(SLOScheduler))
    methods = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
    assert methods & theirs <= {*HOOKS, "__init__"}
    written = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.ctx, ast.Store)
    }
    assert written & theirs == {"scheduler_reserve_full_isl"}
    read = {
        n.attr
        for n in ast.walk(tree)
        if isinstance(n, ast.Attribute) and isinstance(n.value, ast.Name) and n.value.id == "self"
    }
    assert read <= theirs | written | methods | {"clock"}


def load(path: str = vllm_plugin.__file__) -> dict[str, Any]:
    return runpy.run_path(path, run_name="plugin_again")


@pytest.mark.parametrize("version", ["0.27.2", "0.34.0", "0.1.dev1+g0123456", "1.0"])
def test_a_version_outside_of_the_range_is_refused_at_import(monkeypatch, version):
    monkeypatch.setattr(vllm, "__version__", version)
    with pytest.raises(ImportError) as error:
        load()
    assert f"vllm = {version}" in str(error.value) and f"{OLDEST} to {NEWEST}" in str(error.value)


@pytest.mark.parametrize(
    "version", [OLDEST, f"{OLDEST}.1", f"{NEWEST}.0", f"{NEWEST}.7+cpu", f"{NEWEST}.0rc2"]
)
def test_a_version_in_the_range_is_taken(monkeypatch, version):
    monkeypatch.setattr(vllm, "__version__", version)
    assert load()["SLOScheduler"].__name__ == "SLOScheduler"


@pytest.mark.parametrize("name", HOOKS)
def test_a_hook_that_moved_is_named_at_import(monkeypatch, name):
    for kind in AsyncScheduler.__mro__:
        if name in vars(kind) and kind is not object:
            monkeypatch.delattr(kind, name)
    with pytest.raises(ImportError, match=rf"has no AsyncScheduler\.{name}"):
        load()
