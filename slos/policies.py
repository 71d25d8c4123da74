"""Every policy by name. A new one is a class in a file of its own and a line in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, cast

from slos.baselines import VLLM, VLLMV1, Sarathi
from slos.roofline import Roofline
from slos.scheduler import SLOsServe
from slos.types import LengthPredictor, Policy

POLICIES: dict[str, Callable[..., Policy]] = {
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": Sarathi,
    "slos-serve": SLOsServe,
}


def make_policy(name: str, roofline: Roofline, lengths: LengthPredictor, **settings: Any) -> Policy:
    """A fresh policy; one with a field `roofline` or `lengths` is given that belief about hardware or lengths."""
    if name not in POLICIES:
        raise ValueError(
            f"policy {name!r} is unknown; known: {', '.join(POLICIES)}; add yours to slos.policies.POLICIES"
        )
    kind = POLICIES[name]
    known = {f.name for f in fields(cast(Any, kind)) if f.init} if is_dataclass(kind) else set()
    beliefs = {"roofline": roofline, "lengths": lengths}
    for setting in settings:
        if setting not in known - beliefs.keys():
            choices = ", ".join(sorted(known - beliefs.keys())) or "none"
            raise ValueError(f"setting {setting!r} of policy {name!r} is unknown; known: {choices}")
    return cast(Callable[..., Policy], kind)(**{k: v for k, v in beliefs.items() if k in known} | settings)
