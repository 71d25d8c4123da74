"""`slos.studies.capacity`: the grid, a search, and what is made of its rows, with numbers worked
out by hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import astuple, fields, replace
from functools import wraps
from math import exp, isnan, log, sqrt
from operator import attrgetter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from slos import files
from slos.evaluation import grids, stats
from slos.evaluation.capacity_search import Probe, Search, outcomes_at, search
from slos.evaluation.grids import SETTINGS, searches
from slos.evaluation.runs import hardware_of, parse_setting, serve
from slos.evaluation.sizes import SIZES, Size, size_of
from slos.evaluation.stats import FINEST, capacities, geometric_means
from slos.files import ROOT
from slos.hardware.profiles import profiles
from slos.policies import OURS, POLICIES, ordinary
from slos.policies.routers import ROUTERS
from slos.records import claims, report
from slos.studies import capacity
from slos.studies.capacity import ratios
from slos.studies.timeline import (
    Timeline,
    fate,
    summary,
    timeline,
    with_burst,
)
from workloads import SCENARIOS, build

pytestmark = pytest.mark.usefixtures("no_data")
SMALL = Search("chatbot", "vllm-v1", num_requests=60, precision=0.2)


# Names


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda: size_of("huge"), SIZES),
        (lambda: hardware_of("gaming"), SCENARIOS),
        (lambda: hardware_of("chatbot", "tpu"), profiles()),
        (lambda: hardware_of("chatbot", "missing.json"), profiles()),
        (lambda: searches("huge"), SIZES),
        (lambda: searches("smoke", scenarios=["chatbot", "gaming"]), SCENARIOS),
        (lambda: searches("smoke", systems=["orca"]), POLICIES),
        (lambda: searches("smoke", profile="tpu"), profiles()),
        (lambda: searches("smoke", rule="mine"), ["paper", "client"]),
        (lambda: search(replace(SMALL, scenario="gaming")), SCENARIOS),
        (lambda: search(replace(SMALL, system="orca")), POLICIES),
        (
            lambda: search(replace(SMALL, setting="chunk=512")),
            ["'vllm-v1' = 'chunk'", "max_batched_tokens"],
        ),
        (lambda: search(replace(SMALL, router="dice")), ROUTERS),
        (lambda: search(replace(SMALL, topology="2-1")), ["topology = '2-1'", "'2:1'"]),
        (lambda: search(replace(SMALL, replicas=0)), ["replicas = 0", "at least 1"]),
        (lambda: search(replace(SMALL, lengths="poem")), ["dataset", "trace"]),
        (lambda: search(replace(SMALL, target=1.5)), ["target = 1.5", "(0, 1]"]),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    call: Callable[[], object], known: list[str]
) -> None:
    with pytest.raises(ValueError) as refused:
        call()
    assert all(name in str(refused.value) for name in known), refused.value


def test_settings() -> None:
    assert parse_setting("") == {}
    assert parse_setting("chunk=512, watermark=0.02") == {"chunk": 512, "watermark": 0.02}
    assert type(parse_setting("chunk=512")["chunk"]) is int
    for bad in ("chunk", "chunk=many", "chunk=1=2", "chunk=0.5.1"):
        with pytest.raises(ValueError, match="name=number"):
            parse_setting(bad)


def test_what_is_tried_of_each_system_is_legal() -> None:
    assert SETTINGS.keys() <= POLICIES.keys()
    requests = build("chatbot", 1.0, 2).requests
    for system, settings in SETTINGS.items():
        for setting in settings:
            assert len(serve(requests, system, hardware_of("chatbot"), setting)) == 2


# The grid


def test_the_grid_has_every_case_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "smoke", Size(30, 2, 0.5, ("dataset", "trace")))
    cases = searches("smoke")
    tried = sum(len(SETTINGS.get(system, ("",))) for system in ordinary())
    traced = [s for s in SCENARIOS.values() if s.has_trace]
    assert 0 < len(traced) < len(SCENARIOS)
    assert len(cases) == 2 * tried * (len(SCENARIOS) + len(traced))
    assert (
        len({str(case) for case in cases}) == len({astuple(case) for case in cases}) == len(cases)
    )
    assert {(c.num_requests, c.precision, c.target) for c in cases} == {(30, 0.5, 0.9)}
    assert {c.seed for c in cases} == {0, 1}
    assert {c.scenario for c in cases if c.lengths == "trace"} == {s.name for s in traced}
    few = searches("smoke", ["coding"], ["sarathi"], target=0.95)
    assert {c.setting for c in few} == set(SETTINGS["sarathi"]) and {c.target for c in few} == {
        0.95
    }


def test_the_key_of_a_case_is_everything_that_its_rows_depend_on() -> None:
    changes = {
        "scenario": "coding", "system": "sarathi", "setting": "max_batched_tokens=512",
        "profile": "opt-13b-a100x2", "lengths": "trace", "seed": 1, "num_requests": 61,
        "target": 0.95, "precision": 0.1, "replicas": 2, "router": "sequential", "topology": "2:1",
        "max_drafts": 4, "acceptance": 0.5, "slo_scale": 0.7, "kv_scale": 0.5,
        "belief": "scale=0.9", "rule": "client", "prefix_cache": True, "asynchronous": True,
        "predictor": "mean", "max_context": 600, "start": 2.0,
    }  # fmt: skip
    base = replace(SMALL, max_drafts=3)
    assert changes.keys() == {f.name for f in fields(SMALL) if f.compare}
    assert str(replace(SMALL, near=2.0)) == str(SMALL), "it finds the same from everywhere"
    keys = {str(base)} | {str(replace(base, **{name: value})) for name, value in changes.items()}
    assert len(keys) == 1 + len(changes)
    assert str(replace(SMALL, profile=SCENARIOS["chatbot"].profile)) == str(SMALL), (
        "the same hardware, the same run"
    )


def test_where_steps_are_decided_ahead_first_tokens_come_later() -> None:
    ahead = (outcomes_at(replace(SMALL, asynchronous=a), 2.0)[0] for a in (False, True))
    at_once, later = (sum(o.ttft for o in outcomes) for outcomes in ahead)
    assert at_once < later < 2 * at_once


def test_every_size_is_known_everywhere() -> None:
    from slos import reproduce

    assert set(SIZES) == set(reproduce.SIZES) <= set(report.SIZES)
    assert SIZES["smoke"].num_requests < SIZES["quick"].num_requests < SIZES["full"].num_requests


# A search


@pytest.mark.parametrize("system", POLICIES)
def test_a_search_marks_the_largest_load_below_which_everything_attains(system: str) -> None:
    rows = search(replace(SMALL, system=system))
    assert search(replace(SMALL, system=system)) == rows, "not the same for the same seed"
    [best] = [r for r in rows if r.capacity]
    assert best.attainment >= SMALL.target
    for r in rows:
        assert (r.attainment >= SMALL.target) == (r.rate <= best.rate)
    above = min(r.rate for r in rows if r.rate > best.rate)
    assert best.rate < above <= best.rate * (1 + SMALL.precision)
    for r in rows:
        assert (r.scenario, r.system, r.profile, r.seed) == ("chatbot", system, "opt-6.7b-a100", 0)
        assert (r.source, r.status) == ("synthetic profile", "simulated")
        assert 0 <= r.attainment <= 1 and 0 <= r.declined <= 1 - r.attainment + 1e-9
        assert r.ttft_p99 > 0 and r.tpot_p99 > 0 and isnan(r.declined_ttft_p50) == (r.declined == 0)
        if not r.declined:
            assert (r.accepted_ttft_p99, r.accepted_tpot_p99) == (r.ttft_p99, r.tpot_p99)
    if system not in (OURS, "scorpio"):
        assert {r.declined for r in rows} == {0.0}, "the others know no admission control"


def test_latencies_of_the_declined_stand_apart() -> None:
    row = max(search(replace(SMALL, system=OURS)), key=lambda r: r.declined)
    done = serve(
        build("chatbot", row.rate, SMALL.num_requests).requests, OURS, hardware_of("chatbot")
    )
    seen: Any = pd.DataFrame(
        [(o.declined, o.ttft, o.tpot) for o in done], columns=["declined", "ttft", "tpot"]
    )
    kept, others = seen[~seen["declined"]], seen[seen["declined"]]
    assert row.declined == len(others) / len(seen) > 0
    expected = [
        seen["ttft"].quantile(0.99),
        seen["tpot"].quantile(0.99),
        kept["ttft"].quantile(0.99),
    ]
    expected += [kept["tpot"].quantile(0.99), others["ttft"].median()]
    found = [
        row.ttft_p99,
        row.tpot_p99,
        row.accepted_ttft_p99,
        row.accepted_tpot_p99,
        row.declined_ttft_p50,
    ]
    assert found == pytest.approx(expected) and row.accepted_ttft_p99 < row.ttft_p99


def test_a_search_counts_per_gpu() -> None:
    rows = search(replace(SMALL, profile="opt-30b-a100x4"))
    assert rows[0].rate == 3.0 and rows[0].profile == "opt-30b-a100x4", (
        "starts at 3 requests per second and GPU"
    )
    workload = build("chatbot", 4 * 3.0, SMALL.num_requests, SMALL.seed)
    outcomes = serve(workload.requests, SMALL.system, hardware_of("chatbot", "opt-30b-a100x4"))
    assert rows[0].attainment == sum(o.attained for o in outcomes) / len(outcomes)
    assert sum(r.capacity for r in rows) == 1


def profile_file(path: Path, **changes: Any) -> str:
    """A profile of one's own, like opt-6.7b-a100 but for `changes`, under the name `mine`."""
    shipped = json.loads((ROOT / "slos" / "hardware" / "profiles.json").read_text())
    raw = shipped["opt-6.7b-a100"]
    path.write_text(json.dumps({"mine": raw | changes}))
    return str(path)


