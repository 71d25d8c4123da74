"""Many replicas behind one address, with Ray Serve: `python -m slos.fleet MODEL --replicas 2`.

A replica is an actor with a vLLM server of `slos.serving.launch`; they start and end together. A
gateway takes requests of the OpenAI API and asks the replicas in the order of a router of
`slos.policies.routers`, the same object as in the simulator; `slos.fleet.dispatch` has what happens
to a request. It runs on this machine, or on the Ray cluster that RAY_ADDRESS names, if its machines
have the kit installed.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import aiohttp
import ray
from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.request_router import RequestRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from slos.core.types import require
from slos.files import ray_address, ray_here
from slos.fleet.dispatch import TAKEN, Asked, Fleet, answered, of_all, relay, until
from slos.hardware.profiles import profile
from slos.policies.routers import ROUTERS
from slos.serving import launch
from slos.serving.answers import refusal
from slos.serving.calls import SECRET, secret, wait
from slos.serving.guard import FOLDER
from slos.serving.load_report import Report
from slos.serving.metrics import merged

REPORTS = 0.1  # seconds between two looks at a replica's load
SILENT = 20.0  # seconds without output while requests wait: then an engine counts as hung
LINES = 15  # the last of an engine that does not start, which are shown
FAILED = "~~~ engine ~~~"  # before and after them
MANY = 100_000  # requests sent to a replica at once: its scheduler does the queueing


class FleetRouter(RequestRouter):
    """`Fleet` in Ray Serve's terms."""

    def initialize_state(self, **kwargs: Any) -> None:
        self.fleet = Fleet(**kwargs)

    async def choose_replicas(
        self, candidate_replicas: list, pending_request: Any = None
    ) -> list[list]:
        pending_request.routing_context.should_backoff = True  # where there is none to ask
        asked, now = pending_request.args[0], time.time()
        living = {r.replica_id.unique_id: r for r in candidate_replicas}
        reports = {name: r.routing_stats.get("report") for name, r in living.items()}
        name = self.fleet.choose(asked, reports, now)
        return [] if name is None else [[living[name]]]


class Replica:
    """One engine: a child process that ends with this one, and takes this one along."""

    def __init__(self, argv: Sequence[str]) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="slos-replica-")
        self.report = Path(self.folder.name) / "load.json"
        log = Path(self.folder.name) / "engine.log"
        port = str(launch.free_port())
        self.url = f"http://127.0.0.1:{port}"
        own = ["--load", str(self.report), "--port", port, "--host", "127.0.0.1"]
        own += ["--no-calibrate", "--leash"]
        own += ["--disable-uvicorn-access-log"]  # a line for each call would fill the disk in time
        command = [sys.executable, "-m", "slos.serving.launch", "serve", *argv, *own]
        with log.open("w") as out:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": out, "stderr": out}
            env = os.environ | {SECRET: secret(), FOLDER: self.folder.name}
            self.engine = subprocess.Popen(command, start_new_session=True, env=env, **pipes)
        try:
            wait(self.url, self.engine, log, own=True)
        except RuntimeError as error:
            last = "\n".join(log.read_text().splitlines()[-LINES:])
            raise RuntimeError(f"{FAILED}\n{last}\n{FAILED}") from error
        threading.Thread(target=self._end_with_engine, daemon=True).start()
        started = launch.arguments(argv)
        if started.calibrates:
            launch.when_ready(started._replace(url=self.url))
        self.waits: dict[str, float] = {}  # since when a call waits for the engine's next output

    @cached_property
    def session(self) -> aiohttp.ClientSession:
        """Made where it is first asked for: in the event loop that answers. No connection is kept,
        which the engine might close just when a call is sent: that looks like a lost replica."""
        never = aiohttp.ClientTimeout(total=None)
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        return aiohttp.ClientSession(timeout=never, connector=connector)

    def _end_with_engine(self) -> None:
        self.engine.wait()
        with suppress(ProcessLookupError):
            os.killpg(self.engine.pid, signal.SIGKILL)  # the engine has children of its own
        self.folder.cleanup()
        os._exit(1)

    def __del__(self) -> None:
        self.folder.cleanup()

    async def answer(self, asked: Asked) -> AsyncIterator[Any]:
        yield TAKEN
        try:
            self.waits[asked.request_id] = time.time()
            async for part in answered(self.session, self.url, asked, secret()):
                self.waits.pop(asked.request_id, None)  # now it waits for its client
                yield part
                self.waits[asked.request_id] = time.time()
        finally:
            self.waits.pop(asked.request_id, None)

    def record_routing_stats(self) -> dict[str, Any]:
        return {"report": Report.parse(self.report.read_text())} if self.report.exists() else {}

    async def check_health(self) -> None:
        """In the event loop that answers, which goes on meanwhile."""
        patience = aiohttp.ClientTimeout(20)
        async with self.session.get(f"{self.url}/health", timeout=patience) as answer:
            answer.raise_for_status()
        self.hears_from_engine()

    def hears_from_engine(self) -> None:
        """Raises ValueError where requests wait for an engine that schedules no more."""
        if self.waits and self.report.exists():
            heard = max(min(self.waits.values()), self.report.stat().st_mtime)
            silent = time.time() - heard
            require(silent < SILENT, "engine: seconds of silence", silent, f"under {SILENT:g}")


