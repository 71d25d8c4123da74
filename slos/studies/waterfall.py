"""From the paper's ratio to today's: what each setting of the baselines is worth.

Each step changes one thing in how ours is compared, from the authors' own simulation to baselines
at their best today, judged by the rule of pace that clients have. Ours is the whole system with
speculation on as many replicas; it changes only where the step is about all systems.

Next to it stand the paper's other claim against baselines as it had them, at 98 % attainment, and
what rests on a length of drafts that was not published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slos.core.pace import CLIENT, PAPER
from slos.evaluation import grids, plots, stats
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import AS_PUBLISHED, PLAIN, RIVAL_ROUTERS, RIVALS, Rival, tries_of
from slos.evaluation.plots import DASHED, ONE_SEED, colors, finish, marked
from slos.evaluation.runs import hardware_of
from slos.evaluation.sizes import scale_of
from slos.evaluation.stats import mean_of, over, over_each, rows_of, select, strongest
from slos.files import Frame
from slos.hardware.shapes import kv_bytes
from slos.records.claims import Spread, paper
from slos.studies.ablation import PARTS, case_of
from slos.studies.rivals import Cases, measured, rivals, tuned

OURS_IS = "ours"
PUBLISHED, TODAY = "vLLM drafts 3 tokens", "all draft, at the best length"
CLIENTS = "the clients' rule of pace"
STRICT = 0.98
LENGTHS = (0, 1, 3, 5)  # of drafts


@dataclass(frozen=True, slots=True)
class Step:
    """One setting of the comparison. name: what it changes. tries: of each baseline; the best one
    counts. memory: bytes of KV cache of every system, 0 for the profile's."""

    name: str
    tries: Mapping[str, Sequence[Rival]]
    routers: Sequence[str] = (PLAIN,)
    memory: float = 0.0


_PAGED = {
    "vllm": [Rival("vllm", "max_batched_tokens=1")],
    "sarathi": [Rival("sarathi-authors", "paged=1")],
}
_BATCHED = {
    "vllm": [Rival("vllm", "max_batched_tokens=2048")],
    "sarathi": [Rival("sarathi-capped")],
}
_CHUNKED = _BATCHED | {"sarathi": AS_PUBLISHED["sarathi"]}
_ENGINES = {name: AS_PUBLISHED[name] for name in ("vllm", "sarathi")}
_EITHER = [*RIVALS["vllm"], *RIVALS["vllm-v1"]]
_BUDGETS = {
    "vllm": [rival._replace(drafts=grids.TYPICAL_DRAFTS) for rival in _EITHER],
    "sarathi": RIVALS["sarathi"],
}
STEPS = (
    Step("the authors' simulation", grids.AUTHORS, memory=grids.AUTHORS_MEMORY),
    Step("the whole KV cache, not 10 GB", grids.AUTHORS),
    Step("KV blocks as they fill, not set aside", _PAGED),
    Step("prompts batched, and chunked in turn", _BATCHED),
    Step("chunks of 512, not the TPOT cap", _CHUNKED),
    Step(PUBLISHED, AS_PUBLISHED),
    Step("the better router", _ENGINES, RIVAL_ROUTERS),
    Step("the best token budget, and vLLM V1", _BUDGETS, RIVAL_ROUTERS),
)
"""The steps before baselines are at their best today, which `rivals` finds. DistServe, never the
best, is where the whole ratios are told."""
TOTALS = {
    STEPS[0].name: "baselines as the authors simulate them",
    PUBLISHED: "engines as the paper had them",
    TODAY: "baselines at their best today",
    CLIENTS: "the same by the clients' rule",
}
"""Where the whole ratio is told, and what it is called."""


