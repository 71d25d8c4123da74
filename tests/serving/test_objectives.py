"""Objectives on the wire: what is written is read back, and what is malformed is named."""

import asyncio
import json
from dataclasses import replace
from math import inf, isfinite
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from starlette.requests import Request

from slos.core.pace import RULES
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Stage
from slos.policies.predictors import BLIND, make_predictor
from slos.serving.calls import FROM, SECRET
from slos.serving.middleware import CheckObjectives
from slos.serving.objectives import FIELDS, LEAST, PREFIX, Objectives, Phase, parse, xargs
from slos.serving.tracked import Tracked

DEFAULT = Objectives((Phase(SLO(0.1, slowdown=5.0)),), value=2.0)

paces = st.floats(1e-4, 1e3)
firsts = st.one_of(
    st.builds(SLO, paces, ttft=paces),
    st.builds(SLO, paces, slowdown=st.floats(1, 1e3)),
    st.builds(SLO, paces),
)
outputs = st.integers(1, 10_000)
answers = st.builds(
    lambda first, *later: [first, *later[0]],
    st.builds(Stage, st.integers(1, 5000), outputs, firsts),
    st.lists(st.builds(Stage, st.just(0), outputs, st.builds(SLO, paces)), max_size=4),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["tpot", "until", "tokens", "x"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
fields = st.sampled_from([*FIELDS, "slo_tbt", "slo_", "top_k"])


@given(answers, st.floats(1e-3, 1e3), st.sampled_from([*RULES]))
def test_what_is_written_is_read_back(stages: list[Stage], value: float, rule: str) -> None:
    stages = [replace(s, slo=replace(s.slo, rule=rule)) for s in stages]
    wire = json.loads(json.dumps(xargs(stages, value)))
    assert all(isinstance(v, (str, int, float)) for v in wire.values()), (
        "vllm_xargs takes nothing else"
    )
    got, first = parse(wire, DEFAULT), stages[0].slo
    assert got.value == value and {p.slo.rule for p in got.phases} == {rule}
    assert [p.slo.tpot for p in got.phases] == [s.slo.tpot for s in stages]
    assert got.phases[0].slo.first_token(7.0) == first.first_token(7.0)
    assert all(p.slo.ttft is None and p.slo.slowdown is None for p in got.phases[1:])
    # a stage is over with its last token, and not before; the last never is
    for i, stage in enumerate(stages):
        assert got.ends(i, 0, stage.output) == (i + 1 < len(stages))
        assert not got.ends(i, 0, stage.output - 1)


@given(st.dictionaries(fields, json_values, max_size=4))
@example({"slo_stages": '[{"tpot": NaN}]'})
@example({"slo_stages": '[{"tpot": 0.1, "until": true}, {"tpot": 0.1}]'})
@example({"slo_tpot": "1" * 5000})
@example({"slo_tpot": 10**400})
@example({"slo_value": 1e-400})
@example({"slo_ttft": 1.0, "slo_slowdown": 2.0})
@example({"slo_stages": '[{"tpot": 1e999}]'})
def test_anything_is_read_or_refused_by_name(wire: dict[str, Any]) -> None:
    try:
        got = parse(wire, DEFAULT)
    except ValueError as error:
        named = [name for name in wire if name.startswith(PREFIX)]
        assert any(name in str(error) for name in named), error
        return
    slo = got.phases[0].slo
    assert slo.ttft is None or slo.slowdown is None
    assert (
        all(isfinite(p.slo.tpot) and p.slo.tpot > 0 for p in got.phases)
        and isfinite(got.value)
        and got.value > 0
    )
    if not any(name.startswith(PREFIX) for name in wire):
        assert got is DEFAULT


@given(st.one_of(json_values, st.lists(json_values, max_size=3)))
def test_any_stages_are_read_or_refused_by_name(raw: Any) -> None:
    for wire in (raw, json.dumps(raw)):
        try:
            phases = parse({"slo_stages": wire}, DEFAULT).phases
        except ValueError as error:
            assert "slo_stages" in str(error)
        else:
            assert [p.until is None and p.tokens is None for p in phases] == [False] * (
                len(phases) - 1
            ) + [True]
            assert phases[0].slo.slowdown == 5.0, "what is not said is the default's"


@pytest.mark.parametrize(
    ("wire", "says"),
    [
        ({"slo_tbt": 1}, "field = 'slo_tbt' must be one of slo_ttft"),
        ({"slo_tpot": 0}, "slo_tpot = 0.0 must be positive"),
        ({"slo_rule": "mean"}, "slo_rule = 'mean' must be one of paper, client"),
        ({"slo_rule": []}, r"slo_rule = [] must be one of paper, client"),
        ({"slo_tpot": "fast"}, "slo_tpot = 'fast' must be a finite number"),
        ({"slo_tpot": True}, "slo_tpot = True must be a finite number"),
        ({"slo_tpot": [0.1]}, "slo_tpot = [0.1] must be a finite number"),
        ({"slo_ttft": -1}, "slo_ttft = -1.0 must be positive"),
        ({"slo_slowdown": 0.5}, "slo_slowdown = 0.5 must be at least 1"),
        ({"slo_ttft": 1, "slo_slowdown": 2}, "slo_ttft = 1.0 must be None with a slowdown"),
        ({"slo_value": 0}, "slo_value = 0.0 must be positive"),
        ({"slo_e2e": 0}, "slo_e2e = 0.0 must be positive"),
        ({"slo_e2e": "soon"}, "slo_e2e = 'soon' must be a finite number"),
        (
            {"slo_e2e": 1, "slo_stages": '[{"tpot": 1}]'},
            """slo_stages = '[{"tpot": 1}]' must be left out with slo_e2e""",
        ),
        ({"slo_output": 1.5}, "slo_output = 1.5 must be a whole number of tokens"),
        ({"slo_output": -1}, "slo_output = -1 must be a whole number of tokens"),
        ({"slo_class": 7}, "slo_class = 7 must be a name of at most 64 characters"),
        (
            {"slo_class": "a\rb"},
            "slo_class = 'a\\rb' must be a name of at most 64 characters that can",
        ),
        ({"slo_stages": "[]"}, "slo_stages = '[]' must be a JSON list of at least one object"),
        ({"slo_stages": "{"}, "slo_stages = '{' must be JSON"),
        ({"slo_stages": "[{}]"}, "slo_stages[0] = {} must be with a tpot"),
        (
            {"slo_stages": '[{"tpot": 1}]', "slo_tpot": 1},
            "slo_tpot = 1 must be left out with slo_stages",
        ),
        ({"slo_stages": '[{"tpot": 1}, {"tpot": 1}]'}, "slo_stages[0] = {'tpot': 1} must be ended"),
        (
            {"slo_stages": '[{"tpot": 1, "tokens": 0}, {"tpot": 1}]'},
            "slo_stages[0].tokens = 0 must be a whole",
        ),
        (
            {"slo_stages": f'[{{"tpot": 1, "tokens": {10**400}}}, {{"tpot": 1}}]'},
            "... must be a whole number, 1 to 1e+06",
        ),
        (
            {"slo_stages": '[{"tpot": 1, "until": 2}]'},
            "slo_stages[0] = {'tpot': 1, 'until': 2} must be without",
        ),
        ({"slo_stages": '[{"tpot": 1, "ttft": 2}]'}, "must be made of tpot, until, tokens"),
        ({"slo_stages": '[{"tpot": -1}]'}, "slo_stages[0].tpot = -1.0 must be positive"),
    ],
)
def test_a_malformed_field_is_named(wire: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError) as error:
        parse(wire, DEFAULT)
    assert says in str(error.value)


def asked(wire: dict[str, Any], **sampling: Any) -> Tracked:
    """A request of 30 tokens for at most 200 more, as the scheduler sees it at its arrival."""
    usual = {"ignore_eos": False, "min_tokens": 0, "stop": [], "stop_token_ids": []}
    params = SimpleNamespace(**usual | sampling)
    request = SimpleNamespace(
        request_id="r", arrival_time=0.0, num_tokens=30, max_tokens=200, sampling_params=params
    )
    return Tracked.of(request, parse(wire, DEFAULT), None)


@pytest.mark.parametrize("name", sorted(BLIND))
def test_what_the_client_says_of_its_answer_is_planned_with(name: str) -> None:
    lengths, like = make_predictor(name), {"slo_class": "summaries"}
    for n in (90, 91, 92):
        ended = asked(like).progress
        ended.generated, ended.tokens = n, 30 + n
        lengths.ended(ended, True)

    def said(wire: dict[str, Any], **sampling: Any) -> int:
        return lengths.remaining(asked(wire, **sampling).progress)

    assert said({"slo_output": 40}) == said({"slo_output": "40"} | like) == 40
    assert said({"slo_output": 900}) == 200, "max_tokens is a bound on what is said, too"
    assert said({}, ignore_eos=True) == said({"slo_output": 5}, min_tokens=200) == 200
    for stop in ({"stop": ["\n"]}, {"stop_token_ids": [7]}):  # it may end before
        assert said({"slo_output": 5}, ignore_eos=True, **stop) == 5
    assert said(like) == (200 if name == "max-tokens" else said({"slo_output": 0} | like))
    assert asked(like).progress.kind == "summaries" and asked({}).progress.kind == ""
    assert asked({}).progress.limit == 230 < inf


def test_what_is_not_said_is_the_default_s() -> None:
    assert parse(None, DEFAULT) is DEFAULT and parse({"top_k": 5}, DEFAULT) is DEFAULT
    got = parse({"slo_tpot": "0.02"}, DEFAULT)
    assert got == Objectives((Phase(SLO(0.02, slowdown=5.0)),), 2.0)
    assert parse({"slo_ttft": 3}, DEFAULT).phases[0].slo == SLO(0.1, ttft=3.0)
    thinking = parse({"slo_stages": '[{"tpot": 0.05, "until": 7}, {"tpot": 0.1}]'}, DEFAULT)
    assert thinking.ends(0, 7, 1) and not thinking.ends(0, 6, 1) and not thinking.ends(1, 7, 1)


def test_a_hostile_nesting_is_refused_like_the_rest() -> None:
    with pytest.raises(ValueError, match=r"slo_stages = .* must be JSON"):
        parse({"slo_stages": "[" * 100_000}, DEFAULT)


def test_stages_with_a_call_between_them_do_not_fit_one_call() -> None:
    tool = [Stage(5, 2, SLO(0.1, ttft=1.0)), Stage(5, 2, SLO(0.1), wait=1.0)]
    for stages in (tool, []):
        with pytest.raises(ValueError, match=r"stages = .* must be one, then such that just go on"):
            xargs(stages)


def through(
    body: bytes, headers: dict[str, str], path: str = "/v1/completions", looks: bool = True
) -> tuple[int, Any]:
    """What the server behind the middleware is sent, as (0, its body), or the refusal as (status,
    error). looks: whether the server looks at the caller at all, or answers 401."""
    sent: list[dict[str, Any]] = []
    parts = [{"type": "http.request", "body": body[:9], "more_body": True}]
    parts += [{"type": "http.request", "body": body[9:], "more_body": False}]

    async def receive() -> dict[str, Any]:
        return parts.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def server(scope: Any, receive: Any, send: Any) -> None:
        request = Request(scope, receive)
        body = await request.body()
        assert int(request.headers["content-length"]) == len(body)
        if looks:
            await send({"type": "seen", "body": body})
        else:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b'{"error": "Unauthorized"}'})

    raw = [
        (k.encode(), v.encode()) for k, v in ({"content-length": str(len(body))} | headers).items()
    ]
    scope = {"type": "http", "method": "POST", "path": path, "headers": raw}
    asyncio.run(CheckObjectives(server)(scope, receive, send))
    if sent[0]["type"] == "seen":
        return 0, sent[0]["body"]
    return sent[0]["status"], json.loads(sent[1]["body"])["error"]


