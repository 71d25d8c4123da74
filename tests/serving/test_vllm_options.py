"""A real server as one is started that is shared: a key, TLS, IPv6 and a short context; and how it
ends."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)

from slos.serving import launch
from slos.studies.real_engine import ON_CPU

pytestmark = [pytest.mark.xdist_group("servers"), pytest.mark.filterwarnings("ignore")]
LONG = 600.0  # seconds that a busy machine may take
SOON = 10.0  # seconds in which a server ends
KEY = "a-key"
BODY = {"prompt": [7] * 10, "max_tokens": 29, "stream": True, "ignore_eos": True}


def wait_for(text: str, log: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + LONG
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < end, log.read_text()[-3000:]
        time.sleep(0.2)


def test_a_shared_server_is_calibrated_replayed_and_ended(model: Path, tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=IP:::1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(make, check=True, capture_output=True)
    port, log = launch.free_port(), tmp_path / "log"
    folder = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))  # sockets in it have short paths
    command = [sys.executable, "-m", "slos.serving.launch", "serve", str(model), *ON_CPU]
    command += ["--port", str(port), "--host", "::1", "--max-model-len", "40", "--api-key", KEY]
    command += ["--ssl-certfile", str(certificate), "--ssl-keyfile", str(key), "--slo-ttft", "9"]
    command += ["--num-gpu-blocks-override", "1024"]
    ones = "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"
    environment = dict.fromkeys(ones, "1") | os.environ | {"TMPDIR": str(folder)}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        wait_for(f"slos: calibrated https://[::1]:{port}", log, process)
        replay = [sys.executable, "-m", "slos.replay", "--url", f"https://[::1]:{port}"]
        replay += ["--requests", "3", "--rate", "5", "--ttft", "9", "--tpot", "1"]
        trust = environment | {"SSL_CERT_FILE": str(certificate)}
        for known in (trust | {"OPENAI_API_KEY": KEY}, trust, environment):
            done = subprocess.run(replay, env=known, capture_output=True, text=True, timeout=LONG)
            if "OPENAI_API_KEY" in known:
                assert "answered 3, failed 0" in done.stdout, done.stderr
            else:
                assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
                assert "OPENAI_API_KEY" in done.stderr and "SSL_CERT_FILE" in done.stderr

        def stream(_: int) -> bytes:
            trusting = ssl.create_default_context(cafile=str(certificate))
            server = http.client.HTTPSConnection("::1", port, timeout=LONG, context=trusting)
            headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
            try:
                server.request("POST", "/v1/completions", json.dumps(BODY), headers)
                answer = server.getresponse()
            except OSError:
                return b""  # the server had not taken its connection
            return answer.read()

        with ThreadPoolExecutor(200) as pool:
            answers = pool.map(stream, range(200))
            time.sleep(1.0)
            begun = time.monotonic()
            process.terminate()
            assert process.wait(LONG) == 0, log.read_text()[-3000:]
            assert time.monotonic() - begun < SOON
            said = list(answers)
        assert all(text.endswith(b"data: [DONE]\n\n") for text in said if text.startswith(b"data"))
    finally:
        process.kill()
    folder.rmdir()  # nothing is left in it


@pytest.mark.parametrize("moment", ["", "non-default args", "(EngineCore"])
def test_a_server_that_is_still_starting_ends(model: Path, tmp_path: Path, moment: str) -> None:
    """vLLM's front end loses the signal once its engine has begun."""
    log, folder = tmp_path / "log", Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    command = [sys.executable, "-m", "slos.serving.launch", "serve", str(model), "--enforce-eager"]
    command += ["--port", str(launch.free_port())]
    ones = "VLLM_NO_USAGE_STATS", "HF_HUB_OFFLINE", "VLLM_CPU_KVCACHE_SPACE", "OMP_NUM_THREADS"
    environment = dict.fromkeys(ones, "1") | os.environ | {"TMPDIR": str(folder)}
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        end = time.monotonic() + LONG
        while not [*folder.iterdir()]:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.01)
        wait_for(moment, log, process)
        everything, begun = psutil.Process(process.pid).children(recursive=True), time.monotonic()
        process.terminate()
        assert process.wait(LONG) and time.monotonic() - begun < SOON, log.read_text()[-3000:]
        assert not any(p.is_running() for p in everything)
    finally:
        process.kill()
    folder.rmdir()  # nothing is left in it
