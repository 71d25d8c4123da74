"""The performance model: against published measurements, fits of their steps, and what wrong ones
cost; and the trade-off behind the system (paper, section 2): a larger batch serves more tokens per
second and takes longer, so objectives bound the batch, and with it the load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.core.roofline import Plane, Roofline
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import swept
from slos.evaluation.plots import DASHED, bars, beside, colors, finish, panels, plain_log, unique
from slos.evaluation.sizes import of_size, size_of
from slos.evaluation.stats import select
from slos.files import Frame
from slos.hardware.fit import fit
from slos.hardware.profiles import profile
from slos.policies import OURS
from slos.records.claims import put
from slos.studies.published_steps import GPUS, engine_steps, kernel_steps, measured, stand_in_steps
from slos.studies.sensitivity import FEWER, PRECISION, SCALES, sensitivity, varied

PARALLEL = {"kernels": (1, 2, 4), "engine": (2, 4, 8)}
TILE = 128
TILES = {"smoke": (1, TILE), "quick": (1, TILE), "full": (1, 64, TILE, 256)}
BLIND = ("", "tile=1", "smooth=1", "smooth=1,scale=1.15")  # beliefs of one who knows no tiles
ORIGINS = {
    "kernels": "Vidur and AIConfigurator (kernels, Llama-2-7B)",
    "engine": "Splitwise (engine, Llama-2-70B)",
}
PLANES = 3  # a third one where long prompts take more than their tokens' share
FORMS = (
    (False, 1, "paper's form", "#0072B2"),
    (True, 1, "with context", "#56B4E9"),
    (True, TILE, f"with context and tiles of {TILE}", "#D55E00"),
)
"""Those that figures show: with context or not, tile, name, colour."""

MODELS = (
    "opt-6.7b-a100", "opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100", "toolllama-7b-a100",
    "r1-qwen-1.5b-a100",
)  # fmt: skip
PACES = (0.05, 0.1)  # the paper's TPOTs, seconds
PROMPT = 1000  # tokens, for its time to the first one


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
        context = ", context" if self.context else ""
        return f"{self.kind} {self.gpu} TP{self.tp}, tile {self.tile}{context}"

    def steps(self) -> Frame:
        makes = {"kernels": kernel_steps, "engine": engine_steps, "stand-in": stand_in_steps}
        return makes[self.kind](self.gpu, self.tp)


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
    rows = []
    for size in np.unique(sizes):
        errors = found.errors[sizes == size]
        rows.append(Judged(
            **asdict(case), r2=found.r2, planes=planes, k_ctx=found.roofline.k_ctx,
            tokens=int(size), mean_error=float(errors.mean()), max_error=float(errors.max()),
            steps=len(errors),
        ))  # fmt: skip
    return rows


def fits(size: str, workers: int | None = None) -> Frame:
    """Rows of `Judged` of what was measured, or of the stand-in, for all forms: with and without
    context, and by the tiles of kernels."""
    tiles = of_size(size, TILES)
    kinds = PARALLEL if measured() else {"stand-in": (1,)}
    cases = [
        FitCase(kind, gpu, tp, context, tile)
        for kind, parallel in kinds.items()
        for gpu in GPUS
        for tp in parallel[: 1 if size == "smoke" else None]
        for context in (False, True)
        for tile in (tiles if kind != "engine" else (1,))
    ]
    return swept(size, "roofline_fits", judge, cases, Judged, workers)


def origin(table: Frame) -> str:
    """Where the steps of `fits` come from."""
    if "stand-in" in set(table["kind"]):
        return "no measurement: steps of the shipped profiles with noise of 5 %; set SLOS_DATA"
    return f"measured: {', '.join(ORIGINS[kind] for kind in unique(table['kind']))}"


def forms(table: Frame) -> Frame:
    """By GPU, degree of parallelism and form of the model: R2, mean error, and the largest one."""
    by = ["kind", "gpu", "tp", "context", "tile"]
    table = table.assign(mean_error=table["mean_error"] * table["steps"])
    groups = table.groupby(by, sort=False)
    found = groups.agg({"steps": "sum", "r2": "first", "max_error": "max", "mean_error": "sum"})
    found["mean_error"] /= found["steps"]
    worst = table.loc[groups["max_error"].idxmax()].set_index(by)["tokens"]
    return found.assign(worst_tokens=worst).reset_index()


def best_forms(table: Frame) -> Frame:
    """Of each profile the form with context whose tile has the least mean error."""
    table = table[table["context"]]
    return table.loc[table.groupby(["kind", "gpu", "tp"], sort=False)["mean_error"].idxmin()]


def save_fits(size: str, table: Frame, notebook: str) -> Frame:
    """Put R2 in the paper's form next to the paper's, if it is of measurements."""
    if "stand-in" in set(table["kind"]):
        return pd.DataFrame(columns=["no measurements: nothing is compared with the paper"])
    plain = table[~table["context"] & (table["tile"] == 1)]
    r2 = plain.groupby(["kind", "gpu", "tp"])["r2"].first()
    numbers = {"roofline_r2_min": (r2.min(),) * 3, "roofline_r2_max": (r2.max(),) * 3}
    hardware = f"{len(r2)} profiles of A100 and H100"
    return put(size, notebook, numbers, "measured", "published GPU profiles", hardware)


def belief_cases(size: str, scenarios: Sequence[str], profile: str, tiles: bool) -> list[Search]:
    """Our policy on a profile with wrong beliefs: about all batch times, or about tiles."""
    precision = max(PRECISION, size_of(size).precision)
    beliefs = list(BLIND) if tiles else ["", *(f"scale={s:g}" for s in SCALES[:: FEWER[size]])]
    changes = [{"belief": b, "precision": precision} for b in beliefs]
    return varied(size, scenarios, (OURS,), changes, profile)


def steps_and_fits(table: Frame, most: int = 1024) -> Figure:
    """Steps of prompts alone by tokens, the paper's form and ours with tiles, a panel per GPU."""
    kind = "kernels" if "kernels" in set(table["kind"]) else "stand-in"
    gpus, n = unique(table["gpu"]), range(1, most + 1)
    figure, axes = panels([gpu.upper() for gpu in gpus], (4.8, 3.4), (0, 0), "time of a step (ms)")
    for axis, gpu in zip(axes, gpus, strict=True):
        steps = FitCase(kind, gpu, 1, False, 1).steps()
        steps = steps[(steps["context"] == 0) & (steps["tokens"] <= most)]
        gray = {"color": "0.55", "markersize": 3, "label": "steps of prompts"}
        axis.plot(steps["tokens"], 1e3 * steps["seconds"], ".", **gray)
        for context, tile, label, color in (FORMS[0], FORMS[-1]):
            fitted = select(table, kind=kind, gpu=gpu, tp=1, context=context, tile=tile)
            r = next(fitted.itertuples())
            planes = (map(float, plane.split()) for plane in r.planes.split(" | "))
            line = Roofline(tuple(Plane(k1, 0.0, b) for k1, b in planes), r.k_ctx, r.tile)
            ms = [1e3 * line.time(tokens) for tokens in n]
            axis.plot(n, ms, "-" if context else "--", color=color, linewidth=1.3, label=label)
        axis.set(xlabel="tokens of a step", xlim=(0, most), ylim=(0, None))
    said = f"{origin(select(table, kind=kind))}; lines: rooflines fitted to all steps"
    return finish(figure, said, axes[0], ncols=3)


