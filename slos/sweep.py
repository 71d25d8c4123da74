"""Grids of runs: in parallel, resumable, and with the same bytes in the result file however they were executed.

The file is rewritten whole after every run, so a reader, or a sweep that was cut short, finds finished runs only. A row
is used again while the code and data that made it are the same.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from slos.report import write_whole

ROOT = Path(__file__).parents[1]
Case = TypeVar("Case")


def sources_digest(root: Path | None = None) -> str:
    """What every result is made from: the Python and JSON of slos and workloads, and the data's names and sizes."""
    root, sha = root or ROOT, hashlib.sha256()
    for package in ("slos", "workloads"):
        for path in sorted(p for p in (root / package).rglob("*") if p.suffix in (".py", ".json")):
            sha.update(f"\0{path.relative_to(root)}\0".encode() + path.read_bytes())
    for folder in (os.environ.get("SLOS_DATA"), os.environ.get("SLOS_CACHE", "~/.cache/slos-serve")):
        for path in sorted(Path(folder).expanduser().rglob("*")) if folder else ():
            sha.update(f"\0{path.name}\0{path.stat().st_size}".encode())
    return sha.hexdigest()[:12]


@cache
def commit() -> str:
    """The commit that this runs from, `+` if the sources have changed since; `unknown` outside a checkout."""
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "slos", "workloads"], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if dirty else "")


def sweep(
    function: Callable[[Case], Sequence[Any]],
    cases: Sequence[Case],
    path: Path | str,
    row: type,
    workers: int | None = None,
) -> list[Any]:
    """Run `function` on every case that `path` has no rows of yet; the rows of `cases`, in their order.

    function: importable (it runs in other processes), from a case to its rows. cases: distinct, their `str` is the key
    in the file. row: the frozen dataclass of a row, of str, int, float and bool fields. workers: processes, by default
    one per core. An error of one run stops the sweep; what was finished stays in the file.
    """
    path = Path(path)
    keys = [str(case) for case in cases]
    digest = sources_digest()
    done = _read(path, row, digest)
    todo = [(k, case) for k, case in zip(keys, cases, strict=True) if k not in done]
    report = _Progress(len(todo))
    if todo and (workers or os.cpu_count() or 1) == 1:
        for k, case in todo:
            done[k] = list(function(case))
            _write(path, row, done, digest)
            report.step(k)
    elif todo:
        context = multiprocessing.get_context("spawn")  # a fork of a threaded kernel can hang
        count = min(workers or os.cpu_count() or 1, len(todo))
        with ProcessPoolExecutor(count, mp_context=context, initializer=_end_with_parent) as pool:
            running = {pool.submit(function, case): k for k, case in todo}
            try:
                while running:
                    finished = wait(running, return_when=FIRST_COMPLETED).done
                    for future in sorted(finished, key=lambda f: f.exception() is not None):
                        k = running.pop(future)
                        done[k] = list(future.result())
                        _write(path, row, done, digest)
                        report.step(k)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    report.close()
    return [r for k in keys for r in done[k]]


def _end_with_parent() -> None:
    """In a worker: do not outlive who started it, even if that was killed."""

    def watch() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _columns(row: type) -> list[str]:
    return ["run", "digest", "commit", *(f.name for f in fields(row))]


def _read(path: Path, row: type, digest: str) -> dict[str, list[Any]]:
    """Rows by run of a file that the present sources made; nothing of another one."""
    if not path.exists():
        return {}
    kinds = {"str": str, "int": int, "float": float, "bool": lambda text: text == "True"}
    found: dict[str, list[Any]] = {}
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.reader(f)
        if next(reader, None) != _columns(row):
            return {}
        for n, (run, made_from, _, *cells) in enumerate(reader, start=2):
            if made_from == digest:
                try:
                    values = [kinds[str(f.type)](cell) for f, cell in zip(fields(row), cells, strict=True)]
                except ValueError as error:
                    raise ValueError(f"{path}, line {n}: {error}; remove the file and run again") from None
                found.setdefault(run, []).append(row(*values))
    return found


def _write(path: Path, row: type, done: dict[str, list[Any]], digest: str) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(row))
    for run in sorted(done):
        for r in done[run]:
            writer.writerow([run, digest, commit(), *(getattr(r, f.name) for f in fields(row))])
    write_whole(path, text.getvalue())


class _Progress:
    """A bar in a notebook or a terminal, and a line in the file SLOS_PROGRESS for whoever runs the notebook."""

    def __init__(self, total: int) -> None:
        self._bar = tqdm(total=total, unit="run", disable=not total)
        self._total, self._done, self._start = total, 0, time.monotonic()
        self._path = os.environ.get("SLOS_PROGRESS")
        if total:
            self._tell("starting", 0.0)

    def step(self, label: str) -> None:
        self._bar.update()
        self._done += 1
        self._tell(label, (time.monotonic() - self._start) / self._done * (self._total - self._done))

    def _tell(self, label: str, left: float) -> None:
        if self._path:
            line = {"done": self._done, "total": self._total, "label": label, "left_s": round(left, 1)}
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    def close(self) -> None:
        self._bar.close()
