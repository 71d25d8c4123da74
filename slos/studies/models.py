"""Capacity of the paper's models and GPUs: OPT of 6.7B, 13B and 30B on A100, 13B on H100; against
baselines as the paper had them, and at their best today."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from slos.evaluation.grids import AS_PUBLISHED, behind, case_of_rival
from slos.evaluation.plots import colors, dots, finish, panels, seeds_said, unique
from slos.evaluation.stats import over, select, strongest
from slos.files import Frame
from slos.records.claims import paper
from slos.studies.ablation import PARTS, case_of
from slos.studies.rivals import Cases, at_scale, measured, rivals, tuned
from slos.studies.scaling import OPT

MODELS = ("opt-6.7b-a100", "opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100")
DRAFTING = {"opt-6.7b-a100": "opt-6.7b-draft-a100"}  # the others have their draft model, or none
KINDS = ("as the paper had them", "at their best today")


def carried_by(size: str, workers: int | None = None) -> Frame:
    """A row per scenario, profile, kind of baselines and system, all on one replica, drafting where
    there is a draft model; ours has the kind "". Scenarios of OPT, chatbot alone unless at full
    size."""
    tables, scenarios = [], OPT if size == "full" else OPT[:1]
    for name in MODELS:
        profile = DRAFTING.get(name, name)
        best = measured(size, _cases(size, scenarios, profile, workers), workers)
        best[["kind", "name"]] = best["name"].str.split("|", expand=True)
        tables.append(best.assign(model=name))
    return pd.concat(tables, ignore_index=True)


def _cases(size: str, scenarios: Sequence[str], profile: str, workers: int | None) -> Cases:
    """By scenario and "KIND|SYSTEM"."""
    groups = {}
    for scenario, (name, tries) in product(scenarios, AS_PUBLISHED.items()):
        plain = [case_of_rival(scenario, rival, 1, profile) for rival in tries]
        groups[scenario, f"{KINDS[0]}|{name}"] = [c for case in plain for c in behind(case)]
    found = at_scale(tuned(size, groups, workers), size)
    today = rivals(size, scenarios, workers, 1, profile)
    found |= {(scenario, f"{KINDS[1]}|{name}"): c for (scenario, name), c in today.items()}
    ours = {(s, "|ours"): case_of(s, PARTS, profile=profile) for s in scenarios}
    return found | at_scale(ours, size)


def against_best(best: Frame) -> Frame:
    """Ours over the best baseline of each kind: scenario, model, kind, ratio, low, high, each."""
    columns = ["scenario", "model", "rate"]
    theirs = strongest(best[best["kind"] != ""], "scenario", "model", "kind")
    return over(select(best, kind="")[columns], theirs[[*columns, "kind", "name"]])


def models_chart(table: Frame, source: str) -> Figure:
    """Ours over the best baseline, a panel per kind, scenarios side by side and a mark per model;
    dashed: the paper's number over the better of two."""
    kinds = [kind for kind in KINDS if kind in set(table["kind"])]
    figure, axes = panels(kinds, (4.2, 3), (0, 0.6), "SLOs-Serve over the best (x)", sharey=True)
    for axis, kind in zip(axes, kinds, strict=True):
        rows, palette = select(table, kind=kind), colors(unique(table["model"]))
        groups = {name: (color, select(rows, model=name)) for name, color in palette.items()}
        dots(axis, rows, groups, 0.16, paper("authors_vs_best"))
    said = f"{source}; one replica, drafts where there is a draft model; {seeds_said(table)}"
    return finish(figure, said, axes[0], ncols=4)
