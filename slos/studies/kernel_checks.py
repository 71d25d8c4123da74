"""Profiles made of kernels against steps that were measured whole, and against sums of layers.

Whole steps: vLLM 0.32 on one H200, by this kit (`results/reference/gpu`), and the engine of
Splitwise, of 2023, on Llama-2-70B, whose layers are those of Llama-3.1-70B. Sums of layers:
LLMServingSim's of Llama-3.1-8B on an H100, and Vidur's of Llama-3-8B on an A100 without attention,
both launched one by one.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from slos.files import ROOT, Frame
from slos.hardware.profiles import Profile, profiles
from slos.studies.published_steps import COLUMNS, engine_steps, measured
from workloads.files import locate

OWN = ROOT / "results" / "reference" / "gpu" / "steps-llama-3.1-8b-h200.csv"
LAYERS = "gpu_profiles/llmservingsim_h100_Llama-3.1-8B_tp1_layers.csv"
LINEAR = "gpu_profiles/vidur_a100_Meta-Llama-3-8B_mlp.csv"
ONCE = ("embedding", "final_layernorm", "lm_head")  # not in every layer
NUMBER = 32  # layers of Llama-3.1-8B
LONG = 1000  # tokens of a step that keep a GPU busy while the host prepares the next one


def _own() -> Frame:
    table: Frame = pd.read_csv(OWN)
    kinds = np.where(
        table["tokens"] >= LONG, f"with prompts, {LONG} tokens or more", "with prompts, fewer"
    )
    return table.assign(kind=np.where(table["decodes"] == table["requests"], "decodes", kinds))


def _splitwise(gpu: str) -> Frame:
    table = engine_steps(gpu, 4)
    return table.assign(kind=np.where(table["context"] > 0, "decodes", "prompts"))


def _llmservingsim(path: str) -> Frame:
    table: Frame = pd.read_csv(path)
    each: Frame = table.pivot_table("latency(ns)", "input", "layer_name")
    once = each[[c for c in ONCE if c != "lm_head"]].sum(axis=1)  # the last token's alone is used
    seconds = 1e-9 * (NUMBER * each.drop(columns=[*ONCE]).sum(axis=1) + once)
    return _prompts(seconds, "prompts, sums of layers")


def _vidur(path: str) -> Frame:
    table: Frame = pd.read_csv(path)
    table = table[table["num_tensor_parallel_workers"] == 1]
    parts = [c for c in table if c.endswith(".median") and ".emb." not in c]
    seconds = 1e-3 * NUMBER * table[parts].sum(axis=1).groupby(table["num_tokens"]).median()
    return _prompts(seconds[seconds.index <= 512], "prompts, sums of layers without attention")


def _prompts(seconds: Frame, kind: str) -> Frame:
    columns = {"tokens": seconds.index, "draft_steps": 0, "context": 0, "seconds": seconds.values}
    return pd.DataFrame(columns)[COLUMNS].assign(kind=kind)


def measurements() -> Iterator[tuple[str, str, Frame]]:
    """Profile, whose measurement, and its steps with their `kind`; those whose files are here."""
    yield "llama-3.1-8b-h200-kernels", "this kit, vLLM 0.32", _own()
    if measured():
        for gpu in ("a100", "h100"):
            yield f"llama-3.1-70b-{gpu}x4", "Splitwise, 2023", _splitwise(gpu)
    if path := locate([LAYERS]):
        yield "llama-3.1-8b-h100", "LLMServingSim", _llmservingsim(str(path))
    if path := locate([LINEAR]):
        yield "llama-3.1-8b-a100", "Vidur", _vidur(str(path))


def checks(of: dict[str, Profile] | None = None) -> Frame:
    """A row per profile, measurement and kind of step: its number, and the roofline's time over
    the measured one, median and quartiles."""
    known, rows = of or profiles(), []
    for name, whose, steps in measurements():
        if name in known:
            r = known[name].roofline
            times = [r.time(s.tokens, s.draft_steps, s.context) for s in steps.itertuples()]
            ratios = (np.array(times) / steps["seconds"]).groupby(steps["kind"], sort=False)
            for kind, each in ratios:
                low, median, high = np.quantile(each, (0.25, 0.5, 0.75))
                rows.append((name, whose, kind, len(each), median, low, high))
    columns = ["profile", "measured by", "steps", "number", "ratio", "low", "high"]
    return pd.DataFrame(rows, columns=columns)


def told(profile: Profile) -> str:
    """The same in words for the profile's file; nothing where nothing was measured."""
    table = checks({profile.name: profile})
    said = [f"{r.steps} {r.ratio:.2f} times ({r[2]})" for r in table.itertuples()]
    return f"; it says of measured {', '.join(said)}" if said else ""
