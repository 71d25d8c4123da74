"""How a server is started, and that no other one is taken for it: without vLLM."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from slos.hardware.profiles import profile
from slos.serving import calls, launch
from slos.serving.calls import LONGEST, PROVE, calibrate, proof, secret
from slos.serving.launch import arguments, main


def option(argv: list[str], name: str) -> str:
    [at] = [i for i, part in enumerate(argv) if part == name]
    return argv[at + 1]


def slos(argv: list[str]) -> dict:
    return json.loads(option(argv, "--additional-config"))["slos"]


def test_without_more_it_is_as_ever() -> None:
    started = arguments(["tiny", "--max-model-len", "40"])
    assert started.url == "http://127.0.0.1:8000" and started.calibrates and not started.key
    assert (option(started.argv, "--host"), option(started.argv, "--port")) == (
        "127.0.0.1",
        "8000",
    )
    assert "slos.serving.vllm_plugin.SLOScheduler" in started.argv
    assert started.argv[:4] == ["serve", "tiny", "--max-model-len", "40"]


def test_what_is_typed_beats_the_file_and_the_file_beats_a_default(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(
        "host: 127.0.0.2\nport: 18103\napi-key: filed\nadditional_config:\n"
        "  other: 1\n  slos: {tpot: 0.3, ttft: 9.0, value: 2.0}\n"
    )
    started = arguments(["tiny", "--config", str(file)])
    assert started.url == "http://127.0.0.2:18103" and started.key == "filed"
    assert slos(started.argv) == {"tpot": 0.3, "ttft": 9.0, "value": 2.0}
    assert json.loads(option(started.argv, "--additional-config"))["other"] == 1
    assert option(started.argv, "--config") == str(file)
    typed = ["--port=18104", "--slo-tpot", "0.2", "--slo-slowdown", "4", "--api_key", "typed"]
    more = ["--additional-config", '{"slos": {"tpot": 0.25, "value": 3.0}}']
    started = arguments(["tiny", *typed, "--config", str(file), *more])
    assert started.url == "http://127.0.0.2:18104" and started.key == "typed"
    assert slos(started.argv) == {"tpot": 0.2, "value": 3.0, "slowdown": 4.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("slo-tpot: 1", "slo-tpot = 1 must be left out; type it"),
        ("[1]", r"\[1\] must be a mapping"),
        ("a: [", "cannot be read"),
        ("scheduling-policy: priority", "--scheduling-policy = 'priority' must be fcfs"),
        ("port: abc", "port = 'abc' must be a number"),
        ("additional-config: [1]", r"additional-config = \[1\] must be an object"),
        ("additional-config: '{'", "cannot be read: Expecting property name"),
    ],
)
def test_a_file_that_would_mislead_is_refused(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=said):
        arguments(["tiny", "--config", str(file)])


def test_another_queue_is_refused_before_a_model_is_loaded() -> None:
    for flag in ("--scheduling-policy", "--scheduling_policy"):
        with pytest.raises(ValueError, match="'priority' must be fcfs"):
            arguments(["tiny", flag, "priority"])
    assert "priority" in arguments(["tiny", "--stock", "--scheduling-policy", "priority"]).argv


def test_what_follows_a_dot_is_vllms_to_read() -> None:
    typed = ["--speculative_config.num_speculative_tokens", "3", "--hf_overrides.rope_theta=1.0"]
    argv = arguments(["tiny", *typed]).argv
    assert option(argv, "--speculative-config.num_speculative_tokens") == "3"
    assert "--hf-overrides.rope_theta=1.0" in argv
    with pytest.raises(ValueError, match=r"slos\.tpot=1'\] must be left out; write"):
        arguments(["tiny", "--additional-config.slos.tpot=1"])


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--policy", "nosuch"], "policy = 'nosuch' must be one of vllm"),
        (["--additional-config", '{"slos": {"options": {"x": 1}}}'], "'slos-serve' = 'x' must be"),
        (["--profile", "nosuch"], "profile 'nosuch' is unknown"),
    ],
)
def test_a_wrong_policy_is_refused_before_a_model_is_loaded(typed: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        arguments(["tiny", *typed])
    if "--profile" not in typed:  # another scheduler may know it
        assert arguments(["tiny", *typed, "--scheduler-cls", "a.b"]).argv[1] == "tiny"


def test_requests_may_take_longer_to_end() -> None:
    started = arguments(["tiny", "--shutdown-timeout", "30"])
    assert started.drain == 30 and option(started.argv, "--shutdown-timeout") == "30"
    assert arguments(["tiny"]).drain == 0


def test_where_a_server_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(["tiny", "--host", "::1"]).url == "http://[::1]:8000"
    assert arguments(["tiny", "--host", "0.0.0.0"]).url == "http://127.0.0.1:8000"
    tls = arguments(["tiny", "--ssl-certfile", "c.pem", "--ssl-keyfile", "k.pem"])
    assert tls.url == "https://127.0.0.1:8000" and "k.pem" in tls.argv and "c.pem" in tls.argv
    assert "--uds" in arguments(["tiny", "--uds", "/tmp/s"]).argv
    monkeypatch.setenv("VLLM_API_KEY", "from-env")
    assert arguments(["tiny"]).key == "from-env"


class Server(ThreadingHTTPServer):
    """Plays a server of a model with a context of `longest`; of ours where it is told the secret.
    status: of its completions."""

    request_queue_size = 128

    def __init__(self, ours: bool, longest: int = 512, key: str = "", status: int = 200) -> None:
        self.ours, self.longest, self.key, self.prompts = ours, longest, key, []
        self.status = status
        super().__init__(("127.0.0.1", 0), Answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def answer(self) -> None:
        server: Server = self.server  # type: ignore[assignment]
        text = self.rfile.read(int(self.headers.get("content-length") or 0))
        allowed = not server.key or self.headers.get("Authorization") == f"Bearer {server.key}"
        if text:
            server.prompts.append(json.loads(text))
        status = server.status if text else 200
        self.send_response(status if allowed or self.path == "/health" else 401)
        if server.ours and (challenge := self.headers.get(PROVE)):
            self.send_header(PROVE, proof(secret(), challenge))
        body = json.dumps({"data": [{"id": "m", "max_model_len": server.longest}]}).encode()
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def serving(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    monkeypatch.setenv("SLOS_SECRET", "made at start")
    servers: list[Server] = []

    def start(*args, **kwargs) -> Server:
        servers.append(Server(*args, **kwargs))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_a_stranger_is_left_alone(serving) -> None:
    stranger = serving(ours=False)
    with pytest.raises(RuntimeError, match="another server answers"):
        calibrate(stranger.url, rounds=1, own=True)
    assert not stranger.prompts


def test_a_port_in_use_is_said_at_once(serving, capsys: pytest.CaptureFixture) -> None:
    port = str(serving(ours=False).server_port)
    with pytest.raises(SystemExit) as end:
        main(["serve", "tiny", "--port", port])
    assert end.value.code == 2 and f"port {port} is in use" in capsys.readouterr().err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch.require_free("127.0.0.1", int(port))


@pytest.mark.parametrize("longest", [40, 512, 131072])
def test_a_calibration_has_the_key_and_fits_the_context(
    serving, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # which is not on the way
    monkeypatch.delenv("no_proxy", raising=False)
    server = serving(ours=True, longest=longest, key="k")
    calibrate(server.url, rounds=1, key="k", own=True)
    assert len(server.prompts) > 50
    most = min(longest, LONGEST)
    assert all(len(p["prompt"]) + p["max_tokens"] < most for p in server.prompts)


def test_a_calibration_goes_on_where_requests_are_refused_for_time(serving) -> None:
    server = serving(ours=True, status=429)
    calibrate(server.url, rounds=1, own=True)
    assert len(server.prompts) > 50


def test_a_server_may_take_as_long_to_start_as_its_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "REST", 0.1)
    monkeypatch.setenv(calls.SLOW, "0.2")
    with pytest.raises(RuntimeError, match=r"was not ready after 0\.3 s"):
        calls.wait(f"http://127.0.0.1:{launch.free_port()}")


def test_a_calibration_that_fails_says_so_in_a_line(serving, capsys: pytest.CaptureFixture) -> None:
    server = serving(ours=True, key="k")
    started = arguments(["tiny", "--port", str(server.server_port)])
    launch.when_ready(started)
    said = capsys.readouterr().err
    assert said.startswith("slos: not calibrated: HTTP Error 401") and said.count("\n") == 1


@pytest.mark.parametrize(
    ("planes", "said"),
    [
        ([[0.1, 0.0, 20.0]], "the step of one token = 20.1 must be at most 2 s; planes in seconds"),
        ([[1e-4, 0.0, float("inf")]], "three finite numbers"),
        ([[True, 0.0, 0.02]], "three finite numbers"),
        ([[1e-4, 0.0, float("nan")]], "three finite numbers"),
    ],
)
def test_planes_that_are_no_seconds_are_refused(tmp_path: Path, planes: list, said: str) -> None:
    entry = {"model": "m", "gpu": "g", "gpus": 1, "kv_tokens": 6000, "max_context": 100}
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"mine": {**entry, "planes": planes, "source": "a test"}}))
    with pytest.raises(ValueError, match=said):
        profile(str(path))


def test_a_socket_is_not_calibrated_and_says_so(capsys: pytest.CaptureFixture) -> None:
    started = arguments(["tiny", "--uds", "/tmp/s"])
    launch.when_ready(started)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "not calibrated" in said and "leave --uds out" in said
