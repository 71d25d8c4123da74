"""Compiled functions that call each other across files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from zlib import crc32

from llvmlite.binding import ffi
from numba import njit
from numba.extending import register_jitable

# A vLLM engine in this process would not start: its CPU worker calls `vars` on everything that it
# finds in any module, and numba's binding to LLVM takes that for a function of the library.
getattr(ffi.lib, "_fntab", {})["__dict__"] = {}

jitable = register_jitable  # a function for kernels; Python runs it as ordinary Python

FOLDERS = ("core", "planning", "policies")  # those with kernels
_FILES = [p for name in FOLDERS for p in sorted((Path(__file__).parents[1] / name).glob("*.py"))]
STAMP = f"{crc32(b''.join(t for t in map(Path.read_bytes, _FILES) if b'core.kernels' in t)):08x}"


def kernel(function: Callable[..., Any]) -> Any:
    """`numba.njit`, cached on disk. Numba's cache checks one file only; this one checks all files
    with kernels."""
    function.__qualname__ += f"_{STAMP}"  # becomes part of the file's name
    return njit(cache=True)(function)
