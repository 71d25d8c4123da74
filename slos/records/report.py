"""Paper against reproduced: `results/paper.yaml` and the tidy CSV of every run become a table, `results/README.md`.

A number of ours is a row of `results/<size>/headlines.csv`, written by `upsert_headlines`; capacities per scenario and
system are rows of `results/<size>/capacity.csv`. A number of the paper without a row of ours is NOT RUN. `reference` is
a full run that comes with the repository, and so does the `quick.csv` in it: what stands for `quick` until that was run
here.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cache
from math import isfinite
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import yaml

from slos.core.types import require

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "results" / "paper.yaml"
SIZES = ("smoke", "quick", "reference", "full")
LARGEST = SIZES[:0:-1]  # whose number counts, if they have it; smoke's never does
OURS = "slos-serve"
Frame = Any  # a pandas.DataFrame; its stubs refuse its own idioms
_INTRO = """# Paper against reproduced

Written by `python -m slos.report` from `paper.yaml` and the CSV files of each run; do not edit.

- *paper*: its number and how sure it is: A its own words, B the authors' later code, C a summary that nobody checked.
- *quick*: ours from `./run_all.sh`, as it was run here, or else as it came with the repository. *reference*: from the
  full run that came with it. *full*: from `./run_all.sh full`, if it was run here. In brackets the interval over seeds
  (95 %) or repeats, where there are several.
- *verdict*: OK at the paper's value or better, or within 5 % of it; NEAR within 25 %; else MISS; NOT RUN without a row.
- *simulated* numbers of ours come from a performance model, *measured* ones from an engine at work.
"""


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that the paper reports, in `unit`; `notebook` is the one that writes ours under `key`.

    why: the cause, found by measurement, where ours falls short.
    """

    key: str
    what: str
    value: float
    unit: str
    where: str
    confidence: str
    notebook: str
    better: str = "higher"
    why: str = ""

    def __post_init__(self) -> None:
        good = isinstance(self.value, (int, float)) and isfinite(self.value) and self.value > 0
        require(good, f"{self.key}: value", self.value, "a positive number", "give the paper's number in its unit")
        require(self.confidence in ("A", "B", "C"), f"{self.key}: confidence", self.confidence, "A, B or C")
        require(self.better in ("higher", "lower"), f"{self.key}: better", self.better, "higher or lower")


@dataclass(frozen=True, slots=True)
class Headline:
    """Our number for the claim `key`, with its confidence interval.

    source: `real traces` or `synthetic profile`. profile: the hardware profile. command: what makes this row again.
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
        numbers = (self.value, self.low, self.high)
        require(all(map(isfinite, numbers)), f"{self.key}: value, low, high", numbers, "finite", "else leave it out")
        require(self.low <= self.value <= self.high, f"{self.key}: value", self.value, f"in [{self.low}, {self.high}]")
        require(self.status in ("simulated", "measured"), f"{self.key}: status", self.status, "simulated or measured")


def results_dir(size: str) -> Path:
    """Where the rows of a size lie: `results/<size>` of the repository, or under SLOS_RESULTS where that is set."""
    return Path(os.environ.get("SLOS_RESULTS") or ROOT / "results") / size


def read_claims(path: Path = PAPER) -> list[Claim]:
    """The paper's numbers. Raises ValueError naming the key on an unknown, missing or bad field and on a key twice."""
    known, needed = {f.name for f in fields(Claim)}, {f.name for f in fields(Claim)} - {"better", "why"}
    claims: dict[str, Claim] = {}
    for n, raw in enumerate(yaml.safe_load(path.read_text(encoding="utf-8")), start=1):
        require(isinstance(raw, dict) and bool(raw.get("key")), f"{path}: entry {n}", raw, "a mapping with a `key`")
        key = raw["key"]
        require(raw.keys() <= known, f"{path}: {key}: fields", sorted(raw.keys() - known), f"among {sorted(known)}")
        require(raw.keys() >= needed, f"{path}: {key}: fields", sorted(raw), f"also {sorted(needed - raw.keys())}")
        require(key not in claims, f"{path}: key", key, "there once")
        claims[key] = Claim(**raw)
    return list(claims.values())


@cache
def paper(key: str) -> float:
    """The paper's number under a key of `results/paper.yaml`. Raises KeyError for an unknown one."""
    return {c.key: c.value for c in read_claims()}[key]


