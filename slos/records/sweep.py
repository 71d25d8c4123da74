"""Grids of runs: Ray tasks, resumable, and with the same bytes in the result file however they were
executed.

The file is rewritten whole after every run, so a reader, or a sweep that was cut short, finds
finished runs only; of two sweeps that write to it at once it keeps the rows of both. A row is used
again while the code and data that made it are the same (see `provenance`).

Ray is the one that this process is connected to, else the cluster at RAY_ADDRESS, else one is
started on this machine and kept until the process ends. A cluster is sent slos and workloads, and
must have the rest: the same Python and packages on every node, and the data under the paths
SLOS_DATA and SLOS_CACHE. A worker with other data is an error.
"""

from __future__ import annotations

import atexit
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import psutil
from tqdm.auto import tqdm

from slos.files import ROOT, code_digest, commit, locked, ray_address, ray_here, sources_digest
from slos.records import tidy
from slos.records.provenance import digests
from slos.records.tidy import OtherColumns

BEFORE = ("run", "digest", "commit")  # columns of every file, before those of its rows
Case = TypeVar("Case")


def sweep(
    function: Callable[[Case], Sequence[Any]], cases: Sequence[Case], path: Path | str, row: type,
    workers: int | None = None,
) -> list[Any]:  # fmt: skip
    """Run `function` on every case that `path` has no rows of yet; the rows of `cases`, in their
    order.

    function: importable (it runs in other processes), from a case to its rows. cases: distinct,
    their `str` is the key in the file, their `system`, if there is one, a policy. row: the frozen
    dataclass of a row, of str, int, float and bool fields. workers: runs at a time, by default one
    per core. One at a time, a single run, or no Ray installed: all in this process. An error of one
    run stops the sweep; what was finished stays in the file. A run whose worker died is run again,
    three times at most.
    """
    path, made_from = Path(path), digests(function)
    by_key = {str(case): case for case in cases}
    wanted = {k: made_from.get(getattr(c, "system", ""), made_from[""]) for k, c in by_key.items()}

    def usable(key: str, run: Run) -> bool:
        return run.digest == wanted.get(key, run.digest) and run.digest in made_from.values()

    done = {k: run for k, run in _read(path, row).items() if usable(k, run)}
    todo = {k: case for k, case in by_key.items() if k not in done}
    report = Bar(len(todo))
    try:
        with closing(_finished(function, todo, workers)) as finished:
            for k, rows in finished:
                done[k] = Run(wanted[k], commit(), rows)
                with locked(path.parent):
                    # another sweep may have added to the file
                    others = _read(path, row).items()
                    done = {key: run for key, run in others if usable(key, run)} | done
                    runs = sorted(done.items())
                    lines = (((k, d.digest, d.commit), r) for k, d in runs for r in d.rows)
                    tidy.write(path, row, lines, BEFORE)
                report.step(k)
    finally:
        report.close()
    return [r for k in by_key for r in done[k].rows]


@dataclass(frozen=True, slots=True)
class Run:
    """The rows of a finished run, and what made them."""

    digest: str
    commit: str
    rows: list[Any]


def _finished(
    function: Callable[[Case], Sequence[Any]], todo: dict[str, Case], workers: int | None
) -> Generator[tuple[str, list[Any]]]:
    """Keys and rows in the order in which they are ready."""
    digest = sources_digest()
    ray = _ray(workers, digest) if len(todo) > 1 else None
    if ray is None:
        if todo and code_digest() != _LOADED:
            said = "slos or workloads has changed since this process imported it"
            raise RuntimeError(f"{said}; restart it, or rows of the old code pass for the new's")
        yield from ((k, list(function(case))) for k, case in todo.items())
        return
    call = ray.remote(_call).options(max_retries=3, retry_exceptions=False)
    waiting, running = list(reversed(todo.items())), {}
    try:
        while waiting or running:
            # anew every time: a cluster may grow
            cores = int(ray.cluster_resources().get("CPU", 1))
            while waiting and len(running) < (workers or 2 * cores):
                k, case = waiting.pop()
                running[call.remote(function, case, digest, os.getcwd())] = k
            ray.wait([*running])
            failed = None
            for ref in ray.wait([*running], num_returns=len(running), timeout=0)[0]:
                k = running.pop(ref)
                try:
                    yield k, ray.get(ref)
                except ray.exceptions.RayError as error:
                    failed = error
            if failed:
                # the function's own error, if it is one
                raise getattr(failed, "cause", failed) from failed
    finally:
        for ref in running:
            ray.cancel(ref, force=True)


