"""What the kit itself costs: CPU seconds to simulate, and milliseconds to plan. `python -m slos.bench` prints both.

CPU time, not wall time; medians over repeats. A planning is one whole step of SLOs-Serve in which new requests wait:
from the view to the batch, admission included, the running ones known from the step before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from statistics import median

import numpy as np

from slos.policies import POLICIES, make_policy
from slos.roofline import profile
from slos.simulator import World, simulate
from slos.types import SLO, Oracle, Progress, Request, Stage, View
from workloads import SCENARIOS, build

NEAR_CAPACITY = {
    ("chatbot", "dataset"): {"vllm": 2.8, "vllm-v1": 3.0, "sarathi": 3.0, "slos-serve": 3.7},
    ("chatbot", "trace"): {"vllm": 3.2, "vllm-v1": 3.5, "sarathi": 3.5, "slos-serve": 4.6},
}
"""Requests per second at about 90 % attainment on opt-6.7b-a100, for the loads to time."""

PLANNINGS = tuple(product((1, 2, 3, 4), (1, 10, 50, 100), (50, 200)))
"""TPOT tiers, new requests, running requests."""

PAPER = "the paper (section 4.2): below 10 ms, mostly below 2 ms"


@dataclass(frozen=True, slots=True)
class Planning:
    """Times of many plannings of one size, in milliseconds."""

    tiers: int
    new: int
    running: int
    p50: float
    p99: float
    worst: float


def simulation_cost(
    scenario: str, lengths: str, system: str, rate: float, num_requests: int, repeats: int = 3
) -> float:
    """CPU seconds per 1,000 requests, median over seeds."""
    hardware, costs = profile(SCENARIOS[scenario].profile), []
    for seed in range(repeats + 1):
        requests = build(scenario, rate, num_requests, seed, lengths).requests
        policy = make_policy(system, hardware.roofline, Oracle(requests))
        start = time.process_time()
        simulate(requests, policy, World.of(hardware))
        costs.append(1000 * (time.process_time() - start) / num_requests)
    return median(costs[1:])  # the first one may compile


def planning_views(tiers: int, new: int, running: int, count: int, seed: int = 0) -> list[tuple[View, Oracle]]:
    """Random replicas at work: `running` chats decoding at up to `tiers` paces, `new` ones waiting."""
    rng = np.random.default_rng(seed)
    tpots = np.array([0.05, 0.1, 0.15, 0.2])[:tiers]
    views = []
    for _ in range(count):
        prompts, outputs = rng.integers(50, 1500, new + running).tolist(), rng.integers(20, 600, new + running).tolist()
        tier, ahead = rng.choice(tpots, new + running).tolist(), rng.uniform(0.05, 2.0, new + running).tolist()
        records, requests = [], []
        for i in range(new + running):
            id, done = str(i), i < running
            requests.append(Request(id, 0.0, (Stage(prompts[i], outputs[i], SLO(tier[i])),)))
            generated = int(rng.integers(1, outputs[i])) if done else 0
            t0 = 100 + ahead[i] - generated * tier[i] if done else 100 + rng.uniform(0.05, 1.0)
            tokens = prompts[i] + generated
            records.append(Progress(id, 100.0, tokens, t0, tier[i], 1.0, 0, generated, tokens - 1 if done else 0))
        held = sum(-(-p.computed // 16) for p in records)
        total = held + 2 * sum(prompts) // 16
        views.append((View(100.0, records[running:], records[:running], total - held, total), Oracle(requests)))
    return views


def planning_cost(tiers: int, new: int, running: int, count: int = 300) -> Planning:
    """Time `count` plannings on views that differ."""
    roofline = profile("opt-13b-h100").roofline
    times = []
    for view, lengths in planning_views(tiers, new, running, count):
        policy = make_policy("slos-serve", roofline, lengths)
        policy.step(replace(view, waiting=()))
        start = time.process_time()
        policy.step(view)
        times.append(1e3 * (time.process_time() - start))
    steady = np.array(times[10:])
    p50, p99 = np.percentile(steady, (50, 99)).tolist()
    return Planning(tiers, new, running, p50, p99, float(steady.max()))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m slos.bench", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help="requests per simulation (default: 1000)")
    size = parser.parse_args(argv).requests
    print("simulating: CPU seconds per 1,000 requests near capacity, opt-6.7b-a100")
    for (scenario, lengths), rates in NEAR_CAPACITY.items():
        for system in POLICIES:
            if system in rates:
                cost = simulation_cost(scenario, lengths, system, rates[system], size)
                print(f"  {scenario}, {lengths} lengths, {system:12} {rates[system]:5.1f} requests/s {cost:8.3f} s")
                sys.stdout.flush()
    start = time.perf_counter()
    planning_cost(2, 1, 1, count=11)
    print(f"planning: milliseconds of a whole step with new requests waiting; {PAPER}")
    print(f"  the first call took {time.perf_counter() - start:.2f} s, compilation included unless it was cached")
    print("  tiers  new  running      P50      P99    worst")
    for p in (planning_cost(*shape) for shape in PLANNINGS):
        print(f"  {p.tiers:5}  {p.new:3}  {p.running:7} {p.p50:8.3f} {p.p99:8.3f} {p.worst:8.3f}", flush=True)


if __name__ == "__main__":
    main()
