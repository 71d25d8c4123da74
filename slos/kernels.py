"""Compiled functions that call each other across files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from numba import njit

SOURCES = ("jobs.py", "planner.py", "batching.py", "lookahead.py", "speculation.py")
STAMP = f"{crc32(b''.join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)):08x}"


def kernel(function: Callable[..., Any]) -> Any:
    """`numba.njit`, cached on disk; numba's cache looks at one file only, this one at all of `SOURCES`."""
    function.__qualname__ += f"_{STAMP}"  # becomes part of the file's name
    return njit(cache=True)(function)