def test_the_middleware_reads_headers_refuses_what_is_malformed_and_leaves_the_rest_alone() -> None:
    body = json.dumps({"prompt": "Once", "vllm_xargs": {"slo_tpot": 0.1, "top": 1}}).encode()
    assert through(body, {}) == (0, body)
    _, seen = through(body, {"x-slo-ttft": "2", "x-slo-tpot": "0.2", "x-other": "y"})
    assert json.loads(seen) == {
        "prompt": "Once",
        "vllm_xargs": {"slo_tpot": "0.2", "top": 1, "slo_ttft": "2"},
    }
    for headers in ({"x-slo-ttft": "-1"}, {"x-slo-tbt": "1"}):
        status, error = through(b'{"prompt": "Once"}', headers)
        assert (
            status == error["code"] == 400
            and error["type"] == "BadRequestError"
            and "slo_t" in error["message"]
        )
    assert through(b'{"vllm_xargs": {"slo_value": 0}}', {})[0] == 400
    for other in (
        b"{slo_",
        b"[1]",
        b'{"vllm_xargs": ["slo_"]}',
        b'"slo_ttft"',
        b"[" * 50_000 + b"slo_",
    ):
        assert through(other, {"x-slo-ttft": "1"}) == (0, other), "the server says what is wrong"
    bad = b'{"vllm_xargs": {"slo_value": 0}}'
    assert through(bad, {}, "/tokenize") == (0, bad)


