"""What does it cost to decide a step ahead, as today's vLLM does?

With asynchronous scheduling, vLLM's default, a step is decided while the one before it runs. No GPU
waits for its scheduler then, but a request that comes meanwhile waits for one step more. The
simulator does the same if `World.asynchronous` is set; the paper's systems do not. Each system is
searched for in both ways and by the clients' rule of pace, the one by which servers are judged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.pace import CLIENT
from slos.evaluation import plots, stats
from slos.evaluation.capacity_search import Probe, Search, tried
from slos.evaluation.grids import crossed, settings_of, swept
from slos.evaluation.sizes import Size, of_size
from slos.files import Frame
from slos.policies import OURS
from slos.studies.today import IN_SECONDS, MAIN, TRACED, gain_bars
from workloads import SCENARIOS
from workloads.scenarios import LONGER

MEASURED = "opt-13b-h200"  # the profile of the GPU on which vLLM itself was measured
EXACT = [name for name in LONGER if not name.startswith("reasoning")]
"""Scenarios in which the simulator takes the same steps as vLLM. Where a stage follows another
without a wait, vLLM learns of that a step later."""
ON_IT = ("chatbot", "coding", "summarization", "mixed")  # the paper's scenarios
TRIES = settings_of(("vllm-v1", "qoserve", "scorpio", OURS))
"""The baseline that is an engine of today and the best of the later ones, with all settings."""
WAYS = {"at its end": False, "a step ahead": True}
"""When a step is decided: at the end of the one before it, or while that runs."""
SAID = {"at its end": "decided when a step ends", "a step ahead": "decided a step ahead"}
SIZES = {
    "smoke": Size(40, 1, 0.5, scenarios=("chatbot-8k",)),
    "quick": Size(200, 1, 0.1, scenarios=("chatbot-8k", "mixed-8k-mlperf", "mixed")),
    "full": Size(400, 3, 0.05, scenarios=(*EXACT, *ON_IT)),
}
WHERE = ("objectives", "scenario", "decided")


def cases(size: str) -> Iterator[Search]:
    """Every scenario, system, setting and seed, decided at the end of a step."""
    for case in crossed(of_size(size, SIZES), TRIES, rule=CLIENT):
        if case.scenario in SCENARIOS:
            yield replace(case, profile=MEASURED)
        else:
            lengths = "trace" if case.scenario.startswith(TRACED) else "dataset"
            yield replace(case, profile=MAIN, lengths=lengths)


def run(size: str, workers: int | None = None) -> Frame:
    """Rows of `Probe` with the way of `WAYS` as `decided`, from results/<size>/step_ahead_*.csv
    where they lie already; of each system and setting only if every seed has a capacity."""
    plain, parts = [*cases(size)], []
    for way, ahead in WAYS.items():
        mine = [replace(case, asynchronous=ahead) for case in plain]
        name = f"step_ahead_{int(ahead)}"
        parts.append(swept(size, name, tried, mine, Probe, workers).assign(decided=way))
    rows = pd.concat(parts, ignore_index=True)
    return stats.of_every_seed(rows, "scenario", "system", "setting", "decided")


def best(probes: Frame) -> Frame:
    """What each system carries at its best setting, by scenario and way of deciding."""
    found = stats.capacities(probes, "decided", "rule", "target")
    whose = np.where(found["scenario"].str.endswith(IN_SECONDS), "MLPerf's", "the paper's")
    found["objectives"] = found["profile"] + ", " + whose + " objectives"
    order = SIZES["full"].scenarios
    return found.sort_values("scenario", key=lambda c: c.map(order.index), kind="stable")


def gains(found: Frame) -> Frame:
    """Ours over the best other one, both deciding in the same way; a row per scenario and way.
    found: with the bound (`bounds.beside`), which is put over the best other one as `most`."""
    others = stats.strongest(found[found["system"] != OURS], *WHERE)
    others = others.assign(against=others["system"], most=others["bound"] / others["capacity"])
    ours = found.loc[found["system"] == OURS, [*WHERE, "capacity", "rate"]]
    return stats.over(ours, others[[*WHERE, "rate", "against", "setting", "most"]])


def kept(found: Frame) -> Frame:
    """The share of its capacity that each system keeps if it decides a step ahead, as a mean over
    scenarios with its interval; a row per objectives and system."""
    columns = ["objectives", "scenario", "system", "rate"]
    end, ahead = (stats.select(found, decided=way)[columns] for way in WAYS)
    return stats.geometric_means(stats.over(ahead, end), "objectives", "system")


def save(size: str, found: Frame) -> None:
    """Write the capacities to step_ahead.csv of a size."""
    columns = ["scenario", "lengths", "system", "setting", "profile", "rule", "target", "decided"]
    columns += ["capacity", "low", "high", "seeds", "source", "status"]
    stats.write(size, "step_ahead", found[columns], float_format="%.6g")


def chart(table: Frame, source: str) -> Figure:
    """The `gains` by scenario, a panel for each kind of objectives and a bar for each way."""
    titles = plots.unique(table["objectives"])
    over = "SLOs-Serve over the best other (x)"
    figure, axes = plots.panels(titles, (4.4, 3.2), (0, 0.4), over, sharey=True)
    table = table.assign(decided=table["decided"].map(SAID))
    palette = plots.colors([*SAID.values()])
    for axis, title in zip(axes, titles, strict=True):
        gain_bars(axis, stats.select(table, objectives=title), "decided", palette, "ratio")
        axis.axhline(1, color="black", linewidth=0.8)
        plots.plain_log(axis.yaxis, ticks=(0.7, 1, 1.5, 2, 3, 5, 10, 20, 50))
    text = f"{source}; {plots.seeds_said(table)}; {plots.BOUND}: {plots.BOUND_SAID}"
    return plots.finish(figure, text, axes[0], ncols=3)
