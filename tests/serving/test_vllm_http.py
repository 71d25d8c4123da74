"""A real vLLM server over HTTP, as a newcomer meets it: three commands of the README, objectives,
and bad ones."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)

from slos.core.types import SLO, Request, Stage
from slos.hardware.profiles import profile
from slos.policies import OURS
from slos.replay import replay
from slos.serving import calls
from slos.studies.engine_workloads import bursty
from slos.studies.real_engine import server

pytestmark = [pytest.mark.xdist_group("servers"), pytest.mark.filterwarnings("ignore")]
LONG = 600.0  # seconds that a busy machine may take


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def url(model: Path, folder: Path) -> Iterator[str]:
    saved = ["--save-profile", str(folder / "learned.json"), "--slo-ttft", "5", "--slo-tpot", "0.5"]
    small = ["--enforce-eager", "--max-model-len", "1024", "--num-gpu-blocks-override", "1024"]
    with server(model, OURS, folder, *saved, *small) as url:
        yield url


def ask(url: str, fields: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LONG)
    connection.request(
        "POST",
        "/v1/completions",
        json.dumps(fields),
        {"Content-Type": "application/json"} | (headers or {}),
    )
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def completion(
    url: str, xargs: Any = None, headers: dict[str, str] | None = None, **more: Any
) -> tuple[int, Any]:
    model = replay_model(url)
    fields = {
        "model": model,
        "prompt": [7, 8, 9, 10],
        "max_tokens": 6,
        "temperature": 0,
        "ignore_eos": True,
    }
    return ask(url, fields | more | ({"vllm_xargs": xargs} if xargs is not None else {}), headers)


def replay_model(url: str) -> str:
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LONG)
    connection.request("GET", "/v1/models")
    return json.loads(connection.getresponse().read())["data"][0]["id"]


def test_objectives_are_taken_from_the_body_and_from_headers(url: str) -> None:
    plain = completion(url)
    assert plain[0] == 200 and plain[1]["usage"]["completion_tokens"] == 6
    stages = json.dumps([{"tpot": 0.2, "until": 3}, {"tpot": 0.4}])
    for xargs in (
        {"slo_ttft": 1, "slo_tpot": 0.1},
        {"slo_slowdown": "4", "slo_value": 2},
        {"slo_stages": stages},
        {},
    ):
        status, answer = completion(url, xargs)
        assert status == 200 and answer["choices"][0]["text"] == plain[1]["choices"][0]["text"]
    assert completion(url, headers={"x-slo-ttft": "2", "x-slo-tpot": "0.1"})[0] == 200


@pytest.mark.parametrize(
    ("xargs", "said"),
    [
        ({"slo_ttft": -1}, "slo_ttft = -1.0 must be positive"),
        ({"slo_tpot": "fast"}, "slo_tpot = 'fast' must be a finite number"),
        ({"slo_tttf": 1}, "field = 'slo_tttf' must be one of slo_ttft"),
        ({"slo_slowdown": 0.5}, "slo_slowdown = 0.5 must be at least 1"),
        ({"slo_stages": "[{]"}, "must be JSON"),
    ],
)
def test_malformed_objectives_are_refused_and_the_server_lives_on(
    url: str, xargs: dict[str, Any], said: str
) -> None:
    status, answer = completion(url, xargs)
    assert status == 400 and said in answer["error"]["message"] and answer["error"]["code"] == 400
    name, value = next(iter(xargs.items()))
    status, answer = completion(url, headers={f"x-{name.replace('_', '-')}": str(value)})
    assert status == 400 and name in answer["error"]["message"]
    assert completion(url)[0] == 200


def counted(url: str) -> dict[tuple[str, ...], float]:
    """The kit's samples at the server's `/metrics`, by name and labels but the engine's."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LONG)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    assert "vllm:num_requests_running" in text
    return {
        (s.name, *(v for k, v in s.labels.items() if k != "engine")): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
        if s.name.startswith("slos_")
    }


