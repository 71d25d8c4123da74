"""The paper's other claims: at 98 % attainment, and on its other models and GPUs; and what rests on
a length of drafts that was not published."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pandas as pd
from matplotlib.figure import Figure

from slos.evaluation.grids import AS_PUBLISHED, PLAIN, can_draft, tries_of
from slos.evaluation.plots import colors, dots, finish, panels, seeds_said, unique
from slos.evaluation.sizes import OPT, scale_of
from slos.evaluation.stats import mean_of, over, over_each, select, strongest
from slos.files import Frame
from slos.records.claims import Spread, paper
from slos.studies.ablation import PARTS, case_of
from slos.studies.rivals import Cases, at_scale, measured, rivals, tuned

STRICT = 0.98
LENGTHS = (0, 1, 3, 5)  # of drafts
MODELS = ("opt-6.7b-a100", "opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100")
DRAFTING = {"opt-6.7b-a100": "opt-6.7b-draft-a100"}  # the others have their draft model, or none
KINDS = ("as the paper had them", "at their best today")


def strict(size: str, workers: int | None = None, replicas: int = 0) -> Frame:
    """Ours over each baseline as the paper had it, in chatbot, where nearly all requests must
    attain: against, ratio, low, high, each."""
    n = scale_of(size, replicas).replicas
    groups = {("chatbot", "ours"): [case_of("chatbot", PARTS, replicas=n, target=STRICT)]}
    for name, tries in AS_PUBLISHED.items():
        groups["chatbot", name] = tries_of("chatbot", tries, n, (PLAIN,), target=STRICT)
    best = measured(size, at_scale(tuned(size, groups, workers), size), workers)
    theirs = best[best["name"] != "ours"]
    return over_each(select(best, name="ours"), theirs, "name").drop(columns="name")


def draft_lengths(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0
) -> Frame:
    """Ours over vLLM as the paper had it, by the draft length of vLLM: target, scenario, drafts (0:
    none), ratio, low, high, each. Only where there is a draft model; at 98 % in chatbot alone."""
    s = scale_of(size, replicas)
    found = []
    for target, names in ((0.9, scenarios or s.scenarios), (STRICT, ["chatbot"])):
        cases = Cases()
        for scenario in filter(can_draft, names):
            cases[scenario, "ours"] = case_of(scenario, PARTS, replicas=s.replicas, target=target)
            for n in LENGTHS:
                rival = AS_PUBLISHED["vllm"][0]._replace(drafts=n)
                [cases[scenario, str(n)]] = tries_of(
                    scenario, [rival], s.replicas, (PLAIN,), target=target
                )
        if cases:
            best = measured(size, at_scale(cases, size), workers)
            found.append(best[["scenario", "name", "rate"]].assign(target=target))
    best = pd.concat(found).rename(columns={"name": "drafts"})
    ours = select(best, drafts="ours").drop(columns="drafts")
    return over(ours, best[best["drafts"] != "ours"])


def numbers(table: Frame) -> dict[str, Spread]:
    """Of `strict`, by key of `results/paper.yaml`."""
    return {f"strict_vs_{name}": mean_of(rows) for name, rows in table.groupby("against")}


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
    found = at_scale(tuned(size, groups, workers), size)
    today = rivals(size, scenarios, workers, 1, profile)
    found |= {(scenario, KINDS[1], name): c for (scenario, name), c in today.items()}
    ours = {(s, "", "ours"): case_of(s, PARTS, profile=profile) for s in scenarios}
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
        palette = colors(unique(table["model"]))
        groups = {m: (color, select(table, kind=kind, model=m)) for m, color in palette.items()}
        dots(axis, groups, 0.16, paper("authors_vs_best"))
    said = f"{source}; one replica, drafts where there is a draft model; {seeds_said(table)}"
    said += "; dashed: the paper's mean over the better of two"
    return finish(figure, said, axes[0], ncols=4)
