"""Objectives in HTTP: bodies, headers and refusals; fields that only a router may set."""

from __future__ import annotations

import hmac
import json
import re
from collections.abc import Iterable, Mapping
from functools import partial
from math import ceil
from typing import Any, final

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from slos.core.types import SLO, require
from slos.serving.answers import Answers, refusal, replacing, unserved
from slos.serving.calls import FROM, PROVE, proof, secret
from slos.serving.metrics import show
from slos.serving.objectives import FIELDS, ROUTERS, Objectives, Phase, parse

OTHERS = ("/tokenize", "/detokenize")  # calls that generate nothing
ELSEWHERE = ("extra_body", "extra_args", "sampling_params", "xargs")  # where they do not belong
NEAR = re.compile(r"\s*(x[-_ ])?slos?([-_ .].*|ttft|tpot)?", re.IGNORECASE | re.DOTALL)
DEFAULT = Objectives((Phase(SLO(tpot=1.0, ttft=1.0)),))


def fields_of(body: bytes, headers: Mapping[str, str], router: bool = False) -> dict[str, Any]:
    """The fields of a call, with the objectives of its `x-slo-*` headers among its `vllm_xargs`.

    router: whether it comes from the router that started this server. Raises ValueError for
    objectives that are malformed or out of place. Of what is no JSON object there are no fields,
    and the server says what is wrong; a form is right for it, so its headers are looked at here.
    """
    try:
        fields = json.loads(body)
        xargs = fields.get("vllm_xargs") or {}
        given = xargs | _of_headers(headers)
    except (AttributeError, TypeError, RecursionError, UnicodeError, json.JSONDecodeError):
        form = headers.get("content-type", "").lower().startswith("multipart/")
        named = [name for name in headers if form and NEAR.fullmatch(name)]
        require(not named, "headers", named, "left out with a form", "only JSON takes objectives")
        return {}
    inner = fields.get("sampling_params")
    inner = inner.get("extra_args") if isinstance(inner, dict) else None
    for name, value in fields.items():
        _refuse_near((name,), "a place in vllm_xargs, or an x-slo-* header")
        if isinstance(value, dict) and name in ELSEWHERE:
            _refuse_near(value, "a place in vllm_xargs, or an x-slo-* header")
    for some in (given, inner if isinstance(inner, dict) else {}):
        _refuse_near(set(some) - set(FIELDS), f"one of {', '.join(FIELDS)}")
        for name in () if router else ROUTERS:
            require(name not in some, name, some.get(name), "left out", "it is a router's to say")
        parse(some, DEFAULT)
    beams = fields.get("use_beam_search") and set(given) & set(FIELDS) - set(ROUTERS)
    why = "vLLM makes requests of its own for every token, without objectives"
    bound = f"left out with {', '.join(sorted(beams or ()))}"
    require(not beams, "use_beam_search", True, bound, why)
    return fields | {"vllm_xargs": given}


def _of_headers(headers: Mapping[str, str]) -> dict[str, str]:
    found = {k: v for k, v in headers.items() if NEAR.fullmatch(k)}
    for name in found:
        known = name.startswith("x-slo-") and "_" not in name
        require(known, "header", name, "one such as x-slo-ttft")
    return {k.removeprefix("x-").replace("-", "_"): v for k, v in found.items()}


def _refuse_near(names: Iterable[str], bound: str) -> None:
    """Objectives that would be overlooked are refused."""
    for name in names:
        require(not NEAR.fullmatch(name), "field", name, bound)


@final
class CheckObjectives:
    """ASGI middleware for `--middleware`: refuses malformed objectives with HTTP 400, and reads
    `x-slo-*` headers.

    The engine behind it would serve such a request with the default objectives instead.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.answers = Answers()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.answers.give(self._checked, scope, receive, send)

    async def _checked(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"].endswith(OTHERS):
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        if challenge := request.headers.get(PROVE):
            send = _with_header(send, PROVE, proof(secret(), challenge))
        if scope["path"].rstrip("/") == "/metrics":
            return await show(self.app, scope, receive, send)
        if scope["method"] != "POST":
            return await self.app(scope, receive, send)
        shown = request.headers.get(FROM, "").encode()
        try:
            body = await request.body()
            router = hmac.compare_digest(shown, secret().encode())
            fields = fields_of(body, request.headers, router)
        except ValueError as error:
            return await self._refuse(str(error), scope, send)
        except ClientDisconnect:
            return
        if fields and any(NEAR.fullmatch(name) for name in request.headers):
            body = json.dumps(fields).encode()
        if fields:
            send = replacing(send, unserved, partial(_too_late(fields), scope, _gone, send))
        await self.app(_sized(scope, body), _once(body, receive), send)

    async def _refuse(self, message: str, scope: Any, send: Any) -> None:
        """HTTP 400; but an answer of 401 or 403 where the server would not look at the caller."""

        def known(messages: list[Any]) -> bool:
            return messages[0].get("status") not in (401, 403)

        send = replacing(send, known, partial(refusal(message), scope, _gone, send))
        await self.app(_sized(scope, b""), _once(b"", _gone), send)


def _too_late(fields: Mapping[str, Any]) -> JSONResponse:
    """HTTP 429 for a request that cannot be in time; to be sent again when its first token would be
    due. A router asks another server (`slo_elsewhere`), a client gets it (`--slo-reject`)."""
    said = "it cannot be served in time now (--slo-reject), or the server pauses or stops"
    answer = refusal(said, 429, "RateLimitError")
    answer.headers["retry-after"] = str(ceil(float(fields["vllm_xargs"].get("slo_ttft", 1.0))))
    return answer


async def _gone() -> Any:
    return {"type": "http.disconnect"}


def _sized(scope: Any, body: bytes) -> Any:
    """The scope of the same call with another body."""
    headers = [header for header in scope["headers"] if header[0] != b"content-length"]
    return scope | {"headers": [*headers, (b"content-length", str(len(body)).encode())]}


def _once(body: bytes, then: Any) -> Any:
    """Receives a body that is already here, then what `then` does."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await then()

    return receive


def _with_header(send: Any, name: str, value: str) -> Any:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {"headers": []} | message
            MutableHeaders(scope=message).append(name, value)
        await send(message)

    return sent
