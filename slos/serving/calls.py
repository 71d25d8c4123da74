"""Calls to a server that this kit started: is it ready, is it the right one, and a calibration.

A secret, made at start, is known to a process and to the servers that it starts. By it a server
proves whose it is, and a router that a call comes from it.
"""

from __future__ import annotations

import hmac
import json
import os
import random
import secrets
import ssl
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, Request, build_opener

SLOW = "VLLM_ENGINE_READY_TIMEOUT_S"  # environment variable of vLLM's
READY, REST = 600.0, 60.0  # seconds that an engine may take to start by default, and all else
PROMPTS = (8, 16, 32, 64, 128, 256, 512)  # tokens, as far as they fit, alone and four at once
TOGETHER = (1, 4, 16, 48)  # requests that decode at the same time, with contexts as in practice
ROUNDS = 4
LONGEST = 8192  # tokens of a request: longer ones take long, on a server that is in use by then
SECRET = "SLOS_SECRET"  # environment variable: of a server and of the process that started it
METRICS = "SLOS_METRICS"  # environment variable: where the engines of a server write theirs
FROM = "x-router-secret"  # header: by it a router shows that it started the server
PROVE = "x-router-proof"  # header: asks the server to show that it was started by the caller


def secret() -> str:
    """Of this process and of the servers that it starts; made when it is first asked for."""
    return os.environ.setdefault(SECRET, secrets.token_hex(16))


def proof(secret: str, challenge: str) -> str:
    """The answer to a challenge of a server that knows the secret."""
    return hmac.new(secret.encode(), challenge.encode(), "sha256").hexdigest()


def wait(
    url: str, process: subprocess.Popen | None = None, log: Path | None = None, own: bool = False
) -> None:
    """Until a server is ready at `url`. own: it must have been started by this process or those
    that it started.

    Raises RuntimeError with the end of its log if it ends, takes too long, or is another one.
    """
    patience, challenge = REST + float(os.environ.get(SLOW, READY)), secrets.token_hex(16)
    deadline = time.monotonic() + patience
    expected = proof(secret(), challenge) if own else None
    while True:
        with suppress(OSError), _open(f"{url}/health", {PROVE: challenge}, timeout=5) as answer:
            if own and answer.headers.get(PROVE) != expected:
                raise RuntimeError(f"another server answers at {url}: it is left alone")
            return
        ended = process and process.poll()
        if ended is not None or time.monotonic() > deadline:
            why = f"was not ready after {patience:g} s" if ended is None else f"ended with {ended}"
            last = log.read_text()[-3000:] if log else ""
            raise RuntimeError(f"the server at {url} {why}; {log}:\n{last}")
        time.sleep(0.25)


def calibrate(url: str, rounds: int = ROUNDS, key: str = "", own: bool = False) -> None:
    """Prompts of many sizes, then decodes in batches of many sizes, which a roofline is fitted to;
    takes seconds.

    key: the server's, if it has one. own: see `wait`.
    """
    wait(url, own=own)
    headers = {"Content-Type": "application/json"}
    headers |= {"Authorization": f"Bearer {key}"} if key else {}

    def fetch(path: str, fields: dict[str, Any] | None = None) -> Any:
        body = None if fields is None else json.dumps(fields).encode()
        with _open(url + path, headers, body) as answer:
            return json.load(answer)

    served = fetch("/v1/models")["data"][0]
    rng, longest = random.Random(0), min(served.get("max_model_len") or 1024, LONGEST)

    def ask(prompt: int, output: int, **more: int) -> None:
        output = min(output, longest // 2)
        count = max(1, min(prompt, longest - output - 1))
        tokens = [rng.randint(5, 200) for _ in range(count)]
        fields = {"model": served["id"], "prompt": tokens, "max_tokens": output, "ignore_eos": True}
        fields |= {"vllm_xargs": {"slo_class": "calibration"}, **more}  # as metrics call it
        try:
            fetch("/v1/completions", fields)
        except HTTPError as error:
            error.close()
            if error.code != HTTPStatus.TOO_MANY_REQUESTS:  # by --slo-reject: others go on
                raise

    with suppress(HTTPError):  # a server may refuse it
        ask(8, 3, logprobs=1)  # vLLM compiles what the first one needs, for which all others wait
    with ThreadPoolExecutor(max(TOGETHER)) as pool:
        for _ in range(rounds):
            for n in TOGETHER:
                prompts = [rng.randint(min(16, longest // 3), longest // 3) for _ in range(n)]
                list(pool.map(ask, prompts, [12] * n))
            for prompt in PROMPTS:
                ask(prompt, 3)
                list(pool.map(ask, [prompt] * 4, [3] * 4))
        list(pool.map(ask, [longest // 2] * 4, [24] * 4))  # long contexts


def _open(
    url: str, headers: dict[str, str], body: bytes | None = None, timeout: float = 600
) -> Any:
    """No proxy is on the way to a server on this machine, and its certificate is not checked."""
    trusting = HTTPSHandler(context=ssl._create_unverified_context())
    opener = build_opener(ProxyHandler({}), trusting)
    return opener.open(Request(url, body, headers), timeout=timeout)
