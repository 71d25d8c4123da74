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
from itertools import product
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pandas as pd

from slos import launch, replay
from slos.calibration import scaled
from slos.live import TOLERANCE, Outcome
from slos.measured import Labels, Replayed, rows
from slos.metrics import attainment, capacity
from slos.policies import make_policy
from slos.roofline import Profile, profile
from slos.simulator import World, simulate
from slos.tiny_model import write
from slos.types import SLO, Oracle, Request, Stage, require
from workloads import build

Frame = Any  # a pandas.DataFrame; its stubs refuse its own idioms
STOCK, OURS = "vllm-v1", "slos-serve"  # the policy that vLLM's own scheduler is in the simulator, and ours
TIERS = {"interactive": (4.0, 50.0), "batch": (16.0, 400.0), "one": (8.0, 200.0)}
"""TPOT and TTFT of a tier, in steps of 16 decodes of the engine at hand, so that they make sense on any device."""
MULTIPLES = (0.5, 0.8, 1.0, 1.3, 1.8, 2.5)  # loads, of what vLLM's own scheduler should carry
SHRINK = 4.0  # lengths of the scenarios are divided by this, for a small model on a CPU
BUDGET = 2048  # tokens of a batch at the most, for both: what vLLM takes by default on most hardware
LONGEST = 1000  # tokens of prompt and answer


def has_engine() -> bool:
    return find_spec("vllm") is not None


def bursty(rate: float, num_requests: int, seed: int, step: float) -> list[Request]:
    """Two tiers: short chats that somebody waits for, and long documents; arrivals of the coding trace, in bursts.

    step: seconds of 16 decodes, the unit of `TIERS`.
    """
    arrivals = [r.arrival for r in build("coding", rate, num_requests, seed).requests]
    chats = build("chatbot", 1.0, num_requests, seed).requests
    documents = build("summarization", 1.0, num_requests, seed).requests
    short = np.random.default_rng(seed).random(num_requests) < 0.5
    return [
        _shrunk(i, t, "interactive", SHRINK, chats[i], step) if short[i]
        else _shrunk(i, t, "batch", SHRINK / 2, documents[i], step)
        for i, t in enumerate(arrivals)
    ]  # fmt: skip


def steady(rate: float, num_requests: int, seed: int, step: float) -> list[Request]:
    """One tier and Poisson arrivals: nothing for a planner to gain, and nothing that it may lose."""
    documents = build("summarization", rate, num_requests, seed).requests
    return [_shrunk(i, r.arrival, "one", SHRINK, r, step) for i, r in enumerate(documents)]


def _shrunk(i: int, arrival: float, tier: str, divide: float, of: Request, step: float) -> Request:
    tpot, ttft = (steps * step for steps in TIERS[tier])
    prompt, output = int(of.prompt / divide), int(of.output / divide)
    stage = Stage(min(max(1, prompt), LONGEST - 100), min(max(2, output), 100), SLO(tpot=tpot, ttft=ttft))
    return Request(f"{tier}-{i:04d}", arrival, (stage,), kind=tier)


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

    @property
    def step(self) -> float:
        """Seconds of 16 decodes at a quarter of the longest context."""
        return self.profile.roofline.time(16, 0, 4 * self.profile.max_context)

    def loads(self, workload: str, num_requests: int) -> list[float]:
        """Requests per second: `MULTIPLES` of what vLLM's own scheduler carries at 90 % attainment, by simulation."""

        def attained_at(rate: float) -> float:
            return attainment(predict(WORKLOADS[workload](rate, num_requests, 0, self.step), STOCK, self).outcomes)

        carried, _ = capacity(attained_at, start=0.05 / self.step, precision=0.05)
        return [float(f"{carried * m:.3g}") for m in MULTIPLES]


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
    workloads: Sequence[str], num_requests: int, seeds: int = 1, model: Path | str = "", arguments: Sequence[str] = ()
) -> tuple[Frame, Calibrated]:
    """Rows of every request, measured and simulated, for both schedulers at the same loads; and the calibration.

    model: a folder or a name; without one a small model with random weights. arguments: more for `vllm serve`.
    """
    require(has_engine(), "vllm", None, "installed", "SLOS_EXTRA=cpu ./run_all.sh installs it")
    for name in workloads:
        require(name in WORKLOADS, "workload", name, f"one of {', '.join(WORKLOADS)}")
    tables, engine = [], None
    with tempfile.TemporaryDirectory(prefix="slos-engine-") as name:
        folder = Path(name)
        model, saved = model or write(folder / "tiny"), folder / "profile.json"
        for system in (OURS, STOCK):
            save = ["--save-profile", str(saved)] if system == OURS else []
            with server(model, system, folder, *save, *arguments) as url:
                engine = engine or calibrate(url, saved)
                loads = [(w, rate) for w in workloads for rate in engine.loads(w, num_requests)]
                for (workload, rate), seed in product(loads, range(seeds)):
                    requests = WORKLOADS[workload](rate, num_requests, seed, engine.step)
                    runs = {"simulated": predict(requests, system, engine), "measured": _replay(requests, url, seed)}
                    for status, run in runs.items():
                        labels = Labels(workload, system, engine.profile.gpu, rate, seed, status=status)
                        tables.append(rows(labels, run).assign(lag=run.lag))
    assert engine is not None
    return pd.concat(tables, ignore_index=True), engine