def test_a_search_on_three_gpus_has_a_capacity(tmp_path: Path) -> None:
    own = profile_file(tmp_path / "mine.json", gpus=3)
    for precision in (0.2, 0.05):
        assert (
            sum(r.capacity for r in search(replace(SMALL, profile=own, precision=precision))) == 1
        )


def test_a_changed_profile_file_is_run_again(tmp_path: Path) -> None:
    found = []
    for seconds in (0.0248, 0.09):
        own = profile_file(tmp_path / "mine.json", planes=[[6.878e-5, 0.0, seconds]])
        probes = grids.run_searches("smoke", [replace(SMALL, profile=own)], workers=1)
        found.append(float(probes.loc[probes["capacity"], "rate"].iloc[0]))
    assert found[0] > found[1]


def test_a_tighter_target_carries_no_more() -> None:
    found = {
        t: next(r.rate for r in search(replace(SMALL, target=t)) if r.capacity)
        for t in (0.5, 0.9, 1.0)
    }
    assert (
        found[1.0] <= found[0.9] * 1.2
        and found[0.9] <= found[0.5] * 1.2
        and found[1.0] < found[0.5]
    )


def test_run_searches_keeps_its_rows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = [SMALL, replace(SMALL, seed=1)]
    probes = grids.run_searches("smoke", cases, workers=1)
    assert (tmp_path / "results" / "smoke" / "probes.csv").exists()

    @wraps(search)  # so that rows are of the same code
    def refuse(case: Search) -> list[Probe]:
        raise AssertionError(f"{case} was run again")

    monkeypatch.setattr(grids, "search", refuse)
    pd.testing.assert_frame_equal(grids.run_searches("smoke", cases, workers=1), probes)
    assert list(grids.run_searches("smoke", cases[1:], workers=1)["seed"].unique()) == [1]
    with pytest.raises(AssertionError, match="61 requests"):
        grids.run_searches("smoke", [replace(SMALL, num_requests=61)], workers=1)


