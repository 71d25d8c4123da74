"""Answers of a server that stops: each ends, with an error where it was not whole."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from slos.serving import answers
from slos.serving.answers import STOPPED, Answers

STREAM = {
    "type": "http.response.start", "status": 200,
    "headers": [(b"content-type", b"text/event-stream; charset=utf-8")],
}  # fmt: skip
PIECE = {"type": "http.response.body", "body": b'data: {"choices": []}\n\n', "more_body": True}


def answer(monkeypatch: pytest.MonkeyPatch, *first: Any, whole: bool = False) -> list[Any]:
    """What is sent where the app says `first` and then waits, and the server stops meanwhile."""
    monkeypatch.setattr(answers, "OFTEN", 0.01)
    monkeypatch.setattr(answers, "GRACE", 0.01)
    server = SimpleNamespace(should_exit=False)
    scope = {"type": "http", "app": SimpleNamespace(state=SimpleNamespace(server=server))}
    messages: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in first:
            await send(message)
        if not whole:
            await asyncio.Event().wait()

    async def send(message: Any) -> None:
        messages.append(message)

    async def run() -> None:
        answers = Answers()
        call = asyncio.create_task(answers.give(app, scope, None, send))
        await asyncio.sleep(0.05)
        assert call.done() == whole and bool(answers.given) != whole
        server.should_exit = True
        await asyncio.wait_for(call, 60.0)
        assert not answers.given

    asyncio.run(run())
    return messages


def test_a_stream_ends_with_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    *before, last = answer(monkeypatch, STREAM, PIECE)
    assert before == [STREAM, PIECE] and not last.get("more_body")
    error, done = last["body"].decode().split("\n\n")[:2]
    assert json.loads(error.removeprefix("data: "))["error"]["message"] == STOPPED
    assert done == "data: [DONE]"


def test_who_has_no_answer_yet_gets_503(monkeypatch: pytest.MonkeyPatch) -> None:
    start, body = answer(monkeypatch)
    assert start["status"] == 503 and json.loads(body["body"])["error"]["message"] == STOPPED


def test_a_body_that_broke_off_does_not_look_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]}
    with pytest.raises(asyncio.CancelledError):
        answer(monkeypatch, start)


def test_a_whole_answer_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    last = PIECE | {"more_body": False}
    assert answer(monkeypatch, STREAM, last, whole=True) == [STREAM, last]


def test_what_somebody_else_cancels_stays_cancelled() -> None:
    async def run() -> None:
        server = SimpleNamespace(should_exit=False)
        scope = {"type": "http", "app": SimpleNamespace(state=SimpleNamespace(server=server))}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.Event().wait()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        call = asyncio.create_task(Answers().give(app, scope, None, send))
        await asyncio.sleep(0)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    asyncio.run(run())


def test_the_life_of_a_server_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes through the same middleware, and is still to be told of the end."""
    monkeypatch.setattr(answers, "OFTEN", 0.01)
    monkeypatch.setattr(answers, "GRACE", 0.01)

    async def run() -> None:
        server = SimpleNamespace(should_exit=True)
        scope = {"type": "lifespan", "app": SimpleNamespace(state=SimpleNamespace(server=server))}
        told = asyncio.Event()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await told.wait()

        async def send(message: Any) -> None:
            raise AssertionError(message)

        life = asyncio.create_task(Answers().give(app, scope, None, send))
        await asyncio.sleep(0.1)
        assert not life.done()
        told.set()
        await life

    asyncio.run(run())
