"""From a scenario, a rate and a seed to requests. Same arguments and data, same bytes."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path

import numpy as np

from slos.core.types import Request, Stage, require
from workloads import arrivals, lengths, own, sessions, synthetic
from workloads.files import DATA, data_folder, locate
from workloads.scenarios import Scenario, by_name

TOOL_LATENCY = (0.5, 0.8)
"""Median seconds and log standard deviation of a tool's answer: mean 0.69 s, P99 3.2 s. Our
assumption, of a web API; the paper gives none."""

Lengths = lengths.Rows | lengths.Quantiles
Turns = list[tuple[int, int, float]]
"""Stages without objectives: prompt tokens, output tokens, seconds of waiting before."""


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests sorted by arrival, and how they were made: exactly `len(requests)` in `span`
    seconds.

    lengths: "dataset" or "trace". source: "real traces", "synthetic profile" or "own requests".
    origins: what it was made from.
    """

    requests: tuple[Request, ...]
    scenario: str
    rate: float
    seed: int
    lengths: str
    source: str
    origins: tuple[str, ...]

    @property
    def span(self) -> float:
        return len(self.requests) / self.rate


def build(
    scenario: str, rate: float, num_requests: int, seed: int = 0, lengths: str = "dataset",
    max_context: int | None = None,
) -> Workload:  # fmt: skip
    """The workload of a scenario: `num_requests` requests that arrive at `rate` per second.

    Another rate with the same seed gives the same requests at rescaled times. lengths: "dataset"
    draws them from the scenario's data set (the paper's table); "trace" takes chat and coding
    lengths from the requests of the Azure window itself, as the authors' code does. A window's
    requests are used in order from a start that the seed draws; if more are asked for, it repeats,
    and further lengths are drawn from it. max_context: a tighter limit than the scenario's. A mix
    has as many requests of each part as its share says; the parts of `mixed` have equal ones (our
    choice: the paper does not give them). Of a file (see `workloads.own`) the requests are replayed
    as those of a window are, or drawn if it has no arrivals.

    Raises ValueError for arguments out of bounds and bad rows, FileNotFoundError if `SLOS_DATA`
    lacks a file. If it is unset and the cache lacks one, everything comes from the synthetic
    profile, and `source` says so.
    """
    chosen = by_name(scenario)
    require(0 < rate < inf, "rate", rate, "positive and finite", "give requests per second")
    require(num_requests >= 1, "num_requests", num_requests, "at least 1")
    require(seed >= 0, "seed", seed, "at least 0")
    require(lengths in ("dataset", "trace"), "lengths", lengths, "'dataset' or 'trace'")
    known = lengths == "dataset" or chosen.has_trace
    require(known, "lengths", lengths, f"'dataset' for {chosen.name}, it has no trace")
    most = inf if chosen.max_context is None else chosen.max_context
    limit = most if max_context is None else max_context
    require(2 <= limit <= most, "max_context", max_context, f"2 to {most} tokens")

    if chosen.name.endswith(".csv"):
        origin, requests = _of_file(Path(chosen.name), rate, num_requests, seed, limit)
        return Workload(requests, chosen.name, rate, seed, lengths, "own requests", (origin,))
    parts = [by_name(p) for p in chosen.parts] or [chosen]
    source = _source(parts, lengths)
    made: list[tuple[float, Scenario, Turns]] = []
    origins: dict[str, None] = {}
    counts = _counts(list(chosen.parts.values()) or [1], num_requests)
    for part, n in zip(parts, counts, strict=True):
        if n:
            key = part.name if part is chosen else f"mixed/{part.name}"
            streams = _stream(seed, key, "arrivals"), _stream(seed, key, "lengths")
            most = inf if part.max_context is None else part.max_context
            times, turns, names = _part(part, n, streams, lengths, min(limit, most), source)
            made += zip((times * (num_requests / n)).tolist(), [part] * n, turns, strict=True)
            origins.update(dict.fromkeys(names))
    made.sort(key=lambda m: m[0])
    requests = tuple(
        Request(f"{chosen.name}-{i:06d}", t / rate, _stages(part, turns), kind=part.name)
        for i, (t, part, turns) in enumerate(made)
    )
    return Workload(requests, chosen.name, rate, seed, lengths, source, tuple(origins))


def _counts(shares: list[float], n: int) -> list[int]:
    """n requests by their shares, to within one: what is over goes to the largest remainders."""
    exact = [n * share / sum(shares) for share in shares]
    counts = [int(x) for x in exact]
    for i in sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])[: n - sum(counts)]:
        counts[i] += 1
    return counts


def _of_file(
    path: Path, rate: float, n: int, seed: int, limit: float
) -> tuple[str, tuple[Request, ...]]:
    """n requests of one's own at a rate, and where they come from."""
    rows = [r for r in own.load(path) if r.stage.prompt + r.stage.output <= limit]
    require(len(rows) > 0, f"{path}: max_context", limit, "at least one request's length")
    rng, count = _stream(seed, "own", "arrivals"), len(rows)
    if rows[0].arrival is None:
        times, names = arrivals.poisson(rng, n), [r.session for r in rows]
        if any(names):
            which, laps = sessions.drawn(rng, names, n)
        else:
            which, laps = rng.integers(count, size=n), np.arange(n)
    else:
        at = np.array([r.arrival for r in rows], dtype=float)
        several = "one that leaves in requests of two times at least"
        require(at[-1] > at[0], f"{path}: max_context", limit, several)
        # what follows the last one is a mean gap
        span = (at[-1] - at[0]) * count / max(1, count - 1)
        nothing = np.zeros(count, np.int64)
        trace = arrivals.Trace(path.name, span, at - at[0], nothing, nothing)
        times, which = arrivals.replay(rng, trace, n)
        laps = sessions.laps(which)
    drawn = zip(times.tolist(), which.tolist(), laps.tolist(), strict=True)
    return f"{path.name}, {count} rows", tuple(
        rows[k].request(f"{path.stem}-{i:06d}", t / rate, path.stem, lap)
        for i, (t, k, lap) in enumerate(drawn)
    )


