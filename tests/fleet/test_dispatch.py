"""Whom a call is sent to, and that it gets one answer whatever its replicas do: over HTTP, without
engines or Ray."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web

from slos.fleet.dispatch import (
    JSON,
    TAKEN,
    Asked,
    Fleet,
    answered,
    of_all,
    relay,
    tokens_of,
    until,
)
from slos.hardware.profiles import profile, scaled
from slos.policies.routers import Load
from slos.serving.load_report import Report

ROOFLINE = profile("opt-6.7b-a100").roofline
DEFAULT = {"ttft": 1.0, "slowdown": None, "tpot": 0.1}
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def asked(
    path: str = "/v1/completions", headers: dict[str, str] | None = None, **fields: Any
) -> Asked:
    usual = {"prompt": [7] * 100, "max_tokens": 20, "ignore_eos": True, "stream": True}
    return Asked.of(
        "POST", path, {"x-other": "1"} | (headers or {}), json.dumps(usual | fields).encode()
    )


def report(name: str, at: float = 100.0, **load: Any) -> Report:
    return Report(replace(Load(name, at, 0, 0, 900, 1000), **load), at, ROOFLINE)


def event(text: str = "a", finish: str | None = None) -> bytes:
    return (
        b"data: "
        + json.dumps({"choices": [{"text": text, "finish_reason": finish}]}).encode()
        + b"\n\n"
    )


DONE = b"data: [DONE]\n\n"
WHOLE = [event("one"), event("two"), event("", "length"), DONE]


class Upstream:
    """A server that plays an engine: it sends `parts`, then ends properly, breaks off, or stays
    silent."""

    def __init__(
        self,
        *parts: bytes,
        end: str = "properly",
        kind: str = "text/event-stream",
        status: int = 200,
        **headers: str,
    ) -> None:
        self.parts, self.end, self.status = parts, end, status
        self.headers = {"Content-Type": kind} | headers
        self.seen: list[dict[str, Any]] = []
        self.left = asyncio.Event()

    async def __call__(self, request: web.Request) -> web.StreamResponse:
        head = {"path": request.path_qs, "key": request.headers.get("authorization")}
        self.seen.append(head | json.loads(await request.read() or "{}"))
        response = web.StreamResponse(status=self.status, headers=self.headers)
        await response.prepare(request)
        for part in self.parts:
            await response.write(part)
        try:
            if self.end == "breaks":
                await asyncio.sleep(0.02)
                assert request.transport
                request.transport.abort()
            elif self.end == "hangs":
                await asyncio.sleep(600)
        except asyncio.CancelledError:
            self.left.set()
            raise
        return response


class Fleeting:
    """Upstreams by name, and the calls made to them; like Ray's own, with reports of idle
    engines."""

    def __init__(self, patience: float = 5.0, **upstreams: Upstream) -> None:
        self.upstreams, self.patience = upstreams, patience
        self.fleet = Fleet("sequential", {"hops": 3}, DEFAULT)
        self.calls: list[str] = []

    async def __aenter__(self) -> Fleeting:
        self.session, self.urls, self.runners = aiohttp.ClientSession(), {}, []
        for name, upstream in self.upstreams.items():
            server = web.Server(cast(Any, upstream), handler_cancellation=True)
            runner = web.ServerRunner(server, shutdown_timeout=0.1)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self.urls[name] = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore
            self.runners.append(runner)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.session.close()
        for runner in self.runners:
            await runner.cleanup()

    async def ask(self, call: Asked) -> AsyncIterator[Any]:
        name = self.fleet.choose(call, {name: report(name) for name in self.urls}, 100.0)
        if name is None:
            await asyncio.sleep(600)
        assert name is not None
        self.calls.append(name)
        yield TAKEN
        async for part in answered(self.session, self.urls[name], call):
            yield part

    async def serve(self, call: Asked) -> tuple[int, dict[str, str], bytes]:
        parts = [part async for part in relay(call, self.ask, self.patience)]
        status, headers = parts[0]
        return status, headers, b"".join(parts[1:])


def played(
    call: Asked, patience: float = 5.0, **upstreams: Upstream
) -> tuple[int, bytes, list[str]]:
    async def play() -> tuple[int, bytes, list[str]]:
        async with Fleeting(patience, **upstreams) as fleet:
            status, headers, text = await fleet.serve(call)
            assert headers["content-type"].split(";")[0] == (
                "text/event-stream" if text.startswith(b"data:") else "application/json"
            )
            return status, text, fleet.calls

    return asyncio.run(play())


def test_an_answer_is_passed_on_as_it_is() -> None:
    a = Upstream(*WHOLE)
    call = asked(
        "/v1/completions?x=1",
        {"x-slo-ttft": "2", "authorization": "Bearer k"},
        vllm_xargs={"other": 1},
    )
    assert played(call, a=a) == (200, b"".join(WHOLE), ["a"])
    [seen] = a.seen
    assert seen["path"] == "/v1/completions?x=1" and seen["key"] == "Bearer k"
    assert seen["vllm_xargs"] == {
        "other": 1, "slo_ttft": "2", "slo_arrival": call.arrival_time, "slo_elsewhere": 0,
    }  # fmt: skip


TOO_LATE = b'{"error": {"code": 429}}'


def declines(**headers: str) -> Upstream:
    """One that cannot be in time: `slos.serving.middleware` answers so where the engine lets go."""
    return Upstream(TOO_LATE, kind="application/json", status=429, **headers)


@pytest.mark.parametrize("stream", [False, True])
def test_who_is_declined_goes_to_the_next_with_its_arrival_kept(stream: bool) -> None:
    a, b, c = declines(), declines(), Upstream(*WHOLE)
    call = asked(stream=stream)
    assert played(call, a=a, b=b, c=c) == (200, b"".join(WHOLE), ["a", "b", "c"])
    sent = [u.seen[0]["vllm_xargs"] for u in (a, b, c)]
    assert [x["slo_elsewhere"] for x in sent] == [1, 1, 0], "the last one keeps it"
    assert {x["slo_arrival"] for x in sent} == {call.arrival_time}


def test_an_answer_in_one_piece_is_passed_on_as_it_is() -> None:
    whole = json.dumps({"choices": [{"text": "all", "finish_reason": "stop"}]}, indent=1).encode()
    a, b = declines(), Upstream(whole, kind="application/json")
    assert played(asked(stream=False), a=a, b=b) == (200, whole, ["a", "b"])


@pytest.mark.parametrize("parts", [[], [event()[:20]]])
def test_a_replica_lost_before_the_first_token_is_no_loss_for_the_request(
    parts: list[bytes],
) -> None:
    a, b = Upstream(*parts, end="breaks"), Upstream(*WHOLE)
    assert played(asked(), a=a, b=b) == (200, b"".join(WHOLE), ["a", "b"])
    assert b.seen[0]["vllm_xargs"]["slo_arrival"] == a.seen[0]["vllm_xargs"]["slo_arrival"]


def test_an_answer_that_breaks_off_ends_with_an_error_and_is_not_begun_again() -> None:
    a, b = Upstream(event("one"), event("two"), event("three")[:15], end="breaks"), Upstream(*WHOLE)
    status, text, calls = played(asked(), a=a, b=b)
    assert status == 200 and calls == ["a"] and not b.seen
    events = text.split(b"\n\n")
    assert events[:2] == [event("one").strip(), event("two").strip()] and events[3:] == [
        DONE.strip(),
        b"",
    ]
    assert "lost in the middle" in json.loads(events[2][5:])["error"]["message"]


def test_what_kills_every_replica_is_given_up() -> None:
    a, b, c, d, e = (Upstream(end="breaks") for _ in range(5))
    status, text, calls = played(asked(), a=a, b=b, c=c, d=d, e=e)
    assert status == 503 and "no replica could answer" in json.loads(text)["error"]["message"]
    assert len(calls) == len(set(calls)) == 3, "each once"


def test_where_no_replica_is_left_it_says_so_after_a_while() -> None:
    status, text, calls = played(asked(), patience=0.3, a=Upstream(end="breaks"))
    assert (
        status == 503
        and calls == ["a"]
        and json.loads(text)["error"]["type"] == "ServiceUnavailableError"
    )


def test_a_client_that_leaves_is_noticed_upstream() -> None:
    async def play() -> None:
        a = Upstream(event("one"), end="hangs")
        async with Fleeting(a=a) as fleet:
            parts = relay(asked(), fleet.ask, 5.0)
            assert (await anext(parts))[0] == 200 and await anext(parts) == event("one")
            await parts.aclose()  # type: ignore[attr-defined]
            async with asyncio.timeout(60):
                await a.left.wait()

    asyncio.run(play())


@pytest.mark.parametrize(
    "fields", [{"n": 2}, {"prompt": ["a", "b"]}, {"prompt": [[1], [2]]}, {"use_beam_search": True}]
)
def test_answers_of_several_parts_stay_with_one_replica(fields: dict[str, Any]) -> None:
    a, b = declines(), Upstream(*WHOLE)
    assert played(asked(**fields), a=a, b=b) == (429, TOO_LATE, ["a"])
    assert a.seen[0]["vllm_xargs"]["slo_elsewhere"] == 0


def test_what_the_engine_refuses_is_said_in_its_words() -> None:
    a = Upstream(b'{"error": {"message": "too long"}}', kind="application/json", status=400)
    assert played(asked(), a=a, b=Upstream(*WHOLE)) == (
        400,
        b'{"error": {"message": "too long"}}',
        ["a"],
    )


@pytest.mark.parametrize("stream", [False, True])
def test_who_nobody_can_serve_in_time_is_told_when_to_come_again(stream: bool) -> None:
    """The last replica refuses, too (`--slo-reject`)."""
    late = declines(**{"Retry-After": "3", "X-Own": "engine"})

    async def play() -> None:
        async with Fleeting(a=declines(), b=late) as fleet:
            call = asked(stream=stream)
            call.route = ["a", "b"]
            status, headers, text = await fleet.serve(call)
            assert (status, text) == (429, TOO_LATE)
            assert headers["retry-after"] == "3" and set(headers) == {"content-type", "retry-after"}
            assert fleet.calls == ["a", "b"]

    asyncio.run(play())


def test_an_error_in_a_stream_is_the_engines_answer() -> None:
    a = Upstream(b'data: {"error": {"message": "bad"}}\n\n', DONE)
    assert played(asked(), a=a, b=Upstream(*WHOLE))[2] == ["a"]


def test_malformed_objectives_are_refused_and_other_bodies_go_as_they_are() -> None:
    with pytest.raises(ValueError, match="slo_ttft = -1"):
        asked(vllm_xargs={"slo_ttft": -1})
    with pytest.raises(ValueError, match="slo_tpot = 'x'"):
        asked(headers={"x-slo-tpot": "x"})
    for body in (b"{", b"[1]", b'{"prompt": "a", "vllm_xargs": [1]}', b""):
        call = Asked.of("POST", "/v1/completions", {}, body)
        assert call.sent() == body and call.stays
    assert Asked.of("GET", "/v1/models", {}, b"").stays


def test_headers_with_objectives_go_along_where_the_gateway_does_not_read_them() -> None:
    headers = {"x-slo-ttft": "2", "x-other": "1"}
    call = Asked.of("POST", "/v1/responses", headers, b'{"input": "Once"}')
    assert call.headers == {"x-slo-ttft": "2"} and call.sent() == b'{"input": "Once"}'


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 10**6}}


@pytest.mark.parametrize(
    ("prompt", "tokens"),
    [
        ([7] * 90, 90),
        ("word" * 90, 90),
        (["word" * 50, "word" * 40], 90),
        ([[7] * 50, [7] * 40], 90),
        ([{"content": "word" * 80}, {"content": [IMAGE, {"text": "word" * 10}]}], 90),
        ([{"content": [IMAGE]}, {"content": None}, None], 1),
    ],
)
def test_an_image_is_no_text_to_the_router(prompt: Any, tokens: int) -> None:
    assert tokens_of(prompt) == tokens


def test_a_router_sees_what_was_sent_since_the_report() -> None:
    fleet, idle = Fleet("least-loaded", {}, DEFAULT), {name: report(name) for name in "abc"}
    chosen, calls = [], [asked() for _ in range(6)]
    for call in calls:
        name = fleet.choose(call, idle, 101.0)
        assert fleet.choose(call, idle, 101.0) == name, "asking again changes nothing"
        chosen.append(name)
    assert chosen == [*"abcabc"]
    later = {name: report(name, 102.0, running=20) for name in "ab"} | {
        "c": report("c", 102.0, running=10)
    }
    assert fleet.choose(asked(), later, 102.0) == "c", "what a report has is not counted twice"
    load = fleet.load("a", idle["a"], 103.0)
    assert (load.waiting, load.prefill_tokens, load.claimed_blocks, load.step_end) == (
        2,
        200,
        2 * 8,
        103.0,
    )


def test_the_cheapest_is_asked_first_and_keeps_what_nobody_takes() -> None:
    fleet = Fleet("cheapest", {"hops": 2}, DEFAULT)
    reports = {
        "a": report("a", prefill_tokens=5000),
        "b": report("b"),
        "c": report("c", prefill_tokens=900),
    }
    call = asked()
    assert fleet.choose(call, reports, 100.0) == "b" and call.route == ["b", "c", "a", "b"]
    faster = replace(ROOFLINE, k_ctx=1e-9)
    fleet.choose(asked(), {n: replace(r, roofline=faster) for n, r in reports.items()}, 100.0)
    assert fleet.router.roofline == faster


def test_a_router_that_raises_is_the_least_loaded_and_says_so_once(caplog) -> None:
    class Raises:
        def rank(self, request: Any, loads: Any) -> list[str]:
            raise ZeroDivisionError("a router of a newcomer")

    class Nowhere(Raises):
        def rank(self, request: Any, loads: Any) -> list[str]:
            return ["elsewhere"]

    reports = {"a": report("a", prefill_tokens=5000), "b": report("b")}
    for router in (Raises(), Nowhere()):
        fleet = Fleet("cheapest", {}, DEFAULT)
        fleet.router = router
        caplog.clear()
        assert [fleet.choose(asked(), reports, 100.0) for _ in range(3)] == ["b"] * 3
        assert [record.name for record in caplog.records] == ["slos.fleet.dispatch"]


@pytest.mark.parametrize("xargs", [{"slo_ttft": 1e-4}, {"slo_tpot": 1e6}, {"slo_tpot": 1e-4}])
@pytest.mark.parametrize("slow", [1.0, 100.0])
def test_no_objective_and_no_roofline_is_too_much_for_the_router(xargs: Any, slow: float) -> None:
    fleet = Fleet("cheapest", {}, DEFAULT)
    engines = {n: replace(report(n), roofline=scaled(ROOFLINE, slow)) for n in "ab"}
    assert fleet.choose(asked(vllm_xargs=xargs), engines, 100.0) in ("a", "b") and not fleet.failed


def test_no_max_tokens_are_too_many_for_the_router() -> None:
    fleet, reports = Fleet("cheapest", {}, DEFAULT), {n: report(n) for n in "ab"}
    for xargs in ({}, {"slo_e2e": 5}):
        call = asked(max_tokens=10**400, vllm_xargs=xargs)
        assert fleet.choose(call, reports, 100.0) in ("a", "b") and not fleet.failed
        assert str(10**400).encode() in call.sent(), "the engine says what is wrong with them"


def test_a_client_cannot_date_itself() -> None:
    for xargs in ({"slo_arrival": 0}, {"slo_elsewhere": 1}):
        with pytest.raises(ValueError, match="it is a router's to say"):
            asked(vllm_xargs=xargs)


def test_a_server_that_closes_ends_answers_with_an_error() -> None:
    async def answer(*parts: Any) -> AsyncIterator[Any]:
        try:
            for part in parts:
                yield part
            await asyncio.sleep(600)
        finally:
            left.append(len(parts))

    async def closed(*parts: Any) -> list[Any]:
        closing = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, closing.set)
        return [part async for part in until(closing, answer(*parts))]

    left: list[int] = []
    head = (200, {"content-type": "text/event-stream"})
    *begun, last = asyncio.run(closed(head, event()))
    assert begun == [head, event()]
    assert last.startswith(b"data: ") and b"shuts down" in last and last.endswith(DONE)
    status, why = asyncio.run(closed())
    assert status == (503, JSON) and b"shuts down" in why and left == [2, 0]


def test_all_replicas_are_asked_and_one_that_fails_says_nothing() -> None:
    kind = "text/plain"
    a, b = Upstream(b"one 1\n", kind=kind), Upstream(b"two 2\n", kind=kind)
    c = Upstream(b"no", kind=kind, status=500)

    async def play() -> dict[str, str]:
        async with Fleeting(a=a, b=b, c=c) as fleet:
            return await of_all("/metrics", fleet.ask, 5.0)

    assert asyncio.run(play()) == {"a": "one 1\n", "b": "two 2\n", "c": ""}


def test_until_engines_know_themselves_the_fewest_calls_count() -> None:
    fleet = Fleet("cheapest", {}, DEFAULT)
    first, reports = asked(), {"a": None, "b": report("b")}
    assert [fleet.choose(call, reports, 100.0) for call in (first, asked())] == ["a", "b"]
    first.over = True
    assert fleet.choose(asked(), reports, 100.0) == "a" and first not in fleet.open
    assert fleet.choose(asked(), {}, 100.0) is None


@pytest.mark.parametrize("late", [False, True], ids=["before its choice", "after it"])
def test_a_call_that_is_cancelled_before_it_is_sent_is_not_in_flight(late: bool) -> None:
    """Ray tells its router of no such call; and its choice may come after the end."""
    fleet, call, reports = Fleet("cheapest", {}, DEFAULT), asked(), {"a": report("a")}

    async def waits(asked: Asked) -> AsyncIterator[Any]:
        if not late:
            fleet.choose(asked, reports, 100.0)
        await asyncio.sleep(60)
        yield TAKEN

    async def play() -> None:
        answer = asyncio.ensure_future(anext(relay(call, waits, 60.0)))  # type: ignore[arg-type]
        await asyncio.sleep(0.01)
        answer.cancel()
        await asyncio.wait([answer])

    asyncio.run(play())
    if late:
        fleet.choose(call, reports, 100.0)
    other = asked()
    fleet.choose(other, reports, 101.0)
    assert fleet.open == {other} and fleet.load("a", reports["a"], 101.0).waiting == 1


def test_a_route_leaves_out_who_died() -> None:
    fleet, call = Fleet("sequential", {"hops": 3}, DEFAULT), asked()
    reports = {name: report(name) for name in "abc"}
    assert fleet.choose(call, reports, 100.0) == "a" and call.route == ["a", "b", "c"]
    call.route.pop(0)
    del reports["b"]
    assert fleet.choose(call, reports, 100.0) == "c"
    call.lost.add("c")
    call.route.clear()
    assert fleet.choose(call, reports, 100.0) == "a", (
        "who declined may be asked again where another died"
    )
    call.lost.add("a")
    assert fleet.choose(call, {"a": reports["a"]}, 100.0) is None
