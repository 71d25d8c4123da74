"""Requests of one's own, from a CSV: a row for each, with its lengths in tokens and its objectives
in seconds.

Columns: prompt, output, tpot, and for the first token ttft (seconds) or slowdown (times its
zero-load time), of which every row has one; arrival (seconds, ascending) or none for Poisson
arrivals; kind, by which reports group requests, and value (1). `workloads.published` adds row, the
number by which messages call the row; session, for a round of one; and prefix, a JSON list of
[name, tokens], as in `Request.prefix`. Any other column is passed over.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, nan
from pathlib import Path
from typing import cast

from slos.core.types import SLO, Request, Stage, require
from workloads.files import open_table, read_rows, stamp, tokens


@dataclass(frozen=True, slots=True)
class Row:
    """A request of one stage; arrival in seconds, None where the file has no such column."""

    arrival: float | None
    stage: Stage
    kind: str = ""
    value: float = 1.0
    number: int = 0
    session: str = ""
    prefix: tuple[tuple[str | int, int], ...] = ()

    def request(self, id: str, arrival: float, kind: str, lap: int = 0) -> Request:
        """As a request of that kind, unless it has one; another `lap` of a file has new content."""
        prefix = tuple((f"{name}~{lap}", n) for name, n in self.prefix) if lap else self.prefix
        return Request(id, arrival, (self.stage,), self.value, self.kind or kind, prefix)


def as_they_are(path: Path, count: int | None = None) -> tuple[Request, ...]:
    """The first `count` requests of a file with arrivals (None: all), at its own times from 0."""
    require(count is None or count >= 1, "num_requests", count, "at least 1")
    rows = load(path)[:count]
    require(rows[0].arrival is not None, f"{path}: arrivals", None, "in the file")
    start = cast(float, rows[0].arrival)
    return tuple(
        r.request(f"{path.stem}-{r.number:06d}", cast(float, r.arrival) - start, path.stem)
        for r in rows
    )


def load(path: Path) -> tuple[Row, ...]:
    """The rows of a file; FileNotFoundError, or ValueError naming file, row, column and value."""
    return _load(path, stamp(path))


@lru_cache(maxsize=8)
def _load(path: Path, _: tuple[int, int]) -> tuple[Row, ...]:
    with open_table(path) as (header, _rows):
        first = [c for c in ("ttft", "slowdown") if c in header]
    bound = "comma-separated, with a column 'ttft' or 'slowdown'"
    require(bool(first), f"{path}, row 1: header", header, bound)
    more = [c for c in ("arrival", "kind", "value", "row", "session", "prefix") if c in header]
    names = ["prompt", "output", "tpot", *first, *more]
    rows: list[Row] = []
    for n, cells in read_rows(path, names):
        cell = dict(zip(names, cells, strict=True))
        called, session = cell.pop("row", ""), cell.pop("session", "")
        n = int(called) if called.isdecimal() else n
        here, kind = f"{path}, row {n}", cell.pop("kind", "")
        prefix = _prefix(here, cell.pop("prefix", ""))
        prompt, output = (tokens(path, n, c, cell.pop(c)) for c in ("prompt", "output"))
        seconds = {c: _number(f"{here}: {c}", text) for c, text in cell.items() if text}
        arrival, value = seconds.pop("arrival", None), seconds.pop("value", 1.0)
        require(value > 0, f"{here}: value", value, "positive")
        both = len(seconds) == 2 and "tpot" in seconds
        bound, cure = "tpot, and ttft or slowdown", "--tpot, --ttft, --slowdown are for blank cells"
        require(both, f"{here}: objectives", seconds, bound, cure)
        given = arrival is not None or "arrival" not in cell
        require(given, f"{here}: arrival", "", "given", "or drop the column")
        ascends = arrival is None or arrival >= ((rows[-1].arrival if rows else None) or 0)
        require(ascends, f"{here}: arrival", arrival, "no earlier", "sort the file")
        try:
            slo = SLO(seconds["tpot"], seconds.get("ttft"), seconds.get("slowdown"))
            stage = Stage(prompt, output, slo)
            rows.append(Row(arrival, stage, kind, value, n, session, prefix))
        except ValueError as error:
            raise ValueError(f"{here}: {error}") from None
    require(len(rows) > 0, f"{path}: rows", 0, "at least 1")
    start, end = rows[0].arrival, rows[-1].arrival
    two, cure = "of two times at least", "drop the column for Poisson arrivals"
    require(start is None or start != end, f"{path}: arrivals", start, two, cure)
    return tuple(rows)


def _prefix(here: str, text: str) -> tuple[tuple[str | int, int], ...]:
    try:
        found = tuple((name, n) for name, n in json.loads(text or "[]"))
        good = all(isinstance(name, str | int) and isinstance(n, int) for name, n in found)
    except (TypeError, ValueError):
        found, good = (), False
    require(good, f"{here}: prefix", text, "a JSON list of [name, tokens]")
    return found


def _number(here: str, text: str) -> float:
    value = nan
    with suppress(ValueError):
        value = float(text)
    require(isfinite(value), here, text, "a finite number")
    return value
