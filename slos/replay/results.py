"""What became of a run against a server, as tidy rows: of each request, and of the whole."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from slos.core.attainment import Outcome
from slos.metrics import attainment
from slos.records.report import Frame
from slos.records.sweep import commit


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


def rows(labels: Labels, run: Replayed) -> Frame:
    """One row per request: `labels`, the columns of `Outcome`, and `failure`, empty where there was none."""
    why = {f.id: f.reason for f in run.failures}
    table = [asdict(labels) | asdict(o) | {"failure": why.get(o.id, ""), "commit": commit()} for o in run.outcomes]
    return pd.DataFrame(table)


def table(run: Replayed) -> str:
    """The figures for a terminal, with the reasons of failures; latencies are those of the requests answered."""
    shares = attainment(run.outcomes), attainment(run.outcomes, client=True)
    lines = [
        f"attainment {shares[0]:.1%}; with the mean TPOT, as clients count it, {shares[1]:.1%}",
        f"{'':<10}{'mean':>9}{'P50':>9}{'P99':>9}",
    ]
    for name, times in {"TTFT": [o.ttft for o in run.outcomes], "TPOT": [o.tpot for o in run.outcomes]}.items():
        ms = 1e3 * pd.Series(times)
        lines.append(f"{name + ', ms':<10}{ms.mean():9.1f}{ms.quantile(0.5):9.1f}{ms.quantile(0.99):9.1f}")
    failed, reasons = len(run.failures), Counter(f.reason for f in run.failures)
    done = len(run.outcomes) - failed
    lines.append(f"answered {done}, failed {failed}; the client was late by at most {1e3 * run.lag:.1f} ms")
    return "\n".join(lines + [f"  {n} failed: {why}" for why, n in reasons.most_common(3)])


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
    """The nearest sequence that never rises, by least squares: the min-max formula of isotonic regression."""
    n = len(values)
    means = [[np.mean(values[a:b]) for b in range(a + 1, n + 1)] for a in range(n)]  # of all runs that begin at a
    return np.array([min(max(means[a][i - a :]) for a in range(i + 1)) for i in range(n)])
