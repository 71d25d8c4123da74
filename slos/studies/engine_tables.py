"""What is made of the rows of a real engine: capacities, errors of the simulator, the figure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.optimize import isotonic_regression

from slos.evaluation.plots import DASHED, MARKERS, finish, lines, name_of, panels, unique
from slos.evaluation.stats import select
from slos.files import Frame
from slos.policies import OURS
from slos.studies.engine_workloads import TIERS
from slos.studies.real_engine import STOCK, TOLD, Calibrated


def facts(engine: Calibrated, frame: Frame) -> Frame:
    """The engine as calibrated, its drift, and how late the client was, a row each. Rows can be
    trusted where it was late by less than a token's time."""
    r, drift = engine.profile.roofline, frame["drift"]
    runs = select(frame, status="measured").groupby(["scenario", "system", "rate", "seed"])
    late, token = runs["lag"].max(), TIERS["interactive"][0] * engine.step
    planes = "; ".join(f"{1e3 * p.b:.2f} + {1e6 * p.k1:.1f}" for p in r.planes)
    rows = {
        "device": engine.profile.gpu,
        "a step (ms + us a token), the larger of": planes,
        "and per token of context (us)": f"{1e6 * r.k_ctx:.3f}",
        "a step of 16 decodes (ms)": f"{1e3 * engine.step:.1f}",
        "a first token outside of the engine (ms)": f"{1e3 * engine.outside:.1f}",
        "a step when calibrated anew, times": f"{drift.min():.2f} to {drift.max():.2f}",
        "client late in half of the runs, at most (ms)": f"{1e3 * late.median():.0f}",
        "client late in all of the runs, at most (ms)": f"{1e3 * late.max():.0f}",
        "a token of the interactive tier (ms)": f"{1e3 * token:.0f}",
    }
    return pd.Series(rows, name="calibrated").to_frame()


def engine_curves(table: Frame, source: str, target: float = 0.9) -> Figure:
    """Attainment against load, a panel per workload: lines are measured, open marks simulated."""
    workloads, systems = unique(table["scenario"]), sorted(set(table["system"]))
    figure, axes = panels(workloads, (4.2, 3.2), (0, 0), "attainment (%)", sharey=True)
    for axis, i, rows, looks in lines(axes, table, "scenario", "system", systems):
        system = looks["label"].replace(OURS, name_of(OURS))
        for status, style, kind in (("measured", "-", "full"), ("simulated", ":", "none")):
            part = select(rows, status=status).sort_values("rate")
            looks |= {"marker": MARKERS[i], "fillstyle": kind, "label": f"{system}, {status}"}
            axis.plot(part["rate"], 100 * part["attainment"], style, **looks)
    for axis in axes:
        axis.axhline(100 * target, **DASHED)
        axis.set(xlabel="load (requests/s)", ylim=(0, 105))
    said = f"{source}; by the {table['rule'].iloc[0]}'s rule of pace; dashed: {target:.0%}"
    return finish(figure, said, axes[0], ncols=2)


def by_load(frame: Frame) -> Frame:
    """One row per workload, load, scheduler and status: attainment by the rule of pace that was
    asked for and by both, mean latencies in seconds, requests that failed."""
    by = ["scenario", "system", "status", "rate"]
    return frame.groupby(by, sort=False).agg(
        rule=("rule", "first"), attainment=("attained", "mean"),
        attainment_paper=("attained_paper", "mean"), attainment_client=("attained_client", "mean"),
        ttft=("ttft", "mean"), tpot=("tpot", "mean"),
        lag=("lag", "max"), requests=("id", "size"),
        failed=("failure", lambda f: int((f != "").sum())),
    ).reset_index()  # fmt: skip


def capacities(table: Frame, target: float = 0.9) -> Frame:
    """The load at which attainment falls below `target`, interpolated. `bound` says "at least" of
    the largest load if attainment never falls so far, "at most" of the smallest one if it is below
    from the start. Attainment is made to fall with the load first, as it does but for chance:
    neighbours out of order are averaged."""
    found, by = [], ["scenario", "status", "system"]
    for key, group in table.groupby(by, sort=False):
        curve = group.sort_values("rate")
        rates, falling = curve["rate"].tolist(), _falling(curve["attainment"])
        i = int((falling >= target).sum())
        if 0 < i < len(rates):
            share = (falling[i - 1] - target) / (falling[i - 1] - falling[i])
            load, bound = rates[i - 1] * (rates[i] / rates[i - 1]) ** share, ""
        else:
            load, bound = (rates[-1], "at least") if i else (rates[0], "at most")
        found.append((*key, float(load), bound))
    return pd.DataFrame(found, columns=[*by, "capacity", "bound"])


def _falling(values: Sequence[float]) -> np.ndarray:
    """The nearest sequence that never rises, by least squares."""
    return isotonic_regression(np.asarray(values, float), increasing=False).x


def gain(found: Frame, ours: str, other: str) -> str:
    """In words, our capacity over another's. found: of `capacities`, indexed by system."""
    opposite = {"at least": "at most", "at most": "at least", "": ""}
    bounds = {found.loc[ours, "bound"], opposite[found.loc[other, "bound"]]} - {""}
    if len(bounds) > 1:
        return "a ratio that these loads do not tell"
    ratio = found.loc[ours, "capacity"] / found.loc[other, "capacity"]
    return f"{' '.join(bounds)} {ratio:.2f}x".strip()


def gains(found: Frame) -> Frame:
    """Our capacity over that of vLLM's own scheduler, or of other rivals, in words, per workload
    and status; with lengths learned, and where `found` has it, told."""
    systems = unique(found["system"])
    ours = {name: how for name, how in ((OURS, ""), (TOLD, ", lengths told,")) if name in systems}
    pairs = [*product(ours, (name for name in systems if name not in ours))]
    rows = [
        (*key, *(gain(all_of_them.set_index("system"), *pair) for pair in pairs))
        for key, all_of_them in found.groupby(["scenario", "status"], sort=False)
    ]
    named = {name: "vLLM's own" if name == STOCK else name_of(name) for name in systems}
    over = [f"SLOs-Serve{ours[mine]} over {named[rival]}" for mine, rival in pairs]
    return pd.DataFrame(rows, columns=["scenario", "status", *over])


def errors(table: Frame) -> Frame:
    """How far the simulator is off, by run: attainment in points, mean TTFT and TPOT in %."""
    each = table.set_index(["scenario", "system", "rate"])
    real, said = (select(each, status=status) for status in ("measured", "simulated"))
    off = pd.DataFrame({"attainment": 100 * (said["attainment"] - real["attainment"])})
    off[["ttft", "tpot"]] = 100 * (said[["ttft", "tpot"]] / real[["ttft", "tpot"]] - 1)
    return off.reset_index()
