"""The report: verdicts and their laws, whole writes, and the tables."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pandas as pd
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slos import files
from slos.files import locked
from slos.policies import OURS
from slos.records import report
from slos.records.claims import (
    Claim,
    Headline,
    read_claims,
    read_headlines,
    upsert_headlines,
    verdict,
)
from workloads import SCENARIOS

CLAIM = Claim("gain", "the gain", 2.0, "x", "section 5", "A", "02_capacity")
LOWER = replace(CLAIM, value=10, unit="ms", better="lower")
ROW = Headline(
    "gain",
    2.1,
    2.0,
    2.2,
    "simulated",
    "real traces",
    "opt-6.7b",
    "abc1234",
    './run_all.sh full, "all"',
)
positive = st.floats(1e-3, 1e6)
THREE = ("vllm", "sarathi", "distserve")
NEEDS_A_SETTING = ("02_ablation", "03_scaling", "17_waterfall")
order = ("MISS", "NEAR", "OK")


@pytest.mark.parametrize(
    ("ours", "claim", "expected"),
    [
        (None, CLAIM, "NOT RUN"),
        (5.0, CLAIM, "OK"),
        (2.0, CLAIM, "OK"),
        (1.9, CLAIM, "OK"),
        (1.89, CLAIM, "NEAR"),
        (1.5, CLAIM, "NEAR"),
        (1.49, CLAIM, "MISS"),
        (0.0, CLAIM, "MISS"),
        (0.1, LOWER, "OK"),
        (10.5, LOWER, "OK"),
        (10.6, LOWER, "NEAR"),
        (12.5, LOWER, "NEAR"),
        (12.6, LOWER, "MISS"),
    ],
)
def test_verdict(ours: float | None, claim: Claim, expected: str) -> None:
    assert verdict(ours, claim) == expected


@given(positive, positive, positive)
def test_a_better_number_never_gets_a_worse_verdict(paper: float, a: float, b: float) -> None:
    for claim, (worse, better) in ((CLAIM, sorted((a, b))), (LOWER, sorted((a, b), reverse=True))):
        claim = replace(claim, value=paper)
        assert order.index(verdict(worse, claim)) <= order.index(verdict(better, claim))


@given(positive)
def test_the_papers_own_number_is_ok_either_way(value: float) -> None:
    assert (
        verdict(value, replace(CLAIM, value=value))
        == verdict(value, replace(LOWER, value=value))
        == "OK"
    )


def test_the_papers_numbers_load_and_are_the_papers() -> None:
    claims = {c.key: c for c in read_claims()}
    ablation = [claims[f"ablation_{k}"].value for k in ("speculation", "burst", "routing")]
    assert ablation == [1.66, 1.34, 1.19]
    assert {k: c.value for k, c in claims.items() if "_vs_" in k} == {
        "authors_vs_best": 2.2,
        **{f"published_vs_{k}": v for k, v in zip(THREE, (1.76, 1.94, 2.6), strict=True)},
        **{f"strict_vs_{k}": v for k, v in zip(THREE, (1.91, 2.19, 2.4), strict=True)},
    }
    assert [claims[f"scaling_{k}"].value for k in ("chatbot", "tool_calling", "coding")] == [
        4.61, 5.44, 6.2,
    ]  # fmt: skip
    capacities = [c for c in claims.values() if c.notebook in NEEDS_A_SETTING]
    assert all(c.setting for c in capacities), "which is compared with which"
    assert {c.scenario for c in claims.values()} <= {"", *SCENARIOS}
    assert claims["planning_p99_ms"].better == "lower"


def entry(**change: object) -> str:
    raw = {f: getattr(CLAIM, f) for f in CLAIM.__slots__} | change
    return yaml.safe_dump([{k: v for k, v in raw.items() if v is not ...}])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (entry(colour="red"), r"gain: fields = \['colour'\]"),
        (entry(value=...), r"gain: fields .* also \['value'\]"),
        (entry(value=None), "gain: value = None"),
        (entry(value="2.2x"), "gain: value = '2.2x'"),
        (entry(value=-1), "gain: value = -1"),
        (entry(better="bigger"), "gain: better = 'bigger'"),
        (entry(confidence="D"), "gain: confidence = 'D'"),
        (entry(key=...), "entry 1 .*`key`"),
        (entry() + entry(), "key = 'gain' must be there once"),
    ],
)
def test_a_bad_entry_is_named(tmp_path: Path, text: str, named: str) -> None:
    (tmp_path / "paper.yaml").write_text(text)
    with pytest.raises(ValueError, match=named):
        read_claims(tmp_path / "paper.yaml")


def test_upsert_waits_for_another_one(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            other = pool.submit(upsert_headlines, tmp_path / "headlines.csv", [ROW])
            with pytest.raises(TimeoutError):
                other.result(0.2)
        other.result(60)
    assert read_headlines(tmp_path / "headlines.csv") == [ROW]


def test_upsert_replaces_its_keys_and_keeps_the_others(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "headlines.csv", replace(ROW, key="other")
    upsert_headlines(path, [ROW, other])
    upsert_headlines(path, [replace(ROW, value=2.15)])
    assert read_headlines(path) == [replace(ROW, value=2.15), other]
    before = path.read_bytes()
    upsert_headlines(path, read_headlines(path))
    assert path.read_bytes() == before


def test_a_write_cut_short_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "headlines.csv"
    upsert_headlines(path, [ROW])
    before = path.read_bytes()

    def cut(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", cut)
    with pytest.raises(OSError, match="disk full"):
        upsert_headlines(path, [replace(ROW, value=2.15)])
    assert [p.name for p in tmp_path.iterdir()] == ["headlines.csv"] and path.read_bytes() == before


@pytest.mark.parametrize("change", [{"value": float("nan")}, {"low": 2.15}, {"status": "guessed"}])
def test_a_bad_row_is_refused_by_key(change: dict) -> None:
    with pytest.raises(ValueError, match=r"gain: (value|status)"):
        replace(ROW, **change)


def test_a_bad_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "headlines.csv"
    upsert_headlines(path, [ROW])
    path.write_text(path.read_text() + "half,1.0,")
    with pytest.raises(ValueError, match=r"headlines\.csv, line 3"):
        read_headlines(path)
    path.write_text("key,value\n")
    with pytest.raises(ValueError, match="columns"):
        read_headlines(path)


def cells(text: str, first: str) -> list[str]:
    [line] = [line for line in text.splitlines() if line.startswith(f"| {first} ")]
    return [c.strip() for c in line.strip("|").split("|")]


CLAIMS = [replace(CLAIM, why="it is so"), replace(CLAIM, key="b", what="not yet")]
QUICK = replace(
    ROW,
    value=1.6,
    low=1.6,
    high=1.6,
    source="synthetic profile",
    profile="",
    command="./run_all.sh",
)
RUNS = {"quick": {"gain": QUICK, "more": QUICK}, "reference": {"gain": ROW}, "smoke": {"b": QUICK}}


def test_headline_table() -> None:
    text = report.headline_table(CLAIMS, RUNS, "reference")
    assert cells(text, "what")[2:5] == ["quick", "reference", "ratio"], (
        "full and smoke only if there is more to say"
    )
    assert cells(text, "the gain") == [
        "the gain", "2 x (A)", "1.6", "2.1 [2, 2.2]", "1.05", "OK", "simulated",
        "real traces, opt-6.7b", ROW.command,
    ]  # fmt: skip
    assert cells(text, "not yet")[2:] == [
        "-",
        "-",
        "-",
        "NOT RUN",
        "-",
        "-",
        "notebooks/02_capacity.ipynb",
    ]
    assert cells(text, "`more`") == [
        "`more`",
        "-",
        "1.6",
        *"---",
        "simulated",
        "synthetic profile",
        "./run_all.sh",
    ]
    assert "1 OK, 0 NEAR, 0 MISS, 1 NOT RUN." in text and "it is so" not in text
    runs = RUNS | {"full": {"gain": replace(ROW, value=2.05)}}
    text = report.headline_table(CLAIMS, runs, "full")
    assert cells(text, "the gain")[2:7] == ["1.6", "2.1 [2, 2.2]", "2.05 [2, 2.2]", "1.02", "OK"]


@pytest.mark.parametrize(
    ("size", "columns", "gain", "counts"),
    [
        (
            "quick", ["quick", "reference"], ["1.6", "2.1 [2, 2.2]", "0.80", "NEAR"],
            "0 OK, 1 NEAR, 0 MISS, 1 NOT RUN.",
        ),
        (
            "smoke", ["smoke", "quick", "reference"], ["-", "1.6", "2.1 [2, 2.2]", "-", "NOT RUN"],
            "0 OK, 1 NEAR, 0 MISS, 1 NOT RUN.",
        ),
    ],
)  # fmt: skip
def test_the_size_that_is_asked_for_counts(
    size: str, columns: list[str], gain: list[str], counts: str
) -> None:
    text = report.headline_table(CLAIMS, RUNS, size)
    assert (
        cells(text, "what")[2 : 2 + len(columns)] == columns
        and cells(text, "the gain")[2 : 2 + len(gain)] == gain
    )
    assert f"{counts} Ratio, verdict and what follows them are those of `{size}`." in text
    assert ("- the gain: it is so" in text) == (size == "quick"), "why is told of what counts"


CAPACITY = """scenario,lengths,system,setting,profile,capacity,low,high,seeds,source,commit,status
chatbot,dataset,vllm,,opt,1,1,1,3,real traces,c,simulated
chatbot,dataset,sarathi,chunk=512,opt,2,2,2,3,real traces,c,simulated
chatbot,dataset,slos-serve,,opt,4,3,5,3,real traces,c,simulated
chatbot,dataset,slos-serve-nospec,,opt,3,3,3,3,real traces,c,simulated
coding,dataset,vllm,,opt,4,4,4,3,synthetic profile,c,simulated
coding,dataset,slos-serve,,opt,16,16,16,3,synthetic profile,c,simulated
chatbot,trace,slos-serve,,opt,0,0,0,3,real traces,c,simulated
"""


def test_capacity_table(tmp_path: Path) -> None:
    path = tmp_path / "capacity.csv"
    path.write_text(CAPACITY)
    dataset, trace = report.capacity_tables(path).split("\n\nCapacity")
    assert cells(dataset, "chatbot") == [
        "chatbot", "1 [1, 1]", "2 [2, 2] 512", "4 [3, 5]", "3 [3, 3]", "2.00", "real traces, opt",
    ]  # fmt: skip
    assert cells(dataset, "coding")[2] == "-" and cells(dataset, "coding")[-2:] == [
        "4.00",
        "synthetic profile, opt",
    ]
    means = ["geometric mean of 2", "2", "2", "8", "3", "2.83", ""]
    assert cells(dataset, "geometric mean") == means
    assert cells(trace, "chatbot") == ["chatbot", "0 [0, 0]", "-", "real traces, opt"]
    head, *rows = CAPACITY.splitlines()
    path.write_text("\n".join([f"{head},bound", *(f"{row},8" for row in rows)]))
    dataset = report.capacity_tables(path).split("\n\nCapacity")[0]
    assert cells(dataset, "chatbot")[-3:-1] == ["2.00", "50% / 25%"]
    path.write_text("scenario,system\n")
    with pytest.raises(ValueError, match="columns"):
        report.capacity_tables(path)


def test_a_run_writes_into_its_own_folder_and_the_reference_into_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    report.main([])
    assert (
        "0 OK, 0 NEAR, 0 MISS" in (tmp_path / "README.md").read_text()
        and "NOT RUN" in capsys.readouterr().out
    )
    for name, ms in (
        ("reference/headlines.csv", 2.0),
        ("reference/quick.csv", 20.0),
        ("quick/headlines.csv", 11.0),
    ):
        upsert_headlines(
            tmp_path / name, [replace(ROW, key="planning_p99_ms", value=ms, low=ms, high=ms)]
        )
    for size in ("reference", "quick"):
        (tmp_path / size / "capacity.csv").write_text(CAPACITY)
    before = (tmp_path / "README.md").read_bytes()
    report.main(["--size", "quick"])
    told, text = capsys.readouterr().out, (tmp_path / "quick" / "README.md").read_text()
    assert cells(told, "a step with a planning in it, P99")[2:6] == ["11", "2", "1.10", "NEAR"]
    assert told.partition("\n\n")[2].rpartition("\n\n")[0] in text
    assert text.count("## ") == 1 and "## Capacities, `quick`" in text
    assert (tmp_path / "README.md").read_bytes() == before

    report.main([])
    text = (tmp_path / "README.md").read_text()
    assert cells(text, "a step with a planning in it, P99")[2:6] == ["20", "2", "0.20", "OK"], (
        "what was run here does not count"
    )
    assert text.count("## ") == 1 and "## Capacities, `reference`" in text


def test_results_that_lie_elsewhere_stand_next_to_the_reference_of_the_repository(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    kept = files.ROOT / "results" / "reference" / "headlines.csv"
    assert [*report.rows_of_runs("quick")["reference"].values()] == read_headlines(kept)
    assert not report.rows_of_runs("reference")["reference"], "as it is written anew"


def test_the_system_set_against_the_others_is_ours() -> None:
    assert signature(report.capacity_tables).parameters["ours"].default == OURS


def test_the_table_of_the_repository_is_made_from_the_rows_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(files.ROOT / "results" / "reference", tmp_path / "reference")
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    report.main([])
    made, held = tmp_path / "README.md", files.ROOT / "results" / "README.md"
    assert held.read_text() == made.read_text(), "write it again: python -m slos.records"
    for name, word in (("headlines", "./run_all.sh full ("), ("quick", "./run_all.sh (")):
        rows = read_headlines(tmp_path / "reference" / f"{name}.csv")
        assert rows and all(row.command.startswith(word) for row in rows), (
            f"{name}.csv has rows of another size"
        )


def test_a_search_has_one_capacity_in_all_tables_of_the_repository() -> None:
    """So the waterfall ends at the capacities of the ablation, and the others agree, too."""
    tables = {}
    for path in (files.ROOT / "results" / "reference").glob("*.csv"):
        table = pd.read_csv(path, keep_default_na=False)
        if {"run", "capacity", "rate"} <= set(table):
            rows = table[table["capacity"].astype(str) == "True"]
            tables[path.stem] = rows.set_index("run")["rate"]
    found = pd.concat(tables, names=["table"]).groupby("run").agg(["nunique", "count"])
    assert set(found["nunique"]) == {1}, found[found["nunique"] > 1]
    whole = [run for run in tables["ablation"].index if "slos-serve" in run]
    assert set(tables["waterfall"].index) & set(whole)


def test_a_bad_row_stops_the_report_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "headlines.csv").write_text("nonsense\n")
    with pytest.raises(SystemExit) as stopped:
        report.main(["--size", "quick"])
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith("report: ")


def test_the_readmes_block_has_a_row_per_baseline() -> None:
    def row(key: str, value: float) -> Headline:
        return replace(ROW, key=key, value=value, low=value - 0.1, high=value)

    rows = [row("published_vs_vllm", 1.7), row("today_vs_vllm", 1.3), row("authors_vs_best", 2.1)]
    head, _, vllm, sarathi, _, best = report.against_table(read_claims(), rows).splitlines()
    assert head.count("|") == vllm.count("|") == 6
    assert vllm == "| vLLM | 1.76x | 1.70x [1.60, 1.70] | 1.30x [1.20, 1.30] | - |"
    assert sarathi == "| Sarathi-Serve | 1.94x | - | - | - |"
    assert best.endswith("| 2.2x | 2.10x [2.00, 2.10] | - | - |")
