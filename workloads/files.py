"""Where the data lies, and reading it: every row is checked here, at the edge.

A file is looked for in the folder that `SLOS_DATA` names, then in the cache (`SLOS_CACHE`, or
~/.cache/slos-serve), plain or gzipped. Files that are published as they are have their checksum in
`PINNED`; a folder may list more in a file `SHA256SUMS` (the layout of `sha256sum`). All checksums
are of the decompressed content.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TextIO, cast

import numpy as np

from slos.core.types import require

DATA, CACHE = "SLOS_DATA", "SLOS_CACHE"
MOST_TOKENS = 1_000_000  # more than any served context: a larger count is a broken row

AZURE_2023 = "arrivals/AzureLLMInferenceTrace_"
SHAREGPT = "chatbot/sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
ARXIV = "summarization/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"
PINNED = {
    f"{AZURE_2023}code.csv": "54e9a6d2a4bd06ba1e060304b900abbc74cbea53de96506e60fe5bb4f2277fb6",
    f"{AZURE_2023}conv.csv": "2f1e5b666d4e3055fdbba98598ce2ec307767b9064e03e2fa46676dbcc7d0bf8",
    SHAREGPT: "6d6c296302a853e2669a674a96f269283e60c57e60363bd450588a1066919f9f",
    "coding/HumanEval.jsonl": "1d49078ba3e2b196b9344535bef34a43021f038fad9561d6ee7c53450609a6a2",
    ARXIV: "9d3580538d915ca75e4aaaa54590b42dbb17abc6d74c8913310cf07c232adcdc",
}


def data_folder() -> Path | None:
    """The folder that `SLOS_DATA` names, None if it is unset; ValueError if it is no folder."""
    if not (name := os.environ.get(DATA)):
        return None
    bound = "a folder with arrivals/, chatbot/, ..."
    require(Path(name).is_dir(), DATA, name, bound, "unset it for the default")
    return Path(name)


def cache_folder() -> Path:
    return Path(os.environ.get(CACHE) or "~/.cache/slos-serve").expanduser()


def locate(names: Sequence[str]) -> Path | None:
    """The first of `names` in the data folder, then the cache, its checksum verified."""
    for folder in filter(None, (data_folder(), cache_folder())):
        for name in names:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    if expected := expected_checksum(folder, name):
                        verify(path, expected)
                    return path
    return None


def stamp(path: Path) -> tuple[int, int]:
    """What changes when a file does, as part of a cache's key."""
    return path.stat().st_mtime_ns, path.stat().st_size


def recorded(folder: Path) -> dict[str, str]:
    """Checksums by name from the folder's `SHA256SUMS`; ValueError naming a malformed line."""
    path = folder / "SHA256SUMS"
    sums = {}
    for n, line in enumerate(path.read_text().splitlines() if path.is_file() else (), start=1):
        found = re.fullmatch(r"([0-9a-f]{64})  (\S.*)", line)
        if not found:
            raise ValueError(f"{path}, row {n}: {line!r} must be '<64 hex digits>  <name>'")
        sums[found[2]] = found[1]
    return sums


def expected_checksum(folder: Path, name: str) -> str | None:
    """Of a file of a folder, if that is known."""
    return PINNED.get(name) or recorded(folder).get(name)


def verify(path: Path, expected: str) -> None:
    """Raise ValueError unless `checksum` is as expected."""
    if (found := checksum(path)) != expected:
        cure = "damaged or another version, replace it"
        raise ValueError(f"{path}: sha256 = {found} must be {expected}; {cure}")


def checksum(path: Path) -> str:
    """SHA-256 of the decompressed content, in hex."""
    return _checksum(path, stamp(path))


