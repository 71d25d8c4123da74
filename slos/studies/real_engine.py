"""The kit's promises on a real engine: vLLM's own scheduler and ours, each compared with what the
simulator says of them.

The servers are not told how long answers will be: ours learns it. As a second series, `TOLD`, it is
told, as in the paper; vLLM's own has no use for it.
Both servers are up on this machine, and one works at a time; the simulator is given nothing but
what was calibrated on the engine, and the workloads are not those of the calibration.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd

from slos.core.attainment import Outcome, attainment
from slos.core.pace import TOLERANCE
from slos.core.types import Request, require
from slos.evaluation.capacity_search import capacity
from slos.evaluation.runs import serve
from slos.evaluation.sizes import check_names, of_size
from slos.files import Frame
from slos.hardware.profiles import Profile, profile, scaled
from slos.policies import OURS, POLICIES
from slos.records.sweep import Bar
from slos.replay import replay
from slos.replay.results import Labels, Replayed, judged, rows
from slos.serving import calls, launch
from slos.serving.settings import Settings
from slos.serving.tiny_model import write
from slos.studies import engine_workloads
from slos.studies.engine_workloads import SMALL, WORKLOADS, Lengths

TOLD = f"{OURS}, lengths told"  # in place of the system's name
STOCK = "vllm-v1"  # the policy that vLLM's own scheduler is in the simulator
SIZES = {"smoke": (12, 1, 1), "quick": (45, 1, 3), "full": (100, 3, 4)}
"""Requests per load, seeds, and loads."""
FRESH = 30.0  # seconds for which a calibration is taken to hold: machines drift
# most tokens of a batch, for both: what vLLM takes by default on most hardware
BUDGET = 2048
# width and layers of the model that stands in for one: a decode step takes milliseconds, not HTTP
MODEL = (512, 3)
_EXECUTOR = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
ON_CPU = ("--enforce-eager", "--distributed-executor-backend", _EXECUTOR)
"""For vLLM on a CPU: no compilation, half a minute that a small model never earns back; and the
model in the engine's own process, named in full because vLLM turns a plain `uni` into a second
process, for which the first waits spinning: on few cores that slows the model, the server and the
client by turns."""

ON_GPU = ("--gpu-memory-utilization", "0.4")  # both servers are there at once


def has_engine() -> bool:
    return find_spec("vllm") is not None


@contextmanager
def server(model: Path | str, system: str, folder: Path, *arguments: str) -> Iterator[str]:
    """The URL of a vLLM server with the scheduler of `system`, which ends with the block; its log
    is in `folder`. Raises RuntimeError with the end of the log if it does not start."""
    with starting(model, system, folder, *arguments) as ready:
        yield ready()


@contextmanager
def starting(
    model: Path | str, system: str, folder: Path, *arguments: str
) -> Iterator[Callable[[], str]]:
    """The same without waiting: what is returned waits, for the URL. So two start side by side."""
    check_names("system", [system], POLICIES)
    port = str(launch.free_port())
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "slos.serving.launch", "serve", str(model), "--port", port]
    command += ["--stock"] if system == STOCK else ["--policy", system]
    command += ["--no-calibrate", "--max-num-batched-tokens", str(BUDGET)]
    command += [*(ON_CPU if launch.on_cpu() else ON_GPU), *arguments]
    ones = "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"
    log = Path(folder) / f"server-{system}.log"
    with log.open("w") as out:
        environment = dict.fromkeys(ones, "1") | os.environ
        how = {"stdout": out, "stderr": out, "start_new_session": True}
        process = subprocess.Popen(command, env=environment, **how)
    try:
        yield lambda: calls.wait(url, process, log) or url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An engine as the simulator is told of it. outside: seconds that a first token takes besides
    the engine's steps; lengths: of what it is sent."""

    profile: Profile
    outside: float
    lengths: Lengths = SMALL

    @property
    def step(self) -> float:
        """Seconds of 16 decodes at a quarter of the longest context."""
        return self.profile.roofline.time(16, 0, 4 * self.profile.max_context)

    def loads(
        self, workload: str, num_requests: int, seeds: int, count: int, target: float
    ) -> list[float]:
        """Requests per second, by simulation: from where vLLM's own attains to where ours fails."""

        def attained(system: str, rate: float) -> float:
            build, n = WORKLOADS[workload], max(num_requests, 60)
            made = (build(rate, n, seed, self.step, self.lengths) for seed in range(seeds))
            return float(np.mean([attainment(predict(r, system, self).outcomes) for r in made]))

        stock, _ = capacity(partial(attained, STOCK), target, 0.05 / self.step, precision=0.05)
        tried = np.geomspace(1, 5, 12)
        most = next((m for m in tried if attained(OURS, m * stock) < target - 0.1), 5.0)
        return [float(f"{stock * m:.3g}") for m in np.geomspace(0.75, most, count)]


def calibrate(url: str, saved: Path) -> Calibrated:
    """By short prompts and decodes; single requests tell what HTTP adds; then `again`."""
    calls.calibrate(url, rounds=2)
    first = learned_by(saved)
    return again(Calibrated(first, first_token(url, first)), url, saved)


