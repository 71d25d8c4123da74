"""Why numbers fall short of the paper's, found by simulation: what `why` in `results/paper.yaml`
quotes.

Per scenario on one replica, *short of memory*: of the requests that SLOs-Serve declines at its
capacity the share that lacked KV memory alone: at the first refusal the look ahead was short of it
and would have passed had there been no end of it; with drafts and without. *Without decodes*: its
capacity with outputs of one token over that with whole ones, more than drafts could ever bring.
*vLLM drafting*: its capacity at the best draft length, or none, over that with none.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from slos.core.attainment import attainment
from slos.core.lengths import Oracle
from slos.core.types import Progress, View
from slos.evaluation.capacity_search import Probe, Search, capacity, search, serve
from slos.evaluation.grids import MAX_DRAFTS, SETTINGS, fixed_drafts
from slos.evaluation.stats import geometric_mean
from slos.files import Frame, results_dir
from slos.planning.lookahead import MEMORY, OK, look_ahead
from slos.policies import OURS
from slos.policies.slos_serve import SLOsServe
from slos.records.sweep import sweep
from slos.sim.replica import World
from slos.sim.simulator import simulate
from workloads import SCENARIOS, build

SHORT, WITHOUT, VLLM = "short of memory", "without decodes", "vLLM drafting"


@dataclass(frozen=True, slots=True)
class Finding:
    """value: a share or a ratio. rate: the capacity that it is told at or over, requests per second
    and GPU."""

    scenario: str
    cause: str
    seed: int
    rate: float
    value: float
    source: str
    status: str


class Watched(SLOsServe):  # type: ignore[misc]  # final, but this decides nothing: it looks on
    """short: by request, whether memory alone was missing when it was first refused."""

    short: dict[str, bool]

    def admit(self, view: View, jobs: np.ndarray, candidates: Sequence[Progress]) -> np.ndarray:
        chosen, old = super().admit(view, jobs, candidates), len(jobs) - len(candidates)
        engine = self._engine(view)
        for i, p in enumerate(candidates):
            if not chosen[i] and p.id not in self.short:
                inside = np.ones(len(jobs), np.bool_)
                inside[old:], inside[old + i] = chosen, True
                verdicts = [look_ahead(view.now, jobs, inside, engine._replace(blocks=n))[0]
                            for n in (engine.blocks, 1 << 40)]  # fmt: skip
                self.short[p.id] = verdicts == [MEMORY, OK]
        return chosen


def short_of_memory(case: Search, rate: float) -> float:
    """Of the requests declined at `rate`. One that was late before its first step lacked time."""
    requests = build(case.scenario, rate, case.num_requests, case.seed).requests
    policy = Watched(case.hardware.roofline, Oracle(requests))
    policy.short = {}
    outcomes = simulate(requests, policy, World.of(case.hardware, max_drafts=case.max_drafts))
    declined = [policy.short.get(o.id, False) for o in outcomes if o.declined]
    return sum(declined) / max(1, len(declined))


def without_decodes(case: Search, start: float) -> float:
    """Capacity in requests per second if every output ends with its first token."""

    def attained_at(rate: float) -> float:
        requests = build(case.scenario, rate, case.num_requests, case.seed).requests
        cut = [replace(r, stages=tuple(replace(s, output=1) for s in r.stages)) for r in requests]
        return attainment(serve(cut, case.system, case.hardware))

    return capacity(attained_at, case.target, start, case.precision)[0]


def causes(case: Search) -> list[Finding]:
    """All that is asked of one case: ours with drafts or without, or vLLM without."""
    probe, found = carried(case), {}
    if case.system != OURS:
        found[VLLM] = max(1.0, *(carried(c).rate / probe.rate for c in fixed_drafts(case)))
    else:
        rate = probe.rate * case.gpus
        found[SHORT + ", drafting" * (case.max_drafts > 0)] = short_of_memory(case, rate)
        if SCENARIOS[case.scenario].drafting and not case.max_drafts:
            found[WITHOUT] = without_decodes(case, rate) / rate
    rest = probe.source, "simulated"
    return [
        Finding(case.scenario, cause, case.seed, probe.rate, value, *rest)
        for cause, value in found.items()
    ]


def carried(case: Search) -> Probe:
    return next(probe for probe in search(case) if probe.capacity)


def cases(scenarios: Sequence[str], num_requests: int, seeds: int) -> list[Search]:
    """What `causes` is asked of; where there is no draft model nothing about drafts."""
    grid = []
    for name in scenarios:
        for seed in range(seeds):
            ours = Search(name, OURS, seed=seed, num_requests=num_requests, precision=0.05)
            vllm = replace(ours, system="vllm", setting=SETTINGS["vllm"][0])
            grid += (
                [ours, replace(ours, max_drafts=MAX_DRAFTS), vllm]
                if SCENARIOS[name].drafting
                else [ours]
            )
    return grid


def table(found: Sequence[Finding]) -> Frame:
    """A row per scenario, means over seeds; and the geometric mean over the scenarios of what is a
    ratio."""
    grid = pd.DataFrame(found).pivot_table("value", "scenario", "cause", sort=False)
    for cause in {WITHOUT, VLLM}.intersection(grid):
        grid.loc["geometric mean", cause] = geometric_mean(grid[cause].dropna().tolist())
    return grid


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m slos.studies.causes", description=__doc__)
    parser.add_argument(
        "--requests", type=int, default=600, metavar="N", help="per simulation (600)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of everything (3)")
    parser.add_argument(
        "--scenarios", nargs="+", default=list(SCENARIOS), choices=SCENARIOS, help="(all)"
    )
    parser.add_argument("--workers", type=int, metavar="N", help="processes (one per core)")
    given, path = parser.parse_args(argv), results_dir("quick") / "causes.csv"
    found = sweep(
        causes, cases(given.scenarios, given.requests, given.seeds), path, Finding, given.workers
    )
    print(f"{table(found).to_string(float_format='{:.2f}'.format, na_rep='-')}\n\nwritten: {path}")


if __name__ == "__main__":
    main()
