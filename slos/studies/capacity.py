"""How much load each scheduler carries, and what it attains at loads around that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from slos.core.pace import PAPER, RULES
from slos.core.types import require
from slos.evaluation import plots, stats
from slos.evaluation.capacity_search import Probe, Search, probe, tried
from slos.evaluation.grids import swept
from slos.evaluation.plots import DASHED, colors, name_of, seeds_said, unique
from slos.evaluation.sizes import Size, check_names, of_size
from slos.evaluation.stats import capacities, mean_of, of_every_seed, rows_of, select
from slos.files import Frame
from slos.policies import OURS, ordinary
from slos.records.claims import Spread, paper
from workloads import SCENARIOS

ASKED = ("rule", "target")
OTHERWISE = {
    "smoke": Size(60, 1, 0.5, scenarios=("coding",)),
    "quick": Size(300, 1, 0.1, scenarios=("mixed",)),
    "full": Size(600, 3, 0.04),
}
"""What is run by another rule of pace or at another target, and for which scenarios: less than by
the paper's rule at 90 %, so that a full run stays below 35 minutes of two cores."""
LOADS = {
    "smoke": (0.5, 1.0),
    "quick": (0.6, 0.9, 1.2),
    "full": (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5),
}
"""Where attainment is looked at, as shares of what the strongest system of the scenario carries."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A case at a load, requests per second in all."""

    search: Search
    rate: float

    def __str__(self) -> str:
        return f"{self.search} at {self.rate:.4g}/s"

    @property
    def system(self) -> str:
        return self.search.system


def attained(case: Loaded) -> list[Probe]:
    return [probe(case.search, case.rate)]


def at_loads(
    size: str, best: Frame, cases: Sequence[Search], workers: int | None = None, name: str = "loads"
) -> Frame:
    """Rows of `Probe` of each system of a table of capacities, with its best setting at all `LOADS`
    of its scenario, for the seeds of the searches behind it and lengths of the data sets; from
    results/<size>/<name>.csv where they lie already."""
    best = select(best, lengths="dataset")
    chosen = {(r.scenario, r.system, r.setting) for r in rows_of(best)}
    top = best.groupby("scenario")["capacity"].max()
    grid = [
        Loaded(c, share * top[c.scenario] * c.gpus)
        for c in cases
        if c.lengths == "dataset" and (c.scenario, c.system, c.setting) in chosen
        for share in of_size(size, LOADS)
    ]
    return swept(size, name, attained, grid, Probe, workers)


def ratios(best: Frame, lengths: str = "dataset", *also: str) -> Frame:
    """Ours over every other system, per scenario and `also`: mean ratio over seeds, its interval,
    and each seed's ratio.

    lengths: "trace" takes the scenarios that have lengths of their own in the trace with those, the
    others as ever. The system `best` stands for the strongest other one in each scenario.
    """
    traced = set(best.loc[best["lengths"] == lengths, "scenario"])
    best = best[best["lengths"].eq(lengths) | ~best["scenario"].isin(traced)]
    others = best[~best["system"].str.startswith(OURS)]
    return stats.over_each(select(best, system=OURS), others, "system", *also)


def is_complete(best: Frame, cases: Sequence[Search]) -> bool:
    """Whether these are the paper's: six scenarios, own profiles, its rule, 90 %; with no system
    left out or added, each of which may be the best other one."""
    whole = set(best["scenario"]) == set(SCENARIOS) and {c.system for c in cases} == {*ordinary()}
    return whole and all(not c.profile and (c.rule, c.target) == (PAPER, 0.9) for c in cases)


def asked_otherwise(
    size: str, cases: Sequence[Search], rules: Sequence[str], targets: Sequence[float]
) -> list[Search]:
    """The cases of `OTHERWISE` by each other rule of pace and target."""
    s, known = OTHERWISE[size], {(c.rule, c.target) for c in cases}
    check_names("rule", rules, RULES)
    for target in targets:
        require(0 < target <= 1, "target", target, "in (0, 1]")
    return [
        replace(c, rule=rule, target=target, **s.effort)
        for rule, target, c in product(rules, targets, cases)
        if (rule, target) not in known
        and (c.seed < s.seeds and c.lengths in s.lengths and c.scenario in s.scenarios)
    ]


