"""`slos.records.sweep`: the same file however it was made, nothing run twice, and whole rows only,
whatever interrupts it."""

from __future__ import annotations

import csv
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import slos.files
import slos.records.sweep
from slos import files
from slos.records.sweep import sweep
from workloads.files import cache_folder

PATIENCE = 600.0  # seconds that a busy machine may need where an idle one needs one


@dataclass(frozen=True, slots=True)
class Case:
    """What to run. Only the name is part of the key.

    calls: a file that gets a line per call. fails: the file of rows, in which `others` runs are
    waited for before this one fails. dies: a file, for whose want the process that runs this is
    killed, and which is there from then on.
    """

    name: str
    calls: str = ""
    seconds: float = 0.0
    fails: str = ""
    others: int = 0
    dies: str = ""

    def __str__(self) -> str:
        return f"case {self.name}"


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    part: int
    value: float
    even: bool


@dataclass(frozen=True, slots=True)
class Wider:
    """`Row` with a column more, as after a change of the layout."""

    name: str
    part: int
    value: float
    even: bool
    more: int = 0


def rows_of(case: Case) -> list[Row]:
    """Two rows per case, made of its name alone."""
    if case.calls:
        with open(case.calls, "a") as f:
            f.write(f"{case.name} {os.getpid()}\n")
    if case.dies and not Path(case.dies).exists():
        Path(case.dies).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if case.seconds:
        time.sleep(case.seconds)
    if case.fails:
        end = time.monotonic() + PATIENCE
        while (
            not Path(case.fails).exists()
            or Path(case.fails).read_text().count("\n") < 1 + 2 * case.others
        ):
            assert time.monotonic() < end
            time.sleep(0.01)
        raise ArithmeticError(f"no result of {case.name}")
    return [
        Row(case.name, part, sum(map(ord, case.name)) / (part + 3), part % 2 == 0)
        for part in (0, 1)
    ]


CASES = [Case(name) for name in ("b", "a,c", "d", 'e"', "f")]
"""Not in the order of their names, and with what a CSV has to quote."""


def called(path: Path) -> list[str]:
    """Names in the file `calls`, in order."""
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def processes(path: Path) -> set[int]:
    """Those that wrote into the file `calls`."""
    return {int(line.split()[1]) for line in path.read_text().splitlines()}


def told(cases: list[Case], calls: Path, **changes: float) -> list[Case]:
    return [replace(case, calls=str(calls), **changes) for case in cases]


# The same bytes


@pytest.mark.slow
def test_the_file_does_not_depend_on_workers_or_order(tmp_path: Path) -> None:
    alone = sweep(rows_of, CASES, tmp_path / "alone.csv", Row, workers=1)
    together = sweep(rows_of, CASES, tmp_path / "together.csv", Row, workers=2)
    backwards = sweep(rows_of, CASES[::-1], tmp_path / "backwards.csv", Row, workers=1)
    assert alone == together == [row for case in CASES for row in rows_of(case)], (
        "rows come in the order of the cases"
    )
    assert backwards == [row for case in CASES[::-1] for row in rows_of(case)]
    first = (tmp_path / "alone.csv").read_bytes()
    assert (
        (tmp_path / "together.csv").read_bytes()
        == (tmp_path / "backwards.csv").read_bytes()
        == first
    )
    with (tmp_path / "alone.csv").open(newline="") as f:
        head, *rows = csv.reader(f)
    assert head == ["run", "digest", "commit", "name", "part", "value", "even"]
    assert [row[0] for row in rows] == sorted(str(case) for case in CASES for _ in (0, 1))
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "alone.csv",
        "backwards.csv",
        "together.csv",
    ]


