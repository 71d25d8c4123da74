"""The kit's promises on a real engine: vLLM's own scheduler and ours, and beside both what the simulator says of them.

Servers are started on this machine, one at a time; the simulator is given nothing but what was calibrated on the
engine, and the workloads are not those of the calibration.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd

from slos import launch, replay
from slos.calibration import scaled
from slos.live import TOLERANCE, Outcome
from slos.measured import Labels, Replayed, rows
from slos.policies import make_policy
from slos.roofline import Profile, profile
from slos.simulator import World, simulate
from slos.tiny_model import write
from slos.types import SLO, Oracle, Request, Stage, require
from workloads import build

Frame = Any  # a pandas.DataFrame; its stubs refuse its own idioms
STOCK, OURS = "vllm-v1", "slos-serve"  # the policy that vLLM's own scheduler is in the simulator, and ours
INTERACTIVE, BATCH = SLO(tpot=0.025, ttft=0.3), SLO(tpot=0.1, ttft=2.0)
SHRINK = 4  # lengths of the scenarios are divided by this, for a small model on a CPU
BUDGET = 2048  # tokens of a batch at the most, for both: what vLLM takes by default on most hardware
LONGEST = 1000  # tokens of prompt and answer


def has_engine() -> bool:
    return find_spec("vllm") is not None


def bursty(rate: float, num_requests: int, seed: int) -> list[Request]:
    """Two tiers: short chats that somebody waits for, and long documents; arrivals of the coding trace, in bursts."""
    arrivals = [r.arrival for r in build("coding", rate, num_requests, seed).requests]
    chats = build("chatbot", 1.0, num_requests, seed).requests
    documents = build("summarization", 1.0, num_requests, seed).requests
    tiers = np.random.default_rng(seed).random(num_requests) < 0.5
    made = []
    for i, (arrival, chat, document, short) in enumerate(zip(arrivals, chats, documents, tiers, strict=True)):
        of = chat if short else document
        slo, divide = (INTERACTIVE, SHRINK) if short else (BATCH, SHRINK / 2)
        made.append(_shrunk(f"b{i:04d}", arrival, of, divide, slo, "interactive" if short else "batch"))
    return made


def steady(rate: float, num_requests: int, seed: int) -> list[Request]:
    """One tier and Poisson arrivals: nothing for a planner to gain, and nothing that it may lose."""
    documents = build("summarization", rate, num_requests, seed).requests
    return [
        _shrunk(f"s{i:04d}", r.arrival, r, SHRINK, SLO(tpot=0.05, ttft=1.0), "one") for i, r in enumerate(documents)
    ]


def _shrunk(id: str, arrival: float, of: Request, divide: float, slo: SLO, kind: str) -> Request:
    prompt = min(max(1, int(of.prompt / divide)), LONGEST - 100)
    return Request(id, arrival, (Stage(prompt, min(max(2, int(of.output / divide)), 100), slo),), kind=kind)


WORKLOADS = {"bursty": bursty, "steady": steady}


@contextmanager
def server(model: Path | str, system: str, folder: Path, *arguments: str) -> Iterator[str]:
    """The URL of a vLLM server with the scheduler of `system`, which ends with the block; its log is in `folder`.

    Raises RuntimeError with the end of the log if it does not start.
    """
    require(system in (STOCK, OURS), "system", system, f"one of {STOCK}, {OURS}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    which = ["--stock"] if system == STOCK else ["--policy", system]
    which += ["--distributed-executor-backend", "uni", "--no-calibrate", "--max-num-batched-tokens", str(BUDGET)]
    command = [sys.executable, "-m", "slos.launch", "serve", str(model), "--port", port, *which]
    defaults = {
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1",
    }
    log = Path(folder) / f"server-{system}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=out, env=defaults | os.environ, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _wait(process: subprocess.Popen, url: str, log: Path) -> None:
    for _ in range(int(launch.READY / 0.25)):
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with {process.returncode}; {log}:\n{log.read_text()[-2000:]}")
        with suppress(OSError), urlopen(f"{url}/v1/models", timeout=5):
            return
        time.sleep(0.25)
    raise RuntimeError(f"the server was not ready after {launch.READY:g} s; its log: {log}")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An engine as the simulator is told of it. outside: seconds that a first token takes beside the engine's steps."""

    profile: Profile
    outside: float


