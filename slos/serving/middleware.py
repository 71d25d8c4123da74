"""Objectives in HTTP: bodies, headers and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse

from slos.core.types import SLO
from slos.serving.objectives import PREFIX, Objectives, Phase, parse


def fields_of(body: bytes, headers: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a call, with the objectives of its `x-slo-*` headers among its `vllm_xargs`.

    Raises ValueError for malformed ones; of what is no JSON object there are none, and the server
    says what is wrong.
    """
    given = {
        k.removeprefix("x-").replace("-", "_"): v
        for k, v in headers.items()
        if k.startswith("x-slo-")
    }
    try:
        fields = json.loads(body)
        xargs = (fields.get("vllm_xargs") or {}) | given
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}
    parse(xargs, Objectives((Phase(SLO(tpot=1.0, ttft=1.0)),)))
    return fields | {"vllm_xargs": xargs}


def refusal(message: str, status: int = 400, kind: str = "BadRequestError") -> JSONResponse:
    """An error as the OpenAI API writes it."""
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": None, "code": status}}, status
    )


@final
class CheckObjectives:
    """ASGI middleware for `--middleware`: refuses malformed objectives with HTTP 400, and reads
    `x-slo-*` headers.

    The engine behind it would serve such a request with the default objectives instead.
    """

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] != "POST"
            or not scope["path"].startswith("/v1/")
        ):
            return await self.app(scope, receive, send)
        request = Request(scope, receive)
        try:
            body = await request.body()
            if PREFIX.encode() in body or any(
                name.startswith("x-slo-") for name in request.headers
            ):
                fields = fields_of(body, request.headers)
                body = json.dumps(fields).encode() if fields else body
        except ValueError as error:
            return await refusal(str(error))(scope, receive, send)
        except ClientDisconnect:
            return
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Any:
            return messages.pop() if messages else await receive()

        length = (b"content-length", str(len(body)).encode())
        headers = [header for header in scope["headers"] if header[0] != b"content-length"] + [
            length
        ]
        await self.app(scope | {"headers": headers}, replay, send)