class Gateway:
    """Takes calls of the OpenAI API, and sees to it that each gets one answer."""

    def __init__(self, replicas: Any, patience: float) -> None:
        self.replicas, self.patience = replicas.options(stream=True), patience
        self.closing = asyncio.Event()

    async def end_streams(self) -> None:
        self.closing.set()

    async def ask(self, asked: Asked) -> AsyncIterator[Any]:
        answer = self.replicas.answer.remote(asked)
        try:
            async for part in answer:
                yield part
        finally:
            answer.cancel()

    async def __call__(self, request: Request) -> Response:
        if request.url.path == "/metrics":
            texts = await of_all(request.url.path, self.ask, self.patience)
            return Response(
                merged("replica", texts.items()), media_type="text/plain; version=0.0.4"
            )
        path = f"{request.url.path}?{request.url.query}"
        try:
            asked = Asked.of(request.method, path, dict(request.headers), await request.body())
        except ValueError as error:
            return refusal(str(error))
        parts = until(self.closing, relay(asked, self.ask, self.patience))
        status, headers = await anext(parts)
        told = {"x-slo-replica": "".join(asked.route[:1]), "x-slo-hops": str(asked.hops)}
        return StreamingResponse(parts, status, headers | told)


def application(
    argv: Sequence[str], replicas: int, router: Mapping[str, Any], gpus: float, patience: float
) -> Any:
    """The Serve application. argv: of `slos.serving.launch serve`; router: what `Fleet` takes."""
    routing: dict[str, Any] = {
        "request_router_class": FleetRouter, "request_router_kwargs": dict(router),
        "request_routing_stats_period_s": REPORTS,
    }  # fmt: skip
    engines = serve.deployment(
        Replica, num_replicas=replicas, max_ongoing_requests=MANY,
        request_router_config=RequestRouterConfig(**routing),
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus}, health_check_period_s=5,
        health_check_timeout_s=30, graceful_shutdown_timeout_s=3, max_constructor_retry_count=1,
    )  # fmt: skip
    gateway = serve.deployment(
        Gateway, max_ongoing_requests=MANY, ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=3,
    )  # fmt: skip
    return gateway.bind(engines.bind(list(argv)), patience)


def why_not_started() -> str:
    """The last lines of an engine that did not start, as its replica had them."""
    app = serve.status().applications.get("slos")
    for deployment in app.deployments.values() if app else ():
        if deployment.message.count(FAILED) >= 2:
            return "an engine did not start; its last lines:" + deployment.message.split(FAILED)[1]
    return ""


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.fleet", description=__doc__)
    add = parser.add_argument
    others = "options not listed here go to `slos.serving.launch serve`"
    add("model", help=f"a name or folder that vLLM can load; {others}")
    add("--replicas", type=int, default=2, metavar="N", help="how many (%(default)s)")
    add("--router", default="cheapest", help=f"one of {', '.join(ROUTERS)} (%(default)s)")
    add("--hops", type=int, metavar="N", help="how often a request may be passed on (the router's)")
    add("--gpus", type=float, metavar="N", help="GPUs per replica (1 if the cluster has GPUs)")
    patience = "seconds that a request may wait for a replica (%(default)g)"
    add("--patience", type=float, default=120.0, metavar="S", help=patience)
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=8000)
    return parser


def checked(given: argparse.Namespace, rest: Sequence[str]) -> tuple[dict[str, Any], str]:
    """What `Fleet` takes, and the address of the Ray cluster; ValueError for what is wrong, before
    Ray starts. rest: what goes to `slos.serving.launch serve`."""
    require(given.replicas >= 1, "--replicas", given.replicas, "at least 1")
    require(given.patience > 0, "--patience", given.patience, "positive (seconds)")
    started = launch.arguments(rest)
    for option in ("--uds", "--ssl-certfile"):
        cure = "leave it out: replicas are reached on this machine"
        require(option not in started.argv, "option", option, "one of a single server", cure)
    launch.require_free(given.host, given.port)
    names = ("ttft", "slowdown", "tpot", "e2e", "rule", "value")
    default = {name: getattr(started.settings, name) for name in names}
    hops = {} if given.hops is None else {"hops": given.hops}
    router = {"router": given.router, "options": hops, "default": default}
    Fleet(**router).make(profile("opt-6.7b-a100").roofline)
    return router, ray_address()


def start_ray(cluster: str) -> None:
    """Join the cluster, or start Ray on this machine where none is named."""
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's own default yields to other processes
    if cluster:
        ray.init(log_to_driver=False)
    else:
        ray_here(ray, log_to_driver=False, _node_ip_address="127.0.0.1")


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM."""
    given, rest = options().parse_known_args(argv)
    try:
        router, cluster = checked(given, rest)
    except ValueError as error:
        print(f"slos.fleet: {error}", file=sys.stderr)
        return 2
    start_ray(cluster)
    gpus = given.gpus
    if gpus is None:
        gpus = float(ray.cluster_resources().get("GPU", 0) > 0)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        serve.start(http_options={"host": given.host, "port": given.port})
        app = application([given.model, *rest], given.replicas, router, gpus, given.patience)
        try:
            handle = serve.run(app, name="slos")
        except RuntimeError as error:
            print(f"slos.fleet: {why_not_started() or error}", file=sys.stderr)
            return 1
        at = f"http://{given.host}:{given.port}"
        print(f"slos: {given.model} on {given.replicas} replicas at {at}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            handle.end_streams.remote().result(timeout_s=3)
            raise
    except KeyboardInterrupt:
        return 0
    finally:
        serve.delete("slos")
        # it would keep its address, whatever --port says the next time
        if cluster and not serve.status().applications:
            serve.shutdown()
        ray.shutdown()
    return 1