def test_what_becomes_of_requests_is_at_vllms_own_metrics(url: str) -> None:
    sent = {
        ("easy", "attained"): {"slo_ttft": 30, "slo_tpot": 3},
        ("hard", "best_effort"): {"slo_ttft": 1e-4, "slo_tpot": 0.5},
    }
    calls.calibrate(url, rounds=1)  # until it knows itself vLLM serves, and nobody is declined
    for (kind, _), xargs in sent.items():
        for _ in range(3):
            assert completion(url, xargs | {"slo_class": kind})[0] == 200
    end = time.monotonic() + LONG
    while True:
        now = counted(url)
        found = {k[1:]: v for k, v in now.items() if k[0] == "slos_requests_total"}
        ours = {k: v for k, v in found.items() if k[0] in ("easy", "hard")}
        if sum(ours.values()) >= 6 or time.monotonic() > end:
            break
        time.sleep(0.1)
    assert ours == dict.fromkeys(sent, 3)
    assert (
        now["slos_lateness_seconds_count", "easy"]
        == now["slos_lateness_seconds_bucket", "easy", "0.0"]
    )
    assert now["slos_lateness_seconds_bucket", "hard", "0.0"] == 0
    assert now["slos_requests_total", "calibration", "attained"] > 0
    steps = now["slos_step_seconds_count",]  # of each of these requests 6, one after the other
    assert now["slos_planning_seconds_count",] >= steps >= 36
    assert 0.2 < now["slos_step_roofline_ratio_sum",] / now["slos_step_roofline_ratio_count",] < 5
    assert now["slos_best_effort_requests",] == 0


def test_an_aborted_stream_leaves_the_others_alone(url: str) -> None:
    fields = {
        "model": replay_model(url),
        "prompt": [7] * 50,
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": True,
    }
    for _ in range(4):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=LONG)
        connection.request(
            "POST", "/v1/completions", json.dumps(fields), {"Content-Type": "application/json"}
        )
        assert connection.getresponse().read(20)
        connection.sock.close()
        connection.close()
    assert completion(url)[0] == 200


def test_a_bursty_replay_is_answered_and_measured(url: str) -> None:
    requests = bursty(10.0, 40, seed=1, step=0.02)
    run = replay.run(requests, url, vocabulary=500)
    assert not run.failures and len(run.outcomes) == 40
    assert {o.id for o in run.outcomes} == {r.id for r in requests}
    assert all(o.ttft > 0 and o.finish >= o.arrival + o.ttft for o in run.outcomes)


def test_an_answer_of_two_paces_is_one_call(url: str) -> None:
    thinks = Request("t", 0.0, (Stage(20, 12, SLO(0.5, ttft=5.0)), Stage(0, 8, SLO(0.2))))
    run = replay.run([thinks], url, vocabulary=500)
    assert not run.failures and run.outcomes[0].output == 20 and run.outcomes[0].attained


def test_answers_end_by_themselves_where_nobody_tells_their_length(url: str) -> None:
    requests = bursty(4.0, 12, 0, 0.05)
    assert len({r.output for r in requests}) > 3
    got = replay.run(requests, url, vocabulary=500, told=False)
    assert not got.failures, "each answer has as many tokens as its request says"
    assert sorted(o.output for o in got.outcomes) == sorted(r.output for r in requests)


def test_the_engine_learns_itself_and_keeps_the_profile(url: str, folder: Path) -> None:
    calls.calibrate(url)
    learned = profile(str(folder / "learned.json"))
    step = learned.roofline.time
    assert 0 < step(1) < step(256) < 5.0 and learned.margin >= 1 and learned.kv_tokens > 1024
    assert "measured by slos.serving.vllm_plugin" in learned.source
    log = (folder / f"server-{OURS}.log").read_text()
    assert "slos-serve schedules from now on" in log and "Traceback" not in log


def test_the_third_command_of_the_readme(url: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "slos.replay", "--url", url, "--rate", "8", "--requests", "12"]
    command += ["--ttft", "5", "--tpot", "0.5", "--output", str(tmp_path / "rows.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stderr
    assert "attainment" in done.stdout and "answered 12, failed 0" in done.stdout
    table = pd.read_csv(tmp_path / "rows.csv")
    assert len(table) == 12 and set(table["status"]) == {"measured"}


def test_vllm_bench_serve_works_against_it(url: str, model: Path, tmp_path: Path) -> None:
    port = url.rsplit(":", 1)[1]
    command = [
        sys.executable,
        "-m",
        "slos.serving.launch",
        "bench",
        "serve",
        "--model",
        str(model),
        "--port",
        port,
    ]
    command += [
        "--host",
        "127.0.0.1",
        "--dataset-name",
        "random",
        "--random-input-len",
        "30",
        "--num-prompts",
        "8",
    ]
    command += [
        "--random-output-len",
        "5",
        "--ignore-eos",
        "--save-result",
        "--result-dir",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LONG)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    [saved] = tmp_path.glob("*.json")
    assert json.loads(saved.read_text())["completed"] == 8
