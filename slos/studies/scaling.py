"""What many replicas and a router bring; and prefill and decode on different GPUs, at each ratio,
against replicas side by side."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import product

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from slos.evaluation import grids, plots
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import BASELINE, BEST_ROUTER, PLAIN, RATIOS, sized
from slos.evaluation.plots import DASHED, colors, name_of, seeds_said, unique
from slos.evaluation.sizes import OPT, Size, of_size
from slos.evaluation.stats import capacities, mean_of, over, rows_of, select, strongest
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import Spread, paper
from slos.sim.cluster import POOLED, roles

IN_WORDS = {POOLED: "one large engine", "": "one replica"}
WHERE = ("replicas", "router", "topology")
SIZES = {
    "smoke": Size(60, 1, 0.5, scenarios=("chatbot", "coding")),
    "quick": Size(120, 1, 0.08),
    "full": Size(250, 3, 0.03),
}
REPLICAS = {"smoke": (1, 2), "quick": (1, 4), "full": (1, 2, 4, 8, 16)}
H100, H100_MOST = "opt-13b-h100", 8  # replicas, the paper's
TOLD = 4
"""Replicas at which routers are compared, the paper's; more or fewer run with the plain and the
best one only."""
APART = (*grids.ENGINES, OURS)  # of which prefill and decode are taken apart
DRAWN = {PLAIN: ":", "sequential": "--"}  # the lines of these routers
PLAIN_TO = 8  # replicas; with more behind it, too, half of all simulated requests would be of 16


def _grid(
    size: str, scenarios: Sequence[str], kinds: Sequence[tuple[str, int, str, str]], profile: str
) -> list[Search]:
    """Every scenario and seed of a size with each system, replicas, router and topology."""
    s, systems, routers = of_size(size, SIZES), [k[0] for k in kinds], [k[2] for k in kinds if k[2]]
    grids.check_cases(scenarios or s.scenarios, systems, profile, routers)
    cases = (
        Search(
            scenario, system, "", profile, seed=seed, replicas=n, router=router, topology=topology
        )
        for scenario, seed in product(scenarios or s.scenarios, range(s.seeds))
        for system, n, router, topology in kinds
    )
    return [sized(case, s.num_requests, s.precision) for case in cases]


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
    ladder, kinds = of_size(size, REPLICAS), []
    for n in ladder:
        some = (PLAIN, BEST_ROUTER) if n <= PLAIN_TO else (BEST_ROUTER,)
        fewer = [router for router in routers if router in some]
        choice = ("",) if n == 1 else routers if n == told_at(ladder) else fewer
        kinds += [(system, n, router, "") for system in systems for router in choice]
        kinds += [(OURS, n, "", POOLED)] if n == told_at(ladder) and OURS in systems else []
    return _grid(size, scenarios, kinds, profile)


def h100_cases(size: str, systems: Sequence[str] = (OURS, BASELINE)) -> list[Search]:
    """OPT-13B on up to eight H100, as the paper scales it, behind the plain and the best router:
    the scenarios of OPT, chatbot alone unless at full size."""
    scenarios = OPT if size == "full" else OPT[:1]
    cases = scaling_cases(size, scenarios, systems, (PLAIN, BEST_ROUTER), H100)
    return [c for c in cases if c.replicas <= H100_MOST and not c.topology]


def disaggregation_cases(
    size: str, scenarios: Sequence[str] = (), systems: Sequence[str] = APART, profile: str = ""
) -> list[Search]:
    """Prefill and decode apart at each ratio, and side by side, all with the same router."""
    places = [(1, ratio) for ratio in RATIOS] + [(2, ""), (3, "")]
    kinds = [(name, n, "least-loaded", topology) for name in systems for n, topology in places]
    return _grid(size, scenarios, kinds, profile)


def found(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Capacity per GPU of every case over its seeds; one row per scenario, system and cluster."""
    best = capacities(grids.run_searches(size, cases, workers, "clusters"), *WHERE)
    gpus = [n * len(roles(t)) for n, t in zip(best["replicas"], best["topology"], strict=True)]
    return best.assign(gpus=gpus)


def routing(best: Frame, replicas: int) -> Frame:
    """What each router carries over round robin, and the ceiling: ours in one large engine."""
    here = best[(best["replicas"] == replicas) & best["topology"].isin(("", POOLED))]
    here = here.assign(what=here["router"].where(here["topology"] == "", POOLED))
    plain = select(here, what=PLAIN)[["scenario", "system", "rate"]]
    return over(here.loc[here["what"] != PLAIN, ["scenario", "what", "system", "rate"]], plain)


def scaling(best: Frame) -> Frame:
    """Capacity per GPU of many replicas over that of one, per system and router."""
    together = select(best, topology="").rename(columns={"router": "what"})
    one = select(together, replicas=1)[["scenario", "system", "rate"]]
    return over(together[["scenario", "what", "system", "replicas", "rate"]], one)


def scaling_numbers(best: Frame, replicas: int) -> dict[str, Spread]:
    """Our numbers for the paper's claims: the gain of our router, as "routing_pooled" the ceiling
    of all routing, and the load of four replicas over that of one."""
    gains, ladder = select(routing(best, replicas), system=OURS), select(scaling(best), system=OURS)
    ours = select(gains, what=BEST_ROUTER)
    parts = {"ablation_routing": ours, "routing_coding": select(ours, scenario="coding")}
    parts["routing_pooled"] = select(gains, what=POOLED)
    numbers = {key: mean_of(part) for key, part in parts.items() if len(part)}
    for scenario in ("chatbot", "tool-calling", "coding") if replicas == 4 else ():
        here = select(ladder, what=BEST_ROUTER, replicas=4, scenario=scenario)
        if len(here):
            mean, low, high = mean_of(here)
            numbers[f"scaling_{scenario}".replace("-", "_")] = 4 * mean, 4 * low, 4 * high
    return numbers


