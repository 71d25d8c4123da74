"""The one command with two real engines on the CPU: a replay over HTTP while a replica is killed,
and what follows."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email.message import Message
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import aiohttp
import grpc
import psutil
import pytest
from aiohttp import web

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Request, Stage
from slos.hardware.profiles import Profile, save
from slos.replay import replay
from slos.replay.results import Replayed
from slos.serving import launch
from slos.studies.real_engine import ON_CPU

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Ray's own
    from slos.fleet import gateway
    from slos.fleet.gateway import main

pytestmark = [pytest.mark.xdist_group("servers"), pytest.mark.filterwarnings("ignore")]
LONG = 600.0  # seconds that a busy machine may take to start an engine
SMALL = "--num-gpu-blocks-override", "1024"  # a KV cache of a GiB takes seconds to make
# what the fleet says of an answer that ends too early, or vLLM itself, if it has the time
LOST = "lost in the middle of this answer", "EngineCore encountered an issue"
SOON = 10.0  # seconds in which a fleet ends; with Ray Serve's own defaults it would take longer


class Served(NamedTuple):
    url: str
    process: subprocess.Popen
    log: Path

    def engines(self) -> list[psutil.Process]:
        """The servers of the replicas."""
        return [
            p
            for p in self.children()
            if "--load" in self.arguments(p) and p.parent() in self.actors()
        ]

    def actors(self) -> list[psutil.Process]:
        return [
            p for p in self.children() if "ServeReplica:slos:Replica" in " ".join(self.arguments(p))
        ]

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    @staticmethod
    def arguments(process: psutil.Process) -> list[str]:
        try:
            return process.cmdline()
        except psutil.Error:
            return []


@pytest.fixture(scope="module")
def served(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("serve")
    guess = Profile(
        "guess",
        "tiny",
        "cpu",
        1,
        Roofline((Plane(5e-5, 0.0, 1e-2),)),
        10_000,
        1024,
        "made up for a test",
    )
    save(guess, folder / "guess.json")
    (folder / "chat.jinja").write_text("{{ messages[0].content }}")
    port, log = str(launch.free_port()), folder / "log"
    command = [sys.executable, "-m", "slos.fleet", str(model), "--replicas", "2", "--port", port]
    command += [
        "--profile",
        str(folder / "guess.json"),
        "--no-calibrate",
        "--slo-ttft",
        "30",
        "--slo-tpot",
        "3",
    ]
    command += [*ON_CPU, *SMALL, "--max-model-len", "1024"]
    command += ["--chat-template", str(folder / "chat.jinja")]
    usual = {
        "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1", "VLLM_CPU_KVCACHE_SPACE": "1",
        "OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    }  # fmt: skip
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=usual | os.environ)
    served = Served(f"http://127.0.0.1:{port}", process, log)
    try:
        wait(
            lambda: process.poll() is not None or f"2 replicas at {served.url}" in log.read_text(),
            "ready",
            log,
        )
        assert process.poll() is None, log.read_text()[-3000:]
        yield served
    finally:
        for p in (
            [*served.children(), psutil.Process(process.pid)] if process.poll() is None else []
        ):
            p.kill()


def wait(what: Any, name: str, log: Path) -> None:
    end = time.monotonic() + LONG
    while not what():
        assert time.monotonic() < end, f"not {name}: {log.read_text()[-3000:]}"
        time.sleep(0.2)


def begin(url: str, path: str = "/v1/completions", **fields: Any) -> http.client.HTTPResponse:
    """An answer that has begun."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LONG)
    usual = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
    prompt = (
        {"messages": [{"role": "user", "content": "Once"}]}
        if "chat" in path
        else {"prompt": [7, 8, 9, 10]}
    )
    connection.request(
        "POST", path, json.dumps(prompt | usual | fields), {"Content-Type": "application/json"}
    )
    return connection.getresponse()


def ask(url: str, *path: str, **fields: Any) -> tuple[http.client.HTTPResponse, bytes]:
    answer = begin(url, *path, **fields)
    return answer, answer.read()


