"""Named profiles: a model on hardware, its roofline and its KV cache.

`profiles.json` has those of the paper and those that were measured, `kernel_profiles.json` those
that `slos.studies.kernel_profiles` makes of tables of kernels."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.resources import files
from math import isfinite
from pathlib import Path
from typing import Any

from slos.core.roofline import Plane, Roofline
from slos.core.types import require
from slos.files import write_whole

OWN, KERNELS = "profiles.json", "kernel_profiles.json"
OPTIONAL = ("block_size", "margin", "max_seqs", "k_ctx", "tile")
SLOWEST = 2.0  # seconds that a step of one token may take; in milliseconds it would be more


def scaled(roofline: Roofline, factor: float) -> Roofline:
    """The same hardware, `factor` times slower."""
    planes = (Plane(p.k1 * factor, p.k2 * factor, p.b * factor) for p in roofline.planes)
    return replace(roofline, planes=tuple(planes), k_ctx=roofline.k_ctx * factor)


@dataclass(frozen=True, slots=True)
class Profile:
    """A model on hardware: its roofline, its KV cache in tokens, and where the figures come from.

    margin: how much slower than the roofline most steps are, where that was measured; plan with it
    on that hardware. max_seqs: requests that run at once, vLLM's default on that GPU.
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
    max_seqs: int = 256

    def __post_init__(self) -> None:
        require(self.margin >= 1, "margin", self.margin, "at least 1")
        require(self.max_seqs >= 1, "max_seqs", self.max_seqs, "at least 1")
        require(self.gpus >= 1, "gpus", self.gpus, "at least 1")
        require(self.block_size >= 1, "block_size", self.block_size, "at least 1 token")
        require(self.max_context >= 1, "max_context", self.max_context, "at least 1 token")
        least = f"at least a block of {self.block_size}"
        require(self.kv_tokens >= self.block_size, "kv_tokens", self.kv_tokens, least)
        cure = "say where the figures come from"
        require(bool(self.source), "source", self.source, "named", cure)

    @property
    def drafts(self) -> bool:
        """Whether there is a draft model."""
        return any(plane.k2 > 0 for plane in self.roofline.planes)

    @property
    def kv_blocks(self) -> int:
        return self.kv_tokens // self.block_size


def as_json(roofline: Roofline) -> dict[str, Any]:
    """As profiles have it in JSON."""
    planes = [(p.k1, p.k2, p.b) for p in roofline.planes]
    return {"planes": planes, "k_ctx": roofline.k_ctx, "tile": roofline.tile}


def of_json(raw: dict[str, Any]) -> Roofline:
    return Roofline(tuple(Plane(*p) for p in raw["planes"]), raw["k_ctx"], raw["tile"])


def _parse(name: str, raw: dict) -> Profile:
    kinds = {f.name: str(f.type) for f in fields(Profile) if f.name not in ("name", "roofline")}
    kinds |= {"planes": "list", "k_ctx": "float", "tile": "int"}
    lacking = [k for k in kinds if k not in raw and k not in OPTIONAL]
    require(not lacking, f"{name}: fields", list(raw), "complete", f"add {', '.join(lacking)}")
    for k, value in raw.items():
        require(k in kinds, f"{name}: field", k, f"one of {', '.join(kinds)}")
        fits = type(value).__name__ in (kinds[k], "int" if kinds[k] == "float" else "")
        require(fits, f"{name}: {k}", value, f"of type {kinds[k]}")
    for p in raw["planes"]:
        good = isinstance(p, list) and len(p) == 3 and all(_finite(x) for x in p)
        require(good, f"{name}: plane", p, "three finite numbers", "give k1, k2 and b in seconds")
    whole = {"k_ctx": 0.0, "tile": 1} | raw
    require(_finite(whole["k_ctx"]), f"{name}: k_ctx", whole["k_ctx"], "a finite number")
    roofline = of_json(whole)
    step, bound = roofline.time(1), f"at most {SLOWEST:g} s"
    require(step <= SLOWEST, f"{name}: the step of one token", step, bound, "planes in seconds?")
    rest = {k: v for k, v in raw.items() if k not in ("planes", "k_ctx", "tile")}
    return Profile(name, roofline=roofline, **rest)


def _finite(x: Any) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and isfinite(x)


@cache
def profiles() -> dict[str, Profile]:
    """The profiles that ship with the kit, by name."""
    raw: dict[str, dict] = {}
    for name in (OWN, KERNELS):
        raw |= json.loads((files("slos.hardware") / name).read_text())
    return {name: _parse(name, entry) for name, entry in raw.items()}


def _of_file(path: Path) -> Profile:
    """The one profile of a file: an object with its name as the key, or an entry without one."""
    shape = 'one profile, {"NAME": {"model": ..., "planes": [[k1, k2, b]], ...}}'
    cure = "python -m slos.hardware.fit writes one, docs/my_gpu.json is one"
    try:
        raw = json.loads(path.read_text("utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} must hold {shape}; it is no JSON: {error}") from None
    if isinstance(raw, dict) and "planes" in raw:
        raw = {path.stem: raw}
    entries = list(raw.values()) if isinstance(raw, dict) else []
    good = len(entries) == 1 and isinstance(entries[0], dict)
    require(good, f"{path}: content", str(raw)[:80], shape, cure)
    try:
        return _parse(*next(iter(raw.items())))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error


def profile(name: str) -> Profile:
    """The shipped profile `name`, or that of a JSON file of the same layout at the path `name`."""
    known = profiles()
    if name in known:
        return known[name]
    if Path(name).is_file():
        return _of_file(Path(name))
    names = ", ".join(sorted(known))
    raise ValueError(f"profile {name!r} is unknown; known: {names}, or the path of a JSON file")


def entry_of(profile: Profile) -> dict[str, Any]:
    """A profile as it stands in JSON under its name."""
    names = (f.name for f in fields(profile) if f.name not in ("name", "roofline"))
    return as_json(profile.roofline) | {name: getattr(profile, name) for name in names}


def save(profile: Profile, path: Path | str) -> None:
    """Write a profile as the JSON file that `profile` reads; all of it or nothing."""
    write_whole(Path(path), json.dumps({profile.name: entry_of(profile)}, indent=1))
