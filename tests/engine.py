# ruff: noqa: E402
"""vLLM's real engine core over an executor without a model, for tests: exact, fast, and on a clock
of its own.

The executor keeps what a KV cache would hold, block by block, and answers with a hash of what it
reads back there: one token lost, doubled or misplaced by a scheduler changes every token after it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

warnings.simplefilter("ignore")  # vLLM's own

import pytest
import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.envs import disable_envs_cache
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.executor.abstract import Executor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import DraftTokenIds, KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request

from slos.core.roofline import Roofline
from slos.core.types import Batch, Policy, View
from slos.core.types import Request as Asked
from slos.hardware.profiles import Profile, save
from slos.serving.objectives import xargs
from slos.serving.vllm_plugin import SLOScheduler

VOCABULARY = 500
BLOCK = 16


class Clock:
    """Time as the tests let it pass."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def next_token(context: Sequence[int]) -> int:
    """The model: a hash of everything before, never a special token."""
    return 5 + crc32(bytes(str(list(context)), "ascii")) % (VOCABULARY - 5)


def answer(prompt: Sequence[int], length: int) -> list[int]:
    """What must come out, whatever the schedule."""
    context = list(prompt)
    for _ in range(length):
        context.append(next_token(context))
    return context[len(prompt) :]


class Later(Future):
    """A result that is there at `end`; whoever waits for it lets the clock go on until then."""

    def __init__(self, value: Any, clock: Clock, end: float) -> None:
        super().__init__()
        self.clock, self.end = clock, end
        self.set_result(value)

    def done(self) -> bool:
        return self.clock.now >= self.end

    def result(self, timeout: float | None = None) -> Any:
        self.clock.now = max(self.clock.now, self.end)
        return super().result(timeout)


