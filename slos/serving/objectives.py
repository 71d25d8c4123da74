"""Objectives on the wire: what a client writes into `vllm_xargs`, or into
`SamplingParams.extra_args`.

`slo_ttft` (seconds) or `slo_slowdown` (times the zero-load time of the prompt), `slo_tpot` (seconds
per token), `slo_e2e` (seconds until the last token; said alone, it is the only objective),
`slo_rule` (by which the pace is counted: "client" or "paper", see `slos.core.pace`), `slo_value`,
and for an answer of several paces `slo_stages`, a JSON string such as
`[{"tpot": 0.05, "until": 151649}, {"tpot": 0.1}]`: a stage ends with the token id `until`, or after
`tokens` tokens. Two fields help to foresee an answer's length: `slo_class`, a name that it has in
common with its like, and `slo_output`, the tokens that the client expects. The router before some
servers, and over HTTP it alone, may add `slo_arrival` (seconds since the epoch: when the request
first came) and `slo_elsewhere` (1: rather than as best effort, end it with `finish_reason` "abort",
since another server is asked). Over HTTP, headers such as `x-slo-ttft: 2` say the same, where the
server runs `CheckObjectives`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite
from typing import Any, cast

from slos.core.pace import RULES
from slos.core.types import SLO, Stage, require

PREFIX = "slo_"
ROUTERS = ("slo_arrival", "slo_elsewhere")  # fields that are a router's to say
TEXTS = ("slo_rule", "slo_stages", "slo_class")
NUMBERS = ("slo_ttft", "slo_slowdown", "slo_tpot", "slo_e2e", "slo_value", "slo_output")
FIELDS = (*NUMBERS, *TEXTS, *ROUTERS)
LEAST, MOST = 1e-4, 1e6  # of objectives in seconds; with others a planner's sums would overflow
STAGES = 64  # the most of one request
NAME = 64  # the most characters of a class
CLASSES = 50  # that a server tells apart: clients name them, and may name any number
REST = "other"  # the class of those that come later


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an answer with its pace, ended by a token id or after some, unless the last."""

    slo: SLO
    until: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Objectives:
    """What one request asks for: its phases, and what serving it in time is worth; what a router
    says of it; and its class, and the output tokens that its client expects, 0 if it does not
    say. e2e: seconds from its arrival until its last token."""

    phases: tuple[Phase, ...]
    value: float = 1.0
    arrival: float | None = None
    elsewhere: bool = False
    kind: str = ""
    output: int = 0
    e2e: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.value <= MOST, "slo_value", self.value, f"positive, at most {MOST:g}")

    def later(self, phase: int) -> tuple[float, int]:
        """The smallest TPOT after `phase`, infinite without later ones; and how many they are."""
        paces = [p.slo.tpot for p in self.phases[phase + 1 :]]
        return min(paces, default=inf), len(paces)

    def ends(self, phase: int, token: int, generated: int) -> bool:
        """Whether `phase` is over with `token`, its `generated`-th; the last one never is."""
        p = self.phases[phase]
        over = token == p.until or (p.tokens is not None and generated >= p.tokens)
        return over and phase + 1 < len(self.phases)


