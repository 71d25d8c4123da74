"""The performance model against measurements: files of times become steps, steps are fitted, and
fits are judged.

`engine` steps are Splitwise's: prompts and decodes of Llama-2-70B, from whole runs. `kernels` steps
are Llama-2-7B (the shape of ToolLLaMA-2-7B) put together from operators that were each measured
alone: Vidur's linear layers, norms and all-reduces, by tokens, and AIConfigurator's attention of
vLLM. The output layer and the host are not among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.roofline import Plane, Roofline
from slos.evaluation.capacity_search import Search
from slos.evaluation.plots import DASHED, finish, panels, unique
from slos.evaluation.sizes import size_of
from slos.evaluation.stats import select
from slos.files import Frame, results_dir
from slos.hardware.fit import fit
from slos.hardware.profiles import profile
from slos.policies import OURS
from slos.records.claims import put
from slos.records.sweep import sweep
from slos.studies.sensitivity import FEWER, PRECISION, SCALES, sensitivity, varied
from workloads.files import locate

TILED = {
    "": "the truth",
    "tile=1": "one that takes the same planes without tiles",
    "smooth=1": "one that is right on the average",
    "smooth=1,scale=1.15": "one that is right on the average and plans 15 % more",
}

GPUS = ("a100", "h100")
PARALLEL = {"kernels": (1, 2, 4), "engine": (2, 4, 8)}
TILES = (1, 64, 128, 256)
PLANES = 3  # a third one where long prompts take more than their tokens' share
LAYERS, HIDDEN, HEADS = 32, 4096, 32  # Llama-2-7B
MOST = 4096  # tokens of a step, and the model's context
DECODES = (0, 16, 64, 256)
CONTEXTS = (511, 2047)  # KV tokens of each decode
LINEAR = "gpu_profiles/vidur_{}_Llama-2-7b-hf_mlp.csv"
WIRE = "gpu_profiles/vidur_{}_dgx_all_reduce.csv"
ATTENTION = "gpu_profiles/aiconfigurator_{}_sxm_vllm0.14.0_{}_attention_perf.parquet"
ENGINE = "gpu_profiles/splitwise_perf_model.csv"
COLUMNS = ["tokens", "draft_steps", "context", "seconds"]


def measured() -> bool:
    """Whether the files of measurements are here, in SLOS_DATA or the cache."""
    names = [ENGINE, *(n.format(gpu) for gpu in GPUS for n in (LINEAR, WIRE))]
    names += [ATTENTION.format(gpu, kind) for gpu in GPUS for kind in ("context", "generation")]
    return all(locate([name]) for name in names)


def _file(name: str) -> Path:
    if path := locate([name]):
        return path
    raise FileNotFoundError(
        f"{name} must be in the data folder; set SLOS_DATA to a folder with gpu_profiles/"
    )


@cache
def _linear(gpu: str, tp: int) -> tuple[np.ndarray, np.ndarray]:
    """Seconds of all layers without attention, by tokens: both ascending in tokens."""
    table: Frame = pd.read_csv(_file(LINEAR.format(gpu)))
    table = table[table["num_tensor_parallel_workers"] == tp]
    parts = [c for c in table if c.endswith(".median") and ".emb." not in c]
    sums = (
        (table[parts].sum(axis=1) * LAYERS + table["time_stats.emb.median"])
        .groupby(table["num_tokens"])
        .median()
    )
    tokens, seconds = sums.index.to_numpy(float), 1e-3 * sums.to_numpy()
    if tp > 1:
        wire: Frame = pd.read_csv(_file(WIRE.format(gpu)))
        wire = wire[(wire["num_workers"] == tp) & (wire["devices_per_node"] == tp)]
        times = wire.groupby("size")["time_stats.all_reduce.median"].median()
        seconds = seconds + 2e-3 * LAYERS * np.interp(
            tokens * HIDDEN * 2, times.index, times.to_numpy()
        )
    return tokens, seconds


@cache
def _attention(gpu: str, kind: str, tp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of all layers' attention, [batch, length], with both axes.

    Decodes of several heads are measured with up to 8 KV heads only; a batch four times as large of
    a quarter of the heads reads the same bytes in as many thread blocks.
    """
    table: Frame = pd.read_parquet(_file(ATTENTION.format(gpu, kind)))
    heads = HEADS // tp
    share = 1 if kind == "context" else heads // 8
    table = table[(table["attn_dtype"] == "bfloat16") & (table["kv_cache_dtype"] == "bfloat16")]
    table = table[
        (table["num_heads"] == heads // share) & (table["num_key_value_heads"] == heads // share)
    ]
    length = table["isl"] if kind == "context" else table["step"]
    grid = table.assign(length=length).pivot_table(
        "latency", "batch_size", "length", aggfunc="median"
    )
    grid = grid.loc[:, grid.columns <= MOST].dropna()
    return (
        grid.index.to_numpy(float) / share,
        grid.columns.to_numpy(float),
        1e-3 * LAYERS * grid.to_numpy(),
    )


def _decode_seconds(gpu: str, tp: int, batch: int, context: int) -> float:
    batches, lengths, seconds = _attention(gpu, "generation", tp)
    by_batch = [np.interp(context, lengths, row) for row in seconds]
    return float(np.interp(batch, batches, by_batch)) if batch else 0.0


def _prefill_seconds(gpu: str, tp: int, tokens: int) -> float:
    _, lengths, seconds = _attention(gpu, "context", tp)
    return float(np.interp(tokens, lengths, seconds[0])) if tokens else 0.0


def kernel_steps(gpu: str, tp: int) -> Frame:
    """One row per step of Llama-2-7B: a prompt, decodes, or both, for every measured number of
    tokens.

    Columns: tokens, draft_steps, context (KV tokens that the decodes read), seconds.
    """
    rows = []
    for n, linear in zip(*_linear(gpu, tp), strict=True):
        for decodes in {d for d in (*DECODES, int(n)) if d <= min(n, DECODES[-1])}:
            seconds = linear + _prefill_seconds(gpu, tp, n - decodes)
            for context in CONTEXTS if decodes else (0,):
                rows.append(
                    (n, 0, decodes * context, seconds + _decode_seconds(gpu, tp, decodes, context))
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def engine_steps(gpu: str, tp: int) -> Frame:
    """Steps of Llama-2-70B with the same columns: all prompts of a batch at once, and its mean
    decode step."""
    table: Frame = pd.read_csv(_file(ENGINE))
    table = table[(table["model"] == "llama2-70b") & (table["hardware"] == f"{gpu}-80gb")]
    table = table[(table["tensor_parallel"] == tp) & (table["prompt_size"] <= MOST)]
    batch = table["batch_size"]
    prompts = pd.DataFrame(
        {"tokens": batch * table["prompt_size"], "context": 0, "seconds": table["prompt_time"]}
    )
    read = batch * (table["prompt_size"] + table["token_size"] / 2)
    decodes = pd.DataFrame({"tokens": batch, "context": read, "seconds": table["token_time"]})
    both = pd.concat([prompts[prompts["tokens"] <= 2 * MOST], decodes]).assign(draft_steps=0)
    return both.assign(seconds=1e-3 * both["seconds"])[COLUMNS].reset_index(drop=True)


def stand_in_steps(gpu: str, tp: int) -> Frame:
    """Instead of `kernel_steps` where the files are not: the shipped profile with noise of 5 %, no
    measurement."""
    r, rng = profile(f"llama-2-7b-{gpu}").roofline, np.random.default_rng(tp)
    sizes = (1, 2, 4, *range(8, 1024, 8), *range(1024, MOST, 64))
    shapes = [(n, 0, decodes * CONTEXTS[0]) for n in sizes for decodes in (0, min(n, 64))]
    return pd.DataFrame(
        [(*s, r.time(*s) / tp * rng.lognormal(0, 0.05)) for s in shapes], columns=COLUMNS
    )


@dataclass(frozen=True, slots=True)
class FitCase:
    """A roofline to be fitted. kind: `kernels`, `engine` or `stand-in`; context: with the term
    k_ctx."""

    kind: str
    gpu: str
    tp: int
    context: bool
    tile: int

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.gpu} TP{self.tp}, tile "
            f"{self.tile}{', context' if self.context else ''}"
        )

    def steps(self) -> Frame:
        make = {"kernels": kernel_steps, "engine": engine_steps, "stand-in": stand_in_steps}[
            self.kind
        ]
        return make(self.gpu, self.tp)


