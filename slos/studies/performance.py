"""The performance model against published measurements: fits of their steps, and what wrong ones
cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
from slos.policies import OURS
from slos.records.claims import put
from slos.records.sweep import sweep
from slos.studies.published_steps import GPUS, engine_steps, kernel_steps, measured, stand_in_steps
from slos.studies.sensitivity import FEWER, PRECISION, SCALES, sensitivity, varied

PARALLEL = {"kernels": (1, 2, 4), "engine": (2, 4, 8)}
TILES = (1, 64, 128, 256)
BLIND = ("", "tile=1", "smooth=1", "smooth=1,scale=1.15")  # beliefs of one who knows no tiles
PLANES = 3  # a third one where long prompts take more than their tokens' share


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
    beliefs = list(BLIND) if tiles else ["", *(f"scale={s:g}" for s in SCALES[:: FEWER[size]])]
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
        gray = {"color": "0.55", "markersize": 3, "label": "steps of prompts"}
        axis.plot(steps["tokens"], 1e3 * steps["seconds"], ".", **gray)
        n = np.arange(1, most + 1)
        looks = (
            ("no context, tile 1", "#0072B2", "--"),
            ("with context, tile 128", "#D55E00", "-"),
        )
        for name, color, style in looks:
            roofline = _rooflines(table, kind, gpu)[name]
            ms = [1e3 * roofline.time(int(t)) for t in n]
            axis.plot(n, ms, style, color=color, linewidth=1.3, label=name)
        axis.set(xlabel="tokens of a step", xlim=(0, most), ylim=(0, None))
    return finish(figure, source, axes[0], ncols=len(axes[0].lines))


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
