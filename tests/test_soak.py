"""Some of the random attacks, which `.ci/run` gives five minutes."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_some_seconds_of_attacks_are_held(root: Path) -> None:
    command = [sys.executable, str(root / "tests" / "soak.py"), "--minutes", "0.1"]
    command += ["--seed", "99"]  # which is a kill, one in a hundred
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "attacks held" in done.stdout
