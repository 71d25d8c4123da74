"""What became of a run against a server, as tidy rows: of each request, and of the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import nan

import numpy as np
import pandas as pd

from slos.live import Outcome
from slos.metrics import attainment
from slos.report import Frame
from slos.sweep import commit


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that was not answered in full, and why."""

    id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Replayed:
    """Outcomes of all requests in the order in which they ended; a failed one attains nothing and has nan for times.

    lag: the most seconds by which the client itself was late, in sending or in looking at what had come. The server
    does not tell its clients whom it declined or preempted, so nobody is.
    """

    outcomes: list[Outcome]
    failures: list[Failure]
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Labels:
    """What a run was, in the terms of `search.Probe`. rate: requests per second; status: measured or simulated."""

    scenario: str
    system: str
    profile: str
    rate: float
    seed: int = 0
    lengths: str = "dataset"
    setting: str = ""
    source: str = ""
    status: str = "measured"


@dataclass(frozen=True, slots=True)
class Summary:
    """The figures of a run: shares of all that were sent, seconds of those that were answered."""

    requests: int
    failed: int
    attainment: float
    attainment_client: float
    ttft_mean: float
    ttft_p50: float
    ttft_p99: float
    tpot_mean: float
    tpot_p50: float
    tpot_p99: float
    lag: float


def summarize(run: Replayed) -> Summary:
    failed = {f.id for f in run.failures}
    answered = [o for o in run.outcomes if o.id not in failed]

    def figures(values: list[float]) -> tuple[float, float, float]:
        p50, p99 = np.percentile(values or [nan], (50, 99)).tolist()
        return float(np.mean(values or [nan])), p50, p99

    shares = attainment(run.outcomes), attainment(run.outcomes, client=True)
    ttft, tpot = figures([o.ttft for o in answered]), figures([o.tpot for o in answered])
    return Summary(len(run.outcomes), len(failed), *shares, *ttft, *tpot, run.lag)


def rows(labels: Labels, run: Replayed) -> Frame:
    """One row per request: `labels`, the columns of `Outcome`, and `failure`, empty where there was none."""
    why = {f.id: f.reason for f in run.failures}
    table = [asdict(labels) | asdict(o) | {"failure": why.get(o.id, ""), "commit": commit()} for o in run.outcomes]
    return pd.DataFrame(table)


def table(run: Replayed) -> str:
    """The figures for a terminal, with the reasons of failures."""
    s = summarize(run)
    lines = [
        f"attainment {s.attainment:.1%}; with the mean TPOT, as clients count it, {s.attainment_client:.1%}",
        f"{'':<10}{'mean':>9}{'P50':>9}{'P99':>9}",
        f"{'TTFT, ms':<10}{1e3 * s.ttft_mean:9.1f}{1e3 * s.ttft_p50:9.1f}{1e3 * s.ttft_p99:9.1f}",
        f"{'TPOT, ms':<10}{1e3 * s.tpot_mean:9.1f}{1e3 * s.tpot_p50:9.1f}{1e3 * s.tpot_p99:9.1f}",
        f"answered {s.requests - s.failed}, failed {s.failed}; the client was late by at most {1e3 * s.lag:.1f} ms",
    ]
    lines += [f"  {n} failed: {why}" for why, n in Counter(f.reason for f in run.failures).most_common(3)]
    return "\n".join(lines)


def by_load(frame: Frame) -> Frame:
    """One row per workload, load, scheduler and status: attainment, mean latencies in seconds, requests that failed."""
    by = ["scenario", "system", "status", "rate"]
    return frame.groupby(by, sort=False).agg(
        attainment=("attained", "mean"), ttft=("ttft", "mean"), tpot=("tpot", "mean"), lag=("lag", "max"),
        requests=("id", "size"), failed=("failure", lambda f: int((f != "").sum())),
    ).reset_index()  # fmt: skip


def capacities(table: Frame, target: float = 0.9) -> Frame:
    """The load at which attainment falls below `target`, interpolated.

    `bound` says "at least" of the largest load if attainment never falls so far, "at most" of the smallest one if it is
    below from the start. Attainment is made to fall with the load first, as it does but for chance: neighbours out of
    order are averaged.
    """
    found = []
    for (workload, status, system), group in table.groupby(["scenario", "status", "system"], sort=False):
        curve = group.sort_values("rate")
        rates, falling = curve["rate"].tolist(), _falling(curve["attainment"].tolist())
        i = int((falling >= target).sum())
        if 0 < i < len(rates):
            share = (falling[i - 1] - target) / (falling[i - 1] - falling[i])
            load, bound = rates[i - 1] * (rates[i] / rates[i - 1]) ** share, ""
        else:
            load, bound = (rates[-1], "at least") if i else (rates[0], "at most")
        found.append((workload, status, system, float(load), bound))
    return pd.DataFrame(found, columns=["scenario", "status", "system", "capacity", "bound"])


def gain(found: Frame, ours: str, other: str) -> str:
    """How many times the capacity of `other` that of `ours` is, in words. found: of `capacities`, indexed by system."""
    opposite = {"at least": "at most", "at most": "at least", "": ""}
    bounds = {found.loc[ours, "bound"], opposite[found.loc[other, "bound"]]} - {""}
    if len(bounds) > 1:
        return "a ratio that these loads do not tell"
    return f"{' '.join(bounds)} {found.loc[ours, 'capacity'] / found.loc[other, 'capacity']:.2f}x".strip()


def errors(table: Frame) -> Frame:
    """How far the simulator is off, per workload, scheduler and load: attainment in points, mean TTFT and TPOT in %."""
    by = ["scenario", "system", "rate"]
    measured, simulated = (table[table["status"] == s].set_index(by) for s in ("measured", "simulated"))
    off = pd.DataFrame({"attainment": 100 * (simulated["attainment"] - measured["attainment"])})
    for column in ("ttft", "tpot"):
        off[column] = 100 * (simulated[column] / measured[column] - 1)
    return off.reset_index()


def _falling(values: list[float]) -> np.ndarray:
    """The nearest sequence that never rises, by least squares (pool adjacent violators)."""
    pools: list[tuple[float, int]] = []
    for value in values:
        total, count = value, 1
        while pools and total / count > pools[-1][0] / pools[-1][1]:
            before, n = pools.pop()
            total, count = total + before, count + n
        pools.append((total, count))
    return np.repeat([total / n for total, n in pools], [n for _, n in pools])