class Classes:
    """The first `CLASSES` that clients name, as what is learned of each is kept."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def of(self, name: str) -> str:
        if len(self.names) < CLASSES:
            self.names.add(name)
        return name if name in self.names else REST


def parse(xargs: Mapping[str, Any] | None, default: Objectives) -> Objectives:
    """The objectives in `xargs`; what is not said there is taken from `default`.

    Raises ValueError naming the field, its value and the bound; fields without the prefix are not
    looked at.
    """
    given = {name: value for name, value in (xargs or {}).items() if name.startswith(PREFIX)}
    if not given:
        return default
    for name in given:
        require(name in FIELDS, "field", name, f"one of {', '.join(FIELDS)}")
    numbers = {name: _number(name, value) for name, value in given.items() if name not in TEXTS}
    phases, first, e2e = default.phases, default.phases[0].slo, numbers.get("slo_e2e", default.e2e)
    if "slo_e2e" in given:
        within(PREFIX, "e2e", e2e)
        with_stages = "slo_stages" in given
        require(not with_stages, "slo_stages", given.get("slo_stages"), "left out with slo_e2e")
        first = SLO(cast(float, e2e), ttft=e2e)  # what is not said is free
        phases = (Phase(first),)
    ttft, slowdown = first.ttft, first.slowdown
    if given.keys() & {"slo_ttft", "slo_slowdown"}:
        ttft, slowdown = numbers.get("slo_ttft"), numbers.get("slo_slowdown")
    if "slo_stages" in given:
        e2e = None  # theirs are other objectives than the default's
        pace = given.get("slo_tpot")
        require("slo_tpot" not in given, "slo_tpot", pace, "left out with slo_stages")
        phases = _stages(given["slo_stages"])
    elif "slo_tpot" in given:
        phases = (Phase(bounded(PREFIX, numbers["slo_tpot"])),)
    slo = bounded(PREFIX, phases[0].slo.tpot, ttft, slowdown)
    rule = given.get("slo_rule", default.phases[0].slo.rule)
    require(rule in tuple(RULES), "slo_rule", rule, f"one of {', '.join(RULES)}")
    phases = (replace(phases[0], slo=slo), *phases[1:])
    phases = tuple(replace(p, slo=replace(p.slo, rule=rule)) for p in phases)
    value, elsewhere = numbers.get("slo_value", default.value), bool(numbers.get("slo_elsewhere"))
    kind, output = given.get("slo_class", ""), numbers.get("slo_output", 0)
    # others, such as a carriage return, no text of metrics could be read with
    named = isinstance(kind, str) and len(kind) <= NAME and kind.isprintable()
    bound = f"a name of at most {NAME} characters that can be printed"
    require(named, "slo_class", kind, bound)
    whole = output == int(output) and 0 <= output <= MOST
    require(whole, "slo_output", given.get("slo_output"), "a whole number of tokens, at least 0")
    return Objectives(phases, value, numbers.get("slo_arrival"), elsewhere, kind, int(output), e2e)


def xargs(stages: Sequence[Stage], value: float = 1.0, e2e: float | None = None) -> dict[str, Any]:
    """What `parse` reads back, for stages that follow each other without a wait or a prompt; e2e,
    in seconds, for a single one."""
    alike = len(stages) > 0 and all(s.goes_on for s in stages[1:])
    require(alike, "stages", stages, "one, then such that just go on")
    first = stages[0].slo
    # Without an objective of its own the first token is due at the pace; left out, it would take
    # the server's default.
    ttft = first.first_token(0.0) if first.slowdown is None else None
    fields: dict[str, Any] = {"slo_ttft": ttft, "slo_slowdown": first.slowdown, "slo_value": value}
    fields |= {"slo_rule": first.rule, "slo_e2e": e2e}
    if len(stages) == 1:
        fields["slo_tpot"] = first.tpot
    else:
        parts = [{"tpot": s.slo.tpot, "tokens": s.output} for s in stages]
        del parts[-1]["tokens"]
        fields["slo_stages"] = json.dumps(parts)
    return {name: field for name, field in fields.items() if field is not None}


def _number(name: str, value: Any) -> float:
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    require(isfinite(number), name, value, "a finite number")
    return number


def bounded(
    prefix: str, tpot: float, ttft: float | None = None, slowdown: float | None = None
) -> SLO:
    """Objectives as a client may have them. Raises ValueError that names `prefix` and the field."""
    within(prefix, "tpot", tpot)
    within(prefix, "ttft", ttft)
    good, times = slowdown is None or 1 <= slowdown <= MOST, "at least 1 (times zero load)"
    require(good, f"{prefix}slowdown", slowdown, f"{times}, at most {MOST:g}")
    try:
        return SLO(tpot, ttft, slowdown)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def within(prefix: str, name: str, seconds: float | None) -> None:
    """Raises ValueError for seconds that no objective may have."""
    bound = f"positive, {LEAST:g} to {MOST:g} seconds"
    require(seconds is None or LEAST <= seconds <= MOST, f"{prefix}{name}", seconds, bound)


def _stages(text: Any) -> tuple[Phase, ...]:
    try:
        raw = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"slo_stages = {text[:200]!r} must be JSON; {error}") from None
    objects = isinstance(raw, list) and all(isinstance(fields, dict) for fields in raw)
    require(objects and len(raw) > 0, "slo_stages", text, "a JSON list of at least one object")
    require(len(raw) <= STAGES, "slo_stages", text, f"at most {STAGES} stages")
    end = len(raw) - 1
    return tuple(_phase(f"slo_stages[{i}]", each, i == end) for i, each in enumerate(raw))


def _phase(name: str, fields: dict[str, Any], last: bool) -> Phase:
    known = fields.keys() <= {"tpot", "until", "tokens"}
    require(known, name, fields, "made of tpot, until, tokens")
    require("tpot" in fields, name, fields, "with a tpot", 'write {"tpot": SECONDS, ...}')
    for end, least in (("until", 0), ("tokens", 1)):
        whole = fields.get(end, 1)
        good = type(whole) is int and least <= whole <= MOST
        require(good, f"{name}.{end}", whole, f"a whole number, {least} to {MOST:g}")
    open_ended = "without until and tokens, as the last is"
    bound = open_ended if last else "ended by until or tokens, as all but the last are"
    require(last == (len(fields) == 1), name, fields, bound)
    slo = bounded(f"{name}.", _number(f"{name}.tpot", fields["tpot"]))
    return Phase(slo, fields.get("until"), fields.get("tokens"))
