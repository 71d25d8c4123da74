"""The paper's numbers (`results/paper.yaml`), ours next to them (`headlines.csv`), the verdict."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path

import yaml

from slos.core.types import require
from slos.files import ROOT, Frame, commit, locked, results_dir
from slos.records import tidy

PAPER = ROOT / "results" / "paper.yaml"
Spread = tuple[float, float, float]  # a mean over seeds, and its 95 % interval


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that the paper reports, in `unit`; `notebook` is the one that writes ours under
    `key`.

    scenario: of which it is, "" for a mean or none. setting: in which ours is compared. note: what
    its sources leave open. why: the cause where ours falls short, shown by a run that removes it.
    """

    key: str
    what: str
    value: float
    unit: str
    where: str
    confidence: str
    notebook: str
    better: str = "higher"
    scenario: str = ""
    setting: str = ""
    note: str = ""
    why: str = ""

    def __post_init__(self) -> None:
        value, sure, better = self.value, self.confidence, self.better
        good = isinstance(value, (int, float)) and isfinite(value) and value > 0
        cure = "give the paper's number in its unit"
        require(good, f"{self.key}: value", value, "a positive number", cure)
        require(sure in ("A", "B", "C"), f"{self.key}: confidence", sure, "A, B or C")
        require(better in ("higher", "lower"), f"{self.key}: better", better, "higher or lower")

    def __str__(self) -> str:
        return f"{self.what}, {self.scenario}" if self.scenario else self.what


@dataclass(frozen=True, slots=True)
class Headline:
    """Our number for the claim `key`, with its confidence interval.

    source: `real traces` or `synthetic profile`. profile: the hardware profile. command: what makes
    this row again.
    """

    key: str
    value: float
    low: float
    high: float
    status: str
    source: str
    profile: str
    commit: str
    command: str

    def __post_init__(self) -> None:
        value, low, high, made = self.value, self.low, self.high, self.status
        finite, names = all(map(isfinite, (value, low, high))), f"{self.key}: value, low, high"
        require(finite, names, (value, low, high), "finite", "else leave it out")
        require(low <= value <= high, f"{self.key}: value", value, f"in [{low}, {high}]")
        known = "simulated", "measured"
        require(made in known, f"{self.key}: status", made, " or ".join(known))


def read_claims(path: Path = PAPER) -> list[Claim]:
    """The paper's numbers. Raises ValueError naming the key for a field that is unknown, lacks or
    is bad, and for a key that is there twice."""
    known = {f.name for f in fields(Claim)}
    needed = {f.name for f in fields(Claim) if f.default is MISSING}
    claims: dict[str, Claim] = {}
    for n, raw in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), start=1):
        good = isinstance(raw, dict) and bool(raw.get("key"))
        require(good, f"{path}: entry {n}", raw, "a mapping with a `key`")
        key, given = raw["key"], raw.keys()
        where, lacks = f"{path}: {key}: fields", sorted(needed - given)
        require(given <= known, where, sorted(given - known), f"among {sorted(known)}")
        require(not lacks, where, sorted(raw), f"also {lacks}")
        require(key not in claims, f"{path}: key", key, "there once")
        claims[key] = Claim(**raw)
    return list(claims.values())


@cache
def claim(key: str) -> Claim:
    """That of a key of `results/paper.yaml`. Raises KeyError for an unknown one."""
    return {c.key: c for c in read_claims()}[key]


def paper(key: str) -> float:
    """The paper's number under a key."""
    return claim(key).value


def read_headlines(path: Path) -> list[Headline]:
    """The rows of a headlines.csv, if there is one. ValueError naming file, line and cure."""
    return [row for _, row in tidy.read(path, Headline)]


def upsert_headlines(path: Path | str, rows: Iterable[Headline]) -> None:
    """Put `rows` into the headlines.csv at `path`: one replaces that of its key, others stay."""
    with locked(Path(path).parent):
        merged = {row.key: row for row in (*read_headlines(Path(path)), *rows)}
        tidy.write(Path(path), Headline, (((), row) for row in merged.values()))


def verdict(ours: float | None, claim: Claim) -> str:
    """OK, NEAR or MISS by how far `ours` falls short of the paper's value; NOT RUN without one."""
    if ours is None:
        return "NOT RUN"
    short = 1 - ours / claim.value if claim.better == "higher" else ours / claim.value - 1
    return "OK" if short <= 0.05 + 1e-9 else "NEAR" if short <= 0.25 + 1e-9 else "MISS"


def put(
    size: str, notebook: str, numbers: Mapping[str, Spread], status: str, source: str, hardware: str
) -> Frame:
    """Put numbers, by key of `results/paper.yaml`, into results/<size>/headlines.csv; the rows."""
    import pandas as pd  # half a second that the table in a terminal need not wait for

    command = f"./run_all.sh{'' if size == 'quick' else ' ' + size} ({notebook})"
    rest = status, source, hardware, commit(), command
    rows = [
        Headline(key, float(mean), float(low), float(high), *rest)
        for key, (mean, low, high) in numbers.items()
    ]
    upsert_headlines(results_dir(size) / "headlines.csv", rows)
    return pd.DataFrame(rows)
