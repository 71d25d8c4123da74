"""Capacity where one thing is changed: objectives, the attainment asked for, memory, what the
policy believes, or the paper's models and GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from slos.evaluation import grids, plots
from slos.evaluation.capacity_search import Search, carried, row_of
from slos.evaluation.grids import AS_PUBLISHED, searches, swept, tries_of
from slos.evaluation.plots import colors, dots, finish, panels, seeds_said, unique
from slos.evaluation.runs import hardware_of
from slos.evaluation.sizes import OPT, size_of
from slos.evaluation.stats import best_settings, over, rows_of, select, strongest
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import paper
from slos.studies import capacity
from slos.studies.ablation import PARTS, case_of
from slos.studies.rivals import Cases, measured, rivals, tuned
from workloads import SCENARIOS

LABELS = {
    "slo_scale": "objectives (times the paper's)",
    "target": "attainment asked for",
    "kv_scale": "KV memory (times the profile's)",
    "belief": "batch times as believed (times the true ones)",
}

SETTINGS = {
    "vllm-v1": tuple(f"max_batched_tokens={n}" for n in (512, 2048, 8192)),
    "sarathi": grids.SETTINGS["sarathi"],
}
"""Of the baselines: one of them carries what the best of `01_capacity` does, but for a percent."""
SENSITIVITY: dict[str, tuple[float, ...]] = {
    "slo_scale": (0.5, 0.7, 1.0, 1.4, 2.0),
    "target": (0.9, 0.95, 0.98, 0.99),
    "kv_scale": (0.25, 0.5, 1.0, 2.0),
}
OTHERS = {
    "opt-6.7b-a100": ("opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100"),
    "toolllama-7b-a100": ("llama-2-7b-a100", "llama-2-7b-h100"),
}
"""Larger models of a scenario's family, and other GPUs, by the scenario's own profile."""
MODELS = ("opt-6.7b-a100", "opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100")
DRAFTING = {"opt-6.7b-a100": "opt-6.7b-draft-a100"}  # the others have their draft model, or none
KINDS = ("as the paper had them", "at their best today")
VARIED = (*SENSITIVITY, "profile")
SCALES = (0.7, 0.85, 1.15, 1.3, 1.5)  # of batch times, as a policy believes them, besides the truth
PRECISION = 0.04  # of a capacity, where many are looked for
FEWER = {"smoke": 3, "quick": 1, "full": 1}  # every third value is enough to see that it runs
QUICK = 200  # requests of a simulation in a quick search: there are many


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found, in requests per second and GPU; rate 0 where no load meets the
    target."""

    scenario: str
    system: str
    setting: str
    profile: str
    seed: int
    target: float
    slo_scale: float
    kv_scale: float
    belief: str
    rate: float = 0.0
    source: str = ""
    status: str = "simulated"


def capacity_of(case: Search) -> list[Capacity]:
    best = carried(case)
    found = {"rate": best.rate, "source": best.source} if best else {}
    return [row_of(Capacity, case, **found)]


def varied(
    size: str,
    scenarios: Sequence[str],
    systems: Sequence[str],
    changes: Sequence[dict],
    profile: str = "",
) -> list[Search]:
    """Searches of a size with every change, each once; the baselines at a few of their settings."""
    fewer = {"num_requests": QUICK} if size == "quick" else {}
    every = (
        replace(c, **fewer | change)
        for c in searches(size, scenarios, systems, profile)
        if c.lengths == "dataset" and c.setting in SETTINGS.get(c.system, (c.setting,))
        for change in changes
    )
    return list(dict.fromkeys(every))


def sensitivity_cases(
    size: str, scenarios: Sequence[str], systems: Sequence[str], profile: str = ""
) -> list[Search]:
    """Each of `VARIED` alone; other hardware only in addition to a scenario's own."""
    known = {"precision": max(PRECISION, size_of(size).precision)}
    changes = [
        known | {name: v} for name, values in SENSITIVITY.items() for v in values[:: FEWER[size]]
    ]
    cases = varied(size, scenarios, systems, changes, profile)
    for scenario in () if profile else scenarios:
        others = OTHERS.get(SCENARIOS[scenario].profile, ())[:: FEWER[size]]
        cases += varied(size, [scenario], systems, [known | {"profile": name} for name in others])
    return cases


def run(size: str, cases: Sequence[Search], name: str, workers: int | None = None) -> Frame:
    """Rows of `Capacity`, from results/<size>/<name>.csv where they lie already."""
    return swept(size, name, capacity_of, cases, Capacity, workers)


