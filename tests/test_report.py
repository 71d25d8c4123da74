"""The report: verdicts and their laws, whole writes, and the tables."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from slos import report
from slos.report import Claim, Headline, read_claims, read_headlines, upsert_headlines, verdict

CLAIM = Claim("gain", "the gain", 2.0, "x", "section 5", "A", "02_capacity")
LOWER = replace(CLAIM, value=10, unit="ms", better="lower")
ROW = Headline("gain", 2.1, 2.0, 2.2, "simulated", "real traces", "opt-6.7b", "abc1234", './run_all.sh full, "all"')
positive = st.floats(1e-3, 1e6)
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
    assert verdict(value, replace(CLAIM, value=value)) == verdict(value, replace(LOWER, value=value)) == "OK"


def test_the_papers_numbers_load_and_are_the_papers() -> None:
    claims = {c.key: c for c in read_claims()}
    ablation = [claims[f"ablation_{k}"].value for k in ("speculation", "burst", "routing")]
    assert ablation == [1.66, 1.34, 1.19]
    assert {c.value for c in claims.values() if c.key.startswith("capacity_vs_")} == {2.2}
    assert claims["planning_ms"].better == "lower"


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


def test_upsert_replaces_its_keys_and_keeps_the_others(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "headlines.csv", replace(ROW, key="other")
    upsert_headlines(path, [ROW, other])
    upsert_headlines(path, [replace(ROW, value=2.15)])
    assert read_headlines(path) == [replace(ROW, value=2.15), other]
    before = path.read_bytes()
    upsert_headlines(path, read_headlines(path))
    assert path.read_bytes() == before


def test_a_write_cut_short_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_headline_table() -> None:
    text = report.headline_table([CLAIM, replace(CLAIM, key="b", what="not yet")], [ROW, replace(ROW, key="more")])
    assert cells(text, "the gain") == [
        "the gain", "2 x (A)", "2.1 [2, 2.2]", "1.05", "OK", "simulated", "real traces, opt-6.7b", ROW.command,
    ]  # fmt: skip
    assert cells(text, "not yet")[2:5] == ["-", "-", "NOT RUN"]
    assert "1 OK, 0 NEAR, 0 MISS, 1 NOT RUN." in text
    assert "Not among the paper's numbers: more = 2.1 (simulated)." in text


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
    assert cells(dataset, "coding")[2] == "-" and cells(dataset, "coding")[-2:] == ["4.00", "synthetic profile, opt"]
    assert cells(dataset, "geometric mean") == ["geometric mean", "2", "2", "8", "3", "2.83", ""]
    assert cells(trace, "chatbot") == ["chatbot", "0 [0, 0]", "-", "real traces, opt"]
    path.write_text("scenario,system\n")
    with pytest.raises(ValueError, match="columns"):
        report.capacity_tables(path)


def test_readme_has_the_sizes_that_were_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    report.main([])
    assert "## quick" in (tmp_path / "README.md").read_text() and "NOT RUN" in capsys.readouterr().out
    upsert_headlines(tmp_path / "reference" / "headlines.csv", [replace(ROW, key="planning_ms", value=2.05)])
    report.main(["--size", "reference"])
    text = (tmp_path / "README.md").read_text()
    assert "## reference" in text and "## quick" not in text and cells(text, "one planning, the longest")[4] == "OK"
    assert "reference" in capsys.readouterr().out


def test_a_bad_row_stops_the_report_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "headlines.csv").write_text("nonsense\n")
    with pytest.raises(SystemExit) as stopped:
        report.main([])
    assert stopped.value.code == 1 and capsys.readouterr().err.startswith("report: ")
