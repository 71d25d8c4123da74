"""The load generator against small servers that speak the protocol, well and badly."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from slos.core.attainment import Outcome, attainment
from slos.core.pace import CLIENT, PAPER
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.replay import replay as module
from slos.replay.client import Answer
from slos.replay.command import main, with_objectives
from slos.replay.replay import run
from slos.replay.results import Labels, Replayed, rows, table
from slos.serving.objectives import Objectives, Phase, parse

pytestmark = pytest.mark.filterwarnings("ignore:lag = ")  # the machine may be busy
DEFAULT = Objectives((Phase(SLO(9.0, ttft=9.0)),))
EASY = SLO(5.0, ttft=30.0)
LABELS = Labels("chatbot", "vllm-v1", "fake", 2.0)
Speak = Callable[[web.StreamResponse, dict[str, Any]], Awaitable[None]]


def event(
    tokens: int = 1,
    usage: int | None = None,
    finish: str | None = None,
    ids: list[int] | None = None,
) -> bytes:
    """A chunk as vLLM writes it; `usage` counts the tokens up to here."""
    choice = {"index": 0, "text": "w" * tokens, "finish_reason": finish, "token_ids": ids}
    told = {} if usage is None else {"usage": {"prompt_tokens": 1, "completion_tokens": usage}}
    return f"data: {json.dumps({'choices': [choice], **told})}\n\n".encode()


def usage_event(total: int) -> bytes:
    return (
        f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': total}})}\n\n".encode()
    )


DONE = b"data: [DONE]\n\n"


async def one_by_one(out: web.StreamResponse, body: dict[str, Any]) -> None:
    for i in range(body["max_tokens"]):
        ids = [7000 + i] if body.get("return_token_ids") else None
        await out.write(
            event(usage=i + 1, finish="length" if i + 1 == body["max_tokens"] else None, ids=ids)
        )
    await out.write(usage_event(body["max_tokens"]) + DONE)


@dataclass
class Fake:
    """A server and what it was asked; `speak` writes the stream."""

    speak: Speak
    max_model_len: int | None = 4096
    url: str = ""
    runner: Any = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)

    async def models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "tiny", "max_model_len": self.max_model_len}]})

    async def completions(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        self.times.append(time.monotonic())
        self.keys.add(request.headers.get("Authorization"))
        out = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        out.enable_chunked_encoding()
        await out.prepare(request)
        await self.speak(out, self.bodies[-1])
        return out


@contextmanager
def serving(speak: Speak = one_by_one, **options: Any) -> Iterator[Fake]:
    """In a thread of its own, as a server is elsewhere too."""
    fake, loop = Fake(speak, **options), asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 24)
    app.add_routes(
        [web.get("/v1/models", fake.models), web.post("/v1/completions", fake.completions)]
    )
    fake.runner = runner = web.AppRunner(app, shutdown_timeout=0.01)

    async def start() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        fake.url = "http://{}:{}".format(*runner.addresses[0])
        yield fake
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def chats(
    count: int, output: int = 3, prompt: int = 4, slo: SLO = EASY, gap: float = 0.0
) -> list[Request]:
    return [
        Request(f"r{i}", i * gap, (Stage(prompt, output, slo),), value=1.0 + i)
        for i in range(count)
    ]


def conserved(got: Replayed, requests: list[Request]) -> None:
    """Nobody is lost: every request has one outcome, and those that failed attain nothing and have
    no times."""
    assert sorted(o.id for o in got.outcomes) == sorted(r.id for r in requests)
    failed = set(got.failures)
    assert len(failed) == len(got.failures) <= len(requests) and all(got.failures.values())
    for o in got.outcomes:
        assert not (o.attained or o.attained_client) or o.id not in failed
        assert (isnan(o.ttft), isnan(o.tpot), isnan(o.lateness)) == (o.id in failed,) * 3


def test_a_call_says_what_is_wanted() -> None:
    requests = chats(2)
    with serving() as fake:
        got = run(requests, fake.url + "/", seed=3)
        again = run(requests, f"{fake.url}/v1", "tiny", seed=3)
    conserved(got, requests)
    assert (
        not got.failures
        and not again.failures
        and all(o.attained and o.attained_client for o in got.outcomes)
    )
    by_value = [
        sorted(part, key=lambda b: b["vllm_xargs"]["slo_value"])
        for part in (fake.bodies[:2], fake.bodies[2:])
    ]
    (first, second), later = by_value
    assert {k: v for k, v in first.items() if k not in ("prompt", "cache_salt", "vllm_xargs")} == {
        "model": "tiny", "max_tokens": 3, "temperature": 0, "ignore_eos": True,
        "return_token_ids": False, "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }  # fmt: skip
    assert len(first["prompt"]) == 4 and all(5 <= id < 500 for id in first["prompt"])
    assert first["prompt"] != second["prompt"] and [b["prompt"] for b in later] == [
        first["prompt"],
        second["prompt"],
    ]
    assert first["cache_salt"] == second["cache_salt"] != later[0]["cache_salt"], (
        "no prefix is known from another run"
    )
    assert parse(second["vllm_xargs"], DEFAULT) == Objectives((Phase(EASY),), 2.0)


def test_a_length_need_not_be_told() -> None:
    """The answer ends by itself, as the server sees it: with a token that may not come before."""

    async def early(out: web.StreamResponse, body: dict[str, Any]) -> None:
        for i in range(body["min_tokens"] + 1):
            await out.write(event(usage=i + 1, finish="stop" if i == body["min_tokens"] else None))
        await out.write(usage_event(body["min_tokens"] + 1) + DONE)

    requests = [replace(r, kind="chat") for r in chats(2, output=5)]
    with serving(early) as fake:
        got = run(requests, fake.url, told=False)
        with pytest.raises(ValueError, match="told = False must be true but for calls of one"):
            run(requests, fake.url, told=False, vllm=False)
    assert not got.failures and [o.output for o in got.outcomes] == [5, 5]
    body = fake.bodies[0]
    assert (body["max_tokens"], body["min_tokens"], body["ignore_eos"]) == (4096 - 4, 4, False)
    assert body["stop_token_ids"] == [4] and body["logit_bias"] == {"4": 100}
    objectives = parse(body["vllm_xargs"], DEFAULT)
    assert (objectives.kind, objectives.output) == ("chat", 0)


def test_a_plain_server_is_sent_nothing_of_vllm_s() -> None:
    with serving() as fake:
        got = run(chats(1), fake.url, vllm=False)
    assert not got.failures
    assert fake.bodies[0].keys() == {
        "model", "prompt", "max_tokens", "temperature", "stream", "stream_options"
    } and fake.bodies[0]["stream_options"] == {"include_usage": True}  # fmt: skip


def test_arrivals_do_not_wait_for_answers() -> None:
    """Nobody is answered until all have come: a closed loop would never end."""
    everybody = asyncio.Event()

    async def hold(out: web.StreamResponse, body: dict[str, Any]) -> None:
        if len(fake.bodies) == 150:
            everybody.set()
        await everybody.wait()
        await one_by_one(out, body)

    requests = chats(150, gap=0.002)
    with serving(hold) as fake:
        got = run(requests, fake.url, timeout=120)
    conserved(got, requests)
    assert not got.failures
    for o in got.outcomes:  # a first token counts from when the request was due
        assert o.ttft >= 0.298 - o.arrival - 1e-3 and o.ttft_slo == pytest.approx(30.0)


def test_times_are_the_server_s() -> None:
    async def slowly(out: web.StreamResponse, body: dict[str, Any]) -> None:
        await asyncio.sleep(0.15)
        for i in range(4):
            await out.write(event(usage=i + 1))
            await asyncio.sleep(0.1)
        await out.write(DONE)

    requests = [
        chats(1, 4, slo=SLO(5.0, ttft=0.05))[0],
        Request("slow", 0.0, (Stage(2, 4, SLO(0.02, ttft=5.0)),)),
    ]
    with serving(slowly) as fake:
        got = {o.id: o for o in run(requests, fake.url).outcomes}
    for o in got.values():
        assert 0.15 <= o.ttft < 2 and 0.09 <= o.tpot < 1 and o.finish >= 0.45
    assert not got["r0"].attained and not got["r0"].attained_client, "the first token was late"
    assert got["slow"].lateness < 0 and got["slow"].attained, (
        "the paper's pace starts at the first token's deadline"
    )
    assert not got["slow"].attained_client, "a client's at the first token"


AWKWARD = [  # how five tokens may come
    [event(2, 2), event(3, 5), usage_event(5)],
    [event(1, 0), event(0, 1), event(4, 5)],
    [b": keep-alive\n\n", event(1, 1) + event(4, 5)],
    [event(), event(), event(), event(), event(0, finish="length")],
    [event(), event(), event(finish="length"), usage_event(5)],
    [event(), event(finish="length")],
    [event(0), event(0), event(0, finish="length"), usage_event(5)],
    [event()] * 5 + [event(0, finish="stop"), usage_event(5)],
    [event(ids=[1, 2]), event(ids=[3, 4, 5])],
    [event(2, 2).replace(b"\n", b"\r\n"), event(3, 5)[:30], event(3, 5)[30:]],
    [b"event: message\n" + event(5, 5)[:-1], b"\n"],
]


@pytest.mark.parametrize("parts", AWKWARD)
def test_tokens_are_counted_however_they_come(parts: list[bytes]) -> None:
    async def speak(out: web.StreamResponse, body: dict[str, Any]) -> None:
        for part in parts:
            await out.write(part)
            await asyncio.sleep(0.01)
        await out.write(DONE)

    requests = chats(1, 5)
    with serving(speak) as fake:
        got = run(requests, fake.url)
    conserved(got, requests)
    assert got.failures == {} and got.outcomes[0].attained


async def drop(out: web.StreamResponse, body: dict[str, Any]) -> None:
    await out.write(event(usage=1))
    await asyncio.sleep(0.05)
    assert out._req and out._req.transport
    out._req.transport.abort()


def says(*parts: bytes, wait: float = 0.0) -> Speak:
    async def speak(out: web.StreamResponse, body: dict[str, Any]) -> None:
        for part in parts:
            await out.write(part)
        await asyncio.sleep(wait)

    return speak


@pytest.mark.parametrize(
    ("speak", "reason"),
    [
        (drop, "ClientPayloadError"),
        (says(wait=60), "no whole answer in 1 s"),
        (says(event(usage=1), wait=60), "no whole answer in 1 s (after 1 of 3 tokens)"),
        (says(DONE), "0 tokens came of 3; finish reason None"),
        (
            says(event(usage=1), event(1, 2, "stop"), DONE),
            "2 tokens came of 3; finish reason 'stop' (after 2 of 3",
        ),
        (says(event(usage=1), event(9, 9), DONE), "9 tokens came of 3"),
        (says(*[event()] * 5, DONE), "5 tokens came of 3"),
        (
            says(event(usage=1), b'data: {"error": {"message": "out of luck"}}\n\n', DONE),
            "the server says: out of luck",
        ),
        (says(b"data: {nonsense\n\n", DONE), "JSONDecodeError"),
        (says(b'data: {"choices": 5}\n\n'), "no chunk of a completion"),
        (says(b'data: [{"choices": []}]\n\n'), "no chunk of a completion"),
        (says(b'{"choices": [{"text": "all at once"}]}'), "0 tokens came"),
        (says(b"data: " + b"[" * 50_000 + b"\n\n"), "RecursionError"),
    ],
)
def test_whoever_fails_is_counted_and_says_why(speak: Speak, reason: str) -> None:
    requests = chats(3, gap=0.01)

    async def second(out: web.StreamResponse, body: dict[str, Any]) -> None:
        await (speak if body["vllm_xargs"]["slo_value"] == 2.0 else one_by_one)(out, body)

    with serving(second) as fake:
        got = run(requests, fake.url, timeout=1.0 if "no whole" in reason else 30.0)
    conserved(got, requests)
    assert [*got.failures] == ["r1"] and reason in got.failures["r1"]
    [bad] = [o for o in got.outcomes if o.id == "r1"]
    assert bad.ttft_slo == pytest.approx(30.0) and bad.finish >= bad.arrival
    assert attainment(got.outcomes) == attainment(got.outcomes, CLIENT) == pytest.approx(2 / 3)
    told = table(got)
    assert "answered 2, failed 1" in told and f"1 failed: {got.failures['r1']}" in told
    assert "nan" not in told, "times are those of the answered"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            '{"error": {"message": "slo_tpot = 0.0 must be positive", "code": 400}}',
            "HTTP 400: slo_tpot = 0.0 must",
        ),
        ('{"message": "no such field"}', "HTTP 400: no such field"),
        ("<h1>Bad</h1>", "HTTP 400: <h1>Bad</h1>"),
        ("[]", "HTTP 400: []"),
    ],
)
def test_a_refusal_is_quoted(text: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(self: Fake, request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=400, text=text)

    monkeypatch.setattr(Fake, "completions", refuse)
    with serving() as fake:
        got = run(chats(2), fake.url)
    conserved(got, chats(2))
    assert [why[: len(reason)] for why in got.failures.values()] == [reason] * 2
    told = table(got)
    assert "attainment 0.0%" in told and "answered 0, failed 2" in told and "nan" in told
    assert f"2 failed: {reason}" in told


def test_a_server_that_goes_away_loses_nobody() -> None:
    requests = chats(4, gap=0.1)

    async def leave(out: web.StreamResponse, body: dict[str, Any]) -> None:
        await fake.runner.sites.copy().pop().stop()
        await one_by_one(out, body)

    with serving(leave) as fake:
        got = run(requests, fake.url)
    conserved(got, requests)
    assert len(got.failures) == 3 and all(
        "ClientConnectorError" in why for why in got.failures.values()
    )


def test_a_tool_s_answer_brings_the_whole_conversation() -> None:
    tool = Request(
        "tool", 0.0,
        (
            Stage(4, 3, EASY), Stage(5, 2, EASY, wait=0.2), Stage(1, 2, SLO(4.0)),
            Stage(0, 6, SLO(3.0)),
        ),
    )  # fmt: skip
    with serving() as fake:
        got = run([tool], fake.url)
    assert not got.failures and got.outcomes[0].attained
    one, two, three = fake.bodies
    assert [len(b["prompt"]) for b in fake.bodies] == [4, 4 + 3 + 5, 4 + 3 + 5 + 2 + 1]
    assert (
        two["prompt"][:7] == [*one["prompt"], 7000, 7001, 7002]
        and three["prompt"][:12] == two["prompt"]
    )
    assert [b["max_tokens"] for b in fake.bodies] == [3, 2, 8], (
        "stages that just go on are one call"
    )
    assert [b["return_token_ids"] for b in fake.bodies] == [True, True, False]
    assert fake.times[1] - fake.times[0] >= 0.2
    assert got.outcomes[0].output == 13 and got.outcomes[0].finish >= 0.2
    phases = parse(three["vllm_xargs"], DEFAULT).phases
    assert [(p.slo.tpot, p.tokens) for p in phases] == [(4.0, 2), (3.0, None)]
    with serving(says(*[event()] * 3, DONE)) as plain:  # no ids: the count of tokens is still right
        run([Request("tool", 0.0, tool.stages[:2])], plain.url, vllm=False)
    assert [len(b["prompt"]) for b in plain.bodies] == [4, 12]


def test_a_failure_between_calls_ends_the_request() -> None:
    tool = Request("tool", 0.0, (Stage(4, 3, EASY), Stage(5, 2, EASY), Stage(5, 2, EASY)))

    async def first_only(out: web.StreamResponse, body: dict[str, Any]) -> None:
        await (one_by_one(out, body) if len(body["prompt"]) == 4 else out.write(DONE))

    with serving(first_only) as fake:
        got = run([tool], fake.url)
    conserved(got, [tool])
    assert len(fake.bodies) == 2 and "0 tokens came of 2" in next(iter(got.failures.values()))


def test_thinking_and_answer_are_one_call_of_two_paces() -> None:
    """The tokens of one chunk may belong to two stages."""
    request = Request("think", 0.0, (Stage(4, 5, SLO(0.001, ttft=30.0)), Stage(0, 4, SLO(9.0))))

    async def speak(out: web.StreamResponse, body: dict[str, Any]) -> None:
        for i in (3, 6, 9):
            await out.write(event(3, i))
            await asyncio.sleep(0.1)
        await out.write(DONE)

    with serving(speak) as fake:
        got = run([request], fake.url)
    [o] = got.outcomes
    assert not got.failures and len(fake.bodies) == 1 and fake.bodies[0]["max_tokens"] == 9
    phases = parse(fake.bodies[0]["vllm_xargs"], DEFAULT).phases
    assert [(p.slo, p.tokens) for p in phases] == [(SLO(0.001, ttft=30.0), 5), (SLO(9.0), None)]
    assert o.attained and not o.attained_client, (
        "the paper's pace starts at the first token's deadline"
    )
    assert 0.19 / 8 <= o.tpot < 2 / 8


def test_a_slowdown_needs_a_roofline() -> None:
    requests = [Request("r", 0.0, (Stage(1000, 2, SLO(5.0, slowdown=5.0)),))]
    with serving() as fake:
        with pytest.raises(ValueError, match=r"r: ttft = None must be in seconds .* pass roofline"):
            run(requests, fake.url)
        assert not fake.bodies
        got = run(requests, fake.url, roofline=Roofline((Plane(1e-3, 0.0, 1.0),)))
    assert got.outcomes[0].ttft_slo == pytest.approx(5 * 2.0)
    assert parse(fake.bodies[0]["vllm_xargs"], DEFAULT).phases[0].slo == SLO(5.0, slowdown=5.0)


def test_a_client_that_is_late_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter([0.3] + [0.0] * 5)

    def busy(*_: Any) -> Any:
        time.sleep(next(calls))
        return json.dumps({}).encode()

    monkeypatch.setattr(module._Client, "body", busy)
    with (
        serving(says(*[event()] * 3, DONE)) as fake,
        pytest.warns(RuntimeWarning, match="lag = .* half the tightest"),
    ):
        got = run(chats(3, slo=SLO(0.2, ttft=30.0), gap=0.02), fake.url)
    assert got.lag >= 0.15 and not got.failures


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"timeout": 0.0}, "timeout = 0.0 must be positive"),
        ({"vocabulary": 5}, "vocabulary = 5 must be above 5"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"model": "big"}, "model = 'big' must be one that http://.* serves: tiny"),
        ({"url": "127.0.0.1"}, "url = '127.0.0.1' must be an address such as"),
        ({"requests": chats(1) * 2}, r"request ids = \['r0'\] must be different"),
        (
            {"requests": chats(1, 4000, 97)},
            "r0: tokens = 4097 must be at most the server's 4096; set max_context",
        ),
    ],
)
def test_arguments_out_of_bounds(options: dict[str, Any], says: str) -> None:
    with serving() as fake, pytest.raises(ValueError, match=says):
        run(**({"requests": chats(1), "url": fake.url} | options))
    assert not fake.bodies


@pytest.mark.parametrize("answer", [None, "no JSON", "[]", '{"data": [{}]}'])
def test_nobody_there(answer: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    async def models(self: Fake, _: web.Request) -> web.Response:
        return (
            web.Response(text=answer, content_type="application/json")
            if answer
            else web.Response(status=404)
        )

    monkeypatch.setattr(Fake, "models", models)
    with (
        serving() as fake,
        pytest.raises(OSError, match=r"lists no models .* start a server there"),
    ):
        run(chats(1), fake.url)
    with pytest.raises(OSError, match="/v1/models lists no models"):
        run(chats(1), fake.url)


def test_the_key_of_the_environment_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, sent in (("", None), ("k", "Bearer k")):
        monkeypatch.setenv("OPENAI_API_KEY", key)
        with serving() as fake:
            run(chats(1), fake.url)
        assert fake.keys == {sent}


def test_no_requests() -> None:
    with serving() as fake:
        assert run([], fake.url).outcomes == []


def test_rows_say_what_was_measured() -> None:
    requests = chats(3)

    async def second(out: web.StreamResponse, body: dict[str, Any]) -> None:
        await (says(DONE) if body["vllm_xargs"]["slo_value"] == 2.0 else one_by_one)(out, body)

    with serving(second) as fake:
        got = run(requests, fake.url)
    frame = rows(LABELS, got)
    assert (
        len(frame) == 3 and set(frame.status) == {"measured"} and set(frame.system) == {"vllm-v1"}
    )
    assert {"ttft", "tpot", "attained", "attained_client", "kind", "rate", "commit"} <= set(
        frame.columns
    )
    assert frame.set_index("id").failure.map(bool).to_dict() == {
        "r0": False,
        "r1": True,
        "r2": False,
    }
    assert not frame.set_index("id").attained["r1"] and frame.set_index("id").ttft.isna()["r1"]


def test_figures_of_a_summary() -> None:
    outcomes = [
        Outcome(
            str(i),
            "",
            0.0,
            1.0,
            1,
            2,
            1.0,
            i / 100,
            1.0,
            i / 1000,
            0.0,
            0,
            False,
            i < 95,
            i < 90,
            i < 95,
            CLIENT,
        )
        for i in range(101)
    ]
    told = table(Replayed(outcomes, {}, 0.25)).splitlines()
    assert told[0] == (
        "attainment 94.1% by the clients' rule (mean time per token after the first one), 89.1% by "
        "the paper's rule (token n by the first token's deadline + n x TPOT)"
    )
    assert [line.split() for line in told[1:5]] == [
        ["mean", "P50", "P99"],
        ["TTFT,", "ms", "500.0", "500.0", "990.0"],
        ["TPOT,", "ms", "50.0", "50.0", "99.0"],
        ["E2EL,", "ms", "1000.0", "1000.0", "1000.0"],
    ]
    assert told[5] == "answered 101, failed 0; the client was late by at most 250.0 ms"


# The stream


chunks = st.lists(st.integers(0, 4), min_size=1, max_size=12).filter(any)


@given(chunks, st.sampled_from(["usage", "ids", "end"]))
def test_every_token_has_a_time(sizes: list[int], told: str) -> None:
    """Whoever counts them: with every chunk, or only at the end."""
    total = sum(sizes)
    sizes = [n for n in sizes if n or told != "end"]
    answer, seen = Answer(total), 0
    for i, n in enumerate(sizes):
        seen += n
        choice = {"text": "w" * n, "token_ids": list(range(n)) if told == "ids" else None}
        answer.add(
            {
                "choices": [choice],
                "usage": {"completion_tokens": seen} if told == "usage" else None,
            },
            float(i),
        )
    if told == "end":
        answer.add({"choices": [], "usage": {"completion_tokens": total}}, 99.0)
    times = answer.end()
    assert len(times) == total and times == sorted(times)
    if told != "end":
        assert times == [float(i) for i, n in enumerate(sizes) for _ in range(n)]
    assert times[0] == next(i for i, n in enumerate(sizes) if n)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "usage", "text", "token_ids", "error", "completion_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(st.lists(json_values, max_size=4), st.integers(1, 5))
@settings(max_examples=300)
def test_any_chunk_is_taken_in_or_refused(events: list[Any], asked: int) -> None:
    answer = Answer(asked)
    try:
        for e in events:
            answer.add(e, 0.0)
        assert len(answer.end()) == asked
    except ValueError as error:
        assert str(error)
    assert len(answer.times) <= asked + 2


# The command


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    out = tmp_path / "rows" / "r.csv"
    with serving(max_model_len=300) as fake:
        told = main(
            ["--url", fake.url, "--rate", "100", "--requests", "12", "--ttft", "20", "--tpot", "5",
             "--system", "slos-serve", "--output", str(out)]
        )  # fmt: skip
    printed = capsys.readouterr().out
    assert told == 0 and "answered 12, failed 0" in printed and "attainment 100.0%" in printed
    assert printed.startswith("chatbot (synthetic profile): 12 requests in 0 s to tiny at http://")
    assert all(len(b["prompt"]) + b["max_tokens"] <= 300 for b in fake.bodies)
    assert {b["vllm_xargs"]["slo_ttft"] for b in fake.bodies} == {20.0}
    frame = pd.read_csv(out)
    assert (
        len(frame) == 12
        and set(frame.system) == {"slos-serve"}
        and set(frame.status) == {"measured"}
    )


def test_the_command_with_a_profile_and_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    with serving(says(DONE)) as fake:
        told = main(
            [
                "--url",
                fake.url,
                "--rate",
                "100",
                "--requests",
                "4",
                "--profile",
                "opt-6.7b-a100",
                "--max-context",
                "400",
            ]
        )
    assert told == 1 and "answered 0, failed 4" in capsys.readouterr().out
    assert {b["vllm_xargs"]["slo_slowdown"] for b in fake.bodies} == {5.0}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "chatbot: slowdown = 5 must be in seconds where no hardware is given; give --ttft"),
        (["--scenario", "lunch"], "scenario = 'lunch' must be one of chatbot"),
        (["--ttft", "0"], "ttft = 0.0 must be positive"),
        (["--ttft", "1", "--tpot", "0"], "tpot = 0.0 must be positive"),
        (["--ttft", "1", "--rate", "0"], "rate = 0.0 must be positive"),
        (["--ttft", "1", "--requests", "0"], "num_requests = 0 must be at least 1"),
        (["--ttft", "1", "--max-context", "1"], "max_context = 1 must be"),
        (["--ttft", "1", "--lengths", "short"], "lengths = 'short' must be"),
        (["--ttft", "1", "--timeout", "0"], "timeout = 0.0 must be positive"),
        (["--ttft", "1", "--slowdown", "5"], "slowdown = 5.0 must be of a file of requests"),
        (["--ttft", "1", "--output", "/"], "output = '/' must be a file, not a folder"),
        (["--ttft", "1", "--model", "big"], "model = 'big' must be one that"),
        (["--profile", "abacus"], "profile 'abacus' is unknown"),
        (["--ttft", "1", "--url", "ftp://x"], "url = 'ftp://x' must be an address"),
        (["--ttft", "1", "--url", "http://127.0.0.1:9"], "lists no models"),
    ],
)
def test_bad_arguments_of_the_command(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving() as fake:
        assert main([*(["--url", fake.url] if "--url" not in arguments else []), *arguments]) == 2
    assert says in capsys.readouterr().err and not fake.bodies


OWN = "prompt,output,tpot,ttft,slowdown,kind,arrival\n"


def own_file(path: Path, *rows: str) -> str:
    path.write_text(OWN + "\n".join(rows))
    return str(path)


def test_requests_of_one_s_own_come_at_their_own_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "8,3,5,9,,chat,7.0", "6,2,4,8,,code,7.2", "9,0,5,9,,chat,7.3", "5,4,5,9,,chat,7.5"
    mine = own_file(tmp_path / "mine.csv", *rows)
    with serving() as fake:
        assert main(["--url", fake.url, "--requests", mine]) == 0
        printed = capsys.readouterr().out
        assert main(["--url", fake.url, "--scenario", mine, "--requests", "2"]) == 0
        faster = ["--url", fake.url, "--requests", mine, "--num-requests", "7", "--rate", "100"]
        assert main([*faster, "--tpot", "3"]) == 0
    whole, two, faster = fake.bodies[:3], fake.bodies[3:5], fake.bodies[5:]
    assert [(len(b["prompt"]), b["max_tokens"]) for b in whole] == [(8, 3), (6, 2), (5, 4)]
    told = [(b["vllm_xargs"]["slo_tpot"], b["vllm_xargs"]["slo_ttft"]) for b in whole]
    assert told == [(5.0, 9.0), (4.0, 8.0), (5.0, 9.0)]
    gaps = [b - a for a, b in zip(fake.times[:3], fake.times[1:3], strict=False)]
    assert gaps == pytest.approx([0.2, 0.3], abs=0.1)
    assert "arrivals of the file" in printed and "1 without a token" in printed
    kinds = {line.split()[0]: line.split() for line in printed.splitlines()[-2:]}
    assert kinds["chat"][1:5] == ["2", "100.0%", "100.0%", "0"] and kinds["code"][1] == "1"
    assert len(two) == 2 and len(faster) == 7
    assert {b["vllm_xargs"]["slo_tpot"] for b in faster} == {3.0}


def test_a_session_s_rounds_begin_with_what_was_said(tmp_path: Path) -> None:
    mine = tmp_path / "mine.csv"
    mine.write_text("session,arrival,prompt,output\na,0,8,3\nb,0,5,2\na,0.5,4,3\na,1,2,2\n")
    with serving() as fake:
        told = ["--url", fake.url, "--requests", str(mine), "--ttft", "9", "--tpot", "5"]
        assert main(told) == 0
    other, first, second, third = sorted((b["prompt"] for b in fake.bodies), key=len)
    assert [len(p) for p in (first, other, second, third)] == [8, 5, 15, 20]
    assert second[:11] == [*first, 7000, 7001, 7002], "the prompt, and the answer that came"
    assert third[:18] == [*second, 7000, 7001, 7002] and other[:5] != first[:5]


def test_a_row_that_needs_the_hardware_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = own_file(tmp_path / "mine.csv", "8,0,5,9,,,1", "8,3,5,9,,,1", "8,3,5,,4,,2")
    assert main(["--url", "http://127.0.0.1:9", "--requests", mine]) == 2
    assert "mine.csv, row 4: slowdown = '4' must be in seconds" in capsys.readouterr().err
    with serving() as fake:
        for cure in (["--ttft", "3"], ["--profile", "opt-6.7b-a100"]):
            assert main(["--url", fake.url, "--requests", mine, *cure]) == 0
    assert [b["vllm_xargs"].get("slo_slowdown") for b in fake.bodies] == [None] * 3 + [4.0]


def test_objectives_of_one_s_own() -> None:
    stages = (
        Stage(4, 5, SLO(0.05, slowdown=3.0)),
        Stage(0, 4, SLO(0.1)),
        Stage(3, 4, SLO(0.1, slowdown=3.0), wait=1.0),
    )
    request = Request("r", 0.0, stages)
    assert with_objectives(request, None, None, PAPER) == request
    changed = with_objectives(request, 2.0, None, PAPER).stages
    assert [s.slo for s in changed] == [SLO(0.05, ttft=2.0), SLO(0.1), SLO(0.1, ttft=2.0)]
    changed = with_objectives(request, None, 0.3, CLIENT).stages
    assert [(s.slo.tpot, s.slo.rule) for s in changed] == [(0.3, CLIENT)] * 3
