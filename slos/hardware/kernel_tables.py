"""Steps of a dense decoder, put together from kernels that were each measured alone.

The tables are AIConfigurator's (github.com/ai-dynamo/aiconfigurator, Apache-2.0): milliseconds of
matrix products, attention of prompts and of decodes, and all-reduces inside vLLM, in bfloat16. What
lies between their points is interpolated. Norms, rotary embedding and activation are not among
them: they take as long as their bytes do at the memory bandwidth of the data sheet. The host is not
among them either.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from slos.core.types import require
from slos.files import Frame
from slos.hardware.shapes import shape_of

FILE = "aiconfigurator_{}_sxm_vllm0.14.0_{}_perf.parquet"
KINDS = ("gemm", "context_attention", "generation_attention", "custom_allreduce")
LARGEST = 16384  # features: a product with more takes as long as parts of it one after the other
OUTLIER = 0.3
HEAD_DIM = 128  # of the attention tables
BYTES = 2  # of a number in bfloat16


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU of the tables. memory: bytes that CUDA reports; bandwidth: bytes per second (NVIDIA's
    data sheets); max_seqs: requests at once by default of `vllm serve`, which takes 1024 where
    there are 70 GiB or more and the name is not A100 (vllm/engine/arg_utils.py)."""

    name: str
    memory: float
    bandwidth: float
    max_seqs: int


GPUS = {
    "a100": Gpu("A100-80G", 85.1e9, 2.039e12, 256),
    "h100": Gpu("H100-80G", 85.0e9, 3.35e12, 1024),
    "h200": Gpu("H200-141G", 150.1e9, 4.8e12, 1024),
}


@dataclass(frozen=True, slots=True)
class Composition:
    """What a step holds: `chunk` tokens of one prompt behind `prefix` computed ones, and `decodes`
    requests of `length` computed tokens each, with `drafts` tokens to verify beside their own."""

    chunk: int = 0
    prefix: int = 0
    decodes: int = 0
    length: int = 0
    drafts: int = 0

    @property
    def tokens(self) -> int:
        return self.chunk + self.decodes * (1 + self.drafts)

    @property
    def context(self) -> int:
        return self.prefix + self.decodes * self.length