BAD = {"vllm_xargs": {"slo_ttft": -1}}
FORM = "multipart/form-data; boundary=x"
ESCAPED = b'{"vllm_xargs": {"\\u0073lo_ttft": -1}}'


@pytest.mark.parametrize(
    ("body", "headers", "path"),
    [
        (json.dumps(BAD).encode(), {}, "/invocations"),
        (json.dumps(BAD).encode(), {}, "/inference/v1/generate"),
        (ESCAPED, {}, "/v1/completions"),
        (json.dumps(BAD).encode("utf-16"), {}, "/v1/completions"),
        (json.dumps(BAD).encode("utf-32"), {}, "/v1/completions"),
        (b"{}", {"x-slo_ttft": "2"}, "/v1/completions"),
        (b"{}", {"slo-ttft": "2"}, "/v1/completions"),
        (b'{"slo_ttft": 2}', {}, "/v1/completions"),
        (b'{"vllm_xargs": {"slo-ttft": 2}}', {}, "/v1/completions"),
        (b'{"vllm_xargs": {"SLO_TTFT": 2}}', {}, "/v1/completions"),
        (b'{"extra_body": {"slo_ttft": 2}}', {}, "/v1/completions"),
        (b'{"sampling_params": {"extra_args": {"slo_ttft": -1}}}', {}, "/inference/v1/generate"),
        (b'{"vllm_xargs": {"slo_tpot": 1e308}}', {}, "/v1/completions"),
        (b'{"vllm_xargs": {"slo_ttft": 1e-9}}', {}, "/v1/completions"),
        (b'{"use_beam_search": true}', {"x-slo-ttft": "2"}, "/v1/completions"),
        (b"--x--", {"x-slo-ttft": "2", "content-type": FORM}, "/v1/audio/transcriptions"),
    ],
)
def test_objectives_that_would_be_overlooked_are_refused(
    body: bytes, headers: dict[str, str], path: str
) -> None:
    status, error = through(body, headers, path)
    assert status == 400 and "slo" in error["message"].lower()