def work(tag: str, count: int = 40) -> list[Request]:
    slo = SLO(3.0, ttft=30.0)
    return [
        Request(f"{tag}{i}", 0.1 * i, (Stage(50 + i, 40 if i % 2 else 80, slo),))
        for i in range(count)
    ]


def replayed(requests: list[Request], url: str) -> Replayed:
    run = replay.run(requests, url, vocabulary=500, timeout=LONG)
    assert sorted(o.id for o in run.outcomes) == sorted(r.id for r in requests), (
        "each has one outcome"
    )
    return run


def replicas(served: Served, count: int = 24) -> set[str | None]:
    """Who answers, of many calls at once: one after the other would all go to the first idle
    replica."""

    def who(i: int) -> str | None:
        return ask(served.url, prompt=[i + 7] * 200, max_tokens=20)[0].getheader("x-slo-replica")

    with ThreadPoolExecutor(count) as pool:
        return set(pool.map(who, range(count)))


def test_a_replay_is_answered_by_both(served: Served) -> None:
    run = replayed(work("a"), served.url)
    assert not run.failures and all(o.attained and o.output in (40, 80) for o in run.outcomes)
    assert len(replicas(served)) == 2 == len(served.engines())


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
@pytest.mark.parametrize("stream", [False, True])
def test_what_nobody_can_do_in_time_is_passed_on_and_then_kept(
    served: Served, path: str, stream: bool
) -> None:
    answer, text = ask(
        served.url, path, stream=stream, vllm_xargs={"slo_ttft": 1e-4, "slo_tpot": 0.1}
    )
    assert answer.status == 200 and b"abort" not in text and b'"length"' in text
    assert answer.getheader("x-slo-hops") == "2", "to the other one, and back to the first"
    answer, text = ask(served.url, path, stream=stream)
    assert answer.status == 200 and answer.getheader("x-slo-hops") == "0"


def test_nothing_beyond_this_machine_is_answered(served: Served) -> None:
    """What listens there is the gRPC server of each Ray Serve replica, and it asks for a token."""
    ends = [(p, c) for p in served.children() for c in p.net_connections() if c.status == "LISTEN"]
    beyond = [
        (" ".join(served.arguments(p)), c.laddr)
        for p, c in ends
        if c.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
    ]
    assert len(ends) > 6 and all("ServeReplica" in name for name, _ in beyond), beyond
    for _, at in beyond:
        with grpc.insecure_channel(f"127.0.0.1:{at.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=LONG)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]


def test_metrics_are_those_of_all_replicas(served: Served) -> None:
    connection = http.client.HTTPConnection(served.url.removeprefix("http://"), timeout=LONG)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    for name in ("slos_step_seconds_count", "vllm:num_requests_running"):
        lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
        assert len({re.search('replica="([^"]+)"', line)[1] for line in lines}) == 2, lines  # type: ignore[index]


def test_errors_are_those_of_one_server(served: Served) -> None:
    answer, text = ask(served.url, vllm_xargs={"slo_ttft": -1})
    assert answer.status == 400 and "slo_ttft = -1" in json.loads(text)["error"]["message"]
    answer, text = ask(served.url, prompt=[7] * 2000)
    assert answer.status == 400 and "1024" in json.loads(text)["error"]["message"]


@pytest.mark.parametrize("victim", ["actor", "engine"])
def test_a_killed_replica_costs_at_most_the_answers_begun_there_and_is_replaced(
    served: Served, victim: str
) -> None:
    before, engines = replicas(served), {p.pid for p in served.engines()}
    process = (served.actors() if victim == "actor" else served.engines())[0]
    threading.Timer(2.0, process.kill).start()
    requests = work(victim)
    run = replayed(requests, served.url)
    assert not process.is_running()
    for why in run.failures.values():
        assert any(said in why for said in LOST)
    assert len(run.failures) < len(requests) / 2
    assert all(
        o.output == r.output
        for o in run.outcomes
        for r in requests
        if o.id == r.id and o.id not in run.failures
    )

    wait(lambda: len(replicas(served)) == 2, "replaced", served.log)
    after = replicas(served)
    assert len(after & before) == 1 == len(after - before)
    assert len({p.pid for p in served.engines()} - engines) == 1, (
        "an engine anew, and the old one's are gone"
    )
    again = replayed(work(f"{victim}-again"), served.url)
    assert not again.failures and all(o.attained for o in again.outcomes)


def test_a_hung_engine_is_replaced(served: Served) -> None:
    wait(lambda: len(replicas(served)) == 2, "replaced", served.log)
    engines = {p.pid for p in served.engines()}
    core = [c for c in served.engines()[0].children(recursive=True) if "EngineCore" in c.name()]
    for process in core or served.engines()[:1]:
        process.suspend()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: ask(served.url, prompt=[i + 7] * 200), range(8)))
    wait(
        lambda: (
            len({p.pid for p in served.engines()} - engines) == 1 and len(replicas(served)) == 2
        ),
        "replaced",
        served.log,
    )


