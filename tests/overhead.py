"""What the scheduler adds to a step of vLLM's: `python tests/overhead.py`, with the repository on
the Python path.

Steps with 64 requests running and 64 waiting, in the real engine core over an executor without a
model, under the stock scheduler and under ours in turn. A step's time is that of its `schedule` and
its `update_from_output`; beside it stands the CPU time of the engine's thread, which on a busy
machine is the truer one.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from time import perf_counter, thread_time
from typing import NamedTuple

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import numpy as np
from engine import add, engine, profile_file

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.serving.tiny_model import write

RUNNING = WAITING = 64
ROOFLINE = Roofline((Plane(1e-4, 0.0, 5e-3), Plane(1.2e-4, 0.0, 2e-3)), k_ctx=1e-7)
# seconds to the first token, and what is short: those waiting are candidates, or best effort
LOADS = {
    "patient, short of seats": (30.0, "seats"),
    "patient, short of KV blocks": (30.0, "blocks"),
    "late, short of seats": (0.5, "seats"),
    "late, short of KV blocks": (0.5, "blocks"),
}


class Overhead(NamedTuple):
    """Milliseconds added to a step: the difference of the medians, and the 99th percentile to the
    stock median."""

    steps: int
    stock_ms: float
    median_ms: float
    p99_ms: float
    cpu_median_ms: float
    cpu_p99_ms: float


def step_times(
    model: Path, ttft: float, short_of: str, steps: int, stock: bool, learn: bool, drafts: int
) -> np.ndarray:
    """Seconds, by the wall and of the thread's CPU, of so many steps with as many running and
    waiting: [steps, 2]."""
    seats, blocks = (RUNNING, 1100) if short_of == "seats" else (256, 700)
    slos = {"learn": learn, "profile": profile_file(model, ROOFLINE)}
    core, clock = engine(
        model, ROOFLINE, slos, blocks=blocks, max_seqs=seats, drafts=drafts, stock=stock
    )
    dice, spent, seconds, made = Random(0), np.zeros(2), [], 0
    for name in ("schedule", "update_from_output"):

        def timed(*args, call=getattr(core.scheduler, name)):  # noqa: B008
            nonlocal spent
            start = perf_counter(), thread_time()
            result = call(*args)
            spent += perf_counter() - start[0], thread_time() - start[1]
            return result

        setattr(core.scheduler, name, timed)
    while len(seconds) < steps:
        while len(core.scheduler.requests) - len(core.scheduler.running) < WAITING:
            slo, size = SLO(dice.choice([0.05, 0.1]), ttft=ttft), dice.randint(50, 150)
            r = Request(f"r{made}", clock.now, (Stage(size, dice.randint(50, 150), slo),))
            add(core, r, [dice.randint(5, 499) for _ in range(size)])
            made += 1
        full = len(core.scheduler.running) >= 0.9 * RUNNING
        spent = np.zeros(2)
        _, executed = core.step_fn()
        core.post_step(executed)
        if full and executed:
            seconds.append(spent)
    core.shutdown()
    return np.array(seconds)


def overhead(
    model: Path, ttft: float, short_of: str, steps: int = 500, learn: bool = False, drafts: int = 0
) -> Overhead:
    """Measure both schedulers, one after the other."""
    stock, ours = (
        step_times(model, ttft, short_of, steps, s, learn, drafts) for s in (True, False)
    )
    base = 1e3 * np.median(stock, axis=0)
    (median, cpu_median), (p99, cpu_p99) = (
        1e3 * np.quantile(ours, q, axis=0) - base for q in (0.5, 0.99)
    )
    return Overhead(steps, base[0], median, p99, cpu_median, cpu_p99)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python tests/overhead.py", description=__doc__)
    parser.add_argument(
        "--steps", type=int, default=500, help="of each scheduler and load (default: %(default)s)"
    )
    parser.add_argument(
        "--drafts", type=int, default=0, help="of a draft model (default: %(default)s)"
    )
    parser.add_argument(
        "--learn", action="store_true", help="with the roofline being learned meanwhile"
    )
    args = parser.parse_args()
    with TemporaryDirectory() as folder:
        model = write(f"{folder}/tiny", hidden=64, layers=2)
        for name, load in LOADS.items():
            o = overhead(model, *load, steps=args.steps, learn=args.learn, drafts=args.drafts)
            print(
                f"{name:28} {o.steps} steps, stock {o.stock_ms:.2f} ms; added {o.median_ms:.2f} "
                f"ms (median), {o.p99_ms:.2f} ms (P99); of CPU {o.cpu_median_ms:.2f} ms, "
                f"{o.cpu_p99_ms:.2f} ms",
                flush=True,
            )


if __name__ == "__main__":
    main()
