"""Paper against reproduced: `results/paper.yaml` and the tidy CSV of every run become a table.

A run of `./run_all.sh` has it in `results/<size>/README.md`. The one that the repository holds,
`results/README.md`, is of `reference` alone: `python -m slos.records` writes it.

A number of ours is a row of `results/<size>/headlines.csv`, written by `upsert_headlines`;
capacities per scenario and system are rows of `results/<size>/capacity.csv`. A number of the paper
without a row of ours is NOT RUN. `reference` is a full run that comes with the repository, and so
does the `quick.csv` in it: what stands for `quick` until that was run here.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from tabulate import tabulate

from slos.core.types import require
from slos.files import ROOT, results_dir, write_whole
from slos.records.claims import Claim, Headline, read_claims, read_headlines, verdict

AGAINST = {
    "vLLM": ("published", "vllm"),
    "Sarathi-Serve": ("published", "sarathi"),
    "DistServe": ("published", "distserve"),
    "the best (paper: of two, in its simulation)": ("authors", "best"),
}
"""Rows of `against_table`: how the keys of `results/paper.yaml` begin and end."""
SIZES = ("smoke", "quick", "reference", "full")
_INTRO = """# Paper against reproduced

`python -m slos.records` writes this file from `paper.yaml` and the CSV files of `reference`; a run
of `./run_all.sh` writes its own into its folder. Do not edit it.

- *paper*: the paper's number and how sure it is. A: its own words, or two readings that agree. B:
  the authors' later code, or one reader's notes. C: an unchecked summary.
- *quick*: our number from `./run_all.sh`, as it ran here, or else as it came with the repository.
  *reference*: from the full run that came with the repository. Brackets: the 95 % interval over
  seeds, or the range of repeats, where there are several; of planning see its setting.
- *verdict*: OK if our number is at least as good as the paper's or within 5 % of it, NEAR within
  25 %, otherwise MISS; NOT RUN if there is no row. Only a number in the paper's own setting, as far
  as that is known, has a verdict; the settings are listed below.
- Names in backticks are numbers that the paper does not have; they have no verdict. `capacity_...`
  is on one replica without speculation (notebook 01), with `_trace` at the lengths of the Azure
  traces where they have them (chatbot, coding, mixed), with `_client_95` by the clients' rule of
  pace at 95 %. `published_...`, `today_...` and `clients_...` are as in the README's first table,
  and `strict_...` at 98 % (notebook 17).
