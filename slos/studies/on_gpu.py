"""What one GPU tells in two short calls: profiles of models, and the real engine under load.

`python -m slos.studies.on_gpu profiles --out FOLDER --minutes 4`, then `python -m
slos.studies.on_gpu engine --profile FOLDER/NAME.json --out FOLDER --minutes 8`. Neither needs a
network, Ray or a notebook. Each leaves what it has when its time is up or it is ended. On a CPU
both run with `--models tiny`."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import pandas as pd

from slos.core.types import require
from slos.evaluation.sizes import check_names
from slos.hardware.measure import NO_ENGINE, loadable
from slos.hardware.profiles import profile, save
from slos.policies import OURS
from slos.replay import replay
from slos.replay.results import Labels, rows
from slos.serving import launch
from slos.studies.engine_workloads import SMALL, WHOLE, WORKLOADS, ramp
from slos.studies.real_engine import BUDGET, STOCK, Calibrated, first_token, learned_by, starting

MODELS = ("opt-13b", "llama-3.1-8b", "opt-6.7b", "opt-6.7b:opt-125m")  # the last with drafts
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
WARMING = 80  # requests
KILLED = 10.0  # seconds after SIGTERM
PATIENCE = 20.0  # seconds from its arrival in which a request that could still attain is answered


def one_profile(model: str, out: Path, minutes: float, end: float, more: Sequence[str]) -> str:
    """Measure one model in a process of its own, in the first way that its engine starts; returns
    how that ended."""
    name, _, draft = model.partition(":")
    command = [sys.executable, "-m", "slos.hardware.measure", name, "--out", str(out)]
    command += ["--minutes", f"{minutes:g}", "--turn", str(out / "turn"), *more]
    command += ["--draft", draft] if draft else []
    said = "not tried"
    for i, way in enumerate(WAYS):
        left = end - time.monotonic()
        if left < 20 or HOPELESS:
            return f"{model}: {said}; no time left, or no engine started"
        engine = way | json.loads(os.environ.get("SLOS_ENGINE", "{}"))
        log = out / f"measure-{model.replace(':', '-')}-{i}.log"
        with log.open("w") as file:
            how = {"stdout": file, "stderr": file, "start_new_session": True}
            process = subprocess.Popen([*command, "--engine", json.dumps(engine)], **how)
            try:
                code = process.wait(left - 12)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)  # it writes what it has
                with suppress(subprocess.TimeoutExpired):
                    process.wait(KILLED)
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # with its workers
                code = process.wait()
        said = f"{model}: way {i} ended with {code}: {log.read_text()[-300:]}".replace("\n", " | ")
        print(said, flush=True)
        if code != NO_ENGINE:
            return said
    HOPELESS.append(said)
    return said


def profiles(
    models: Sequence[str], out: Path, minutes: float, more: Sequence[str] = ()
) -> list[str]:
    """Profiles of `models`: engines start side by side, one measures at a time. A line for each."""
    end = time.monotonic() + 60 * minutes
    each = (60 * minutes - STARTING) / len(models) / 60
    require(each > 0.05, "--minutes", minutes, f"above {(STARTING + 3 * len(models)) / 60:.1f}")
    with ThreadPoolExecutor(TOGETHER) as pool:
        return list(pool.map(lambda model: one_profile(model, out, each, end, more), models))


@dataclass(frozen=True)
class Engine:
    """The real engine under load, of both schedulers.

    name: a profile, that ours plans with from the start; its model is served unless `model` is
    another. seconds: of arrivals in a run. loads: requests per second by workload, those that tell
    most first, found by simulation where there are none. budgets: tokens of a step by system.
    more: arguments for vLLM.
    """

    name: str
    out: Path
    seconds: float = 40.0
    loads: dict[str, list[float]] = field(default_factory=dict)
    budgets: dict[str, int] = field(default_factory=dict)
    model: str = ""
    more: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_names("workload", self.loads, WORKLOADS)
        check_names("system", self.budgets, RECORDED)

    @property
    def known(self) -> Calibrated:
        return Calibrated(profile(self.name), 0.0, SMALL if launch.on_cpu() else WHOLE)

    def plan(self) -> list[tuple[str, float]]:
        """Workloads and their loads by turns; of loads that are found the middle ones first."""
        order = self.loads
        if not order:
            found = {w: self.known.loads(w, 60, 1, 4, 0.9) for w in WORKLOADS}
            order = {w: [rates[i] for i in (2, 1, 3, 0)] for w, rates in found.items()}
        turns = zip_longest(*order.values())
        return [(w, rate) for each in turns for w, rate in zip(order, each, strict=True) if rate]

    @contextmanager
    def servers(self) -> Iterator[dict[str, str]]:
        """The URL of each system's server; both are up and warm. What ours has learned of its
        steps by then is the profile calibrated.json."""
        known = self.known
        model = self.model or known.profile.model.split(" +")[0]
        served, arguments = loadable(model, self.out)
        arguments |= {"max_model_len": known.profile.max_context}
        flags = [f for k, v in arguments.items() for f in ("--" + k.replace("_", "-"), str(v))]
        learned = self.out / "learned.json"
        with ExitStack() as stack:
            ready = {}
            for system, scheduler in RECORDED.items():
                steps = (self.out / f"steps-{system}.csv").absolute()
                mine = [*flags, "--scheduler-cls", scheduler, *self.more]
                mine += ["--additional-config", json.dumps({"steps": str(steps)})]
                mine += ["--max-num-batched-tokens", str(self.budgets.get(system, BUDGET))]
                if system == OURS:
                    mine += ["--profile", self.name, "--save-profile", str(learned.absolute())]
                ready[system] = stack.enter_context(starting(served, system, self.out, *mine))
                if not launch.on_cpu() and "--kv-cache-memory-bytes" not in self.more:
                    ready[system]()  # it measures the GPU's free memory, which must not change
            urls = {system: wait() for system, wait in ready.items()}
            for url in urls.values():
                asked = ramp(known.step, WARMING, known.lengths.prompt)
                replay.run(asked, url, vocabulary=500, timeout=60)
            with suppress(RuntimeError):  # too few steps to learn from
                save(learned_by(learned), self.out / "calibrated.json")
            yield urls

    def run(self, minutes: float) -> pd.DataFrame:
        """Rows of every request at each load, written to measured.csv after each run."""
        end = time.monotonic() + 60 * minutes
        known, tables = self.known, []
        with self.servers() as urls:
            outside: dict[str, float] = {}
            print(f"both servers are warm, {end - time.monotonic():.0f} s left", flush=True)
            for workload, rate in self.plan():
                count = max(5, int(rate * self.seconds))
                requests = WORKLOADS[workload](rate, count, 0, known.step, known.lengths)
                if end - time.monotonic() < len(urls) * (self.seconds + 10):
                    continue  # all systems or none, since they are compared
                for system, url in urls.items():
                    if system not in outside:
                        outside[system] = first_token(url, known.profile)
                    ran = replay.run(requests, url, vocabulary=500, timeout=PATIENCE)
                    labels = Labels(workload, system, known.profile.name, rate)
                    paces = {r.id: r.stages[0].slo.tpot for r in requests}
                    told = rows(labels, ran).assign(lag=ran.lag, outside=outside[system])
                    tables.append(told.assign(tpot_slo=told["id"].map(paces)))
                    pd.concat(tables).to_csv(self.out / "measured.csv", index=False)
                    shares = tables[-1][["attained", "attained_paper"]].mean().tolist()
                    said = f"attained {shares[0]:.1%}, by the paper's rule {shares[1]:.1%}"
                    said += f", lag {ran.lag:.3f} s"
                    left = f"{end - time.monotonic():.0f} s left"
                    print(f"{workload} {rate:g}/s {system}: {said}, {left}", flush=True)
        return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.studies.on_gpu", description=__doc__)
    parser.add_argument("what", choices=("profiles", "engine"))
    parser.add_argument("--out", type=Path, default=Path("results/measured"), metavar="FOLDER")
    minutes = "in all (4 for profiles, 8 for the engine)"
    parser.add_argument("--minutes", type=float, default=0.0, help=minutes)
    models = "for profiles: MODEL or MODEL:DRAFT (%(default)s)"
    parser.add_argument("--models", default=",".join(MODELS), help=models)
    parser.add_argument("--profile", default="", help="for the engine: a profile's name or file")
    parser.add_argument("--model", default="", help="what to serve (the profile's model)")
    seconds = "of arrivals in each run (%(default)g)"
    parser.add_argument("--seconds", type=float, default=40.0, help=seconds)
    loads = 'such as {"bursty": [10, 20]} (by simulation)'
    parser.add_argument("--loads", type=json.loads, default={}, help=loads)
    budgets = f'tokens of a step, such as {{"{STOCK}": 512}} ({BUDGET})'
    parser.add_argument("--budgets", type=json.loads, default={}, help=budgets)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    given, more = options().parse_known_args(argv)
    out = given.out
    out.mkdir(parents=True, exist_ok=True)
    try:
        if given.what == "profiles":
            told = profiles(given.models.split(","), out, given.minutes or 4.0, more)
            return 0 if any("ended with 0" in line for line in told) else 1
        profile(given.profile)  # raises ValueError where there is none
        how = given.seconds, given.loads, given.budgets, given.model, more
        return 0 if len(Engine(given.profile, out, *how).run(given.minutes or 8.0)) else 1
    except ValueError as error:
        print(f"slos.studies.on_gpu: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
