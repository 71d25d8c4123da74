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
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast

from slos.core.types import SLO, require
from workloads import sessions
from workloads.files import open_text, tokens

KNOWN = ("prompt", "output", "tpot", "ttft", "slowdown", "arrival", "kind", "value", "session")
TIMES = ("timestamp", "time", "arrived_at", "arrival_time", "arrivals")  # what `arrival` is called
LAYOUTS = {
    "Azure": {"TIMESTAMP": "arrival", "ContextTokens": "prompt", "GeneratedTokens": "output"},
    "BurstGPT": {
        "Timestamp": "arrival", "Request tokens": "prompt", "Response tokens": "output",
        "Log Type": "kind", "Session ID": "session",
    },
    "Mooncake": {
        "timestamp": "arrival", "input_length": "prompt", "output_length": "output",
        "hash_ids": "hash_ids",
    },
}  # fmt: skip
CHARACTERS = 4.0  # of English text in a token, where a data set has text and no counts
TOO_MANY = 0.05  # share of requests that may be left out for their length


@dataclass(frozen=True, slots=True)
class Objectives:
    """Of the requests of a file that has none: seconds per token, and to the first token seconds or
    times its zero load."""

    tpot: float | None = None
    ttft: float | None = None
    slowdown: float | None = None

    def cells(self, path: Path, own: Collection[str]) -> dict[str, float]:
        """As columns, beside those of its `own`. Raises ValueError naming what is lacking."""
        lacking = [] if self.tpot or "tpot" in own else ["--tpot"]
        first = self.ttft or self.slowdown or {"ttft", "slowdown"} & set(own)
        lacking += [] if first else ["--ttft or --slowdown"]
        cure = f"give {' and '.join(lacking)}: seconds a token, seconds to the first token"
        require(not lacking, f"{path}: objectives", None, "in the file or given", cure)
        cells = {"tpot": self.tpot, "ttft": self.ttft, "slowdown": self.slowdown}
        SLO(self.tpot or 1.0, self.ttft, self.slowdown)  # refuses what is out of bounds
        taken = {*own, *(("ttft", "slowdown") if {"ttft", "slowdown"} & set(own) else ())}
        return {name: x for name, x in cells.items() if x is not None and name not in taken}


@dataclass(slots=True)
class Table:
    """Requests as rows of `KNOWN` columns, and what is to be said about them, in words."""

    columns: list[str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def _records(path: Path) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """The layout's name, and (row number, cells by column)."""
    plain = path.name.removesuffix(".gz").removesuffix(".zst")
    with open_text(path) as f:
        if plain.endswith(".jsonl"):
            lines = [(n, line) for n, line in enumerate(f, start=1) if line.strip()]
            found = [(n, {k: str(v) for k, v in json.loads(t).items()}) for n, t in lines]
            return _layout(path, list(found[0][1]) if found else []), found
        if plain.endswith(".json"):
            return "ShareGPT", list(_conversations(path, json.load(f)))
        reader = csv.reader(f, skipinitialspace=True)
        header = next(reader, [])
        twice = [c for c in header if header.count(c) > 1]
        require(not twice, f"{path}, row 1: header", header, "without a column twice", f"{twice}")
        layout = _layout(path, header)
        found = []
        for n, cells in enumerate(reader, start=2):
            if cells:
                fields = f"{len(header)} fields"
                require(len(cells) == len(header), f"{path}, row {n}", cells, f"of {fields}")
                found.append((n, dict(zip(header, cells, strict=True))))
        return layout, found


def _layout(path: Path, header: Sequence[str]) -> str:
    for name, names in LAYOUTS.items():
        if {"prompt", "output"} <= {names[c] for c in header if c in names}:
            return name
    close = {
        c: [h for h in header if h.lower() == c or get_close_matches(c, [h], 1, 0.8)]
        for c in KNOWN
        if c not in header
    }
    if "arrival" in close:
        close["arrival"] += [h for h in header if h.lower() in TIMES]
    for name, others in close.items():
        cure = f"rename it to {name!r}, or drop it"
        require(not others, f"{path}, row 1: column", others[:1], "of a known name", cure)
    known = "comma-separated, with a column prompt and one output (tokens), tpot (seconds a token)"
    known += f", ttft (seconds) or slowdown; or a layout of {', '.join(LAYOUTS)}, ShareGPT"
    require({"prompt", "output"} <= set(header), f"{path}, row 1: header", header, known)
    return "own"


def _conversations(path: Path, raw: object) -> Iterator[tuple[int, dict[str, str]]]:
    """A request for each answer of a conversation, with all that was said before as its prompt."""
    require(isinstance(raw, list), f"{path}: content", type(raw).__name__, "a list")
    for n, talk in enumerate(cast(list, raw), start=1):
        before = 0.0
        for turn in talk.get("conversations") or ():
            size = len(str(turn.get("value", ""))) / CHARACTERS
            if turn.get("from") in ("gpt", "assistant", "chatgpt"):
                counts = {"prompt": str(round(before)), "output": str(round(size))}
                yield n, counts | {"session": str(n)}
            before += size


def _seconds(path: Path, n: int, text: str, layout: str) -> float:
    try:
        return float(text) * (1e-3 if layout == "Mooncake" else 1.0)
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip()[:26]).timestamp()
    except ValueError:
        raise ValueError(f"{path}, row {n}: arrival = {text!r} must be seconds or a date") from None


