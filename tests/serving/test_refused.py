"""A request that cannot be in time: HTTP 429 before any of it is answered, where the engine let it
go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from slos.serving.answers import unserved
from slos.serving.calls import FROM, secret
from slos.serving.middleware import CheckObjectives

STREAM, JSON = b"text/event-stream; charset=utf-8", b"application/json"


def event(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


ROLE = event(delta={"role": "assistant", "content": ""}, finish_reason=None)
GONE = event(delta={}, finish_reason="abort")
WORD = event(delta={"content": "x"}, finish_reason=None)
DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices": [], "usage": {"completion_tokens": 0}}\n\n'
WHOLE = json.dumps({"choices": [{"text": "", "finish_reason": "abort"}]}).encode()
PART = json.dumps(json.loads(WHOLE) | {"usage": {"completion_tokens": 3}}).encode()
GOOD = json.dumps({"choices": [{"text": "x", "finish_reason": "length"}]}).encode()


def answered(
    kind: bytes, parts: list[bytes], status: int = 200, shown: str = "", elsewhere: int = 0
) -> list[Any]:
    """What a client is sent of an answer in these parts, or a router that shows the secret."""
    xargs = {"slo_ttft": 2.5} | ({"slo_elsewhere": elsewhere} if shown else {})
    body, sent = json.dumps({"prompt": "x", "vllm_xargs": xargs}).encode(), []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        head = {"type": "http.response.start", "status": status}
        await send(head | {"headers": [(b"content-type", kind)]})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    raw = [(FROM.encode(), shown.encode())] if shown else []
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": raw}
    asyncio.run(CheckObjectives(server)(scope, receive, send))
    return sent


@pytest.mark.parametrize(
    ("kind", "parts"),
    [(STREAM, [ROLE, GONE, DONE]), (STREAM, [GONE[:20], GONE[20:] + DONE]), (STREAM, [DONE]),
     (STREAM, [USAGE, DONE]), (STREAM, [ROLE, DONE]), (STREAM, [ROLE + GONE[:9], GONE[9:]]),
     (JSON, [WHOLE]), (JSON, [WHOLE[:9], WHOLE[9:]])],
)  # fmt: skip
def test_who_is_let_go_gets_429_and_when_to_come_again(kind: bytes, parts: list[bytes]) -> None:
    start, body = answered(kind, parts)
    assert start["status"] == 429 and (b"retry-after", b"3") in start["headers"]
    said = json.loads(body["body"])["error"]["message"]
    assert "in time" in said and "pauses or stops" in said, "it ends them in the same way"


@pytest.mark.parametrize(
    ("kind", "parts"),
    [(STREAM, [ROLE, WORD, GONE, DONE]), (STREAM, [b'data: {"error": {}}\n\n', DONE]),
     (JSON, [GOOD]), (JSON, [PART]), (JSON, [b"[1]"]), (JSON, [b"no JSON"]),
     (b"audio/wav", [b"data: \xff"]), (STREAM, [b"data: no JSON\n\n"]), (STREAM, [])],
)  # fmt: skip
def test_any_other_answer_is_sent_on_as_it_is(kind: bytes, parts: list[bytes]) -> None:
    start, *bodies = answered(kind, parts)
    assert start["status"] == 200
    assert b"".join(b["body"] for b in bodies) == b"".join(parts)


@pytest.mark.parametrize(
    "first",
    [b'event: response.created\ndata: {"type": "response.created", "response": {}}\n\n',
     b'event: message_start\ndata: {"type": "message_start", "message": {"usage": {}}}\n\n',
     b'data: {"type": "message-start", "delta": {"message": {"role": "assistant"}}}\n\n', WORD],
)  # fmt: skip
def test_a_stream_of_any_api_is_not_held_back(first: bytes) -> None:
    """Of OpenAI's Responses, Anthropic's Messages, Cohere's chat, and a token."""
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", STREAM)]}
    assert unserved([start]) is None
    assert unserved([start, {"body": first, "more_body": True}]) is False
    assert answered(STREAM, [first, DONE])[0]["status"] == 200


def test_bytes_are_sent_on_as_they_come() -> None:
    kind = [(b"content-type", b"application/octet-stream")]
    start = {"type": "http.response.start", "status": 200, "headers": kind}
    assert unserved([start]) is False


@pytest.mark.parametrize("elsewhere", [0, 1])
def test_a_router_is_told_in_the_same_way_and_an_error_is_left_alone(elsewhere: int) -> None:
    told = answered(JSON, [WHOLE], shown=secret(), elsewhere=elsewhere)[0]
    assert told["status"] == 429 and (b"retry-after", b"3") in told["headers"]
    assert answered(JSON, [WHOLE], status=500)[0]["status"] == 500
