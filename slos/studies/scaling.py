"""What many replicas and a router bring."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from slos.core.types import require
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import BASELINE, BEST_ROUTER, PLAIN, run_searches
from slos.evaluation.plots import (
    DASHED,
    colors,
    dots,
    finish,
    name_of,
    panels,
    seeds_said,
    unique,
    whiskers,
)
from slos.evaluation.runs import hardware_of
from slos.evaluation.stats import capacities, mean_of, over, select
from slos.files import Frame
from slos.policies import OURS, POLICIES
from slos.policies.routers import ROUTERS
from slos.records.claims import Spread, paper
from slos.sim.cluster import POOLED, roles
from workloads import SCENARIOS

IN_WORDS = {POOLED: "one large engine", "": "one replica"}

WHERE = ("replicas", "router", "topology")


@dataclass(frozen=True, slots=True)
class Scale:
    """How large a run is: replicas, requests per simulation and replica, seeds, precision of a
    capacity, scenarios."""

    replicas: tuple[int, ...]
    requests: int
    seeds: int
    precision: float
    scenarios: tuple[str, ...] = tuple(SCENARIOS)


SCALES = {
    "smoke": Scale((1, 2), 60, 1, 0.5, ("chatbot", "coding")),
    "quick": Scale((1, 4), 120, 1, 0.08),
    "full": Scale((1, 2, 4, 8, 16), 250, 3, 0.03),
}
H100 = "opt-13b-h100"
OPT = tuple(name for name, scenario in SCENARIOS.items() if scenario.drafting)
# replicas at which routers are compared, the paper's; more or fewer run with the plain and the best
# one only
TOLD = 4


def checked(
    size: str,
    scenarios: Sequence[str],
    systems: Sequence[str],
    profile: str,
    routers: Sequence[str] = (),
) -> Scale:
    named = (
        ("size", [size], SCALES),
        ("scenario", scenarios, SCENARIOS),
        ("system", systems, POLICIES),
    )
    for name, values, known in (*named, ("router", routers, ROUTERS)):
        for value in values:
            require(value in known, name, value, f"one of {', '.join(known)}")
    for scenario in scenarios or SCALES[size].scenarios:
        hardware_of(scenario, profile)
    return SCALES[size]


def told_at(replicas: Collection[int]) -> int:
    """Of these the number at which routers are compared."""
    return TOLD if TOLD in replicas else max(replicas)


def scaling_cases(
    size: str,
    scenarios: Sequence[str] = (),
    systems: Sequence[str] = (OURS, BASELINE),
    routers: Sequence[str] = (PLAIN, "sequential", BEST_ROUTER),
    profile: str = "",
) -> list[Search]:
    """Every scenario, system and number of replicas, and the routers; where they are compared all
    of them, and ours in one engine as large as all replicas."""
    s, grid = checked(size, scenarios, systems, profile, routers), []
    some = [router for router in routers if router in (PLAIN, BEST_ROUTER)]
    for scenario, n, seed in product(scenarios or s.scenarios, s.replicas, range(s.seeds)):
        choice = ("",) if n == 1 else routers if n == told_at(s.replicas) else some
        kinds = [(system, router, "") for system in systems for router in choice]
        kinds += [(OURS, "", POOLED)] if n == told_at(s.replicas) and OURS in systems else []
        for system, router, topology in kinds:
            grid.append(
                Search(
                    scenario, system, profile=profile, seed=seed, num_requests=n * s.requests,
                    precision=s.precision, replicas=n, router=router, topology=topology,
                )
            )  # fmt: skip
    return grid


def h100_cases(size: str, systems: Sequence[str] = (OURS, BASELINE), most: int = 8) -> list[Search]:
    """OPT-13B on up to eight H100, as the paper scales it, behind the plain and the best router.

    The scenarios of OPT, chatbot alone unless at full size.
    """
    scenarios = OPT if size == "full" else OPT[:1]
    cases = scaling_cases(size, scenarios, systems, (PLAIN, BEST_ROUTER), H100)
    return [c for c in cases if c.replicas <= most and not c.topology]


def found(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Capacity per GPU of every case over its seeds; one row per scenario, system and cluster."""
    best = capacities(run_searches(size, cases, workers, "clusters"), *WHERE)
    gpus = [n * len(roles(t)) for n, t in zip(best["replicas"], best["topology"], strict=True)]
    return best.assign(gpus=gpus)


