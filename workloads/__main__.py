"""`python -m workloads`: the six scenarios as a table, beside the paper's figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from math import inf

import numpy as np

from workloads.arrivals import STARTS, WINDOW, burstiness, window
from workloads.build import Workload, build
from workloads.download import download
from workloads.files import DATA
from workloads.scenarios import SCENARIOS, Scenario, by_name
from workloads.synthetic import REAL
from workloads.synthetic import window as synthetic_window

HEAD = (
    f"{'scenario':<14}{'lengths':<9}{'tokens of':<14}"
    f"{'count':>7}{'mean':>8}{'P50':>7}{'P99':>7}{'std':>7} "
    f"|{'paper mean':>11}{'P99':>6}{'std':>5} |{'gap CV':>7}{'peak':>6}"
)


def quantities(workload: Workload) -> dict[str, list[int]]:
    """The lengths that the paper speaks of, by name: every stage's where a request has several of a
    kind."""
    stages = [r.stages for r in workload.requests]
    prompt = {"prompt": [s[0].prompt for s in stages]}
    if workload.scenario == "reasoning":
        return prompt | {
            "thinking": [s[0].output for s in stages],
            "response": [s[1].output for s in stages],
        }
    output = {"output": [stage.output for s in stages for stage in s]}
    if workload.scenario != "tool-calling":
        return prompt | output
    later = {"tool response": [stage.prompt for s in stages for stage in s[1:]]}
    whole = {"rounds": [len(s) for s in stages], "context": [r.context for r in workload.requests]}
    return prompt | later | output | whole


def lines(workload: Workload) -> Iterator[str]:
    """Of the table; what holds for the whole workload stands in its first line."""
    said = {r.quantity: (r.mean, r.p99, r.std) for r in by_name(workload.scenario).reported}
    cv, peak = burstiness([r.arrival for r in workload.requests])
    head, tail = f"{workload.scenario:<14}{workload.lengths:<9}", f"{cv:>7.2f}{peak:>6}"
    for quantity, values in quantities(workload).items():
        data, reported = np.array(values or [0]), said.get(quantity, (None,) * 3)
        p50, p99 = np.percentile(data, (50, 99))
        paper = ("-" if value is None else f"{value:.0f}" for value in reported)
        yield (
            f"{head}{quantity:<14}"
            f"{len(values):>7}{data.mean():>8.1f}{p50:>7.0f}{p99:>7.0f}{data.std():>7.0f} "
            f"|{next(paper):>11}{next(paper):>6}{next(paper):>5} |{tail}"
        ).rstrip()
        head, tail = " " * 23, ""


def workloads(names: Sequence[str], seed: int, num_requests: int) -> list[Workload]:
    """What the table shows: `num_requests` of data set lengths, and one whole window of trace
    lengths."""
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
    return len(
        synthetic_window(chosen.arrivals, chosen.max_context, np.random.default_rng(0)).times
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workloads", description=__doc__)
    parser.add_argument(
        "--scenario", action="append", metavar="NAME", help=f"only these of {', '.join(SCENARIOS)}"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--requests", type=int, default=6000, metavar="N", help="requests to draw (6000)"
    )
    parser.add_argument("--data", metavar="DIR", help=f"the folder with the real data, as {DATA}")
    parser.add_argument(
        "--download", nargs="*", metavar="NAME", help="fetch data sets (without a name: all needed)"
    )
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
        print(
            f"Lengths and arrivals: {source}, seed {given.seed}. Tokens; peak is the most arrivals "
            "in 10 mean gaps."
        )
        print(f"{HEAD}\n{'-' * len(HEAD)}")
        for workload in mine:
            print(*lines(workload), sep="\n")
        print(f"\nFrom ({source}):")
        for origin in dict.fromkeys(
            o.removeprefix(f"{source} of ") for w in mine for o in w.origins if o != "poisson"
        ):
            print(f"  {origin}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
