"""Does it hold today? The scenarios with contexts of 8k and more, on models and GPUs of today.

Llama 3.1, Qwen3 and a draft model on profiles of `slos.studies.kernel_profiles`, and one that was
measured. Objectives are the paper's, by which the first token of a short prompt is due within tens
of milliseconds here, or those of MLPerf in seconds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from slos.core.pace import CLIENT
from slos.evaluation import capacity_search, plots, stats
from slos.evaluation.capacity_search import Search, row_of
from slos.evaluation.grids import crossed, fixed_drafts, settings_of, swept
from slos.evaluation.plots import DASHED, ONE_SEED, bars, colors, finish, panels, plain_log, unique
from slos.evaluation.sizes import Size, of_size
from slos.evaluation.stats import best_settings, geometric_mean, over, rows_of, select, strongest
from slos.files import Frame
from slos.policies import OURS
from slos.studies import bounds
from workloads.scenarios import LONGER

MAIN, DRAFTING = "llama-3.1-8b-h100", "llama-3.1-8b-draft-h100"
OTHERS = ("llama-3.1-8b-a100", "llama-3.1-8b-h200", "qwen3-8b-h100", "llama-3.1-70b-h100x4")
TRACED = ("coding", "mixed")  # lengths of the Azure traces: those of HumanEval are short
DRAFTED = ("chatbot-8k", "mixed-8k-mlperf")  # tried with a draft model, too
IN_SECONDS = "mlperf"  # how names of scenarios end whose objectives do not depend on the hardware
SETTINGS = {
    "vllm-v1": ("max_batched_tokens=2048", "max_batched_tokens=8192"),
    "sarathi": ("chunk=512", "chunk=1024"),
    OURS: ("",),
}
CHANGES = ({}, {"target": 0.98}, {"rule": CLIENT})
"""What is asked for in turn on `MAIN`, besides 90 % by the paper's rule of pace. Calling tools is
asked for with vLLM's prefix cache, too: each call brings its whole context again. Requests of the
other scenarios begin with nothing in common."""
DRAFTS = 5  # the longest
SHOWN = 0.5, 300.0  # gains in a figure

SIZES = {
    "smoke": Size(40, 1, 0.5, scenarios=("chatbot-8k",)),
    "quick": Size(200, 1, 0.15, scenarios=("chatbot-8k", "mixed-8k-mlperf")),
    "full": Size(400, 3, 0.05, scenarios=tuple(LONGER)),
}


@dataclass(frozen=True, slots=True)
class Carried:
    """What a search found, in requests per second and GPU; rate 0 where no load meets the target.
    Latencies in seconds, declined as a share: of the requests at that load."""

    scenario: str
    lengths: str
    system: str
    setting: str
    profile: str
    drafts: int
    asked: str
    seed: int
    rate: float = 0.0
    declined: float = 0.0
    ttft_p99: float = 0.0
    tpot_p99: float = 0.0
    source: str = ""
    status: str = "simulated"


def carried(case: Search) -> list[Carried]:
    found: dict[str, Any] = {"drafts": case.max_drafts, "asked": asked(case)}
    if best := capacity_search.carried(case):
        found |= {"rate": best.rate, "declined": best.declined, "source": best.source}
        found |= {"ttft_p99": best.accepted_ttft_p99, "tpot_p99": best.accepted_tpot_p99}
    return [row_of(Carried, case, **found)]


def asked(case: Search) -> str:
    """What of the `CHANGES` is asked for, in words."""
    return in_words(case.target, case.rule) + ", prefix cache" * case.prefix_cache


def in_words(target: float, rule: str) -> str:
    """A target and, if it is not the paper's, a rule of pace."""
    return f"{100 * target:g} %" + ", clients' rule" * (rule == CLIENT)


def cases(size: str) -> Iterator[Search]:
    """A star: every scenario, system and setting on `MAIN`, and one thing changed at a time: what
    is asked for (`CHANGES`), the profile (`OTHERS`) where objectives follow it, and a draft model:
    ours picks its drafts, a baseline has each fixed length (or none, see `table`)."""
    s = of_size(size, SIZES)
    plain = [
        replace(case, lengths="trace") if case.scenario.startswith(TRACED) else case
        for case in crossed(s, settings_of(SETTINGS, SETTINGS), profile=MAIN)
    ]
    yield from (replace(case, **change) for change in CHANGES for case in plain)
    for case in plain:
        if case.scenario.startswith("tool-calling"):
            yield replace(case, prefix_cache=True)
    for case in plain if size == "full" else ():
        if not case.scenario.endswith(IN_SECONDS):
            yield from (replace(case, profile=name) for name in OTHERS)
        if case.scenario in DRAFTED:
            own = replace(case, profile=DRAFTING, max_drafts=DRAFTS)
            yield from [own] if case.system == OURS else fixed_drafts(own, DRAFTS)


def run(size: str, workers: int | None = None) -> Frame:
    """Rows of `Carried`, from results/<size>/today.csv where they lie already."""
    return swept(size, "today", carried, [*cases(size)], Carried, workers)


