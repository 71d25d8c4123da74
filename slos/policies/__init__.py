"""Every policy by name. A new one is a class in its own file and a line in `POLICIES`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from slos.core.roofline import Roofline
from slos.core.types import LengthPredictor, Policy, require
from slos.policies.ablated import slos_serve
from slos.policies.adaserve import AdaServe
from slos.policies.as_published import SarathiAuthors, SarathiCapped, VLLMAuthors
from slos.policies.baselines import VLLM, VLLMV1, Sarathi
from slos.policies.fair_batching import FairBatching
from slos.policies.qoserve import QoServe
from slos.policies.scorpio import Scorpio

OURS = "slos-serve"
LATER = ("qoserve", "fair-batching", "scorpio", "adaserve")
"""Schedulers that came after the paper. They run in the arena (notebook 14), and elsewhere only if
they are named, so that ordinary tables are the paper's and take no longer."""

POLICIES: dict[str, Callable[..., Policy]] = {
    "vllm": VLLM,
    "vllm-v1": VLLMV1,
    "sarathi": Sarathi,
    "slos-serve": slos_serve,
    "qoserve": QoServe,
    "fair-batching": FairBatching,
    "scorpio": Scorpio,
    "adaserve": AdaServe,
}

# also known by name, but only in the tables of the paper's own comparison
AS_PUBLISHED: dict[str, Callable[..., Policy]] = {
    "vllm-authors": VLLMAuthors,
    "sarathi-authors": SarathiAuthors,
    "sarathi-capped": SarathiCapped,
}


def ordinary() -> list[str]:
    """The names of all policies but `LATER`."""
    return [name for name in POLICIES if name not in LATER]


def make(
    what: str, known: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any],
    **beliefs: Any,
):  # fmt: skip
    """A new `known[name]` with its settings, and with those `beliefs` that it has a parameter
    for."""
    cure = f"or add yours to the {what} table"
    require(name in known, what, name, f"one of {', '.join(known)}", cure)
    parameters = signature(known[name]).parameters
    choices = sorted(parameters.keys() - beliefs.keys())
    bound, kind = f"one of {', '.join(choices) or 'none'}", f"setting of {what} {name!r}"
    for setting in settings:
        require(setting in choices, kind, setting, bound)
    return known[name](**settings, **{k: v for k, v in beliefs.items() if k in parameters})


def make_policy(name: str, roofline: Roofline, lengths: LengthPredictor, **settings: Any) -> Policy:
    """A new policy. If it has a field `roofline` or `lengths` it gets that belief about hardware
    or lengths."""
    table = AS_PUBLISHED if name in AS_PUBLISHED else POLICIES
    return make("policy", table, name, settings, roofline=roofline, lengths=lengths)
