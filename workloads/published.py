"""Traces in the layouts in which they are published, as a CSV of one's own requests.

Known by their columns: Azure's LLM inference traces (TIMESTAMP, ContextTokens, GeneratedTokens),
BurstGPT (Timestamp, Request tokens, Response tokens), Mooncake (a JSON object a line: timestamp in
milliseconds, input_length, output_length, hash_ids), ShareGPT (a JSON list of conversations, as
text: tokens are estimated), and the columns of `workloads.own` with `session` for the rounds of
conversations. Each also as .gz or .zst.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, cast

from slos.core.types import SLO, require
from workloads import own, sessions
from workloads.files import open_table, open_text, tokens
from workloads.layouts import KNOWN, column_of, layout_of

CHARACTERS = 4.0  # of English text in a token, where a data set has text and no counts
TOO_MANY = 0.05  # share of requests that may be left out for their length
SLOWEST = 10.0  # seconds a token: more was meant to be milliseconds
LATEST = 1e11  # seconds since 1970: likewise


@dataclass(frozen=True, slots=True)
class Objectives:
    """Of requests that have none: seconds per token; to the first token seconds or slowdown."""

    tpot: float | None = None
    ttft: float | None = None
    slowdown: float | None = None

    def cells(self, path: Path, there: Collection[str]) -> dict[str, float]:
        """Those given, by column. Raises ValueError naming what is neither given nor `there`."""
        lacking = [] if self.tpot or "tpot" in there else ["--tpot"]
        first = self.ttft or self.slowdown or {"ttft", "slowdown"} & set(there)
        lacking += [] if first else ["--ttft or --slowdown"]
        cure = f"give {' and '.join(lacking)}: seconds a token, seconds to the first token"
        require(not lacking, f"{path}: objectives", None, "in the file or given", cure)
        cells = {"tpot": self.tpot, "ttft": self.ttft, "slowdown": self.slowdown}
        SLO(self.tpot or 1.0, self.ttft, self.slowdown)  # refuses what is out of bounds
        _pace("tpot", self.tpot or 0.0)
        return {name: x for name, x in cells.items() if x is not None}


@dataclass(slots=True)
class Table:
    """Requests of a file as rows of `KNOWN` columns, and what there is to say about them."""

    path: Path
    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def _records(path: Path) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """The layout's name, and (row number, cells by column)."""
    plain = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    if plain.endswith(".jsonl"):
        with open_text(path) as f:
            found = [(n, _object(path, n, t)) for n, t in enumerate(f, start=1) if t.strip()]
        blank = dict.fromkeys((c for _, cells in found for c in cells), "")
        return layout_of(path, list(blank)), [(n, blank | cells) for n, cells in found]
    if plain.endswith(".json"):
        with open_text(path) as f:
            return "ShareGPT", list(_conversations(path, json.load(f)))
    with open_table(path) as (names, rows):
        header = [c.strip() for c in names]
        layout = layout_of(path, header)
        return layout, [(n, dict(zip(header, map(str.strip, r), strict=True))) for n, r in rows]


def _object(path: Path, n: int, text: str) -> dict[str, str]:
    """The fields of a line that are not null."""
    raw = None
    with suppress(json.JSONDecodeError):
        raw = json.loads(text)
    require(isinstance(raw, dict), f"{path}, row {n}", text.strip()[:60], "a JSON object")
    cells = {c: x for c, x in cast(dict, raw).items() if x is not None}
    written = {c: json.dumps(x) if isinstance(x, list) else str(x) for c, x in cells.items()}
    return {c.strip(): text for c, text in written.items()}


def _conversations(path: Path, raw: object) -> Iterator[tuple[int, dict[str, str]]]:
    """A request for each answer of a conversation, with all that was said before as its prompt."""
    shape = 'a list of {"conversations": [{"from": "human", "value": "..."}, ...]}'
    other = "a list of requests is a .jsonl file, an object a line"
    require(isinstance(raw, list), f"{path}: content", type(raw).__name__, shape, other)
    for n, talk in enumerate(cast(list, raw), start=1):
        turns = talk.get("conversations") if isinstance(talk, dict) else None
        good = isinstance(turns, list) and all(
            isinstance(turn, dict) and {"from", "value"} <= turn.keys() for turn in turns
        )
        require(good, f"{path}, item {n}", str(talk)[:60], f"in {shape}", other)
        before = 0.0
        for turn in cast(list, turns):
            size = len(str(turn["value"] or "")) / CHARACTERS
            if turn["from"] in ("gpt", "assistant", "chatgpt"):
                counts = {"prompt": str(round(before)), "output": str(round(size))}
                yield n, counts | {"session": str(n)}
            before += size


def _seconds(path: Path, n: int, text: str, layout: str) -> float:
    seconds = None
    with suppress(ValueError):
        date = datetime.fromisoformat(text)
        seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    with suppress(ValueError):
        seconds = float(text) * (1e-3 if layout == "Mooncake" else 1.0)
    good = seconds is not None and isfinite(seconds) and seconds < LATEST
    bound = f"seconds below {LATEST:g}, or a date as 2023-11-16 18:15:46"
    require(good, f"{path}, row {n}: arrival", text, bound, "divide milliseconds by 1000")
    return cast(float, seconds)


def _pace(name: str, tpot: object) -> None:
    """Refuse milliseconds; what is no number `workloads.own` refuses."""
    seconds = 0.0
    with suppress(ValueError):
        seconds = float(str(tpot))
    bound = f"at most {SLOWEST:g} seconds a token"
    require(not seconds > SLOWEST, name, tpot, bound, "divide milliseconds by 1000")


