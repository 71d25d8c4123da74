"""What has a name, made by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

from slos.core.types import require


def make(
    what: str, known: Mapping[str, Callable[..., Any]], name: str, settings: Mapping[str, Any],
    **beliefs: Any,
):  # fmt: skip
    """A fresh `known[name]` with its settings, and those of the `beliefs` that it has a parameter
    for."""
    cure = f"or add yours to the {what} table"
    require(name in known, what, name, f"one of {', '.join(known)}", cure)
    parameters = signature(known[name]).parameters
    choices = sorted(parameters.keys() - beliefs.keys())
    bound, kind = f"one of {', '.join(choices) or 'none'}", f"setting of {what} {name!r}"
    for setting in settings:
        require(setting in choices, kind, setting, bound)
    return known[name](**settings, **{k: v for k, v in beliefs.items() if k in parameters})
