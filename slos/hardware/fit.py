"""A roofline fitted to measured steps, by least squares (paper, section 3.1)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from slos.core.roofline import Plane, Roofline
from slos.core.types import require

# a step that took so many times what was predicted (a pause of the machine) is left out of a fit
OUTLIER = 2.0


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted roofline, how well it explains the measurements, and its relative error at each,
    float64 [rows]."""

    roofline: Roofline
    r2: float
    errors: np.ndarray


def fit(
    rows: Path | str | Sequence[tuple[float, float, float, float]],
    planes: int = 2,
    context: bool = False,
    tile: int = 1,
) -> Fit:
    """Least-squares fit of a max-affine roofline to measured steps.

    rows: a tidy CSV with columns tokens, seconds and optionally draft_steps, context; or tuples in
    the order tokens, draft_steps, context, seconds. Alternates between assigning each step to its
    highest plane and refitting the planes, from a split of the batch sizes; the relative errors are
    what is minimised, so that small batches count. tile: of the roofline, given and not fitted.
    Raises ValueError on missing columns, non-positive times and fewer than 4 rows per plane.
    """
    data = np.array(_read(Path(rows)) if isinstance(rows, (str, Path)) else list(rows), dtype=float)
    require(planes >= 1, "planes", planes, "at least 1")
    least = f"at least {4 * planes} for {planes} plane(s)"
    require(len(data) >= 4 * planes, "rows", len(data), least, "measure more steps")
    tokens, drafts, ctx, seconds = data.T
    require(bool((seconds > 0).all()), "seconds", float(seconds.min()), "positive in every row")
    ctx = ctx if context else np.zeros_like(ctx)
    found = [
        _alternate(tokens, drafts, ctx, seconds, count, tile) for count in range(1, planes + 1)
    ]
    return min((f for f in found if f), key=lambda candidate: float((candidate.errors**2).mean()))


def _read(path: Path) -> list[tuple[float, float, float, float]]:
    with path.open(newline="") as f:
        reader = csv.DictReader(f)
        for column in ("tokens", "seconds"):
            require(
                column in (reader.fieldnames or ()),
                f"{path}: columns",
                reader.fieldnames,
                f"with {column!r}",
            )
        rows = []
        for n, row in enumerate(reader, start=2):
            try:
                rows.append(
                    tuple(
                        float(row.get(c) or 0)
                        for c in ("tokens", "draft_steps", "context", "seconds")
                    )
                )
            except ValueError as error:
                raise ValueError(f"{path}, row {n}: {error}") from None
    return rows


def _alternate(
    tokens: np.ndarray,
    drafts: np.ndarray,
    ctx: np.ndarray,
    seconds: np.ndarray,
    count: int,
    tile: int,
) -> Fit | None:
    whole = np.ceil(tokens / tile) * tile
    order = np.argsort(np.argsort(tokens, kind="stable"), kind="stable")
    owner = order * count // len(order)
    features = np.stack([whole, drafts, np.ones_like(tokens)], axis=1)
    planes, k_ctx = np.zeros((count, 3)), 0.0
    for _ in range(500):
        before, k_before = planes.copy(), k_ctx
        target = seconds - k_ctx * ctx
        for p in range(count):
            mine = owner == p
            if mine.sum() >= 3:
                planes[p] = _nonnegative(
                    features[mine], target[mine], 1 / seconds[mine], free=2 if p else None
                )
        compute = (features @ planes.T).max(axis=1)
        if ctx.any():
            k_ctx = float(_nonnegative(ctx[:, None], seconds - compute, 1 / seconds)[0])
        owner = (features @ planes.T).argmax(axis=1)
        if np.allclose(planes, before, rtol=1e-12, atol=0) and np.isclose(
            k_ctx, k_before, rtol=1e-12, atol=0
        ):
            break
    used = [Plane(max(k1, 1e-12), k2, b) for k1, k2, b in planes[np.unique(owner)].tolist()]
    if max(plane.b for plane in used) < 0:
        return None  # small batches would cost nothing; a fit of one plane is never among these
    roofline = Roofline(tuple(used), k_ctx, tile)
    predicted = np.array([roofline.time(*row) for row in zip(tokens, drafts, ctx, strict=True)])
    r2 = 1 - ((seconds - predicted) ** 2).sum() / max(
        ((seconds - seconds.mean()) ** 2).sum(), 1e-300
    )
    return Fit(roofline, float(r2), np.abs(predicted / seconds - 1))


def _nonnegative(
    a: np.ndarray, y: np.ndarray, weight: np.ndarray, free: int | None = None
) -> np.ndarray:
    """Weighted least squares with coefficients at least 0, but that of column `free`: drop the most
    negative one and solve again."""
    columns, x = list(range(a.shape[1])), np.zeros(a.shape[1])
    while columns:
        solution = np.linalg.lstsq(a[:, columns] * weight[:, None], y * weight, rcond=None)[0]
        held = np.where(np.array(columns) == free, 0.0, solution)
        if (held >= 0).all():
            x[columns] = solution
            break
        columns.pop(int(held.argmin()))
    return x
