"""Unknown lengths: what each predictor carries of the oracle's load, and what is late of
what was admitted. All simulated.

`slos.policies.predictors` has the predictors. The baselines need none; they are shown for
comparison.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from slos.core.attainment import Outcome
from slos.core.pace import CLIENT, PAPER, TOLERANCE
from slos.core.types import Progress
from slos.evaluation import capacity_search, stats
from slos.evaluation.capacity_search import Search, outcomes_at, row_of
from slos.evaluation.grids import BEST_ROUTER, check_cases, crossed, settings_of, swept
from slos.evaluation.plots import DASHED, colors, dots, finish, panels, seeds_said, unique
from slos.evaluation.sizes import Size, of_size
from slos.evaluation.stats import best_settings, mean_of, over, rows_of, select, strongest
from slos.files import Frame
from slos.policies import OURS
from slos.records.claims import Spread
from slos.sim.replica import Replica, Step
from slos.studies.sensitivity import SETTINGS
from workloads import SCENARIOS

ORACLE, LEARNED, BASELINE = "oracle", "quantile", "best baseline"
PREDICTORS = (
    ORACLE, LEARNED, "quantile:0.1", "quantile:0.5", "quantile:0.9", "mean", "max-tokens",
    "noisy:0.25", "noisy:0.5", "noisy:1",
)  # fmt: skip
FEW = (ORACLE, LEARNED, "quantile:0.9")  # where a run is long
AIM, LATE = dict.fromkeys(SCENARIOS, 0.95) | {"reasoning": 0.9, "tool-calling": 0.9}, 0.01
"""What `LEARNED` is to carry of the oracle's load, and how much of the admitted may be late."""


_CODING, _CHATS = ("coding",), ("chatbot", "summarization")
SIZES = {
    "smoke": ((Size(40, 1, 0.5, scenarios=_CODING), (*FEW, "noisy:0.5"), 1, PAPER),),
    "quick": ((Size(300, 1, 0.08, scenarios=_CHATS), (*FEW, "mean", "noisy:0.5"), 1, PAPER),),
    "full": (
        (Size(400, 3, 0.03), PREDICTORS, 1, PAPER),
        (Size(400, 3, 0.03), FEW, 1, CLIENT),
        (Size(400, 3, 0.03), FEW, 4, PAPER),
    ),
}
"""Of each part of a run its size, the predictors, the replicas, and the rule of pace. Each replica
learns alone, from as many requests where there are four."""
WHERE = ["replicas", "rule"]


class Before(NamedTuple):
    """A request as it was before a step."""

    progress: Progress
    stage: int
    said: int
    t0: float
    tpot: float


@dataclass(slots=True)
class Promises:
    """An observer of a simulation: in which stage a request was last promised to be served in time,
    and in which it was given up; of each the output tokens, and those that came after their
    deadlines by the rule of pace in force. The steps of a leap are taken as equal."""

    promised: dict[str, int] = field(default_factory=dict)
    given_up: dict[str, int] = field(default_factory=dict)
    said: Counter[str] = field(default_factory=Counter)
    late: Counter[str] = field(default_factory=Counter)
    _before: dict[str, dict[str, Before]] = field(default_factory=dict)

    def __call__(self, replica: Replica, step: Step, done: tuple[Outcome, ...]) -> None:
        each = (step.end - step.start) / step.count
        for id, b in self._before.get(replica.name, {}).items():
            p, ended = b.progress, b.progress.stage > b.stage
            n = step.count * (id in replica.flight.tokens) if ended else p.generated - b.said
            first = step.end - (n - 1) * each
            self.said[id] += n
            self.late[id] += sum(
                first + i * each > b.t0 + (b.said + i) * b.tpot + TOLERANCE for i in range(n)
            )
        self.promised |= {p.id: p.stage for p in replica.running if not p.best_effort}
        for p in (*replica.waiting, *replica.running):
            if p.best_effort:
                self.given_up.setdefault(p.id, p.stage)
        self._before[replica.name] = {
            id: Before(p, p.stage, p.generated, p.t0, p.tpot)
            for id, live in replica.live.items()
            for p in [live.progress]
        }

    def broken(self, outcomes: Sequence[Outcome]) -> tuple[float, float]:
        """Of those admitted the share of requests that missed an objective, or were given up; and
        of output tokens that were late. One that is turned away when it comes back from a tool was
        served as promised until then."""
        kept = [o for o in outcomes if o.id in self.promised]
        tokens, late = (sum(each[o.id] for o in kept) for each in (self.said, self.late))
        missed = sum(not o.attained and self._was_promised(o) for o in kept)
        return missed / max(1, len(kept)), late / max(1, tokens)

    def _was_promised(self, o: Outcome) -> bool:
        stage = self.promised[o.id]
        return not o.declined or self.given_up.get(o.id, stage) == stage


@dataclass(frozen=True, slots=True)
class Carried:
    """A capacity in requests per second and GPU, 0 where no load meets the target; and at that load
    the shares of requests declined, at once or later, and of the admitted what is late: requests,
    those given up included, and output tokens."""

    scenario: str
    system: str
    setting: str
    predictor: str
    profile: str
    replicas: int
    rule: str
    seed: int
    rate: float = 0.0
    declined: float = 0.0
    late_requests: float = 0.0
    late_tokens: float = 0.0
    source: str = ""
    status: str = "simulated"


