"""One completion from a server of the OpenAI API, and when each token of it was received."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from slos.core.types import require

LINE = 1 << 24  # most bytes of an event: the first may have all token ids of the prompt


@dataclass(frozen=True, slots=True)
class Server:
    """A model on a server; max_context in tokens, where the server tells."""

    url: str
    model: str
    max_context: int | None = None


def headers() -> dict[str, str]:
    """Of every call: with the server's key, where the environment has one."""
    key = os.environ.get("OPENAI_API_KEY")
    more = {"Authorization": f"Bearer {key}"} if key else {}
    return {"Content-Type": "application/json"} | more


async def find(url: str, model: str | None = None) -> Server:
    """The server's model of that name, or its first; ValueError without, OSError with no server."""
    bound = "an address such as http://127.0.0.1:8000; a server at a socket (--uds) is not reached"
    require(url.startswith(("http://", "https://")), "url", url, bound)
    url = url.rstrip("/").removesuffix("/v1")
    try:
        how: Any = {"headers": headers(), "timeout": aiohttp.ClientTimeout(30)}
        async with aiohttp.request("GET", f"{url}/v1/models", **how) as response:
            response.raise_for_status()
            cards = {card["id"]: card for card in (await response.json())["data"]}
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError, TypeError) as error:
        told = str(error) or type(error).__name__
        cure = "start a server there, or give another url, or the key in OPENAI_API_KEY, or a "
        cure += "certificate of one's own in SSL_CERT_FILE"
        raise OSError(f"{url}/v1/models lists no models ({told}); {cure}") from None
    name = next(iter(cards), "") if model is None else model
    require(name in cards, "model", name, f"one that {url} serves: {', '.join(cards) or 'none'}")
    return Server(url, name, cards[name].get("max_model_len"))


@dataclass(slots=True, eq=False)
class Answer:
    """The stream of a call for `asked` tokens: when each came, in seconds, and its id if given."""

    asked: int
    times: list[float] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    total: int | None = None
    finish: str | None = None

    def add(self, chunk: Any, now: float) -> None:
        """Take in one event. Raises ValueError for an error and for no chunk of a completion."""
        try:
            if chunk.get("error"):
                raise ValueError(f"the server says: {_message(chunk)}")
            if usage := chunk.get("usage"):
                self.total = int(usage["completion_tokens"])
            for choice in chunk["choices"]:
                ids = choice.get("token_ids")
                self.ids += ids or []
                self.finish = choice.get("finish_reason") or self.finish
                if usage and self.total is not None:  # drafts bring several at once
                    new = self.total - len(self.times)
                else:  # text may be empty: half a character, a special token
                    new = 1 if ids is None else len(ids)
                self.times += [now] * min(new, self.asked + 2 - len(self.times))
        except (AttributeError, KeyError, OverflowError, TypeError) as error:
            raise ValueError(f"no chunk of a completion: {str(chunk)[:200]} ({error!r})") from None

    def end(self) -> list[float]:
        """The time of each token asked for. Raises ValueError if fewer or more came.

        Where only the end tells, by usage or the reason to stop, that chunks had several tokens,
        they had equally many; and one chunk more than tokens is a last one that only brings the
        reason.
        """
        seen, total = len(self.times), self.total
        if total is None:
            total = self.asked if self.finish == "length" else seen
        if total != self.asked or not 0 < seen <= self.asked + 1:
            came = f"{max(total, seen)} tokens came of {self.asked}"
            raise ValueError(f"{came}; finish reason {self.finish!r}")
        return [self.times[i * seen // total] for i in range(total)]


async def call(
    session: aiohttp.ClientSession, server: Server, body: bytes, asked: int,
    now: Callable[[], float],
) -> tuple[list[float], list[int]]:  # fmt: skip
    """The time of each of the `asked` tokens on the clock `now`, and their ids where the server
    tells them.

    Raises ValueError with the reason for whatever the server refuses, breaks off or should not have
    sent.
    """
    answer = Answer(asked)
    try:
        how: Any = {"data": body, "headers": headers(), "read_bufsize": LINE}
        async with session.post(f"{server.url}/v1/completions", **how) as response:
            if response.status != 200:
                said = _message(await response.text("utf-8", "replace"))
                raise ValueError(f"HTTP {response.status}: {said}")
            async for line in response.content:
                if line.startswith(b"data:") and line[5:].strip() != b"[DONE]":
                    answer.add(json.loads(line[5:]), now())
        return answer.end(), answer.ids
    except (aiohttp.ClientError, OSError, ValueError, RecursionError) as error:
        if isinstance(error, TimeoutError):
            reason = f"no whole answer in {session.timeout.total:g} s"
        else:
            reason = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        reason += f" (after {len(answer.times)} of {asked} tokens)" if answer.times else ""
        raise ValueError(reason) from error


def _message(body: Any) -> str:
    """What an error says: OpenAI's {"error": {"message": ...}}, the inner object, or anything."""
    with suppress(ValueError):
        body = json.loads(body) if isinstance(body, str) else body
    error = body.get("error", body) if isinstance(body, dict) else body
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
