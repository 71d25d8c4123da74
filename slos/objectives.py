"""Objectives on the wire: what a client writes into `vllm_xargs`, or into `SamplingParams.extra_args`.

`slo_ttft` (seconds) or `slo_slowdown` (times the zero-load time of the prompt), `slo_tpot` (seconds per token),
`slo_value`, and for an answer of several paces `slo_stages`, a JSON string such as
`[{"tpot": 0.05, "until": 151649}, {"tpot": 0.1}]`: a stage ends with the token id `until`, or after `tokens` tokens.
What stands before several servers may add `slo_arrival` (seconds since the epoch: when the request first came) and
`slo_elsewhere` (1: rather than as best effort, end it with `finish_reason` "abort", since another server is asked).
Over HTTP, headers such as `x-slo-ttft: 2` say the same, where the server runs `CheckObjectives`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, final

from slos.types import SLO, Stage, require

PREFIX = "slo_"
FIELDS = ("slo_ttft", "slo_slowdown", "slo_tpot", "slo_value", "slo_stages", "slo_arrival", "slo_elsewhere")
ENDS = ("until", "tokens")


@dataclass(frozen=True, slots=True)
class Phase:
    """A part of an answer with its own pace; it ends with token id `until` or after `tokens`, the last with neither."""

    slo: SLO
    until: int | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Objectives:
    """What one request asks for: its phases, and what serving it in time is worth; what a router says of it."""

    phases: tuple[Phase, ...]
    value: float = 1.0
    arrival: float | None = None
    elsewhere: bool = False

    def __post_init__(self) -> None:
        require(len(self.phases) > 0, "phases", self.phases, "at least one")
        require(self.value > 0, "slo_value", self.value, "positive")

    def ends(self, phase: int, token: int, generated: int) -> bool:
        """Whether `phase` is over with `token`, its `generated`-th; the last one never is."""
        p = self.phases[phase]
        return phase + 1 < len(self.phases) and (token == p.until or (p.tokens is not None and generated >= p.tokens))


def parse(xargs: Mapping[str, Any] | None, default: Objectives) -> Objectives:
    """The objectives in `xargs`; what is not said there is taken from `default`.

    Raises ValueError naming the field, its value and the bound; fields of others, without the prefix, are not looked
    at.
    """
    given = {name: value for name, value in (xargs or {}).items() if name.startswith(PREFIX)}
    if not given:
        return default
    for name in given:
        require(name in FIELDS, "field", name, f"one of {', '.join(FIELDS)}")
    phases, first = default.phases, default.phases[0].slo
    start: dict[str, float | None] = {"ttft": first.ttft, "slowdown": first.slowdown}
    if given.keys() & {"slo_ttft", "slo_slowdown"}:
        start = {name: _number(given, PREFIX + name) for name in start}
    if "slo_stages" in given:
        require("slo_tpot" not in given, "slo_tpot", given.get("slo_tpot"), "left out beside slo_stages")
        phases = _stages(given["slo_stages"])
    elif (tpot := _number(given, "slo_tpot")) is not None:
        phases = (Phase(_slo("slo_", tpot=tpot)),)
    slo = _slo("slo_", tpot=phases[0].slo.tpot, **start)
    value = _number(given, "slo_value")
    arrival, elsewhere = _number(given, "slo_arrival"), bool(_number(given, "slo_elsewhere"))
    phases = (replace(phases[0], slo=slo), *phases[1:])
    return Objectives(phases, default.value if value is None else value, arrival, elsewhere)


def xargs(stages: Sequence[Stage], value: float = 1.0) -> dict[str, Any]:
    """What `parse` reads back, for stages that follow each other without a wait or a prompt."""
    require(len(stages) > 0 and all(s.goes_on for s in stages[1:]), "stages", stages, "one, then such that just go on")
    first = stages[0].slo
    # Without an objective of its own the first token is due at the pace; left out, it would take the server's default.
    ttft = first.first_token(0.0) if first.slowdown is None else None
    fields: dict[str, Any] = {"slo_ttft": ttft, "slo_slowdown": first.slowdown, "slo_value": value}
    if len(stages) == 1:
        fields["slo_tpot"] = first.tpot
    else:
        parts = [{"tpot": s.slo.tpot, "tokens": s.output} for s in stages[:-1]] + [{"tpot": stages[-1].slo.tpot}]
        fields["slo_stages"] = json.dumps(parts)
    return {name: field for name, field in fields.items() if field is not None}


def _number(fields: Mapping[str, Any], name: str, prefix: str = "") -> float | None:
    if name not in fields:
        return None
    value = fields[name]
    try:
        number = float("nan") if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    require(isfinite(number), f"{prefix}{name}", value, "a finite number")
    return number


def _slo(prefix: str, **fields: Any) -> SLO:
    try:
        return SLO(**fields)
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from None


def _stages(text: Any) -> tuple[Phase, ...]:
    try:
        raw = json.loads(text) if isinstance(text, str) else text
    except (ValueError, RecursionError) as error:
        raise ValueError(f"slo_stages = {text[:200]!r} must be JSON; {error}") from None
    require(
        isinstance(raw, list) and len(raw) > 0 and all(isinstance(r, dict) for r in raw),
        "slo_stages", text, "a JSON list of at least one object",
    )  # fmt: skip
    phases = []
    for i, fields in enumerate(raw):
        name = f"slo_stages[{i}]"
        require(fields.keys() <= {"tpot", *ENDS}, name, fields, "made of tpot, until, tokens")
        require("tpot" in fields, name, fields, "with a tpot", 'write {"tpot": SECONDS, ...}')
        for end in ENDS:
            whole = fields.get(end, 1)
            ok = isinstance(whole, int) and not isinstance(whole, bool) and whole >= (end == "tokens")
            require(ok, f"{name}.{end}", whole, "a whole number, at least " + ("1" if end == "tokens" else "0"))
        ended = bool(fields.keys() & set(ENDS))
        require(ended or i + 1 == len(raw), name, fields, "ended by until or tokens, as all but the last are")
        require(not ended or i + 1 < len(raw), name, fields, "without until and tokens, as the last is")
        tpot = _number(fields, "tpot", f"{name}.")
        phases.append(Phase(_slo(f"{name}.", tpot=tpot), fields.get("until"), fields.get("tokens")))
    return tuple(phases)


@final
class CheckObjectives:
    """ASGI middleware for `--middleware`: refuses malformed objectives with HTTP 400, and reads `x-slo-*` headers.

    The engine behind it would serve such a request with the default objectives instead.
    """

    DEFAULT = Objectives((Phase(SLO(tpot=1.0, ttft=1.0)),))

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].startswith("/v1/"):
            return await self.app(scope, receive, send)
        messages = [message := await receive()]
        while message["type"] == "http.request" and message.get("more_body"):
            messages.append(message := await receive())
        body = b"".join(m.get("body", b"") for m in messages)
        headers = {k.decode(): v.decode() for k, v in scope["headers"] if k.startswith(b"x-slo-")}
        if headers or PREFIX.encode() in body:
            try:
                body = self.checked(body, headers)
            except ValueError as error:
                return await self.refuse(send, str(error))
        length = (b"content-length", str(len(body)).encode())
        scope = scope | {"headers": [h for h in scope["headers"] if h[0] != b"content-length"] + [length]}
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        await self.app(scope, replay, send)

    def checked(self, body: bytes, headers: Mapping[str, str]) -> bytes:
        """The body, with the headers' objectives among its own. Raises ValueError for malformed ones."""
        try:
            whole = json.loads(body)
        except ValueError:
            return body  # the server says so in its own words
        if not isinstance(whole, dict) or not isinstance(whole.get("vllm_xargs") or {}, dict):
            return body
        given = (whole.get("vllm_xargs") or {}) | {
            k.removeprefix("x-").replace("-", "_"): v for k, v in headers.items()
        }
        parse(given, self.DEFAULT)
        return json.dumps(whole | {"vllm_xargs": given}).encode() if headers else body

    @staticmethod
    async def refuse(send: Any, message: str) -> None:
        error = {"message": message, "type": "BadRequestError", "param": "vllm_xargs", "code": 400}
        body = json.dumps({"error": error}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 400, "headers": headers})
        await send({"type": "http.response.body", "body": body})