@dataclass(frozen=True, slots=True)
class Judged:
    """A fit on the steps of up to `tokens` tokens (more than half of that): relative errors; r2 is
    of all its steps."""

    kind: str
    gpu: str
    tp: int
    context: bool
    tile: int
    r2: float
    planes: str
    k_ctx: float
    tokens: int
    mean_error: float
    max_error: float
    steps: int


def judge(case: FitCase) -> list[Judged]:
    """Fit, and one row per power of two of batch sizes."""
    steps = case.steps()
    found = fit(list(steps.itertuples(index=False, name=None)), PLANES, case.context, case.tile)
    sizes = 2 ** np.ceil(np.log2(steps["tokens"].to_numpy(float))).astype(int)
    planes = " | ".join(f"{p.k1:.4g} {p.b:.4g}" for p in found.roofline.planes)
    return [
        Judged(
            case.kind, case.gpu, case.tp, case.context, case.tile, found.r2, planes,
            found.roofline.k_ctx, int(size), float(errors.mean()), float(errors.max()), len(errors),
        )
        for size in np.unique(sizes)
        for errors in [found.errors[sizes == size]]
    ]  # fmt: skip


def fits(size: str, workers: int | None = None) -> Frame:
    """Rows of `Judged` for all measurements that are here, or for the stand-in, with and without
    context and tiles."""
    size_of(size)
    kinds = PARALLEL if measured() else {"stand-in": (1,)}
    cases = [
        FitCase(kind, gpu, tp, context, tile) for kind,
        parallel in kinds.items()
        for gpu in GPUS
        for tp in parallel[: 1 if size == "smoke" else None]
        for context in (False, True)
        for tile in (TILES if kind != "engine" else (1,))
    ]  # fmt: skip
    return pd.DataFrame(
        sweep(judge, cases, results_dir(size) / "roofline_fits.csv", Judged, workers)
    )