def _cases(size: str, scenarios: Sequence[str], workers: int | None, replicas: int) -> Cases:
    """By scenario, step and system: ours, or a baseline as it carries most."""
    s = scale_of(size, replicas)
    groups: dict[tuple[str, ...], list[Search]] = {}
    for step, scenario in product(STEPS, scenarios):
        hardware = hardware_of(scenario)
        share = step.memory / kv_bytes(hardware.model) / hardware.kv_tokens or 1.0
        ours = case_of(scenario, PARTS, replicas=s.replicas, kv_scale=share)
        groups[scenario, step.name, OURS_IS] = [ours]
        for name, tries in step.tries.items():
            cases = tries_of(scenario, tries, s.replicas, step.routers, kv_scale=share)
            groups[scenario, step.name, name] = cases
    found = tuned(size, groups, workers)
    for step, rule in (TODAY, PAPER), (CLIENTS, CLIENT):
        for (scenario, name), case in rivals(size, scenarios, workers, replicas, rule=rule).items():
            found[scenario, step, name] = case
        for scenario in scenarios:
            ours = found[scenario, STEPS[-1].name, OURS_IS]
            found[scenario, step, OURS_IS] = replace(ours, rule=rule)
    return found


def carried_by(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0
) -> Frame:
    """A row per step, scenario and system: capacity with its interval over seeds, that of each
    seed, and what ran. vLLM is whichever of its two versions carries more."""
    grids.check_cases(scenarios)
    scenarios = scenarios or scale_of(size, replicas).scenarios
    cases = _cases(size, scenarios, workers, replicas)
    best = measured(size, cases, workers, by=("step", "name"))
    return strongest(best.replace({"name": "vllm-v1"}, "vllm"), "step", "scenario", "name")


def levels(best: Frame) -> Frame:
    """Ours over each baseline and over the best one, per scenario and, where there are several, at
    each step: step, scenario, against, ratio, low, high, each."""
    ours, theirs = select(best, name=OURS_IS), best[best["name"] != OURS_IS]
    steps = ["step"] if "step" in best else []
    return over_each(ours, theirs, "name", *steps).drop(columns="name")


def today(table: Frame) -> Frame:
    """Of `levels` those at their best today; "vLLM" is either version."""
    return select(table, step=TODAY).drop(columns="step").replace({"against": {"vllm": "vLLM"}})


def falls(table: Frame) -> Frame:
    """What each step makes of the ratio to the best baseline: a row per step with the geometric
    mean and its interval, by what the one before it is multiplied, and the ratios per scenario."""
    rows = stats.by_scenario(select(table, against="best"), "step")
    rows.insert(0, "times", rows["geometric mean"] / rows["geometric mean"].shift(1))
    return rows.reset_index()


def at_98_percent(size: str, workers: int | None = None, replicas: int = 0) -> Frame:
    """Ours over each baseline as the paper had it, in chatbot, where nearly all requests must
    attain: against, ratio, low, high, each."""
    n = scale_of(size, replicas).replicas
    groups = {("chatbot", OURS_IS): [case_of("chatbot", PARTS, replicas=n, target=STRICT)]}
    for name, tries in AS_PUBLISHED.items():
        groups["chatbot", name] = tries_of("chatbot", tries, n, (PLAIN,), target=STRICT)
    return levels(measured(size, tuned(size, groups, workers), workers))


def draft_lengths(
    size: str, scenarios: Sequence[str] = (), workers: int | None = None, replicas: int = 0
) -> Frame:
    """Ours over vLLM as the paper had it, by the draft length of vLLM: target, scenario, drafts (0:
    none), ratio, low, high, each. Only where there is a draft model; at 98 % in chatbot alone."""
    s = scale_of(size, replicas)
    found = []
    for target, names in ((0.9, scenarios or s.scenarios), (STRICT, ["chatbot"])):
        cases = Cases()
        for scenario in filter(grids.can_draft, names):
            cases[scenario, OURS_IS] = case_of(scenario, PARTS, replicas=s.replicas, target=target)
            for n in LENGTHS:
                rival = AS_PUBLISHED["vllm"][0]._replace(drafts=n)
                [cases[scenario, str(n)]] = tries_of(
                    scenario, [rival], s.replicas, (PLAIN,), target=target
                )
        if cases:
            best = measured(size, cases, workers)
            found.append(best[["scenario", "name", "rate"]].assign(target=target))
    best = pd.concat(found).rename(columns={"name": "drafts"})
    ours = select(best, drafts=OURS_IS).drop(columns="drafts")
    return over(ours, best[best["drafts"] != OURS_IS])