def _call(
    function: Callable[[Case], Sequence[Any]], case: Case, digest: str, folder: str
) -> list[Any]:
    """In a worker of the same sources and data: the rows of a case, with its paths in `folder`."""
    if _digest_of_this_process() != digest:
        said = "are not those of the sweep, or have changed since"
        raise RuntimeError(f"sources or data on {platform.node()} {said}")
    with suppress(OSError):  # another machine may not have it
        os.chdir(folder)
    return list(function(case))


_digest_of_this_process = cache(sources_digest)
_LOADED = code_digest()  # as this process imports them
_own: dict[str, Any] = {}
"""What this process started Ray, or connected to a cluster, for; empty if it did neither."""


def _ray(workers: int | None, digest: str) -> Any:
    """Ray, connected; None where runs are to be made in this process."""
    address = ray_address() or "local"
    cores = workers or os.cpu_count() or 1
    if workers == 1 or (cores == 1 and address == "local"):
        return None
    try:
        import ray
    except ImportError:
        return None
    wanted = {"cores": cores, "digest": digest, "folder": os.getcwd(), "path": [*sys.path]}
    wanted |= _settings()
    if ray.is_initialized() and _own in ({}, wanted):
        return ray
    _end()  # its workers hold other sources, data or settings
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error", "namespace": "slos"}
    _own.update(wanted)
    atexit.register(_end)
    if address == "local":
        return _start_here(ray, cores, quiet)
    sent = {"working_dir": str(ROOT), "excludes": ["/*", "!/slos/", "!/workloads/"]}
    ray.init(address, runtime_env=sent | {"env_vars": _settings()}, **quiet)
    return ray


def _start_here(ray: Any, cores: int, quiet: dict[str, Any]) -> Any:
    """Ray on this machine; None, after a warning, where it does not start."""
    # Of its own: /tmp/ray may be another user's. Not in TMPDIR: the path of a socket has at most
    # 107 characters.
    for left in Path("/tmp").glob("ray-*-*"):  # by one that was killed
        owner = left.name.split("-")[1]
        if owner.isdigit() and not psutil.pid_exists(int(owner)):
            shutil.rmtree(left, ignore_errors=True)
    temp = tempfile.mkdtemp(prefix=f"ray-{os.getpid()}-", dir="/tmp")
    atexit.register(shutil.rmtree, temp, ignore_errors=True)
    before = os.environ.get("PYTHONPATH")
    # workers find what is found here
    os.environ["PYTHONPATH"] = os.pathsep.join(p or os.getcwd() for p in sys.path)
    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray_here(
            ray, num_cpus=cores, num_gpus=0, object_store_memory=80 << 20, _temp_dir=temp, **quiet
        )
    except Exception as error:
        said = f"Ray did not start, so runs are made one at a time: {error}"
        warnings.warn(said, RuntimeWarning, stacklevel=5)
        _end()
        return None
    finally:
        os.environ.pop("PYTHONPATH")
        os.environ.update({} if before is None else {"PYTHONPATH": before})
        if handler is not None and threading.current_thread() is threading.main_thread():
            # Ray's own prints a stack, at the end of every notebook
            signal.signal(signal.SIGTERM, handler)
    return ray


def _end() -> None:
    """Shut down the Ray that this process started, or leave the cluster that it joined."""
    if _own:
        import ray

        ray.shutdown()
        _own.clear()


def _settings() -> dict[str, str]:
    """Environment that results depend on, with paths that hold in every folder."""
    names = [name for name in ("SLOS_DATA", "SLOS_CACHE") if os.environ.get(name)]
    return {name: str(Path(os.environ[name]).expanduser().resolve()) for name in names}


def _read(path: Path, row: type) -> dict[str, Run]:
    """Runs by key of a file of this layout; nothing of another one."""
    found: dict[str, Run] = {}
    with suppress(OtherColumns):
        for (key, digest, made_at), each in tidy.read(path, row, BEFORE):
            found.setdefault(key, Run(digest, made_at, [])).rows.append(each)
    return found


class Bar:
    """A bar in a notebook or a terminal, and lines in the file SLOS_PROGRESS for `reproduce`."""

    def __init__(self, total: int) -> None:
        seen = sys.stderr.isatty() or "ipykernel" in sys.modules
        self._bar = tqdm(total=total, unit="run", disable=not (total and seen))
        self._total, self._done, self._start = total, 0, time.monotonic()
        self._path = os.environ.get("SLOS_PROGRESS")
        if total:
            self._tell("starting", 0.0)

    def step(self, label: str) -> None:
        self._bar.update()
        self._done += 1
        each = (time.monotonic() - self._start) / self._done
        self._tell(label, each * (self._total - self._done))

    def _tell(self, label: str, left: float) -> None:
        if self._path:
            left = round(left, 1)
            line = {"done": self._done, "total": self._total, "label": label, "left_s": left}
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._bar.close()