def against(rows: Frame, by: str, profile: str = "") -> Frame:
    """Capacity at each value of `by`, all else as it is, on `profile` or a scenario's own hardware:
    per scenario and system the best setting's mean and interval over seeds, and each seed's rate.
    """
    if by in SENSITIVITY:
        rows = rows[[r.profile == hardware_of(r.scenario, profile).name for r in rows_of(rows)]]
    usual = {"target": 0.9, "slo_scale": 1.0, "kv_scale": 1.0}
    kept = select(rows, **{name: value for name, value in usual.items() if name != by})
    return best_settings(kept, ["scenario", "system", by, "setting"]).reset_index(drop=True)


def relative(table: Frame, by: str, to: Any) -> Frame:
    """Capacity at each value of `by` over that at `to`, seed by seed: ratio with its interval."""
    truth = table.loc[table[by] == to, ["scenario", "system", "rate"]]
    ratios = over(table[["scenario", "system", by, "rate"]], truth)
    return ratios.assign(seeds=ratios["each"].map(len)).drop(columns="each")


def gain(table: Frame, by: str) -> Frame:
    """Ours over the other system that carries most, at each value of `by` and per scenario. table:
    of `against`; infinite where no other carries anything."""
    ours = table["system"] == OURS
    most = table[~ours].groupby(["scenario", by], sort=False)["capacity"].max()
    ratio = table[ours].set_index(["scenario", by])["capacity"] / most
    return ratio.rename("ours over the best other (x)").reset_index()


def sensitivity(
    table: Frame, by: str, source: str, value: str = "capacity", ylabel: str = ""
) -> Figure:
    """`value` by what was varied: a panel per scenario, a line per system; of hardware bars."""
    if by == "profile":
        named = table.assign(scenario=table["scenario"] + "\n" + table["profile"])
        return capacity.capacity_bars(named, source)
    ylabel = ylabel or "capacity (requests/s per GPU)"
    figure, axes = panels(unique(table["scenario"]), (4.2, 3.1), (0, 0), ylabel)
    values = sorted(set(table[by]))
    for axis, i, rows, looks in plots.lines(axes, table, "scenario", "system"):
        line = rows.sort_values(by)
        plots.whiskers(axis, line[by], line, i, value, **looks, **plots.nested(i))
    for axis in axes:
        axis.set(xlabel=LABELS[by], ylim=(0, None))
        if by in ("slo_scale", "kv_scale", "belief"):
            axis.set_xscale("log")
        axis.set_xticks(values, [f"{v:g}" for v in values])
        axis.minorticks_off()
    count = table["system"].nunique()
    keys = axes[0] if count > 1 else None
    return finish(figure, f"{source}; {seeds_said(table)}", keys, ncols=count)


def by_model(size: str, workers: int | None = None) -> Frame:
    """A row per scenario, profile, kind of baselines and system, all on one replica, drafting where
    there is a draft model; ours has the kind "". Scenarios of OPT, chatbot alone unless at full
    size."""
    tables, scenarios = [], OPT if size == "full" else OPT[:1]
    for name in MODELS:
        profile = DRAFTING.get(name, name)
        cases = _model_cases(size, scenarios, profile, workers)
        best = measured(size, cases, workers, by=("kind", "name"))
        tables.append(best.assign(model=name))
    return pd.concat(tables, ignore_index=True)


def _model_cases(size: str, scenarios: Sequence[str], profile: str, workers: int | None) -> Cases:
    """By scenario, kind and system."""
    groups = {
        (scenario, KINDS[0], name): tries_of(scenario, published, 1, profile=profile)
        for scenario, (name, published) in product(scenarios, AS_PUBLISHED.items())
    }
    found = tuned(size, groups, workers)
    today = rivals(size, scenarios, workers, 1, profile)
    found |= {(scenario, KINDS[1], name): c for (scenario, name), c in today.items()}
    ours = {(s, "", "ours"): case_of(s, PARTS, profile=profile) for s in scenarios}
    return found | ours


def against_best(best: Frame) -> Frame:
    """Ours over the best baseline of each kind: scenario, model, kind, ratio, low, high, each."""
    columns = ["scenario", "model", "rate"]
    theirs = strongest(best[best["kind"] != ""], "scenario", "model", "kind")
    return over(select(best, kind="")[columns], theirs[[*columns, "kind", "name"]])


def models_chart(table: Frame, source: str) -> Figure:
    """Ours over the best baseline, a panel per kind, scenarios side by side and a mark per model;
    dashed: the paper's number over the better of two."""
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    over = "capacity over the best baseline's (x)"
    figure, axes = panels(kinds, (4.2, 3), (0, 0.6), over, sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        palette = colors(unique(table["model"]))
        dots(axis, select(table, kind=kind), "model", palette, paper("authors_vs_best"))
    said = f"{source}; one replica, drafts where there is a draft model; {seeds_said(table)}"
    said += "; dashed: the paper's mean over the better of two"
    return finish(figure, said, axes[0], ncols=4)
