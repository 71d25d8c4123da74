"""Steps of every composition on one engine of vLLM's: decodes of many numbers and contexts, alone
and with chunks of prompts beside them, or with drafts."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from slos.hardware.recorder import Step

MOST_TOKENS = 8192  # of a step
MOST_SEQS = 512
MOST_CONTEXT = 65536  # tokens of all requests: filling more takes longer than it tells
# tokens of prompts in a step
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8000)
BESIDE = 2  # chunks, drawn at random, that are tried beside each number of decodes
STEPS = 6  # steps of decodes alone that are averaged
LASTS = 60  # steps, at most, for which a number of decodes is needed
SETTLE = 2  # steps of decodes before and after those that are asked for


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of `steps` consecutive steps of one composition; `case` says what was asked for.

    tokens, requests, decodes, draft_steps and context are per step, as in `recorder.Step`; seconds
    are wall clock."""

    case: str
    tokens: float
    requests: float
    decodes: float
    draft_steps: float
    context: float
    seconds: float
    steps: int


class TimeUp(Exception):
    """The minutes are over."""


class Bench:
    """One engine in this process, driven step by step.

    Every composition of a step is had by public means: the budget of tokens, requests that are
    added, and requests that are aborted."""

    def __init__(self, model: str, draft: str = "", **arguments: Any) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        if draft:
            spec = {"method": "draft_model", "model": draft, "num_speculative_tokens": 8}
            arguments["speculative_config"] = spec
        usual = {
            "max_num_batched_tokens": MOST_TOKENS, "max_num_seqs": MOST_SEQS,
            "enable_prefix_caching": False, "disable_log_stats": True, "skip_tokenizer_init": True,
            "scheduler_cls": "slos.hardware.recorder.Stock",
        }  # fmt: skip
        asked = EngineArgs(model=model, **(usual | arguments))
        self.engine: Any = LLMEngine.from_engine_args(asked)
        core = self.engine.engine_core.engine_core
        self.config, self.scheduler = core.vllm_config, core.scheduler
        self.drafts = 8 if draft else 0
        blocks = self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        self.kv_tokens = blocks * self.scheduler.block_size
        self.max_context = self.config.model_config.max_model_len
        self.made, self.deadline = 0, time.monotonic() + 3600
        self.open: list[str] = []  # requests that were not aborted and have not ended
        self.rows: list[Row] = []
        self.missing: list[int] = []  # contexts, in tokens, at which not all was measured
        self.rng = np.random.default_rng(0)

    @property
    def batched(self) -> int:
        """Most tokens of a step."""
        return self.config.scheduler_config.max_num_batched_tokens

    @property
    def prefilling(self) -> bool:
        """Whether there are requests without a token."""
        return any(not r.num_output_tokens for r in self.scheduler.requests.values())

    @property
    def left(self) -> int:
        """Tokens until the first of the requests ends."""
        live = [self.scheduler.requests.get(id) for id in self.open]
        return min((r.max_tokens - r.num_output_tokens if r else 0 for r in live), default=0)

    def add(self, count: int, prompt: int, output: int) -> None:
        from vllm import SamplingParams

        how: Any = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        params = SamplingParams(max_tokens=output, **how)
        vocabulary = self.config.model_config.get_vocab_size()
        for _ in range(count):
            self.made += 1
            ids = self.rng.integers(5, vocabulary, prompt).tolist()
            self.engine.add_request(str(self.made), {"prompt_token_ids": ids}, params)
            self.open.append(str(self.made))

    def run(self, steps: int, budget: int | None = None) -> list[Step]:
        """Execute so many steps of at most `budget` tokens, or fewer where nothing is left; the
        steps."""
        scheduler, done = self.scheduler, len(self.scheduler.steps)
        scheduler.max_num_scheduled_tokens = min(budget or self.batched, self.batched)
        while self.engine.has_unfinished_requests() and len(scheduler.steps) < done + steps:
            if time.monotonic() > self.deadline:
                raise TimeUp
            finished = {o.request_id for o in self.engine.step() if o.finished}
            if finished:
                self.open = [id for id in self.open if id not in finished]
        return scheduler.steps[done:]

    def fill(self, count: int, context: int) -> None:
        """So many requests that have `context` tokens and decode until they are aborted."""
        self.add(count, context, self.max_context - context)
        while self.prefilling:
            self.run(1)

    def decodes(self, case: str) -> float:
        """Seconds of a step in which the present requests decode, and nothing else happens."""
        self.run(SETTLE)
        steps = self.run(STEPS)
        self.rows.append(averaged(case, steps, sum(s.seconds for s in steps)))
        return float(np.median([s.seconds for s in steps]))

    def beside(self, case: str, chunk: int, alone: float) -> None:
        """Steps with `chunk` tokens of prompts beside the decodes, which take `alone` seconds by
        themselves.

        With asynchronous scheduling the end of a step is noticed late where a request begins or
        ends. So whole runs are timed that begin and end with decodes alone, and those are taken
        off."""
        count, steps = len(self.open), 2 if chunk > 1024 else 3 if chunk > 256 else 6
        last = self.scheduler.steps[-1].end
        before = len(self.scheduler.steps)
        self.run(SETTLE)
        each = min(steps * chunk, self.max_context - 2)
        left = steps * chunk
        while left > 0:
            self.add(1, min(each, left), 1)
            left -= each
        while self.prefilling or len(self.open) > count:
            self.run(1, count + chunk)
        self.run(SETTLE)
        ran = self.scheduler.steps[before:]
        mixed = [s for s in ran if s.requests > s.decodes]
        rest = alone * (len(ran) - len(mixed))
        self.rows.append(averaged(case, mixed, ran[-1].end - last - rest))

    def keep(self, count: int) -> None:
        """Abort all but the first `count` requests."""
        if gone := self.open[count:]:
            self.engine.abort_request(gone)
        self.open = self.open[:count]
        if not count:
            core = self.engine.engine_core
            while self.scheduler.in_flight:
                core.get_output()
            self.scheduler.pause()