def read(
    path: Path | str,
    objectives: Objectives,
    max_context: int | None = None,
    most_left_out: float = TOO_MANY,
) -> Table:
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
        raise ValueError(f"{path}: content must be JSON: {error}") from None
    require(len(records) > 0, f"{path}: rows", 0, "at least 1")
    names = {c: c for c in KNOWN} | LAYOUTS.get(layout, {})
    used = {c: names[c] for c in records[0][1] if c in names}
    own = [c for c in ("tpot", "ttft", "slowdown") if c in used.values()]
    default = objectives.cells(path, own)
    table = Table([*(c for c in KNOWN if c in {*used.values(), *default}), "row"])
    for n, cells in records:
        row: dict[str, Any] = {used[c]: text for c, text in cells.items() if c in used}
        row |= {c: tokens(path, n, c, str(row[c]), low=0) for c in ("prompt", "output")}
        if "arrival" in row:
            row["arrival"] = _seconds(path, n, str(row["arrival"]), layout)
        table.rows.append(row | default | {"row": n})
    passed = records[0][1].keys() - used.keys()
    table.remarks += _remarks(layout, passed, table, len(records))
    _whole(table)
    _in_order(table)
    _shared(table)
    _fitting(path, table, max_context, most_left_out)
    return table


def _whole(table: Table) -> None:
    """Leave out what has no tokens."""
    kept = [row for row in table.rows if min(row["prompt"], row["output"]) > 0]
    empty = len(table.rows) - len(kept)
    table.remarks += [f"{empty} without a token of prompt or output: left out"] * (empty > 0)
    table.rows = kept


def _in_order(table: Table) -> None:
    """Sort by arrival, from 0 on."""
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
    elif table.rows and all("hash_ids" in row for row in table.rows):
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
    cure = f"{share:.0%} are longer: leave them out (--max-context), or name another profile"
    name, most = f"longest request of {path.name.split('.')[0]}", max(long, default=0)
    require(share <= most_left_out, name, most, f"at most {max_context} tokens", cure)
    said = f"{len(long)} of {len(sizes)} longer than {max_context} tokens: left out"
    table.remarks += [said] * bool(long)
    rows = zip(table.rows, sizes, strict=True)
    table.rows = [row for row, size in rows if not max_context or size <= max_context]


def _remarks(layout: str, left: set[str], table: Table, count: int) -> list[str]:
    """Where arrivals come from, what was passed over, and what the layout is."""
    arrivals = "arrivals of the file" if "arrival" in table.columns else "Poisson arrivals"
    why = "" if "arrival" in table.columns else ": no column arrival"
    passed = f"; passed over: {', '.join(sorted(left))}" if left else ""
    kind = "" if layout == "own" else f" in the layout of {layout}"
    guessed = ", tokens estimated from text" if layout == "ShareGPT" else ""
    return [f"{count} rows{kind}{guessed}, {arrivals}{why}{passed}"]


def write(table: Table, path: Path) -> Path:
    """Write the requests as a CSV of `workloads.own`; returns the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as out:
        writer = csv.DictWriter(out, table.columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(table.rows)
    return path