def test_the_source_is_named_and_a_named_folder_must_hold_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in SCENARIOS:
        assert build(name, 1.0, 3).source == "synthetic profile"
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SLOS_DATA", str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="SLOS_DATA"):
        search(SMALL)


# What is made of the rows. Two scenarios, two seeds:
#
#                     chatbot            coding
#   vllm              1, 1               4, 4
#   sarathi chunk=256 1, 2               2, 1   the better in coding
#   sarathi chunk=512 2, 3   the better  1, 1
#   slos-serve        5, 6               8, 2

CARRIED = [
    ("chatbot", "vllm", "", (1, 1)),
    ("chatbot", "sarathi", "chunk=256", (1, 2)),
    ("chatbot", "sarathi", "chunk=512", (2, 3)),
    ("chatbot", OURS, "", (5, 6)),
    ("coding", "vllm", "", (4, 4)),
    ("coding", "sarathi", "chunk=256", (2, 1)),
    ("coding", "sarathi", "chunk=512", (1, 1)),
    ("coding", OURS, "", (8, 2)),
]
STUDENT = 12.7062  # t for two values


def between(a: float, b: float) -> object:
    """Geometric mean and interval of two values: t times half the distance of their logarithms, or
    the finest precision."""
    mean, factor = sqrt(a * b), max(exp(STUDENT * abs(log(a / b)) / 2), 1 + FINEST)
    return pytest.approx((mean, mean / factor, mean * factor), rel=1e-3)


