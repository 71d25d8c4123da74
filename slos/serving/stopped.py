"""Answers of a server that stops before they are whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any, Final, final

Send = Callable[[Any], Awaitable[None]]
OFTEN: Final = 0.25  # seconds between two looks at the server
GRACE: Final = 1.0  # seconds in which what the engine said last is still sent
ERROR: Final = {"message": "the server stopped", "type": "ServiceUnavailableError", "code": 503}


@final
class Answers:
    """The answers that one server gives just now, to be ended when it stops.

    On SIGTERM vLLM ends its engine and then waits until every connection is closed. An engine that
    was killed before it told of its aborted requests would leave them, and the server, open for
    ever.
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
            if task in self.given or not _ends(start):
                raise  # somebody else cancelled it, or a broken connection says it
            task.uncancel()
            await _end(start, send)
        finally:
            self.given.discard(task)

    async def _end_with(self, server: Any) -> None:
        while not server.should_exit:
            await asyncio.sleep(OFTEN)
        while True:
            await asyncio.sleep(GRACE)
            while self.given:
                self.given.pop().cancel()


def _ends(start: dict[str, Any]) -> bool:
    """Whether an answer that began so can end with an error: it did not begin, or is a stream."""
    kind = dict(start.get("headers", ())).get(b"content-type", b"")
    return not start or kind.startswith(b"text/event-stream")


async def _end(start: dict[str, Any], send: Send) -> None:
    text = json.dumps({"error": ERROR})
    if start:
        text = f"data: {text}\n\ndata: [DONE]\n\n"
    else:
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 503, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
