"""The embedded default: `profiles.json`, made from the real data by `python -m
workloads.make_profiles`.

Its lengths are quantiles and rank correlations, its arrivals the requests in every second of the
paper's windows (which carries bursts and lulls; within a second they fall at random). No row of the
data is in it.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

import numpy as np

from workloads.arrivals import Trace
from workloads.lengths import Quantiles

SYNTHETIC, REAL = "synthetic profile", "real traces"


@cache
def _profiles() -> dict:
    return json.loads((files("workloads") / "profiles.json").read_text())


@cache
def lengths(name: str) -> Quantiles:
    """The table `name`: one of `lengths.TABLES`, or the lengths of a trace's window."""
    raw = _profiles()
    table = raw["lengths"][name]
    parts = (raw["probabilities"], table["quantiles"], table["factor"])
    parts = (np.array(x, dtype=float) for x in parts)
    return Quantiles(f"{SYNTHETIC} of {table['source']}", *parts, limit=table["limit"])


def window(name: str, limit: int | None, rng: np.random.Generator) -> Trace:
    """A window like the paper's of a trace; limit: only requests of at most so many tokens."""
    known, table = _profiles()["arrivals"], f"{name}/{limit}"
    table = table if table in known else name  # longer ones are left out by the caller
    raw = known[table]
    counts = np.array(raw["per_second"])
    times = np.sort(np.repeat(np.arange(len(counts)), counts) + rng.random(counts.sum()))
    prompt, output = lengths(table).draw(rng, len(times)).T
    return Trace(f"{SYNTHETIC} of {raw['source']}", float(len(counts)), times, prompt, output)
