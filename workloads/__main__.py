"""`python -m workloads`: the six scenarios as a table, beside the paper's figures."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from math import inf

import numpy as np

from workloads.arrivals import STARTS, WINDOW, window
from workloads.build import Workload, build
from workloads.download import download
from workloads.files import DATA
from workloads.scenarios import SCENARIOS, Scenario, by_name
from workloads.summary import Summary, summarize
from workloads.synthetic import REAL
from workloads.synthetic import window as synthetic_window

HEAD = (
    f"{'scenario':<14}{'lengths':<9}{'tokens of':<14}{'count':>7}{'mean':>8}{'P50':>7}{'P99':>7}{'std':>7} |"
    f"{'paper mean':>11}{'P99':>6}{'std':>5} |{'gap CV':>7}{'peak':>6}"
)


def line(row: Summary, first: bool) -> str:
    """One line of the table; what holds for the whole workload stands in its first line."""

    def figure(value: float | None, width: int) -> str:
        return f"{'-' if value is None else f'{value:.0f}':>{width}}"

    paper = (row.paper.mean, row.paper.p99, row.paper.std) if row.paper else (None, None, None)
    return (
        f"{row.scenario if first else '':<14}{row.lengths if first else '':<9}{row.quantity:<14}{row.count:>7}"
        f"{row.mean:>8.1f}{row.p50:>7.0f}{row.p99:>7.0f}{row.std:>7.0f} |"
        f"{figure(paper[0], 11)}{figure(paper[1], 6)}{figure(paper[2], 5)} |"
        + (f"{row.cv:>7.2f}{row.peak:>6}" if first else "")
    ).rstrip()


def workloads(names: Sequence[str], seed: int, num_requests: int) -> list[Workload]:
    """What the table shows: `num_requests` of data set lengths, and one whole window of trace lengths."""
    made = []
    for name in names:
        chosen = by_name(name)
        made.append(build(name, 1.0, num_requests, seed))
        if chosen.arrivals in STARTS:
            count = _window_count(chosen, made[-1].source)
            made.append(build(name, count / WINDOW, count, seed, lengths="trace"))
        elif chosen.has_trace:
            made.append(build(name, 1.0, num_requests, seed, lengths="trace"))
    return made


def _window_count(chosen: Scenario, source: str) -> int:
    """Requests of the paper's window that fit."""
    if source == REAL:
        return len(window(chosen.arrivals).fitting(chosen.max_context or inf).times)
    return len(synthetic_window(chosen.arrivals, chosen.max_context, np.random.default_rng(0)).times)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m workloads", description=__doc__)
    parser.add_argument("--scenario", action="append", metavar="NAME", help=f"only these of {', '.join(SCENARIOS)}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--requests", type=int, default=6000, metavar="N", help="requests to draw (6000)")
    parser.add_argument("--data", metavar="DIR", help=f"the folder with the real data, as {DATA}")
    parser.add_argument("--download", nargs="*", metavar="NAME", help="fetch data sets (without a name: all needed)")
    given = parser.parse_args(argv)
    if given.data:
        os.environ[DATA] = given.data
    try:
        names = [by_name(n).name for n in given.scenario or SCENARIOS]
        if given.download is not None:
            download(given.download)
        made = workloads(names, given.seed, given.requests)
    except (ValueError, OSError, ImportError) as error:
        print(f"workloads: {error}", file=sys.stderr)
        return 2
    for source in dict.fromkeys(w.source for w in made):
        mine = [w for w in made if w.source == source]
        print(f"Lengths and arrivals: {source}, seed {given.seed}. Tokens; peak is the most arrivals in 10 mean gaps.")
        print(f"{HEAD}\n{'-' * len(HEAD)}")
        for workload in mine:
            for i, row in enumerate(summarize(workload)):
                print(line(row, i == 0))
        print(f"\nFrom ({source}):")
        for origin in dict.fromkeys(o.removeprefix(f"{source} of ") for w in mine for o in w.origins if o != "poisson"):
            print(f"  {origin}")
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
