"""What one GPU tells in two short calls: profiles of models, and the real engine under load.

`python -m slos.studies.on_gpu profiles --out FOLDER --minutes 4`, then `python -m
slos.studies.on_gpu engine --profile FOLDER/NAME.json --out FOLDER --minutes 8`. Neither needs a
network, Ray or a notebook. Each leaves what it has when its time is up or it is ended. On a CPU
both run with `--models tiny`.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

from slos.core.types import require
from slos.hardware.measure import NO_ENGINE, loadable
from slos.hardware.profiles import profile
from slos.replay import replay
from slos.replay.results import Labels, rows
from slos.serving import launch
from slos.studies.engine_workloads import SMALL, WHOLE, WORKLOADS, Lengths, ramp
from slos.studies.real_engine import OURS, STOCK, Calibrated, starting

# with a draft model after the colon
MODELS = ("opt-13b", "llama-3.1-8b", "opt-6.7b", "opt-6.7b:opt-125m")
WAYS: tuple[dict[str, object], ...] = (
    {},  # as vLLM is by default: compiled, with CUDA graphs
    {"compilation_config": {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}},
    {"enforce_eager": True},
)
"""Tried in turn until the engine starts: not every PyTorch compiles for every vLLM."""
TOGETHER = 3  # engines on the device at a time
STARTING = 90.0  # seconds that engines may take to start before measuring has to begin
HOPELESS: list[str] = []  # of a model whose engine started in no way: others are not tried then
RECORDED = {STOCK: "slos.hardware.recorder.Stock", OURS: "slos.serving.recorded.Recorded"}
PATIENCE = 20.0  # seconds from its arrival in which a request that could still attain is answered


def one_profile(model: str, out: Path, minutes: float, end: float, more: Sequence[str]) -> str:
    """Measure one model in a process of its own, in the first way that its engine starts; returns
    how that ended."""
    name, _, draft = model.partition(":")
    said = "not tried"
    for i, way in enumerate(WAYS):
        if (left := end - time.monotonic()) < 20 or HOPELESS:
            return f"{model}: {said}; no time left, or no engine started"
        engine = way | json.loads(os.environ.get("SLOS_ENGINE", "{}"))
        command = [sys.executable, "-m", "slos.hardware.measure", name, "--out", str(out)]
        command += [
            "--minutes",
            f"{minutes:g}",
            "--turn",
            str(out / "turn"),
            "--engine",
            json.dumps(engine),
            *more,
        ]
        command += ["--draft", draft] if draft else []
        log = out / f"measure-{model.replace(':', '-')}-{i}.log"
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
            try:
                code = process.wait(left - 12)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # it writes what it has
                code = process.wait(10)
        said = f"{model}: way {i} ended with {code}: " + log.read_text()[-300:].replace("\n", " | ")
        print(said, flush=True)
        if code != NO_ENGINE:
            return said
    HOPELESS.append(said)
    return said


def profiles(
    models: Sequence[str], out: Path, minutes: float, more: Sequence[str] = ()
) -> list[str]:
    """Profiles of `models`: engines start side by side, one measures at a time. One line for
    each."""
    end = time.monotonic() + 60 * minutes
    each = (60 * minutes - STARTING) / len(models) / 60
    require(each > 0.05, "--minutes", minutes, f"above {(STARTING + 3 * len(models)) / 60:.1f}")
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda model: one_profile(model, out, each, end, more), models))


def plan(loads: dict[str, list[float]]) -> list[tuple[str, float]]:
    """The loads in the order in which they tell most: the middle ones first, workloads by turns."""
    order = {
        w: sorted(rates, key=lambda r: abs(rates.index(r) - len(rates) / 2))
        for w, rates in loads.items()
    }
    longest = max(map(len, order.values()))
    return [(w, rates[i]) for i in range(longest) for w, rates in order.items() if i < len(rates)]


def engine(
    name: str, out: Path, minutes: float, seconds: float, loads: dict[str, list[float]],
    budgets: dict[str, int], model: str = "", more: Sequence[str] = (),
) -> pd.DataFrame:  # fmt: skip
    """Rows of every request at each load, of both schedulers, written after each run to
    measured.csv in `out`.

    name: a profile, that ours plans with from the start; its model is served. seconds: of arrivals
    in a run. loads: requests per second by workload, found by simulation where empty. budgets:
    tokens of a step by system.
    """
    end = time.monotonic() + 60 * minutes
    known = Calibrated(profile(name), 0.0)
    lengths: Lengths = SMALL if launch.on_cpu() else WHOLE
    if not loads:
        loads = {w: known.loads(w, 60, 1, 4, 0.9) for w in WORKLOADS}
    served, arguments = loadable(model or known.profile.model.split(" +")[0], out)
    arguments |= {"max_model_len": known.profile.max_context}
    flags = [f for k, v in arguments.items() for f in ("--" + k.replace("_", "-"), str(v))]
    tables: list[pd.DataFrame] = []
    with ExitStack() as servers:
        ready = {}
        for system, scheduler in RECORDED.items():
            steps = out / f"steps-{system}.csv"
            config = json.dumps({"steps": str(steps.absolute())})
            mine = [*flags, "--scheduler-cls", scheduler, "--additional-config", config, *more]
            mine += ["--max-num-batched-tokens", str(budgets[system])]
            if system == OURS:
                mine += [
                    "--profile",
                    name,
                    "--save-profile",
                    str((out / "learned.json").absolute()),
                ]
            ready[system] = servers.enter_context(starting(served, system, out, *mine))
            if not launch.on_cpu() and "--kv-cache-memory-bytes" not in more:
                # each looks at the GPU's free memory as it starts, and must not see it change
                ready[system]()
        urls = {system: wait() for system, wait in ready.items()}
        for url in urls.values():
            replay.run(ramp(known.step, 40), url, vocabulary=500, timeout=60)
        print(f"both servers are up and warm, {end - time.monotonic():.0f} s are left", flush=True)
        for workload, rate in plan(loads):
            requests = WORKLOADS[workload](
                rate, max(5, int(rate * seconds)), 0, known.step, lengths
            )
            for system, url in urls.items():
                if end - time.monotonic() < seconds + 10:
                    continue
                begun = time.perf_counter()
                ran = replay.run(requests, url, vocabulary=500, timeout=PATIENCE)
                labels = Labels(workload, system, known.profile.name, rate)
                table = rows(labels, ran).assign(
                    lag=ran.lag, begun=begun, ended=time.perf_counter()
                )
                tables.append(table)
                pd.concat(tables).to_csv(out / "measured.csv", index=False)
                attained = (
                    f"attained {table['attained'].mean():.1%}, clients "
                    f"{table['attained_client'].mean():.1%}"
                )
                said = (
                    f"{workload} {rate:g}/s {system}: {attained}, {len(ran.failures)} cut off, lag "
                    f"{ran.lag:.3f} s"
                )
                print(f"{said}, {end - time.monotonic():.0f} s left", flush=True)
    return pd.concat(tables, ignore_index=True)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slos.studies.on_gpu", description=__doc__)
    parser.add_argument("what", choices=("profiles", "engine"))
    parser.add_argument("--out", type=Path, default=Path("results/measured"), metavar="FOLDER")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="in all (4 for profiles, 8 for the engine)"
    )
    parser.add_argument(
        "--models",
        default=",".join(MODELS),
        help="for profiles, MODEL or MODEL:DRAFT (%(default)s)",
    )
    parser.add_argument("--profile", default="", help="for the engine: a profile's name or file")
    parser.add_argument(
        "--model", default="", help="for the engine: what to serve (the profile's model)"
    )
    parser.add_argument(
        "--seconds", type=float, default=40.0, help="of arrivals in each run (%(default)g)"
    )
    parser.add_argument(
        "--loads", type=json.loads, default={}, help='such as {"bursty": [10, 20]} (by simulation)'
    )
    parser.add_argument(
        "--budgets",
        type=json.loads,
        default={},
        help=f'such as {{"{STOCK}": 2048}}: tokens of a step',
    )
    given, more = parser.parse_known_args(argv)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "profiles":
        told = profiles(given.models.split(","), given.out, given.minutes or 4.0, more)
        return 0 if any("ended with 0" in line for line in told) else 1
    budgets = {STOCK: 2048, OURS: 2048} | given.budgets
    table = engine(
        given.profile,
        given.out,
        given.minutes or 8.0,
        given.seconds,
        given.loads,
        budgets,
        given.model,
        more,
    )
    return 0 if len(table) else 1


if __name__ == "__main__":
    sys.exit(main())
