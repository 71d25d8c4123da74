"""A call on its way through replicas: which to ask next, what to do where one declines or dies.
Hosted by `slos.fleet.gateway`.

A replica that declines a request before it starts passes it on, with its arrival kept; the last of
the route serves it as best effort, or refuses it with HTTP 429 (`--slo-reject`). What a lost
replica had not begun to answer goes to another one; an answer that breaks off ends with an error.
So every call gets one answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import aiohttp

from slos.core.types import require
from slos.policies.routers import LeastLoaded, Load, make_router
from slos.serving.answers import broken, unavailable
from slos.serving.calls import FROM
from slos.serving.load_report import Report
from slos.serving.middleware import NEAR, fields_of
from slos.serving.objectives import MOST, parse
from slos.serving.settings import Settings
from slos.serving.tracked import Tracked

logger = logging.getLogger(__name__)
GUESS = 64  # the most tokens that are expected of an answer that may stop early
LETTERS = 4  # of a token, about
LOSSES = 3  # replicas that a request may lose until it is given up: it may be what kills them
HOP = 0.02  # seconds on the way to an engine: what was sent so shortly before a report is not in it
TAKEN, PASSED = b"taken", b"passed"  # what a replica says first, and instead of an answer
HEADERS = ("authorization", "content-type", "x-request-id")  # passed to vLLM
RETURNED = ("content-type", "retry-after")  # of vLLM's answer
JSON = {"content-type": "application/json"}
COMPLETIONS = ("/v1/completions", "/v1/chat/completions")


@dataclass(slots=True, eq=False)
class Asked:
    """A call on its way. route: the replicas to ask, the next one first; among: all that there
    were; lost: those that it must not be sent to again; replica: the one that was chosen last, at
    `chosen` (seconds since the epoch), which works on it until it is `over`.

    stays: the first replica keeps it. fields: of the body, where it asks for a completion.
    num_tokens: of the prompt, max_tokens: of the answer, as far as known here; names as in vLLM,
    which `Tracked` reads.
    """

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    fields: dict[str, Any]
    stays: bool
    num_tokens: int
    max_tokens: int
    request_id: str = field(default_factory=lambda: os.urandom(8).hex())
    arrival_time: float = field(default_factory=time.time)
    route: list[str] = field(default_factory=list)
    among: tuple[str, ...] = ()
    lost: set[str] = field(default_factory=set)
    hops: int = 0
    replica: str = ""
    chosen: float = 0.0
    over: bool = False

    @classmethod
    def of(cls, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Asked:
        """Raises ValueError for malformed objectives."""
        completes = method == "POST" and path.split("?")[0] in COMPLETIONS
        given = fields_of(body, headers) if completes else {}
        prompt = given.get("prompt", given.get("messages", ""))
        ids = isinstance(prompt, list) and all(isinstance(token, int) for token in prompt)
        single = ids or isinstance(prompt, str) or "messages" in given
        alone = given.get("n") in (None, 1) and not given.get("use_beam_search")
        most = given.get("max_completion_tokens") or given.get("max_tokens")
        most = most if isinstance(most, int) and most > 0 else 256
        # an engine refuses more than its context; a router's sums would overflow
        most = min(most, int(MOST) if given.get("ignore_eos") else GUESS)
        kept = {k: v for k, v in headers.items() if k in HEADERS or NEAR.fullmatch(k)}
        one = bool(given) and single and alone
        return cls(method, path, kept, body, given, not one, tokens_of(prompt), most)

    def sent(self) -> bytes:
        """The body for the replica that comes next."""
        if not self.fields:
            return self.body
        mine = {"slo_arrival": self.arrival_time, "slo_elsewhere": int(len(self.route) > 1)}
        return json.dumps(self.fields | {"vllm_xargs": self.fields["vllm_xargs"] | mine}).encode()


def tokens_of(prompt: Any) -> int:
    """Of token ids, and a guess of texts or messages, whose images and sounds are left out; at
    least 1."""
    parts, count = [prompt], 0.0
    while parts:
        part = parts.pop()
        if isinstance(part, dict):
            part = part.get("content") or part.get("text")
        if isinstance(part, list):
            parts += part
        elif isinstance(part, str):
            count += len(part) / LETTERS
        else:
            count += isinstance(part, int)
    return max(1, int(count))


class Fleet:
    """Chooses replicas: a router over their reports and what was sent to them since."""

    def __init__(self, router: str, options: Mapping[str, Any], default: Mapping[str, Any]) -> None:
        self.default = Settings(**default).objectives
        lengths: Any = SimpleNamespace(remaining=lambda progress: self.routed.max_tokens)
        self.make = partial(make_router, router, lengths=lengths, **options)
        self.router: Any = None
        self.fallback, self.failed = LeastLoaded(), False
        self.routed: Any = None  # the call for which the router is asked
        # Requests in flight. Each says itself when it is over: Ray tells a router of no request
        # that is cancelled between its choice of a replica and the sending.
        self.open: set[Asked] = set()

    def choose(self, asked: Asked, reports: Mapping[str, Report | None], now: float) -> str | None:
        """The replica to ask, of those that live; None if it has to wait for one."""
        self.open = {other for other in self.open if not other.over} - {asked}
        reports = {name: report for name, report in reports.items() if name not in asked.lost}
        asked.among = tuple(reports)
        while asked.route and asked.route[0] not in reports:
            asked.route.pop(0)
        if not asked.route and reports:
            asked.route = self.rank(asked, reports, now)[: 1 if asked.stays else None]
        if not asked.route:
            return None
        asked.replica, asked.chosen = asked.route[0], now
        self.open.add(asked)
        return asked.replica

    def at(self, name: str) -> list[Asked]:
        """The requests in flight that were sent to a replica."""
        return [asked for asked in self.open if asked.replica == name]

    def rank(self, asked: Asked, reports: Mapping[str, Report | None], now: float) -> list[str]:
        roofline = next((r.roofline for r in reports.values() if r and r.roofline), None)
        if roofline is None or None in reports.values():  # until the engines know themselves
            return [min(reports, key=lambda name: len(self.at(name)))]
        objectives = parse(asked.fields.get("vllm_xargs"), self.default)
        progress = Tracked.of(asked, objectives, roofline).progress
        loads = [self.load(name, report, now) for name, report in reports.items() if report]
        try:
            if self.router is None:
                self.router = self.make(roofline)
            elif getattr(self.router, "roofline", roofline) != roofline:
                self.router = replace(self.router, roofline=roofline)
            self.routed = asked
            route = list(self.router.rank(progress, loads))
            require(bool(route) and reports.keys() >= set(route), "route", route, "of replicas")
            return route
        except Exception:  # a request would wait for its router without end
            if not self.failed:
                logger.exception("the router failed: such requests go to the least loaded")
            self.failed = True
            return self.fallback.rank(progress, loads)

    def load(self, name: str, report: Report, now: float) -> Load:
        load = replace(report.load, replica=name, step_end=max(now, report.load.step_end))
        since = [asked for asked in self.at(name) if asked.chosen > report.at - HOP]
        tokens = sum(r.num_tokens for r in since)
        claimed = sum(-(-(r.num_tokens + r.max_tokens) // load.block_size) for r in since)
        return replace(
            load, waiting=load.waiting + len(since), prefill_tokens=load.prefill_tokens + tokens,
            claimed_blocks=load.claimed_blocks + claimed,
        )  # fmt: skip


async def answered(
    session: aiohttp.ClientSession, url: str, asked: Asked, secret: str = ""
) -> AsyncIterator[Any]:
    """An engine's answer: status and headers, then bytes, of a stream whole events; or
    `PASSED`. secret: by which the engine knows that objectives come from its router."""
    headers = asked.headers | ({FROM: secret} if asked.fields and secret else {})
    how: Any = {"data": asked.sent(), "headers": headers}
    async with session.request(asked.method, url + asked.path, **how) as response:
        if response.status == HTTPStatus.TOO_MANY_REQUESTS and len(asked.route) > 1:
            yield PASSED
            return
        told = {name: response.headers[name] for name in RETURNED if name in response.headers}
        head, rest = (response.status, JSON | told), b""
        if not head[1]["content-type"].startswith("text/event-stream"):
            whole = await response.read()
            yield head
            yield whole
            return
        async for part in response.content.iter_any():
            events, end, rest = (rest + part).rpartition(b"\n\n")
            if events:
                if head:
                    yield head
                head = None
                yield events + end
        if rest.strip() or head:
            raise ValueError(f"the engine's answer ends in the middle of an event: {rest[-100:]!r}")


async def relay(
    asked: Asked, ask: Callable[[Asked], AsyncIterator[Any]], patience: float
) -> AsyncIterator[Any]:
    """The one answer that a call gets: status and headers, then bytes."""
    begun = False
    while True:
        parts, asked.over = ask(asked), False
        try:
            async with asyncio.timeout(patience):
                await anext(parts)  # `TAKEN`
            async for part in parts:
                if isinstance(part, bytes) and part == PASSED:
                    asked.route.pop(0)
                    asked.hops += 1
                    break
                begun = True
                yield part
            else:
                return
        except Exception as error:
            cause = getattr(error, "cause", None) or error  # of an error in another process
            why = f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0][:200]}"
            if begun:
                yield broken(f"the replica was lost in the middle of this answer ({why})")
                return
            if isinstance(error, TimeoutError) or len(asked.lost) + 1 >= LOSSES:
                yield 503, JSON
                yield unavailable(f"no replica could answer; {len(asked.lost)} lost ({why})").body
                return
            asked.lost.update(asked.route[:1])
            asked.route.clear()
        finally:
            asked.over = True
            await parts.aclose()  # type: ignore[attr-defined]


async def of_all(
    path: str, ask: Callable[[Asked], AsyncIterator[Any]], patience: float
) -> dict[str, str]:
    """What each replica answers at `path`, by its name."""

    async def asked_of(name: str = "") -> tuple[Asked, str]:
        asked = Asked.of("GET", path, {}, b"")
        asked.route = [name] if name else []
        parts = relay(asked, ask, patience)
        status, _ = await anext(parts)
        text = b"".join([part async for part in parts])
        return asked, text.decode() if status == 200 else ""

    first = await asked_of()  # its routing tells which others there are
    others = set(first[0].among) - set(first[0].route)
    found = [first, *await asyncio.gather(*map(asked_of, others))]
    return {"".join(asked.route): text for asked, text in found}


async def until(closing: asyncio.Event, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """An answer that ends with an error when the server closes."""
    closed, begun, why = asyncio.ensure_future(closing.wait()), False, "the server shuts down"
    part: asyncio.Future[Any] = closed
    try:
        while True:
            part = asyncio.ensure_future(anext(parts, None))  # type: ignore[arg-type]
            await asyncio.wait((part, closed), return_when=asyncio.FIRST_COMPLETED)
            if not part.done():
                break
            if (found := part.result()) is None:
                return
            begun = True
            yield found
        if not begun:
            yield 503, JSON
        yield broken(why) if begun else unavailable(why).body
    finally:
        for future in (closed, part):
            future.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await part
        await parts.aclose()  # type: ignore[attr-defined]