def test_a_stopped_server_ends_streams_and_leaves_nothing_behind(served: Served) -> None:
    everything = served.children()
    arguments = [served.arguments(p) for p in served.engines()]
    folders = [Path(a[a.index("--load") + 1]).parent for a in arguments]
    assert all(folder.is_dir() for folder in folders)
    assert len(served.engines()) == 2 and len(everything) > 6
    answer = begin(served.url, prompt=[7] * 50, max_tokens=900, stream=True)
    served.process.send_signal(signal.SIGTERM)
    begun, said = time.monotonic(), answer.read()
    assert served.process.wait(LONG) == 0, served.log.read_text()[-3000:]
    took = time.monotonic() - begun
    assert b"shuts down" in said and said.endswith(b"data: [DONE]\n\n")
    assert took < SOON, f"{took:.1f} s"
    _, left = psutil.wait_procs(everything, timeout=LONG)
    assert not left and not any(folder.exists() for folder in folders)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--replicas", "0"], "--replicas = 0 must be at least 1"),
        (["--router", "random"], "router = 'random' must be one of round-robin"),
        (
            ["--router", "least-loaded", "--hops", "1"],
            "setting of router 'least-loaded' = 'hops' must be one of none",
        ),
        (["--patience", "0"], "--patience = 0.0 must be positive"),
        (["--slo-tpot", "-1"], "tpot = -1.0 must be positive"),
        (["--uds", "/tmp/s"], "option = '--uds' must be one of a single server"),
        (["--scheduling-policy", "priority"], "'priority' must be fcfs"),
    ],
)
def test_a_wrong_argument_is_refused_at_once(
    capsys: pytest.CaptureFixture, arguments: list[str], said: str
) -> None:
    assert main(["model", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_dead_cluster_is_said_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{launch.free_port()}")
    assert main(["model"]) == 2
    assert "must be a cluster that answers" in capsys.readouterr().err


def test_silence_is_ill_only_while_a_request_waits_for_the_engine(tmp_path: Path) -> None:
    replica = object.__new__(gateway.Replica)
    replica.folder = tempfile.TemporaryDirectory(dir=tmp_path)
    replica.report, now = tmp_path / "load.json", time.time()
    replica.waits = {}
    replica.hears_from_engine()  # there is no report yet
    replica.report.write_text("{}")
    os.utime(replica.report, (now - 99, now - 99))
    replica.hears_from_engine()
    replica.waits = {"x": now - 1}
    replica.hears_from_engine()
    replica.waits = {"x": now - 1, "y": now - 50}
    with pytest.raises(ValueError, match="seconds of silence = 5"):
        replica.hears_from_engine()
    os.utime(replica.report, (now - 5, now - 5))
    replica.hears_from_engine()


def test_a_replica_writes_down_no_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(command: list[str], **how: Any) -> None:
        given = launch.arguments(command[command.index("serve") + 1 :])
        raise InterruptedError("--disable-uvicorn-access-log" in given.argv)

    monkeypatch.setattr(gateway.subprocess, "Popen", started)
    with pytest.raises(InterruptedError, match="True"):
        gateway.Replica(["model"])


@pytest.mark.parametrize("status", [200, 503])
def test_answers_go_on_while_the_engine_says_how_it_is(tmp_path: Path, status: int) -> None:
    """The engine here answers in the event loop of the replica: one that waited would wait for
    ever."""

    async def engine(request: web.BaseRequest) -> web.Response:
        return web.Response(status=status)

    async def play() -> None:
        replica = object.__new__(gateway.Replica)
        replica.folder = SimpleNamespace(cleanup=lambda: None)  # type: ignore[assignment]
        replica.report, replica.waits = tmp_path / "load.json", {}
        runner = web.ServerRunner(web.Server(engine))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        replica.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore
        try:
            await asyncio.wait_for(replica.check_health(), LONG)
        finally:
            await replica.session.close()
            await runner.cleanup()

    if status == 200:
        asyncio.run(play())
    else:
        with pytest.raises(aiohttp.ClientResponseError):
            asyncio.run(play())


def test_a_replica_that_cannot_be_calibrated_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A model for embeddings has no completions."""

    def lacks(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.HTTPError("/v1/completions", 404, "Not Found", Message(), None)

    lives = SimpleNamespace(wait=threading.Event().wait)
    fake = SimpleNamespace(Popen=lambda *a, **k: lives, PIPE=subprocess.PIPE)
    monkeypatch.setattr(gateway, "subprocess", fake)
    monkeypatch.setattr(gateway, "wait", lambda *a, **k: None)
    monkeypatch.setattr(launch, "calibrate", lacks)
    replica = gateway.Replica(["model"])
    assert not replica.waits and "not calibrated: HTTP Error 404" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cluster", "others", "ends"), [("", {}, False), ("a:1", {}, True), ("a:1", {"b": 0}, False)]
)
def test_serve_ends_with_the_last_application_of_a_cluster(
    monkeypatch: pytest.MonkeyPatch, cluster: str, others: dict[str, int], ends: bool
) -> None:
    """It would keep its address, so that a second fleet is not to be had at another port."""
    done: list[str] = []

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("no engine")

    fake = SimpleNamespace(
        start=lambda **options: None, run=fails, delete=lambda name: done.append(name),
        status=lambda: SimpleNamespace(applications=others), shutdown=lambda: done.append("all"),
    )  # fmt: skip
    ray = SimpleNamespace(cluster_resources=dict, shutdown=lambda: done.append("Ray"))
    named = {"serve": fake, "ray": ray, "ray_address": lambda: cluster}
    named |= {"application": lambda *args: None, "start_ray": lambda cluster: None}
    for name, instead in named.items():
        monkeypatch.setattr(gateway, name, instead)
    monkeypatch.setattr(gateway.signal, "signal", lambda *args: None)
    assert main(["model", "--port", str(launch.free_port())]) == 1
    assert done == ["slos", *["all"] * ends, "Ray"]


def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slos.fleet", str(tmp_path / "no-such-model"), "--replicas"]
    command += ["1", "--port", str(launch.free_port())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 1 and "its last lines" in done.stderr
    assert "no-such-model" in done.stderr, done.stderr


@pytest.mark.parametrize("moment", ["gcs_server", "--load"], ids=["Ray", "engine"])
def test_a_fleet_that_is_still_starting_ends(model: Path, tmp_path: Path, moment: str) -> None:
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    command = [sys.executable, "-m", "slos.fleet", str(model), "--replicas", "1", *ON_CPU]
    command += ["--port", str(launch.free_port())]
    environment = os.environ | {"TMPDIR": str(folder), "RAY_TMPDIR": "/tmp"}
    with (tmp_path / "log").open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    fleet = Served("", process, tmp_path / "log")
    try:

        def begun() -> bool:
            assert process.poll() is None, fleet.log.read_text()[-3000:]
            return any(moment in " ".join(fleet.arguments(p)) for p in fleet.children())

        wait(begun, "begun", fleet.log)
        everything, start = fleet.children(), time.monotonic()
        process.terminate()
        process.wait(LONG)
        assert time.monotonic() - start < SOON, fleet.log.read_text()[-3000:]
        assert not [p for p in everything if p.is_running()]
    finally:
        process.kill()
    folder.rmdir()  # nothing is left in it