def probes_of(
    carried: Sequence[tuple[str, str, str, tuple[float, ...]]], lengths: str = "dataset"
) -> pd.DataFrame:
    """Per capacity also a load below it and one above, which count for nothing."""
    made = "opt-6.7b-a100", "synthetic profile", "simulated"
    rows = [
        (scenario, lengths, system, setting, *made, seed, rate * factor, factor == 1)
        for scenario, system, setting, rates in carried
        for seed, rate in enumerate(rates)
        for factor in (0.5, 1, 1.5)
    ]
    columns = [
        "scenario",
        "lengths",
        "system",
        "setting",
        "profile",
        "source",
        "status",
        "seed",
        "rate",
        "capacity",
    ]
    return pd.DataFrame(rows, columns=columns)


@pytest.fixture
def best() -> pd.DataFrame:
    return capacities(probes_of(CARRIED))


def records(frame: pd.DataFrame, *key: str) -> dict[Any, Any]:
    """Its rows by the columns `key`, each of which must be there once."""
    rows: list[Any] = list(frame.itertuples())
    found = dict(zip(map(attrgetter(*key), rows), rows, strict=True))
    assert len(found) == len(rows)
    return found


def test_capacities_are_of_the_best_setting(best: pd.DataFrame) -> None:
    rows = records(best, "scenario", "system")
    assert len(rows) == 6
    assert [(k, rows[k].setting) for k in rows if k[1] == "sarathi"] == [
        (("chatbot", "sarathi"), "chunk=512"),
        (("coding", "sarathi"), "chunk=256"),
    ]
    r = rows["chatbot", "sarathi"]
    assert (r.capacity, r.low, r.high) == between(2, 3)
    assert list(r.rate) == [2, 3] and r.seeds == 2
    r = rows["coding", "vllm"]
    assert (r.capacity, r.low, r.high) == between(4, 4)
    assert [rows[s, OURS].capacity for s in ("chatbot", "coding")] == pytest.approx([sqrt(30), 4])


def test_ratios(best: pd.DataFrame) -> None:
    rows = records(ratios(best), "scenario", "against")
    assert rows.keys() == {
        (s, a) for s in ("chatbot", "coding") for a in ("vllm", "sarathi", "best")
    }
    assert list(rows["chatbot", "sarathi"].each) == [5 / 2, 6 / 3]
    r = rows["chatbot", "sarathi"]
    assert (r.ratio, r.low, r.high) == between(2.5, 2)
    assert list(rows["coding", "vllm"].each) == [2, 0.5] and rows[
        "coding", "vllm"
    ].ratio == pytest.approx(1)
    assert [rows[s, "best"].system for s in ("chatbot", "coding")] == ["sarathi", "vllm"]
    assert list(rows["coding", "best"].each) == [2, 0.5]