def routing(best: Frame, replicas: int) -> Frame:
    """What each router carries over round robin on the same system, and the ceiling: ours in one
    large engine."""
    here = best[(best["replicas"] == replicas) & best["topology"].isin(("", POOLED))]
    here = here.assign(what=here["router"].where(here["topology"] == "", POOLED))
    other = here[here["what"] != PLAIN]
    return over(
        other[["scenario", "what", "system", "rate"]],
        select(here, what=PLAIN)[["scenario", "system", "rate"]],
    )


def scaling(best: Frame) -> Frame:
    """Capacity per GPU of many replicas over that of one, per system and router."""
    together = select(best, topology="").rename(columns={"router": "what"})
    one = select(together, replicas=1)[["scenario", "system", "rate"]]
    return over(together[["scenario", "what", "system", "replicas", "rate"]], one)


def scaling_numbers(best: Frame, replicas: int) -> dict[str, Spread]:
    """What stands beside the paper's: the gain of our router, and the best scenario's load over
    that of one replica.

    And, as "routing_pooled", the ceiling of all routing.
    """
    gains, ceiling = (
        select(routing(best, replicas), system=OURS, what=what) for what in (BEST_ROUTER, POOLED)
    )
    ladder = select(scaling(best), system=OURS, what=BEST_ROUTER, replicas=replicas)
    coding = gains[gains["scenario"] == "coding"]
    numbers = {"ablation_routing": mean_of(gains)}
    if len(coding):
        numbers["routing_coding"] = mean_of(coding)
    if len(ceiling):
        numbers["routing_pooled"] = mean_of(ceiling)
    for scenario in ("chatbot", "tool-calling", "coding") if replicas == 4 else ():
        if len(here := select(ladder, scenario=scenario)):
            mean, low, high = mean_of(here)
            found = f"scaling_{scenario}".replace("-", "_")
            numbers[found] = 4 * mean, 4 * low, 4 * high
    return numbers


def routing_chart(table: Frame, replicas: int, source: str) -> Figure:
    """What each router carries over round robin on the same system, per scenario."""
    kinds = unique(zip(table["system"], table["what"], strict=True))
    palette, reported = colors([what for _, what in kinds]), paper("ablation_routing")
    groups = {
        f"{name_of(system)}, {IN_WORDS.get(what, what)}": (
            palette[what],
            select(table, system=system, what=what),
        )
        for system, what in kinds
    }
    figure, axis = plt.subplots(
        figsize=(max(7.5, 1.5 * table["scenario"].nunique() + 1.5), 3.6), layout="constrained"
    )
    dots(axis, table, groups, 0.11, reported)
    at = {"xycoords": axis.get_yaxis_transform(), "va": "center", "fontsize": 8}
    axis.annotate(f" paper,\n mean of six:\n {reported:g}x", (1, reported), **at)
    axis.set_ylabel("capacity over round robin (x)")
    said = (
        f"{source}; {replicas} replicas, each system against itself with round robin; "
        f"{seeds_said(table)}"
    )
    return finish(figure, said, axis, fontsize=8, ncols=len(groups))


def scaling_chart(table: Frame, source: str) -> Figure:
    """Total load of many replicas over that of one, per scenario; dashed: in proportion."""
    scenarios = unique(table["scenario"])
    figure, axes = panels(scenarios, (3.4, 2.5), (0, 0.7), "load over one replica's (x)", 3)
    kinds = [kind for kind in unique(zip(table["system"], table["what"], strict=True)) if kind[1]]
    palette, reported = colors([str(k) for k in kinds]), paper("scaling_coding")
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = table[table["scenario"] == scenario]
        most = rows["replicas"].max()
        axis.plot([1, most], [1, most], **DASHED)
        for i, (system, router) in enumerate(kinds):
            mine = rows[(rows["system"] == system) & rows["what"].isin((router, ""))].sort_values(
                "replicas"
            )
            mine = mine.assign(
                **{name: mine["replicas"] * mine[name] for name in ("ratio", "low", "high")}
            )
            looks = {
                "color": palette[str((system, router))],
                "label": f"{name_of(system)}, {router}",
            }
            whiskers(axis, mine["replicas"], mine, i, markersize=5, linewidth=1, **looks)
        if most >= 4:
            said = f"paper's best at 4: {reported:g}x"
            axis.plot(4, reported, marker="_", markersize=16, color="black", label=said)
        axis.set_xticks(sorted(rows["replicas"].unique()))
        axis.set_xlabel("replicas")
    said = f"{source}; dashed: in proportion to the replicas; {seeds_said(table)}"
    return finish(figure, said, axes[0], ncols=3, fontsize=8)
