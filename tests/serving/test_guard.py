"""The guard of a server: whatever becomes of either, nothing is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest

from slos.serving.guard import FOLDER

SERVER = """
import os, signal, subprocess, sys, time
from slos.serving.guard import guard
guard(leash={leash}, grace=1.0)
orphan = subprocess.Popen(["setsid", "sleep", "60"])
with open(os.environ["SAYS"], "w") as file:
    print(orphan.pid, os.getpid(), file=file)
"""
WAITS = "time.sleep(600)"
DEAF = f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\n{WAITS}"
Guarded = subprocess.Popen


def sends(number: int) -> Callable[[Guarded, int], None]:
    return lambda guard, server: guard.send_signal(number)


def hangs_up(guard: Guarded, server: int) -> None:
    assert guard.stdin
    guard.stdin.close()


def nothing(guard: Guarded, server: int) -> None:
    pass


@pytest.mark.parametrize(
    ("body", "happens", "code"),
    [
        ("sys.exit(3)", nothing, 3),
        (WAITS, sends(signal.SIGTERM), 128 + signal.SIGTERM),
        (WAITS, sends(signal.SIGINT), 128 + signal.SIGINT),
        (DEAF, sends(signal.SIGTERM), 128 + signal.SIGKILL),
        (WAITS, lambda guard, server: os.kill(server, signal.SIGKILL), 128 + signal.SIGKILL),
        (WAITS, hangs_up, 128 + signal.SIGKILL),
        (WAITS, sends(signal.SIGKILL), -signal.SIGKILL),
    ],
    ids=["ends", "terminated", "interrupted", "deaf", "killed", "leash", "guard-killed"],
)
def test_nothing_is_left(
    tmp_path: Path, body: str, happens: Callable[[Guarded, int], None], code: int
) -> None:
    says, folder = tmp_path / "says", tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-c", SERVER.format(leash=happens is hangs_up) + body]
    env = os.environ | {"SAYS": str(says), "TMPDIR": str(folder)}
    quiet = subprocess.DEVNULL
    # who runs tests in the background ignores an interrupt, and it would
    heeds = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with Guarded(command, env=env, stdin=subprocess.PIPE, stderr=quiet, preexec_fn=heeds) as guard:
        try:
            while not (said := says.read_text().split() if says.exists() else []):
                time.sleep(0.02)
            orphan, server = map(int, said[:2])
            begun = time.monotonic()
            happens(guard, server)
            assert guard.wait(60) == code and time.monotonic() - begun < 10
            if code >= 0:
                assert not psutil.pid_exists(orphan) and not [*folder.iterdir()]
            while psutil.pid_exists(server):  # where the guard is killed, it is told
                assert time.monotonic() - begun < 60
                time.sleep(0.02)
        finally:
            guard.kill()


def test_the_folder_of_who_holds_the_leash_goes_with_him(tmp_path: Path) -> None:
    for holds in (True, False):
        folder = tmp_path / f"{holds}"
        folder.mkdir()
        env = os.environ | {"SAYS": str(folder / "says"), FOLDER: str(folder)}
        command = [sys.executable, "-c", SERVER.format(leash=True) + WAITS]
        with Guarded(command, env=env, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as guard:
            while not (folder / "says").exists():
                time.sleep(0.02)
            (sends(signal.SIGTERM) if holds else hangs_up)(guard, 0)
            assert guard.wait(60) and folder.exists() == holds


def test_the_end_of_a_server_is_noticed_where_children_are_ignored(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVER.format(leash=False) + "sys.exit(3)"]
    env = os.environ | {"SAYS": str(tmp_path / "says"), "TMPDIR": str(tmp_path)}
    ignores = partial(signal.signal, signal.SIGCHLD, signal.SIG_IGN)
    with Guarded(command, env=env, stdin=subprocess.DEVNULL, preexec_fn=ignores) as guard:
        try:
            assert guard.wait(30) == 3
        finally:
            guard.kill()


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    says = tmp_path / "says"
    command = ["nohup", sys.executable, "-c", SERVER.format(leash=False) + "time.sleep(1.5)"]
    env = os.environ | {"SAYS": str(says), "TMPDIR": str(tmp_path)}
    guard = Guarded(command, env=env, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not says.exists():
        time.sleep(0.02)
    guard.send_signal(signal.SIGHUP)
    assert guard.wait(60) == 0
