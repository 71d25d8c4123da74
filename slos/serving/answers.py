"""Answers that end otherwise than they began: a refusal in place of one that the engine left
unserved, and an error at the end of one that the server does not live to finish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

from starlette.responses import JSONResponse

Send = Callable[[Any], Awaitable[None]]
OFTEN: Final = 0.25  # seconds between two looks at the server
GRACE: Final = 1.0  # seconds in which what the engine said last is still sent
STOPPED = "the server stopped"
EVENTS: Final = b"text/event-stream"


def refusal(message: str, status: int = 400, kind: str = "BadRequestError") -> JSONResponse:
    """An error as the OpenAI API writes it."""
    error = {"message": message, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status)


def unavailable(message: str) -> JSONResponse:
    return refusal(message, 503, "ServiceUnavailableError")


def broken(message: str) -> bytes:
    """The end of a stream of events that is not whole."""
    return b"data: " + bytes(unavailable(message).body) + b"\n\ndata: [DONE]\n\n"


def replacing(
    send: Send, refused: Callable[[list[Any]], bool | None], instead: Callable[[], Awaitable[None]]
) -> Send:
    """Sends an ASGI answer on, but does what is to be done `instead` where it is `refused`, which
    its messages so far tell, or not yet."""
    held: list[Any] = []
    verdict: bool | None = None

    async def sent(message: Any) -> None:
        nonlocal verdict
        held.append(message)
        if verdict is None and (verdict := refused(held)):
            await instead()
        while verdict is False and held:
            await send(held.pop(0))

    return sent


def unserved(messages: list[Any]) -> bool | None:
    """Whether the engine left a request unserved whose answer begins so; None while that is
    open."""
    start, *parts = messages
    if start.get("status") != 200 or not _kind(start).startswith((EVENTS, b"application/json")):
        return False
    text = b"".join(m.get("body", b"") for m in parts)
    whole = bool(parts) and not parts[-1].get("more_body")
    found = None
    try:
        if _streams(start):
            found = _declined(text.rpartition(b"\n\n")[0])
        elif whole:
            found = _declined(b"data:" + text.replace(b"\n", b" "))
    except (ValueError, AttributeError, TypeError):  # another kind of answer
        return False
    return False if found is None and whole else found


def _declined(text: bytes) -> bool | None:
    """Whether a stream that begins so is a refusal, None while that is open.

    A refusal has an end by abort without a token, or, as vLLM leaves out events without one, no
    event but those about the answer. Streams of other APIs, whose events have no choices, are none:
    they are not held back.
    """
    for line in text.split(b"\n"):
        if not line.startswith(b"data:"):
            continue
        done = line[5:].strip() == b"[DONE]"
        event = {} if done else json.loads(line[5:])
        choices = event.get("choices") or []
        deltas = [c.get("delta") or {} for c in choices]
        ends = {c.get("finish_reason") for c in choices}
        if done or "abort" in ends:
            return not (event.get("usage") or {}).get("completion_tokens")
        only_roles = all("role" in delta and not delta.get("content") for delta in deltas)
        if "choices" not in event or not only_roles or ends - {None}:
            return False
    return None


@final
class Answers:
    """The answers that one server gives just now, to be ended when it stops.

    On SIGTERM vLLM ends its engine and then waits until every connection is closed. An engine that
    was killed before it reported its aborted requests would leave them, and the server, open.
    """

    def __init__(self) -> None:
        self.given: set[asyncio.Task[Any]] = set()
        self.watch: asyncio.Task[None] | None = None

    async def give(self, app: Any, scope: Any, receive: Any, send: Send) -> None:
        """Calls the ASGI app; where the server stops first, its answer ends with an error."""
        server = getattr(getattr(scope.get("app"), "state", None), "server", None)
        task = asyncio.current_task()
        if scope["type"] != "http" or server is None or task is None:
            return await app(scope, receive, send)
        if self.watch is None:
            self.watch = asyncio.create_task(self._end_with(server))
        start: dict[str, Any] = {}

        async def sent(message: Any) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            await send(message)

        self.given.add(task)
        try:
            await app(scope, receive, sent)
        except asyncio.CancelledError:
            if task in self.given or (start and not _streams(start)):
                raise  # cancelled from elsewhere, or a broken connection tells the client
            task.uncancel()
            if start:
                await send({"type": "http.response.body", "body": broken(STOPPED)})
            else:
                await unavailable(STOPPED)(scope, receive, send)
        finally:
            self.given.discard(task)

    async def _end_with(self, server: Any) -> None:
        while not server.should_exit:
            await asyncio.sleep(OFTEN)
        while True:
            await asyncio.sleep(GRACE)
            while self.given:
                self.given.pop().cancel()


def _streams(start: Any) -> bool:
    """Whether an answer that starts so is a stream of events, which may end with an error."""
    return _kind(start).startswith(EVENTS)


def _kind(start: Any) -> bytes:
    """The content type of an answer."""
    kinds = (v for k, v in start.get("headers", ()) if k.lower() == b"content-type")
    return next(kinds, b"")
