"""Rows of a frozen dataclass, of str, int, float and bool fields, as lines of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from slos.files import write_whole

KINDS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float}
KINDS["bool"] = lambda text: bool(("False", "True").index(text))
CURE = "and run again"


class OtherColumns(ValueError):
    """A file of another layout."""


def columns(row: type, before: Sequence[str] = ()) -> list[str]:
    return [*before, *(f.name for f in fields(row))]


def read(path: Path, row: type, before: Sequence[str] = ()) -> Iterator[tuple[list[str], Any]]:
    """The cells of the columns `before` and the row of each line, none if there is no such file.

    Raises OtherColumns, or ValueError naming file, line and cure.
    """
    if not path.exists():
        return
    kinds = [KINDS[getattr(f.type, "__name__", str(f.type))] for f in fields(row)]
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as f:
        reader = csv.reader(f)
        head, known = next(reader, None), columns(row, before)
        if head != known:
            bound = ",".join(known)
            raise OtherColumns(f"{path}: columns = {head} must be {bound}; remove it {CURE}")
        try:
            for cells in reader:
                ",".join(cells).encode()  # refuses what was no UTF-8
                own = zip(kinds, cells[len(before) :], strict=True)
                yield cells[: len(before)], row(*(kind(cell) for kind, cell in own))
        except (ValueError, csv.Error) as error:
            cure = f"remove that line, or the file, {CURE}"
            raise ValueError(f"{path}, line {reader.line_num}: {error}; {cure}") from None


def write(
    path: Path, row: type, rows: Iterable[tuple[Sequence[str], Any]], before: Sequence[str] = ()
) -> None:
    """What `read` reads back: all of the file or nothing."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns(row, before))
    names = [f.name for f in fields(row)]
    writer.writerows((*cells, *(getattr(r, n) for n in names)) for cells, r in rows)
    write_whole(path, text.getvalue())