def errors_by_size(table: Frame, source: str) -> Figure:
    """Relative errors by batch size, mean and largest: a panel per GPU and kind of steps."""
    shown = unique(zip(table["kind"], table["gpu"], strict=True))
    least = table.groupby(["kind", "gpu"])["tp"].min()
    titles = [f"{gpu.upper()}, {kind}, TP{least[kind, gpu]}" for kind, gpu in shown]
    figure, axes = panels(titles, (5, 2.5), (0, 0.5), "error (%)", 2, sharey=True)
    for axis, (kind, gpu) in zip(axes, shown, strict=True):
        mine = select(table, kind=kind, gpu=gpu, tp=least[kind, gpu])
        sizes = sorted(set(mine["tokens"]))
        for i, (context, tile, label, color) in enumerate(FORMS):
            rows = select(mine, context=context, tile=tile).set_index("tokens").reindex(sizes)
            rows, x = 100 * rows[["mean_error", "max_error"]], beside(len(sizes), i, 3, 0.27)
            bars(axis, x, rows, i, "mean_error", width=0.27, color=color, label=label)
            edge = {"edgecolor": "black", "linewidth": 0.4}
            axis.scatter(x, rows["max_error"], s=18, marker="v", color=color, zorder=3, **edge)
        axis.set_xticks(range(len(sizes)), [str(s) for s in sizes], fontsize=7)
        axis.set_xlabel("tokens of a step, up to")
    return finish(figure, f"{source}; bars: mean error, triangles: largest", axes[0], ncols=3)


