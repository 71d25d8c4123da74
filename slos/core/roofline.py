"""Batch time as a roofline, and its inverse (paper, section 3.1): one copy for Python and kernels.

T(batch) = max over planes (k1 * tokens + k2 * draft_steps + b) + k_ctx * context, in seconds:
`tokens` computed in the step, in whole tiles, `draft_steps` the longest draft in the batch,
`context` the KV tokens that its requests had before it (weight 0 in the paper).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, inf

import numpy as np

from slos.core.kernels import kernel
from slos.core.types import require

EPS = 1e-9  # seconds forgiven to rounding when times are compared, or turned into tokens
USUAL = 0.04  # seconds of the shortest step of hardware that a policy's seconds are meant for


@dataclass(frozen=True, slots=True)
class Plane:
    """One affine piece: k1 seconds per token, k2 per draft step, b per batch (below 0 in one that
    is steep)."""

    k1: float
    k2: float
    b: float

    def __post_init__(self) -> None:
        require(self.k1 > 0, "k1", self.k1, "positive (seconds per token)")
        require(self.k2 >= 0, "k2", self.k2, "at least 0 (seconds per draft step)")


PLANE = np.dtype([("k1", np.float64), ("k2", np.float64), ("b", np.float64)])
"""A `Plane` for kernels."""


def time_of(planes, tile: float, tokens: float, draft_steps: float = 0) -> float:
    """Seconds of a batch, its context not read. planes: `Plane`s, or a `PLANE` array."""
    longest = 0.0
    if tile > 1:
        tokens = ceil(tokens / tile) * tile
    for plane in planes:
        longest = max(longest, plane.k1 * tokens + plane.k2 * draft_steps + plane.b)
    return longest


def tokens_in(planes, seconds: float, draft_steps: float = 0) -> float:
    """The inverse of `time_of` where tokens could be shared: how many take that long, below 0 if
    not even an empty batch fits."""
    most = inf
    for plane in planes:
        most = min(most, (seconds - plane.k2 * draft_steps - plane.b) / plane.k1)
    return most


@dataclass(frozen=True, slots=True)
class Roofline:
    """tile: tokens are computed in multiples of it; a GPU takes as long for 129 as for 256 where
    that is 128."""

    planes: tuple[Plane, ...]
    k_ctx: float = 0.0
    tile: int = 1
    array: np.ndarray = field(init=False, repr=False, compare=False)  # the planes for kernels
    # tokens of a batch that takes least time per token, infinite where the larger is the better
    chunk: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.planes) > 0, "planes", self.planes, "at least one")
        least = max(p.b for p in self.planes)
        require(least >= 0, "b", least, "at least 0 (seconds per batch) in one of the planes")
        require(self.k_ctx >= 0, "k_ctx", self.k_ctx, "at least 0 (seconds per context token)")
        require(self.tile >= 1, "tile", self.tile, "at least 1 token")
        array = np.array([(p.k1, p.k2, p.b) for p in self.planes], PLANE)
        object.__setattr__(self, "array", array)
        object.__setattr__(self, "chunk", _cheapest(self.planes))

    def time(self, tokens: float, draft_steps: float = 0, context: float = 0) -> float:
        """Seconds of a batch."""
        return time_of(self.planes, self.tile, tokens, draft_steps) + self.k_ctx * context

    def least_time(self, tokens: float) -> float:
        """Seconds below which so many tokens cannot be computed, in one batch or in several: where
        a plane is steep (b < 0) chunks are faster than the whole."""
        if tokens <= self.chunk:
            return self.time(tokens)
        return tokens * time_of(self.planes, 1, self.chunk) / self.chunk

    def fits(self, seconds: float, draft_steps: int = 0, context: float = 0) -> int:
        """Most tokens of a batch that takes at most `seconds`: the inverse of `time`, 0 if none
        fits."""
        most = tokens_in(self.planes, seconds - self.k_ctx * context + EPS, draft_steps)
        return max(0, int(most) // self.tile * self.tile)


def _cheapest(planes: Sequence[Plane]) -> float:
    """Up to how many tokens a batch takes the less time per token the larger it is: as far as a
    plane with a cost per batch is the highest."""
    flat, steep = ([p for p in planes if (p.b < 0) == yes] for yes in (False, True))
    above = ([(f.b - p.b) / (p.k1 - f.k1) if p.k1 > f.k1 else inf for f in flat] for p in steep)
    return min(map(max, above), default=inf)


def slowness(roofline: Roofline) -> float:
    """By what a policy's seconds are multiplied on hardware whose shortest step is longer than
    `USUAL`: 1 on any other."""
    return max(1.0, roofline.time(1) / USUAL)


def scaled(roofline: Roofline, factor: float) -> Roofline:
    """The same hardware, `factor` times slower."""
    planes = (Plane(p.k1 * factor, p.k2 * factor, p.b * factor) for p in roofline.planes)
    return replace(roofline, planes=tuple(planes), k_ctx=roofline.k_ctx * factor)


_time_of, _tokens_in = kernel(time_of), kernel(tokens_in)


@kernel
def batch_time(engine, tokens, context, draft_steps=0):
    """`Roofline.time` for kernels; engine: has its planes, tile, k_ctx and chunk."""
    return _time_of(engine.planes, engine.tile, tokens, draft_steps) + engine.k_ctx * context


@kernel
def least_time(engine, tokens):
    """`Roofline.least_time` for kernels."""
    if tokens <= engine.chunk:
        return _time_of(engine.planes, engine.tile, tokens, 0.0)
    return tokens * _time_of(engine.planes, 1, engine.chunk, 0.0) / engine.chunk


@kernel
def batch_fits(engine, seconds, context, draft_steps=0, slack=EPS):
    """`Roofline.fits` for kernels."""
    room = seconds - engine.k_ctx * context + slack
    most = _tokens_in(engine.planes, room, draft_steps)
    return max(0.0, np.floor(most / engine.tile) * engine.tile)
