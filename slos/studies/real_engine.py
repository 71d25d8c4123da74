"""The kit's promises on a real engine: vLLM's own scheduler and ours, and beside both what the
simulator says of them.

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
from matplotlib.figure import Figure

from slos.core.attainment import TOLERANCE, Outcome, attainment
from slos.core.lengths import Oracle
from slos.core.roofline import scaled
from slos.core.types import Request, require
from slos.evaluation.capacity_search import capacity
from slos.evaluation.plots import DASHED, MARKERS, colors, finish, name_of, panels, unique
from slos.evaluation.stats import select
from slos.files import Frame, commit, write_whole
from slos.hardware.profiles import Profile, profile
from slos.policies import OURS, make_policy
from slos.records.sweep import Bar
from slos.replay import replay
from slos.replay.results import Labels, Replayed, rows
from slos.serving import launch
from slos.serving.tiny_model import write
from slos.sim.replica import World
from slos.sim.simulator import simulate
from slos.studies import engine_workloads
from slos.studies.engine_workloads import WORKLOADS

STOCK = "vllm-v1"  # the policy that vLLM's own scheduler is in the simulator
SIZES = {"smoke": (12, 1, 1), "quick": (60, 1, 3), "full": (100, 3, 4)}
"""Requests per load, seeds, and loads."""
FRESH = 30.0  # seconds for which a calibration is taken to hold: machines drift
# tokens of a batch at the most, for both: what vLLM takes by default on most hardware
BUDGET = 2048
# width and layers of the model that stands in for one: a decode step takes milliseconds, not HTTP
MODEL = (512, 3)
ON_CPU = (
    "--enforce-eager",
    "--distributed-executor-backend",
    "vllm.v1.executor.uniproc_executor.UniProcExecutor",
)
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
    is in `folder`.

    Raises RuntimeError with the end of the log if it does not start.
    """
    with starting(model, system, folder, *arguments) as ready:
        yield ready()