def belief_curves(table: Frame, source: str) -> Figure:
    """Capacity over that of the true belief, by how long the policy takes batches for."""
    told = table["belief"].map(lambda text: float(text.split("=")[1]) if text else 1.0)
    table, label = table.assign(belief=told), "capacity over that of the truth (x)"
    figure = sensitivity(table, "belief", source, "ratio", label)
    for axis in figure.axes:
        axis.axvline(1, **DASHED)
    return figure


def batches(names: Sequence[str] = MODELS, most: int = 4096) -> Frame:
    """By profile and tokens of a step: seconds of the step, which is the TPOT that it can keep;
    tokens per second and GPU; and seconds until a prompt of `PROMPT` tokens has its first token,
    which takes whole steps of that size."""
    rows, sizes = [], np.unique(np.geomspace(16, most, 120).astype(int)).tolist()
    for name in names:
        hardware = profile(name)
        for n in sizes:
            seconds = hardware.roofline.time(n)
            first = -(-PROMPT // n) * seconds
            rows.append((name, n, seconds, n / seconds / hardware.gpus, first))
    return pd.DataFrame(rows, columns=["profile", "tokens", "tpot", "per_second", "ttft"])


def gains(names: Sequence[str] = MODELS) -> Frame:
    """What the looser of the paper's two paces allows: tokens of a step, and times the tokens/s."""
    rows = []
    for name in names:
        tight, loose = (profile(name).roofline.fits(pace) for pace in PACES)
        rows.append((name, tight, loose, (loose / PACES[1]) / (tight / PACES[0])))
    columns = ["profile", *(f"tokens in {1e3 * pace:g} ms" for pace in PACES), "tokens/s (x)"]
    return pd.DataFrame(rows, columns=columns)


def tradeoff_chart(table: Frame) -> Figure:
    """Left: tokens per second against tokens of a step, dots where a step takes as long as the
    paper's TPOTs. Right: the objectives that a size of step can just keep; what lies above and to
    the right of a line can be kept, too."""
    titles = ["throughput", f"objectives that can be kept, prompts of {PROMPT} tokens"]
    figure, (left, right) = panels(titles, (4.6, 3.6), (0, 0.6), "tokens per second and GPU")
    for name, color in colors(unique(table["profile"])).items():
        rows, hardware = select(table, profile=name), profile(name)
        left.plot(rows["tokens"], rows["per_second"], color=color, label=name)
        for pace, marker in zip(PACES, "os", strict=True):
            n = hardware.roofline.fits(pace)
            looks = {"color": color, "markeredgecolor": "black", "markersize": 6}
            left.plot(n, n / hardware.roofline.time(n) / hardware.gpus, marker, **looks)
        # of larger steps only those that bring the first token sooner
        best = rows[rows["ttft"] == rows["ttft"].cummin()]
        right.step(1e3 * best["tpot"], best["ttft"], where="post", color=color)
    for pace in PACES:
        right.axvline(1e3 * pace, color="0.6", linewidth=0.8, linestyle="--")
    left.set(xlabel="tokens of a step", xscale="log")
    right.set(xlabel="time per output token (ms)", ylabel="time to the first token (s)")
    right.set(xscale="log", yscale="log")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        plain_log(axis, 1, 2, 5)
    said = "simulated: rooflines of the profiles; circles and squares: steps of 50 and 100 ms"
    return finish(figure, said, left, ncols=3)
