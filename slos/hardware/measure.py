"""Measures how long steps of vLLM take on this machine, and fits a profile to them.

`python -m slos.hardware.measure MODEL --out FOLDER`: MODEL is a folder or name that vLLM can load,
or one of the shapes of `slos.hardware.shapes`, which get random weights. FOLDER gets a row for each
measured step (steps-NAME.csv), and a profile (NAME.json) for the commands and notebooks of
this kit."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from slos.files import write_whole
from slos.hardware.fit import fitted
from slos.hardware.grid import Bench, Row, TimeUp, measure
from slos.hardware.profiles import Profile, save
from slos.hardware.shapes import SHAPES, write

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_HOST_IP": "127.0.0.1", "VLLM_CPU_KVCACHE_SPACE": "2",
}  # fmt: skip
"""For an engine in this process: the scheduler is asked what it did."""

NO_ENGINE = 3  # the exit status where vLLM did not start: another way of starting it may do


def _time_is_up(*_: object) -> None:
    raise TimeUp


def device() -> tuple[str, str]:
    """The device's name, and the same as a part of a profile's name."""
    import torch

    if not torch.cuda.is_available():
        return f"CPU, {torch.get_num_threads()} threads", "cpu"
    name = torch.cuda.get_device_name()
    return name, name.split()[1].split("-")[0].lower() if " " in name else name.lower()


def seats() -> int:
    """Requests that vLLM runs at once by default where it serves on this device (`EngineArgs` in
    vllm/engine/arg_utils.py): more on a GPU of 70 GiB or more that is no A100."""
    import torch

    if not torch.cuda.is_available():
        return 256
    found = torch.cuda.get_device_properties(0)
    return 1024 if found.total_memory >= 70 << 30 and "a100" not in found.name.lower() else 256


def kv_room(bench: Bench) -> int:
    """Tokens of KV cache that vLLM would have with the device to itself, at its usual share of the
    memory.

    What the engine at hand has, unless it may share the device; then its own peak beside the cache
    is taken off the share. Of several GPUs each has a process, whose peak is not known here."""
    import torch
    from vllm.config import CacheConfig

    if not torch.cuda.is_available() or bench.config.parallel_config.world_size > 1:
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

    found = fitted([(r.tokens, r.draft_steps, r.context, r.seconds) for r in rows])
    versions = f"vLLM {vllm.__version__}, PyTorch {torch.__version__}"
    steps = sum(r.steps for r in rows)
    told = f"measured by slos.hardware.measure: {versions}, {how}, {steps} steps; {found.told}"
    if bench.missing:  # the time was up, and such a fit may be far off
        contexts = ", ".join(map(str, bench.missing))
        told += f"; not all was measured at contexts of {contexts} tokens: give more --minutes"
    gpus = bench.config.parallel_config.world_size
    return Profile(
        name, label, device()[0], gpus, found.fit.roofline, kv_room(bench), bench.max_context,
        told, bench.scheduler.block_size, round(found.margin, 3), seats(),
    )  # fmt: skip


def write_rows(rows: Sequence[Row], path: Path) -> None:
    write_whole(path, pd.DataFrame(rows).round({"seconds": 7}).to_csv(index=False))


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
    add = parser.add_argument
    add("model", help=f"a folder, a name that vLLM can load, or a shape: {', '.join(SHAPES)}")
    add("--draft", default="", metavar="MODEL", help="also measure steps with drafts of this model")
    add("--out", type=Path, default=Path("results/measured"), metavar="FOLDER")
    add("--name", default="", help="name of the profile (the model's and the device's)")
    up = "minutes of measuring, once the engine is up (%(default)g)"
    add("--minutes", type=float, default=2.0, help=up)
    add("--max-context", type=int, metavar="N", help="in tokens (the model's, at most 8192)")
    add("--engine", type=json.loads, default={}, metavar="JSON", help="more arguments for vLLM")
    turn = "lock file: of several runs with the same one, one measures at a time"
    add("--turn", default="", metavar="FILE", help=turn)
    return parser


def loadable(model: str, folder: Path) -> tuple[str, dict[str, Any]]:
    """What vLLM is to load, and the arguments that a shape without weights needs."""
    if model not in SHAPES:
        return model, {}
    path = write(SHAPES[model], folder / "shapes" / model)
    return str(path), {"load_format": "dummy", "dtype": "bfloat16"}


def main(argv: Sequence[str] | None = None) -> int:
    parser = options()
    given = parser.parse_args(argv)
    if not given.minutes > 0:
        parser.error(f"--minutes = {given.minutes:g} must be positive")
    if not isinstance(given.engine, dict):
        parser.error(f"--engine = {given.engine!r} must be an object of vLLM's arguments")
    os.environ.update(ENVIRONMENT | os.environ)
    given.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    model, arguments = loadable(given.model, given.out)
    draft = loadable(given.draft, given.out)[0] if given.draft else ""
    label = Path(given.model).name + (f" + {Path(given.draft).name} draft" if draft else "")
    parts = Path(given.model).name.lower(), "draft" if draft else "", device()[1]
    name = given.name or "-".join(filter(None, parts))
    longest = SHAPES.get(given.model, {}).get("max_position_embeddings")
    limit = given.max_context or (min(longest, 8192) if longest else None)
    arguments |= ({"max_model_len": limit} if limit else {}) | given.engine
    try:
        with turn(given.turn, alone=False):
            bench = Bench(model, draft, **arguments)
    except Exception:
        traceback.print_exc()
        return NO_ENGINE
    took = time.monotonic() - began
    print(f"{name}: the engine is up after {took:.0f} s, with {bench.kv_tokens} tokens of KV cache")
    path = given.out / f"steps-{name}.csv"
    signal.signal(signal.SIGTERM, _time_is_up)
    try:
        with turn(given.turn, alone=True):
            rows = measure(bench, 60 * given.minutes, lambda rows: write_rows(rows, path))
    except TimeUp:
        sys.exit(f"{name}: ended before the first step was measured")
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what was measured is written within seconds
    write_rows(rows, path)
    graphs = bench.config.compilation_config
    how = f"compilation mode {int(graphs.mode or 0)}, CUDA graphs {graphs.cudagraph_mode.name}"
    profile = profile_of(name, label, bench, rows, how)
    save(profile, given.out / f"{name}.json")
    print(f"{name}: {profile.source}\n{profile.roofline}\n{given.out / name}.json", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
