"""Batch time as a roofline, and its inverse (paper, section 3.1); both again for kernels.

T(batch) = max over planes (k1 * tokens + k2 * draft_steps + b) + k_ctx * context, in seconds:
`tokens` computed in the step, in whole tiles, `draft_steps` the longest draft in the batch,
`context` the KV tokens that its requests had before it (weight 0 in the paper).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from slos.core.kernels import kernel
from slos.core.types import require

EPS = 1e-9  # seconds forgiven to rounding when times are compared, or turned into tokens


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


@dataclass(frozen=True, slots=True)
class Roofline:
    """tile: tokens are computed in multiples of it; a GPU takes as long for 129 as for 256 where
    that is 128."""

    planes: tuple[Plane, ...]
    k_ctx: float = 0.0
    tile: int = 1
    # float64 [planes, 4] for kernels: k1, k2, b, tile
    array: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        require(len(self.planes) > 0, "planes", self.planes, "at least one")
        least = max(p.b for p in self.planes)
        require(least >= 0, "b", least, "at least 0 (seconds per batch) in one of the planes")
        require(self.k_ctx >= 0, "k_ctx", self.k_ctx, "at least 0 (seconds per context token)")
        require(self.tile >= 1, "tile", self.tile, "at least 1 token")
        object.__setattr__(
            self, "array", np.array([(p.k1, p.k2, p.b, self.tile) for p in self.planes], np.float64)
        )

    def time(self, tokens: float, draft_steps: float = 0, context: float = 0) -> float:
        """Seconds of a batch."""
        longest = 0.0
        if self.tile > 1:
            tokens = -(-tokens // self.tile) * self.tile
        for p in self.planes:
            longest = max(longest, p.k1 * tokens + p.k2 * draft_steps + p.b)
        return longest + self.k_ctx * context

    def fits(self, seconds: float, draft_steps: int = 0, context: int = 0) -> int:
        """Most tokens of a batch that takes at most `seconds`: the inverse of `time`, 0 if none
        fits."""
        room = seconds - self.k_ctx * context + EPS
        most = min(int((room - p.k2 * draft_steps - p.b) / p.k1) for p in self.planes)
        return max(0, most // self.tile * self.tile)


def scaled(roofline: Roofline, factor: float) -> Roofline:
    """The same hardware, `factor` times slower."""
    planes = (Plane(p.k1 * factor, p.k2 * factor, p.b * factor) for p in roofline.planes)
    return replace(roofline, planes=tuple(planes), k_ctx=roofline.k_ctx * factor)


@kernel
def batch_time(engine, tokens, context):
    planes, longest, tile = engine.planes, 0.0, engine.planes[0, 3]
    if tile > 1:
        tokens = np.ceil(tokens / tile) * tile
    for k in range(len(planes)):
        longest = max(longest, planes[k, 0] * tokens + planes[k, 2])
    return longest + engine.k_ctx * context


@kernel
def batch_fits(engine, seconds, context):
    room = seconds - engine.k_ctx * context + EPS
    planes, tokens, tile = engine.planes, np.inf, engine.planes[0, 3]
    for k in range(len(planes)):
        tokens = min(tokens, (room - planes[k, 2]) / planes[k, 0])
    return max(0.0, np.floor(tokens) if tile == 1 else np.floor(tokens / tile) * tile)
