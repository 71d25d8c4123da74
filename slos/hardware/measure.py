"""Measures how long steps of vLLM take on this machine, and fits a profile to them.

`python -m slos.hardware.measure MODEL --out FOLDER`: MODEL is a folder or name that vLLM can load,
or one of the shapes of `slos.hardware.shapes`, which get random weights. FOLDER gets a row of every
measured step (steps-NAME.csv) and a profile (NAME.json) that every command and notebook of this kit
takes.
"""

from __future__ import annotations

import argparse
import csv
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slos.core.types import require
from slos.hardware.fit import OUTLIER, Fit, fit
from slos.hardware.profiles import Profile, save
from slos.hardware.shapes import SHAPES, write

if TYPE_CHECKING:
    from slos.hardware.recorder import Step

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_KVCACHE_SPACE": "2",
}  # fmt: skip
"""For an engine in this process: the scheduler is asked what it did."""

MOST_TOKENS = 8192  # of a step
MOST_SEQS = 512
MOST_CONTEXT = 65536  # tokens of all requests: filling more takes longer than it tells
# tokens of prompts in a step
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8000)
BESIDE = 2  # chunks, drawn at random, that are tried beside each number of decodes
STEPS = 6  # steps of decodes alone that are averaged
SETTLE = 2  # steps of decodes before and after those that are asked for
TILES = (1, 16, 64, 128)
LEAST = 8  # rows for a fit
QUANTILE = 0.75  # of the steps that must not take longer than `margin` times the roofline


@dataclass(frozen=True, slots=True)
class Row:
    """The mean of `steps` consecutive steps of one composition; `case` says what was asked for.

    tokens, requests, decodes, draft_steps and context are per step, as in `recorder.Step`; seconds
    are wall clock.
    """

    case: str
    tokens: float
    requests: float
    decodes: float
    draft_steps: float
    context: float
    seconds: float
    steps: int


NO_ENGINE = 3  # the exit status where vLLM did not start: another way of starting it may do
COLUMNS = tuple(Row.__dataclass_fields__)


class TimeUp(Exception):
    """The minutes are over."""


def _time_is_up(*_: object) -> None:
    raise TimeUp