def calibrate(url: str, saved: Path) -> Calibrated:
    """Short prompts and decodes of many sizes, then single requests for what HTTP and tokenizing add."""
    launch.calibrate(url)
    for _ in range(40):  # the last fit is made beside the engine
        with suppress(OSError, ValueError):
            learned = profile(str(saved))
            break
        time.sleep(0.25)
    else:
        raise RuntimeError(f"{saved} was not written: too few steps for a fit")
    alone = [Request(f"c{i}", 0.3 * i, (Stage(64, 4, SLO(tpot=1.0, ttft=9.0)),)) for i in range(16)]
    took = np.median([o.ttft for o in _replay(alone, url).outcomes])
    return Calibrated(learned, max(0.0, float(took) - learned.roofline.time(64)))


def _replay(requests: Sequence[Request], url: str, seed: int = 0) -> Replayed:
    with ThreadPoolExecutor(1) as outside:  # a notebook has an event loop of its own
        return outside.submit(replay.run, requests, url, seed=seed, vocabulary=500).result()


def predict(requests: Sequence[Request], system: str, engine: Calibrated) -> Replayed:
    """What the simulator says a client will see."""
    p = engine.profile
    belief = scaled(p.roofline, p.margin)
    policy = make_policy(
        system, belief, Oracle(requests), **({"max_batched_tokens": BUDGET} if system == STOCK else {})
    )
    outcomes = simulate(requests, policy, World.of(p))
    return Replayed([_seen(o, engine.outside) for o in outcomes], [])


def _seen(o: Outcome, later: float) -> Outcome:
    """The same, `later` seconds later: so far is a client from the engine."""
    ttft, lateness = o.ttft + later, o.lateness + later
    in_time = ttft <= o.ttft_slo + TOLERANCE
    attained = o.attained and in_time and lateness <= TOLERANCE
    return replace(o, ttft=ttft, lateness=lateness, attained=attained, attained_client=o.attained_client and in_time)


def compare(
    loads: dict[str, Sequence[float]], num_requests: int, seed: int = 0, model: Path | str = "", *arguments: str
) -> tuple[Frame, Calibrated]:
    """Rows of every request, measured and simulated, for both schedulers at all loads; and the calibration.

    loads: requests per second by workload. model: a folder or a name; without one a small model with random weights.
    """
    for name in loads:
        require(name in WORKLOADS, "workload", name, f"one of {', '.join(WORKLOADS)}")
    tables, engine = [], None
    with tempfile.TemporaryDirectory(prefix="slos-engine-") as name:
        folder = Path(name)
        model = model or write(folder / "tiny")
        saved = folder / "profile.json"
        for system in (OURS, STOCK):
            save = ["--save-profile", str(saved)] if system == OURS else []
            with server(model, system, folder, *save, *arguments) as url:
                engine = engine or calibrate(url, saved)
                _replay(bursty(4.0, 20, seed + 1), url)  # warm
                for workload, rates in loads.items():
                    for rate in rates:
                        requests = WORKLOADS[workload](rate, num_requests, seed)
                        runs = {
                            "measured": _replay(requests, url, seed),
                            "simulated": predict(requests, system, engine),
                        }
                        for status, run in runs.items():
                            labels = Labels(workload, system, engine.profile.gpu, rate, seed, status=status)
                            tables.append(rows(labels, run).assign(lag=run.lag))
    assert engine is not None
    return pd.concat(tables, ignore_index=True), engine
