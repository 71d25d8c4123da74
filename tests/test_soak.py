"""A minute of the random attacks."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_minute_of_attacks_is_held(root: Path) -> None:
    command = [sys.executable, str(root / "tests" / "soak.py"), "--minutes", "1"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "attacks held" in done.stdout