def _source(parts: list[Scenario], wanted: str) -> str:
    """Real traces if every file is at hand; the profile if not, unless a data folder was named."""
    tables = [t for p in parts if not (wanted == "trace" and p.has_trace) for t in _tables(p)]
    choices = [[s.file for s in lengths.TABLES[t].sources] for t in tables]
    choices += [[arrivals.TRACES[p.arrivals]] for p in parts if p.arrivals in arrivals.STARTS]
    missing = [" or ".join(files) for files in choices if locate(files) is None]
    if missing and (folder := data_folder()):
        said = f"must hold {', '.join(missing)}; add it, or unset {DATA}"
        raise FileNotFoundError(f"{DATA} = {str(folder)!r} {said}")
    return synthetic.SYNTHETIC if missing else synthetic.REAL


def _tables(part: Scenario) -> tuple[str, ...]:
    return (part.table, "toolbench-calls") if part.table == "toolbench-rounds" else (part.table,)


def _stream(seed: int, key: str, use: str) -> np.random.Generator:
    """Its own random stream for every scenario, part and use."""
    return np.random.default_rng([seed, zlib.crc32(f"{key}/{use}".encode())])


def _part(
    part: Scenario, n: int, streams: Sequence[np.random.Generator], wanted: str, limit: float,
    source: str,
) -> tuple[np.ndarray, list[Turns], list[str]]:  # fmt: skip
    """n requests of one scenario: times at rate 1, turns, origins. streams: for times, lengths."""
    for_times, for_lengths = streams
    real, from_trace = source == synthetic.REAL, wanted == "trace" and part.has_trace
    if part.arrivals == "poisson":
        times, origin = arrivals.poisson(for_times, n), "poisson"
    else:
        most = part.max_context if from_trace else None
        if real:
            trace = arrivals.window(part.arrivals)
        else:
            trace = synthetic.window(part.arrivals, most, for_times)
        trace = trace.fitting(limit) if from_trace else trace
        times, which = arrivals.replay(for_times, trace, n)
        origin = trace.origin
        if from_trace:
            count = len(trace.times)
            more = for_lengths.integers(count, size=max(0, n - count))
            which = np.concatenate([which[:count], more])
            pairs = zip(trace.prompt[which].tolist(), trace.output[which].tolist(), strict=True)
            return times, [[(p, o, 0.0)] for p, o in pairs], [origin]
    tables = [(lengths.load if real else synthetic.lengths)(t) for t in _tables(part)]
    shape = _tool_calling if len(tables) > 1 else _one_round
    turns = _fitting(lambda k: shape(for_lengths, k, *tables), n, limit, part.name)
    return times, turns, [origin, *(t.origin for t in tables)]


def _fitting(make: Callable[[int], list[Turns]], n: int, limit: float, name: str) -> list[Turns]:
    """n requests of at most `limit` tokens: longer ones are dropped and others drawn."""
    kept: list[Turns] = []
    for _ in range(1000):
        kept += [turns for turns in make(n + 64) if sum(p + o for p, o, _ in turns) <= limit]
        if len(kept) >= n:
            return kept[:n]
    said = f"must leave some of the lengths of {name}; hardly any is so short"
    raise ValueError(f"max_context = {limit} {said}")


def _one_round(rng: np.random.Generator, n: int, table: Lengths) -> list[Turns]:
    """A prompt and its answer, behind which a response goes on where the answer was thinking."""
    rows = table.draw(rng, n).tolist()
    return [[(p, first, 0.0), *((0, more, 0.0) for more in rest)] for p, first, *rest in rows]


def _tool_calling(rng: np.random.Generator, n: int, rounds: Lengths, calls: Lengths) -> list[Turns]:
    """A first prompt, then rounds of a tool's response and the next call; the last one answers."""
    heads, (median, sigma) = rounds.draw(rng, n), TOOL_LATENCY
    count = int(heads[:, 1].sum())
    drawn = iter(calls.draw(rng, count).tolist())
    waits = iter((median * np.exp(sigma * rng.standard_normal(count))).tolist())
    made = []
    for prompt, count, answer in heads.tolist():
        turns = [(*next(drawn), next(waits)) for _ in range(count)]
        turns[0] = (prompt, turns[0][1], 0.0)
        turns[-1] = (turns[-1][0], answer or turns[-1][1], turns[-1][2])
        made.append(turns)
    return made


def _stages(part: Scenario, turns: Turns) -> tuple[Stage, ...]:
    """Objectives by stage: the scenario's last one for the last stage, its first one before."""
    slos = [part.slos[0]] * (len(turns) - 1) + [part.slos[-1]]
    return tuple(Stage(p, o, slo, wait) for (p, o, wait), slo in zip(turns, slos, strict=True))