def origin(table: Frame) -> str:
    """Where the steps of `fits` come from."""
    if "stand-in" in set(table["kind"]):
        return "no measurement: steps of the shipped profiles with noise of 5 %; set SLOS_DATA"
    return (
        "measured: Vidur and AIConfigurator (kernels, Llama-2-7B), Splitwise (engine, Llama-2-70B)"
    )


def forms(table: Frame) -> Frame:
    """One row per GPU, degree of parallelism and form of the model: R2, mean error, and the largest
    with its size."""
    by = ["kind", "gpu", "tp", "context", "tile"]
    worst = table.loc[table.groupby(by, sort=False)["max_error"].idxmax(), [*by, "tokens"]]
    found = table.assign(mean_error=table["mean_error"] * table["steps"]).groupby(by, sort=False)
    found = found.agg(
        {"steps": "sum", "r2": "first", "max_error": "max", "mean_error": "sum"}
    ).reset_index()
    found["mean_error"] /= found["steps"]
    return found.merge(worst.rename(columns={"tokens": "worst_tokens"}), on=by)


def best_forms(table: Frame) -> Frame:
    """Of each profile the form with context whose tile has the least mean error."""
    table = table[table["context"]]
    return table.loc[table.groupby(["kind", "gpu", "tp"], sort=False)["mean_error"].idxmin()]


def save_fits(size: str, table: Frame, notebook: str) -> Frame:
    """Put R2 of the best forms beside the paper's, if they are of measurements; what was put
    there."""
    if "stand-in" in set(table["kind"]):
        return pd.DataFrame(columns=["no measurements: nothing is put beside the paper"])
    r2 = best_forms(table)["r2"]
    numbers = {"roofline_r2_min": (r2.min(),) * 3, "roofline_r2_max": (r2.max(),) * 3}
    hardware = f"{len(r2)} profiles of A100 and H100"
    return put(size, notebook, numbers, "measured", "published GPU profiles", hardware)


def belief_cases(size: str, scenarios: Sequence[str], profile: str, tiles: bool) -> list[Search]:
    """Our policy on a profile with beliefs that are wrong: about all batch times, or about
    tiles."""
    precision = max(PRECISION, size_of(size).precision)
    beliefs = list(TILED) if tiles else ["", *(f"scale={s:g}" for s in SCALES[:: FEWER[size]])]
    changes = [{"belief": b, "precision": precision} for b in beliefs]
    return varied(size, scenarios, (OURS,), changes, profile)


