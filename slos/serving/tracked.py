"""A request inside a real engine, as its policy sees it: what `slos.live` is to the simulator. And the settings.

The engine's own requests are read by duck typing: nothing here imports it.
"""

from __future__ import annotations

import json
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from math import inf
from pathlib import Path
from typing import Any

from slos.core.attainment import TOLERANCE
from slos.core.roofline import Roofline
from slos.core.types import SLO, Load, Progress, require
from slos.records.report import write_whole
from slos.serving.calibration import as_json, of_json
from slos.serving.objectives import Objectives, Phase

NUMBER = (int, float)
KINDS = {"str": str, "bool": bool, "float": NUMBER, "float | None": (*NUMBER, type(None)), "Mapping[str, Any]": Mapping}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `--additional-config '{"slos": {...}}'` may say.

    policy, options: a name in `slos.policies` and its settings. profile: a shipped one's name or a JSON file to start
    from; without one vLLM schedules until a roofline is learned. learn: keep fitting it. save: file to keep it in.
    slowdown or ttft, tpot, value: objectives of a request that brings none. load: file for a router to read it from.
    """

    policy: str = "slos-serve"
    options: Mapping[str, Any] = field(default_factory=dict)
    profile: str = ""
    learn: bool = True
    caution: float = 0.75
    save: str = ""
    ttft: float | None = None
    slowdown: float | None = None
    tpot: float = 0.1
    value: float = 1.0
    load: str = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), str(f.type)
            ok = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
            require(ok, f"slos setting {f.name}", value, f"a {kind}")
        require(bool(self.profile) or self.learn, "slos setting learn", self.learn, "true without a profile")
        for name in ("save", "load"):
            folder = Path(getattr(self, name)).parent
            require(folder.is_dir(), f"slos setting {name}", getattr(self, name), "in a folder that exists", "make it")
        _ = self.objectives  # which says what is wrong with them

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        require(isinstance(config, Mapping), "slos settings", config, 'an object, such as {"policy": "slos-serve"}')
        known = [f.name for f in fields(cls)]
        for name in config:
            require(name in known, "slos setting", name, f"one of {', '.join(known)}")
        return cls(**config)

    @property
    def objectives(self) -> Objectives:
        slowdown = 5.0 if self.ttft is None and self.slowdown is None else self.slowdown
        return Objectives((Phase(SLO(self.tpot, self.ttft, slowdown)),), self.value)


@dataclass(slots=True, eq=False)
class Tracked:
    """A request of vLLM's, with what the policy sees of it. `phase_start`: output tokens before its present phase.

    claim: KV blocks that it will have held at its end, by what was known of its length when it came. turn: its place
    among those that run, if it was admitted, by admission; else among those that wait, as vLLM would serve them.
    """

    request: Any
    progress: Progress
    objectives: Objectives
    phase_start: int = 0
    seen: int = 0  # output tokens that phases and deadlines have been checked for
    claim: int = 0
    turn: int = 0
    admitted: bool = False

    @classmethod
    def of(cls, request: Any, objectives: Objectives, roofline: Roofline | None) -> Tracked:
        """Give a request that has just arrived its deadlines."""
        first, arrival = objectives.phases[0].slo, min(request.arrival_time, objectives.arrival or inf)
        due = arrival + first.first_token(roofline.time(request.num_tokens) if roofline else 0.0)
        progress = Progress(request.request_id, arrival, request.num_tokens, due, first.tpot, objectives.value)
        progress.later_tpot, progress.elsewhere = objectives.later_tpot(0), objectives.elsewhere
        return cls(request, progress, objectives)

    @property
    def done(self) -> bool:
        """Whether its last token is in flight already (asynchronous scheduling)."""
        flying = self.request.num_output_placeholders
        return flying > 0 and self.request.num_output_tokens + flying >= self.request.max_tokens

    def sync(self) -> Progress:
        """Bring the policy's record up to date; tokens in flight count as done, as vLLM itself counts them."""
        r, p = self.request, self.progress
        p.tokens = r.num_tokens + r.num_output_placeholders
        p.computed = r.num_computed_tokens
        p.generated = r.num_output_tokens + r.num_output_placeholders - self.phase_start
        p.elsewhere = p.elsewhere and not (r.num_computed_tokens or r.num_output_tokens)  # only before it starts
        return p

    def emitted(self, now: float) -> None:
        """Look at the tokens that have appeared: a first one that is late moves the schedule, a phase may be over."""
        r, p, phases = self.request, self.progress, self.objectives.phases
        if self.seen == 0 and r.num_output_tokens and now > p.t0 + TOLERANCE:
            p.t0 = now
        while p.stage + 1 < len(phases) and self.seen < r.num_output_tokens:
            token, self.seen = r.output_token_ids[self.seen], self.seen + 1
            generated = self.seen - self.phase_start
            if self.objectives.ends(p.stage, token, generated):
                tpot = phases[p.stage + 1].slo.tpot
                p.t0 += (generated - 1) * p.tpot + tpot
                p.stage, p.tpot, self.phase_start = p.stage + 1, tpot, self.seen
                p.later_tpot = self.objectives.later_tpot(p.stage)
        self.seen = r.num_output_tokens