def strict_numbers(strict: Frame) -> dict[str, Spread]:
    """Of `at_98_percent`, by key of `results/paper.yaml`."""
    each = strict[strict["against"] != "best"].groupby("against")
    return {f"strict_vs_{name}": mean_of(rows) for name, rows in each}


def numbers(table: Frame) -> dict[str, Spread]:
    """Our numbers, by key of `results/paper.yaml`: value, low, high."""
    found = {}
    for start, step in (("published", PUBLISHED), ("today", TODAY), ("clients", CLIENTS)):
        for name, rows in select(table, step=step).groupby("against", sort=False):
            found[f"{start}_vs_{name}"] = mean_of(rows)
    found["authors_vs_best"] = mean_of(select(table, step=STEPS[0].name, against="best"))
    for scenario in ("coding", "tool-calling", "reasoning"):
        rows = select(table, step=PUBLISHED, against="best", scenario=scenario)
        if len(rows):
            found[f"published_{scenario}".replace("-", "_")] = mean_of(rows)
    return found


def save(size: str, best: Frame) -> None:
    """Write what each system carries at each step to results/<size>/waterfall_steps.csv."""
    columns = ["step", "scenario", "name", "setting", "profile", "replicas", "topology", "router"]
    columns += ["max_drafts", "capacity", "low", "high", "source"]
    table = best[columns].assign(seeds=best["rate"].map(len), status="simulated")
    stats.write(size, "waterfall_steps", table, float_format="%.6g")


def waterfall_chart(table: Frame, source: str) -> Figure:
    """Ours over the best baseline as geometric mean: coloured bars from one step's level to the
    next, whole ones at `TOTALS` with their interval and scenarios. table: of `levels`."""
    each = select(table, against="best")
    means = rows_of(stats.geometric_means(each, "step"))
    figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
    labels, totals, before = [], [], 1.0
    looks = {"height": 0.6, "edgecolor": "black", "linewidth": 0.6}
    beside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
    for r in means:
        if labels:
            color, hatch = ("#56B4E9", "") if r.ratio < before else ("#D55E00", "//")
            axis.barh(len(labels), r.ratio - before, left=before, color=color, hatch=hatch, **looks)
            said = f"x {r.ratio / before:.2f}"
            axis.annotate(said, (max(before, r.ratio), len(labels)), bbox=plots.WHITE, **beside)
            labels.append(r.step)
        if r.step in TOTALS:
            axis.barh(len(labels), r.ratio - 1, left=1, color="0.85", **looks)
            _scenarios(axis, len(labels), r, select(each, step=r.step))
            labels.append(f"{TOTALS[r.step]}: {r.ratio:.2f}x")
            totals.append(labels[-1])
        before = r.ratio
    reported = paper("authors_vs_best")
    axis.axvline(reported, **DASHED, label=f"the paper's {reported:g}x")
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    for tick in axis.get_yticklabels():
        tick.set_fontweight("bold" if tick.get_text() in totals else "normal")
    axis.set_xlabel("capacity of SLOs-Serve over the best baseline (x)")
    said = f"{source}; grey: geometric mean of the scenarios (marks); blue: lower, orange: higher; "
    said += "lines: 95 % interval over seeds" if each["each"].map(len).max() > 1 else ONE_SEED
    return finish(figure, said, axis, ncols=4, fontsize=8)


def _scenarios(axis: Axes, y: int, mean: Any, each: Frame) -> None:
    """The interval of a whole bar, and a mark per scenario."""
    axis.plot([mean.low, mean.high], [y, y], color="black", linewidth=2)
    palette = colors(list(each["scenario"]))
    for i, r in enumerate(rows_of(each)):
        looks = {"color": palette[r.scenario], "markersize": 6, "linestyle": "none"}
        at = y + 0.13 * (i % 3 * 2 + i // 3 - 2.5)  # some are alike
        axis.plot(r.ratio, at, label=None if y else r.scenario, **marked(i), **looks)