ASKED = ["profile", "drafts", "asked"]
BY = [*ASKED, "scenario"]


def table(rows: Frame) -> Frame:
    """Ours and the best other system, each at its best setting, and the gain with its interval. A
    baseline may also leave the draft model out: what it carries on `MAIN` counts."""
    plain = rows[rows["profile"].eq(MAIN) & rows["drafts"].eq(0) & rows["system"].ne(OURS)]
    drafted = rows.loc[rows["drafts"] > 0, BY].drop_duplicates()
    off = drafted.merge(plain.drop(columns=["profile", "drafts"]), on=["asked", "scenario"])
    best = best_settings(pd.concat([rows, off]), [*BY, "system", "setting"])
    ours = select(best, system=OURS)
    rival = strongest(best[best["system"] != OURS], *BY)
    named = {"capacity": "best other", "system": "which", "ratio": "gain"}
    carried = ours[[*BY, "capacity"]].rename(columns={"capacity": "ours"})
    mine = ours.loc[ours["capacity"] > 0, [*BY, "rate"]]
    gains = over(mine, rival[[*BY, "rate"]])
    rates = rival[[*BY, "capacity", "system", "setting"]]
    return carried.merge(rates, on=BY).merge(gains, "left", BY).rename(columns=named)


def bounded(size: str, found: Frame, workers: int | None = None) -> Frame:
    """The table with the bound, where there is one, and the shares of it that are carried."""
    known = bounds.run(size, [*cases(size)], workers)
    words = [in_words(r.target, r.rule) for r in rows_of(known)]
    means = known.assign(drafts=0, asked=words).groupby(BY)["rate"].agg(geometric_mean)
    out = found.merge(means.rename("bound").reset_index(), "left", BY)
    for name in ("ours", "best other"):
        out[f"{bounds.SHARE}: {name}"] = out[name] / out["bound"]
    return out


def means(found: Frame) -> Frame:
    """The mean gain over scenarios where both carry something, by what was asked for, with its
    interval."""
    whose = np.where(found["scenario"].str.endswith(IN_SECONDS), "MLPerf", "paper")
    kept = found.assign(objectives=whose).dropna(subset=["gain"])
    return stats.geometric_means(kept, *ASKED, "objectives").rename(columns={"ratio": "gain"})


def gain_bars(
    axis: Axes, rows: Frame, by: str, palette: Mapping[str, Any], value: str = "gain"
) -> None:
    """Gains by scenario, a bar for each key of the `palette` in column `by`, from 1 up or down; and
    what the bound is of what the best other system carries, where it is known: `most`."""
    names, width = unique(rows["scenario"]), 0.8 / len(palette)
    for i, (key, color) in enumerate(palette.items()):
        group, shift = select(rows, **{by: key}), width * (i - (len(palette) - 1) / 2)
        at = [names.index(name) + shift for name in group["scenario"]]
        bars(axis, at, group, i, value, width=width, bottom=1, color=color, label=key)
        if "most" in group:
            axis.plot(at, group["most"], "k_", markersize=9, label=None if i else plots.BOUND)
    axis.set_yscale("log")
    shown = [name.removesuffix(f"-{IN_SECONDS}") for name in names]
    axis.set_xticks(range(len(names)), shown, rotation=25, ha="right")


def chart(found: Frame, source: str) -> Figure:
    """Ours over the best other system by scenario: on `MAIN` by all that was asked for, a panel for
    each kind of objectives, and on all profiles, if others were tried."""
    mine = select(found, drafts=0)
    if "bound" in mine:
        mine = mine.assign(most=mine["bound"] / mine["best other"])
    here, named = mine["profile"] == MAIN, mine["scenario"].str.endswith(IN_SECONDS)
    parts = {
        "objectives of the paper": (mine[here & ~named], "asked"),
        "objectives of MLPerf": (mine[here & named], "asked"),
    }
    if not here.all():
        first = mine["asked"] == mine["asked"].iloc[0]
        parts["objectives of the paper, by profile"] = mine[first & ~named], "profile"
    figure, axes = panels([*parts], (4.8, 3.3), (0, 0.4), "SLOs-Serve over the best other (x)")
    palette = colors([*unique(mine["asked"]), *unique(mine["profile"])])
    for axis, (rows, by) in zip(axes, parts.values(), strict=True):
        gain_bars(axis, rows, by, {key: palette[key] for key in unique(mine[by])})
        axis.axhline(1, **DASHED)
        axis.set_ylim(max(SHOWN[0], axis.get_ylim()[0]), min(SHOWN[1], axis.get_ylim()[1]))
        plain_log(axis.yaxis, ticks=(0.5, 1, 2, 5, 10, 20, 50, 100, 200))
        if by == "profile":
            axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    several = (mine["low"] < mine["high"]).any()
    said = "whiskers: 95 % over seeds," if several else f"{ONE_SEED};"
    text = f"{source} or as named; {said} cut off at {SHOWN[0]:g} and {SHOWN[1]:g}"
    text += f"; {plots.BOUND}: {plots.BOUND_SAID}" * ("bound" in mine)
    return finish(figure, text, axes[0], ncols=5)
