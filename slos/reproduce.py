"""Executes the notebooks in order, skips what is done, shows progress, and prints the table.

A notebook is done when `results/<size>/notebooks/NN_topic.json` holds the digest of everything that
it was made from and the rows that it left are still there. That file is written last: a notebook
that failed or was stopped is not done. It also tells commit, seconds (of the call that ended it)
and machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import psutil

from slos.files import commit, results_dir, sources_digest, write_whole
from slos.records import report
from slos.records.claims import PAPER

SIZES = ("smoke", "quick", "full")
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Failed(Exception):
    """A notebook did not come to its end; the message says which one, where and why."""


def digest(notebook: Path, size: str) -> str:
    """Of the notebook, its parameters, the sources, the data's names and sizes, and, where its
    metadata say `"slos": {"reads": ["rows"]}`, the rows of the size and the paper's numbers."""
    made_from = json.dumps([notebook.name, size, sources_digest(Path())]).encode()
    sha = hashlib.sha256(made_from + notebook.read_bytes())
    if "reads" in told(notebook):
        for path in (PAPER, *sorted(results_dir(size).glob("*.csv"))):
            sha.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return sha.hexdigest()


def told(notebook: Path) -> dict[str, Any]:
    """What its metadata say of it: `needs`, packages; `reads`: what others made."""
    return json.loads(notebook.read_text())["metadata"].get("slos", {})


def rows_present(size: str) -> dict[str, int]:
    """Lines of each CSV of the size."""
    return {p.name: p.read_bytes().count(b"\n") for p in sorted(results_dir(size).glob("*.csv"))}


def is_done(stamp: Path, made_from: str, size: str) -> bool:
    try:
        done = json.loads(stamp.read_text())
    except (FileNotFoundError, ValueError):
        return False
    now = rows_present(size)
    there = all(now.get(name, 0) >= lines for name, lines in done["rows"].items())
    return there and done["digest"] == made_from


def clock(seconds: float) -> str:
    """1:05 for 65 seconds, 2:03:04 for hours."""
    minutes, s = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{s:02}" if minutes >= 60 else f"{minutes}:{s:02}"


class Progress(threading.Thread):
    """Says how far the notebook is: one line that changes on a terminal, else a line every five
    seconds.

    `path` is SLOS_PROGRESS, to which a sweep appends `{"done": 3, "total": 40, "label": "...",
    "left_s": 12.5}` lines.
    """

    def __init__(self, title: str, path: Path) -> None:
        super().__init__(daemon=True)
        self._title, self._path, self._start = title, path, time.monotonic()
        self._over, self._terminal = threading.Event(), sys.stdout.isatty()

    def run(self) -> None:
        while True:
            if self._terminal:
                width = shutil.get_terminal_size().columns - 1
                print(f"\r\x1b[K{self.line()[:width]}", end="", flush=True)
            else:
                print(self.line(), flush=True)
            if self._over.wait(0.5 if self._terminal else 5):
                break

    def line(self) -> str:
        parts, text = [self._title], self._path.read_text() if self._path.exists() else ""
        if whole := text.split("\n")[:-1]:  # the last one may still be on its way
            last = json.loads(whole[-1])
            left = f"{clock(last['left_s'])} left"
            parts.append(f"run {last['done']} of {last['total']}: {last['label']}, {left}")
        return ", ".join([*parts, f"{clock(time.monotonic() - self._start)} so far"])

    def close(self, outcome: str) -> None:
        self._over.set()
        self.join()
        clear, took = "\r\x1b[K" * self._terminal, clock(time.monotonic() - self._start)
        print(f"{clear}{self._title}: {outcome} ({took})", flush=True)


def machine() -> str:
    """As in "2 cores of AMD EPYC"."""
    info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", info.read_text()) if info.exists() else []
    return f"{os.cpu_count()} cores of {(names or [platform.machine()])[0]}"


