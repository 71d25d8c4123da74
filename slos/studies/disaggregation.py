"""Prefill and decode on different GPUs, at each ratio, against replicas side by side."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.figure import Figure

from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import BASELINE, RATIOS
from slos.evaluation.plots import HATCHES, colors, finish, name_of, panels, seeds_said, unique
from slos.evaluation.stats import over, select, strongest
from slos.files import Frame
from slos.policies import OURS
from slos.sim.cluster import roles
from slos.studies.scaling import checked


def disaggregation_cases(
    size: str,
    scenarios: Sequence[str] = (),
    systems: Sequence[str] = ("vllm", BASELINE, OURS),
    profile: str = "",
) -> list[Search]:
    """Prefill and decode apart at each ratio, and as many replicas side by side, all with the same
    router."""
    s, grid = checked(size, scenarios, systems, profile), []
    for scenario, system, seed in product(scenarios or s.scenarios, systems, range(s.seeds)):
        for topology in (*RATIOS, "2", "3"):
            gpus = int(topology) if topology.isdigit() else len(roles(topology))
            apart = not topology.isdigit()
            grid.append(
                Search(
                    scenario, system, profile=profile, seed=seed, num_requests=gpus * s.requests,
                    precision=s.precision, replicas=1 if apart else gpus, router="least-loaded",
                    topology=topology if apart else "",
                )
            )  # fmt: skip
    return grid


def best_ratio(best: Frame, *by: str) -> Frame:
    """Per scenario, and `by`, the ratio of prefill to decode replicas that carries most per GPU, as
    `what`."""
    apart = best[best["topology"].isin(RATIOS)].rename(columns={"topology": "what"})
    return strongest(apart, "scenario", *by)[["scenario", "what", "system", "gpus", "rate"]]


def against_distserve(best: Frame) -> Frame:
    """Ours side by side, on as many GPUs and with the same router, over the best DistServe: vLLM's
    policies."""
    ours = select(best, system=OURS, topology="")[["scenario", "gpus", "rate"]]
    return over(ours, best_ratio(best[best["system"] != OURS]))


def against_itself(best: Frame) -> Frame:
    """Each system apart at its best ratio over the same system side by side, on as many GPUs."""
    beside = select(best, topology="")[["scenario", "system", "gpus", "rate"]]
    return over(best_ratio(best, "system"), beside)


def disaggregation_bars(best: Frame, source: str) -> Figure:
    """Capacity per GPU of prefill and decode apart, and side by side on as many GPUs, with the same
    router."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    best = best.assign(
        kind=[t or f"{n} together" for t, n in zip(best["topology"], best["replicas"], strict=True)]
    )
    kinds = sorted(set(best["kind"]), key=lambda kind: (":" in kind, kind))
    figure, axes = panels(scenarios, (2.3, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    for axis, scenario in zip(axes, scenarios, strict=True):
        for k, (kind, color) in enumerate(colors(kinds).items()):
            mine = select(best, scenario=scenario, kind=kind).set_index("system").reindex(systems)
            x = np.arange(len(systems)) + (k - (len(kinds) - 1) / 2) * 0.17
            axis.bar(
                x, mine["capacity"], 0.17, color=color, hatch=HATCHES[k], edgecolor="black",
                linewidth=0.5, label=kind,
            )  # fmt: skip
            bounds = np.maximum(
                0, [mine["capacity"] - mine["low"], mine["high"] - mine["capacity"]]
            )
            axis.errorbar(
                x, mine["capacity"], yerr=bounds, fmt="none", color="black", linewidth=0.8
            )
        axis.set_xticks(
            range(len(systems)), [name_of(s) for s in systems], rotation=30, ha="right", fontsize=8
        )
    said = (
        f"{source}; 1:1, 2:1, 1:2: prefill to decode replicas; all with the router least-loaded; "
    )
    said += seeds_said(best)
    return finish(figure, said, axes[0], ncols=len(kinds))
