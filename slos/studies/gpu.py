"""What was measured on a GPU by `slos.studies.on_gpu`: steps of models, and vLLM under load.

The rows lie in results/reference/gpu; nothing here needs a GPU. Beside what was measured stands
what the simulator says, which was given nothing but the profile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.attainment import Outcome
from slos.core.lengths import Oracle
from slos.core.pace import PAPER
from slos.core.roofline import scaled
from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import searches
from slos.evaluation.plots import finish, panels
from slos.evaluation.stats import capacities, select
from slos.files import ROOT, Frame, commit, results_dir, write_whole
from slos.hardware.profiles import profile
from slos.policies import OURS, make_policy
from slos.replay.results import Labels, Replayed, rows
from slos.sim.replica import World
from slos.sim.simulator import simulate
from slos.studies.capacity import ratios
from slos.studies.engine_tables import by_load, errors
from slos.studies.real_engine import STOCK

FOLDER = ROOT / "results" / "reference" / "gpu"
MODELS = ("opt-6.7b-h200", "opt-13b-h200", "llama-3.1-8b-h200")
SERVED, KV_TOKENS = "opt-13b-h200", 48_800  # with 40 GB of cache: two servers shared the GPU
SETTINGS = {STOCK: {"max_batched_tokens": 512}, OURS: {}}  # of vLLM's the best one in simulation
STEPS = {STOCK: "steps-vllm-v1.csv.gz", OURS: "steps-slos-serve.csv.gz"}


def steps(name: str) -> Frame:
    """The measured steps of a profile: means of consecutive steps of one composition."""
    return pd.read_csv(FOLDER / f"steps-{name}.csv")


def steps_and_rooflines(names: Sequence[str] = MODELS) -> Figure:
    """Measured steps by their tokens, and the roofline without context; a panel per profile."""
    figure, axes = panels(names, (3.4, 3.0), (0.3, 0.4), "a step (ms)", sharey=True)
    for axis, name in zip(axes, names, strict=True):
        table, known = steps(name), profile(name)
        alone = table["decodes"] == table["requests"]
        kinds = {"decodes alone": table[alone], "prompts beside them": table[~alone]}
        for (kind, part), marker in zip(kinds.items(), "o^", strict=True):
            axis.plot(part["tokens"], 1e3 * part["seconds"], marker, markersize=4, label=kind)
        tokens = np.geomspace(1, 8192, 80)
        line = [1e3 * known.roofline.time(n) for n in tokens]
        axis.plot(tokens, line, color="black", label="roofline, no context")
        axis.set(xscale="log", yscale="log", xlabel="tokens of the step")
    said = "measured on one NVIDIA H200, vLLM 0.32, CUDA graphs, random weights"
    return finish(figure, said, axes[0], ncols=3)


def requests(workload: str, rate: float) -> list[Request]:
    """The requests of a run as they were sent."""
    table: Frame = pd.read_csv(FOLDER / "engine_requests.csv")
    table = select(table, scenario=workload, rate=rate, system=STOCK).sort_values("arrival")
    return [
        Request(
            r.id,
            r.arrival,
            (Stage(r.prompt, r.output, SLO(tpot=r.tpot_slo, ttft=r.ttft_slo)),),
            kind=r.kind,
        )
        for r in table.itertuples()
    ]


def simulated(workload: str, rate: float, system: str) -> list[Outcome]:
    """What the simulator says of a run, on the profile that was measured before it."""
    known = replace(profile(SERVED), kv_tokens=KV_TOKENS)
    sent = requests(workload, rate)
    belief = scaled(known.roofline, known.margin)
    policy = make_policy(system, belief, Oracle(sent), **SETTINGS[system])
    return simulate(sent, policy, World.of(known))


def engine() -> tuple[Frame, Frame]:
    """vLLM under load by both schedulers: a row per workload, load, scheduler and status, and how
    far the simulator is off."""
    measured: Frame = pd.read_csv(FOLDER / "engine_requests.csv", keep_default_na=False)
    asked = {"rule": PAPER, "attained_paper": measured["attained"]}  # then there was no other
    tables: list[Frame] = [measured.assign(status="measured", lag=0.0, **asked)]
    for (workload, rate, system), _ in measured.groupby(["scenario", "rate", "system"]):
        labels = Labels(str(workload), str(system), SERVED, float(rate), status="simulated")
        said = Replayed(simulated(labels.scenario, labels.rate, labels.system), [])
        tables.append(rows(labels, said).assign(lag=0.0))
    both: Frame = pd.concat(tables, ignore_index=True)
    both[["ttft", "tpot"]] = both[["ttft", "tpot"]].astype(float)
    table = by_load(both).drop(columns="lag")
    order = ["scenario", "rate", "system", "status"]
    return table.sort_values(order).reset_index(drop=True), errors(table)


def planning() -> Frame:
    """Milliseconds per step that each scheduler took to decide, and that the steps lasted."""
    found = []
    for system, name in STEPS.items():
        table: Frame = pd.read_csv(FOLDER / name)
        ms = 1e3 * table[["planning", "seconds"]]
        p50, p99 = ms.quantile(0.5), ms.quantile(0.99)
        shares = (p50["planning"], p99["planning"], ms["planning"].max(), p50["seconds"])
        found.append((system, len(table), *shares))
    columns = ["system", "steps", "P50 of deciding", "P99", "most", "P50 of a step"]
    return pd.DataFrame(found, columns=columns)


def capacity_cases(size: str, scenarios: Sequence[str], names: Sequence[str]) -> list[Search]:
    """Capacity searches on measured profiles: vLLM V1 and Sarathi-Serve at several budgets, and
    ours."""
    systems = (STOCK, "sarathi", OURS)
    return [case for name in names for case in searches(size, scenarios, systems, name)]


def capacity_table(probes: Frame, size: str) -> Frame:
    """Requests per second that each system carries, by profile and scenario, and ours over the
    best other one with a 95 % interval over seeds; written to gpu_capacity.csv of the size."""
    best = capacities(probes)
    tables = []
    for name, group in best.groupby("profile", sort=False):
        carried = group.pivot(index="scenario", columns="system", values="capacity").round(2)
        gains = ratios(group)
        gains = gains[gains["against"] == "best"].set_index("scenario")
        gained = gains[["ratio", "low", "high"]].round(2)
        tables.append(carried.join(gained).reset_index().assign(profile=name))
    whole = pd.concat(tables).set_index(["profile", "scenario"])
    told = whole.assign(seeds=best["seeds"].min(), status="simulated on a measured profile")
    write_whole(results_dir(size) / "gpu_capacity.csv", told.assign(commit=commit()).to_csv())
    return whole
