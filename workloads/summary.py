"""What a workload looks like, beside the figures that the paper reports for its scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from workloads.build import Workload
from workloads.scenarios import Reported, by_name


@dataclass(frozen=True, slots=True)
class Summary:
    """One quantity of a workload, in tokens (rounds: a count): how many values, and their statistics.

    cv: standard deviation over mean of the gaps between arrivals (Poisson: 1). peak: most arrivals within 10 mean gaps
    (Poisson: about 25). paper: what the paper reports, if it does.
    """

    scenario: str
    lengths: str
    source: str
    quantity: str
    count: int
    mean: float
    p50: float
    p99: float
    std: float
    cv: float
    peak: int
    paper: Reported | None


def burstiness(arrivals: Sequence[float]) -> tuple[float, int]:
    """(coefficient of variation of the gaps, most arrivals within 10 mean gaps); (0, count) of fewer than 3."""
    times = np.asarray(arrivals, dtype=float)
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() == 0:
        return 0.0, len(times)
    peak = np.searchsorted(times, times + 10 * gaps.mean(), side="right") - np.arange(len(times))
    return float(gaps.std() / gaps.mean()), int(peak.max())


def quantities(workload: Workload) -> list[tuple[str, list[int]]]:
    """The lengths that the paper speaks of, by name: every stage's where a request has several of a kind."""
    stages = [r.stages for r in workload.requests]
    prompt = ("prompt", [s[0].prompt for s in stages])
    if workload.scenario == "reasoning":
        return [prompt, ("thinking", [s[0].output for s in stages]), ("response", [s[1].output for s in stages])]
    output = ("output", [stage.output for s in stages for stage in s])
    if workload.scenario != "tool-calling":
        return [prompt, output]
    later = ("tool response", [stage.prompt for s in stages for stage in s[1:]])
    whole = ("context", [r.context for r in workload.requests])
    return [prompt, later, output, ("rounds", [len(s) for s in stages]), whole]


def summarize(workload: Workload) -> tuple[Summary, ...]:
    """A row for every quantity of a workload."""
    cv, peak = burstiness([r.arrival for r in workload.requests])
    reported = {r.quantity: r for r in by_name(workload.scenario).reported}
    rows = []
    for quantity, values in quantities(workload):
        data = np.array(values or [0])
        p50, p99 = np.percentile(data, (50, 99))
        rows.append(
            Summary(
                workload.scenario, workload.lengths, workload.source, quantity, len(values),
                float(data.mean()), float(p50), float(p99), float(data.std()), cv, peak, reported.get(quantity),
            )
        )  # fmt: skip
    return tuple(rows)