def test_parts_of_a_grid_add_up_to_the_file_of_the_whole(tmp_path: Path) -> None:
    sweep(rows_of, CASES, tmp_path / "whole.csv", Row, workers=1)
    for part in (CASES[3:], CASES[:2], [], CASES[1:4]):
        got = sweep(rows_of, part, tmp_path / "parts.csv", Row, workers=1)
        assert got == [row for case in part for row in rows_of(case)], (
            "only the rows that were asked for"
        )
    assert (tmp_path / "parts.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


@pytest.mark.slow
def test_without_ray_it_runs_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep(rows_of, told(CASES, tmp_path / "with"), tmp_path / "with.csv", Row, workers=2)
    assert len(called(tmp_path / "with")) == len(CASES) and os.getpid() not in processes(
        tmp_path / "with"
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    sweep(rows_of, told(CASES, tmp_path / "without"), tmp_path / "without.csv", Row, workers=2)
    assert called(tmp_path / "without") == [case.name for case in CASES]
    assert processes(tmp_path / "without") == {os.getpid()}
    assert (tmp_path / "without.csv").read_bytes() == (tmp_path / "with.csv").read_bytes()


CLUSTER = """
import ray, sys
from slos.files import ray_here
ray_here(ray, num_cpus=2, object_store_memory=80 << 20, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_a_cluster_is_used_and_left_alone(tmp_path: Path, root: Path) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    paths = os.pathsep.join(
        (str(root), str(Path(__file__).parent), os.environ.get("PYTHONPATH", ""))
    )
    env = {**os.environ, "PYTHONPATH": paths, "RAY_USAGE_STATS_ENABLED": "0"}
    # nobody else may run tasks there
    env |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as temp:
        cluster = subprocess.Popen(
            [sys.executable, "-c", CLUSTER, temp],
            env=env,
            stdin=-1,
            stdout=-1,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        with cluster:
            assert cluster.stdin and cluster.stdout
            address = cluster.stdout.readline().strip()
            command = [
                sys.executable,
                "-c",
                SCRIPT,
                str(Path(__file__).parent),
                str(path),
                calls.name,  # relative to the sweep's folder, not to a worker's
                "0",
                "0",
            ]
            for part in ("once", "again"):
                path.unlink(missing_ok=True)
                subprocess.run(
                    command, env=env | {"RAY_ADDRESS": address}, check=True, timeout=PATIENCE,
                    cwd=tmp_path,
                )  # fmt: skip
                assert sorted(called(calls)) == sorted(case.name for case in MANY), part
                logs = [log.stem for log in Path(temp).glob("session_latest/logs/worker-*.out")]
                assert processes(calls) <= {int(log.split("-")[-1]) for log in logs}, (
                    "the workers are the cluster's"
                )
                calls.unlink()
            cluster.stdin.close()
    sweep(rows_of, MANY, tmp_path / "alone.csv", Row, workers=1)
    assert path.read_bytes() == (tmp_path / "alone.csv").read_bytes()


def test_a_worker_with_other_sources_is_refused() -> None:
    here, call = os.getcwd(), slos.records.sweep._call
    with pytest.raises(RuntimeError, match="not those of the sweep"):
        call(rows_of, CASES[0], "another", here)
    known = slos.records.sweep.sources_digest()
    assert call(rows_of, CASES[0], known, here) == rows_of(CASES[0])


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_dead_cluster_is_said_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        monkeypatch.setenv("RAY_ADDRESS", address.format(nobody.getsockname()[1]))
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"RAY_ADDRESS = .* must be a cluster that answers"):
            sweep(rows_of, CASES, tmp_path / "rows.csv", Row)
        assert time.monotonic() - start < 15


def test_two_sweeps_on_one_file_keep_the_rows_of_both(tmp_path: Path) -> None:
    path, barrier = tmp_path / "rows.csv", threading.Barrier(2)

    def run(cases: list[Case]) -> None:
        barrier.wait(PATIENCE)
        sweep(rows_of, [replace(c, seconds=0.02) for c in cases], path, Row, workers=1)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(run, (CASES[:3], CASES[2:])))
    sweep(rows_of, CASES, tmp_path / "alone.csv", Row, workers=1)
    assert path.read_bytes() == (tmp_path / "alone.csv").read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["alone.csv", "rows.csv"]


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"))


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=texts, value=st.floats(), n=st.integers())
def test_every_value_comes_back_as_it_was(tmp_path: Path, text: str, value: float, n: int) -> None:
    path, row = tmp_path / "values.csv", Row(text, n, value, value > 0)
    path.unlink(missing_ok=True)
    sweep(lambda _: [row], [Case("x")], path, Row, workers=1)
    [again] = sweep(never, [Case("x")], path, Row, workers=1)
    assert (again.name, again.part, again.even) == (row.name, row.part, row.even)
    assert repr(again.value) == repr(value)


def never(case: Case) -> list[Row]:
    raise AssertionError(f"{case} was run again")


# What is run again and what is not


@pytest.mark.slow
def test_what_is_there_is_not_run_again(tmp_path: Path) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    sweep(rows_of, told(CASES[:3], calls), path, Row, workers=1)
    assert called(calls) == [case.name for case in CASES[:3]]
    first = path.stat().st_mtime_ns
    assert len(sweep(never, CASES[:3], path, Row, workers=1)) == 6
    assert path.stat().st_mtime_ns == first, "nothing to run, nothing to write"
    calls.unlink()
    sweep(rows_of, told(CASES, calls), path, Row, workers=2)
    assert sorted(called(calls)) == sorted(case.name for case in CASES[3:])


def test_changed_sources_or_data_run_everything_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    cases = told(CASES[:2], calls)
    for digest, count in (("one", 2), ("one", 2), ("two", 4), ("two", 4)):
        made_from = {"": digest}
        monkeypatch.setattr(slos.records.sweep, "digests", lambda _, found=made_from: found)
        sweep(rows_of, cases, path, Row, workers=1)
        assert len(called(calls)) == count
    with path.open(newline="") as f:
        assert {row["digest"] for row in csv.DictReader(f)} == {"two"}, "the old rows are gone"


def test_rows_of_sources_that_were_changed_under_a_running_process_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a notebook's kernel, which has the modules that it imported."""
    monkeypatch.setattr(slos.records.sweep, "_LOADED", "of before the edit")
    path = tmp_path / "rows.csv"
    with pytest.raises(RuntimeError, match="has changed since this process imported it; restart"):
        sweep(rows_of, CASES[:1], path, Row, workers=1)
    assert not path.exists() or sum(1 for _ in path.open()) == 1
    monkeypatch.undo()
    assert len(sweep(rows_of, CASES[:1], path, Row, workers=1)) > 0


def test_the_digest_of_data_is_that_of_its_files_wherever_they_lie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    (tmp_path / "trace.csv").write_text("1")
    found = slos.files.data_digest()
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / ".trace.part").write_text("half of a download")
    assert slos.files.data_digest() == found
    monkeypatch.setenv("HOME", str(tmp_path))
    here = tmp_path / ".cache" / "slos-serve"
    here.mkdir(parents=True)
    (here / "trace.csv").write_text("1")
    for said in ("", "~/.cache/slos-serve"):
        monkeypatch.setenv("SLOS_CACHE", said)
        assert cache_folder() == here and slos.files.data_digest() == found


def test_the_digest_is_of_sources_and_of_names_and_sizes_of_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("slos", "workloads", "data", "cache"):
        (tmp_path / folder).mkdir()
    data = tmp_path / "data" / "lengths.csv"
    data.write_text("1")
    (tmp_path / "slos" / "planner.py").write_text("a = 1\n")
    monkeypatch.setattr(slos.files, "ROOT", tmp_path)
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path / "cache"))
    digest = slos.files.sources_digest
    seen = {digest()}
    (tmp_path / "slos" / "notes.txt").write_text("not a source")
    assert digest() in seen
    changes: tuple[Callable[[], object], ...] = (
        lambda: (tmp_path / "slos" / "planner.py").write_text("a = 2\n"),
        lambda: (tmp_path / "slos" / "planner.py").rename(tmp_path / "slos" / "plan.py"),
        lambda: (tmp_path / "workloads" / "profiles.json").write_text("{}"),
        lambda: (tmp_path / "cache" / "trace.csv").write_text("1"),
        lambda: monkeypatch.setenv("SLOS_DATA", str(data.parent)),
        lambda: data.write_text("1,2"),
    )
    for change in changes:
        change()
        assert digest() not in seen
        seen.add(digest())