def sizes(most: int) -> list[int]:
    """Powers of two up to `most`, and `most`, the largest first."""
    return sorted({most, *(2**i for i in range(most.bit_length()) if 2**i <= most)}, reverse=True)


def averaged(case: str, steps: Sequence[Step], seconds: float) -> Row:
    """One row for steps that took so many seconds together."""
    counts = [(s.tokens, s.requests, s.decodes, s.draft_steps, s.context) for s in steps]
    means: list[float] = np.mean(counts, axis=0).tolist()
    tokens, requests, decodes, drafts, context = means
    each = seconds / len(steps)
    return Row(case, tokens, requests, decodes, drafts, context, each, len(steps))


def level(bench: Bench, context: int, most: int = MOST_SEQS, every: bool = False) -> None:
    """Steps of decodes at `context` tokens each, from many to few, alone and with chunks of prompts
    beside them.

    every: try every chunk beside a single decode.
    """
    room, each = min(MOST_CONTEXT, bench.kv_tokens * 9 // 10), context + 160
    seats = bench.config.scheduler_config.max_num_seqs - 2
    many = max(1, min(most, seats, room // each))
    bench.fill(many, context)
    for count in sizes(many):
        bench.keep(count)
        if bench.left < LASTS:
            bench.keep(0)
            bench.fill(count, context)
        alone = bench.decodes(f"{count} decodes at {context}")
        budget, free = bench.batched - count, room - count * each
        fitting = [c for c in CHUNKS if c <= budget and min(6 * c, 3 * MOST_TOKENS) < free]
        few = fitting if count == 1 and every else bench.rng.permutation(fitting)[:BESIDE].tolist()
        for chunk in few:
            bench.beside(f"{count} decodes at {context} beside {chunk}", chunk, alone)
    bench.keep(0)


def drafted(bench: Bench, context: int, most: int) -> None:
    """Steps of decodes with drafts, from many to few; of every length where the engine proposes as
    many as are asked for, as its second model runner does not."""
    lengths = (bench.drafts,) if bench.scheduler.use_v2_model_runner else (8, 4, 2, 1, 0)
    bench.fill(most, context)
    for count in sizes(most)[::2]:
        bench.keep(count)
        for length in lengths:
            bench.scheduler.drafts = length
            bench.run(1)  # verifies what was proposed before
            bench.decodes(f"{count} decodes at {context} drafting {length}")
    bench.scheduler.drafts = None
    bench.keep(0)


def measure(bench: Bench, seconds: float, keep: Callable[[list[Row]], None]) -> list[Row]:
    """Rows of measured steps: rounds over the grid until the time is up, after some to warm up that
    are left out.

    keep: is given all rows so far now and then, so that they are not lost with the process.
    """
    longest = bench.max_context
    levels = [c for c in (64, 512, 2048, 4096) if c < longest * 3 // 4] + [longest * 3 // 4]
    least = max(1, min(longest, bench.kv_tokens) // 4)
    levels = [c for c in levels if 2 * c < bench.kv_tokens] or [least]
    bench.deadline = time.monotonic() + seconds
    order = [*dict.fromkeys([levels[0], levels[-1], *levels])]
    bench.missing = order
    try:
        level(bench, levels[0], 32)
        bench.rows.clear()
        while True:
            for context in order:
                if bench.drafts:
                    drafted(bench, context // 2, min(128, bench.kv_tokens // longest))
                else:
                    level(bench, context, every=context == levels[0])
                bench.missing = [c for c in bench.missing if c != context]
                keep(bench.rows)
    except TimeUp:
        return bench.rows