def read_headlines(path: Path) -> list[Headline]:
    """The rows of a headlines.csv, none if there is no such file. Raises ValueError naming the file, line and cure."""
    if not path.exists():
        return []
    columns, rows = [f.name for f in fields(Headline)], []
    with path.open(newline="", encoding="utf-8") as f:
        reader = csv.reader(f)
        head = next(reader, None)
        require(head == columns, f"{path}: columns", head, ",".join(columns), "remove it and run again")
        for n, row in enumerate(reader, start=2):
            try:
                key, value, low, high, *texts = row
                rows.append(Headline(key, float(value), float(low), float(high), *texts))
            except (TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {n}: {error}") from None
    return rows


def write_whole(path: Path, text: str) -> None:
    """Write a file so that a reader, or a run cut short, finds the old one or the new one and nothing between."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(text, encoding="utf-8")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def upsert_headlines(path: Path | str, rows: Iterable[Headline]) -> None:
    """Put `rows` into the headlines.csv at `path`: a key that is there already is replaced, the others stay."""
    merged = {row.key: row for row in (*read_headlines(Path(path)), *rows)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(f.name for f in fields(Headline))
    writer.writerows(astuple(row) for row in merged.values())
    write_whole(Path(path), text.getvalue())


def verdict(ours: float | None, claim: Claim) -> str:
    """OK, NEAR or MISS by how far `ours` falls short of the paper's value; NOT RUN without one."""
    if ours is None:
        return "NOT RUN"
    short = 1 - ours / claim.value if claim.better == "higher" else ours / claim.value - 1
    return "OK" if short <= 0.05 + 1e-9 else "NEAR" if short <= 0.25 + 1e-9 else "MISS"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, so that it reads in a terminal, too."""
    cells = [[c.replace("|", "\\|") for c in row] for row in (head, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in cells]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


def rows_of_runs() -> dict[str, dict[str, Headline]]:
    """By size and key what has run, here or, of the reference and of `quick`, where the repository was made."""
    files = {size: results_dir(size) / "headlines.csv" for size in SIZES}
    if not files["quick"].exists():
        files["quick"] = results_dir("reference") / "quick.csv"
    return {size: {h.key: h for h in read_headlines(path)} for size, path in files.items()}


def headline_table(claims: Sequence[Claim], runs: Mapping[str, Mapping[str, Headline]], size: str = "") -> str:
    """A line per claim, then per number that the paper has none for; how many of each verdict; and why some fall short.

    runs: by size and key. size: the one whose numbers count; without it that of the largest one that has the number.
    """
    counts = (size,) if size else LARGEST
    columns = [s for s in SIZES if s in ("quick", "reference", size) or (s == "full" and runs.get(s))]
    rows, whys = [], []

    def add(key: str, what: str, claim: Claim | None) -> None:
        found = {s: runs[s][key] for s in columns if key in runs.get(s, ())}
        h = next((found[s] for s in counts if s in found), None)
        reported = f"{claim.value:g} {claim.unit}".strip() + f" ({claim.confidence})" if claim else "-"
        row = [what, reported, *(_told(found[s]) if s in found else "-" for s in columns)]
        row += [f"{h.value / claim.value:.2f}" if h and claim else "-"]
        row += [verdict(h.value if h else None, claim) if claim else "-"]
        if h:
            rows.append([*row, h.status, ", ".join(filter(None, (h.source, h.profile))), h.command])
        elif claim:
            rows.append([*row, "-", "-", f"notebooks/{claim.notebook}.ipynb"])
        if claim and claim.why and row[-1] in ("NEAR", "MISS"):
            whys.append(f"- {what}: {claim.why}")

    for c in claims:
        add(c.key, c.what, c)
    for key in dict.fromkeys(key for s in counts for key in runs.get(s, ())):
        if key not in {c.key for c in claims}:
            add(key, f"`{key}`", None)
    head = ("what", "paper", *columns, "ratio", "verdict", "simulated/measured", "source", "made by")
    at = head.index("verdict")
    told = ", ".join(f"{sum(row[at] == v for row in rows)} {v}" for v in ("OK", "NEAR", "MISS", "NOT RUN"))
    of = f"`{size}`" if size else "the last column that has a number"
    parts = [_table(head, rows), f"{told}. Ratio, verdict and what follows them are those of {of}."]
    parts += ["Why ours fall short:\n\n" + "\n".join(whys)] if whys else []
    return "\n\n".join(parts)


def _told(h: Headline) -> str:
    return f"{h.value:.3g}" + (f" [{h.low:.3g}, {h.high:.3g}]" if h.low < h.high else "")


def capacity_tables(path: Path) -> str:
    """Scenario by system from a capacity.csv, ours over the best baseline, and geometric means over the scenarios.

    One table per origin of the lengths and status. Variants of ours (`slos-serve-...`) are no baselines.
    """
    import pandas as pd  # half a second that the notebooks' `upsert_headlines` need not wait for

    frame: Any = pd.read_csv(path, keep_default_na=False)
    needed = ("scenario", "lengths", "system", "setting", "profile", "capacity", "low", "high", "source", "status")
    require(set(needed) <= set(frame), f"{path}: columns", list(frame), f"with {', '.join(needed)}")
    tables = []
    for (lengths, status), rows in frame.groupby(["lengths", "status"], sort=False):
        grid = rows.pivot_table("capacity", "scenario", "system", aggfunc="last", sort=False)
        texts = {}
        for r in rows.itertuples():
            text = f"{r.capacity:.3g} [{r.low:.3g}, {r.high:.3g}] {str(r.setting).split('=')[-1]}"
            texts[r.scenario, r.system] = text.strip()
        baselines = [s for s in grid if not str(s).startswith(OURS)]
        ratio = grid.get(OURS, grid.max(axis=1) * float("nan")) / grid[baselines].max(axis=1)
        lines = []
        for name in grid.index:
            mine = rows[rows.scenario == name]
            origin = ", ".join(dict.fromkeys([*mine["source"], *mine["profile"]]))
            cells = [texts.get((name, s), "-") for s in grid]
            lines.append([name, *cells, f"{ratio[name]:.2f}".replace("nan", "-"), origin])
        means = [_mean(column.dropna()) for column in (*(grid[s] for s in grid), ratio)]
        lines.append(["geometric mean", *means, ""])
        table = _table(["scenario", *map(str, grid), "ours / best baseline", "source"], lines)
        title = f"Capacity, requests per second and GPU, {status}, lengths from the {lengths}"
        tables.append(f"{title}: mean [95 % interval over seeds] token budget, the best of those tried\n\n{table}")
    return "\n\n".join(tables)


def _mean(values: Sequence[float]) -> str:
    if len(values) == 0:
        return "-"
    return f"{geometric_mean(values) if min(values) > 0 else 0:.3g}"


def executed(folder: Path) -> str:
    """How the notebooks of a run were executed, from what `slos.reproduce` left; "" where it left nothing."""
    stamps = {path.stem: json.loads(path.read_text()) for path in sorted((folder / "notebooks").glob("*.json"))}
    whole = {name: s for name, s in stamps.items() if "commit" in s}  # older ones do not tell
    rows = [[name, s["commit"], f"{s['seconds'] / 60:.1f}", s["machine"]] for name, s in whole.items()]
    return _table(("notebook", "commit", "minutes", "machine"), rows) if rows else ""


def render(size: str = "") -> str:
    """The table, then the capacities behind it: those of `size`, or of the largest run that is there."""
    parts = [headline_table(read_claims(), rows_of_runs(), size)]
    there = [s for s in ((size,) if size else LARGEST) if (results_dir(s) / "capacity.csv").exists()]
    parts += [f"## Capacities, `{s}`\n\n{capacity_tables(results_dir(s) / 'capacity.csv')}" for s in there[:1]]
    run = next(filter(executed, (results_dir(s) for s in ((size,) if size else LARGEST))), None)
    parts += [f"## How `{run.name}` was executed\n\n{executed(run)}"] if run else []
    return "\n\n".join(parts)


def write_readme() -> Path:
    """`README.md` beside the sizes, in which the largest run counts."""
    path = results_dir("quick").parent / "README.md"
    write_whole(path, f"{_INTRO}\n{render()}\n")
    return path


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m slos.report", description="The table: paper against reproduced.")
    parser.add_argument("--size", choices=SIZES, default="", help="whose numbers count (the largest that has them)")
    size = parser.parse_args(argv).size
    try:
        print(f"Paper against reproduced\n\n{render(size)}\n\nwritten: {write_readme()}")
    except ValueError as error:
        parser.exit(1, f"report: {error}\n")


if __name__ == "__main__":
    main()
