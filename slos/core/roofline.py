"""Batch time as a roofline, and its inverse (paper, section 3.1): one copy for Python and kernels.

T(batch) = max over planes (k1 * tokens + k2 * draft_steps + b) + k_ctx * context, in seconds:
`tokens` are those computed in the step, in whole tiles; `draft_steps` is the longest draft in the
batch; `context` is the KV tokens that its requests had before it (not in the paper: k_ctx = 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, inf

import numpy as np

from slos.core.kernels import jitable
from slos.core.types import require

EPS = 1e-9  # seconds that count as rounding when times are compared, or turned into tokens
USUAL = 0.04  # seconds of the shortest step on the hardware that a policy's constants are meant for


@dataclass(frozen=True, slots=True)
class Plane:
    """One affine piece: k1 seconds per token, k2 per draft step, b per batch (below 0 if the piece
    is steep)."""

    k1: float
    k2: float
    b: float

    def __post_init__(self) -> None:
        require(self.k1 > 0, "k1", self.k1, "positive (seconds per token)")
        require(self.k2 >= 0, "k2", self.k2, "at least 0 (seconds per draft step)")


PLANE = np.dtype([("k1", np.float64), ("k2", np.float64), ("b", np.float64)])
"""A `Plane` as a record for kernels."""


@jitable
def batch_time(hardware, tokens: float, draft_steps: float = 0, context: float = 0) -> float:
    """Seconds of a batch. hardware: a `Roofline`, or for kernels a record with its planes as a
    `PLANE` array, its tile, k_ctx and chunk."""
    if hardware.tile > 1:
        tokens = ceil(tokens / hardware.tile) * hardware.tile
    return _highest(hardware.planes, tokens, draft_steps) + hardware.k_ctx * context


@jitable
def _highest(planes, tokens: float, draft_steps: float) -> float:
    longest = 0.0
    for plane in planes:
        longest = max(longest, plane.k1 * tokens + plane.k2 * draft_steps + plane.b)
    return longest


@jitable
def least_time(hardware, tokens: float) -> float:
    """The least seconds in which so many tokens can be computed, in one batch or in several: where
    a plane is steep (b < 0) chunks are faster than the whole."""
    if tokens <= hardware.chunk:
        return batch_time(hardware, tokens)
    return tokens * _highest(hardware.planes, hardware.chunk, 0) / hardware.chunk


@jitable
def tokens_in(planes, seconds: float, draft_steps: float = 0) -> float:
    """How many tokens take that long if fractions of tokens were possible and no context is read;
    below 0 if not even an empty batch fits."""
    most = inf
    for plane in planes:
        most = min(most, (seconds - plane.k2 * draft_steps - plane.b) / plane.k1)
    return most


@jitable
def batch_fits(
    hardware, seconds: float, draft_steps: float = 0, context: float = 0, slack: float = EPS
) -> int:
    """The most tokens of a batch that takes at most `seconds`: the inverse of `batch_time`; 0 if
    none fits."""
    most = tokens_in(hardware.planes, seconds - hardware.k_ctx * context + slack, draft_steps)
    return max(0, int(most) // hardware.tile * hardware.tile)


@dataclass(frozen=True, slots=True)
class Roofline:
    """tile: tokens are computed in multiples of it; if it is 128, a GPU takes as long for 129
    tokens as for 256."""

    planes: tuple[Plane, ...]
    k_ctx: float = 0.0
    tile: int = 1
    array: np.ndarray = field(init=False, repr=False, compare=False)  # the planes for kernels
    # tokens of the batch with the least time per token, infinite if larger is always better
    chunk: float = field(init=False, repr=False, compare=False)
    # factor on a policy's constants in seconds, above 1 if the shortest step is longer than `USUAL`
    slowness: float = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.planes) > 0, "planes", self.planes, "at least one")
        least = max(p.b for p in self.planes)
        require(least >= 0, "b", least, "at least 0 (seconds per batch) in one of the planes")
        require(self.k_ctx >= 0, "k_ctx", self.k_ctx, "at least 0 (seconds per context token)")
        require(self.tile >= 1, "tile", self.tile, "at least 1 token")
        object.__setattr__(self, "array", np.array([(p.k1, p.k2, p.b) for p in self.planes], PLANE))
        object.__setattr__(self, "chunk", _cheapest(self.planes))
        object.__setattr__(self, "slowness", max(1.0, self.time(1) / USUAL))

    time, least_time, fits = batch_time, least_time, batch_fits


def _cheapest(planes: Sequence[Plane]) -> float:
    """The number of tokens up to which time per token falls as a batch grows: as far as a plane
    with a cost per batch (b >= 0) is the highest."""
    flat, steep = ([p for p in planes if (p.b < 0) == yes] for yes in (False, True))
    above = ([(f.b - p.b) / (p.k1 - f.k1) if p.k1 > f.k1 else inf for f in flat] for p in steep)
    return min(map(max, above), default=inf)