def test_the_commit_says_whether_the_sources_have_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = slos.files.commit.__wrapped__
    monkeypatch.setattr(slos.files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == "unknown"
    (tmp_path / "slos").mkdir()
    (tmp_path / "workloads").mkdir()
    (tmp_path / "slos" / "a.py").write_text("a = 1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *words], check=True)
    clean = commit()
    assert len(clean) == 9 and int(clean, 16) >= 0
    (tmp_path / "README.md").write_text("not a source")
    assert commit() == clean
    (tmp_path / "slos" / "a.py").write_text("a = 2\n")
    assert commit() == clean + "+"


@pytest.mark.parametrize("head", ["", "run,digest\n", "something else entirely\n1,2,3\n"])
def test_a_file_of_another_layout_is_not_used(tmp_path: Path, head: str) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    path.write_text(head)
    sweep(rows_of, told(CASES[:1], calls), path, Row, workers=1)
    assert called(calls) == ["b"]
    assert sweep(never, CASES[:1], path, Row, workers=1) == rows_of(CASES[0])
    assert (
        sweep(lambda case: [Wider(case.name, 0, 1.0, True)], CASES[:1], path, Wider, workers=1)[
            0
        ].more
        == 0
    )
    sweep(rows_of, told(CASES[:1], calls), path, Row, workers=1)
    assert called(calls) == ["b", "b"], "rows of the wider layout are not rows of this one"


# Errors and interruptions


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_an_error_keeps_what_was_finished_before_it(tmp_path: Path, workers: int) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    cases = told(CASES, calls)
    # the other process goes on meanwhile
    finished = ["b", "a,c"] if workers == 1 else ["b", "a,c", 'e"', "f"]
    cases[2] = replace(cases[2], fails=str(path), others=len(finished))
    with pytest.raises(ArithmeticError, match="no result of d"):
        sweep(rows_of, cases, path, Row, workers=workers)
    before = called(calls)
    sweep(rows_of, told(CASES, calls), path, Row, workers=1)
    assert called(calls)[len(before) :] == [
        case.name for case in CASES if case.name not in finished
    ]
    sweep(rows_of, CASES, tmp_path / "undisturbed.csv", Row, workers=1)
    assert path.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


def test_a_ray_that_does_not_start_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = sweep(rows_of, CASES, tmp_path / "alone.csv", Row, workers=1)
    slos.records.sweep._end()
    monkeypatch.setattr("ray.init", lambda *args, **kwargs: 1 / 0)
    with pytest.warns(RuntimeWarning, match="one at a time: division by zero"):
        assert sweep(rows_of, CASES, tmp_path / "together.csv", Row, workers=2) == alone
    assert (tmp_path / "together.csv").read_bytes() == (tmp_path / "alone.csv").read_bytes()


@pytest.mark.slow
def test_a_worker_killed_changes_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    calls = tmp_path / "calls"
    cases = [replace(case, dies=str(tmp_path / f"dead {case.name}")) for case in told(CASES, calls)]
    sweep(rows_of, cases, tmp_path / "rows.csv", Row, workers=2)
    assert sorted(called(calls)) == sorted(2 * [case.name for case in CASES]), (
        "each was killed once and run again"
    )
    assert "Traceback" not in capfd.readouterr().err
    sweep(rows_of, CASES, tmp_path / "undisturbed.csv", Row, workers=1)
    assert (tmp_path / "rows.csv").read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_sweep import Case, Row, rows_of, sweep
seconds = float(sys.argv[4])
cases = [Case(f"n{i}", sys.argv[3], seconds) for i in range(40)]
sweep(rows_of, cases, sys.argv[2], Row, int(sys.argv[5]) or None)
"""
MANY = [Case(f"n{i}") for i in range(40)]


def killed(
    path: Path,
    calls: Path,
    seconds: float,
    workers: int,
    after: int,
    patience: float = 0.0,
    sign: int = signal.SIGKILL,
) -> list[str]:
    """Run a sweep in a process of its own and send it `sign` once `after` runs have begun.

    Its children are given `patience` seconds to end by themselves; the commands of those that did
    not. Ray's agents, which do no runs and wait a minute for Ray to come back, do not count.
    """
    command = [
        sys.executable,
        "-c",
        SCRIPT,
        str(Path(__file__).parent),
        str(path),
        str(calls),
        str(seconds),
    ]
    process = subprocess.Popen([*command, str(workers)], stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + PATIENCE
        while len(called(calls)) < after:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.002)
        left = psutil.Process(process.pid).children(recursive=True)
        agents = [child for child in left if "Agent" in " ".join(child.cmdline())]
        process.send_signal(sign)
        process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
    commands = []
    left = psutil.wait_procs([child for child in left if child not in agents], timeout=patience)[1]
    for child in agents:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    for child in left:
        with suppress(psutil.NoSuchProcess):
            commands.append(" ".join(child.cmdline()))
            child.kill()
    psutil.wait_procs(left, timeout=PATIENCE)
    return commands


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "seconds", "stops"), [(1, 0.005, (2, 6, 11)), (2, 0.15, (7,))])
def test_kill_leaves_whole_rows_and_the_next_call_runs_what_is_missing(
    tmp_path: Path, workers: int, seconds: float, stops: tuple[int, ...]
) -> None:
    path, calls = tmp_path / "rows.csv", tmp_path / "calls"
    for after in stops:
        begun = len(called(calls))
        killed(path, calls, seconds, workers, begun + after)
        if path.exists():
            with path.open(newline="") as f:
                head, *rows = csv.reader(f)
            assert all(len(row) == len(head) for row in rows)
            runs = [row[0] for row in rows]
            assert runs == sorted(runs) and all(runs.count(run) == 2 for run in runs), (
                "a run is there whole or not"
            )
            assert begun + after - len(set(runs)) <= 2 * len(stops) * workers, (
                "only what was in flight is lost"
            )
    missing = [case for case in MANY if not path.exists() or f"\n{case}," not in path.read_text()]
    calls.unlink()
    assert 0 < len(missing) < len(MANY)
    sweep(rows_of, told(MANY, calls), path, Row, workers=1)
    assert called(calls) == [case.name for case in missing]
    sweep(rows_of, MANY, tmp_path / "undisturbed.csv", Row, workers=1)
    assert path.read_bytes() == (tmp_path / "undisturbed.csv").read_bytes()


@pytest.mark.slow
def test_workers_end_with_who_started_them(tmp_path: Path) -> None:
    assert not killed(tmp_path / "rows.csv", tmp_path / "calls", 0.1, 2, 4, patience=PATIENCE)


@pytest.mark.slow
def test_an_interrupt_ends_the_sweep_and_its_workers(tmp_path: Path) -> None:
    assert not killed(tmp_path / "rows.csv", tmp_path / "calls", 0.2, 2, 4, PATIENCE, signal.SIGINT)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    sweep(rows_of, CASES[:2], path, Row, workers=1)
    whole = path.read_bytes()
    for damaged in (
        whole[:-8], whole + b"x\n", whole + b"\xff,\n", whole.replace(b"True", b"Tru"),
        whole.replace(b",0,", b",zero,"), whole + b"x" * 200_000,
    ):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"rows\.csv, line \d+: .*remove that line"):
            sweep(rows_of, CASES[:2], path, Row, workers=1)


# Progress


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_progress_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int) -> None:
    monkeypatch.setenv("SLOS_PROGRESS", str(tmp_path / "progress"))
    path = tmp_path / "rows.csv"
    sweep(rows_of, CASES[:1], path, Row, workers=1)
    (tmp_path / "progress").unlink()
    sweep(rows_of, CASES[:4], path, Row, workers=workers)
    lines = [json.loads(line) for line in (tmp_path / "progress").read_text().splitlines()]
    assert all(line.keys() == {"done", "total", "label", "left_s"} for line in lines)
    assert [(line["done"], line["total"]) for line in lines] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert lines[0]["label"] == "starting"
    assert {line["label"] for line in lines[1:]} == {str(case) for case in CASES[1:4]}
    assert all(line["left_s"] >= 0 for line in lines) and lines[-1]["left_s"] == 0
    (tmp_path / "progress").unlink()
    sweep(rows_of, CASES[:4], path, Row, workers=workers)
    assert not (tmp_path / "progress").exists(), "nothing to run, nothing to say"


class Busy:
    """A Ray that times out so many times before it starts."""

    def __init__(self, times: int) -> None:
        self.left, self.tried, self.cleared = times, 0, 0

    def init(self, address: str, **options: object) -> None:
        assert address == "local" and options == {"include_dashboard": False, "num_cpus": 1}
        self.tried += 1
        if self.tried <= self.left:
            raise Exception("The current node timed out during startup.")

    def shutdown(self) -> None:
        self.cleared += 1


@pytest.mark.parametrize("times", [0, 2, 3])
def test_a_ray_that_times_out_is_started_again(times: int) -> None:
    busy = Busy(times)
    if times == files.STARTS:
        with pytest.raises(Exception, match="timed out during startup"):
            files.ray_here(busy, num_cpus=1)
        assert busy.tried == busy.cleared == files.STARTS
    else:
        files.ray_here(busy, num_cpus=1)
        assert busy.tried == times + 1 and busy.cleared == times
