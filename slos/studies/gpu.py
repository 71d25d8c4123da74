"""What was measured on a GPU by `slos.studies.on_gpu`: steps of models, and vLLM under load.

The rows lie in results/reference/gpu; nothing here needs a GPU. Next to what was measured stands
what the simulator says, which was given nothing but the profile; and what planning costs where
steps wait for it: simulations that charge each step the CPU time of its scheduler, all that vLLM's
`schedule` took on the host of the H200, as a line of the requests in view. A scheduler that learns
from its steps, as ours in vLLM does, knows the mean of what it is charged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import lsq_linear

from slos.core.attainment import attainment
from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import Search, capacity
from slos.evaluation.grids import searches
from slos.evaluation.plots import finish, panels, unique
from slos.evaluation.runs import serve
from slos.evaluation.sizes import of_size
from slos.evaluation.stats import capacities, select, write
from slos.files import ROOT, Frame
from slos.hardware.profiles import Profile, profile, scaled
from slos.policies import OURS
from slos.replay.results import Labels, Replayed, rows
from slos.studies.capacity import ratios
from slos.studies.engine_tables import by_load, errors
from slos.studies.real_engine import STOCK, seen
from workloads import build

FOLDER = ROOT / "results" / "reference" / "gpu"
MODELS = ("opt-6.7b-h200", "opt-13b-h200", "llama-3.1-8b-h200")
SERVED, KV_TOKENS = "opt-13b-h200", 48_800  # with 40 GB of cache: two servers shared the GPU
SETTINGS = {STOCK: "max_batched_tokens=768", OURS: ""}  # of vLLM's the best one in simulation
STEPS = {STOCK: "steps-vllm-v1.csv.gz", OURS: "steps-slos-serve.csv.gz"}
CHARGED, CHARGED_ON = "chatbot-8k", "llama-3.1-8b-h100"  # the scenario whose steps are charged
BUDGETS = {STOCK: "max_batched_tokens=2048", OURS: ""}
WAYS = {"free": {}, "synchronous": {}, "asynchronous": {"asynchronous": True}}
SEEDS = {"smoke": 1, "quick": 1, "full": 5}  # of the capacity searches
REQUESTS = {"smoke": 40, "quick": 300, "full": 600}
START, PRECISION = 6.0, 0.08  # requests per second where a search begins


def steps(name: str) -> Frame:
    """The measured steps of a profile: means of consecutive steps of one composition."""
    return pd.read_csv(FOLDER / f"steps-{name}.csv")


def steps_and_rooflines(names: Sequence[str] = MODELS) -> Figure:
    """Measured steps by their tokens, and the roofline without context; a panel per profile."""
    figure, axes = panels(names, (3.4, 3.0), (0.3, 0.4), "a step (ms)", sharey=True)
    for axis, name in zip(axes, names, strict=True):
        table, known = steps(name), profile(name)
        alone = table["decodes"] == table["requests"]
        kinds = {"decodes alone": table[alone], "prompts with decodes": table[~alone]}
        for (kind, part), marker in zip(kinds.items(), "o^", strict=True):
            axis.plot(part["tokens"], 1e3 * part["seconds"], marker, markersize=4, label=kind)
        tokens = np.geomspace(1, 8192, 80)
        line = [1e3 * known.roofline.time(n) for n in tokens]
        axis.plot(tokens, line, color="black", label="roofline, no context")
        axis.set(xscale="log", yscale="log", xlabel="tokens of the step")
    said = "measured on one NVIDIA H200, vLLM 0.32, CUDA graphs, random weights; lines: fitted"
    return finish(figure, said, axes[0], ncols=3)


def simulated(labels: Labels, sent: Frame) -> Frame:
    """What the simulator says of a run, on the profile that was measured before it. sent: its
    requests as they were measured."""
    requests = []
    for r in sent.sort_values("arrival").itertuples():
        slo = SLO(tpot=r.tpot_slo, ttft=r.ttft_slo, rule=r.rule)
        requests.append(Request(r.id, r.arrival, (Stage(r.prompt, r.output, slo),), kind=r.kind))
    known = replace(profile(SERVED), kv_tokens=KV_TOKENS)
    world = {"belief": scaled(known.roofline, known.margin), "asynchronous": True}
    outcomes = serve(requests, labels.system, known, SETTINGS[labels.system], **world)
    return rows(labels, Replayed([seen(o, sent["outside"].iloc[0]) for o in outcomes]))


def engine() -> tuple[Frame, Frame]:
    """vLLM under load, a row per load, scheduler and status; and how far the simulator is off."""
    measured: Frame = pd.read_csv(FOLDER / "engine_requests.csv.gz", keep_default_na=False)
    times = ["ttft", "tpot"]
    measured[times] = measured[times].apply(pd.to_numeric)
    tables: list[Frame] = [measured.assign(status="measured")]
    for (workload, rate, system), sent in measured.groupby(["scenario", "rate", "system"]):
        labels = Labels(str(workload), str(system), SERVED, float(rate), status="simulated")
        tables.append(simulated(labels, sent).assign(lag=0.0))
    table = by_load(pd.concat(tables, ignore_index=True)).drop(columns="lag")
    order = ["scenario", "rate", "system", "status"]
    return table.sort_values(order).reset_index(drop=True), errors(table)


def planning() -> Frame:
    """Milliseconds per step that each scheduler took to decide, and that the steps lasted."""
    found = []
    for system, name in STEPS.items():
        table: Frame = pd.read_csv(FOLDER / name)
        ms = 1e3 * table["planning"]
        found.append({
            "system": system, "steps": len(table), "P50 of deciding": ms.median(),
            "P99": ms.quantile(0.99), "most": ms.max(),
            "P50 of a step": 1e3 * table["seconds"].median(),
        })  # fmt: skip
    return pd.DataFrame(found)


def capacity_cases(size: str, scenarios: Sequence[str], names: Sequence[str]) -> list[Search]:
    """Capacity searches on measured profiles, lengths of the data sets: ours, and the baselines at
    several budgets."""
    systems, seeds = (STOCK, "sarathi", OURS), of_size(size, SEEDS)
    cases = [case for name in names for case in searches(size, scenarios, systems, name)]
    return [case for case in cases if case.seed < seeds and case.lengths == "dataset"]


def capacity_table(probes: Frame, size: str) -> Frame:
    """Requests per second that each system carries, by profile and scenario, and ours over the
    best other one with a 95 % interval over seeds; written to gpu_capacity.csv of the size."""
    best, where = capacities(probes), ["profile", "scenario"]
    carried = best.pivot(index=where, columns="system", values="capacity")
    gains = select(ratios(best, "dataset", "profile"), against="best").set_index(where)
    whole = carried.join(gains[["ratio", "low", "high"]]).round(2).loc[unique(best["profile"])]
    told = whole.assign(seeds=best["seeds"].min(), status="simulated on a measured profile")
    write(size, "gpu_capacity", told.reset_index())
    return whole


def line(system: str) -> tuple[float, float, float]:
    """Seconds of any step, more for each request, and the mean, as measured: least squares, none
    below 0. The longest hundredth is left out: a kernel was compiled in it."""
    table: Frame = pd.read_csv(FOLDER / STEPS[system])
    table = table[table["planning"] <= table["planning"].quantile(0.99)]
    seen, seconds = table["requests"].to_numpy(float), table["planning"].to_numpy()
    least = lsq_linear(np.stack([np.ones_like(seen), seen], axis=1), seconds, (0, np.inf))
    first, each = least.x.tolist()
    return first, each, float(seconds.mean())


def _carried(system: str, hardware: Profile, count: int, waits: float, **world: Any) -> float:
    """The largest rate at which 90 % of the requests meet their objectives; waits: seconds of
    planning that the policy believes each step to begin with."""
    planes = tuple(replace(p, b=p.b + waits) for p in hardware.roofline.planes)
    belief = replace(hardware.roofline, planes=planes)

    def attained(rate: float) -> float:
        sent = build(CHARGED, rate, count).requests
        return attainment(serve(sent, system, hardware, BUDGETS[system], belief=belief, **world))

    return capacity(attained, 0.9, START, PRECISION)[0]


def charged(size: str) -> Frame:
    """A row per system and way of charging, written to results/<size>/charged.csv."""
    hardware, count, rows = profile(CHARGED_ON), of_size(size, REQUESTS), []
    for system in BUDGETS:
        first, each, mean = line(system)
        free = 0.0
        for way, changes in WAYS.items():
            charge = {} if way == "free" else {"planning": (first, each)}
            waits = mean if way == "synchronous" else 0.0
            rate = _carried(system, hardware, count, waits, **charge, **changes)
            free = free or rate  # the first way
            rows.append({
                "system": system, "charged": way, "planning (ms)": 1e3 * mean,
                "of any step (ms)": 1e3 * first, "more per request (us)": 1e6 * each,
                "requests/s": rate, "of free": rate / free,
            })  # fmt: skip
    table = pd.DataFrame(rows)
    where = {"scenario": CHARGED, "profile": CHARGED_ON, "requests": count}
    write(size, "charged", table.assign(**where, status="simulated"))
    return table
