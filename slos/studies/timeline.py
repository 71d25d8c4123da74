"""A burst, watched step by step: what schedulers do with it, for figures and findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd

from slos.core.attainment import Outcome
from slos.core.roofline import Profile
from slos.core.types import Request, require
from slos.evaluation.capacity_search import serve
from slos.evaluation.stats import Frame
from slos.sim.simulator import Replica, Step


def fate(outcome: Outcome) -> str:
    """`attained`, `declined` into best effort, or `late`."""
    return "attained" if outcome.attained else "declined" if outcome.declined else "late"


def with_burst(base: Sequence[Request], at: float, extra: Sequence[Request], name: str = "burst") -> list[Request]:
    """`base` with all of `extra` arriving from `at` seconds on, in order of arrival; `name` goes before their ids."""
    late = [replace(r, id=f"{name}-{r.id}", arrival=r.arrival + at) for r in extra]
    return sorted([*base, *late], key=lambda r: r.arrival)


@dataclass(frozen=True, slots=True)
class Timeline:
    """One system's run, step by step and request by request."""

    system: str
    steps: tuple[Step, ...]
    outcomes: tuple[Outcome, ...]


def timeline(requests: Sequence[Request], system: str, hardware: Profile, setting: str = "") -> Timeline:
    """Serve and keep every step, for a figure."""
    steps: list[Step] = []

    def keep(_: Replica, step: Step, done: tuple[Outcome, ...]) -> None:
        steps.append(step)

    outcomes = serve(requests, system, hardware, setting, observe=keep)
    return Timeline(system, tuple(steps), tuple(outcomes))


def summary(runs: Sequence[Timeline]) -> Frame:
    """One row per system: shares of requests by fate, latencies, and from arrival to end of best effort."""
    rows = {}
    for run in runs:
        frame = pd.DataFrame([(fate(o), o.attained_client, o.ttft, o.tpot) for o in run.outcomes],
                             columns=["fate", "client", "ttft", "tpot"])  # fmt: skip
        effort: Frame = pd.Series([o.finish - o.arrival for o in run.outcomes if o.declined], dtype=float)
        share: Frame = frame["fate"].value_counts(normalize=True)
        rows[run.system] = {
            **{f"{name} (%)": 100 * share.get(name, 0.0) for name in ("attained", "late", "declined")},
            "attained, client's rule (%)": 100 * frame["client"].mean(),
            "TTFT P50 (ms)": 1e3 * frame["ttft"].median(),
            "TTFT P99 (ms)": 1e3 * frame["ttft"].quantile(0.99),
            "TPOT P99 (ms)": 1e3 * frame["tpot"].quantile(0.99),
            **{f"best effort, {name} (s)": effort.quantile(q) for name, q in (("P50", 0.5), ("P99", 0.99))},
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


def what_the_burst_shows(runs: Sequence[Timeline], at: float) -> str:
    """The findings in Markdown, from the numbers."""
    lines = []
    for run in runs:
        late = [o for o in run.outcomes if fate(o) == "late"]
        declined = [o for o in run.outcomes if o.declined]
        after = [o for o in run.outcomes if o.arrival >= at]
        kept = sum(o.attained for o in after) / max(1, len(after))
        line = f"- **{run.system}** meets the objectives of {kept:.0%} of the requests from the burst on"
        line += f"; {len(late)} of {len(run.outcomes)} in all are late"
        if declined:
            wait = max(o.finish for o in declined) - max(o.arrival for o in run.outcomes)
            when = f"{wait:.0f} s after the last arrival" if wait > 0 else "before the last arrival"
            line += f", {len(declined)} are declined into best effort and the last of those is done {when}"
        lines.append(line + ".")
    return "\n".join(lines)


def windows(run: Timeline, requests: Sequence[Request], width: float) -> Frame:
    """One row per window of `width` seconds, by arrival, with its middle as `time`.

    Requests per second; and of those that arrived in it P99 of TTFT and of mean TPOT over their objectives, guaranteed
    or not, and the shares (%) that met every objective and that became best effort.
    """
    require(width > 0, "width", width, "positive (seconds)")
    pace = {r.id: sum(s.output * s.slo.tpot for s in r.stages) / r.output for r in requests}
    frame = pd.DataFrame(
        [(o.arrival, o.ttft / o.ttft_slo, o.tpot / pace[o.id], o.attained, o.declined) for o in run.outcomes],
        columns=["arrival", "ttft", "tpot", "attained", "declined"],
    )
    frame = frame.assign(attained=100 * frame["attained"], declined=100 * frame["declined"])
    groups = frame.groupby((frame["arrival"] // width).astype(int))
    return pd.DataFrame(
        {
            "time": (groups.size().index + 0.5) * width,
            "arrivals": groups.size() / width,
            "ttft_p99": groups["ttft"].quantile(0.99),
            "tpot_p99": groups["tpot"].quantile(0.99),
            "attained": groups["attained"].mean(),
            "best_effort": groups["declined"].mean(),
        }
    ).reset_index(drop=True)