class Lengths:
    """A `LengthPredictor`: exact where the client fixes the length, else the mean of what recent answers went on for.

    A request that must not stop early says its length by `max_tokens`; for others that is only a bound.
    """

    def __init__(self, tracked: Mapping[str, Tracked]) -> None:
        self.tracked = tracked
        self.finished: deque[int] = deque(maxlen=256)

    def remaining(self, progress: Progress) -> int:
        t = self.tracked[progress.id]
        done, most = t.phase_start + progress.generated, t.request.max_tokens
        params = t.request.sampling_params
        if not params.ignore_eos and params.min_tokens < most:
            longer = [n for n in self.finished if n > done]
            most = min(most, sum(longer) // len(longer)) if longer else min(most, 2 * done + 64)
        return max(1, most - done)

    def after_stage(self, progress: Progress) -> int:
        t = self.tracked[progress.id]
        phase = t.objectives.phases[progress.stage]
        left = self.remaining(progress)
        return left // 2 if phase.tokens is None else max(0, left - (phase.tokens - progress.generated))


@dataclass(frozen=True, slots=True)
class Report:
    """What an engine tells its router: its load, when that was (seconds since the epoch), and what it believes."""

    load: Load
    at: float
    roofline: Roofline | None = None

    def write(self, path: Path) -> None:
        """As a JSON file: all of it or nothing."""
        roofline = self.roofline and as_json(self.roofline)
        write_whole(path, json.dumps({"load": asdict(self.load), "at": self.at, "roofline": roofline}))

    @classmethod
    def parse(cls, text: str) -> Report:
        raw = json.loads(text)
        load = raw["load"] | {"decodes": tuple(map(tuple, raw["load"]["decodes"]))}
        return cls(Load(**load), raw["at"], raw["roofline"] and of_json(raw["roofline"]))


def load_of(
    tracked: Iterable[Tracked], running: int, step_end: float, free_blocks: int, total_blocks: int, block_size: int
) -> Load:
    """The load of an engine whose steps in flight, which count as done, end at `step_end`: as `Replica.load` has it."""
    tiers: Counter[float] = Counter()
    count = prefill = claimed = 0
    for t in tracked:
        p, count = t.sync(), count + 1
        if not p.best_effort:
            claimed += t.claim
            left = p.left if p.left > 1 or not p.computed else 0
            prefill += left
            tiers[p.tpot] += not left
    decodes = tuple(sorted((tpot, n) for tpot, n in tiers.items() if n))
    return Load(
        "", step_end, count - running, running, free_blocks, total_blocks, block_size, prefill, decodes, claimed
    )
