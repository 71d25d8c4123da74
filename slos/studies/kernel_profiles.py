"""Profiles of today's models on today's GPUs, from tables of measured kernels.

`python -m slos.studies.kernel_profiles` makes `slos/hardware/kernel_profiles.json` again, from the
files of `gpu_profiles/` in the data folder. Steps are put together by `slos.hardware.kernel_tables`
and a roofline is fitted to them as to measured steps; how far both are from whole steps that were
measured is told by `slos.studies.kernel_checks`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from slos.core.roofline import Plane, Roofline
from slos.files import ROOT, write_whole
from slos.hardware.fit import fitted
from slos.hardware.kernel_tables import FILE, GPUS, KINDS, Composition, Kernels
from slos.hardware.profiles import KERNELS, Profile, entry_of
from slos.hardware.shapes import SHAPES, shape_of
from slos.studies.kernel_checks import told
from workloads.files import locate

SHARE = 0.9  # of the GPU's memory that vLLM takes (gpu_memory_utilization)
ACTIVATIONS = 1 << 30  # bytes: vLLM 0.11 kept 0.97 GiB for CodeLlama-34B at 4096 tokens a step
LONGEST = 32768  # tokens of a request: the steps that are fitted have no longer ones
ROOM = 400_000  # tokens of context of a step at the most
CHUNKS = (16, 64, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
PREFIXES = (0, 2048, 8192)
DECODES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
LENGTHS = (128, 512, 2048, 8192)
BESIDE = ((8, 2048), (64, 512), (64, 2048), (256, 512))  # decodes and lengths beside chunks
DRAFTS = (1, 2, 4, 8)
ORIGIN = "AIConfigurator's tables of measured kernels (ai-dynamo/aiconfigurator 095f58a, vLLM 0.14)"


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
    Wanted("llama-3.1-8b-h200-kernels", "llama-3.1-8b", "h200"),  # beside the measured one
    *(Wanted(f"llama-3.1-70b-{gpu}x4", "llama-3.1-70b", gpu, 4) for gpu in GPUS),
    *(Wanted(f"qwen3-8b-{gpu}", "qwen3-8b", gpu) for gpu in GPUS),
    Wanted("llama-3.1-8b-draft-h100", "llama-3.1-8b", "h100", draft="llama-3.2-1b"),
    Wanted("llama-2-7b-h100-kernels", "llama-2-7b", "h100"),  # beside that of Vidur's layers
    Wanted("codellama-34b-h100", "codellama-34b", "h100"),
)


def kernels(gpu: str) -> Kernels | None:
    """The tables of a GPU, if they are here, in SLOS_DATA or the cache."""
    paths = [locate([f"gpu_profiles/{FILE.format(gpu, kind)}"]) for kind in KINDS]
    found = [path for path in paths if path]
    return Kernels(found[0].parent, gpu) if len(found) == len(KINDS) else None


def compositions(drafts: bool = False) -> Iterator[Composition]:
    """The steps that are fitted: decodes alone, chunks of prompts alone and beside decodes, and
    decodes with drafts."""
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
    """Tokens of KV cache that are left of the memory beside weights and activations."""
    shapes = [shape_of(name) for name in (wanted.model, wanted.draft) if name]
    weights = sum(2 * s.weights for s in shapes)
    left = wanted.gpus * (SHARE * GPUS[wanted.gpu].memory - ACTIVATIONS) - weights
    return int(left / sum(s.kv_bytes for s in shapes))


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
