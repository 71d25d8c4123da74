"""Capacity where one thing is changed: objectives, the attainment asked for, memory, or what the policy believes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from slos.evaluation.capacity_search import Search, hardware_of, search
from slos.evaluation.stats import Frame, best_settings, over, rows_of
from slos.metrics import NoCapacity
from slos.records.report import results_dir
from slos.records.sweep import sweep
from slos.studies.capacity import OURS, searches, size_of
from workloads import SCENARIOS

SETTINGS = {"vllm-v1": ("max_batched_tokens=512", "max_batched_tokens=2048"), "sarathi": ("chunk=512", "chunk=1024")}
"""Of the baselines, those that `01_capacity` finds best somewhere."""
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
VARIED = (*SENSITIVITY, "profile")
SCALES = (0.7, 0.85, 1.15, 1.3, 1.5)  # of batch times, as a policy believes them, beside the truth
TILED = {
    "": "the truth",
    "tile=1": "one that takes the same planes without tiles",
    "smooth=1": "one that is right on the average",
    "smooth=1,scale=1.15": "one that is right on the average and plans 15 % more",
}
PRECISION = 0.04  # of a capacity, where many are looked for
FEWER = {"smoke": 3, "quick": 1, "full": 1}  # every third value is enough to see that it runs
QUICK = 200  # requests of a simulation in a quick search: there are many


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found, in requests per second and GPU; rate 0 where no load meets the target."""

    scenario: str
    system: str
    setting: str
    profile: str
    seed: int
    target: float
    slo_scale: float
    kv_scale: float
    belief: str
    rate: float
    source: str
    status: str


def capacity_of(case: Search) -> list[Capacity]:
    try:
        [probe] = [p for p in search(case) if p.capacity]
        rate, source = probe.rate, probe.source
    except NoCapacity:
        rate, source = 0.0, ""
    return [
        Capacity(
            case.scenario, case.system, case.setting, case.hardware.name, case.seed, case.target, case.slo_scale,
            case.kv_scale, case.belief, rate, source, "simulated",
        )
    ]  # fmt: skip


def _varied(size: str, scenarios: Sequence[str], systems: Sequence[str], changes: Sequence[dict], profile: str = ""):
    """Searches of a size for every change of a `Search`, each once; the baselines at a few of their settings."""
    base = searches(size, scenarios, systems, profile)
    base = [c for c in base if c.lengths == "dataset" and c.setting in SETTINGS.get(c.system, (c.setting,))]
    if size == "quick":
        base = [replace(c, num_requests=QUICK) for c in base]
    return list(dict.fromkeys(replace(c, **change) for c in base for change in changes))


def sensitivity_cases(size: str, scenarios: Sequence[str], systems: Sequence[str], profile: str = "") -> list[Search]:
    """Each of `VARIED` alone; other hardware only beside a scenario's own. Raises ValueError for unknown names."""
    known = {"precision": max(PRECISION, size_of(size).precision)}
    changes = [known | {name: v} for name, values in SENSITIVITY.items() for v in values[:: FEWER[size]]]
    cases = _varied(size, scenarios, systems, changes, profile)
    for scenario in () if profile else scenarios:
        others = OTHERS.get(SCENARIOS[scenario].profile, ())[:: FEWER[size]]
        cases += _varied(size, [scenario], systems, [known | {"profile": name} for name in others])
    return cases


def belief_cases(size: str, scenarios: Sequence[str], profile: str, tiles: bool) -> list[Search]:
    """Our policy on a profile with beliefs that are wrong: about all batch times, or about tiles."""
    precision = max(PRECISION, size_of(size).precision)
    beliefs = list(TILED) if tiles else ["", *(f"scale={s:g}" for s in SCALES[:: FEWER[size]])]
    changes = [{"belief": b, "precision": precision} for b in beliefs]
    return _varied(size, scenarios, (OURS,), changes, profile)


def run(size: str, cases: Sequence[Search], name: str, workers: int | None = None) -> Frame:
    """Rows of `Capacity`, from results/<size>/<name>.csv where they lie already."""
    return pd.DataFrame(sweep(capacity_of, cases, results_dir(size) / f"{name}.csv", Capacity, workers))


def against(rows: Frame, by: str, profile: str = "", **fixed: Any) -> Frame:
    """Capacity at each value of `by`, all else as `fixed` says, on `profile` or a scenario's own hardware: per scenario
    and system the best setting's mean and interval over seeds, and each seed's rate."""
    own = [r.profile == hardware_of(r.scenario, profile).name for r in rows_of(rows)]
    kept = rows[own] if by in SENSITIVITY else rows
    for name, value in ({"target": 0.9, "slo_scale": 1.0, "kv_scale": 1.0} | fixed).items():
        kept = kept if name == by else kept[kept[name] == value]
    return best_settings(kept, ["scenario", "system", by, "setting"]).reset_index(drop=True)


def relative(table: Frame, by: str, to: Any) -> Frame:
    """Capacity at each value of `by` over that at `to`, seed by seed: ratio with its interval."""
    truth = table.loc[table[by] == to, ["scenario", "system", "rate"]]
    return over(table[["scenario", "system", by, "rate"]], truth).drop(columns="each")


def what_beliefs_show(scaled: Frame, tiled: Frame) -> str:
    """The findings in Markdown. scaled, tiled: capacity over that of the true belief, as `relative` gives it."""
    lines = []
    for scenario, group in scaled.groupby("scenario", sort=False):
        words = [f"{r.ratio:.2f}x when it takes a batch for {float(r.belief.split('=')[1]):g} of its time"
                 for r in group.itertuples() if r.belief]  # fmt: skip
        lines.append(f"- **{scenario}**, capacity against the true belief: {', '.join(words)}.")
    for r in tiled.itertuples():
        if r.belief:
            gain = f"{1 / r.ratio:.3f}x of what is carried by" if r.ratio else "something, and nothing is carried by"
            lines.append(f"- **tiles, {r.scenario}**: a policy that knows them carries {gain} {TILED[r.belief]}.")
    return "\n".join(lines)


def what_sensitivity_shows(tables: Mapping[str, Frame]) -> str:
    """The findings in Markdown: ours over the best other at every value. tables: `against`, by what was varied."""
    words = {"slo_scale": "objectives times", "target": "attainment of", "kv_scale": "KV memory times"}
    lines = []
    for by, table in tables.items():
        for scenario, group in (table.sort_values(by) if by in SENSITIVITY else table).groupby("scenario", sort=False):
            ours = group[group["system"] == OURS].set_index(by)["capacity"]
            other = group[group["system"] != OURS].groupby(by)["capacity"].max()
            ratio = [f"{v}: {ours[v] / other[v]:.2f}x" if other.get(v, 0) > 0 else f"{v}: no other carries any"
                     for v in ours.index]  # fmt: skip
            lines.append(f"- **{scenario}**, ours over the best other at {words.get(by, by)} {', '.join(ratio)}.")
    return "\n".join(lines)
