"""The answer to a request that left the engine unserved, as it could not be in time."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

Send = Callable[[Any], Awaitable[None]]


def declined(text: bytes) -> bool | None:
    """Whether a stream that begins so is a refusal, None while that is open.

    A refusal has an end by abort, or, as vLLM leaves out events without a token, no event but those
    about the answer.
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
            return True
        only_roles = all("role" in delta and not delta.get("content") for delta in deltas)
        if "error" in event or not only_roles or ends - {None}:
            return False
    return None


def refusing(send: Send, instead: Callable[[], Awaitable[None]]) -> Send:
    """Sends an ASGI answer on, but does what is to be done `instead` where it is none."""
    held: list[Any] = []
    decided = refused = False

    async def sent(message: Any) -> None:
        nonlocal decided, refused
        if decided:
            if not refused:
                await send(message)
            return
        held.append(message)
        verdict = _verdict(held)
        if verdict is None:
            return
        decided, refused = True, verdict
        if refused:
            return await instead()
        for part in held:
            await send(part)

    return sent


def _verdict(messages: list[Any]) -> bool | None:
    """Whether an answer that begins so is none; None while that is open."""
    start, *parts = messages
    if start.get("status") != 200:
        return False
    kinds = [v for k, v in start.get("headers", ()) if k.lower() == b"content-type"]
    text = b"".join(m.get("body", b"") for m in parts)
    more = not parts or parts[-1].get("more_body")
    try:
        if kinds and kinds[0].startswith(b"text/event-stream"):
            found = declined(text.rpartition(b"\n\n")[0])
        else:
            found = None if more else declined(b"data:" + text.replace(b"\n", b" "))
    except (ValueError, AttributeError, TypeError):  # another kind of answer
        return False
    return found if found is not None or more else False