class Bench:
    """One engine in this process, driven step by step.

    Every composition of a step is had by public means: the budget of tokens, requests that are
    added, and requests that are aborted.
    """

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
        self.engine: Any = LLMEngine.from_engine_args(
            EngineArgs(model=model, **(usual | arguments))
        )
        core = self.engine.engine_core.engine_core
        self.config, self.scheduler = core.vllm_config, core.scheduler
        self.drafts = 8 if draft else 0
        blocks = self.scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1
        self.kv_tokens = blocks * self.scheduler.block_size
        self.max_context = self.config.model_config.max_model_len
        self.made, self.deadline = 0, time.monotonic() + 3600
        self.open: list[str] = []  # requests that were not aborted and have not ended
        self.rows: list[Row] = []
        self.rng = np.random.default_rng(0)

    @property
    def batched(self) -> int:
        """Most tokens of a step."""
        return self.config.scheduler_config.max_num_batched_tokens

    def add(self, count: int, prompt: int, output: int) -> None:
        from vllm import SamplingParams

        params = SamplingParams(
            temperature=0.0, max_tokens=output, ignore_eos=True, detokenize=False
        )
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
        while any(r.num_output_tokens < 1 for r in self.scheduler.requests.values()):
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
        off.
        """
        count, steps = len(self.open), 2 if chunk > 1024 else 3 if chunk > 256 else 6
        last = self.scheduler.steps[-1].end
        before = len(self.scheduler.steps)
        self.run(SETTLE)
        each = min(steps * chunk, self.max_context - 2)
        left = steps * chunk
        while left > 0:
            self.add(1, min(each, left), 1)
            left -= each
        while (
            any(not r.num_output_tokens for r in self.scheduler.requests.values())
            or len(self.open) > count
        ):
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
    tokens, requests, decodes, drafts, context = np.mean(counts, axis=0).tolist()
    each = seconds / len(steps)
    return Row(case, tokens, requests, decodes, drafts, context, each, len(steps))


def level(bench: Bench, context: int, most: int = MOST_SEQS, every: bool = False) -> None:
    """Steps of decodes at `context` tokens each, from many to few, alone and with chunks of prompts
    beside them.

    every: try every chunk beside a single decode.
    """
    room = min(MOST_CONTEXT, bench.kv_tokens * 9 // 10)
    many = max(
        1, min(most, bench.config.scheduler_config.max_num_seqs - 2, room // (context + 160))
    )
    bench.fill(many, context)
    for count in sizes(many):
        bench.keep(count)
        alone = bench.decodes(f"{count} decodes at {context}")
        free = room - count * (context + 160)
        fitting = [
            c for c in CHUNKS if count + c <= bench.batched and min(6 * c, 3 * MOST_TOKENS) < free
        ]
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
    levels = [c for c in levels if 2 * c < bench.kv_tokens] or [
        max(1, min(longest, bench.kv_tokens) // 4)
    ]
    bench.deadline = time.monotonic() + seconds
    try:
        level(bench, levels[0], 32)
        bench.rows.clear()
        while True:
            for context in dict.fromkeys([levels[0], levels[-1], *levels]):
                if bench.drafts:
                    drafted(bench, context // 2, min(128, bench.kv_tokens // longest))
                else:
                    level(bench, context, every=context == levels[0])
                keep(bench.rows)
    except TimeUp:
        return bench.rows


@dataclass(frozen=True, slots=True)
class Measured:
    """A fitted roofline with its error by batch size, and the margin that `QUANTILE` of the steps
    stay within."""

    fit: Fit
    margin: float
    by_size: dict[str, float]

    @property
    def told(self) -> str:
        errors = ", ".join(
            f"{size} tokens {100 * error:.1f} %" for size, error in self.by_size.items()
        )
        return f"R2 {self.fit.r2:.4f}, median error {errors}"


def fitted(rows: Sequence[Row], planes: int = 3) -> Measured:
    """The roofline with the tile that explains `rows` best; rows of pauses of the machine are left
    out.

    Raises ValueError if there are too few rows.
    """
    least = 0.8 * min((r.seconds for r in rows if r.decodes == r.requests), default=0.0)
    steps = [(r.tokens, r.draft_steps, r.context, r.seconds) for r in rows if r.seconds > least]
    require(
        len(steps) >= LEAST,
        "measured cases",
        len(steps),
        f"at least {LEAST}",
        "give it more minutes",
    )
    usual, planes = steps, min(planes, len(steps) // 4)
    for _ in range(3):
        first = fit(usual, 1, context=True).roofline
        near = [s for s in steps if 1 / OUTLIER < s[3] / first.time(*s[:3]) < OUTLIER]
        usual = near if len(near) >= max(LEAST, len(steps) // 2) else usual
    found = [fit(usual, planes, context=True, tile=tile) for tile in TILES]
    best = min(found, key=lambda f: float(np.mean(f.errors)))
    ratios = np.array([s[3] / best.roofline.time(*s[:3]) for s in usual])
    tokens, by_size = np.array([s[0] for s in usual]), {}
    for low, high in ((1, 16), (17, 128), (129, 1024), (1025, MOST_TOKENS)):
        if len(mine := best.errors[(low <= tokens) & (tokens <= high)]):
            by_size[f"{low}-{high}"] = float(np.median(mine))
    return Measured(best, max(1.0, float(np.quantile(ratios, QUANTILE))), by_size)


def device() -> tuple[str, str]:
    """The device's name, and the same as a part of a profile's name."""
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads", "cpu"
    name = torch.cuda.get_device_name()
    return name, name.split()[1].split("-")[0].lower() if " " in name else name.lower()


def kv_room(bench: Bench) -> int:
    """Tokens of KV cache that vLLM would have with the device to itself, at its usual share of the
    memory.

    What the engine at hand has, unless it shares the device; then its own peak beside the cache is
    taken off the share.
    """
    import torch
    from vllm.config import CacheConfig

    if not torch.cuda.is_available():
        return bench.kv_tokens
    held = sum(t.size for t in bench.scheduler.kv_cache_config.kv_cache_tensors)
    a_token = held / (bench.kv_tokens + bench.scheduler.block_size)
    beside = torch.cuda.max_memory_reserved() - held
    share = CacheConfig().gpu_memory_utilization
    return int((share * torch.cuda.get_device_properties(0).total_memory - beside) / a_token)


def profile_of(name: str, label: str, bench: Bench, rows: Sequence[Row], how: str) -> Profile:
    """The profile of what was measured."""
    import torch
    import vllm

    found = fitted(rows)
    versions = f"vLLM {vllm.__version__}, PyTorch {torch.__version__}"
    source = (
        f"measured by slos.hardware.measure: {versions}, {how}, {sum(r.steps for r in rows)} "
        f"steps; {found.told}"
    )
    return Profile(
        name, label, device()[0], bench.config.parallel_config.world_size, found.fit.roofline,
        kv_room(bench), bench.max_context, source, bench.scheduler.block_size,
        round(found.margin, 3),
    )  # fmt: skip


def write_rows(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        writer.writerows(astuple(replace(r, seconds=round(r.seconds, 7))) for r in rows)


@contextmanager
def turn(path: str, alone: bool) -> Iterator[None]:
    """Wait for others on this device that were told the same file: engines start together, one
    measures alone."""
    if not path:
        yield
        return
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        yield


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.hardware.measure", description=__doc__)
    parser.add_argument(
        "model", help=f"a folder, a name that vLLM can load, or a shape: {', '.join(SHAPES)}"
    )
    parser.add_argument(
        "--draft", default="", metavar="MODEL", help="measure steps with drafts of this one, too"
    )
    parser.add_argument("--out", type=Path, default=Path("results/measured"), metavar="FOLDER")
    parser.add_argument("--name", default="", help="of the profile (the model's and the device's)")
    parser.add_argument(
        "--minutes",
        type=float,
        default=2.0,
        help="of measuring, once the engine is up (%(default)g)",
    )
    parser.add_argument(
        "--max-context", type=int, metavar="N", help="tokens (the model's, at most 8192)"
    )
    parser.add_argument(
        "--engine", type=json.loads, default={}, metavar="JSON", help="more arguments for vLLM"
    )
    parser.add_argument(
        "--turn",
        default="",
        metavar="FILE",
        help="of several started at once, one measures at a time",
    )
    return parser


def loadable(model: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """What vLLM is to load, and the arguments that a shape without weights needs."""
    if model not in SHAPES:
        return model, {}
    return str(write(model, folder / "shapes" / model)), {
        "load_format": "dummy",
        "dtype": "bfloat16",
    }


def main(argv: Sequence[str] | None = None) -> int:
    given = options().parse_args(argv)
    require(given.minutes > 0, "--minutes", given.minutes, "positive")
    os.environ.update(ENVIRONMENT | {k: os.environ[k] for k in ENVIRONMENT if k in os.environ})
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model, arguments = loadable(given.model, given.out)
    draft = loadable(given.draft, given.out)[0] if given.draft else ""
    label = Path(given.model).name + (f" + {Path(given.draft).name} draft" if draft else "")
    name = given.name or "-".join(
        [label.split(" +")[0].lower(), *(["draft"] if draft else []), device()[1]]
    )
    longest = SHAPES.get(given.model, {}).get("max_position_embeddings")
    limit = given.max_context or (min(longest, 8192) if longest else None)
    arguments |= ({"max_model_len": limit} if limit else {}) | given.engine
    try:
        with turn(given.turn, alone=False):
            bench = Bench(model, draft, **arguments)
    except Exception:
        traceback.print_exc()
        return NO_ENGINE
    print(
        f"{name}: the engine is up after {time.monotonic() - began:.0f} s, {bench.kv_tokens} "
        "tokens of KV cache"
    )
    path = given.out / f"steps-{name}.csv"
    signal.signal(signal.SIGTERM, _time_is_up)
    try:
        with turn(given.turn, alone=True):
            rows = measure(bench, 60 * given.minutes, lambda rows: write_rows(rows, path))
    except TimeUp:
        sys.exit(f"{name}: ended before the first step was measured")
    write_rows(rows, path)
    graphs = bench.config.compilation_config
    how = f"compilation mode {int(graphs.mode or 0)}, CUDA graphs {graphs.cudagraph_mode.name}"
    profile = profile_of(name, label, bench, rows, how)
    save(profile, given.out / f"{name}.json")
    print(f"{name}: {profile.source}\n{profile.roofline}\n{given.out / name}.json", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
