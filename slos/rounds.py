"""Rounds to come of requests that were promised all of them: when a tool answers, and what that asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import cast

import numpy as np

from slos.jobs import CHILD, LATER, NO_LINKS, REMAINING, SWITCH, WAIT, WAKE
from slos.roofline import Roofline
from slos.types import Foresight, LengthPredictor, Progress, Stage, View

GRACE = 1.0  # seconds that a round may come later than foreseen before it is given up


@dataclass(frozen=True, slots=True)
class Rounds:
    """What is to come of a request after its present round: rows as above, and of the present one its last columns."""

    stage: int
    jobs: np.ndarray  # [rounds, 8]
    links: np.ndarray  # [rounds, 4], without children
    after: int  # tokens of stages that go on from the present one, and their smallest TPOT
    later: float


def rounds_of(p: Progress, lengths: LengthPredictor, roofline: Roofline) -> Rounds | None:
    """None if the present round is the last, or nobody knows of another."""
    stages = cast(Foresight, lengths).following(p) if hasattr(lengths, "following") else ()
    if not stages:
        return None
    groups: list[list[Stage]] = [[]]
    for stage in stages:
        if not stage.goes_on:
            groups.append([])
        groups[-1].append(stage)
    own, *following = groups
    if not following:
        return None
    after, later = sum(s.output for s in own), min((s.slo.tpot for s in own), default=inf)
    context = p.tokens + lengths.remaining(p) - lengths.after_stage(p) + after
    jobs, links = [], []
    for first, *rest in following:
        left = first.prompt + (context if first.wait else 1)
        switch = sum(s.output for s in rest)
        remaining, tpots = first.output + switch, [s.slo.tpot for s in rest]
        jobs.append((left, 0, first.slo.tpot, remaining, 0, 0, switch, min(tpots, default=inf)))
        links.append((0, first.wait, first.slo.first_token(roofline.time(left)), inf))
        context += first.prompt + remaining
    return Rounds(p.stage, np.array(jobs, np.float64), np.array(links), after, later)


def chain(jobs: np.ndarray, rounds: Sequence[tuple[int, Rounds, float]]) -> tuple[np.ndarray, np.ndarray]:
    """Jobs with the rounds to come behind them, and links. rounds: row of its present round, or when the next arrives.

    A row below 0 says that the request is away, and the time then counts.
    """
    if not rounds:
        return jobs, NO_LINKS
    rows, known, wakes = zip(*rounds, strict=True)
    links = np.concatenate((np.zeros((len(jobs), 4)), *(r.links for r in known)))
    ends = len(jobs) + np.array([len(r.links) for r in known]).cumsum()
    starts = [len(jobs), *ends[:-1].tolist()]
    links[len(jobs) :, CHILD] = np.arange(len(jobs) + 1, len(links) + 1)
    links[ends - 1, CHILD] = 0
    for row, start, wake in zip(rows, starts, wakes, strict=True):
        if row < 0:
            links[start, WAKE] = wake
        else:
            links[row, CHILD] = start
    return np.concatenate((jobs, *(r.jobs for r in known))), links


@dataclass(slots=True)
class Promised:
    """Rounds to come by request, those of candidates as first seen, when those arrive whose request is away, and when
    the last step ends (s)."""

    rounds: dict[str, Rounds] = field(default_factory=dict)
    asked: dict[str, Rounds] = field(default_factory=dict)
    away: dict[str, float] = field(default_factory=dict)
    end: float = 0.0

    def add(self, requests: Sequence[Progress], lengths: LengthPredictor, roofline: Roofline) -> None:
        for p in requests:
            if rounds := rounds_of(p, lengths, roofline):
                self.rounds[p.id] = rounds

    def follow(self, view: View, lengths: LengthPredictor, roofline: Roofline) -> set[str]:
        """See who has left, who has lost its guarantee, and who has come back: the ids of these."""
        here, back = {p.id: p for p in (*view.running, *view.waiting)}, set()
        for id, rounds in list(self.rounds.items()):
            p = here.get(id)
            if p is None:
                self.away.setdefault(id, self.end + float(rounds.links[0, WAIT]))
                if view.now > self.away[id] + GRACE:  # it went to another replica, or will not come back
                    del self.rounds[id], self.away[id]
            elif p.best_effort or p.stage != rounds.stage:
                del self.rounds[id]
                if self.away.pop(id, None) is not None:
                    back.add(id)
                if not p.best_effort:
                    self.add([p], lengths, roofline)
        return back

    def chain(
        self,
        jobs: np.ndarray,
        guaranteed: Sequence[Progress],
        candidates: Sequence[Progress],
        lengths: LengthPredictor,
        roofline: Roofline,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Jobs, those of `guaranteed` and then of `candidates`, with all rounds to come behind them; and links."""
        known = enumerate(guaranteed) if self.rounds else ()
        found = [(i, p, rounds) for i, p in known if (rounds := self.rounds.get(p.id))]
        asked, self.asked = self.asked, {}
        for i, p in enumerate(candidates, len(guaranteed)):
            rounds = asked.get(p.id)
            if (rounds and rounds.stage == p.stage) or (rounds := rounds_of(p, lengths, roofline)):
                self.asked[p.id] = rounds
                found.append((i, p, rounds))
        for i, p, rounds in found:
            jobs[i, REMAINING] += rounds.after - lengths.after_stage(p)
            jobs[i, SWITCH], jobs[i, LATER] = rounds.after, rounds.later
        away = [(-1, self.rounds[id], wake) for id, wake in self.away.items()]
        return chain(jobs, away + [(i, rounds, 0.0) for i, _, rounds in found])
