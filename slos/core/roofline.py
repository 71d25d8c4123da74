"""Batch time as a roofline, its inverse, its fit, and named profiles (paper, section 3.1).

T(batch) = max over planes (k1 * tokens + k2 * draft_steps + b) + k_ctx * context, in seconds: `tokens` computed in
the step, in whole tiles, `draft_steps` the longest draft in the batch, `context` the KV tokens that its requests had
before it (weight 0 in the paper).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from importlib.resources import files
from pathlib import Path

import numpy as np

from slos.core.types import require

_SLACK = 1e-9  # seconds forgiven to rounding when a time is turned into tokens


@dataclass(frozen=True, slots=True)
class Plane:
    """One affine piece: k1 seconds per token, k2 per draft step, b per batch (below 0 in one that is steep)."""

    k1: float
    k2: float
    b: float

    def __post_init__(self) -> None:
        require(self.k1 > 0, "k1", self.k1, "positive (seconds per token)")
        require(self.k2 >= 0, "k2", self.k2, "at least 0 (seconds per draft step)")


@dataclass(frozen=True, slots=True)
class Roofline:
    """tile: tokens are computed in multiples of it; a GPU takes as long for 129 as for 256 where that is 128."""

    planes: tuple[Plane, ...]
    k_ctx: float = 0.0
    tile: int = 1
    array: np.ndarray = field(init=False, repr=False, compare=False)  # float64 [planes, 4] for kernels: k1, k2, b, tile

    def __post_init__(self) -> None:
        require(len(self.planes) > 0, "planes", self.planes, "at least one")
        least = max(p.b for p in self.planes)
        require(least >= 0, "b", least, "at least 0 (seconds per batch) in one of the planes")
        require(self.k_ctx >= 0, "k_ctx", self.k_ctx, "at least 0 (seconds per context token)")
        require(self.tile >= 1, "tile", self.tile, "at least 1 token")
        object.__setattr__(self, "array", np.array([(p.k1, p.k2, p.b, self.tile) for p in self.planes], np.float64))

    def time(self, tokens: int, draft_steps: int = 0, context: int = 0) -> float:
        """Seconds of a batch."""
        longest = 0.0
        if self.tile > 1:
            tokens = -(-tokens // self.tile) * self.tile
        for p in self.planes:
            longest = max(longest, p.k1 * tokens + p.k2 * draft_steps + p.b)
        return longest + self.k_ctx * context

    def fits(self, seconds: float, draft_steps: int = 0, context: int = 0) -> int:
        """Most tokens of a batch that takes at most `seconds`: the inverse of `time`, 0 if none fits."""
        room = seconds - self.k_ctx * context + _SLACK
        most = min(int((room - p.k2 * draft_steps - p.b) / p.k1) for p in self.planes)
        return max(0, most // self.tile * self.tile)


@dataclass(frozen=True, slots=True)
class Profile:
    """A model on hardware: its roofline, its KV cache in tokens, and where the figures come from.

    margin: how much slower than the roofline most steps are, where that was measured; plan with it on that hardware.
    """

    name: str
    model: str
    gpu: str
    gpus: int
    roofline: Roofline
    kv_tokens: int
    max_context: int
    source: str
    block_size: int = 16
    margin: float = 1.0

    def __post_init__(self) -> None:
        require(self.margin >= 1, "margin", self.margin, "at least 1")
        require(self.gpus >= 1, "gpus", self.gpus, "at least 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1 token")
        least = f"at least a block of {self.block_size}"
        require(self.kv_tokens >= self.block_size, "kv_tokens", self.kv_tokens, least)
        require(bool(self.source), "source", self.source, "named", "say where the figures come from")

    @property
    def drafts(self) -> bool:
        """Whether there is a draft model."""
        return any(plane.k2 > 0 for plane in self.roofline.planes)

    @property
    def kv_blocks(self) -> int:
        return self.kv_tokens // self.block_size


def _parse(name: str, raw: dict) -> Profile:
    kinds = {f.name: str(f.type) for f in fields(Profile) if f.name not in ("name", "roofline")}
    kinds |= {"planes": "list", "k_ctx": "float", "tile": "int"}
    lacking = [k for k in kinds if k not in raw and k not in ("block_size", "margin", "k_ctx", "tile")]
    require(not lacking, f"{name}: fields", list(raw), "complete", f"add {', '.join(lacking)}")
    for k, value in raw.items():
        require(k in kinds, f"{name}: field", k, f"one of {', '.join(kinds)}")
        fits = type(value).__name__ in (kinds[k], "int" if kinds[k] == "float" else "")
        require(fits, f"{name}: {k}", value, f"of type {kinds[k]}")
    for p in raw["planes"]:
        good = isinstance(p, list) and len(p) == 3 and all(isinstance(x, int | float) for x in p)
        require(good, f"{name}: plane", p, "three numbers", "give k1, k2 and b in seconds")
    planes = tuple(Plane(*p) for p in raw["planes"])
    rest = {k: v for k, v in raw.items() if k not in ("planes", "k_ctx", "tile")}
    return Profile(name, roofline=Roofline(planes, raw.get("k_ctx", 0.0), raw.get("tile", 1)), **rest)


@cache
def profiles() -> dict[str, Profile]:
    """The profiles that ship with the kit, by name."""
    raw = json.loads((files("slos.hardware") / "profiles.json").read_text())
    return {name: _parse(name, entry) for name, entry in raw.items()}


def profile(name: str) -> Profile:
    """The shipped profile `name`, or the one in a JSON file of the same layout if `name` is a path to one."""
    if name.endswith(".json") and Path(name).is_file():
        try:
            [(inner, entry)] = json.loads(Path(name).read_text()).items()
            return _parse(inner, entry)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{name} must hold one entry like those of slos/profiles.json: {error}") from error
    known = profiles()
    if name not in known:
        raise ValueError(f"profile {name!r} is unknown; known: {', '.join(sorted(known))}, or the path of a JSON file")
    return known[name]


@dataclass(frozen=True, slots=True)
class Fit:
    """A fitted roofline, how well it explains the measurements, and its relative error at each, float64 [rows]."""

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

    rows: a tidy CSV with columns tokens, seconds and optionally draft_steps, context; or tuples in the order tokens,
    draft_steps, context, seconds. Alternates between assigning each step to its highest plane and refitting the planes,
    from a split of the batch sizes; the relative errors are what is minimised, so that small batches count. tile: of
    the roofline, given and not fitted.
    Raises ValueError on missing columns, non-positive times and fewer than 4 rows per plane.
    """
    data = np.array(_read(Path(rows)) if isinstance(rows, (str, Path)) else list(rows), dtype=float)
    require(planes >= 1, "planes", planes, "at least 1")
    least = f"at least {4 * planes} for {planes} plane(s)"
    require(len(data) >= 4 * planes, "rows", len(data), least, "measure more steps")
    tokens, drafts, ctx, seconds = data.T
    require(bool((seconds > 0).all()), "seconds", float(seconds.min()), "positive in every row")
    ctx = ctx if context else np.zeros_like(ctx)
    found = [_alternate(tokens, drafts, ctx, seconds, count, tile) for count in range(1, planes + 1)]
    return max(found, key=lambda candidate: candidate.r2)