def carried(case: Search) -> list[Carried]:
    best = capacity_search.carried(case)
    if not best:
        return [row_of(Carried, case)]
    promises = Promises()
    outcomes, source = outcomes_at(case, best.rate * case.gpus, promises)
    requests, tokens = promises.broken(outcomes)
    late = {"late_requests": requests, "late_tokens": tokens}
    return [row_of(Carried, case, rate=best.rate, declined=best.declined, source=source, **late)]


def cases(size: str, scenarios: Sequence[str] = (), profile: str = "") -> list[Search]:
    """Ours with each predictor, and the baselines with a few settings."""
    baselines, grid = settings_of(SETTINGS, SETTINGS), []
    for s, predictors, n, rule in of_size(size, SIZES):
        names = scenarios or s.scenarios
        check_cases(names, profile=profile)
        s = replace(s, num_requests=n * s.num_requests)
        where = {"profile": profile, "replicas": n, "rule": rule}
        routers = (BEST_ROUTER, "least-loaded") if n > 1 else ("", "")
        ours = crossed(s, [(OURS, "")], names, router=routers[0], **where)
        grid += [replace(case, predictor=name) for case in ours for name in predictors]
        grid += crossed(s, baselines, names, router=routers[1], **where)
    return grid


def run(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Rows of `Carried`, from results/<size>/unknown_lengths_runs.csv where they lie already."""
    return swept(size, "unknown_lengths_runs", carried, cases, Carried, workers)


def shares(rows: Frame) -> Frame:
    """Of the oracle's capacity what ours has with each predictor, and the best of the baselines:
    ratio with its interval over seeds; with the shares that are late, and the aims."""
    columns = ["scenario", *WHERE, "system", "predictor", "setting", "profile"]
    counted = ["declined", "late_requests", "late_tokens"]
    late = rows.groupby(columns, as_index=False)[counted]
    found = best_settings(rows, columns).merge(late.mean(), on=columns)
    ours = found[found["system"] == OURS]
    rival = strongest(found[found["system"] != OURS], "scenario", *WHERE)
    keep = ["scenario", *WHERE, "predictor", "system", "rate", "capacity", *counted]
    both = pd.concat([ours, rival.assign(predictor=BASELINE)])[keep]
    table = over(both, select(ours, predictor=ORACLE)[["scenario", *WHERE, "rate"]])
    aim = [AIM[r.scenario] if r.predictor == LEARNED else None for r in rows_of(table)]
    return table.assign(aim=pd.Series(aim, table.index, dtype=float))


def save(size: str, table: Frame, rows: Frame) -> Frame:
    """Write the shares to unknown_lengths.csv of a size, and means of `LEARNED` to headlines."""
    text = table.drop(columns="each").assign(status="simulated")
    stats.write(size, "unknown_lengths", text, float_format="%.4g")
    numbers: dict[str, Spread] = {}
    for n in unique(table["replicas"]):
        part = select(table, predictor=LEARNED, replicas=n, rule=PAPER)
        numbers["lengths_learned" + f"_{n}_replicas" * (n > 1)] = mean_of(part)
    found = rows[rows["rate"] > 0]
    return stats.save(size, found, "15_unknown_lengths", numbers)


def aims(table: Frame) -> Frame:
    """What `LEARNED` comes to, compared with the aims, per scenario, replicas and rule."""
    mine = select(table, predictor=LEARNED)
    reached = (mine["ratio"] >= mine["aim"]) & (mine["late_requests"] <= LATE)
    columns = ["scenario", *WHERE, "ratio", "low", "high", "aim", "late_requests"]
    return mine[columns].assign(late_aim=LATE, reached=reached).reset_index(drop=True)


def grid(table: Frame, value: str) -> Frame:
    """`value` to be read: a row per predictor, a column per scenario, replicas and rule."""
    return table.pivot_table(value, "predictor", [*WHERE, "scenario"], sort=False)


def chart(table: Frame, source: str) -> Figure:
    """Share of the oracle's capacity by scenario and predictor, and that of the best baseline: a
    panel for those that learn, and one for an oracle that is off by a factor, by replicas and rule.
    """
    drawn, known = {}, [p for p in unique(table["predictor"]) if p not in (ORACLE, BASELINE)]
    palette = colors(known) | {BASELINE: "black"}
    places = unique(zip(table["replicas"], table["rule"], strict=True))
    for (n, rule), noisy in product(places, (False, True)):
        here = select(table, replicas=n, rule=rule)
        tried = set(here["predictor"])
        shown = [p for p in known if p in tried and p.startswith("noisy") == noisy]
        if shown:
            what = f"{n} replica{'s' * (n > 1)}, " + ("an oracle that errs" if noisy else "learned")
            what += ", by the clients' rule" * (rule == CLIENT)
            drawn[what] = here, {p: palette[p] for p in (BASELINE, *shown)}
    figure, axes = panels([*drawn], (9, 2.5), (0, 0.4), "capacity over the oracle's", 1)
    for axis, (here, shown) in zip(axes, drawn.values(), strict=True):
        dots(axis, here, "predictor", shown)
        for i, scenario in enumerate(unique(here["scenario"])):
            axis.plot([i - 0.45, i + 0.45], [AIM[scenario]] * 2, **DASHED)
        axis.set_ylim(0, 1.05 * max(1.0, here["high"].max()))
        axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    said = f"{source}; dashed: what {LEARNED} aims at; {seeds_said(table)}"
    return finish(figure, said)