def test_a_form_without_objectives_is_the_servers() -> None:
    assert through(b"--x--", {"content-type": FORM}, "/v1/audio/transcriptions") == (0, b"--x--")


def test_a_refusal_is_short_and_stages_are_few() -> None:
    for fields in ({"slo_stages": "x" * 9000}, {"slo_" + "x" * 9000: 1}, {"slo_tpot": "1" * 4000}):
        status, error = through(json.dumps({"vllm_xargs": fields}).encode(), {})
        assert status == 400 and len(error["message"]) < 500
    many = [{"tpot": 0.1, "tokens": 1}] * 64 + [{"tpot": 0.1}]
    with pytest.raises(ValueError, match="at most 64 stages"):
        parse({"slo_stages": json.dumps(many)}, DEFAULT)
    assert len(parse({"slo_stages": json.dumps(many[1:])}, DEFAULT).phases) == 64


def test_the_key_is_looked_at_before_the_objectives() -> None:
    status, error = through(json.dumps(BAD).encode(), {}, looks=False)
    assert (status, error) == (401, "Unauthorized")


def test_only_its_router_may_date_a_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SECRET, "made at start")
    for fields in ({"slo_arrival": 0}, {"slo_elsewhere": 1}):
        body = json.dumps({"vllm_xargs": fields}).encode()
        for headers in ({}, {FROM: ""}, {FROM: "guessed"}):
            status, error = through(body, headers)
            assert status == 400 and "it is a router's to say" in error["message"]
        assert through(body, {FROM: "made at start"}) == (0, body)
        beams = json.dumps({"use_beam_search": True, "vllm_xargs": fields}).encode()
        assert through(beams, {FROM: "made at start"}) == (0, beams)
    assert through(b"{}", {"x-slo-arrival": "0"})[0] == 400


