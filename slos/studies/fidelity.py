"""The simulator against a real GPU: requests that were measured in vLLM, replayed.

959 requests of four experiments of inference-sim (github.com/inference-sim/inference-sim, commit
d9f61a2, Apache-2.0): vLLM 0.11 on one 80 GB card, each request with its arrival, tokens and times.
The simulated `vllm-v1` gets the arrivals and tokens, and of each server its settings, the KV tokens
that its log names and the prompt that its client put before all others. Steps last as long as
profiles of kernels say, to which nothing was fitted; or `scale` times that, where scale is the
median of measured over simulated time per token of one experiment, `FITTED`, for all four.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.types import SLO, Request, Stage
from slos.evaluation.plots import DASHED, finish, panels
from slos.evaluation.runs import serve
from slos.evaluation.stats import select, write
from slos.files import ROOT, Frame
from slos.hardware.profiles import profile, scaled
from workloads.files import locate

FILE = "gpu_profiles/inference_sim_vllm_measured_requests.csv"
ANY = SLO(tpot=1.0, ttft=10.0)  # vLLM knows none


@dataclass(frozen=True, slots=True)
class Served:
    """A server of an experiment, by its log. prefix: tokens that all its prompts began with, by the
    profile of its client; doubt: about what was served, and what settles it."""

    profile: str
    kv_tokens: int
    prefix: int = 0
    doubt: str = ""


CODELLAMA = "codellama-34b-h100"
EXPERIMENTS = {
    "jan20-codellama-train-1": Served(CODELLAMA, 40_592),
    "jan20-codellama-prefill-1": Served(CODELLAMA, 44_640, 1024),
    "jan20-prefill-llama7b-tp1-1": Served(
        CODELLAMA, 40_592, 1024,
        "its name says Llama 7B, the server's log CodeLlama-34B: a token alone takes 26.0 ms as in "
        "the others of that model, and 6.6 ms in that of Llama-2-7B",
    ),
    "jan21-llama7b-train-1": Served("llama-2-7b-h100-kernels", 119_008),
}  # fmt: skip
"""What eval/ground_truth/<experiment>/{vllm.log,profile.yaml} say besides the requests."""
FITTED = "jan20-codellama-train-1"
QUANTITIES = {
    "ttft": "first token (s)",
    "engine": "first token in the engine (s)",
    "tpot": "time per token (s)",
    "end": "end to end (s)",
}
"""engine: from the queue to the end of the prompt, without the server's front end."""


def measured() -> Frame:
    """The requests by experiment and arrival, a column per quantity; none without the file."""
    path = locate([FILE])
    if path is None:
        return pd.DataFrame(columns=["experiment", *QUANTITIES])
    table: Frame = pd.read_csv(path).sort_values(["experiment", "arrival_s"], ignore_index=True)
    return table.assign(
        ttft=table["ttft_s"], engine=table["queue_s"] + table["prefill_s"], end=table["e2e_s"],
        tpot=table["decode_s"] / (table["completion_tokens"] - 1).clip(lower=1),
    )  # fmt: skip


def replayed(table: Frame, served: Served, scale: float = 1.0, cache: bool = True) -> Frame:
    """The quantities of the requests of one experiment as simulated. cache: with vLLM's prefix
    cache."""
    known = replace(profile(served.profile), kv_tokens=served.kv_tokens)
    known = replace(known, roofline=scaled(known.roofline, scale))
    shared = (("system", served.prefix),) if served.prefix else ()
    sent = []
    for i, r in enumerate(table.itertuples()):
        stage = Stage(r.prompt_tokens, r.completion_tokens, ANY)
        sent.append(Request(str(i), r.arrival_s, (stage,), prefix=shared))
    setting = f"max_batched_tokens={table['max_num_batched_tokens'].iloc[0]:.0f}"
    seats = int(table["max_num_seqs"].iloc[0])
    outcomes = serve(sent, "vllm-v1", known, setting, max_seqs=seats, prefix_cache=cache)
    outcomes.sort(key=lambda o: int(o.id))
    rows = [(o.ttft, o.ttft, o.tpot, o.finish - o.arrival) for o in outcomes]
    return pd.DataFrame(rows, columns=[*QUANTITIES], index=table.index)


