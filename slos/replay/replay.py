"""Replays requests against a server of the OpenAI API over HTTP, and measures them as a client sees
them.

Open loop: every request is sent at its own time, however slow the others are. Stages that just go
on are one call; any other stage is a call of its own, `wait` seconds after the one before ended,
with the whole conversation as its prompt. Prompts are random token ids. A first token counts from
the time at which its call was due, so whatever the client is late makes latencies longer, never
shorter.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, nan
from typing import Any
from zlib import crc32

import aiohttp
import numpy as np

from slos.core.attainment import Live, Outcome
from slos.core.roofline import Plane, Roofline
from slos.core.types import Progress, Request, Stage, require
from slos.replay.client import Server, call, find
from slos.replay.results import Replayed, by_the_end, judged
from slos.serving.objectives import NAME, xargs

FIRST_ID = 5  # the lowest token ids are special ones in most vocabularies
END = 4  # token id that ends an answer whose length the server does not know
BIAS = 100  # of its logit, the most that the API takes: it is sampled as soon as it may be
LEAD = 0.1  # seconds from the making of a prompt to its sending
PULSE = 0.01  # seconds between two looks at how late the client is


@dataclass(frozen=True, slots=True)
class Manner:
    """How requests are sent.

    seed: of the prompts, with each request's id. vocabulary: token ids are below it. timeout:
    seconds for a call. vllm: whether to send the fields that only vLLM knows: objectives, no early
    end, usage with every chunk. e2e: seconds from arrival to last token, an additional
    objective, where every request is of one stage. told: whether the server learns with a request
    how long its answer will be; if not, `max_tokens` is all that its context holds, and it learns
    lengths by the requests' kind.
    """

    seed: int = 0
    vocabulary: int = 500
    timeout: float = 600.0
    vllm: bool = True
    e2e: float | None = None
    told: bool = True

    def __post_init__(self) -> None:
        require(self.timeout > 0, "timeout", self.timeout, "positive (seconds)")
        require(self.vocabulary > FIRST_ID, "vocabulary", self.vocabulary, f"above {FIRST_ID}")
        require(self.seed >= 0, "seed", self.seed, "at least 0")
        require(self.e2e is None or self.e2e > 0, "e2e", self.e2e, "positive (seconds)")

    def check(self, requests: Sequence[Request]) -> None:
        """Raises ValueError for requests that cannot be sent so."""
        several = [r.id for r in requests if len(r.stages) > 1][:3]
        alone = self.e2e is None or not several
        require(alone, "e2e of requests of several stages", several, "left out")
        twice = [id for id, n in Counter(r.id for r in requests).items() if n > 1]
        require(not twice, "request ids", twice[:3], "different for every request")
        one = self.vllm and not any(s.goes_on for r in requests for s in r.stages)
        require(self.told or one, "told", self.told, "true but for calls of one stage to vLLM")


@dataclass(slots=True, eq=False)
class _Client:
    session: aiohttp.ClientSession
    server: Server
    roofline: Roofline
    how: Manner
    start: float  # on the clock of the event loop
    salt: str = field(default_factory=lambda: secrets.token_hex(16))
    outcomes: list[Outcome] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)
    lag: float = 0.0
    said: dict[str | int, list[int]] = field(default_factory=dict)  # by name of `Request.prefix`

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.start

    async def until(self, when: float) -> None:
        """Sleep until `when`, and keep the worst lateness."""
        await asyncio.sleep(when - self.now())
        self.lag = max(self.lag, self.now() - when)

    async def watch(self) -> None:
        """Notice when the client has no time to look at what comes."""
        while True:
            await self.until(self.now() + PULSE)

    async def send(self, requests: Sequence[Request]) -> None:
        """Each at its own time; until all are answered or lost."""
        watch = asyncio.create_task(self.watch())
        try:
            async with asyncio.TaskGroup() as group:
                for request in sorted(requests, key=lambda r: r.arrival):
                    await asyncio.sleep(request.arrival - LEAD - self.now())
                    group.create_task(self.serve(request))
        finally:
            watch.cancel()

    def body(
        self, request: Request, stages: Sequence[Stage], prompt: list[int], last: bool
    ) -> bytes:
        fields: dict[str, Any] = {
            "model": self.server.model, "prompt": prompt,
            "max_tokens": sum(s.output for s in stages), "temperature": 0, "stream": True,
            "stream_options": {"include_usage": True},
        }  # fmt: skip
        if self.how.vllm:
            fields["ignore_eos"] = True
            fields["stream_options"]["continuous_usage_stats"] = True
            # they are part of the next prompt
            fields["return_token_ids"] = not last or bool(request.prefix)
            kind = {"slo_class": request.kind[:NAME]} if request.kind else {}
            fields["vllm_xargs"] = xargs(stages, request.value, self.how.e2e) | kind
            if not self.how.told:
                fields |= self.untold(len(prompt), fields["max_tokens"])
            # or a second replay would find its prompts in the prefix cache
            fields["cache_salt"] = self.salt
        return json.dumps(fields).encode()

    def untold(self, prompt: int, output: int) -> dict[str, Any]:
        """Fields by which an answer ends after `output` tokens, by itself as the server sees it."""
        most = max(output, (self.server.max_context or prompt + 2 * output) - prompt)
        return {
            "max_tokens": most, "min_tokens": output - 1, "ignore_eos": False,
            "stop_token_ids": [END], "logit_bias": {END: BIAS},
        }  # fmt: skip

    def drawn(self, rng: np.random.Generator, count: int) -> list[int]:
        return rng.integers(FIRST_ID, self.how.vocabulary, count).tolist()

    def opening(self, request: Request, count: int) -> list[int]:
        """What its prompt of `count` tokens shares with others, as far as that is known."""
        ids: list[int] = []
        for name, tokens in request.prefix:
            known, wanted = self.said.setdefault(name, []), min(tokens, count - len(ids))
            more, at = max(0, wanted - len(known)), f"{name} from {len(known)}".encode()
            known += self.drawn(np.random.default_rng([self.how.seed, crc32(at), more]), more)
            ids += known[:wanted]
        return ids

    def answered(self, request: Request, prompt: list[int], ids: list[int]) -> None:
        """Remember the answer where the next round of its session begins with it."""
        covered = sum(tokens for _, tokens in request.prefix)
        if covered > len(prompt) and len(request.prefix) == 1:
            known = self.said[request.prefix[0][0]]
            if len(known) == len(prompt):  # else the next round has come already
                known += ids[: covered - len(prompt)]

    async def serve(self, request: Request) -> None:
        """One request to its end, or to its failure."""
        rng = np.random.default_rng([self.how.seed, crc32(request.id.encode())])
        live = Live(request, Progress(request.id, request.arrival, 0, 0.0, 1.0, request.value))
        starts = [i for i, s in enumerate(request.stages) if i == 0 or not s.goes_on]
        prompt, due = [], request.arrival
        for i, end in zip(starts, [*starts[1:], len(request.stages)], strict=True):
            stages = request.stages[i:end]
            asked = sum(s.output for s in stages)
            shared = self.opening(request, stages[0].prompt) if not i else []
            prompt += shared + self.drawn(rng, stages[0].prompt - len(shared))
            body = self.body(request, stages, prompt, end == len(request.stages))
            due += stages[0].wait
            await self.until(max(due, self.now()) if i else due)
            live.start_stage(i, due, self.roofline)
            try:
                times, ids = await call(self.session, self.server, body, asked, self.now)
            except ValueError as error:
                self.failures[request.id] = str(error)
                slo = live.ttft_slo or live.progress.t0 - live.progress.arrival
                lost = {"ttft": nan, "ttft_slo": slo, "tpot": nan, "lateness": nan}
                self.outcomes.append(judged(live.outcome(self.now()), False, False, **lost))
                return
            for k, stage in enumerate(stages, start=i):
                if k > i:
                    live.start_stage(k, due, self.roofline)
                live.emit(times[: stage.output])
                due, times = times[stage.output - 1], times[stage.output :]
            self.answered(request, prompt, ids)
            prompt += ids if len(ids) == asked else self.drawn(rng, asked)
        self.outcomes.append(by_the_end(live.outcome(due), self.how.e2e))


async def replay(
    requests: Sequence[Request], url: str, model: str | None = None,
    roofline: Roofline | None = None, **how: Any,
) -> Replayed:  # fmt: skip
    """Send `requests` to the server at `url`, and wait for all of them.

    roofline: the server's, for the zero-load times that objectives given as a slowdown need. how:
    the fields of `Manner`. Raises ValueError for requests that the server cannot take, OSError if
    there is none; whatever becomes of a request later is in its outcome. Warns if the client was
    late by more than half the tightest TPOT: then times are its own.
    """
    manner = Manner(**how)
    manner.check(requests)
    for r in requests:
        known = roofline or all(s.slo.slowdown is None or s.goes_on for s in r.stages)
        bound = "in seconds where no roofline is given"
        cure = "a slowdown multiplies a zero-load time; pass roofline=..."
        require(bool(known), f"{r.id}: ttft", None, bound, cure)
    server = await find(url, model)
    limit = server.max_context or inf
    for r in requests:
        bound = f"at most the server's {limit}"
        require(r.context <= limit, f"{r.id}: tokens", r.context, bound, "set max_context")
    # Every call is a client of its own: no limit, and no kept connection that the server closes at
    # the wrong moment.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    patience = aiohttp.ClientTimeout(manner.timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        # not used where no objective is a slowdown
        zero_load = roofline or Roofline((Plane(1e-9, 0.0, 0.0),))
        first = min((r.arrival for r in requests), default=0.0)
        start = asyncio.get_running_loop().time() + LEAD - first
        client = _Client(session, server, zero_load, manner, start)
        await client.send(requests)
    tightest = min((s.slo.tpot for r in requests for s in r.stages), default=inf)
    if client.lag > 0.5 * tightest:
        said = f"lag = {client.lag:.3f} s must be at most half the tightest TPOT of {tightest:g} s"
        cure = "send less per process, or give the client a core of its own"
        said += f" for times to be the server's; {cure}"
        warnings.warn(said, RuntimeWarning, stacklevel=2)
    return Replayed(client.outcomes, client.failures, client.lag)


def run(requests: Sequence[Request], url: str, *args: Any, **options: Any) -> Replayed:
    """`replay` for callers without an event loop; in a notebook write `await replay(...)`."""
    return asyncio.run(replay(requests, url, *args, **options))
