"""What planning costs where steps wait for it: capacities of simulations that charge each step the
CPU time of its scheduler.

The time was measured in vLLM on the host of an H200 (`slos.studies.gpu`), all that its `schedule`
does included, and is charged as a line of the requests in view. A scheduler that learns from its
steps, as ours in vLLM does, knows the mean of what it is charged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.optimize import lsq_linear

from slos.core.attainment import attainment
from slos.core.lengths import Oracle
from slos.core.roofline import Roofline
from slos.evaluation.capacity_search import capacity
from slos.evaluation.sizes import size_of
from slos.files import Frame, commit, results_dir, write_whole
from slos.hardware.profiles import Profile, profile
from slos.policies import OURS, make_policy
from slos.sim.simulator import World, simulate
from slos.studies.gpu import FOLDER, STEPS
from workloads import build

SCENARIO = "chatbot-8k"
SYSTEMS: dict[str, dict[str, Any]] = {"vllm-v1": {"max_batched_tokens": 2048}, OURS: {}}
WAYS = {"free": {}, "synchronous": {}, "asynchronous": {"overlapped": True}}
REQUESTS = {"smoke": 40, "quick": 300, "full": 600}
START, PRECISION = 6.0, 0.08  # requests per second where a search begins


def line(system: str) -> tuple[float, float, float]:
    """Seconds of any step, more for each request, and the mean, as measured: least squares, none
    below 0. The longest hundredth is left out: a kernel was compiled in it."""
    table: Frame = pd.read_csv(FOLDER / STEPS[system])
    table = table[table["planning"] <= table["planning"].quantile(0.99)]
    seen, seconds = table["requests"].to_numpy(float), table["planning"].to_numpy()
    least = lsq_linear(np.stack([np.ones_like(seen), seen], axis=1), seconds, (0, np.inf))
    first, each = least.x.tolist()
    return first, each, float(seconds.mean())


def later(roofline: Roofline, seconds: float) -> Roofline:
    """The same hardware where each step begins so many seconds later."""
    return replace(
        roofline, planes=tuple(replace(p, b=p.b + seconds) for p in roofline.planes)
    )  # fmt: skip


def found(system: str, hardware: Profile, count: int, waits: float, **world: Any) -> float:
    """The largest rate at which 90 % of the requests meet their objectives; waits: seconds of
    planning that the policy believes each step to begin with."""
    belief = later(hardware.roofline, waits)

    def attained(rate: float) -> float:
        requests = build(SCENARIO, rate, count).requests
        policy = make_policy(system, belief, Oracle(requests), **SYSTEMS[system])
        where = World.of(hardware, zero_load=hardware.roofline, **world)
        return attainment(simulate(requests, policy, where))

    return capacity(attained, 0.9, START, PRECISION)[0]


def run(size: str, name: str = "llama-3.1-8b-h100") -> Frame:
    """A row per system and way of charging; written to results/<size>/charged.csv.

    planning: milliseconds of a step, mean of those that were measured.
    """
    size_of(size)
    hardware, count, rows = profile(name), REQUESTS[size], []
    for system in SYSTEMS:
        *planning, mean = line(system)
        rates = {}
        for way, changes in WAYS.items():
            charge = {} if way == "free" else {"planning": tuple(planning)}
            waits = mean if way == "synchronous" else 0.0
            rates[way] = found(system, hardware, count, waits, **charge, **changes)
            told = 1e3 * mean, 1e3 * planning[0], 1e6 * planning[1]
            rows.append((system, way, *told, rates[way], rates[way] / rates["free"]))
    columns = [
        "system", "charged", "planning (ms)", "of any step (ms)", "more per request (us)",
        "requests/s", "of free",
    ]  # fmt: skip
    table = pd.DataFrame(rows, columns=columns)
    told = table.assign(scenario=SCENARIO, profile=name, requests=count, status="simulated")
    write_whole(results_dir(size) / "charged.csv", told.assign(commit=commit()).to_csv(index=False))
    return table
