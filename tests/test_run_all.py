"""`run_all.sh` and `slos.reproduce`: what is refused, what is skipped, what a failure and Ctrl-C
leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from slos import reproduce
from slos.reproduce import Progress, clock, digest, is_done, rows_present

PATIENCE = 600.0  # seconds that a busy machine may need where an idle one needs two


def notebook(path: Path, *cells: str, parameters: str = 'size = "quick"') -> None:
    nb = nbformat.v4.new_notebook()
    nb.metadata["kernelspec"] = {
        "name": "python3",
        "display_name": "Python 3",
        "language": "python",
    }
    tagged = nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb.cells = [tagged, *map(nbformat.v4.new_code_cell, cells)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(nb, path)


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small kit with sources of its own, so that nobody's edit of the real ones counts."""
    for folder in ("slos", "workloads", "notebooks", "cache"):
        (tmp_path / folder).mkdir()
    (tmp_path / "slos" / "planner.py").write_text("a = 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path / "cache"))
    return tmp_path


def start(root: Path, kit: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "slos.reproduce",
        "quick",
        "--notebooks",
        "notebooks",
        "--results",
        "out",
    ]
    environment = os.environ | {
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": str(root),
        "PYTHONUNBUFFERED": "1",
    }
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=kit, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def lives(pid: int) -> bool:
    """Whether it runs; one that ended and that nobody has asked about yet does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


HEADLINE = """
from slos.files import results_dir
from slos.records.claims import Headline, upsert_headlines
row = Headline("planning_p99_ms", 2.0, 2.0, 2.0, "simulated", "synthetic profile", "", "", "this")
upsert_headlines(results_dir(size) / "headlines.csv", [row])
"""


@pytest.mark.slow
def test_a_run_fills_results_prints_the_table_and_is_skipped_next_time(
    root: Path, kit: Path
) -> None:
    notebook(kit / "notebooks" / "01_first.ipynb", HEADLINE)
    (kit / "notebooks" / "scratch.ipynb").write_text("not one of ours")
    status, out, err = finish(start(root, kit))
    assert (status, "notebook 1 of 1, 01_first: done" in out) == (0, True), out + err
    assert "a step with a planning in it, P99" in out and "1 OK" in out
    assert not (kit / "out" / "README.md").exists(), "that one is the repository's"
    text = (kit / "out" / "quick" / "README.md").read_text()
    assert "this" in text and re.search(
        r"\| 01_first +\| \w+\+? +\| \d\.\d +\| \d+ cores of ", text
    ), text
    made = kit / "out" / "quick" / "notebooks"
    assert sorted(p.name for p in made.iterdir()) == ["01_first.ipynb", "01_first.json"]
    before = (made / "01_first.ipynb").read_bytes()

    status, out, err = finish(start(root, kit))
    assert (status, "01_first: done already" in out, "1 OK" in out) == (0, True, True), out + err
    assert (made / "01_first.ipynb").read_bytes() == before


@pytest.mark.slow
def test_a_failing_notebook_stops_the_rest_with_its_name_and_error(root: Path, kit: Path) -> None:
    notebook(kit / "notebooks" / "01_bad.ipynb", "x = 1", "1 / (x - 1)")
    notebook(kit / "notebooks" / "02_next.ipynb")
    status, out, err = finish(start(root, kit))
    assert status == 1
    assert (
        "01_bad.ipynb failed in cell" in err
        and "ZeroDivisionError: division by zero" in err
        and "x - 1" in err
    )
    assert "02_next" not in out and "paper" not in out
    assert [p.name for p in (kit / "out" / "quick" / "notebooks").iterdir()] == [
        "01_bad.failed.ipynb"
    ]


@pytest.mark.slow
def test_ctrl_c_ends_the_kernel_leaves_no_stamp_and_the_next_call_goes_on(
    root: Path, kit: Path
) -> None:
    notebook(
        kit / "notebooks" / "01_slow.ipynb",
        HEADLINE,
        """
        import os, pathlib, subprocess, sys, time
        if pathlib.Path("slow").exists():
            worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            pathlib.Path("pids.part").write_text(f"{os.getpid()} {worker.pid}")
            os.replace("pids.part", "pids")
            time.sleep(600)
        """,
    )
    (kit / "slow").touch()
    process = start(root, kit)
    end = time.monotonic() + PATIENCE
    while not (kit / "pids").exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, "stopped; run the same command to go on" in out) == (130, True), out + err
    assert not [pid for pid in map(int, (kit / "pids").read_text().split()) if lives(pid)]
    assert not (kit / "out" / "quick" / "notebooks" / "01_slow.json").exists()
    assert (kit / "out" / "quick" / "headlines.csv").read_text().count("\n") == 2

    (kit / "slow").unlink()
    status, out, err = finish(start(root, kit))
    assert (status, "01_slow: done (" in out) == (0, True), out + err


@pytest.mark.slow
def test_nohup_outlives_its_terminal(root: Path, kit: Path) -> None:
    wait = "import os, signal\nos.kill(os.getppid(), signal.SIGHUP)"
    notebook(kit / "notebooks" / "01_slow.ipynb", HEADLINE, wait)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = start(root, kit)
    finally:
        signal.signal(signal.SIGHUP, before)
    status, out, err = finish(process)
    assert (status, "01_slow: done (" in out) == (0, True), out + err


@pytest.mark.slow
def test_a_notebook_without_the_parameter_and_a_folder_without_notebooks_are_refused(
    root: Path, kit: Path
) -> None:
    status, _, err = finish(start(root, kit))
    assert status == 2 and "no NN_topic.ipynb in notebooks" in err
    notebook(kit / "notebooks" / "01_old.ipynb", parameters="scale = 1")
    status, _, err = finish(start(root, kit))
    assert status == 1 and "01_old.ipynb has no parameter `size`" in err


def test_done_means_made_from_the_same_and_the_rows_still_there(
    kit: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(kit / "out"))
    path, stamp = kit / "notebooks" / "01_a.ipynb", kit / "01_a.json"
    rows = kit / "out" / "quick" / "capacity.csv"
    notebook(path)
    rows.parent.mkdir(parents=True)
    rows.write_text("head\none\ntwo\n")
    data = kit / "data"
    data.mkdir()
    (data / "trace.csv").write_text("1")
    first = digest(path, "quick")
    stamp.write_text(json.dumps({"digest": first, "rows": rows_present("quick")}))
    assert is_done(stamp, digest(path, "quick"), "quick")
    assert digest(path, "full") != first
    (kit / "slos" / "__pycache__").mkdir()
    (kit / "slos" / "__pycache__" / "planner.pyc").write_text("compiled")
    assert digest(path, "quick") == first

    seen = {first}
    for change in (
        lambda: notebook(path, "1 + 1"),
        lambda: (kit / "slos" / "planner.py").write_text("a = 2\n"),
        lambda: (kit / "workloads" / "profiles.json").write_text("{}"),
        lambda: monkeypatch.setenv("SLOS_DATA", str(data)),
        lambda: (data / "trace.csv").write_text("1, 2"),
        lambda: (kit / "cache" / "trace.csv").write_text("1"),
    ):
        change()
        assert digest(path, "quick") not in seen
        seen.add(digest(path, "quick"))

    notebook(path)
    told = json.loads(path.read_text())
    told["metadata"]["slos"] = {"reads": ["rows"]}
    path.write_text(json.dumps(told))
    last = digest(path, "quick")
    rows.write_text("head\none\nthree\n")
    assert digest(path, "quick") != last, "a summary is made anew when rows are"

    assert is_done(stamp, first, "quick")
    rows.write_text("head\none\n")
    assert not is_done(stamp, first, "quick")
    stamp.write_text("{half")
    assert not is_done(stamp, first, "quick")
    stamp.unlink()
    assert not is_done(stamp, first, "quick")


def test_progress_shows_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "progress"
    progress = Progress("notebook 2 of 7, 02_capacity", path)
    assert progress.line().startswith("notebook 2 of 7, 02_capacity, 0:0")
    path.write_text(
        '{"done": 3, "total": 40, "label": "coding sarathi", "left_s": 65.2}\n{"done": 4, "to'
    )
    assert "02_capacity, run 3 of 40: coding sarathi, 1:05 left, 0:0" in progress.line()
    assert clock(3725) == "1:02:05"


def run_all(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(folder / "run_all.sh"), *words],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


@pytest.mark.parametrize(
    ("words", "environment", "said"),
    [
        (["everything"], {}, "unknown word 'everything'; known: quick, full, smoke, test, --help"),
        ([""], {}, "unknown word ''"),
        (["quick", "fast"], {}, "'quick' takes no further words"),
        ([], {"SLOS_EXTRA": "tpu"}, "SLOS_EXTRA = 'tpu' is unknown; known: cpu, gpu, none"),
    ],
)
def test_unknown_words_are_refused_with_the_known_ones(
    root: Path, words: list[str], environment: dict[str, str], said: str
) -> None:
    done = run_all(root, *words, **environment)
    assert (done.returncode, done.stdout) == (2, "") and said in done.stderr


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help(root: Path, word: str) -> None:
    done = run_all(root, word)
    assert done.returncode == 0 and all(
        w in done.stdout for w in ("quick", *reproduce.SIZES, "test", "SLOS_VENV")
    )


@pytest.fixture
def bare(root: Path, tmp_path: Path) -> dict[str, str]:
    """run_all.sh in a folder of its own, with an installer that only writes down what it was
    told."""
    for name in ("run_all.sh", "requirements.txt"):
        shutil.copy(root / name, tmp_path / name)
    (tmp_path / "slos").mkdir()
    (tmp_path / "slos" / "__init__.py").touch()
    (tmp_path / "slos" / "reproduce.py").write_text("import sys; print('reproduce', *sys.argv[1:])")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uv").write_text(f"""#!/bin/sh
[ "$1" = --version ] && exit 0
echo "$*" >> {tmp_path}/log
[ -e {tmp_path}/broken ] && [ "$1" = pip ] && exit 3
for last; do :; done
if [ "$1" = venv ]; then
    mkdir -p "$last/bin"
    cp {tmp_path}/tools/python "$last/bin/python"
fi
exit 0
""")
    (tools / "uv").chmod(0o755)
    (tools / "python").write_text(f"""#!/bin/sh
case "$2" in *vllm*) echo "ImportError: no libcudnn" >&2; [ ! -e {tmp_path}/no-engine ]; exit;; esac
exec {sys.executable} "$@"
""")
    (tools / "python").chmod(0o755)
    return {
        "PATH": f"{tools}:{os.environ['PATH']}", "CONDA_DEFAULT_ENV": "",
        "SLOS_PYTHON": sys.executable, "UV_FIND_LINKS": "", "PIP_FIND_LINKS": "",
        "PYTHONSAFEPATH": "", "SLOS_EXTRA": "none",
    }  # fmt: skip


def told(folder: Path) -> list[str]:
    log = folder / "log"
    lines = log.read_text().splitlines() if log.exists() else []
    log.unlink(missing_ok=True)
    return [" ".join(line.split()[:2]) for line in lines]


def test_the_environment_is_set_up_once_and_again_when_the_lock_changes(
    tmp_path: Path, bare: dict[str, str]
) -> None:
    done = run_all(tmp_path, "smoke", **bare)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "reproduce smoke"), done.stderr
    assert told(tmp_path) == ["venv -q", "pip sync", "pip install"]
    done = run_all(tmp_path, **bare)
    assert done.stdout == "reproduce quick\n" and told(tmp_path) == []

    with (tmp_path / "requirements.txt").open("a") as f:
        f.write("more==1.0\n")
    (tmp_path / "broken").touch()
    for _ in range(2):
        assert run_all(tmp_path, **bare).returncode == 3
        assert told(tmp_path) == ["pip sync"]
    (tmp_path / "broken").unlink()
    assert run_all(tmp_path, **bare).returncode == 0 and told(tmp_path) == [
        "pip sync",
        "pip install",
    ]


def test_the_engine_that_the_machine_can_run_comes_with_it(
    root: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    for lock in ("requirements-cpu.txt", "requirements-gpu.txt"):
        shutil.copy(root / lock, tmp_path / lock)
    probe = tmp_path / "tools" / "nvidia-smi"
    for finds, lock in (("false", "requirements-cpu.txt"), ("true", "requirements-gpu.txt")):
        probe.write_text(f"#!/bin/sh\n{finds}\n")
        probe.chmod(0o755)
        done = run_all(tmp_path, "smoke", **bare | {"SLOS_EXTRA": ""})
        assert done.returncode == 0 and f"from {lock}" in done.stdout, done.stdout


def test_an_engine_that_does_not_import_is_said_in_a_line(
    root: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    shutil.copy(root / "requirements-cpu.txt", tmp_path / "requirements-cpu.txt")
    (tmp_path / "no-engine").touch()
    for _ in range(2):
        done = run_all(tmp_path, "smoke", **bare | {"SLOS_EXTRA": "cpu"})
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert "(ImportError: no libcudnn)" in done.stderr and "SLOS_EXTRA=none" in done.stderr
    (tmp_path / "no-engine").unlink()
    assert run_all(tmp_path, "smoke", **bare | {"SLOS_EXTRA": "cpu"}).returncode == 0


def test_an_active_conda_environment_is_added_to_and_never_cleared(
    root: Path, tmp_path: Path, bare: dict[str, str]
) -> None:
    (tmp_path / "conda" / "bin").mkdir(parents=True)
    shutil.copy(tmp_path / "tools" / "python", tmp_path / "conda" / "bin" / "python")
    conda = bare | {"CONDA_DEFAULT_ENV": "slos-serve", "CONDA_PREFIX": str(tmp_path / "conda")}
    assert run_all(tmp_path, **conda).returncode == 0
    assert told(tmp_path) == ["pip install", "pip install"] and not (tmp_path / ".venv").exists()
    shutil.copy(root / "requirements-cpu.txt", tmp_path / "requirements-cpu.txt")
    assert run_all(tmp_path, **conda | {"SLOS_EXTRA": "cpu"}).returncode == 0
    assert told(tmp_path) == ["pip uninstall", "pip install", "pip install"]


def test_no_python_that_fits_is_said_clearly(tmp_path: Path, bare: dict[str, str]) -> None:
    done = run_all(tmp_path, **bare | {"SLOS_PYTHON": "/bin/false"})
    assert done.returncode == 2 and "needs Python 3.11 to 3.13 and found none" in done.stderr
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/false")
    done = run_all(tmp_path, **bare)
    assert done.returncode == 2 and "the Python in .venv must be 3.11 to 3.13" in done.stderr
