"""Where searches begin: what is known of them, and of others like them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from slos.evaluation import near
from slos.evaluation.capacity_search import Search, search
from slos.evaluation.grids import searches
from slos.evaluation.near import begun, known, rate
from slos.policies import OURS, POLICIES

CASE = Search("coding", "sarathi", "chunk=512", seed=2, replicas=4, router="sequential")
ALIKE = [
    (replace(CASE, num_requests=90, precision=0.1), 5.0),
    (replace(CASE, num_requests=90, precision=0.1, seed=0), 7.2),
    (replace(CASE, num_requests=4000), 1.0),
]


@pytest.fixture
def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(near, "REFERENCE", tmp_path)
    known.cache_clear()
    yield tmp_path
    known.cache_clear()


def write(path: Path, rows: list[tuple[Search, float]], **more: object) -> None:
    table = pd.DataFrame([(str(case), found) for case, found in rows], columns=["run", "rate"])
    table.assign(**more).to_csv(path, index=False)


def test_a_search_begins_at_its_own_capacity_or_at_that_of_the_most_alike(reference: Path) -> None:
    write(reference / "a.csv", [*ALIKE, (replace(CASE, seed=1), 0.0)], capacity=True)
    assert rate(ALIKE[0][0]) == pytest.approx(5.0), "its own"
    assert rate(replace(CASE, num_requests=100)) == pytest.approx(6.0), "the mean of its seeds"
    assert rate(replace(CASE, num_requests=9000)) == pytest.approx(1.0), (
        "of those with as many requests"
    )
    assert rate(replace(CASE, num_requests=100, replicas=2)) == pytest.approx(6.0), "per GPU"
    for other in ({"target": 0.95}, {"router": "cheapest"}, {"max_drafts": 3}, {"rule": "client"}):
        assert rate(replace(CASE, **other)) == 0.0
    [found, text] = begun([ALIKE[0][0], "no search"])
    assert (
        isinstance(found, Search) and found.near == pytest.approx(4 * 5.0) and text == "no search"
    )
    assert found == ALIKE[0][0] and str(found) == str(ALIKE[0][0]), "it is the same search"


def test_only_what_was_found_by_simulation_counts(reference: Path) -> None:
    write(reference / "tried.csv", ALIKE, capacity=False)
    write(reference / "bounds.csv", ALIKE, status="computed")
    choice = " or ".join(str(case) for case, _ in ALIKE[:2])
    (reference / "choices.csv").write_text(f'run,rate,capacity\n"{choice}",3,True\n')
    (reference / "loads.csv").write_text("run,rate\nsomething else,3\n")
    (reference / "table.csv").write_text("scenario,capacity\ncoding,3\n")
    assert known() == ({}, {}, {})


def test_runs_leave_what_the_reference_does_not_hold(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path / "results"))
    for size, rows in (("quick", ALIKE[:2]), ("full", ALIKE[1:])):
        (tmp_path / "results" / size).mkdir(parents=True)
        write(tmp_path / "results" / size / "probes.csv", rows, capacity=True)
    write(reference / "probes.csv", ALIKE[2:])
    for _ in range(2):
        near.main(["quick", "full"])
    kept = pd.read_csv(reference / "near.csv")
    assert {*kept["run"]} == {str(case) for case, _ in ALIKE[:2]}
    assert rate(ALIKE[1][0]) == pytest.approx(7.2)


def test_the_reference_knows_the_searches_of_a_full_run() -> None:
    known.cache_clear()
    assert all(str(case) in known()[0] for case in searches("full", systems=["sarathi", OURS]))
    assert all(rate(case) for case in searches("quick", systems=["sarathi", OURS]))


@pytest.mark.usefixtures("no_data")
def test_grids_begin_there(reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from slos.evaluation import grids

    case = Search("coding", "sarathi", num_requests=60, precision=0.2)
    [best] = [row for row in search(case) if row.capacity]
    write(reference / "a.csv", [(case, best.rate)])
    rows = grids.run_searches("smoke", [case], workers=1)
    assert len(rows) == 2 and rows.loc[rows["capacity"], "rate"].tolist() == [best.rate]


def test_a_policy_that_only_this_process_knows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from slos.evaluation import grids

    monkeypatch.setitem(POLICIES, "mine", POLICIES["vllm"])
    with pytest.raises(ValueError, match="system = 'mine' must be a policy with a line in slos/"):
        grids.run_searches("smoke", [Search("coding", "mine")])


def test_what_is_known_is_not_forgotten_without_a_size(
    reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path / "results"))
    write(reference / "near.csv", ALIKE)
    with pytest.raises(ValueError, match=r"sizes = \[\] must be at least one; name them: quick"):
        near.main()
    with pytest.raises(ValueError, match="size = 'full' must be one that has run"):
        near.main(["full"])
    assert len(pd.read_csv(reference / "near.csv")) == len(ALIKE)
