"""A roofline fitted to measured steps, by least squares (paper, section 3.1).

`python -m slos.hardware.fit STEPS.csv --model NAME --gpu NAME --kv-tokens N -o my_gpu.json` makes a
profile from steps that were measured anywhere. The columns are tokens and seconds, and where they
are known draft_steps and context.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from math import inf, nan
from pathlib import Path

import numpy as np
from scipy.optimize import lsq_linear

from slos.core.roofline import Plane, Roofline
from slos.core.types import require
from slos.hardware.profiles import SLOWEST, Profile, save

OUTLIER = 2.0  # times what was predicted: a pause of the machine, which is left out of a fit
TILES = (1, 16, 64, 128)  # tried
QUANTILE = 0.75  # of the steps that must not take longer than `margin` times the roofline
POWERS = (1.0, 0.5, 2.0)  # of a step's rank by size: where the planes are split at first


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted roofline, its R2, and its relative error at each measurement, float64 [rows]."""

    roofline: Roofline
    r2: float
    errors: np.ndarray


COLUMNS = ("tokens", "draft_steps", "context", "seconds")
Steps = Sequence[tuple[float, float, float, float]]
"""Tokens, draft steps, context tokens and seconds of measured ones."""


def fit(
    rows: Path | str | Steps, planes: int = 2, context: bool = False, tile: int = 1,
    quick: bool = False,
) -> Fit:  # fmt: skip
    """Least-squares fit of a max-affine roofline to measured steps.

    rows: steps, or a tidy CSV with columns tokens, seconds and perhaps draft_steps, context.
    Alternates between assigning each step to its highest plane and refitting the planes, from
    splits of the batch sizes; the relative errors are what is minimised, so that small batches
    count. tile: of the roofline, given and not fitted. quick: in milliseconds instead of a tenth
    of a second, perhaps a worse one, for an engine that goes on meanwhile.
    Raises ValueError on missing columns, non-positive times and fewer than 4 rows per plane.
    """
    data = np.array(_read(Path(rows)) if isinstance(rows, (str, Path)) else list(rows), dtype=float)
    require(planes >= 1, "planes", planes, "at least 1")
    least = f"at least {4 * planes} for {planes} plane(s)"
    require(len(data) >= 4 * planes, "rows", len(data), least, "measure more steps")
    tokens, _, _, seconds = data.T
    require(bool((seconds > 0).all()), "seconds", float(seconds.min()), "positive in every row")
    if not context:
        data[:, 2] = 0.0
    size = (np.argsort(np.argsort(tokens, kind="stable"), kind="stable") + 0.5) / len(tokens)
    starts = [(size**power * n).astype(int) for n in range(1, planes + 1) for power in POWERS[:n]]
    found = [_alternate(data, start, tile, quick) for start in starts]
    return min((f for f in found if f), key=lambda candidate: float((candidate.errors**2).mean()))


def _read(path: Path) -> list[tuple[float, float, float, float]]:
    rows = []
    try:
        text = path.read_text("utf-8-sig")  # spreadsheets put a mark in front
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: content must be UTF-8 text, not packed: {error}") from None
    reader = csv.reader(text.splitlines(), skipinitialspace=True)
    header = [c.strip().lower() for c in next(reader, [])]
    for column in ("tokens", "seconds"):
        require(column in header, f"{path}: columns", header, f"comma-separated, with {column!r}")
    for n, cells in enumerate(reader, start=2):
        if not cells:
            continue
        here = f"{path}, row {n}"
        require(len(cells) == len(header), here, cells, f"of {len(header)} fields")
        row = dict(zip(header, cells, strict=True))
        row |= {c: row.get(c) or "0" for c in ("draft_steps", "context")}
        tokens, drafts, context, seconds = (_number(f"{here}: {c}", row[c]) for c in COLUMNS)
        rows.append((tokens, drafts, context, seconds))
    return rows


def _number(name: str, text: str) -> float:
    value = nan
    with suppress(ValueError):
        value = float(text)
    require(0 <= value < inf, name, text, "a finite number of at least 0")
    return value


