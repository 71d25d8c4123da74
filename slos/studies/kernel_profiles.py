"""Profiles of today's models on today's GPUs, from tables of measured kernels.

`python -m slos.studies.kernel_profiles` makes `slos/hardware/kernel_profiles.json` again, from the
files of `gpu_profiles/` in the data folder. Steps are put together by `slos.hardware.kernel_tables`
and a roofline is fitted to them as to measured steps.

`checks` tells how far they are from steps that were measured whole, and from sums of layers. Whole
steps: vLLM 0.32 on one H200, by this kit (`results/reference/gpu`), and the engine of Splitwise, of
2023, on Llama-2-70B, whose layers are those of Llama-3.1-70B. Sums of layers: LLMServingSim's of
Llama-3.1-8B on an H100, and Vidur's of Llama-3-8B on an A100 without attention, both launched one
by one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import pandas as pd

from slos.core.roofline import Plane, Roofline
from slos.files import ROOT, Frame, write_whole
from slos.hardware.fit import fitted
from slos.hardware.kernel_tables import FILE, GPUS, KINDS, Composition, Kernels
from slos.hardware.profiles import KERNELS, Profile, entry_of, profiles
from slos.hardware.shapes import SHAPES, kv_bytes, shape_of
from slos.studies.published_steps import COLUMNS, engine_steps, measured
from workloads.files import locate

SHARE = 0.9  # of the GPU's memory that vLLM takes (gpu_memory_utilization)
ACTIVATIONS = 1 << 30  # bytes: vLLM 0.11 kept 0.97 GiB for CodeLlama-34B at 4096 tokens a step
LONGEST = 32768  # tokens of a request: the steps that are fitted have no longer ones
ROOM = 400_000  # largest context of a step, in tokens
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
PREFIXES = (0, 2048, 8192)
DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = (128, 512, 2048, 8192)
BESIDE = ((8, 2048), (64, 512), (64, 2048), (256, 512))  # decodes, their lengths, with chunks
DRAFTS = (1, 2, 4, 8)
ORIGIN = "AIConfigurator's tables of measured kernels (ai-dynamo/aiconfigurator 095f58a, vLLM 0.14)"

OWN = ROOT / "results" / "reference" / "gpu" / "steps-llama-3.1-8b-h200.csv"
LAYERS = "gpu_profiles/llmservingsim_h100_Llama-3.1-8B_tp1_layers.csv"
LINEAR = "gpu_profiles/vidur_a100_Meta-Llama-3-8B_mlp.csv"
ONCE = ("embedding", "final_layernorm", "lm_head")  # not in every layer
NUMBER = 32  # layers of Llama-3.1-8B
LONG = 1000  # tokens of a step that keep a GPU busy while the host prepares the next one


@dataclass(frozen=True, slots=True)
class Wanted:
    """A profile to be made. draft: the shape of a draft model on one of the GPUs, or none."""

    name: str
    model: str
    gpu: str
    gpus: int = 1
    draft: str = ""


WANTED = (
    *(Wanted(f"llama-3.1-8b-{gpu}", "llama-3.1-8b", gpu) for gpu in ("a100", "h100")),
    Wanted("llama-3.1-8b-h200-kernels", "llama-3.1-8b", "h200"),  # next to the measured one
    *(Wanted(f"llama-3.1-70b-{gpu}x4", "llama-3.1-70b", gpu, 4) for gpu in GPUS),
    *(Wanted(f"qwen3-8b-{gpu}", "qwen3-8b", gpu) for gpu in GPUS),
    Wanted("llama-3.1-8b-draft-h100", "llama-3.1-8b", "h100", draft="llama-3.2-1b"),
    Wanted("llama-2-7b-h100-kernels", "llama-2-7b", "h100"),  # next to that of Vidur's layers
    Wanted("codellama-34b-h100", "codellama-34b", "h100"),
)


def kernels(gpu: str) -> Kernels | None:
    """The tables of a GPU, if they are here, in SLOS_DATA or the cache."""
    paths = [locate([f"gpu_profiles/{FILE.format(gpu, kind)}"]) for kind in KINDS]
    found = [path for path in paths if path]
    return Kernels(found[0].parent, gpu) if len(found) == len(KINDS) else None


def compositions(drafts: bool = False) -> Iterator[Composition]:
    """The steps that are fitted: decodes, with drafts too, and chunks alone and with decodes."""
    for decodes, length in product(DECODES, LENGTHS):
        if decodes * length <= ROOM:
            yield Composition(decodes=decodes, length=length)
            if drafts and decodes <= 128 and length <= 2048:
                yield from (Composition(0, 0, decodes, length, n) for n in DRAFTS)
    for chunk, prefix in product(CHUNKS, PREFIXES):
        yield Composition(chunk, prefix)
    for chunk, (decodes, length) in product(CHUNKS, BESIDE):
        yield Composition(chunk, 0, decodes, length)


def kv_tokens(wanted: Wanted) -> int:
    """Tokens of KV cache that are left of the memory after weights and activations."""
    models = [name for name in (wanted.model, wanted.draft) if name]
    weights = sum(2 * shape_of(name).weights for name in models)
    left = wanted.gpus * (SHARE * GPUS[wanted.gpu].memory - ACTIVATIONS) - weights
    return int(left / sum(map(kv_bytes, models)))


def steps(tables: Kernels, wanted: Wanted) -> list[tuple[float, float, float, float]]:
    """Tokens, draft steps, context and seconds of each composition."""
    rows = []
    for c in compositions(bool(wanted.draft)):
        seconds = tables.step(wanted.model, wanted.gpus, c)
        if c.drafts:
            own = replace(c, drafts=0)
            seconds += c.drafts * tables.step(wanted.draft, 1, own)
        rows.append((c.tokens, c.drafts, c.context, seconds))
    return rows


def made(tables: Kernels, wanted: Wanted) -> Profile:
    """A profile; its source says how well the roofline fits the steps."""
    rows, gpu = steps(tables, wanted), GPUS[wanted.gpu]
    found = fitted(rows)
    fit = found.fit.roofline
    planes = (Plane(*(float(f"{x:.4g}") for x in (p.k1, p.k2, p.b))) for p in fit.planes)
    roofline = Roofline(tuple(planes), float(f"{fit.k_ctx:.4g}"), fit.tile)
    label = wanted.model + (f" + {wanted.draft} draft" if wanted.draft else "")
    source = (
        f"{len(rows)} steps put together from {ORIGIN}, without the host's time, by "
        f"slos.studies.kernel_profiles; {found.told}; KV: {SHARE} x {gpu.memory / 1e9:.0f} GB x "
        f"{wanted.gpus} - weights - 1 GiB of activations"
    )
    longest = min(LONGEST, SHAPES[wanted.model]["max_position_embeddings"])
    profile = Profile(
        wanted.name, label, gpu.name, wanted.gpus, roofline, kv_tokens(wanted), longest,
        source, max_seqs=gpu.max_seqs,
    )  # fmt: skip
    return replace(profile, source=source + told(profile))


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
    own: Frame = pd.read_csv(OWN)
    long = f"with prompts, {LONG} tokens or more"
    prompts = np.where(own["tokens"] >= LONG, long, "with prompts, fewer")
    kinds = np.where(own["decodes"] == own["requests"], "decodes", prompts)
    yield "llama-3.1-8b-h200-kernels", "this kit, vLLM 0.32", own.assign(kind=kinds)
    if measured():
        for gpu in ("a100", "h100"):
            table = engine_steps(gpu, 4)
            kinds = np.where(table["context"] > 0, "decodes", "prompts")
            yield f"llama-3.1-70b-{gpu}x4", "Splitwise, 2023", table.assign(kind=kinds)
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


def main() -> None:
    entries = {}
    for wanted in WANTED:
        tables = kernels(wanted.gpu)
        if tables is None:
            raise SystemExit(f"gpu_profiles/ of the data folder lacks tables of {wanted.gpu}")
        profile = made(tables, wanted)
        entries[profile.name] = entry_of(profile)
        print(f"{profile.name}: {profile.roofline}\n  {profile.source}", flush=True)
    write_whole(ROOT / "slos" / "hardware" / KERNELS, json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
