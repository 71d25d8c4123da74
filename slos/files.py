"""Where results lie, how files are written, and from which commit, sources and data."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]  # of the repository
ANSWERS = 10.0  # seconds within which a cluster's address must answer
STARTS = 3  # times that Ray is started before its error stands
Frame = Any  # a pandas.DataFrame; its stubs refuse its own idioms


def results_dir(size: str) -> Path:
    """The folder of a size's rows: `results/<size>`, or under SLOS_RESULTS where that is set."""
    return Path(os.environ.get("SLOS_RESULTS") or ROOT / "results") / size


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `path` if all goes well, and is gone if not: a
    reader, or a run cut short, finds the old file or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write all of a file or nothing: see `replacing`."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time: others wait. The lock is on the folder, so that no file is left."""
    folder.mkdir(parents=True, exist_ok=True)
    at = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(at, fcntl.LOCK_EX)
        yield
    finally:
        os.close(at)


def ray_address() -> str:
    """The Ray cluster that RAY_ADDRESS names, "" if none. Raises ValueError where nothing listens
    there: Ray itself tries for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWERS).close()
        except OSError as error:
            cure = "start one by `ray start --head`, or unset it"
            bound = f"a cluster that answers ({error})"
            raise ValueError(f"RAY_ADDRESS = {address!r} must be {bound}; {cure}") from None
    return "" if address == "local" else address


def ray_here(ray: Any, **options: Any) -> None:
    """Start Ray on this machine, with these options of `ray.init`. It waits 30 s for its own node,
    which are too few where other processes keep a machine busy, so it is tried again."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # ms, s
    os.environ.setdefault("RAY_agent_register_timeout_ms", "120000")
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")
    for left in reversed(range(STARTS)):
        try:
            ray.init("local", include_dashboard=False, **options)
            return
        except Exception:  # Ray raises a bare one
            ray.shutdown()
            if not left:
                raise


def sources_digest(root: Path | None = None) -> str:
    """What results are made from: the Python and JSON of slos and workloads, and the data."""
    return hashlib.sha256((data_digest() + code_digest(root)).encode()).hexdigest()[:12]


def code_digest(root: Path | None = None) -> str:
    """The Python and JSON of slos and workloads."""
    root, sha = root or ROOT, hashlib.sha256()
    for package in ("slos", "workloads"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".json")):
            sha.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    return sha.hexdigest()[:12]


def data_digest() -> str:
    """The data's names and sizes."""
    sha = hashlib.sha256()
    cached = os.environ.get("SLOS_CACHE") or "~/.cache/slos-serve"
    for folder in filter(None, (os.environ.get("SLOS_DATA"), cached)):
        # of files alone: a folder's size depends on the file system; .part files come and go
        every = sorted(Path(folder).expanduser().rglob("[!.]*"))
        for path in (p for p in every if p.is_file()):
            sha.update(f"\0{path.name}\0{path.stat().st_size}".encode())
    return sha.hexdigest()[:12]


@cache
def commit() -> str:
    """The commit of this checkout, `+` if the sources have changed since; else `unknown`."""
    git: Any = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True)
    try:
        head = git(["git", "rev-parse", "--short=9", "HEAD"], check=True)
        changes = git(["git", "diff", "--quiet", "HEAD", "--", "slos", "workloads"])
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + "+" * bool(changes.returncode)
