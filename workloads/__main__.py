"""`python -m workloads`: the lengths and arrivals of the six scenarios, next to the paper's."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from math import inf

import numpy as np
from tabulate import tabulate

from workloads.arrivals import STARTS, WINDOW, burstiness, window
from workloads.build import Workload, build
from workloads.download import download
from workloads.files import DATA
from workloads.scenarios import SCENARIOS, Scenario, by_name
from workloads.synthetic import REAL
from workloads.synthetic import window as synthetic_window

HEAD = (
    "scenario", "lengths", "tokens of", "count", "mean", "P50", "P99", "std",
    "paper mean", "P99", "std", "CV", "peak",
)  # fmt: skip
ALIGNED = ("left",) * 3 + ("right",) * 10


def quantities(workload: Workload) -> dict[str, list[int]]:
    """The lengths that the paper speaks of, by name; of several of a kind every stage's."""
    stages = [r.stages for r in workload.requests]
    prompt = {"prompt": [s[0].prompt for s in stages]}
    if workload.scenario == "reasoning":
        thought, said = ([s[i].output for s in stages] for i in (0, 1))
        return prompt | {"thinking": thought, "response": said}
    output = {"output": [stage.output for s in stages for stage in s]}
    if workload.scenario != "tool-calling":
        return prompt | output
    later = {"tool response": [stage.prompt for s in stages for stage in s[1:]]}
    whole = {"rounds": [len(s) for s in stages], "context": [r.context for r in workload.requests]}
    return prompt | later | output | whole


def rows(workload: Workload) -> Iterator[list[object]]:
    """Of the table; what holds for the whole workload stands in its first row."""
    said = {r.quantity: (r.mean, r.p99, r.std) for r in by_name(workload.scenario).reported}
    cv, peak = burstiness([r.arrival for r in workload.requests])
    head, tail = [workload.scenario, workload.lengths], [f"{cv:.2f}", peak]
    for quantity, values in quantities(workload).items():
        data = np.array(values or [0])
        ours = (f"{x:.0f}" for x in (*np.percentile(data, (50, 99)), data.std()))
        paper = ("-" if x is None else f"{x:.0f}" for x in said.get(quantity, (None,) * 3))
        yield [*head, quantity, len(values), f"{data.mean():.1f}", *ours, *paper, *tail]
        head, tail = ["", ""], ["", ""]


def workloads(names: Sequence[str], seed: int, num_requests: int) -> list[Workload]:
    """`num_requests` of data set lengths, and one whole window of trace lengths."""
    made = []
    for name in names:
        chosen = by_name(name)
        made.append(build(name, 1.0, num_requests, seed))
        if chosen.has_trace:
            count = _window_count(chosen, made[-1].source) if chosen.arrivals in STARTS else None
            rate = count / WINDOW if count else 1.0
            made.append(build(name, rate, count or num_requests, seed, lengths="trace"))
    return made


def _window_count(chosen: Scenario, source: str) -> int:
    """Requests of the paper's window that fit."""
    if source == REAL:
        return len(window(chosen.arrivals).fitting(chosen.max_context or inf).times)
    rng = np.random.default_rng(0)
    made = synthetic_window(chosen.arrivals, chosen.max_context, rng)
    return len(made.fitting(chosen.max_context or inf).times)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workloads", description=__doc__)
    add = parser.add_argument
    names = f"only these of {', '.join(SCENARIOS)}"
    add("--scenario", action="append", metavar="NAME", help=names)
    add("--seed", type=int, default=0, help="(%(default)s)")
    add("--requests", type=int, default=6000, metavar="N", help="number of requests to draw (6000)")
    add("--data", metavar="DIR", help=f"folder with the real data, instead of {DATA}")
    fetched = "download data sets (without a name: all that are needed)"
    add("--download", nargs="*", metavar="NAME", help=fetched)
    given = parser.parse_args(argv)
    if given.data:
        os.environ[DATA] = given.data
    try:
        names = [by_name(n).name for n in given.scenario or SCENARIOS]
        if given.download is not None:
            download(given.download)
        made = workloads(names, given.seed, given.requests)
    except (ValueError, OSError) as error:
        print(f"workloads: {error}", file=sys.stderr)
        return 2
    for source in dict.fromkeys(w.source for w in made):
        mine = [w for w in made if w.source == source]
        peak = "CV is that of gaps, peak the most arrivals in 10 mean gaps"
        print(f"Lengths and arrivals: {source}, seed {given.seed}. Tokens; {peak}.")
        table = [row for w in mine for row in rows(w)]
        print(tabulate(table, HEAD, colalign=ALIGNED, disable_numparse=True))
        origins = (o.removeprefix(f"{source} of ") for w in mine for o in w.origins)
        print(f"\nFrom ({source}):")
        print(*(f"  {o}" for o in dict.fromkeys(origins) if o != "poisson"), "", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