def _alternate(data: np.ndarray, owner: np.ndarray, tile: int, quick: bool) -> Fit | None:
    """A fit whose planes begin with the steps that `owner` gives them, if it is of use."""
    tokens, drafts, ctx, seconds = data.T
    whole = np.ceil(tokens / tile) * tile
    features = np.stack([whole, drafts, np.ones_like(tokens)], axis=1)
    planes, k_ctx = (_at_once if quick else _in_turn)(features, ctx, seconds, owner)
    highest = np.unique((features @ planes.T).argmax(axis=1))
    used = [Plane(max(k1, 1e-12), k2, b) for k1, k2, b in planes[highest].tolist()]
    if max(plane.b for plane in used) < 0:
        return None  # small batches would cost nothing; a fit of one plane is never among these
    roofline = Roofline(tuple(used), k_ctx, tile)
    predicted = np.array([roofline.time(*row) for row in zip(tokens, drafts, ctx, strict=True)])
    off, whole = (((seconds - x) ** 2).sum() for x in (predicted, seconds.mean()))
    whole = max(whole, 1e-12 * (seconds**2).sum())  # less is rounding, if all take equally long
    return Fit(roofline, float(1 - off / whole), np.abs(predicted / seconds - 1))


def _in_turn(
    features: np.ndarray, ctx: np.ndarray, seconds: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, float]:
    """Planes, float64 [planes, 3], and the seconds per token of context: refitted in turn until
    they stay, from planes that begin with the steps that `owner` gives them."""
    count = int(owner.max()) + 1
    planes, k_ctx, alike = np.zeros((count, 3)), 0.0, partial(np.allclose, rtol=1e-12, atol=0)
    for _ in range(500):
        before, k_before = planes.copy(), k_ctx
        target = seconds - k_ctx * ctx
        for p in range(count):
            mine, free = owner == p, 2 if p else None
            if mine.sum() >= 3:
                planes[p] = _nonnegative(features[mine], target[mine], 1 / seconds[mine], free)
        compute = (features @ planes.T).max(axis=1)
        if ctx.any():
            k_ctx = float(_nonnegative(ctx[:, None], seconds - compute, 1 / seconds)[0])
        owner = (features @ planes.T).argmax(axis=1)
        if alike(planes, before) and alike(k_ctx, k_before):
            break
    return planes, k_ctx


def _at_once(
    features: np.ndarray, ctx: np.ndarray, seconds: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, float]:
    """The same, the best on the way of refitting all at once, until an assignment comes back."""
    planes, least, seen = np.zeros((owner.max() + 1, 3)), inf, set[bytes]()
    best = planes, 0.0
    while (known := owner.tobytes()) not in seen:
        seen.add(known)
        planes, k_ctx = _refitted(planes, features, ctx, seconds, owner)
        compute = features @ planes.T
        owner = compute.argmax(axis=1)
        error = float((((compute.max(axis=1) + k_ctx * ctx) / seconds - 1) ** 2).mean())
        if error < least:
            least, best = error, (planes, k_ctx)
    return best


def _nonnegative(
    a: np.ndarray, y: np.ndarray, weight: np.ndarray, free: int | None = None
) -> np.ndarray:
    """Weighted least squares with coefficients at least 0, but that of column `free`."""
    low = np.where(np.arange(a.shape[1]) == free, -np.inf, 0.0)
    return _bounded(a * weight[:, None], y * weight, low)


