"""What the notebooks run: capacity searches over scenarios and systems, and what is made of their rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import pandas as pd

from slos.core.types import require
from slos.evaluation.capacity_search import Probe, Search, search
from slos.evaluation.stats import Frame, Spread, best_settings, geometric_means, mean_of, over_each, rows_of
from slos.policies import POLICIES
from slos.records.report import OURS, paper, results_dir, write_whole
from slos.records.sweep import commit, sweep
from workloads import SCENARIOS

SETTINGS: dict[str, tuple[str, ...]] = {
    "vllm": ("max_batched_tokens=2048", "max_batched_tokens=4096"),
    "vllm-v1": (
        "max_batched_tokens=512",
        "max_batched_tokens=1024",
        "max_batched_tokens=2048",
        "max_batched_tokens=8192",
    ),
    "sarathi": ("chunk=256", "chunk=512", "chunk=1024", "chunk=2048"),
}
"""What is tried of each baseline, so that its best is reported; a system that is not named runs with its defaults."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large a run is: requests per simulation, seeds, precision of a capacity, and where lengths come from."""

    num_requests: int
    seeds: int
    precision: float
    lengths: tuple[str, ...] = ("dataset",)


SIZES = {
    "smoke": Size(60, 1, 0.2),
    "quick": Size(360, 3, 0.03),
    "full": Size(1400, 5, 0.02, ("dataset", "trace")),
}


def size_of(name: str) -> Size:
    require(name in SIZES, "size", name, f"one of {', '.join(SIZES)}")
    return SIZES[name]


def searches(
    size: str,
    scenarios: Sequence[str] = tuple(SCENARIOS),
    systems: Sequence[str] = tuple(POLICIES),
    profile: str = "",
    target: float = 0.9,
) -> list[Search]:
    """The grid of a size: every scenario, system, setting of it, and seed. Raises ValueError for unknown names."""
    s = size_of(size)
    for name in scenarios:
        require(name in SCENARIOS, "scenario", name, f"one of {', '.join(SCENARIOS)}")
    for name in systems:
        require(name in POLICIES, "system", name, f"one of {', '.join(POLICIES)}")
    grid = [
        Search(scenario, system, setting, profile, lengths, seed, s.num_requests, target, s.precision)
        for lengths, scenario, system in product(s.lengths, scenarios, systems)
        for setting in SETTINGS.get(system, ("",))
        for seed in range(s.seeds)
        if lengths == "dataset" or SCENARIOS[scenario].has_trace
    ]
    for case in grid:
        case.hardware  # noqa: B018  an unknown profile is refused before the first run
    return grid


def run_searches(size: str, cases: Sequence[Search], workers: int | None = None, name: str = "probes") -> Frame:
    """Rows of `Probe` for all cases, from results/<size>/<name>.csv where they lie already."""
    return pd.DataFrame(sweep(search, cases, results_dir(size) / f"{name}.csv", Probe, workers))


def capacities(probes: Frame, *also: str) -> Frame:
    """One row per scenario and system: the best setting's capacity, its 95 % interval over seeds, and each seed's.

    also: further columns to tell apart, as "replicas" and "router".
    """
    columns = ["scenario", "lengths", "system", "setting", "profile", "source", "status", *also]
    best = best_settings(probes[probes.capacity], columns)
    ranks = {
        name: i for i, name in enumerate(("dataset", "trace", *SCENARIOS, *POLICIES))
    }  # one order, so one colour, in every figure
    best = best.sort_values(["lengths", "scenario", "system"], key=lambda c: c.map(lambda name: ranks.get(name, 99)))
    return best.assign(seeds=best["rate"].map(len)).reset_index(drop=True)


def ratios(best: Frame, lengths: str = "dataset", ours: str = OURS) -> Frame:
    """Ours over every other system, per scenario: mean ratio over seeds, its interval, and each seed's ratio.

    lengths: "trace" takes the scenarios that have lengths of their own in the trace with those, the others as ever.
    The system `best` stands for the strongest other one in each scenario.
    """
    traced = set(best.loc[best["lengths"] == lengths, "scenario"])
    best = best[best["lengths"].eq(lengths) | ~best["scenario"].isin(traced)]
    others = best[~best["system"].str.startswith(ours)]
    return over_each(best[best["system"] == ours], others, "system", list(others["system"]))


def is_complete(best: Frame, cases: Sequence[Search]) -> bool:
    """Whether these are the capacities that the paper speaks of: six scenarios, each on its own profile, at 90 %."""
    return set(best["scenario"]) == set(SCENARIOS) and all(not c.profile and c.target == 0.9 for c in cases)


def save_capacities(size: str, best: Frame) -> Path:
    """Write results/<size>/capacity.csv, from which the report draws its table."""
    path = results_dir(size) / "capacity.csv"
    columns = ["scenario", "lengths", "system", "setting", "profile"]
    columns += ["capacity", "low", "high", "seeds", "source", "status"]
    write_whole(path, best[columns].assign(commit=commit()).to_csv(index=False))
    return path


def numbers(best: Frame) -> dict[str, Spread]:
    """What stands beside the paper's, by key of `results/paper.yaml`: value, low, high."""
    found = {}
    for lengths in dict.fromkeys(best["lengths"]):
        table, suffix = ratios(best, lengths), "" if lengths == "dataset" else f"_{lengths}"
        for name, group in table.groupby("against", sort=False):
            found[f"capacity_vs_{name}{suffix}".replace("-", "_")] = mean_of(group)
        for r in rows_of(table[(table["against"] == "best") & table["scenario"].isin(("coding", "reasoning"))]):
            found[f"capacity_{r.scenario}{suffix}"] = r.ratio, r.low, r.high
    return found


def what_capacity_shows(best: Frame) -> str:
    """The findings in Markdown, from the numbers."""
    lines = []
    for lengths in dict.fromkeys(best["lengths"]):
        table = ratios(best, lengths)
        if table.empty:
            continue
        mean = geometric_means(table).set_index("against")
        strongest = table[table["against"] == "best"].sort_values("ratio")
        worst, top = strongest.iloc[0], strongest.iloc[-1]
        r, reported = mean.loc["best"], paper("capacity_vs_vllm")
        lines += [
            f"**Lengths from the {lengths}.** SLOs-Serve carries {r.ratio:.2f}x ("
            + (f"95 % interval {r.low:.2f} to {r.high:.2f}" if r.low < r.high else "one seed, no interval")
            + ") of what the best-tuned baseline of each scenario carries, in geometric mean over "
            f"{int(r.scenarios)}; the paper reports {reported:g}x, with speculation, which is not part of this run.",
            f"- most in {top.scenario}: {top.ratio:.2f}x over {top.system}; "
            f"least in {worst.scenario}: {worst.ratio:.2f}x over {worst.system}",
            *(f"- over {name}: {row.ratio:.2f}x" for name, row in mean.iterrows() if name != "best"),
            "",
        ]
    return "\n".join(lines)
