"""Steps of published GPU measurements, as rows of tokens, draft_steps, context and seconds.

`engine` steps are Splitwise's: prompts and decodes of Llama-2-70B, from whole runs. `kernels` steps
are Llama-2-7B (the shape of ToolLLaMA-2-7B) put together from operators that were each measured
alone: Vidur's linear layers, norms and all-reduces, by tokens, and AIConfigurator's attention of
vLLM. The output layer and the host are not among them.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from slos.files import Frame
from slos.hardware.profiles import profile
from workloads.files import locate

GPUS = ("a100", "h100")
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
    each = table[parts].sum(axis=1) * LAYERS + table["time_stats.emb.median"]
    sums = each.groupby(table["num_tokens"]).median()
    tokens, seconds = sums.index.to_numpy(float), 1e-3 * sums.to_numpy()
    if tp > 1:
        wire: Frame = pd.read_csv(_file(WIRE.format(gpu)))
        wire = wire[(wire["num_workers"] == tp) & (wire["devices_per_node"] == tp)]
        times = wire.groupby("size")["time_stats.all_reduce.median"].median()
        reduced = np.interp(tokens * HIDDEN * 2, times.index, times.to_numpy())
        seconds = seconds + 2e-3 * LAYERS * reduced
    return tokens, seconds


@cache
def _attention(gpu: str, kind: str, tp: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Seconds of all layers' attention, [batch, length], with both axes. Decodes of several heads
    are measured with up to 8 KV heads only; a batch four times as large of a quarter of the heads
    reads the same bytes in as many thread blocks."""
    table: Frame = pd.read_parquet(_file(ATTENTION.format(gpu, kind)))
    heads = HEADS // tp
    share = 1 if kind == "context" else heads // 8
    table = table.query("attn_dtype == 'bfloat16' and kv_cache_dtype == 'bfloat16'")
    each = heads // share
    table = table.query(f"num_heads == {each} and num_key_value_heads == {each}")
    length = "isl" if kind == "context" else "step"
    grid = table.pivot_table("latency", "batch_size", length, aggfunc="median")
    grid = grid.loc[:, grid.columns <= MOST].dropna()
    batches, lengths = grid.index.to_numpy(float) / share, grid.columns.to_numpy(float)
    return batches, lengths, 1e-3 * LAYERS * grid.to_numpy()


def _decode_seconds(gpu: str, tp: int, batch: int, context: int) -> float:
    batches, lengths, seconds = _attention(gpu, "generation", tp)
    by_batch = [np.interp(context, lengths, row) for row in seconds]
    return float(np.interp(batch, batches, by_batch)) if batch else 0.0


def _prefill_seconds(gpu: str, tp: int, tokens: int) -> float:
    _, lengths, seconds = _attention(gpu, "context", tp)
    return float(np.interp(tokens, lengths, seconds[0])) if tokens else 0.0


def kernel_steps(gpu: str, tp: int) -> Frame:
    """One row per step of Llama-2-7B: a prompt, decodes, or both, for every measured number of
    tokens. context: KV tokens that the decodes read."""
    rows = []
    for n, linear in zip(*_linear(gpu, tp), strict=True):
        for decodes in {d for d in (*DECODES, int(n)) if d <= min(n, DECODES[-1])}:
            seconds = linear + _prefill_seconds(gpu, tp, n - decodes)
            for context in CONTEXTS if decodes else (0,):
                whole = seconds + _decode_seconds(gpu, tp, decodes, context)
                rows.append((n, 0, decodes * context, whole))
    return pd.DataFrame(rows, columns=COLUMNS)


def engine_steps(gpu: str, tp: int) -> Frame:
    """Steps of Llama-2-70B: all prompts of a batch at once, and its mean decode step."""
    table: Frame = pd.read_csv(_file(ENGINE))
    table = table.query(f"model == 'llama2-70b' and hardware == '{gpu}-80gb'")
    table = table.query(f"tensor_parallel == {tp} and prompt_size <= {MOST}")
    batch, sent = table["batch_size"], table["batch_size"] * table["prompt_size"]
    prompts = pd.DataFrame({"tokens": sent, "context": 0, "seconds": table["prompt_time"]})
    read = batch * (table["prompt_size"] + table["token_size"] / 2)
    decodes = pd.DataFrame({"tokens": batch, "context": read, "seconds": table["token_time"]})
    both = pd.concat([prompts[prompts["tokens"] <= 2 * MOST], decodes]).assign(draft_steps=0)
    return both.assign(seconds=1e-3 * both["seconds"])[COLUMNS].reset_index(drop=True)


def stand_in_steps(gpu: str, tp: int) -> Frame:
    """Where the files are not: the shipped profile with noise of 5 %, no measurement."""
    r, rng = profile(f"llama-2-7b-{gpu}").roofline, np.random.default_rng(tp)
    sizes = (1, 2, 4, *range(8, 1024, 8), *range(1024, MOST, 64))
    shapes = [(n, 0, decodes * CONTEXTS[0]) for n in sizes for decodes in (0, min(n, 64))]
    rows = [(*s, r.time(*s) / tp * rng.lognormal(0, 0.05)) for s in shapes]
    return pd.DataFrame(rows, columns=COLUMNS)