def execute(notebook: Path, size: str, title: str) -> None:
    """Run one notebook to its end and keep the executed copy. Raises `Failed`."""
    import papermill  # a second that a run with nothing to do need not wait for
    from papermill.exceptions import PapermillExecutionError

    made_from, folder = digest(notebook, size), results_dir(size) / "notebooks"
    folder.mkdir(parents=True, exist_ok=True)
    part, failed = folder / f".part-{notebook.name}", folder / f"{notebook.stem}.failed.ipynb"
    stamp = folder / f"{notebook.stem}.json"
    for stale in (stamp, failed, folder / ".progress"):
        stale.unlink(missing_ok=True)
    if "size" not in papermill.inspect_notebook(notebook):
        cure = "give it one in a cell tagged `parameters`"
        raise Failed(f"{notebook.name} has no parameter `size`; {cure}")
    os.environ["SLOS_PROGRESS"] = str(folder.resolve() / ".progress")
    progress = Progress(title, folder / ".progress")
    progress.start()
    outcome, began = "failed", time.monotonic()
    quiet = ["--log-level=40"]  # errors only: the kernel's advice would cut into the progress line
    try:
        papermill.execute_notebook(
            notebook, part, {"size": size}, kernel_name="python3", cwd=".", progress_bar=False,
            extra_arguments=quiet,
        )  # fmt: skip
        outcome = "done"
    except Exception as error:
        if part.exists():
            part.replace(failed)
        why = f"failed: {type(error).__name__}: {error}"
        if isinstance(error, PapermillExecutionError):
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
            cell = f"cell {error.cell_index + 1} (In [{error.exec_count}])"
            why = "\n  ".join([f"failed in {cell}: {error.ename}: {error.evalue}", *trace[-12:]])
        raise Failed(f"{notebook.name} {why}\n  executed copy: {failed}") from error
    finally:
        progress.close(outcome)
        end_children()
    part.replace(folder / notebook.name)
    done: dict[str, object] = {"digest": made_from, "rows": rows_present(size)}
    done |= {"commit": commit(), "seconds": round(time.monotonic() - began), "machine": machine()}
    write_whole(stamp, json.dumps(done, indent=1) + "\n")


def end_children() -> None:
    """End what the notebook started and left behind: its kernel, its workers, Ray."""
    children = psutil.Process().children(recursive=True)
    for end in (psutil.Process.terminate, psutil.Process.kill):
        for child in children:
            with suppress(psutil.NoSuchProcess):
                end(child)
        children = psutil.wait_procs(children, timeout=2)[1]


def stop(signum: int, frame: object) -> NoReturn:
    """Ctrl-C: nothing but the run in flight is lost, because rows and stamps are written whole."""
    for s in SIGNALS:
        signal.signal(s, signal.SIG_IGN)
    end_children()
    os.write(1, b"\nstopped; run the same command to go on\n")
    os._exit(130)


def missing(notebook: Path) -> list[str]:
    """The packages that it needs and that are not installed."""
    return [package for package in told(notebook).get("needs", []) if find_spec(package) is None]


def reproduce(notebooks: Sequence[Path], size: str) -> Iterator[str]:
    """Execute what is not done; a line for each notebook that is, or that cannot be."""
    for k, notebook in enumerate(notebooks, start=1):
        title = f"notebook {k} of {len(notebooks)}, {notebook.stem}"
        stamp = results_dir(size) / "notebooks" / f"{notebook.stem}.json"
        if lacks := " and ".join(missing(notebook)):
            cure = f"SLOS_EXTRA=cpu (or gpu) ./run_all.sh {size} installs it"
            yield f"{title}: skipped, {lacks} not installed; {cure}"
        elif is_done(stamp, digest(notebook, size), size):
            yield f"{title}: done already"
        else:
            execute(notebook, size, title)


def main(argv: Sequence[str] | None = None) -> None:
    said = "Execute the notebooks."
    parser = argparse.ArgumentParser(prog="python -m slos.reproduce", description=said)
    parser.add_argument("size", nargs="?", choices=SIZES, default="quick")
    where, rows = "folder of the NN_topic.ipynb", "folder of the rows, a folder per size"
    parser.add_argument("--notebooks", type=Path, default=Path("notebooks"), help=where)
    parser.add_argument("--results", type=Path, default=results_dir(""), help=rows)
    args = parser.parse_args(argv)
    os.environ.update(SLOS_RESULTS=str(args.results.resolve()), JUPYTER_PREFER_ENV_PATH="1")
    for s in SIGNALS:
        if s != signal.SIGHUP or signal.getsignal(s) != signal.SIG_IGN:  # ignored under nohup
            signal.signal(s, stop)
    notebooks = sorted(args.notebooks.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        cure = "start it in the repository's root, or give --notebooks"
        parser.error(f"no NN_topic.ipynb in {args.notebooks}; {cure}")
    where = args.results / args.size
    print(f"{args.size}: {len(notebooks)} notebooks, results to {where}", flush=True)
    try:
        for line in reproduce(notebooks, args.size):
            print(line, flush=True)
    except Failed as error:
        parser.exit(1, f"{error}\n")
    report.main(["--size", args.size])


if __name__ == "__main__":
    main()