def _hashes(name: str, text: str) -> None:
    found = None
    with suppress(json.JSONDecodeError):
        found = json.loads(text or "[]")
    require(isinstance(found, list), name, text, "a JSON list of blocks")


def read(
    path: Path | str, objectives: Objectives, max_context: int | None = None,
    most_left_out: float = TOO_MANY,
) -> Table:  # fmt: skip
    """The requests of a file in any of the layouts.

    Left out, and told in the remarks: rows without a token of prompt or output, and requests over
    `max_context`, which are refused where they are a larger share than `most_left_out`. Raises
    FileNotFoundError, or ValueError naming file, row, column and value of what is wrong, and the
    cure.
    """
    path = Path(path)
    try:
        layout, records = _records(path)
    except json.JSONDecodeError as error:
        cure = "a file with an object a line is a .jsonl"
        raise ValueError(f"{path}: content must be JSON; {cure}: {error}") from None
    require(len(records) > 0, f"{path}: rows", 0, "at least 1")
    names = {c: column_of(c, layout) for c in records[0][1]}
    used = {c: name for c, name in names.items() if name}
    default = objectives.cells(path, used.values())
    table = Table(path, [*(c for c in KNOWN if c in {*used.values(), *default}), "row"])
    for n, cells in records:
        row: dict[str, Any] = {used[c]: text for c, text in cells.items() if c in used}
        for c in ("prompt", "output"):  # as a spreadsheet writes whole numbers
            row[c] = tokens(path, n, c, row[c].removesuffix(".0"), low=0)
        if "arrival" in row:
            row["arrival"] = _seconds(path, n, row["arrival"], layout)
        _pace(f"{path}, row {n}: tpot", row.get("tpot"))
        _hashes(f"{path}, row {n}: hash_ids", row.get("hash_ids", ""))
        table.rows.append(_filled(row, default) | {"row": n})
    passed = records[0][1].keys() - used.keys()
    table.remarks += _remarks(layout, passed, table, len(records))
    _in_order(table)
    _shared(table)
    _fitting(path, table, max_context, most_left_out)
    return table


def _filled(row: dict[str, Any], objectives: dict[str, float]) -> dict[str, Any]:
    """A row with these objectives where it has none of its own."""
    first = ("ttft", "slowdown") if row.get("ttft") or row.get("slowdown") else ()
    given = {c: x for c, x in objectives.items() if not row.get(c) and c not in first}
    return row | given


def _in_order(table: Table) -> None:
    """Leave out what has no tokens, and sort by arrival, from 0 on."""
    kept = [row for row in table.rows if min(row["prompt"], row["output"]) > 0]
    empty, table.rows = len(table.rows) - len(kept), kept
    table.remarks += [f"{empty} without a token of prompt or output: left out"] * (empty > 0)
    if "arrival" in table.columns and table.rows:
        start = min(row["arrival"] for row in table.rows)
        table.rows.sort(key=lambda row: row["arrival"])
        for row in table.rows:
            row["arrival"] = round(row["arrival"] - start, 6)


def _shared(table: Table) -> None:
    """Say whose content prompts begin with, where the file tells of sessions or hashes."""
    said = ""
    if "session" in table.columns:
        said = sessions.grow(table.rows)
    elif any(row.get("hash_ids") for row in table.rows):
        said = sessions.hashed(table.rows)
    if said:
        table.remarks.append(said)
        table.columns.append("prefix")


def _fitting(path: Path, table: Table, max_context: int | None, most_left_out: float) -> None:
    """Leave out what is longer; refuse the file if that is too much of it."""
    require(len(table.rows) > 0, f"{path}: rows with tokens", 0, "at least 1")
    sizes = [row["prompt"] + row["output"] for row in table.rows]
    long = [size for size in sizes if max_context and size > max_context]
    share = len(long) / len(sizes)
    cure = f"{share:.1%} are longer: leave them out (--max-context), or name another profile"
    name, most = f"longest request of {path.name.split('.')[0]}", max(long, default=0)
    require(share <= most_left_out, name, most, f"at most {max_context} tokens", cure)
    said = f"{len(long)} of {len(sizes)} longer than {max_context} tokens: left out"
    table.remarks += [said] * bool(long)
    rows = zip(table.rows, sizes, strict=True)
    table.rows = [row for row, size in rows if not max_context or size <= max_context]
    require(len(table.rows) > 0, f"{path}: max_context", max_context, "what some requests fit")


def _remarks(layout: str, left: set[str], table: Table, count: int) -> list[str]:
    """Where arrivals come from, what was passed over, and what the layout is."""
    arrivals = "arrivals of the file" if "arrival" in table.columns else "Poisson arrivals"
    why = "" if "arrival" in table.columns else ": no column arrival"
    names = ", ".join(sorted(name or "a column without a name" for name in left))
    passed = f"; passed over: {names}" if left else ""
    kind = "" if layout == "own" else f" in the layout of {layout}"
    guessed = ", tokens estimated from text" if layout == "ShareGPT" else ""
    return [f"{count} rows{kind}{guessed}, {arrivals}{why}{passed}"]


def write(table: Table, path: Path) -> Path:
    """Write the requests as a CSV of `workloads.own`; returns the path. Raises ValueError, naming
    the file that they come from, for what cannot be read there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, table.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table.rows)
    try:
        own.load(path)
    except ValueError as error:
        raise ValueError(str(error).replace(str(path), str(table.path))) from None
    return path