def test_geometric_means_are_per_seed(best: pd.DataFrame) -> None:
    rows = records(geometric_means(ratios(best)), "against")
    assert rows["sarathi"].ratio == pytest.approx(sqrt(sqrt(2.5 * 4) * sqrt(2 * 2)))
    assert rows["vllm"].ratio == pytest.approx(sqrt(sqrt(5 * 2) * sqrt(6 * 0.5)))
    r = rows["best"]
    assert (r.ratio, r.low, r.high) == between(sqrt(2.5 * 2), sqrt(2 * 0.5))
    assert {r.scenarios for r in rows.values()} == {2}


def test_one_seed_has_no_interval() -> None:
    best = capacities(
        probes_of([(s, system, setting, rates[:1]) for s, system, setting, rates in CARRIED])
    )
    assert list(best["low"]) == list(best["capacity"]) == list(best["high"])
    r = records(geometric_means(ratios(best)), "against")["best"]
    assert r.ratio == r.low == r.high == pytest.approx(sqrt(2.5 * 2))


def test_variants_of_ours_are_no_baselines_and_without_ours_there_is_no_ratio() -> None:
    more = [*CARRIED, ("chatbot", f"{OURS}-no-decline", "", (5.2, 5.8))]
    assert set(ratios(capacities(probes_of(more)))["against"]) == {"vllm", "sarathi", "best"}
    without = capacities(probes_of([c for c in CARRIED if c[1] != OURS]))
    assert ratios(without).empty and geometric_means(ratios(without)).empty


def test_lengths_from_the_trace_replace_those_of_the_scenarios_that_have_them() -> None:
    traced = probes_of(
        [("chatbot", "sarathi", "chunk=512", (3, 3)), ("chatbot", OURS, "", (9, 9))], "trace"
    )
    best = capacities(pd.concat([probes_of(CARRIED), traced]))
    rows = {k: r.ratio for k, r in records(ratios(best, "trace"), "scenario", "against").items()}
    assert rows["chatbot", "sarathi"] == rows["chatbot", "best"] == pytest.approx(3)
    assert rows["coding", "vllm"] == pytest.approx(1) and ("chatbot", "vllm") not in rows
    alone = ratios(capacities(probes_of(CARRIED)))
    pd.testing.assert_frame_equal(ratios(best, "dataset"), alone)


def test_a_grid_of_ratios_by_scenario(best: pd.DataFrame) -> None:
    grid = stats.by_scenario(ratios(best))
    assert grid.loc["best", ["chatbot", "coding"]].tolist() == pytest.approx([sqrt(5), 1])
    assert grid["geometric mean"].round(2).to_dict() == {"vllm": 2.34, "sarathi": 2.51, "best": 1.5}


def test_a_panel_of_a_file_has_the_files_name(best: pd.DataFrame) -> None:
    named = best.replace({"scenario": {"chatbot": "/far/away/mine.csv"}})
    figure = capacity.capacity_bars(named, "made up")
    assert {axis.get_title() for axis in figure.axes} == {"mine.csv", "coding"}


