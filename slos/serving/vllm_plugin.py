"""The policies of this kit inside vLLM: `vllm serve MODEL --scheduler-cls
slos.serving.vllm_plugin.SLOScheduler`.

vLLM's own scheduler keeps doing the work (KV blocks, prefix cache, drafts, outputs); at every step
the policy is shown vLLM's state as a `View`, and its `Batch` steers that step: how many tokens each
request may have, in which order, and which are preempted. What the policy cannot answer is left to
vLLM. Settings are `Settings`, under "slos" in `--additional-config`; objectives per request are in
`slos.serving.objectives`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from operator import attrgetter, index
from typing import Any, cast

import vllm
from packaging.version import Version
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason
from vllm.v1.request import Request, RequestStatus

from slos.core.types import Batch, Policy, View, require
from slos.hardware.profiles import Profile
from slos.policies import OURS
from slos.policies.warm_up import warm_up
from slos.serving.belief import Belief, Learned
from slos.serving.cuts import Adapters, cut, sort_waiting
from slos.serving.failsafe import Failsafe, logger
from slos.serving.load_report import Report, Reporter, load_of
from slos.serving.metrics import Metrics
from slos.serving.objectives import Classes, parse
from slos.serving.prefix_hits import PrefixHits
from slos.serving.settings import Settings, check_engine
from slos.serving.tracked import Tracked

OLDEST, NEWEST = "0.28", "0.33"  # tried; between them the hooks below are the same
if not Version(OLDEST) <= Version(Version(vllm.__version__).base_version) < Version("0.34"):
    cure = "install one, or try its newest patch"
    raise ImportError(f"vllm = {vllm.__version__} must be {OLDEST} to {NEWEST}; {cure}")
HOOKS = (
    "schedule", "add_request", "update_from_output", "_reserve_prefill_lookahead",
    "_update_after_schedule", "_preempt_request", "_free_request", "_update_request_with_output",
    "finish_requests", "set_pause_state", "shutdown",
)  # fmt: skip
if _lacking := [name for name in HOOKS if not callable(getattr(AsyncScheduler, name, None))]:
    raise ImportError(f"vllm {vllm.__version__} has no AsyncScheduler.{_lacking[0]} to rest on")

READY = (RequestStatus.WAITING, RequestStatus.PREEMPTED)
ABORTED, ERROR = RequestStatus.FINISHED_ABORTED, RequestStatus.FINISHED_ERROR


class SLOScheduler(AsyncScheduler):
    """For `--scheduler-cls`, synchronous or asynchronous: a policy decides on every step."""

    clock = staticmethod(time.time)  # the one that `arrival_time` of requests is read from

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = dict(cast(Any, self.vllm_config.additional_config) or {})
        self.settings = Settings.of(config.get("slos", {}))
        check_engine(self, self.settings)
        self.tracked: dict[str, Tracked] = {}
        self.classes, self.turns = Classes(), count(1)
        self.prefix_hits = PrefixHits(self.kv_cache_manager)
        self.lengths = self.settings.lengths()
        self.caps: Mapping[str, int] | None = None  # tokens by id, of the step being scheduled
        self.adapters = Adapters(self.lora_config.max_loras if self.lora_config else 0)
        self.stuck = self.failed = False
        self.failsafe = Failsafe()
        self.passed: list[Request] = []  # declined before they started, for another replica
        self.belief = Belief(self.settings, self._profile)
        self.slo_policy: Policy | None = None
        self.scheduler_reserve_full_isl = False  # the policy decides on admission
        self.settings.try_policy()
        if cautious := self.belief.learned.cautious:
            self.slo_policy = self.settings.policy_for(cautious, self.lengths)
        if self.settings.policy == OURS:
            warm_up()  # kernels compile before the first request comes
        self.metrics = Metrics(lambda: list(self.tracked.values()))
        self.metrics.publish(self.parallel_config.data_parallel_index)
        self.reporter = Reporter(self.settings.load)
        self._tell(self.clock())

    def add_request(self, request: Request) -> None:
        super().add_request(request)
        new = self.requests.get(request.request_id) is request and not request.resumable
        if request.sampling_params is None or not new:
            return  # vLLM's own: pooling, or a session of several turns, or the end of one
        objectives = self.settings.objectives
        try:
            objectives = parse(request.sampling_params.extra_args, objectives)
        except Exception as error:  # the front-end refuses it; an engine must not die of it
            logger.warning("request %s gets the default objectives: %s", request.request_id, error)
        objectives = replace(objectives, kind=self.classes.of(objectives.kind))
        t = Tracked.of(request, objectives, self.belief.roofline, self.lengths)
        t.turn, self.tracked[request.request_id] = next(self.turns), t

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start = self.clock()
        with self.metrics.planning.time():
            batch = self._decide(start)
        if batch is not None:
            self._apply(batch)
        try:
            out = super().schedule(*args, **kwargs)
        finally:
            self.caps = None
            self.adapters.ids.clear()
            self.prefix_hits.release()
        self.belief.began(start, out, self.requests)
        # Where nothing of a batch could be scheduled, vLLM's own step comes next.
        idle = not out.num_scheduled_tokens and not self.belief.flying
        self.stuck = batch is not None and idle and bool(self.tracked)
        self._tell(start)
        return out

    def _tell(self, now: float) -> None:
        """The load, for a router."""

        def report() -> Report:
            room, end = (*self._blocks(), self.block_size), self.belief.flown(now)
            load = load_of(self.tracked.values(), len(self.running), end, *room)
            return Report(load, now, self.belief.learned.cautious)

        with self.failsafe("the report of the load"):
            self.reporter.tell(now, bool(self.tracked), report)

    def _decide(self, now: float) -> Batch | None:
        """The policy's batch, checked; None where vLLM goes by itself, pauses or has no request."""
        if self.slo_policy is None or self.stuck or self.pause_state:
            return None
        try:
            view = self._view(now)
            if not view.waiting and not view.running:
                return None
            batch = self.slo_policy.step(view)
            unknown = {*batch.tokens, *batch.preempt, *batch.decline} - self.tracked.keys()
            require(not unknown, "request ids of a batch", unknown, "in the view")
            tokens = {id: index(n) for id, n in batch.tokens.items()}
            good = min(tokens.values(), default=0) >= 0
            require(good, "tokens of a batch", tokens, "at least 0 each")
            return replace(batch, tokens={id: n for id, n in tokens.items() if n})
        except BaseException as error:  # a policy may raise SystemExit and its like as well
            if isinstance(error, KeyboardInterrupt):
                raise
            if not self.failed:
                said = "the policy %s failed: vLLM schedules such steps by itself"
                logger.exception(said, self.settings.policy)
            self.failed = True
            return None

    def _blocks(self) -> tuple[int, int]:
        groups = max(1, len(self.kv_cache_config.kv_cache_groups))
        pool = self.kv_cache_manager.block_pool
        # one is vLLM's null block
        return pool.get_num_free_blocks() // groups, (pool.num_gpu_blocks - 1) // groups

    def _view(self, now: float) -> View:
        """vLLM's state as a policy sees it, at the time when the step to be formed will begin."""
        running, waiting, now = [], [], self.belief.flown(now)
        # those that began in one step, as vLLM let them in: in the policy's order
        began = [t for r in self.running if (t := self.tracked.get(r.request_id))]
        for t in dict.fromkeys([*began, *self.tracked.values()]):
            r = t.request
            if r.status == RequestStatus.RUNNING or (r.status in READY and r.num_computed_tokens):
                if not t.admitted:
                    t.admitted, t.turn = True, next(self.turns)
                running.append(t)
            elif r.status in READY:
                waiting.append(t)
        in_turn = attrgetter("turn")
        with self.failsafe("looking into the prefix cache"):
            self.prefix_hits.show(waiting, running)
        whole = (t for t in sorted(waiting, key=in_turn) if not t.request.num_stale_output_tokens)
        waits = [t.sync(now) for t in whole]
        runs = [t.sync(now) for t in sorted(running, key=in_turn) if not t.done]
        seats = getattr(self, "max_num_active_reqs", self.max_num_running_reqs)  # from 0.32 on
        limits = self.block_size, seats, self.num_spec_tokens
        return View(now, waits, runs, *self._blocks(), *limits)

    def _apply(self, batch: Batch) -> None:
        """Preempt, decline, and set the order and the caps that vLLM's own `schedule` goes by."""
        for t in map(self.tracked.__getitem__, batch.decline):
            t.declined = t.progress.elsewhere or (self.settings.reject and t.untouched)
            t.progress.best_effort = not t.declined
        leave = {id for id in batch.decline if self.tracked[id].declined}
        self.passed += self.finish_requests(leave, ABORTED) if leave else []
        for id in batch.preempt:
            request = self.requests.get(id)  # unless it was declined as well
            if request and request.status == RequestStatus.RUNNING:
                self.running.remove(request)
                drop = getattr(self, "requires_kv_delivery", False)  # KV for another engine
                self._preempt_request(request, time.monotonic(), drop)
                self.prev_step_scheduled_req_ids.discard(id)
        self.caps = batch.tokens
        with self.failsafe("holding what is cached"):
            self.prefix_hits.hold(batch.tokens.keys())
        place, last = {id: i for i, id in enumerate(batch.tokens)}.get, len(batch.tokens)
        best_effort = {id for id, t in self.tracked.items() if t.progress.best_effort}
        ready = {id for id, t in self.tracked.items() if t.request.status in READY}
        # Short of blocks, vLLM evicts from the tail; and it admits none behind one without a token:
        # those that it skips, or that no policy schedules, come before that.
        self.running.sort(key=lambda r: (r.request_id in best_effort, place(r.request_id, last)))
        sort_waiting(self, ready, lambda id: place(id, last + (id in ready)))

    def _preempt_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """By the policy or by vLLM: in both cases it is the first of those that wait."""
        super()._preempt_request(request, *args, **kwargs)
        if t := self.tracked.get(request.request_id):
            t.admitted, t.turn = False, -next(self.turns)

    def _reserve_prefill_lookahead(
        self, request: Request, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """vLLM's last limit on a request's tokens in both of its loops: here they are capped."""
        n = num_new_tokens
        if self.caps is not None and (t := self.tracked.get(request.request_id)):
            ready = request.status in READY
            # One whose KV was loaded comes first: with no token it would block all that wait.
            cap = self.caps.get(request.request_id, int(ready and request.num_computed_tokens > 0))
            # one token that starts, padded to a row of drafts: all of the row or none
            row = ready and num_computed_tokens + n > request.num_tokens
            if not (cap and row):
                n = cut(t, num_computed_tokens, n, cap, self.scheduler_config)
        n = super()._reserve_prefill_lookahead(request, num_computed_tokens, n)
        return n if n and self.adapters.take(request) else 0

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if self.caps is not None and self.num_spec_tokens:
            # Drafts are proposed for the whole batch: as many as the policy would verify now.
            known = ((self.tracked.get(id), n) for id, n in self.caps.items())
            longest = max((n for t, n in known if t and t.progress.left == 1), default=1)
            scheduler_output.num_spec_tokens_to_schedule = min(longest - 1, self.num_spec_tokens)
        super()._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        now = self.clock()
        if scheduler_output.num_scheduled_tokens and self.belief.flying:
            step = self.belief.ended(now)
            with self.failsafe("learning from steps"):
                self.metrics.step(step[-1], self.belief.expected(step))
                self.belief.learn(step)
        out = super().update_from_output(scheduler_output, *args, **kwargs)
        for id in scheduler_output.num_scheduled_tokens:
            if tracked := self.tracked.get(id):
                tracked.emitted(now, self.lengths)
                tracked.sync()  # for the lengths
        while self.passed:
            r = self.passed.pop()
            end = EngineCoreOutput(r.request_id, [], finish_reason=FinishReason.ABORT)
            out.setdefault(r.client_index, EngineCoreOutputs()).outputs.append(end)
        with self.failsafe("planning with what was learned"):
            self._believe()
        return out

    def _profile(self, learned: Learned, steps: int) -> Profile:
        model, device = self.vllm_config.model_config, self.vllm_config.device_config.device
        return Profile(
            "learned", str(model.model), str(device), self.parallel_config.world_size,
            cast(Any, learned.roofline), self._blocks()[1] * self.block_size, model.max_model_len,
            f"measured by slos.serving.vllm_plugin in vLLM {vllm.__version__} on {steps} steps",
            self.block_size, learned.margin,
        )  # fmt: skip

    def _believe(self) -> None:
        """Plan with what was learned by now; requests keep the deadlines that they were given."""
        if (cautious := self.belief.news()) is None:
            return
        if self.slo_policy is None:
            said = "a roofline is learned, %s schedules from now on: %s"
            logger.info(said, self.settings.policy, self.belief.roofline)
            self.slo_policy = self.settings.policy_for(cautious, self.lengths)
        elif hasattr(self.slo_policy, "roofline"):
            self.slo_policy.roofline = cautious  # type: ignore[attr-defined]

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Every request ends here, finished or aborted."""
        if tracked := self.tracked.pop(request.request_id, None):
            finished, status = tracked.finished(), request.status
            aborted = status == ERROR or (status == ABORTED and not tracked.stops)
            if aborted:
                self.lengths.aborted(finished)
            else:
                self.lengths.ended(finished, True)
            with self.failsafe("counting requests"):
                self.metrics.ended(tracked, aborted, self.clock())
        return super()._free_request(request, *args, **kwargs)

    def set_pause_state(self, *args: Any, **kwargs: Any) -> None:
        """By vLLM: the next step does not begin with the end of the last one."""
        super().set_pause_state(*args, **kwargs)
        self.belief.busy = False

    def shutdown(self) -> None:
        self.belief.fitter.shutdown()
        super().shutdown()