def first_token(url: str, known: Profile) -> float:
    """Seconds that the first token of a request takes besides the engine's step."""
    took = np.median([o.ttft for o in _replay(engine_workloads.alone(), url).outcomes])
    return max(0.0, float(took) - known.roofline.time(64))


def again(engine: Calibrated, url: str, saved: Path) -> Calibrated:
    """The engine as it is now: what the plug-in has learned at the end of a ramp of load, because a
    server that streams to a client on the same machine is slower than one that does not."""
    _replay(engine_workloads.ramp(engine.profile.roofline.time(16)), url)
    return replace(engine, profile=learned_by(saved))


def learned_by(saved: Path) -> Profile:
    """The profile that the plug-in writes while the engine runs, soon after its last fit."""
    for _ in range(40):
        time.sleep(0.25)
        with suppress(OSError, ValueError):
            return profile(str(saved))
    raise RuntimeError(f"{saved} was not written: too few steps for a fit")


def _replay(requests: Sequence[Request], url: str, seed: int = 0, told: bool = True) -> Replayed:
    # a notebook has an event loop of its own
    with ThreadPoolExecutor(1) as outside, warnings.catch_warnings():
        # on how late the client was, which is in the rows
        warnings.simplefilter("ignore", RuntimeWarning)
        made = outside.submit(replay.run, requests, url, seed=seed, vocabulary=500, told=told)
        return made.result()


def predict(requests: Sequence[Request], series: str, engine: Calibrated) -> Replayed:
    """What the simulator says a client of a system, or of `TOLD`, will see."""
    p, system = engine.profile, OURS if series == TOLD else series
    predictor = "oracle" if series == TOLD else Settings().predictor
    setting = f"max_batched_tokens={BUDGET}" if system == STOCK else ""
    belief = scaled(p.roofline, p.margin)
    outcomes = serve(requests, system, p, setting, belief=belief, predictor=predictor)
    return Replayed([seen(o, engine.outside) for o in outcomes])


def seen(o: Outcome, later: float) -> Outcome:
    """The same, `later` seconds later: so far is a client from the engine."""
    ttft, lateness = o.ttft + later, o.lateness + later
    in_time = ttft <= o.ttft_slo + TOLERANCE
    paper = o.attained_paper and in_time and lateness <= TOLERANCE
    return judged(o, paper, o.attained_client and in_time, ttft=ttft, lateness=lateness)


def run(
    size: str,
    workloads: Sequence[str],
    model: Path | str = "",
    arguments: Sequence[str] = (),
    target: float = 0.9,
    rivals: Sequence[str] = (STOCK,),
) -> tuple[Frame, Calibrated]:
    """Rows of every request, measured and simulated, for ours, `TOLD` and its rivals at the same
    loads; and the calibration.

    model: a folder or a name; without one a small model with random weights. arguments: more for
    `vllm serve`. target: attainment around which the loads lie. rivals: policies, each with a
    server of its own; `STOCK` is vLLM's own scheduler.
    """
    num_requests, seeds, count = of_size(size, SIZES)
    require(has_engine(), "vllm", None, "installed", "SLOS_EXTRA=cpu ./run_all.sh installs it")
    check_names("workload", workloads, WORKLOADS)
    check_names("rival", rivals, [name for name in POLICIES if name != OURS])
    tables = []
    with tempfile.TemporaryDirectory(prefix="slos-engine-") as name, ExitStack() as servers:
        folder = Path(name)
        model, saved = model or write(folder / "small", *MODEL), folder / "profile.json"
        urls = {}
        for system in (OURS, *rivals):
            more = ("--save-profile", str(saved)) if system == OURS else ()
            start = starting(model, system, folder, *more, *arguments)
            urls[system] = servers.enter_context(start)
            if not launch.on_cpu():  # each measures the free memory of the GPU
                urls[system]()
        urls = {system: ready() for system, ready in urls.items()}
        now = engine = calibrate(urls[OURS], saved)
        since = time.monotonic()
        much = num_requests, seeds, count, target
        loads = [(w, rate) for w in workloads for rate in engine.loads(w, *much)]
        bar = Bar(len(loads) * seeds)
        for (workload, rate), seed in product(loads, range(seeds)):
            if time.monotonic() > since + FRESH:
                now, since = again(now, urls[OURS], saved), time.monotonic()
            requests = WORKLOADS[workload](rate, num_requests, seed, engine.step)
            for series, url in (urls | {TOLD: urls[OURS]}).items():  # one works, the others wait
                runs = {
                    "simulated": predict(requests, series, now),
                    "measured": _replay(requests, url, seed, series == TOLD),
                }
                for status, run in runs.items():
                    labels = Labels(workload, series, engine.profile.gpu, rate, seed, status=status)
                    drift = now.step / engine.step
                    tables.append(rows(labels, run).assign(lag=run.lag, drift=drift))
            bar.step(f"{workload}, {rate:g} requests/s")
        bar.close()
    return pd.concat(tables, ignore_index=True), engine