def _bounded(a: np.ndarray, y: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Least squares with coefficients of at least `low`, which rounding would go below."""
    return np.maximum(lsq_linear(a, y, (low, np.inf), "bvls").x, low)


def _refitted(
    planes: np.ndarray, features: np.ndarray, ctx: np.ndarray, seconds: np.ndarray,
    owner: np.ndarray,
) -> tuple[np.ndarray, float]:  # fmt: skip
    """The planes, float64 [planes, 3], refitted at once with the seconds per token of context to
    the steps that each owns, weighted for relative errors; with fewer than 3 steps one stays.
    No coefficient is below 0 but the seconds per batch of planes after the first."""
    fitted = np.flatnonzero(np.bincount(owner, minlength=len(planes)) >= 3)
    mine = owner[:, None] == fitted
    some, terms = mine.any(axis=1), mine[:, :, None] * features[:, None, :]
    terms = np.column_stack([terms.reshape(len(owner), -1), ctx]) / seconds[:, None]
    low = np.zeros((len(fitted), 3))
    low[fitted > 0, 2] = -inf
    found = _bounded(terms[some], np.ones(some.sum()), np.append(low, 0.0))
    planes = planes.copy()
    planes[fitted] = found[:-1].reshape(-1, 3)
    return planes, float(found[-1])


@dataclass(frozen=True, slots=True)
class Judged:
    """A fit, the margin of `QUANTILE` of the steps, and its median relative error by batch size."""

    fit: Fit
    margin: float
    by_size: dict[str, float]

    @property
    def told(self) -> str:
        errors = ", ".join(f"{size} tokens {100 * e:.1f} %" for size, e in self.by_size.items())
        return f"R2 {self.fit.r2:.4f}, median error {errors}"


def fitted(rows: Steps, planes: int = 3) -> Judged:
    """The roofline with the tile that explains steps best, where some are of no use.

    rows: as in `fit`, at least 4. Left out are steps that took far less than the smallest ones,
    which a busy machine leaves where times are differences, and pauses.
    """
    few = sorted(rows)[: -(-len(rows) // 4)]
    least = 0.6 * float(np.median([row[3] for row in few])) if few else 0.0
    steps = [row for row in rows if row[3] > least]
    name = "measured steps, without those far faster than the smallest"
    require(len(steps) >= 4, name, len(steps), "at least 4", "measure more steps")
    usual = steps
    for _ in range(3):
        first = fit(usual, 1, context=True).roofline
        near = [s for s in steps if 1 / OUTLIER < s[3] / first.time(*s[:3]) < OUTLIER]
        usual = near if len(near) >= max(4, len(steps) // 2) else usual
    count = min(planes, len(usual) // 4)
    tried = [fit(usual, count, context=True, tile=tile) for tile in TILES]
    best = min(tried, key=lambda f: float((f.errors**2).mean()))
    ratios = [s[3] / best.roofline.time(*s[:3]) for s in usual]
    tokens, by_size = np.array([s[0] for s in usual]), {}
    for low, high in ((1, 16), (17, 128), (129, 1024), (1025, 8192)):
        if len(mine := best.errors[(low <= tokens) & (tokens <= high)]):
            by_size[f"{low}-{high}"] = float(np.median(mine))
    return Judged(best, max(1.0, float(np.quantile(ratios, QUANTILE))), by_size)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m slos.hardware.fit", description=__doc__)
    parser.add_argument("steps", type=Path, nargs="+", help="CSV files of measured steps")
    parser.add_argument("--model", required=True, help="the model's name, for tables")
    parser.add_argument("--gpu", required=True, help="the GPU's name, for tables")
    parser.add_argument("--gpus", type=int, default=1, help="number of GPUs (%(default)s)")
    parser.add_argument("--kv-tokens", type=int, required=True, help="tokens of the KV cache")
    parser.add_argument("--max-context", type=int, default=8192, help="in tokens (%(default)s)")
    parser.add_argument("--name", default="", help="name of the profile (the file's)")
    parser.add_argument("-o", "--output", type=Path, default=Path("my_gpu.json"), metavar="JSON")
    given = parser.parse_args(argv)
    try:
        rows = [row for path in given.steps for row in _read(path)]
        sizes = {row[0] for row in rows}
        require(len(sizes) > 1, "batch sizes", len(sizes), "several", "measure more")
        found = fitted(rows)
        step, cure = found.fit.roofline.time(1), "divide milliseconds by 1000"
        require(step <= SLOWEST, "the step of one token", step, f"at most {SLOWEST:g} s", cure)
        source = f"fitted to {len(rows)} rows of {', '.join(p.name for p in given.steps)}"
        made = Profile(
            given.name or given.output.stem, given.model, given.gpu, given.gpus,
            found.fit.roofline, given.kv_tokens, given.max_context, f"{source}; {found.told}",
            margin=round(found.margin, 3),
        )  # fmt: skip
        save(made, given.output)
    except (ValueError, OSError) as error:
        print(f"fit: {error}", file=sys.stderr)
        return 2
    print(f"{given.output}: {made.roofline}\n{found.told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
