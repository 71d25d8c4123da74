"""Attainment against load, on one grid of loads for all systems of a scenario."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from slos.evaluation.capacity_search import Probe, Search, probe
from slos.evaluation.grids import swept
from slos.evaluation.plots import DASHED, colors, finish, marked, name_of, nested, panels, unique
from slos.evaluation.sizes import of_size
from slos.evaluation.stats import rows_of, select
from slos.files import Frame

AT = {
    "smoke": (0.5, 1.0),
    "quick": (0.6, 0.9, 1.2),
    "full": (0.25, 0.4, 0.55, 0.7, 0.85, 1.0, 1.15, 1.3, 1.5),
}
"""Loads of the grid, as shares of what the strongest system of the scenario carries."""


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


def grid(size: str, best: Frame, cases: Sequence[Search]) -> list[Loaded]:
    """Each system of a table of capacities with its best setting at all loads of its scenario, for
    the seeds of the searches behind it; lengths of the data sets."""
    best = select(best, lengths="dataset")
    chosen = {(r.scenario, r.system, r.setting) for r in rows_of(best)}
    top = best.groupby("scenario")["capacity"].max()
    return [
        Loaded(c, share * top[c.scenario] * c.gpus)
        for c in cases
        if c.lengths == "dataset" and (c.scenario, c.system, c.setting) in chosen
        for share in of_size(size, AT)
    ]


def run(
    size: str, cases: Sequence[Loaded], workers: int | None = None, name: str = "loads"
) -> Frame:
    """Rows of `Probe`, from results/<size>/<name>.csv where they lie already."""
    return swept(size, name, attained, cases, Probe, workers)


def attainment_curves(rows: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment by load, a panel per scenario: mean over seeds, a band from worst to best."""
    scenarios, systems = unique(rows["scenario"]), unique(rows["system"])
    figure, axes = panels(scenarios, (3.4, 2.5), (0, 0.5), "attainment (%)", 3, sharey=True)
    for axis, scenario in zip(axes, scenarios, strict=True):
        for i, (system, color) in enumerate(colors(systems).items()):
            mine = select(rows, scenario=scenario, system=system)
            told = 100 * mine.groupby("rate")["attainment"].agg(["mean", "min", "max"])
            axis.fill_between(told.index, told["min"], told["max"], color=color, alpha=0.2)
            looks = {"color": color, "label": name_of(system)} | nested(i)
            axis.plot(told.index, told["mean"], **marked(i), **looks)
        axis.axhline(100 * target, **DASHED)
        axis.set(xlabel="load (requests/s per GPU)", xlim=(0, None), ylim=(0, 102))
    seeds = rows["seed"].nunique()
    lines = f"mean of {seeds} seeds, bands: worst to best" if seeds > 1 else "one seed"
    said = f"{source}; lines: {lines}; dashed: target {target:.0%}"
    return finish(figure, said, axes[0], ncols=min(4, len(systems)))