@pytest.mark.parametrize("field", ["slo_ttft", "slo_tpot"])
def test_seconds_are_bounded(field: str) -> None:
    for value in (1e-9, 0.9e-4, 1.1e6, 1e308):
        with pytest.raises(ValueError, match=rf"{field} = .* 0.0001 to 1e\+06 seconds"):
            parse({field: value}, DEFAULT)
    for value in (1e-4, 1e6):
        parse({field: value}, DEFAULT)


END = Roofline((Plane(1e-3, 0.0, 1e-2),))  # 10 ms, and 1 ms a token


def ending(wire: dict[str, Any], output: int = 21, prompt: int = 90) -> Tracked:
    request: Any = SimpleNamespace(
        request_id="r", arrival_time=5.0, num_tokens=prompt, num_prompt_tokens=prompt,
        max_tokens=output, num_output_tokens=0, output_token_ids=[],
    )  # fmt: skip
    return Tracked.of(request, parse(wire, DEFAULT), END)


def test_an_objective_on_the_end_is_planned_for_by_first_token_and_pace() -> None:
    p = ending({"slo_e2e": 3.2}).progress
    # alone it takes 100 ms and 20 x 11 ms: each is given ten times as long
    assert p.t0 == pytest.approx(6.0) and p.tpot == pytest.approx(0.11)
    p = ending({"slo_e2e": 3.2, "slo_ttft": 0.2}).progress
    assert p.t0 == pytest.approx(5.2) and p.tpot == pytest.approx(0.15)
    p = ending({"slo_e2e": 3.2, "slo_tpot": 0.05}).progress
    assert p.t0 == pytest.approx(6.0) and p.tpot == 0.05
    assert ending({"slo_e2e": 3.2}, output=1).progress.t0 == pytest.approx(8.2)
    first = parse({}, replace(DEFAULT, e2e=9.0))
    assert first.e2e == 9.0 and first.phases == DEFAULT.phases, "beside the default's others"


@given(
    st.floats(1e-3, 1e3), st.none() | st.floats(1e-3, 1e3), st.none() | st.floats(1e-3, 1e2),
    st.integers(1, 400), st.integers(1, 2000),
)  # fmt: skip
def test_what_is_planned_for_implies_the_end(
    e2e: float, ttft: float | None, tpot: float | None, output: int, prompt: int
) -> None:
    wire = {"slo_e2e": e2e, "slo_ttft": ttft, "slo_tpot": tpot}
    p = ending({k: v for k, v in wire.items() if v is not None}, output, prompt).progress
    end = p.t0 + (output - 1) * p.tpot - 5.0
    assert end <= e2e * (1 + 1e-9) or p.tpot == LEAST
    assert p.t0 - 5.0 <= (ttft or e2e) + 1e-9 and p.tpot <= (tpot or max(e2e, LEAST)) + 1e-9


@pytest.mark.parametrize(
    ("wire", "late"),
    [
        ({"slo_e2e": 2.0}, -0.5),
        ({"slo_e2e": 1.0}, 0.5),
        ({"slo_e2e": 2.0, "slo_ttft": 1.2}, -0.2),
        ({"slo_e2e": 2.0, "slo_ttft": 0.9}, 0.1),
        ({"slo_e2e": 2.0, "slo_tpot": 0.2}, 0.1),
    ],
)
def test_it_is_judged_by_the_end_and_by_what_else_was_said(
    wire: dict[str, Any], late: float
) -> None:
    t = ending(wire, output=3)
    for now in (6.0, 6.2, 6.5):  # 1 s, then a mean of 0.25 s
        t.request.num_output_tokens += 1
        t.request.output_token_ids += [7]
        if now < 6.5:
            t.emitted(now)
    assert t.late(6.5) == pytest.approx(late)