- *simulated* numbers of ours come from a performance model; *measured* ones are times (05) or a fit
  to published times (07).
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with its columns aligned, so that it reads in a terminal, too."""
    cells = [[c.replace("|", "\\|") for c in row] for row in rows]
    return tabulate(cells, head, tablefmt="github", disable_numparse=True)


def against_table(claims: Sequence[Claim], rows: Sequence[Headline]) -> str:
    """Ours over each baseline: the paper's number, as the paper had them, at their best today, and
    the same by the clients' rule of pace; "-" where there is none. The README's block."""
    papers = {c.key: f"{c.value:g}x" for c in claims}
    ours = {h.key: _told(h, ".2f", "x") for h in rows}
    head = ["SLOs-Serve against", "paper", "as the paper had them", "at their best today"]
    head += ["the same by the clients' rule"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for what, (first, name) in AGAINST.items():
        keys = [f"{way}_vs_{name}" for way in (first, "today", "clients")]
        cells = [papers.get(keys[0], "-"), *(ours.get(key, "-") for key in keys)]
        lines.append(f"| {' | '.join([what, *cells])} |")
    return "\n".join(lines)


def rows_of_runs(size: str) -> dict[str, dict[str, Headline]]:
    """By size and key our numbers for the paper's claims: the rows of `size`, of the reference, and
    of `quick`; for the reference only what the repository holds."""
    reference, quick = results_dir("reference"), results_dir("quick") / "headlines.csv"
    if size != "reference" and not reference.exists():  # results lie elsewhere
        reference = ROOT / "results" / "reference"
    if size == "reference" or not quick.exists():
        quick = reference / "quick.csv"
    files = {"quick": quick, "reference": reference / "headlines.csv"}
    files.setdefault(size, results_dir(size) / "headlines.csv")
    return {s: {h.key: h for h in read_headlines(path)} for s, path in files.items()}


def headline_table(
    claims: Sequence[Claim], runs: Mapping[str, Mapping[str, Headline]], size: str
) -> str:
    """A line per claim, then per number that the paper has none for; how many of each verdict; and
    why some of ours fall short.

    runs: by size and key. size: the one whose numbers count; where the reference has none, those of
    `quick` that came with it.
    """
    counts = ("reference", "quick") if size == "reference" else (size,)
    columns = [s for s in SIZES if s in ("quick", "reference", size)]
    rows, whys = [], []
    settings = [f"- {c}: {c.setting}" for c in claims if c.setting]
    notes = [f"- {c}: {c.note}" for c in claims if c.note]

    def add(key: str, what: str, claim: Claim | None) -> None:
        found = {s: runs[s][key] for s in columns if key in runs.get(s, ())}
        h = next((found[s] for s in counts if s in found), None)
        reported = f"{claim.value:g} {claim.unit}".strip() if claim else "-"
        reported += f" ({claim.confidence})" if claim else ""
        row = [what, reported, *(_told(found[s]) if s in found else "-" for s in columns)]
        row += [f"{h.value / claim.value:.2f}" if h and claim else "-"]
        row += [verdict(h.value if h else None, claim) if claim else "-"]
        if h:
            rows.append([*row, h.status, ", ".join(filter(None, (h.source, h.profile))), h.command])
        elif claim:
            rows.append([*row, "-", "-", f"notebooks/{claim.notebook}.ipynb"])
        if claim and claim.why and row[-1] in ("NEAR", "MISS"):
            whys.append(f"- {claim}: {claim.why}")

    for c in claims:
        add(c.key, str(c), c)
    for key in dict.fromkeys(key for s in counts for key in runs.get(s, ())):
        if key not in {c.key for c in claims}:
            add(key, f"`{key}`", None)
    head = ["what", "paper", *columns, "ratio", "verdict"]
    head += ["simulated/measured", "source", "made by"]
    given = Counter(row[head.index("verdict")] for row in rows)
    told = ", ".join(f"{given[v]} {v}" for v in ("OK", "NEAR", "MISS", "NOT RUN"))
    of = " or else ".join(f"`{s}`" for s in counts)
    parts = [_table(head, rows), f"{told}. Ratio, verdict and what follows them are those of {of}."]
    said = {
        "Why our number falls short": whys,
        "The setting of our number": settings,
        "What the paper's sources leave open": notes,
    }
    parts += [f"{title}:\n\n" + "\n".join(lines) for title, lines in said.items() if lines]
    return "\n\n".join(parts)


def _told(h: Headline, form: str = ".3g", unit: str = "") -> str:
    """The number, with its interval if it has one."""
    interval = f" [{h.low:{form}}, {h.high:{form}}]" if h.low < h.high else ""
    return f"{h.value:{form}}{unit}{interval}"


def capacity_tables(path: Path, ours: str = "slos-serve") -> str:
    """Scenario by system from a capacity.csv, ours over the best baseline, and geometric means over
    the scenarios.

    One table per origin of the lengths and status. Variants of ours (`slos-serve-...`) are no
    baselines.
    """
    import pandas as pd  # half a second that the notebooks' `upsert_headlines` need not wait for

    frame: Any = pd.read_csv(path, keep_default_na=False)
    needed = ["scenario", "lengths", "system", "setting", "profile"]
    needed += ["capacity", "low", "high", "source", "status"]
    require(set(needed) <= set(frame), f"{path}: columns", list(frame), f"with {', '.join(needed)}")
    tables = []
    for (lengths, status), rows in frame.groupby(["lengths", "status"], sort=False):
        grid = rows.pivot_table("capacity", "scenario", "system", aggfunc="last", sort=False)
        texts = {}
        for r in rows.itertuples():
            text = f"{r.capacity:.3g} [{r.low:.3g}, {r.high:.3g}] {str(r.setting).split('=')[-1]}"
            texts[r.scenario, r.system] = text.strip()
        baselines = [s for s in grid if not str(s).startswith(ours)]
        ratio = grid.get(ours, grid.max(axis=1) * float("nan")) / grid[baselines].max(axis=1)
        lines = []
        for name in grid.index:
            mine = rows[rows.scenario == name]
            origin = ", ".join(dict.fromkeys([*mine["source"], *mine["profile"]]))
            cells = [texts.get((name, s), "-") for s in grid]
            cells += [f"{ratio[name]:.2f}".replace("nan", "-")]
            if "bound" in rows:
                carried = grid.get(ours, ratio * 0)[name], grid.loc[name, baselines].max()
                cells += [" / ".join(f"{x / mine['bound'].iloc[0]:.0%}" for x in carried)]
            lines.append([name, *cells, origin])
        means = [_mean(column.dropna()) for column in (*(grid[s] for s in grid), ratio)]
        head = ["scenario", *map(str, grid), "ours / best baseline"]
        head += ["share of the bound: ours / best baseline"] * ("bound" in rows)
        lines.append([f"geometric mean of {len(grid)}", *means, *[""] * (len(head) - len(means))])
        table = _table([*head, "source"], lines)
        title = "Capacity by the paper's rule of pace, requests per second and GPU, "
        title += f"{status}, lengths from the {lengths}: "
        title += "mean [95 % interval over seeds] token budget, the best of those tried"
        tables.append(f"{title}\n\n{table}")
    return "\n\n".join(tables)


def _mean(values: Sequence[float]) -> str:
    return f"{geometric_mean(values) if min(values) > 0 else 0:.3g}" if len(values) else "-"


def fidelity_table(path: Path) -> str:
    """What the simulated vLLM says over what real servers took, from `fidelity.csv` of
    `slos.studies.fidelity`: a row per replay and quantity."""
    with path.open(newline="", encoding="utf-8") as f:
        raw = list(csv.DictReader(f))
    rows = []
    for r in raw:
        name = r["experiment"] + " (model in doubt)" * (r["in doubt"] == "True")
        how = "prefix cache" if r["prefix cache"] == "True" else "no prefix cache"
        fitted = f"x {r['scale']} {r['fitted']}" if r["fitted"] else "nothing fitted"
        numbers = (f"{float(r[c]):.3g}" for c in ("measured mean", "measured P90"))
        ratios = (f"{float(r[c]):.2f}" for c in ("mean ratio", "P90 ratio", "correlation"))
        error = f"{100 * float(r['median error']):.1f} %"
        rows.append([name, how, fitted, r["quantity"], r["requests"], *numbers, *ratios, error])
    head = ("experiment", "simulated with", "steps", "quantity", "requests", "measured mean",
            "measured P90", "mean ratio", "P90 ratio", "correlation", "median error")  # fmt: skip
    return _table(head, rows)


def executed(folder: Path) -> str:
    """How the notebooks of a run were executed, from what `slos.reproduce` left, if anything."""
    rows = []
    for path in sorted((folder / "notebooks").glob("*.json")):
        stamp = json.loads(path.read_text())
        if "commit" in stamp:  # older ones do not tell
            minutes = f"{stamp['seconds'] / 60:.1f}"
            rows.append([path.stem, stamp["commit"], minutes, stamp["machine"]])
    return _table(("notebook", "commit", "minutes", "machine"), rows) if rows else ""


def render(size: str) -> str:
    """The table, the capacities behind it, and how the run was executed."""
    folder = results_dir(size)
    parts = [headline_table(read_claims(), rows_of_runs(size), size)]
    if (folder / "capacity.csv").exists():
        parts.append(f"## Capacities, `{size}`\n\n{capacity_tables(folder / 'capacity.csv')}")
    if (folder / "fidelity.csv").exists():
        said = "Ratios are simulated over measured; see `slos/studies/fidelity.py`."
        table = fidelity_table(folder / "fidelity.csv")
        parts.append(f"## The simulator against real servers, `{size}`\n\n{said}\n\n{table}")
    if how := executed(folder):
        parts.append(f"## How `{size}` was executed\n\n{how}")
    return "\n\n".join(parts)


def main(argv: Sequence[str] | None = None) -> None:
    said = "The table: paper against reproduced."
    parser = argparse.ArgumentParser(prog="python -m slos.records", description=said)
    whose = "whose numbers count (%(default)s)"
    parser.add_argument("--size", choices=SIZES, default="reference", help=whose)
    size = parser.parse_args(argv).size
    # What the repository holds is of the reference; a run's is in its own folder.
    path = results_dir("" if size == "reference" else size) / "README.md"
    try:
        table = render(size)
    except ValueError as error:
        parser.exit(1, f"report: {error}\n")
    write_whole(path, f"{_INTRO}\n{table}\n")
    print(f"Paper against reproduced\n\n{table}\n\nwritten: {path}")