class Kernels:
    """The tables of one GPU, `FILE` in a folder; seconds of kernels.

    Raises FileNotFoundError naming the file that lacks, ValueError for an unknown GPU.
    """

    def __init__(self, folder: Path, gpu: str) -> None:
        require(gpu in GPUS, "gpu", gpu, f"one of {', '.join(GPUS)}")
        self.gpu = GPUS[gpu]
        raw: list[Frame] = [pd.read_parquet(folder / FILE.format(gpu, kind)) for kind in KINDS]
        gemm, self.prompts, self.decodes, wire = raw
        gemm = gemm[(gemm["gemm_dtype"] == "bfloat16") & (gemm[["n", "k"]].max(axis=1) <= LARGEST)]
        self.products = _smoothed(gemm.pivot_table("latency", "m", ["n", "k"]))
        self.wire: Frame = wire[wire["backend"] == "vllm_graph"].sort_values("message_size")
        self.grid = cache(self._grid)
        self.column = cache(self._column)

    def _column(self, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows m and seconds of products of [m, k] and [k, n], bilinear in n and k."""
        beyond = max(1.0, n / LARGEST) * max(1.0, k / LARGEST)
        grids = (level.to_numpy() for level in self.products.columns.levels)
        at = zip(grids, (n, k), strict=True)
        wide, deep = (_between(grid, min(x, LARGEST)) for grid, x in at)
        parts = [self.products[a, b] * (x * y * beyond) for a, x in wide for b, y in deep]
        table: Frame = pd.concat(parts, axis=1).sum(axis=1, skipna=False).dropna()
        return table.index.to_numpy(float), 1e-3 * table.to_numpy()

    def product(self, m: float, n: int, k: int) -> float:
        """Seconds of a linear layer from k to n features for m tokens."""
        return _at(m, *self.column(n, k))

    def _grid(self, kind: str, heads: int, kv_heads: int) -> tuple[np.ndarray, ...]:
        """Batches, lengths and seconds [batch, length] of attention with so many heads.

        Decodes are measured with up to 8 KV heads; a batch several times as large of a part of the
        heads reads the same bytes in as many thread blocks.
        """
        table: Frame = self.prompts if kind == "prompts" else self.decodes
        share = 1 if kind == "prompts" else max(1, kv_heads // 8)
        plain = (table["attn_dtype"] == "bfloat16") & (table["kv_cache_dtype"] == "bfloat16")
        shape = table["num_heads"] == heads // share
        shape &= table["num_key_value_heads"] == kv_heads // share
        table = table[plain & shape]
        require(len(table) > 0, "heads and KV heads", (heads, kv_heads), "in the tables")
        length = table["isl"] if kind == "prompts" else table["isl"] + table["step"] - 1
        grid: Frame = table.assign(length=length).pivot_table("latency", "batch_size", "length")
        batches, lengths = grid.index.to_numpy(float) / share, grid.columns.to_numpy(float)
        return batches, lengths, 1e-3 * grid.to_numpy()

    def prompt_attention(self, heads: int, kv_heads: int, chunk: int, prefix: int) -> float:
        """Of one layer: this chunk's part of the triangle of the whole prompt so far."""
        _, lengths, seconds = self.grid("prompts", heads, kv_heads)
        whole = prefix + chunk
        return _at(whole, lengths, seconds[0]) * (1 - (prefix / whole) ** 2)

    def decode_attention(self, heads: int, kv_heads: int, batch: float, length: int) -> float:
        """Of one layer."""
        batches, lengths, seconds = self.grid("decodes", heads, kv_heads)
        known = ~np.isnan(seconds)  # large batches of long requests do not fit a GPU
        rows = [i for i in range(len(batches)) if known[i].sum() > 1]
        times = [_at(length, lengths[known[i]], seconds[i][known[i]]) for i in rows]
        return _at(batch, batches[rows], np.array(times))

    def all_reduce(self, gpus: int, size: float) -> float:
        """Of so many numbers: `message_size` counts elements, not bytes."""
        table = self.wire[self.wire["num_gpus"] == gpus]
        return _at(size, table["message_size"].to_numpy(float), 1e-3 * table["latency"].to_numpy())

    def step(self, model: str, gpus: int, of: Composition) -> float:
        """Seconds of a step of a shape on `gpus` GPUs, tensor parallel."""
        s = shape_of(model)
        q, kv, inter = s.heads // gpus, max(1, s.kv_heads // gpus), s.intermediate // gpus
        m, h, wide = of.tokens, s.hidden, s.head_dim
        layer = self.product(m, (q + 2 * kv) * wide, h) + self.product(m, h, q * wide)
        layer += self.product(m, 2 * inter, h) + self.product(m, h, inter)
        # two norms with their residuals, rotary embedding of queries and keys, gated activation
        layer += m * BYTES * (8 * h + 2 * (q + kv) * wide + 3 * inter) / self.gpu.bandwidth
        q, kv = q * wide // HEAD_DIM, max(1, kv * wide // HEAD_DIM)
        if of.chunk:
            layer += self.prompt_attention(q, kv, of.chunk, of.prefix)
        if of.decodes:
            layer += self.decode_attention(q, kv, of.decodes, of.length)
        if gpus > 1:
            layer += 2 * self.all_reduce(gpus, m * h)
        answers = of.decodes * (1 + of.drafts) + (of.chunk > 0)
        return s.layers * layer + self.product(answers, s.vocabulary // gpus, h)


def _smoothed(products: Frame) -> Frame:
    """Without single measurements that something else slowed: a throughput that is `OUTLIER` off
    the median of its own and those of the next m on both sides is replaced by that."""
    rates = (1 / products).mul(products.index, axis=0)
    usual = rates.rolling(3, center=True).median().fillna(rates)
    kept = rates.where((rates / usual - 1).abs() < OUTLIER, usual)
    return (1 / kept).mul(products.index, axis=0)


def _between(grid: np.ndarray, x: float) -> list[tuple[int, float]]:
    """The grid points around x, with their weights."""
    at = int(np.searchsorted(grid, x))
    if at == len(grid) or grid[at] == x or at == 0:
        return [(int(grid[min(at, len(grid) - 1)]), 1.0)]
    share = (x - grid[at - 1]) / (grid[at] - grid[at - 1])
    return [(int(grid[at - 1]), 1 - share), (int(grid[at]), share)]


def _at(x: float, known: np.ndarray, values: np.ndarray) -> float:
    """Piecewise linear; beyond the last point in proportion to it."""
    return float(np.interp(x, known, values) * max(1.0, x / known[-1]))