def carried_otherwise(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Capacities by rule and target, from results/<size>/asked.csv where the rows lie already; of
    each system the best setting that has a capacity for every seed."""
    if not cases:
        return pd.DataFrame()
    probes = swept(size, "asked", tried, cases, Probe, workers)
    whole = of_every_seed(probes, "scenario", "system", "setting", *ASKED)
    return capacities(whole, *ASKED) if len(whole) else pd.DataFrame()


def alike(best: Frame) -> Frame:
    """Of capacities by rule and target, in that order, the scenarios that are known for all."""
    best = select(best, lengths="dataset").sort_values("target", kind="stable")
    best = best.sort_values("rule", key=lambda c: c.map([*RULES].index), kind="stable")
    asked = best.groupby([*ASKED]).ngroup()
    known = asked.groupby(best["scenario"]).transform("nunique")
    return best[known == asked.nunique()].reset_index(drop=True)


def by_what_is_asked(best: Frame) -> Frame:
    """Ours over the best other system by rule, target and scenario: ratio, low, high, each."""
    return select(ratios(best, "dataset", *ASKED), against="best")


def save_capacities(size: str, best: Frame) -> Path:
    """Write results/<size>/capacity.csv, from which the report draws its table."""
    columns = ["scenario", "lengths", "system", "setting", "profile"]
    columns += ["capacity", "low", "high", "seeds", "source", "status"]
    columns += ["bound"] if "bound" in best else []
    return stats.write(size, "capacity", best[columns])


def numbers(best: Frame) -> dict[str, Spread]:
    """Our numbers, by key of `results/paper.yaml`: value, low, high."""
    found = {}
    for lengths in dict.fromkeys(best["lengths"]):
        table, suffix = ratios(best, lengths), "" if lengths == "dataset" else f"_{lengths}"
        for name, group in table.groupby("against", sort=False):
            found[f"capacity_vs_{name}{suffix}".replace("-", "_")] = mean_of(group)
        own = {"coding", "reasoning"} & {*select(best, lengths=lengths)["scenario"]}
        for r in rows_of(select(table[table["scenario"].isin(own)], against="best")):
            found[f"capacity_{r.scenario}{suffix}"] = r.ratio, r.low, r.high
    return found


def asked_numbers(table: Frame) -> dict[str, Spread]:
    """Of `by_what_is_asked`, where all scenarios are known: by rule and target, as
    `capacity_vs_best_client_98`; the paper's rule at 90 % has its row already."""
    groups = table.groupby([*ASKED], sort=False)
    return {
        f"capacity_vs_best_{rule}_{100 * target:g}": mean_of(rows)
        for (rule, target), rows in groups
        if set(rows["scenario"]) == set(SCENARIOS) and (rule, target) != (PAPER, 0.9)
    }


def capacity_bars(best: Frame, source: str) -> Figure:
    """Capacity by scenario and system, with intervals, the number on the bar, and the bound."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    titles = [Path(scenario).name for scenario in scenarios]  # one may be a file
    figure, axes = plots.panels(titles, (2.1, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = select(best, scenario=scenario)
        most = rows["capacity"].max()
        for i, (system, color) in enumerate(colors(systems).items()):
            mine = select(rows, system=system)
            at = [i] * len(mine)
            plots.bars(axis, at, mine, i, color=color, label=name_of(system))
            for capacity in mine["capacity"]:
                axis.annotate(
                    f"{capacity:.3g}", (i, 0.04 * most), ha="center", fontsize=8, rotation=90,
                    bbox=plots.WHITE,
                )  # fmt: skip
        if "bound" in rows and rows["bound"].notna().any():
            most = max(most, rows["bound"].max())
            label = None if axis is not axes[0] else plots.BOUND
            axis.axhline(rows["bound"].max(), **DASHED, label=label)
        axis.set(xticks=[], ylim=(0, max(1.25 * most, 1.05 * rows["high"].max())))
    said = f"{source}; bars: best setting of each system; {seeds_said(best)}"
    said += f"; dashed: {plots.BOUND_SAID}" * ("bound" in best)
    names = len(systems) + ("bound" in best)
    rows = ceil(1.7 * names / figure.get_figwidth())
    return plots.finish(figure, said, axes[0], ncols=ceil(names / rows))


def ratio_chart(table: Frame, means: Frame, source: str) -> Figure:
    """Ours over each system, per scenario, geometric mean last; the paper's figure as a line, if
    the mean is of all the scenarios of which that is."""
    fewest, most = means["scenarios"].min(), len(SCENARIOS)
    whole = fewest == most
    last = "geometric mean" if whole else f"mean of {fewest} of {most}"
    order = {name: i for i, name in enumerate(SCENARIOS)}  # others come after these
    table = table.sort_values("scenario", key=lambda c: c.map(order), kind="stable")
    rows: Frame = pd.concat([table, means.assign(scenario=last)])
    reported = paper("authors_vs_best") if whole else 0.0
    count = len(set(rows["scenario"]))
    figure, axis = plt.subplots(figsize=(max(7.5, 1.3 * count + 1.5), 3.4), layout="constrained")
    others = unique(table["against"])
    over = {other: f"over {name_of(other)}" for other in others} | {"best": "over the best of them"}
    palette = {over[other]: color for other, color in colors(others).items()}
    rows["against"] = rows["against"].map(over)
    plots.dots(axis, rows, "against", palette, reported, "its\n baselines")
    axis.axvline(count - 1.5, color="0.7", linewidth=0.8)
    top = 1.08 * max([reported, *rows["high"]])
    axis.set(ylabel="capacity over another's (x)", ylim=(0, top))
    ncols = min(max(4, count), len(palette))
    return plots.finish(figure, f"{source}; {seeds_said(table)}", axis, fontsize=8, ncols=ncols)


def attainment_curves(rows: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment by load, a panel per scenario: mean over seeds, a band from worst to best."""
    titles, ylabel = unique(rows["scenario"]), "attainment (%)"
    figure, axes = plots.panels(titles, (3.4, 2.5), (0, 0.5), ylabel, 3, sharey=True)
    for axis, i, mine, looks in plots.lines(axes, rows, "scenario", "system"):
        told = 100 * mine.groupby("rate")["attainment"].agg(["mean", "min", "max"])
        axis.fill_between(told.index, told["min"], told["max"], color=looks["color"], alpha=0.2)
        axis.plot(told.index, told["mean"], **plots.marked(i), **looks, **plots.nested(i))
    for axis in axes:
        axis.axhline(100 * target, **DASHED)
        axis.set(xlabel="load (requests/s per GPU)", xlim=(0, None), ylim=(0, 102))
    seeds = rows["seed"].nunique()
    lines = f"mean of {seeds} seeds, bands: worst to best" if seeds > 1 else "one seed"
    said = f"{source}; lines: {lines}; dashed: target {target:.0%}"
    return plots.finish(figure, said, axes[0], ncols=min(4, rows["system"].nunique()))