def test_what_is_saved_is_what_the_report_reads(
    best: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = capacity.save_capacities("quick", best)
    saved = pd.read_csv(path, keep_default_na=False)
    assert list(saved["capacity"]) == list(best["capacity"]) and "rate" not in saved
    numbers = capacity.numbers(best)
    assert stats.save("quick", best, "01_capacity", numbers).empty, (
        "two of six scenarios are no headline"
    )
    monkeypatch.setattr(
        stats, "SCENARIOS", {name: SCENARIOS[name] for name in ("chatbot", "coding")}
    )
    stats.save("quick", best, "01_capacity", numbers)
    headlines = {
        h.key: h for h in claims.read_headlines(tmp_path / "results" / "quick" / "headlines.csv")
    }
    means = {"capacity_vs_vllm", "capacity_vs_sarathi", "capacity_vs_best"}
    assert headlines.keys() >= means and {h.status for h in headlines.values()} == {"simulated"}
    assert headlines["capacity_vs_best"].value == pytest.approx(sqrt(sqrt(5)))
    assert headlines["capacity_coding"].value == pytest.approx(1), "against the best baseline"
    assert headlines["capacity_coding"].profile == "opt-6.7b-a100", "of one scenario"
    assert headlines["capacity_coding"].command == "./run_all.sh (01_capacity)"
    assert "| coding " in report.render("quick")


def test_a_part_is_no_headline() -> None:
    cases = grids.searches("smoke")
    whole = pd.DataFrame({"scenario": list(SCENARIOS)})
    assert capacity.is_complete(whole, cases)
    assert not capacity.is_complete(whole[1:], cases)
    for change in ({"target": 0.95}, {"rule": "client"}, {"profile": "opt-13b-h100"}):
        assert not capacity.is_complete(whole, [replace(case, **change) for case in cases])
    fewer = grids.searches("smoke", systems=("vllm", OURS))
    assert not capacity.is_complete(whole, fewer), "the best other one may be another"


def test_what_is_asked_otherwise_is_a_part_of_the_grid() -> None:
    cases = grids.searches("full", systems=["sarathi", OURS])
    others = capacity.asked_otherwise("full", cases, ["paper", "client"], [0.9, 0.98])
    asked = {(c.rule, c.target) for c in others}
    assert asked == {("paper", 0.98), ("client", 0.9), ("client", 0.98)}
    assert len({str(c) for c in others}) == len(others) == 3 * 4 * 3 * len(SCENARIOS)
    assert {c.lengths for c in others} == {"dataset"} and {c.seed for c in others} == {0, 1, 2}
    assert capacity.asked_otherwise("full", cases, ["paper"], [0.9]) == []
    with pytest.raises(ValueError, match="rule = 'mine' must be one of paper, client"):
        capacity.asked_otherwise("full", cases, ["mine"], [0.9])


def test_ours_over_the_best_by_what_is_asked(best: pd.DataFrame) -> None:
    """At 98 % sarathi has a capacity at one seed alone and does not count."""
    asked = [c for c in CARRIED if c[1] != "sarathi"]
    strict = probes_of([*asked, ("chatbot", "sarathi", "chunk=512", (2,))]).assign(target=0.98)
    strict = stats.of_every_seed(strict, "scenario", "system", "setting")
    more = capacities(strict.assign(rule="client"), *capacity.ASKED)
    first = best.assign(rule="paper", target=0.9)
    table = capacity.by_what_is_asked(capacity.alike(pd.concat([first, more])))
    rows = records(table, *capacity.ASKED, "scenario")
    assert list(rows["paper", 0.9, "chatbot"].each) == [5 / 2, 6 / 3]
    assert list(rows["client", 0.98, "chatbot"].each) == [5, 6]
    told = stats.told(table, *capacity.ASKED)
    assert list(told.columns) == ["chatbot", "coding", "geometric mean"]
    assert told.loc[("client", 0.98), "chatbot"].startswith("5.48 [")
    assert capacity.asked_numbers(table) == {}, "two of six scenarios are no headline"
    few = capacity.alike(pd.concat([first, more[more["scenario"] == "coding"]]))
    assert set(few["scenario"]) == {"coding"} and set(few["target"]) == {0.9, 0.98}


def test_headlines_by_what_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "SCENARIOS", {"coding": None})
    rows = [("paper", 0.9, 2.0), ("paper", 0.98, 3.0), ("client", 0.9, 4.0)]
    table = pd.DataFrame(
        [(rule, target, "coding", [x, x]) for rule, target, x in rows],
        columns=["rule", "target", "scenario", "each"],
    )
    found = {key: value[0] for key, value in capacity.asked_numbers(table).items()}
    assert found == {
        "capacity_vs_best_paper_98": pytest.approx(3),
        "capacity_vs_best_client_90": pytest.approx(4),
    }