def _read(path: Path) -> list[tuple[float, float, float, float]]:
    with path.open(newline="") as f:
        reader = csv.DictReader(f)
        for column in ("tokens", "seconds"):
            require(column in (reader.fieldnames or ()), f"{path}: columns", reader.fieldnames, f"with {column!r}")
        rows = []
        for n, row in enumerate(reader, start=2):
            try:
                rows.append(tuple(float(row.get(c) or 0) for c in ("tokens", "draft_steps", "context", "seconds")))
            except ValueError as error:
                raise ValueError(f"{path}, row {n}: {error}") from None
    return rows


def _alternate(
    tokens: np.ndarray, drafts: np.ndarray, ctx: np.ndarray, seconds: np.ndarray, count: int, tile: int
) -> Fit:
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
                planes[p] = _nonnegative(features[mine], target[mine], 1 / seconds[mine], free=2 if p else None)
        compute = (features @ planes.T).max(axis=1)
        if ctx.any():
            k_ctx = float(_nonnegative(ctx[:, None], seconds - compute, 1 / seconds)[0])
        owner = (features @ planes.T).argmax(axis=1)
        if np.allclose(planes, before, rtol=1e-12, atol=0) and np.isclose(k_ctx, k_before, rtol=1e-12, atol=0):
            break
    used = [Plane(max(k1, 1e-12), k2, b) for k1, k2, b in planes[np.unique(owner)]]
    roofline = Roofline(tuple(used), k_ctx, tile)
    predicted = np.array([roofline.time(*row) for row in zip(tokens, drafts, ctx, strict=True)])
    r2 = 1 - ((seconds - predicted) ** 2).sum() / max(((seconds - seconds.mean()) ** 2).sum(), 1e-300)
    return Fit(roofline, float(r2), np.abs(predicted / seconds - 1))


def _nonnegative(a: np.ndarray, y: np.ndarray, weight: np.ndarray, free: int | None = None) -> np.ndarray:
    """Weighted least squares with coefficients at least 0, but that of column `free`: drop the most negative one and
    solve again."""
    columns, x = list(range(a.shape[1])), np.zeros(a.shape[1])
    while columns:
        solution = np.linalg.lstsq(a[:, columns] * weight[:, None], y * weight, rcond=None)[0]
        held = np.where(np.array(columns) == free, 0.0, solution)
        if (held >= 0).all():
            x[columns] = solution
            break
        columns.pop(int(held.argmin()))
    return x