def summary(frame: Frame) -> Frame:
    """One row per workload, load, scheduler and status: attainment, mean latencies in seconds, requests that failed."""
    by = ["scenario", "system", "status", "rate"]
    return frame.groupby(by, sort=False).agg(
        attainment=("attained", "mean"), ttft=("ttft", "mean"), tpot=("tpot", "mean"), lag=("lag", "max"),
        requests=("id", "size"), failed=("failure", lambda f: int((f != "").sum())),
    ).reset_index()  # fmt: skip


def capacities(table: Frame, target: float = 0.9) -> Frame:
    """The load at which attainment falls below `target`, interpolated; the largest one tried if it never does.

    Attainment is made to fall with the load first, as it does but for chance.
    """
    found = []
    for (workload, status, system), group in table.groupby(["scenario", "status", "system"], sort=False):
        curve = group.sort_values("rate")
        rates, falling = curve["rate"].to_numpy(), np.minimum.accumulate(curve["attainment"].to_numpy())
        below = np.flatnonzero(falling < target)
        if not len(below):
            load = rates[-1]
        elif below[0] == 0:
            load = rates[0] * falling[0] / target
        else:
            i = below[0]
            share = (falling[i - 1] - target) / (falling[i - 1] - falling[i])
            load = rates[i - 1] * (rates[i] / rates[i - 1]) ** share
        found.append((workload, status, system, float(load), bool(len(below))))
    return pd.DataFrame(found, columns=["scenario", "status", "system", "capacity", "reached"])


def errors(table: Frame) -> Frame:
    """How far the simulator is off, per workload, scheduler and load: attainment in points, mean TTFT and TPOT in %."""
    by = ["scenario", "system", "rate"]
    measured, simulated = (table[table["status"] == s].set_index(by) for s in ("measured", "simulated"))
    off = pd.DataFrame({"attainment": 100 * (simulated["attainment"] - measured["attainment"])})
    for column in ("ttft", "tpot"):
        off[column] = 100 * (simulated[column] / measured[column] - 1)
    return off.reset_index()


def what_it_shows(found: Frame, off: Frame, engine: Calibrated) -> str:
    """The findings in Markdown, from the numbers."""
    loads = found.set_index(["scenario", "status", "system"])["capacity"]
    lines = []
    for workload in dict.fromkeys(found["scenario"]):
        ratio = {s: loads[workload, s, OURS] / loads[workload, s, STOCK] for s in ("measured", "simulated")}
        lines.append(
            f"- **{workload}**: at 90 % attainment SLOs-Serve carries {loads[workload, 'measured', OURS]:.3g} "
            f"requests/s and vLLM's own scheduler {loads[workload, 'measured', STOCK]:.3g}, {ratio['measured']:.2f}x, measured on "
            f"{engine.profile.gpu}; the simulator said {ratio['simulated']:.2f}x."
        )
    worst = off[["attainment", "ttft", "tpot"]].abs()
    lines.append(
        f"- The simulator is off by {worst['attainment'].median():.1f} points of attainment in median over loads and "
        f"by {worst['attainment'].max():.1f} at most; mean TTFT by {worst['ttft'].median():.0f} % (at most "
        f"{worst['ttft'].max():.0f} %), mean TPOT by {worst['tpot'].median():.0f} % ({worst['tpot'].max():.0f} %)."
    )
    return "\n".join(lines)
