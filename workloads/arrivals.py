"""Arrival times: Azure traces and their windows, Poisson, and rescaling to a rate.

Times are made once at a mean rate of 1 and divided by the rate that is asked for, so two rates see
the same requests in the same order. n arrivals always lie in a span of exactly n: for Poisson that
is the process given its count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from math import inf
from pathlib import Path

import numpy as np

from slos.core.types import require
from workloads.files import locate, read_rows, stamp, tokens
from workloads.lengths import AZURE

TRACES = {
    "azure-code": "arrivals/AzureLLMInferenceTrace_code.csv",
    "azure-conv": "arrivals/AzureLLMInferenceTrace_conv.csv",
    "azure-code-2024": "arrivals/AzureLLMInferenceTrace_code_1week.csv",
    "azure-conv-2024": "arrivals/AzureLLMInferenceTrace_conv_1week.csv",
}
WINDOW = 300.0  # seconds of a trace that the paper replays
STARTS = {"azure-code": 1786.0, "azure-conv": 900.0}  # seconds into it (the authors' code)


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """Requests of `span` seconds: sorted times float64 [n] from 0, prompt and output int64 [n]."""

    origin: str
    span: float
    times: np.ndarray
    prompt: np.ndarray
    output: np.ndarray

    def fitting(self, limit: float) -> Trace:
        """Only the requests whose prompt and output together are at most `limit` tokens."""
        kept = self.prompt + self.output <= limit
        name = f"{self.origin}: max_context"
        require(bool(kept.any()), name, limit, "at least one request's length")
        return Trace(self.origin, self.span, self.times[kept], self.prompt[kept], self.output[kept])


def load_azure(name: str | Path, start: float = 0.0, seconds: float = inf) -> Trace:
    """An Azure trace (2023 or 2024 layout): the `seconds` from `start` seconds after its first
    request.

    name: one of `TRACES`, or a path to a CSV (or .csv.gz) with TIMESTAMP, ContextTokens,
    GeneratedTokens. Reading stops where the window does: a week of 2024 has tens of millions of
    rows. Raises FileNotFoundError; ValueError naming file, row and value for fields that are
    missing, negative or absurd and for times that run backwards.
    """
    require(start >= 0, "start", start, "at least 0 seconds")
    require(seconds > 0, "seconds", seconds, "positive")
    path = locate([TRACES[name]]) if isinstance(name, str) and name in TRACES else Path(name)
    if path is None or not path.is_file():
        known = f"one of {', '.join(TRACES)} that is at hand"
        raise FileNotFoundError(f"trace {str(name)!r} is neither a file nor {known}")
    return _load(path, stamp(path), start, seconds)


@lru_cache(maxsize=8)
def _load(path: Path, _: tuple[int, int], start: float, seconds: float) -> Trace:
    rows, first, last = [], None, 0.0
    for n, (text, context, generated) in read_rows(path, ("TIMESTAMP", *AZURE)):
        here = f"{path}, row {n}, TIMESTAMP = {text!r}"
        try:
            moment = datetime.fromisoformat(text)
            first = first or moment
            t = (moment - first).total_seconds()
        except (ValueError, TypeError):
            raise ValueError(f"{here} must be a date and time like the first row's") from None
        if t < last:
            raise ValueError(f"{here} must not be earlier than the row before; sort the file")
        last = t
        if t >= start + seconds:
            break
        p, o = tokens(path, n, AZURE[0], context, 0), tokens(path, n, AZURE[1], generated, 0)
        if t >= start:
            rows.append((t - start, p, o))
    bound = "a time with requests after it"
    require(len(rows) > 0, f"{path}: start", start, bound, f"it has {last} s")
    times, prompt, output = (np.array(column) for column in zip(*rows, strict=True))
    span = seconds if seconds < inf else last - start
    return Trace(f"{path.parent.name}/{path.name.removesuffix('.gz')}", span, times, prompt, output)


def window(name: str) -> Trace:
    """The paper's 300 s of the 2023 trace `name`."""
    return load_azure(name, STARTS[name], WINDOW)


def poisson(rng: np.random.Generator, n: int) -> np.ndarray:
    """n arrivals at a mean rate of 1, float64 [n], sorted."""
    return _unit(rng.exponential(size=n + 1))


def replay(rng: np.random.Generator, trace: Trace, n: int) -> tuple[np.ndarray, np.ndarray]:
    """n arrivals of a trace at a mean rate of 1, float64 [n], sorted, and which of its requests
    they are, int64 [n].

    The trace is a ring: it begins at a request that the seed draws and starts over after its end,
    so that fewer requests than it has are another stretch of it for every seed, bursts and lulls as
    they were.
    """
    count = len(trace.times)
    gaps = np.diff(trace.times, prepend=trace.times[-1] - trace.span)
    which = (rng.integers(count) + np.arange(n + 1)) % count
    return _unit(gaps[which]), which[:n]


def burstiness(times: Sequence[float] | np.ndarray) -> tuple[float, int]:
    """Standard deviation over mean of the gaps (Poisson: 1), and the most arrivals within 10 mean
    gaps (about 25).

    Of fewer than 3 arrivals, or all at once: 0 and their number.
    """
    times = np.asarray(times, dtype=float)
    gaps = np.diff(times)
    if len(gaps) < 2 or gaps.mean() == 0:
        return 0.0, len(times)
    peak = np.searchsorted(times, times + 10 * gaps.mean(), side="right") - np.arange(len(times))
    return float(gaps.std() / gaps.mean()), int(peak.max())


def _unit(gaps: np.ndarray) -> np.ndarray:
    """n + 1 gaps to n arrivals in a span of n: the gap after the last one counts too."""
    times = np.cumsum(gaps)
    span = times[-1] if times[-1] > 0 else 1.0
    return times[:-1] * ((len(gaps) - 1) / span)