class Modelless(Executor):
    """Executes a step by moving tokens through blocks; the step ends, on `clock`, when `roofline`
    says so.

    Like vLLM's own worker it knows of a request what it was told and what it said itself: where the
    scheduler runs ahead of it, it puts in its own last token and drafts, and takes back positions
    whose drafts were refused.
    """

    clock: Clock
    roofline: Roofline
    acceptance: float = 0.6
    blocks: int = 64
    ahead: int = 0  # positions that the scheduler may count on too early: drafts under way

    def _init_executor(self) -> None:
        self.memory: dict[int, list[int]] = {}
        self.tables: dict[str, list[int]] = {}
        self.inputs: dict[str, list[int]] = {}  # the tokens that the worker knows of a request
        self.computed: dict[str, int] = {}
        self.drafts: dict[str, list[int]] = {}
        self.end = 0.0  # of the last step
        self.steps = 0
        self.pending: Later | None = None

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        return True

    def check_health(self) -> None:
        pass

    def collective_rpc(
        self, method: Any, timeout: Any = None, args: Any = (), kwargs: Any = None, non_block=False
    ):
        answer = getattr(self, f"_{method}", lambda *a: None)(*args)
        if not non_block:
            return [answer]
        future: Future = Future()
        future.set_result([answer])
        return future

    def _get_kv_cache_spec(self):
        return {
            "layer": FullAttentionSpec(
                block_size=BLOCK, num_kv_heads=1, head_size=16, dtype=torch.float32
            )
        }

    def _get_supported_kv_cache_layouts(self):
        return None

    def get_supported_kv_cache_layouts(self):
        from vllm.v1.kv_cache_interface import KVCacheLayout  # type: ignore[attr-defined]

        return [[next(iter(KVCacheLayout)).name]]

    def _determine_available_memory(self) -> int:
        spec = self._get_kv_cache_spec()["layer"]
        return spec.page_size_bytes * (self.blocks + 1)

    def compile_or_warm_up_model(self) -> None:
        pass

    def execute_model(self, scheduler_output, non_block: bool = False):
        output = self._run(scheduler_output)
        self.pending = Later(output, self.clock, self.end)
        return self.pending if non_block else self.pending.result()

    def sample_tokens(self, grammar_output, non_block: bool = False):
        """What the asynchronous loop asks for; `execute_model` has sampled already."""
        assert self.pending is not None
        return self.pending if non_block else self.pending.result()

    def take_draft_token_ids(self) -> DraftTokenIds | None:
        return DraftTokenIds(list(self.drafts), list(self.drafts.values())) if self.drafts else None

    def _run(self, out) -> ModelRunnerOutput:
        for id in out.finished_req_ids:
            self.tables.pop(id, None)
            self.inputs.pop(id, None)
            self.computed.pop(id, None)
        start: dict[str, int] = {}
        for new in out.scheduled_new_reqs:
            self.tables[new.req_id] = list(new.block_ids[0])
            self.inputs[new.req_id] = list(new.prefill_token_ids or new.prompt_token_ids)
            start[new.req_id] = self.computed[new.req_id] = new.num_computed_tokens
        cached = out.scheduled_cached_reqs
        for id, blocks, computed in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            if id in cached.resumed_req_ids:
                self.tables[id] = []
            if id in cached.all_token_ids:  # it was not in the step before
                self.inputs[id], self.computed[id] = list(cached.all_token_ids[id]), computed
            assert 0 <= computed - self.computed[id] <= self.ahead, (
                f"{id} is at {self.computed[id]}, not at {computed}"
            )
            self.tables[id] += blocks[0] if blocks else []
            start[id] = computed
        self._pass_time(out, start)
        transfers = self._load(out.kv_connector_metadata)
        sampled, ids = [], list(out.num_scheduled_tokens)
        before, self.drafts = self.drafts, {}
        for id in ids:
            sampled.append(self._tokens(id, out.num_scheduled_tokens[id], out, before.get(id, [])))
        places = {id: i for i, id in enumerate(ids)}
        return ModelRunnerOutput(ids, places, sampled, kv_connector_output=transfers)

    def _load(self, connector: Any) -> KVConnectorOutput | None:
        """Put into blocks what a connector of `test_connectors` loads."""
        if not (loads := getattr(connector, "loads", None)):
            return None
        failed = {"failed_recving": connector.failed} if connector.failed else {}
        for id, (tokens, blocks) in loads.items():
            for i, block in enumerate(blocks if id not in connector.failed else ()):
                part = tokens[i * BLOCK : (i + 1) * BLOCK]
                self.memory[block] = part + [-1] * (BLOCK - len(part))
        return KVConnectorOutput(finished_recving={*loads}, **failed)

    def _pass_time(self, out, start: dict[str, int]) -> None:
        if start:
            drafts = max(map(len, out.scheduled_spec_decode_tokens.values()), default=0)
            context = sum(start.values()) - self._within(out.num_scheduled_tokens, start)
            seconds = self.roofline.time(out.total_num_scheduled_tokens, drafts, context)
            self.end = max(self.clock.now, self.end) + seconds
            self.steps += 1

    def _within(self, scheduled: dict[str, int], start: dict[str, int]) -> int:
        """Tokens that requests find in the step that computes them: no context before it."""
        fresh = {
            self.tables[id][at // BLOCK]
            for id, n in scheduled.items() for at in range(start[id], start[id] + n)
        }  # fmt: skip
        found = (fresh & {*self.tables[id][: start[id] // BLOCK]} for id in scheduled)
        return BLOCK * sum(map(len, found))

    def _tokens(self, id: str, count: int, out, proposed: list[int]) -> list[int]:
        """Write this step's tokens into the request's blocks; if they reach its end, what the model
        says then."""
        known, table, start = self.inputs[id], self.tables[id], self.computed[id]
        drafts = out.scheduled_spec_decode_tokens.get(id, [])
        # an asynchronous scheduler leaves the tokens to the worker, which has none where it padded
        if -1 in drafts:
            drafts = (proposed + [0] * len(drafts))[: len(drafts)]
        feed = (known + list(drafts))[start : start + count]
        assert len(feed) == count, (
            f"{id} is given {count} tokens at {start}, of {len(known)} and {len(drafts)} drafts"
        )
        for at, token in enumerate(feed, start):
            self.memory.setdefault(table[at // BLOCK], [-1] * BLOCK)[at % BLOCK] = token
        if start + count < len(known):
            self.computed[id] = start + count
            return []
        said = []
        for at in range(len(known), start + count + 1):
            context = [self.memory[table[i // BLOCK]][i % BLOCK] for i in range(at)]
            said.append(next_token(context))
            if at - len(known) >= len(drafts) or drafts[at - len(known)] != said[-1]:
                break
        known += said
        self.computed[id] = len(known) - 1
        if limit := out.num_spec_tokens_to_schedule:
            self.drafts[id] = self._propose(known, limit)
        return said

    def _propose(self, known: list[int], count: int) -> list[int]:
        drafts: list[int] = []
        for _ in range(count):
            true = next_token(known + drafts)
            lucky = crc32(bytes(str(known + drafts), "ascii")) % 1000 < 1000 * self.acceptance
            drafts.append(true if lucky else 5 + (true + 1) % (VOCABULARY - 5))
        return drafts


class Answer(NamedTuple):
    now: float
    tokens: dict[str, int]
    preempt: tuple[str, ...]
    decline: tuple[str, ...]


class Recorder:
    """A policy that remembers every answer of another one, and when it was given."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.steps: list[Answer] = []

    def step(self, view: View) -> Batch:
        batch = replace(self.policy.step(view), repeat=1)
        self.steps.append(Answer(view.now, dict(batch.tokens), batch.preempt, batch.decline))
        return batch


def engine(
    model: Path, roofline: Roofline, slos: dict[str, Any] | None = None, blocks: int = 64,
    max_seqs: int = 32, drafts: int = 0, asynchronous: bool = False, caching: bool = False,
    stock: bool = False, v2: bool = False, **more: Any,
) -> tuple[Any, Clock]:  # fmt: skip
    """An engine core with our scheduler, or with the stock one, on a clock of its own.

    v2: speak to the worker as to vLLM's second model runner, the usual one on GPUs.
    """
    disable_envs_cache()  # that an engine before has filled
    clock = Clock()
    world = {"clock": clock, "roofline": roofline, "blocks": blocks, "ahead": drafts * asynchronous}
    executor = type("Executor", (Modelless,), world)
    ours = type("Scheduler", (SLOScheduler,), {"clock": staticmethod(clock)})
    theirs = AsyncScheduler if asynchronous else Scheduler
    if drafts:
        more["speculative_config"] = {
            "method": "draft_model",
            "model": str(model),
            "num_speculative_tokens": drafts,
        }
    os.environ.update(HF_HUB_OFFLINE="1", VLLM_NO_USAGE_STATS="1", VLLM_CPU_KVCACHE_SPACE="1")
    args = EngineArgs(
        model=str(model), distributed_executor_backend=executor,
        scheduler_cls=theirs if stock else ours, enable_prefix_caching=caching,
        max_num_seqs=max_seqs, enforce_eager=True, async_scheduling=asynchronous,
        additional_config={"slos": slos or {}}, block_size=BLOCK, disable_log_stats=True,
        num_gpu_blocks_override=blocks + 1, max_model_len=min(1024, blocks * BLOCK),
        max_num_batched_tokens=more.pop("max_num_batched_tokens", 2048), **more,
    )  # fmt: skip
    config = args.create_engine_config()
    config.scheduler_config.async_scheduling = asynchronous  # the CPU platform has switched it off
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_USE_V2_MODEL_RUNNER", str(int(v2)))
        # it would walk all objects of this process, for half a second
        patch.setattr("vllm.v1.engine.core.freeze_gc_heap", lambda: None, raising=False)
        core = EngineCore(config, executor, log_stats=False)
    assert (
        core.batch_queue is not None
    ) == asynchronous and core.scheduler.use_v2_model_runner == v2  # type: ignore[attr-defined]
    return core, clock


def stop(core: Any) -> None:
    """Shut an engine core down that has no model, and hence no memory of a device to give back."""
    with pytest.MonkeyPatch.context() as patch:
        name = "vllm.v1.engine.core.cleanup_dist_env_and_memory"
        patch.setattr(name, lambda: None, raising=False)
        core.shutdown()
    disable_envs_cache()


def profile_file(folder: Path, roofline: Roofline) -> str:
    """A profile of this roofline, as a file that the settings may name."""
    path = folder / "profile.json"
    save(Profile("test", "none", "none", 1, roofline, 1024, 2048, "made up for a test"), path)
    return str(path)


def add(core: Any, asked: Asked, prompt: Sequence[int], **sampling: Any) -> None:
    """Hand a request of the kit to the engine, as the front-end would."""
    usual = {
        "temperature": 0.0,
        "max_tokens": asked.output,
        "ignore_eos": True,
        "extra_args": xargs(asked.stages, asked.value),
    }
    params = SamplingParams(**(usual | sampling))
    request = Request(
        asked.id,
        list(prompt),
        params,
        None,
        arrival_time=asked.arrival,
        block_hasher=core.request_block_hasher,
    )
    core.add_request(request)


def serve(
    core: Any,
    clock: Clock,
    asked: Sequence[Asked],
    prompts: dict[str, list[int]],
    most: int = 100_000,
    between: Callable[[int], None] = lambda step: None,
    **sampling: Any,
) -> dict[str, list[int]]:
    """Serve requests as they arrive on the clock; the tokens that came out of each. `between` is
    called every step."""
    waiting = sorted(asked, key=lambda r: r.arrival)
    said: dict[str, list[int]] = {r.id: [] for r in asked}
    for step in range(most):
        if not core.scheduler.has_requests() and not core.batch_queue:
            if not waiting:
                return said
            clock.now = max(clock.now, waiting[0].arrival)
        while waiting and waiting[0].arrival <= clock.now:
            r = waiting.pop(0)
            add(core, r, prompts[r.id], **sampling)
        between(step)
        before = clock.now
        outputs, executed = core.step_fn()
        core.post_step(executed)
        for output in outputs[0].outputs if outputs and 0 in outputs else ():
            said.setdefault(output.request_id, []).extend(output.new_token_ids)
        if (
            clock.now == before
            and not executed
            and waiting
            and core.scheduler.get_num_unfinished_requests()
        ):
            clock.now = waiting[0].arrival  # nothing can be done before somebody comes
    raise AssertionError(
        f"not done after {most} steps: {[i for i, s in said.items() if not s][:5]}"
    )


def drained(core: Any) -> bool:
    """Whether everything was given back: requests, KV blocks, and what the plug-in keeps of
    both."""
    s = core.scheduler
    pool = s.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1, "KV blocks are still held"
    assert not s.requests and not s.running and not s.waiting, "requests are still there"
    if isinstance(s, SLOScheduler):
        assert not s.tracked and not s.belief.flying, "the plug-in still holds on to some"
        awaited = [getattr(s.lengths.predictor, name, ()) for name in ("_begun", "_ended")]
        assert not any(awaited), "their lengths are still awaited"
    return True
