"""By which columns a layout of requests is known, and what another column's name is meant to be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from slos.core.types import require

KNOWN = ("prompt", "output", "tpot", "ttft", "slowdown", "arrival", "kind", "value", "session")
UNITS = {"prompt": "tokens", "output": "tokens", "tpot": "seconds a token"}
UNITS |= {"ttft": "seconds", "arrival": "seconds"}
LAYOUTS = {
    "Azure": {"timestamp": "arrival", "contexttokens": "prompt", "generatedtokens": "output"},
    "BurstGPT": {
        "timestamp": "arrival", "request tokens": "prompt", "response tokens": "output",
        "log type": "kind", "session id": "session",
    },
    "Mooncake": {
        "timestamp": "arrival", "input_length": "prompt", "output_length": "output",
        "hash_ids": "hash_ids",
    },
}  # fmt: skip
"""What their columns, in small letters, are of `KNOWN`."""
OTHERS = {
    "prompt": {"input", "prefill", "context"},
    "output": {"completion", "response", "generated", "decode"},
    "session": {"conversation"},
}
"""Words by which others call them."""
TIMES = {"time", "times", "timestamp", "ts", "t", "date", "datetime", "epoch", "created", "sent"}
TIMES |= {"start", "started", "submit", "submitted", "when"}
BESIDE = {"request", "at", "s", "sec", "seconds", "ms", "us", "ns", "unix", "utc", "iso"}
"""Words by which others call `arrival`, and what may stand with them: no elapsed time is one."""


def column_of(name: str, layout: str) -> str | None:
    """Which of `KNOWN` a column of a layout is, None if none."""
    return name if name in KNOWN else LAYOUTS.get(layout, {}).get(name.lower())


def layout_of(path: Path, header: Sequence[str]) -> str:
    """The name of a file's layout, "own" if it is that of `workloads.own`. Raises ValueError for a
    column twice, a near miss of a name that is lacking, and where lengths are lacking."""
    small = [c.lower() for c in header]
    twice = sorted({c for c in small if small.count(c) > 1})
    require(not twice, f"{path}, row 1: header", list(header), "without a column twice", f"{twice}")
    lengths = {"prompt", "output"}
    named = (n for n, columns in LAYOUTS.items() if lengths <= {columns.get(c) for c in small})
    layout = next(named, "own")
    found = {column_of(c, layout) for c in header}
    may_lack = [c for c in (KNOWN if layout == "own" else ("arrival",)) if c not in found]
    others = [c for c in header if column_of(c, layout) is None and len(header) > 1]
    for column in others:
        name = _meant(column, may_lack)
        unit = f" ({UNITS[name]})" if name in UNITS else ""
        cure = f"rename it to {name!r}{unit}, or drop it"
        require(name is None, f"{path}, row 1: column", [column], "of a known name", cure)
    known = "comma-separated, with a column prompt and one output (tokens), tpot (seconds a token)"
    known += f", ttft (seconds) or slowdown; or a layout of {', '.join(LAYOUTS)}, ShareGPT"
    require(lengths <= found, f"{path}, row 1: header", list(header), known)
    return layout


def _meant(column: str, names: Sequence[str]) -> str | None:
    """Which of `names` a column's own seems to mean, None if none."""
    if near := get_close_matches(column.lower(), names, 1, 0.8):
        return near[0]
    words = set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", column).lower()))
    for name in names:
        if name in words or words & OTHERS.get(name, set()):
            return name
    time = words & TIMES and words <= TIMES | BESIDE
    arrives = time or any(word.startswith("arriv") for word in words)
    return "arrival" if arrives and "arrival" in names else None
