"""What became of a run against a server: rows, and a table for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import pandas as pd

from slos.core.attainment import Outcome, attainment
from slos.core.pace import PAPER, RULES, TOLERANCE, other
from slos.core.types import require
from slos.files import Frame, commit


@dataclass(frozen=True, slots=True)
class Replayed:
    """Outcomes of all requests in the order in which they ended; a failed one attains nothing and
    has nan for times.

    failures: why requests were not answered in full, by id. lag: the most seconds by which the
    client itself was late, in sending or in looking at what had come. Clients do not learn
    which requests were declined or preempted: none are.
    """

    outcomes: list[Outcome]
    failures: dict[str, str] = field(default_factory=dict)
    lag: float = 0.0


@dataclass(frozen=True, slots=True)
class Labels:
    """What a run was, as in `capacity_search.Probe`. rate: requests per second."""

    scenario: str
    system: str
    profile: str
    rate: float
    seed: int = 0
    lengths: str = "dataset"
    setting: str = ""
    source: str = ""
    status: str = "measured"


def judged(outcome: Outcome, paper: bool, client: bool, **changes: float) -> Outcome:
    """The same outcome where it is attained so by each rule, and with further `changes`."""
    met = paper if outcome.rule == PAPER else client
    return replace(outcome, attained=met, attained_paper=paper, attained_client=client, **changes)


def by_the_end(outcome: Outcome, e2e: float | None) -> Outcome:
    """The same outcome, which attains only if its last token came within `e2e` seconds as well."""
    if e2e is None or outcome.finish - outcome.arrival <= e2e + TOLERANCE:
        return outcome
    return judged(outcome, False, False)


GOODPUT = ("ttft", "tpot", "e2el")


def limits_of(said: Sequence[str]) -> dict[str, float]:
    """Milliseconds by name, of words as "ttft:500", as `vllm bench serve --goodput` has them."""
    limits = {}
    for word in said:
        name, _, number = word.partition(":")
        good = name in GOODPUT and number.replace(".", "", 1).isdigit()
        require(good, "goodput", word, f"NAME:MILLISECONDS with a name of {', '.join(GOODPUT)}")
        limits[name] = float(number)
    return limits


def good(run: Replayed, limits: Mapping[str, float]) -> list[bool]:
    """Which outcomes are within all `limits`, whatever the objectives were: TTFT, mean time per
    token after the first one (0 if that is all), and end, from the time at which it was due."""

    def within(o: Outcome) -> bool:
        times = {"ttft": o.ttft, "tpot": o.tpot, "e2el": o.finish - o.arrival}
        return all(times[name] <= ms / 1e3 for name, ms in limits.items())

    return [o.id not in run.failures and within(o) for o in run.outcomes]


def goodput(run: Replayed, limits: Mapping[str, float]) -> float:
    """Good requests per second, from the first arrival to the last end."""
    ends, starts = [o.finish for o in run.outcomes], [o.arrival for o in run.outcomes]
    return sum(good(run, limits)) / max(max(ends) - min(starts), TOLERANCE)


def rows(labels: Labels, run: Replayed) -> Frame:
    """A row per request: `labels`, the columns of `Outcome`, and `failure`, empty without one."""
    found: Frame = pd.DataFrame([asdict(labels) | asdict(o) for o in run.outcomes])
    return found.assign(failure=[run.failures.get(o.id, "") for o in run.outcomes], commit=commit())


def by_kind(run: Replayed) -> Frame:
    """A row per kind of request: how many, attainment by its rule of pace and by the other,
    latencies of those answered in ms, and how many failed."""
    frame: Frame = pd.DataFrame([asdict(o) for o in run.outcomes])
    failed = frame["id"].isin([*run.failures])
    found = frame.assign(failed=failed, ttft=1e3 * frame["ttft"], tpot=1e3 * frame["tpot"])
    groups: Any = found.groupby(found["kind"].replace("", "-"), sort=False)

    def share(column: str) -> Any:
        return groups[column].mean().map("{:.1%}".format)

    second = other(run.outcomes[0].rule)
    columns = {
        "requests": groups.size(), "attained": share("attained"),
        f"{second}'s rule": share(f"attained_{second}"), "failed": groups["failed"].sum(),
    }  # fmt: skip
    for name in ("ttft", "tpot"):
        for share_of, label in ((0.5, "P50"), (0.99, "P99")):
            times = groups[name].quantile(share_of)
            columns[f"{label} {name.upper()}"] = times.map("{:.0f} ms".format)
    return pd.DataFrame(columns).rename_axis("kind").reset_index()


def table(run: Replayed, limits: Mapping[str, float] | None = None) -> str:
    """The figures for a terminal, with the reasons of failures, and by kind where there are some;
    latencies are those of the requests answered. limits: of goodput, see `good`."""
    rule = run.outcomes[0].rule
    shares = attainment(run.outcomes, rule), attainment(run.outcomes, other(rule))
    by_rule = f"{shares[0]:.1%} by {RULES[rule]}, {shares[1]:.1%} by {RULES[other(rule)]}"
    seconds = {
        "TTFT, ms": [o.ttft for o in run.outcomes],
        "TPOT, ms": [o.tpot for o in run.outcomes if o.output > 1],
        "E2EL, ms": [o.finish - o.arrival for o in run.outcomes if o.ttft == o.ttft],  # not nan
    }
    times = pd.DataFrame({name: 1e3 * pd.Series(t, dtype=float) for name, t in seconds.items()})
    figures: Frame = times.describe([0.5, 0.99]).loc[["mean", "50%", "99%"]]
    figures = figures.rename({"50%": "P50", "99%": "P99"}).T
    lines = [f"attainment {by_rule}", figures.to_string(float_format="{:.1f}".format, na_rep="nan")]
    if limits:
        within = ", ".join(f"{name} {ms:g} ms" for name, ms in limits.items())
        lines.append(f"goodput {goodput(run, limits):.3f} requests/s within {within}")
    failed, reasons = len(run.failures), Counter(run.failures.values())
    late = f"the client was late by at most {1e3 * run.lag:.1f} ms"
    lines.append(f"answered {len(run.outcomes) - failed}, failed {failed}; {late}")
    lines += [f"  {n} failed: {why}" for why, n in reasons.most_common(3)]
    if len({o.kind for o in run.outcomes}) > 1:
        lines += ["", by_kind(run).to_string(index=False)]
    return "\n".join(lines)