@contextmanager
def starting(
    model: Path | str, system: str, folder: Path, *arguments: str
) -> Iterator[Callable[[], str]]:
    """The same without waiting, so that two may start side by side: what is returned waits, for the
    URL."""
    require(system in (STOCK, OURS), "system", system, f"one of {STOCK}, {OURS}")
    port = str(launch.free_port())
    which = ["--stock"] if system == STOCK else ["--policy", system]
    which += [
        "--no-calibrate",
        "--max-num-batched-tokens",
        str(BUDGET),
        *(ON_CPU if launch.on_cpu() else ON_GPU),
    ]
    command = [
        sys.executable,
        "-m",
        "slos.serving.launch",
        "serve",
        str(model),
        "--port",
        port,
        *which,
    ]
    ones = "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"
    log = Path(folder) / f"server-{system}.log"
    with log.open("w") as out:
        environment = dict.fromkeys(ones, "1") | os.environ
        process = subprocess.Popen(
            [*command, *arguments], stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        yield partial(_ready, process, f"http://127.0.0.1:{port}", log)
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def _ready(process: subprocess.Popen, url: str, log: Path) -> str:
    launch.wait(url, process, log)
    return url


@dataclass(frozen=True, slots=True)
class Calibrated:
    """An engine as the simulator is told of it. outside: seconds that a first token takes beside
    the engine's steps."""

    profile: Profile
    outside: float

    @property
    def step(self) -> float:
        """Seconds of 16 decodes at a quarter of the longest context."""
        return self.profile.roofline.time(16, 0, 4 * self.profile.max_context)

    def loads(
        self, workload: str, num_requests: int, seeds: int, count: int, target: float
    ) -> list[float]:
        """Requests per second, by simulation: from where vLLM's own scheduler meets the target to
        where ours fails."""

        def attained(system: str, rate: float) -> float:
            made = (
                WORKLOADS[workload](rate, max(num_requests, 60), seed, self.step)
                for seed in range(seeds)
            )
            return float(
                np.mean([attainment(predict(requests, system, self).outcomes) for requests in made])
            )

        stock, _ = capacity(
            partial(attained, STOCK), target, start=0.05 / self.step, precision=0.05
        )
        most = next(
            (m for m in np.geomspace(1, 5, 12) if attained(OURS, m * stock) < target - 0.1), 5.0
        )
        return [float(f"{stock * m:.3g}") for m in np.geomspace(0.75, most, count)]


def calibrate(url: str, saved: Path) -> Calibrated:
    """Short prompts and decodes of many sizes; single requests for what HTTP and tokenizing add;
    then `again`."""
    launch.calibrate(url, rounds=2)
    first = _learned(saved)
    took = np.median([o.ttft for o in _replay(engine_workloads.alone(), url).outcomes])
    return again(Calibrated(first, max(0.0, float(took) - first.roofline.time(64))), url, saved)


def again(engine: Calibrated, url: str, saved: Path) -> Calibrated:
    """The engine as it is now: what the plug-in has learned at the end of a ramp of load.

    A ramp, because a server that streams to a client beside it is slower than one that does not.
    """
    _replay(engine_workloads.ramp(engine.profile.roofline.time(16)), url)
    return replace(engine, profile=_learned(saved))


def _learned(saved: Path) -> Profile:
    """The profile in the file that the plug-in writes beside the engine, soon after its last
    fit."""
    for _ in range(40):
        time.sleep(0.25)
        with suppress(OSError, ValueError):
            return profile(str(saved))
    raise RuntimeError(f"{saved} was not written: too few steps for a fit")


def _replay(requests: Sequence[Request], url: str, seed: int = 0) -> Replayed:
    # a notebook has an event loop of its own
    with ThreadPoolExecutor(1) as outside, warnings.catch_warnings():
        # on how late the client was, which is in the rows
        warnings.simplefilter("ignore", RuntimeWarning)
        return outside.submit(replay.run, requests, url, seed=seed, vocabulary=500).result()


def predict(requests: Sequence[Request], system: str, engine: Calibrated) -> Replayed:
    """What the simulator says a client will see."""
    p = engine.profile
    belief = scaled(p.roofline, p.margin)
    policy = make_policy(
        system,
        belief,
        Oracle(requests),
        **({"max_batched_tokens": BUDGET} if system == STOCK else {}),
    )
    outcomes = simulate(requests, policy, World.of(p))
    return Replayed([_seen(o, engine.outside) for o in outcomes], [])


def _seen(o: Outcome, later: float) -> Outcome:
    """The same, `later` seconds later: so far is a client from the engine."""
    ttft, lateness = o.ttft + later, o.lateness + later
    in_time = ttft <= o.ttft_slo + TOLERANCE
    attained = o.attained and in_time and lateness <= TOLERANCE
    return replace(
        o,
        ttft=ttft,
        lateness=lateness,
        attained=attained,
        attained_client=o.attained_client and in_time,
    )


def run(
    size: str,
    workloads: Sequence[str],
    model: Path | str = "",
    arguments: Sequence[str] = (),
    target: float = 0.9,
) -> tuple[Frame, Calibrated]:
    """Rows of every request, measured and simulated, for both schedulers at the same loads; and the
    calibration.

    model: a folder or a name; without one a small model with random weights. arguments: more for
    `vllm serve`. target: attainment around which the loads lie.
    """
    require(size in SIZES, "size", size, f"one of {', '.join(SIZES)}")
    require(has_engine(), "vllm", None, "installed", "SLOS_EXTRA=cpu ./run_all.sh installs it")
    for name in workloads:
        require(name in WORKLOADS, "workload", name, f"one of {', '.join(WORKLOADS)}")
    num_requests, seeds, count = SIZES[size]
    tables = []
    with tempfile.TemporaryDirectory(prefix="slos-engine-") as name, ExitStack() as servers:
        folder = Path(name)
        model, saved = model or write(folder / "small", *MODEL), folder / "profile.json"
        more, urls = {OURS: ["--save-profile", str(saved)], STOCK: []}, {}
        for system in more:
            urls[system] = servers.enter_context(
                starting(model, system, folder, *more[system], *arguments)
            )
            if not launch.on_cpu():  # each measures the free memory of the GPU
                urls[system]()
        urls = {system: ready() for system, ready in urls.items()}
        now = engine = calibrate(urls[OURS], saved)
        since = time.monotonic()
        loads = [
            (w, rate)
            for w in workloads
            for rate in engine.loads(w, num_requests, seeds, count, target)
        ]
        bar = Bar(len(loads) * seeds)
        for (workload, rate), seed in product(loads, range(seeds)):
            if time.monotonic() > since + FRESH:
                now, since = again(now, urls[OURS], saved), time.monotonic()
            requests = WORKLOADS[workload](rate, num_requests, seed, engine.step)
            for system, url in urls.items():  # one works, the other one waits
                runs = {
                    "simulated": predict(requests, system, now),
                    "measured": _replay(requests, url, seed),
                }
                for status, run in runs.items():
                    labels = Labels(workload, system, engine.profile.gpu, rate, seed, status=status)
                    tables.append(
                        rows(labels, run).assign(lag=run.lag, drift=now.step / engine.step)
                    )
            bar.step(f"{workload}, {rate:g} requests/s")
        bar.close()
    return pd.concat(tables, ignore_index=True), engine


def save(table: Frame, folder: Path) -> None:
    """Write the summary of the runs to engine.csv in `folder`."""
    write_whole(folder / "engine.csv", table.assign(commit=commit()).to_csv(index=False))


def what_it_is(engine: Calibrated, frame: Frame) -> str:
    """The engine in a sentence, and whether the client kept pace with it."""
    p, r = engine.profile, engine.profile.roofline
    late = (
        frame[frame["status"] == "measured"]
        .groupby(["scenario", "system", "rate", "seed"])["lag"]
        .max()
    )
    planes = " or ".join(f"{1e3 * q.b:.2f} ms + {1e6 * q.k1:.1f} us a token" for q in r.planes)
    pace = engine_workloads.TIERS["interactive"][0]
    busy = (
        " **That is more than a token may take: the machine had other work, and what was measured "
        "tells little.**"
    )
    return (
        f"{p.source}, on {p.gpu}: a step takes {planes}, and {1e6 * r.k_ctx:.3f} us per token of "
        f"context; most steps stay below {p.margin:.2f} times that. A step of 16 decodes: "
        f"{1e3 * engine.step:.1f} ms. Outside of the engine a first token takes "
        f"{1e3 * engine.outside:.1f} ms. Calibrated anew after {FRESH:g} s, a step took "
        f"{frame['drift'].min():.2f} to {frame['drift'].max():.2f} times as long as at first. The "
        f"client was late by at most {1e3 * late.max():.0f} ms, and by {1e3 * late.median():.0f} "
        f"ms in half of the runs.{busy if late.median() > pace * engine.step else ''}"
    )


def what_it_shows(found: Frame, off: Frame, engine: Calibrated, target: float) -> str:
    """The findings in Markdown, from the numbers."""
    lines = []
    for workload, both in found.groupby("scenario", sort=False):
        said = {}
        for status, loads in both.set_index("system").groupby("status"):
            carried = {
                system: f"{row['bound']} {row['capacity']:.3g}".strip()
                for system, row in loads.iterrows()
            }
            said[status] = f"{carried[OURS]} and {carried[STOCK]}, {gain(loads, OURS, STOCK)}"
        lines.append(
            f"- **{workload}**: SLOs-Serve and vLLM's own scheduler carry {said['measured']}, in "
            f"requests/s at {target:.0%} attainment, measured on {engine.profile.gpu}; the "
            f"simulator said {said['simulated']}."
        )
    worst = off[["attainment", "ttft", "tpot"]].abs()
    lines.append(
        f"- The simulator is off by {worst['attainment'].median():.1f} points of attainment in "
        f"median over loads and by {worst['attainment'].max():.1f} at most; mean TTFT by "
        f"{worst['ttft'].median():.0f} % (at most {worst['ttft'].max():.0f} %), mean TPOT by "
        f"{worst['tpot'].median():.0f} % ({worst['tpot'].max():.0f} %)."
    )
    return "\n".join(lines)


def engine_curves(table: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment against load on a real engine: measured as lines, simulated as open marks, a panel
    per workload."""
    workloads, systems = unique(table["scenario"]), sorted(set(table["system"]))
    figure, axes = panels(workloads, (4.2, 3.2), (0, 0), "attainment (%)", sharey=True)
    for axis, workload in zip(axes, workloads, strict=True):
        for i, (system, color) in enumerate(colors(systems).items()):
            for status, style, kind in (("measured", "-", "full"), ("simulated", ":", "none")):
                part = select(table, scenario=workload, system=system, status=status).sort_values(
                    "rate"
                )
                axis.plot(
                    part["rate"], 100 * part["attainment"], style, marker=MARKERS[i], color=color,
                    fillstyle=kind, label=f"{name_of(system)}, {status}",
                )  # fmt: skip
        axis.axhline(100 * target, **DASHED)
        axis.set(xlabel="load (requests/s)", ylim=(0, 105))
    return finish(figure, f"{source}; dashed: {target:.0%} of the requests", axes[0], ncols=2)


def by_load(frame: Frame) -> Frame:
    """One row per workload, load, scheduler and status: attainment, mean latencies in seconds,
    requests that failed."""
    by = ["scenario", "system", "status", "rate"]
    return frame.groupby(by, sort=False).agg(
        attainment=("attained", "mean"), ttft=("ttft", "mean"), tpot=("tpot", "mean"),
        lag=("lag", "max"), requests=("id", "size"),
        failed=("failure", lambda f: int((f != "").sum())),
    ).reset_index()  # fmt: skip


def capacities(table: Frame, target: float = 0.9) -> Frame:
    """The load at which attainment falls below `target`, interpolated.

    `bound` says "at least" of the largest load if attainment never falls so far, "at most" of the
    smallest one if it is below from the start. Attainment is made to fall with the load first, as
    it does but for chance: neighbours out of order are averaged.
    """
    found = []
    for (workload, status, system), group in table.groupby(
        ["scenario", "status", "system"], sort=False
    ):
        curve = group.sort_values("rate")
        rates, falling = curve["rate"].tolist(), _falling(curve["attainment"].tolist())
        i = int((falling >= target).sum())
        if 0 < i < len(rates):
            share = (falling[i - 1] - target) / (falling[i - 1] - falling[i])
            load, bound = rates[i - 1] * (rates[i] / rates[i - 1]) ** share, ""
        else:
            load, bound = (rates[-1], "at least") if i else (rates[0], "at most")
        found.append((workload, status, system, float(load), bound))
    return pd.DataFrame(found, columns=["scenario", "status", "system", "capacity", "bound"])


def gain(found: Frame, ours: str, other: str) -> str:
    """How many times the capacity of `other` that of `ours` is, in words. found: of `capacities`,
    indexed by system."""
    opposite = {"at least": "at most", "at most": "at least", "": ""}
    bounds = {found.loc[ours, "bound"], opposite[found.loc[other, "bound"]]} - {""}
    if len(bounds) > 1:
        return "a ratio that these loads do not tell"
    ratio = found.loc[ours, "capacity"] / found.loc[other, "capacity"]
    return f"{' '.join(bounds)} {ratio:.2f}x".strip()


def errors(table: Frame) -> Frame:
    """How far the simulator is off, per workload, scheduler and load: attainment in points, mean
    TTFT and TPOT in %."""
    by = ["scenario", "system", "rate"]
    measured, simulated = (
        table[table["status"] == s].set_index(by) for s in ("measured", "simulated")
    )
    off = pd.DataFrame({"attainment": 100 * (simulated["attainment"] - measured["attainment"])})
    for column in ("ttft", "tpot"):
        off[column] = 100 * (simulated[column] / measured[column] - 1)
    return off.reset_index()


def _falling(values: list[float]) -> np.ndarray:
    """The nearest sequence that never rises, by least squares: the min-max formula of isotonic
    regression."""
    n = len(values)
    # of all runs that begin at a
    means = [[np.mean(values[a:b]) for b in range(a + 1, n + 1)] for a in range(n)]
    return np.array([min(max(means[a][i - a :]) for a in range(i + 1)) for i in range(n)])