def test_results_go_to_the_repository_wherever_one_works(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLOS_RESULTS")
    monkeypatch.chdir(tmp_path)
    assert files.results_dir("quick").resolve() == root / "results" / "quick"


# The burst


def test_a_burst_is_added_in_order_of_arrival() -> None:
    base, extra = build("chatbot", 2.0, 20, seed=1), build("chatbot", 10.0, 8, seed=2)
    requests = with_burst(base.requests, 4.0, extra.requests)
    assert [r.arrival for r in requests] == sorted(r.arrival for r in requests)
    late = [r for r in requests if r.id.startswith("burst-")]
    assert [r for r in requests if r not in late] == list(base.requests)
    assert [(r.arrival, r.stages) for r in late] == [
        (e.arrival + 4.0, e.stages) for e in extra.requests
    ]
    assert len({r.id for r in requests}) == len(requests) == 28
    assert with_burst(base.requests, 4.0, ()) == list(base.requests)


@pytest.mark.parametrize("scenario", ["chatbot", "tool-calling", "reasoning"])
@pytest.mark.parametrize("system", ["vllm", "vllm-v1", "sarathi", OURS])
def test_a_timeline_accounts_for_every_token(scenario: str, system: str) -> None:
    """What has to be computed: of every stage all tokens that are not in the cache, except the last
    one made."""
    requests = build(scenario, 0.2, 6, seed=3).requests
    run = timeline(requests, system, hardware_of(scenario))
    assert run.system == system and all(o.preemptions == 0 for o in run.outcomes)
    due = 0
    for r in requests:
        context = cached = 0
        for stage in r.stages:
            if stage.wait:
                cached = 0
            context += stage.prompt + stage.output
            due += context - 1 - cached
            cached = context - 1
    assert sum((s.prefill + s.decode + s.best_effort) * s.count for s in run.steps) == due
    ends = [0.0, *(s.end for s in run.steps)]
    assert all(before <= s.start < s.end for before, s in zip(ends, run.steps, strict=False)), (
        "one step at a time"
    )
    assert run.steps[-1].end == max(o.finish for o in run.outcomes)


def test_a_preempted_request_is_computed_again() -> None:
    hardware = replace(hardware_of("chatbot"), kv_tokens=4096)
    requests = build("chatbot", 20.0, 40, seed=3).requests
    run = timeline(requests, "vllm-v1", hardware)
    assert sum(o.preemptions for o in run.outcomes) > 0
    done = sum((s.prefill + s.decode + s.best_effort) * s.count for s in run.steps)
    assert done > sum(r.context - 1 for r in requests)


@pytest.fixture(scope="module")
def burst() -> list[Timeline]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLOS_DATA", raising=False)
        patch.setenv("SLOS_CACHE", "/nowhere")
        requests = with_burst(
            build("chatbot", 2.5, 40, 1).requests, 5.0, build("chatbot", 15.0, 40, 2).requests
        )
    return [timeline(requests, system, hardware_of("chatbot")) for system in ("vllm-v1", OURS)]


def test_the_summary_counts_everybody_once(burst: list[Timeline]) -> None:
    table = summary(burst)
    assert list(table.index) == ["vllm-v1", OURS]
    assert (table[["attained (%)", "late (%)", "declined (%)"]].sum(axis=1) - 100).abs().max() < 0.2
    for run in burst:
        attained = sum(o.attained for o in run.outcomes) / len(run.outcomes)
        assert table.loc[run.system, "attained (%)"] == pytest.approx(100 * attained, abs=0.05)
        assert {fate(o) for o in run.outcomes} <= {"attained", "late", "declined"}
        assert all(fate(o) == "declined" for o in run.outcomes if o.declined)
