"""What the kit itself costs: CPU seconds to simulate, and milliseconds to plan. `python -m
slos.studies.overhead` prints both.

CPU time, not wall time; medians over repeats. Planning decides which of the new requests to
admit, the proof included; a step is all that the policy does at once, from the view to the batch,
with a planning in it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from statistics import median

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from tabulate import tabulate

from slos.core.types import SLO, Progress, Request, Stage, View
from slos.evaluation import plots
from slos.evaluation.plots import DASHED, MARKERS, colors, finish, name_of, unique
from slos.evaluation.sizes import of_size
from slos.evaluation.stats import select
from slos.files import Frame
from slos.hardware.profiles import profile
from slos.planning.jobs import jobs_of
from slos.policies import make_policy
from slos.policies.oracle import Oracle
from slos.policies.slos_serve import SLOsServe
from slos.records.claims import paper, put
from slos.sim.replica import World
from slos.sim.simulator import simulate
from workloads import SCENARIOS, build

NEAR_CAPACITY = {
    ("chatbot", "dataset"): {"vllm": 2.8, "vllm-v1": 3.0, "sarathi": 3.0, "slos-serve": 3.7},
    ("chatbot", "trace"): {"vllm": 3.2, "vllm-v1": 3.5, "sarathi": 3.5, "slos-serve": 4.6},
}
"""Requests per second at about 90 % attainment on opt-6.7b-a100, for the loads to time."""

PLANNINGS = tuple(product((1, 2, 3, 4), (1, 10, 50, 100), (50, 200)))
"""TPOT tiers, new requests, running requests."""
SIZES = {"smoke": (60, 20), "quick": (400, 60), "full": (1000, 300)}
"""Requests per simulation, plannings of each shape."""
PLAIN = {"headers": "keys", "showindex": False, "floatfmt": ".3f", "tablefmt": "plain"}
PAPER = f"the paper: below {paper('planning_p99_ms'):g} ms, mostly below 2 ms"


def simulation_cost(
    scenario: str, lengths: str, system: str, rate: float, num_requests: int
) -> float:
    """CPU seconds per 1,000 requests, median over seeds."""
    hardware, costs = profile(SCENARIOS[scenario].profile), []
    for seed in range(4):
        requests = build(scenario, rate, num_requests, seed, lengths).requests
        policy = make_policy(system, hardware.roofline, Oracle(requests))
        start = time.process_time()
        simulate(requests, policy, World.of(hardware))
        costs.append(1000 * (time.process_time() - start) / num_requests)
    return median(costs[1:])  # the first one may compile


def planning_views(tiers: int, new: int, running: int, count: int) -> list[tuple[View, Oracle]]:
    """Random replicas: `running` chats decode at up to `tiers` paces, `new` ones wait."""
    rng = np.random.default_rng(0)
    tpots, n, now = np.array([0.05, 0.1, 0.15, 0.2])[:tiers], new + running, 100.0
    views = []
    for _ in range(count):
        prompts, outputs = (rng.integers(*of, n).tolist() for of in ((50, 1500), (20, 600)))
        tier, ahead = rng.choice(tpots, n).tolist(), rng.uniform(0.05, 2.0, n).tolist()
        records, requests = [], []
        for i, (prompt, output, tpot) in enumerate(zip(prompts, outputs, tier, strict=True)):
            requests.append(Request(str(i), 0.0, (Stage(prompt, output, SLO(tpot)),)))
            made = int(rng.integers(1, output)) if i < running else 0
            t0 = now + (ahead[i] - made * tpot if i < running else rng.uniform(0.05, 1.0))
            computed = prompt + made - 1 if i < running else 0
            records.append(Progress(str(i), now, prompt + made, t0, tpot, 1.0, 0, made, computed))
        held = sum(-(-p.computed // 16) for p in records)
        total = held + 2 * sum(prompts) // 16
        view = View(now, records[running:], records[:running], total - held, total)
        views.append((view, Oracle(requests)))
    return views


def planning_cost(tiers: int, new: int, running: int, count: int) -> dict[str, float]:
    """Milliseconds of `count` plannings on views that differ, and of the steps around them."""
    roofline = profile("opt-13b-h100").roofline
    planned, steps = [], []
    for i, (view, lengths) in enumerate(planning_views(tiers, new, running, count)):
        taken, _ = SLOsServe(roofline, lengths).planned(list(view.waiting))
        # the second one finds warmer caches
        for planning in (True, False) if i % 2 else (False, True):
            policy = SLOsServe(roofline, lengths)
            policy.step(replace(view, waiting=()))
            plan = policy.sort(view)
            plan.jobs = jobs_of([*view.running, *taken], lengths, len(taken))
            start = time.process_time()
            policy.choose(plan, taken) if planning else policy.step(view)
            (planned if planning else steps).append(1e3 * (time.process_time() - start))
    found: dict[str, float] = {"tiers": tiers, "new": new, "running": running}
    for name, times in (("", planned), ("step_", steps)):
        found[f"{name}p50"], found[f"{name}p99"] = np.percentile(times[10:], (50, 99)).tolist()
    return found | {"step_worst": max(steps[10:])}


def simulations(num_requests: int) -> Frame:
    """CPU seconds per 1,000 requests of every policy near its capacity, a row each."""
    cases = [(*of, *each) for of, rates in NEAR_CAPACITY.items() for each in rates.items()]
    rows = [(*case, simulation_cost(*case, num_requests)) for case in cases]
    return pd.DataFrame(rows, columns=["scenario", "lengths", "system", "rate", "cpu_seconds"])


def plannings(count: int) -> Frame:
    """Milliseconds of planning and of whole steps, a row per shape."""
    planning_cost(2, 1, 1, count=11)  # compiles
    return pd.DataFrame([planning_cost(*shape, count=count + 10) for shape in PLANNINGS])


def run(size: str) -> tuple[Frame, Frame]:
    """`plannings` and `simulations` of a size; the P99 of steps is put next to the paper's number:
    that of the slowest shape, with the median and the longest step as its interval."""
    num_requests, count = of_size(size, SIZES)
    planned, simulated = plannings(count), simulations(num_requests)
    # the paper's scheduler plans in every step: all of ours counts
    usual, p99, longest = planned[["step_p50", "step_p99", "step_worst"]].max()
    numbers = {"planning_p99_ms": (p99, usual, max(p99, longest))}
    rest = "measured", "random replicas at work", "this machine's CPU"
    put(size, "05_overhead", numbers, *rest)
    return planned, simulated


def planning_curves(planned: Frame) -> Figure:
    """P99 of a step against new requests: a panel per number of running ones, a line per tiers."""
    titles = [f"{count} running requests" for count in unique(planned["running"])]
    label = "step with a planning, P99 (ms)"
    figure, axes = plots.panels(titles, (3.8, 3), (0, 0), label, sharey=True)
    for axis, i, curve, looks in plots.lines(axes, planned, "running", "tiers"):
        axis.plot(curve["new"], curve["step_p99"], marker=MARKERS[i], **looks)
    above = {"xytext": (0, 2), "textcoords": "offset points", "fontsize": 7}
    for axis in axes:
        for limit, word in ((paper("planning_p99_ms"), "paper's longest"), (2, "paper's usual")):
            axis.axhline(limit, **DASHED)
            axis.annotate(f"{word}, {limit:g} ms", (1, limit), **above)
        axis.set(xscale="log", yscale="log", xlabel="new requests")
    said = "measured on this machine's CPU: whole steps, from the view to the batch"
    return finish(figure, said, axes[0], title="TPOT tiers", loc="outside right upper")


def simulation_bars(simulated: Frame) -> Figure:
    """CPU seconds per 1,000 simulated requests, a bar per policy and kind of lengths."""
    cases = unique(zip(simulated["scenario"], simulated["lengths"], strict=True))
    systems = unique(simulated["system"])
    figure, axis = plt.subplots(figsize=(6, 2.8), layout="constrained")
    for i, (system, color) in enumerate(colors(systems).items()):
        at, rows = plots.beside(len(cases), i, len(systems), 0.2), select(simulated, system=system)
        plots.bars(axis, at, rows, i, "cpu_seconds", width=0.2, color=color, label=name_of(system))
    axis.set_xticks(range(len(cases)), [f"{name}, {lengths} lengths" for name, lengths in cases])
    axis.set_ylabel("CPU s per 1,000 requests")
    said = "measured on this machine's CPU, one replica near its capacity, one core"
    return finish(figure, said, axis, ncols=len(systems))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m slos.studies.overhead", description=__doc__)
    requests = "requests per simulation (default: %(default)s)"
    parser.add_argument("--requests", type=int, default=1000, help=requests)
    given = parser.parse_args(argv)
    start = time.perf_counter()
    planning_cost(2, 1, 1, count=11)
    took = f"{time.perf_counter() - start:.2f} s"
    print(f"the first plannings took {took}, compilation included unless it was cached")
    print("simulating: CPU seconds per 1,000 requests near capacity, opt-6.7b-a100")
    print(tabulate(simulations(given.requests), **PLAIN), flush=True)
    print(f"planning, and the whole step that it is part of: milliseconds; {PAPER}")
    print(tabulate(plannings(300), **PLAIN))


if __name__ == "__main__":
    main()