def best_ratio(best: Frame, *by: str) -> Frame:
    """The ratio of prefill to decode (`what`) that carries most per GPU, per scenario and `by`."""
    apart = best[best["topology"].isin(RATIOS)].rename(columns={"topology": "what"})
    return strongest(apart, "scenario", *by)[["scenario", "what", "system", "gpus", "rate"]]


def against_distserve(best: Frame) -> Frame:
    """Ours side by side, on as many GPUs, over the best DistServe: vLLM with its policies."""
    ours = select(best, system=OURS, topology="")[["scenario", "gpus", "rate"]]
    return over(ours, best_ratio(best[best["system"] != OURS]))


def distserve_numbers(best: Frame) -> dict[str, Spread]:
    """Our number for the paper's claim; none where a system was left out or added, which may be the
    best DistServe."""
    whole = {*best["system"]} == {*APART}
    return {"capacity_vs_distserve": mean_of(against_distserve(best))} if whole else {}


def against_itself(best: Frame) -> Frame:
    """Each system apart at its best ratio over the same system side by side, on as many GPUs."""
    beside = select(best, topology="")[["scenario", "system", "gpus", "rate"]]
    return over(best_ratio(best, "system"), beside)


def routing_chart(table: Frame, replicas: int, source: str) -> Figure:
    """What each router carries over round robin on the same system, per scenario."""
    labels = [f"{name_of(r.system)}, {IN_WORDS.get(r.what, r.what)}" for r in rows_of(table)]
    routers = colors(unique(table["what"]))
    palette = {label: routers[what] for label, what in zip(labels, table["what"], strict=True)}
    size = max(7.5, 1.5 * table["scenario"].nunique() + 1.5), 3.6
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    named = table.assign(label=labels)
    plots.dots(axis, named, "label", palette, paper("ablation_routing"), "\n mean of six")
    axis.set_ylabel("capacity over round robin (x)")
    said = f"{source}; {replicas} replicas, each system against itself with round robin"
    said += f"; {seeds_said(table)}"
    return plots.finish(figure, said, axis, fontsize=8, ncols=len(palette))


def scaling_chart(table: Frame, source: str) -> Figure:
    """Total load of many replicas over that of one, per scenario; dashed: in proportion."""
    scenarios = unique(table["scenario"])
    figure, axes = plots.panels(scenarios, (3.4, 2.5), (0, 0.7), "load over one replica's (x)", 3)
    kinds = [kind for kind in unique(zip(table["system"], table["what"], strict=True)) if kind[1]]
    palette, reported = colors(unique(system for system, _ in kinds)), paper("scaling_coding")
    ratios = ["ratio", "low", "high"]
    table = table.assign(**table[ratios].mul(table["replicas"], axis=0)).sort_values("replicas")
    for axis, scenario in zip(axes, scenarios, strict=True):
        rows = select(table, scenario=scenario)
        most = rows["replicas"].max()
        axis.plot([1, most], [1, most], **DASHED)
        for i, (system, router) in enumerate(kinds):
            mine = select(rows[rows["what"].isin((router, ""))], system=system)
            looks = {"color": palette[system], "label": f"{name_of(system)}, {router}"}
            looks |= {"linestyle": DRAWN.get(router, "-")}
            plots.whiskers(axis, mine["replicas"], mine, i, **looks, **plots.nested(i))
        if most >= 4:
            said = f"paper's best at 4: {reported:g}x"
            axis.plot(4, reported, marker="_", markersize=16, color="black", label=said)
        axis.set_xticks(sorted(rows["replicas"].unique()))
        axis.set_xlabel("replicas")
    said = f"{source}; straight: in proportion to the replicas; not every router was run at every "
    return plots.finish(figure, f"{said}number; {seeds_said(table)}", axes[0], ncols=3, fontsize=8)


def disaggregation_bars(best: Frame, source: str) -> Figure:
    """Capacity per GPU of prefill and decode apart, and side by side on as many GPUs."""
    scenarios, systems = unique(best["scenario"]), unique(best["system"])
    beside = best["replicas"].astype(str) + " side by side"
    best = best.assign(kind=best["topology"].where(best["topology"] != "", beside))
    kinds = [*sorted({*best["kind"]} - {*RATIOS}), *(r for r in RATIOS if r in {*best["kind"]})]
    figure, axes = plots.panels(scenarios, (2.3, 3.4), (0.6, 0), "capacity (requests/s per GPU)")
    for axis, k, rows, looks in plots.lines(axes, best, "scenario", "kind", kinds):
        x = plots.beside(len(systems), k, len(kinds), 0.17)
        plots.bars(axis, x, rows.set_index("system").reindex(systems), k, width=0.17, **looks)
    names = [name_of(system) for system in systems]
    for axis in axes:
        axis.set_xticks(range(len(systems)), names, rotation=30, ha="right", fontsize=8)
    said = f"{source}; 1:1, 2:1, 1:2: prefill to decode replicas; all with the router least-loaded"
    return plots.finish(figure, f"{said}; {seeds_said(best)}", axes[0], ncols=len(kinds))