def replays() -> Frame:
    """A row per request and replay: what was measured, and `said_...`, the same as simulated."""
    table, rows = measured(), []
    if table.empty:
        return table
    fitted = select(table, experiment=FITTED)
    slower = fitted["tpot"] / replayed(fitted, EXPERIMENTS[FITTED])["tpot"]
    ways = (1.0, True), (1.0, False), (round(float(slower.median()), 3), True)
    for (name, served), (scale, cache) in product(EXPERIMENTS.items(), ways):
        if cache or served.prefix:
            mine = select(table, experiment=name)
            said = replayed(mine, served, scale, cache).add_prefix("said_")
            columns = mine[["experiment", *QUANTITIES]].join(said)
            rows.append(columns.assign(scale=scale, cache=cache))
    return pd.concat(rows, ignore_index=True)


def summary(rows: Frame) -> Frame:
    """By replay and quantity: means and P90, simulated over measured; by request, correlation."""
    out = []
    for (name, cache, scale), group in rows.groupby(["experiment", "cache", "scale"], sort=False):
        served = EXPERIMENTS[str(name)]
        where = {
            "experiment": name, "profile": served.profile, "in doubt": bool(served.doubt),
            "prefix cache": cache and served.prefix > 0, "scale": scale,
            "fitted": "" if scale == 1 else f"to {FITTED}",
        }  # fmt: skip
        for key, quantity in QUANTITIES.items():
            real, said = group[key], group[f"said_{key}"]
            p90 = real.quantile(0.9)
            found = {
                "quantity": quantity, "requests": len(group), "measured mean": real.mean(),
                "mean ratio": said.mean() / real.mean(), "measured P90": p90,
                "P90 ratio": said.quantile(0.9) / p90,
                "correlation": np.corrcoef(real, said)[0, 1],
                "median error": (said / real - 1).abs().median(),
            }  # fmt: skip
            out.append(where | found)
    return pd.DataFrame(out)


def run(size: str) -> tuple[Frame, Frame]:
    """`replays` and their `summary`, which is written to results/<size>/fidelity.csv; where the
    measured requests are not at hand, no replays and the summary that the repository holds."""
    rows = replays()
    if rows.empty:
        return rows, pd.read_csv(ROOT / "results" / "reference" / "fidelity.csv")
    table = summary(rows)
    write(size, "fidelity", table.round(4).assign(status="simulated against measured"))
    return rows, table


def scatter(rows: Frame) -> Figure:
    """Simulated against measured time of every request, a panel per experiment."""
    doubt = "\n(as CodeLlama-34B: model in doubt)"
    titles = [name + doubt * bool(served.doubt) for name, served in EXPERIMENTS.items()]
    figure, axes = panels(titles, (3.1, 3.0), (0, 0.3), "simulated (s)", 2)
    text = "no measured requests at hand; set SLOS_DATA"
    if len(rows):
        scale = rows["scale"].iloc[-1]  # the fitted one, which may be below 1
        rows = select(rows, cache=True, scale=scale)
        text = f"measured: vLLM 0.11 on an 80 GB GPU; simulated: kernels x {scale:g}, fitted to "
        text += f"{FITTED} alone; with a prefix cache where the server had hits"
    for axis, name in zip(axes, EXPERIMENTS, strict=True):
        mine = select(rows, experiment=name)
        for key, mark, color in (("end", "o", "#0072B2"), ("ttft", "^", "#D55E00")):
            if len(mine):
                looks = {"markersize": 3, "color": color, "alpha": 0.5, "label": QUANTITIES[key]}
                axis.plot(mine[key], mine[f"said_{key}"], mark, markeredgewidth=0, **looks)
        axis.plot((0.01, 100), (0.01, 100), **DASHED)
        axis.set(xscale="log", yscale="log", xlabel="measured (s)")
    return finish(figure, text, axes[0], ncols=2)