@cache
def _checksum(path: Path, _: tuple[int, int]) -> str:
    with _named(path), gzip.open(path) if path.suffix == ".gz" else path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()  # type: ignore[arg-type]


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Content that cannot be read becomes a ValueError naming the file."""
    broken = EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error
    try:
        yield
    except (*broken, OSError) as error:
        # pyarrow's errors about a packed file have no number
        if isinstance(error, broken) or error.errno is None:
            bound = f"UTF-8 text, plain, .gz or .zst: {error}"
            raise ValueError(f"{path}: content must be {bound}; replace the file") from error
        raise


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A file as text: plain, .gz or .zst."""
    if path.suffix == ".zst":
        import pyarrow as pa  # a second that no other format need wait for

        with _named(path), pa.input_stream(str(path), compression="zstd") as raw:
            yield io.TextIOWrapper(cast(io.BufferedReader, raw), "utf-8-sig", newline="")
        return
    kind = gzip.open if path.suffix == ".gz" else open
    # spreadsheets put a mark in front
    with _named(path), kind(path, "rt", newline="", encoding="utf-8-sig") as f:
        yield cast(TextIO, f)


def tokens(path: Path, row: int, column: str, text: str, low: int = 1) -> int:
    """`text` as a token count of low..MOST_TOKENS, else ValueError naming where it stands."""
    value = int(text) if text.isascii() and text.isdecimal() else -1
    bound = f"an integer of {low} to {MOST_TOKENS} tokens"
    require(low <= value <= MOST_TOKENS, f"{path}, row {row}, {column}", text, bound)
    return value


Cells = list[str]


@contextmanager
def open_table(path: Path) -> Iterator[tuple[Cells, Iterator[tuple[int, Cells]]]]:
    """Header and (row number, cells) of a CSV, without blank lines; ValueError for a ragged row."""

    def rows(reader: Iterator[Cells], count: int) -> Iterator[tuple[int, Cells]]:
        for n, cells in enumerate(reader, start=2):
            if len(cells) not in (0, count):
                said = f"{cells!r} must have {count} fields, it has {len(cells)}"
                raise ValueError(f"{path}, row {n}: {said}")
            if cells:
                yield n, cells

    with open_text(path) as f:
        reader = csv.reader(f, skipinitialspace=True)
        header = next(reader, [])
        yield header, rows(reader, len(header))


def read_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, Cells]]:
    """(row number, cells of `columns`) of a CSV; ValueError for a column that lacks."""
    with open_table(path) as (header, rows):
        for column in columns:
            if column not in header:
                said = f"header = {header!r} must have the column {column!r}"
                raise ValueError(f"{path}, row 1: {said}")
        at = [header.index(c) for c in columns]
        for n, cells in rows:
            yield n, [cells[i] for i in at]


def read_lengths(
    path: Path, columns: Sequence[str], low: Sequence[int], where: Sequence[tuple[str, str]] = ()
) -> np.ndarray:
    """Token counts as int64 [rows, len(columns)].

    A column "a+b" is the sum of two. low: smallest allowed value per column. where: (column,
    regular expression) that a row must match to be taken. Raises ValueError naming file, row,
    column and value of a bad field, or if none is left.
    """
    bounds = zip(columns, low, strict=True)
    parts = [(c, least) for column, least in bounds for c in column.split("+")]
    names = [c for c, _ in parts] + [c for c, _ in where]
    tests = [re.compile(pattern).fullmatch for _, pattern in where]
    rows = []
    for n, cells in read_rows(path, names):
        if all(test(cell) for test, cell in zip(tests, cells[len(parts) :], strict=True)):
            counts = zip(parts, cells, strict=False)
            rows.append([tokens(path, n, c, cell, least) for (c, least), cell in counts])
    require(len(rows) > 0, f"{path}: rows", 0, "at least 1" + f" with {dict(where)}" * bool(where))
    data, ends = np.array(rows, dtype=np.int64), np.cumsum([len(c.split("+")) for c in columns])
    return np.stack([part.sum(axis=1) for part in np.split(data, ends[:-1], axis=1)], axis=1)
