"""Promises over tool rounds: what is to come of a request behind its present round, as rows for the
look ahead.

Rounds to come are jobs behind all others. Links are float64 [jobs, 4], or [0, 4] where nobody has
such rounds: child (row of the next round, 0 for none), wait (s from the end of the round before
until this one arrives), first (s from then until its first token is due) and wake (when it arrives,
s: 0 for who is here, infinite if that depends on the round before).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from typing import cast

import numpy as np

from slos.core.roofline import Roofline
from slos.core.types import Foresight, LengthPredictor, Progress, Stage, View
from slos.planning.jobs import LATER, REMAINING, SWITCH

CHILD, WAIT, FIRST, WAKE = range(4)
NO_LINKS = np.zeros((0, 4))
GRACE = 1.0  # seconds that a round may come later than foreseen before it is given up


@dataclass(frozen=True, slots=True)
class Rounds:
    """What is to come of a request after its present round, known to who was promised all of
    them."""

    stage: int
    jobs: np.ndarray  # [rounds, 8]
    links: np.ndarray  # [rounds, 4], without children
    after: int  # tokens of stages that go on from the present one, and their smallest TPOT
    later: float


def rounds_of(p: Progress, lengths: LengthPredictor, roofline: Roofline) -> Rounds | None:
    """None if the present round is the last, or nobody knows of another."""
    groups: list[list[Stage]] = [[]]
    for stage in cast(Foresight, lengths).following(p) if hasattr(lengths, "following") else ():
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


@dataclass(slots=True)
class Promised:
    """Rounds to come by request, those of candidates as first seen, when those arrive whose request
    is away, and when the last step ends (s)."""

    rounds: dict[str, Rounds] = field(default_factory=dict)
    asked: dict[str, Rounds] = field(default_factory=dict)
    away: dict[str, float] = field(default_factory=dict)
    end: float = 0.0

    def add(
        self, requests: Sequence[Progress], lengths: LengthPredictor, roofline: Roofline
    ) -> None:
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
                # it went to another replica, or will not come back
                if view.now > self.away[id] + GRACE:
                    del self.rounds[id], self.away[id]
            elif p.best_effort or p.stage != rounds.stage:
                del self.rounds[id]
                if self.away.pop(id, None) is not None:
                    back.add(id)
                if not p.best_effort:
                    self.add([p], lengths, roofline)
        return back

    def chain(
        self, jobs: np.ndarray, guaranteed: Sequence[Progress], candidates: Sequence[Progress],
        lengths: LengthPredictor, roofline: Roofline,
    ) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
        """Jobs, those of `guaranteed` and then of `candidates`, with all rounds to come behind
        them; and links."""
        known = enumerate(guaranteed) if self.rounds else ()
        found = [(i, p, rounds) for i, p in known if (rounds := self.rounds.get(p.id))]
        asked, self.asked = self.asked, {}
        for i, p in enumerate(candidates, len(guaranteed)):
            rounds = asked.get(p.id)
            if (rounds and rounds.stage == p.stage) or (rounds := rounds_of(p, lengths, roofline)):
                self.asked[p.id] = rounds
                found.append((i, p, rounds))
        chains = [*(self.rounds[id] for id in self.away), *(rounds for *_, rounds in found)]
        if not chains:
            return jobs, NO_LINKS
        links = np.concatenate((np.zeros((len(jobs), 4)), *(rounds.links for rounds in chains)))
        ends = len(jobs) + np.cumsum([len(rounds.links) for rounds in chains])
        links[len(jobs) :, CHILD] = np.arange(len(jobs) + 1, len(links) + 1)
        links[ends - 1, CHILD] = 0
        starts = np.array([len(jobs), *ends[:-1]])
        links[starts[: len(self.away)], WAKE] = list(self.away.values())
        for (i, p, rounds), start in zip(found, starts[len(self.away) :].tolist(), strict=True):
            links[i, CHILD] = start
            jobs[i, REMAINING] += rounds.after - lengths.after_stage(p)
            jobs[i, SWITCH], jobs[i, LATER] = rounds.after, rounds.later
        return np.concatenate((jobs, *(rounds.jobs for rounds in chains))), links