def _rooflines(table: Frame, kind: str, gpu: str) -> dict[str, Roofline]:
    """The fitted forms of a GPU at the smallest degree of parallelism, by name."""
    mine = select(table, kind=kind, gpu=gpu)
    mine = mine[mine["tp"] == mine["tp"].min()].drop_duplicates(["context", "tile"])
    return {
        f"{'with' if r.context else 'no'} context, tile {r.tile}": Roofline(
            tuple(
                Plane(k1, 0.0, b) for k1,
                b in (map(float, p.split()) for p in r.planes.split(" | "))
            ),
            r.k_ctx, r.tile,
        )
        for r in mine.itertuples()
    }  # fmt: skip


def steps_and_fits(table: Frame, source: str, most: int = 1024) -> Figure:
    """Steps by tokens, prompts alone, with the paper's form and ours with tiles, a panel per
    GPU."""
    kind = "kernels" if "kernels" in set(table["kind"]) else "stand-in"
    gpus = unique(table["gpu"])
    figure, axes = panels([gpu.upper() for gpu in gpus], (4.8, 3.4), (0, 0), "time of a step (ms)")
    for axis, gpu in zip(axes, gpus, strict=True):
        steps = FitCase(kind, gpu, 1, False, 1).steps()
        steps = steps[(steps["context"] == 0) & (steps["tokens"] <= most)]
        axis.plot(
            steps["tokens"],
            1e3 * steps["seconds"],
            ".",
            color="0.55",
            markersize=3,
            label="steps of prompts",
        )
        n = np.arange(1, most + 1)
        looks = (
            ("no context, tile 1", "#0072B2", "--"),
            ("with context, tile 128", "#D55E00", "-"),
        )
        for name, color, style in looks:
            roofline = _rooflines(table, kind, gpu)[name]
            axis.plot(
                n,
                [1e3 * roofline.time(int(t)) for t in n],
                style,
                color=color,
                linewidth=1.3,
                label=name,
            )
        axis.set(xlabel="tokens of a step", xlim=(0, most), ylim=(0, None))
    axes[0].legend(frameon=False, fontsize=8)
    return finish(figure, source)


def errors_by_size(table: Frame, source: str) -> Figure:
    """Mean (bars) and largest (marks) relative error by batch size, a panel per GPU and kind of
    steps."""
    shown = unique(zip(table["kind"], table["gpu"], strict=True))
    least = table.groupby(["kind", "gpu"])["tp"].min()
    titles = [f"{gpu.upper()}, {kind}, TP{least[kind, gpu]}" for kind, gpu in shown]
    figure, axes = panels(titles, (5, 2.5), (0, 0.5), "error (%)", 2, sharey=True)
    looks = ((False, 1, "paper's form", "#0072B2", ""), (True, 1, "with context", "#56B4E9", "//"),
             (True, 128, "with context and tiles of 128", "#D55E00", ".."))  # fmt: skip
    for axis, (kind, gpu) in zip(axes, shown, strict=True):
        mine = select(table, kind=kind, gpu=gpu, tp=least[kind, gpu])
        sizes = sorted(set(mine["tokens"]))
        for i, (context, tile, label, color, hatch) in enumerate(looks):
            rows = select(mine, context=context, tile=tile).set_index("tokens").reindex(sizes)
            x = np.arange(len(sizes)) + (i - 1) * 0.27
            edge = {"edgecolor": "black", "linewidth": 0.4}
            axis.bar(
                x, 100 * rows["mean_error"], 0.27, color=color, hatch=hatch, label=label, **edge
            )
            axis.scatter(
                x, 100 * rows["max_error"], s=18, marker="v", color=color, zorder=3, **edge
            )
        axis.set_xticks(range(len(sizes)), [str(s) for s in sizes], fontsize=7)
        axis.set_xlabel("tokens of a step, up to")
    return finish(figure, f"{source}; bars: mean error, triangles: largest", axes[0], ncols=3)


def belief_curves(table: Frame, source: str) -> Figure:
    """Capacity over that of the true belief, against how long the policy takes batches for, a line
    per scenario."""
    told = table["belief"].map(lambda text: float(text.split("=")[1]) if text else 1.0)
    figure = sensitivity(
        table.assign(belief=told), "belief", source, "ratio", "capacity over that of the truth (x)"
    )
    for axis in figure.axes:
        axis.axvline(1, **DASHED)
    return figure
