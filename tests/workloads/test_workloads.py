"""Laws of the workloads, on the synthetic profile; and the paper's figures, where the real data is
at hand."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from math import isclose
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.core.types import SLO
from slos.hardware.profiles import profiles
from workloads import SCENARIOS, Workload, arrivals, build, make_profiles, synthetic
from workloads.__main__ import main, quantities
from workloads.arrivals import burstiness
from workloads.lengths import TABLES, Quantiles, load

FOLDER = os.environ.get("SLOS_DATA")
real_data = pytest.mark.skipif(
    not FOLDER, reason="needs the real traces: set SLOS_DATA to their folder"
)


@pytest.fixture(autouse=True, scope="module")
def _synthetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("SLOS_DATA", raising=False)
        patch.setenv("SLOS_CACHE", str(tmp_path_factory.mktemp("empty")))
        yield


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FOLDER
    monkeypatch.setenv("SLOS_DATA", FOLDER)


names = st.sampled_from(list(SCENARIOS))
VARIANTS = [(n, k) for n, s in SCENARIOS.items() for k in ("dataset", "trace")[: 1 + s.has_trace]]
variants = st.sampled_from(VARIANTS)
rates = st.floats(1e-3, 1e4)
counts = st.integers(1, 150)
seeds = st.integers(0, 2**40)


def sha(workload: Workload) -> str:
    return hashlib.sha256(repr(workload).encode()).hexdigest()


@given(variants, rates, counts, seeds)
def test_requests_hold_what_every_scenario_promises(variant, rate, n, seed) -> None:
    name, lengths = variant
    made = build(name, rate, n, seed, lengths)
    chosen = SCENARIOS[name]
    assert [r.id for r in made.requests] == [f"{name}-{i:06d}" for i in range(n)]
    assert {r.kind for r in made.requests} <= set(chosen.parts or [name])
    times = [r.arrival for r in made.requests]
    assert times == sorted(times)
    # n arrivals in a span of n / rate: the mean rate is what was asked for
    assert times[0] >= 0 and times[-1] <= made.span * (1 + 1e-9) and isclose(made.span * rate, n)
    assert made.source == "synthetic profile" and all(
        o.startswith(("synthetic", "poisson")) for o in made.origins
    )
    for request in made.requests:
        limit = SCENARIOS[request.kind].max_context
        assert limit is None or request.context <= limit


@given(variants, rates, rates, counts, seeds)
def test_another_rate_only_rescales_the_arrivals(variant, one, other, n, seed) -> None:
    name, lengths = variant
    a, b = (build(name, rate, n, seed, lengths).requests for rate in (one, other))
    assert [replace(r, arrival=0.0) for r in a] == [replace(r, arrival=0.0) for r in b]
    assert np.allclose(
        [r.arrival * one for r in a], [r.arrival * other for r in b], rtol=1e-12, atol=0
    )
    if one >= other:  # monotone without any rounding to forgive
        assert all(x.arrival <= y.arrival for x, y in zip(a, b, strict=True))


@given(variants, counts, seeds)
def test_a_seed_gives_the_same_bytes(variant, n, seed) -> None:
    name, lengths = variant
    assert sha(build(name, 2.0, n, seed, lengths)) == sha(build(name, 2.0, n, seed, lengths))


def test_a_seed_gives_the_same_bytes_in_another_process(root: Path) -> None:
    code = (
        "import hashlib; from workloads import *\n"
        "for s in SCENARIOS: print(hashlib.sha256(repr(build(s, 3.0, 50, 7)).encode()).hexdigest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": str(root)}
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env, cwd=root
    )
    assert run.stdout.split() == [sha(build(s, 3.0, 50, 7)) for s in SCENARIOS]


@pytest.mark.parametrize("name", SCENARIOS)
def test_seeds_differ(name: str) -> None:
    assert len({sha(replace(build(name, 2.0, 60, seed), seed=0)) for seed in range(5)}) == 5


def test_the_core_imports_numpy_only(root: Path) -> None:
    code = (
        "import sys, workloads; print(*sorted({'pandas', 'datasets', 'pyarrow', 'numba'} & "
        "set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert run.stdout.strip() == ""


PAPER_SLOS = {
    "chatbot": [SLO(tpot=0.1, slowdown=5)],
    "coding": [SLO(tpot=0.05, slowdown=5)],
    "summarization": [SLO(tpot=0.1, slowdown=3)],
    "reasoning": [SLO(tpot=0.05, slowdown=3), SLO(tpot=0.1)],
}


@given(names, st.integers(1, 60), seeds)
def test_stages_and_objectives_are_the_paper_s(name, n, seed) -> None:
    for request in build(name, 1.0, n, seed).requests:
        slos = [s.slo for s in request.stages]
        if request.kind == "tool-calling":
            assert slos == [SLO(tpot=0.05, slowdown=3)] * (len(slos) - 1) + [
                SLO(tpot=0.1, slowdown=3)
            ]
            # a tool ran, and its response joins the growing context
            for later in request.stages[1:]:
                assert later.wait > 0 and later.prompt > 0
        else:
            assert slos == PAPER_SLOS[request.kind]
            assert all(s.wait == 0 for s in request.stages)
        if request.kind == "reasoning":  # the response goes on where the thinking ended
            assert request.stages[1].prompt == 0


@given(st.integers(3, 90), seeds)
def test_a_mix_has_equal_shares(n, seed) -> None:
    kinds = [r.kind for r in build("mixed", 1.0, n, seed).requests]
    shares = [kinds.count(k) for k in SCENARIOS["mixed"].parts]
    assert sum(shares) == n and max(shares) - min(shares) <= 1


@given(
    st.sampled_from(["chatbot", "coding", "summarization", "mixed"]), st.integers(600, 2048), seeds
)
def test_a_tighter_context_limit_holds(name, limit, seed) -> None:
    assert all(r.context <= limit for r in build(name, 1.0, 30, seed, max_context=limit).requests)
    if SCENARIOS[name].arrivals != "poisson":
        assert all(r.context <= limit for r in build(name, 1.0, 30, seed, "trace", limit).requests)


@given(
    st.lists(st.floats(0, 300, exclude_max=True), min_size=1, max_size=40),
    st.integers(1, 100),
    seeds,
)
def test_a_replay_keeps_the_gaps_of_its_trace(times, n, seed) -> None:
    times = np.sort(np.array(times))
    ones = np.ones(len(times), dtype=np.int64)
    trace = arrivals.Trace("made up", 300.0, times, ones, ones)
    got, which = arrivals.replay(np.random.default_rng(seed), trace, n)
    assert len(got) == len(which) == n and (which < len(times)).all()
    assert (np.diff(got) >= 0).all() and got[0] >= 0 and got[-1] <= n * (1 + 1e-9)
    ring = np.diff(times, prepend=times[-1] - 300.0)
    if n > 2 and got[-1] > got[0]:  # the ratio of any two gaps is the trace's
        mine, theirs = np.diff(got), ring[which[1:]]
        assert np.allclose(
            mine * theirs.sum(), theirs * mine.sum(), atol=1e-6 * theirs.sum() * mine.sum()
        )
    assert all((b - a) % len(times) == 1 % len(times) for a, b in pairwise(which))


def test_the_scenarios_name_what_exists() -> None:
    assert list(SCENARIOS) == [
        "chatbot",
        "coding",
        "summarization",
        "tool-calling",
        "reasoning",
        "mixed",
    ]
    for s in SCENARIOS.values():
        assert s.profile in profiles()
        assert s.max_context is None or s.max_context <= profiles()[s.profile].max_context
        assert set(s.parts) <= set(SCENARIOS) and (s.parts or s.table in TABLES)
        assert s.arrivals in {"", "poisson", *arrivals.STARTS}


def test_the_profile_is_small_and_bursty(root: Path) -> None:
    assert (root / "workloads" / "profiles.json").stat().st_size < 60_000
    gaps = {}
    for name, limit in (
        ("azure-code", None),
        ("azure-conv", None),
        ("azure-code", 2048),
        ("azure-conv", 2048),
    ):
        trace = synthetic.window(name, limit, np.random.default_rng(1))
        gaps[name, limit] = len(trace.times), burstiness(trace.times.tolist())[0]
        assert (
            np.bincount(trace.times.astype(int)).max()
            == {"azure-code": (30, 19), "azure-conv": (15, 14)}[name][limit is not None]
        )
    assert [n for n, _ in gaps.values()] == [905, 1561, 559, 1391]
    assert [cv for _, cv in gaps.values()] == pytest.approx([7.43, 0.99, 5.84, 1.0], rel=0.06)


@pytest.mark.parametrize("name", ["chatbot-8k", "mixed-8k"])
def test_longer_scenarios_have_synthetic_lengths_of_traces(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path))
    made = build(name, 1.0, 300, lengths="trace")
    assert made.source == synthetic.SYNTHETIC
    assert 2048 < max(r.context for r in made.requests) <= 8192


def test_a_copula_gives_back_marginals_and_correlation() -> None:
    rng = np.random.default_rng(5)
    base = rng.lognormal(5, 1, 4000)
    data = np.rint(np.stack([base + 1, base * rng.lognormal(0, 0.7, 4000) + 1], axis=1)).astype(
        np.int64
    )
    data = data[data.sum(axis=1) <= 2000]
    raw = make_profiles.quantile_table(data, "made up", 2000)
    copula = Quantiles(
        "made up",
        np.array(make_profiles.GRID),
        np.array(raw["quantiles"], float),
        np.array(raw["factor"]),
        2000,
    )
    drawn = copula.draw(rng, 20_000)
    assert (drawn.sum(axis=1) <= 2000).all() and (drawn >= 1).all()
    assert drawn.mean(axis=0) == pytest.approx(data.mean(axis=0), rel=0.05)
    assert np.percentile(drawn, 99, axis=0) == pytest.approx(
        np.percentile(data, 99, axis=0), rel=0.1
    )
    assert np.corrcoef(np.log(drawn.T))[0, 1] == pytest.approx(
        np.corrcoef(np.log(data.T))[0, 1], abs=0.1
    )


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"scenario": "chat"}, "scenario = 'chat' must be one of chatbot, coding"),
        ({"rate": 0.0}, "rate = 0.0 must be positive"),
        ({"rate": float("inf")}, "rate = inf must be positive and finite"),
        ({"num_requests": 0}, "num_requests = 0 must be at least 1"),
        ({"seed": -1}, "seed = -1 must be at least 0"),
        ({"lengths": "azure"}, "lengths = 'azure' must be 'dataset' or 'trace'"),
        ({"scenario": "reasoning", "lengths": "trace"}, "lengths = 'trace' must be 'dataset'"),
        ({"max_context": 4096}, "max_context = 4096 must be 2 to 2048"),
        (
            {"scenario": "summarization", "max_context": 2},
            "max_context = 2 must leave some of the lengths",
        ),
    ],
)
def test_arguments_out_of_bounds(arguments: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        build(**({"scenario": "chatbot", "rate": 1.0, "num_requests": 5} | arguments))


def test_burstiness_of_known_arrivals() -> None:
    assert burstiness([0.0, 1.0, 2.0, 3.0]) == (0.0, 4)
    assert burstiness([1.0]) == (0.0, 1) and burstiness([2.0, 2.0, 2.0]) == (0.0, 3)
    cv, peak = burstiness(arrivals.poisson(np.random.default_rng(0), 20_000).tolist())
    assert cv == pytest.approx(1, abs=0.03) and 20 <= peak <= 35


def test_the_table_says_synthetic_profile_and_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--requests", "50"]) == 0
    printed = capsys.readouterr().out
    assert "synthetic profile" in printed and "real traces" not in printed
    assert all(name in printed for name in SCENARIOS) and "stand-in for s1K" in printed
    assert max(map(len, printed.splitlines())) <= 120
    assert main(["--scenario", "lunch"]) == 2
    assert "scenario = 'lunch' must be one of" in capsys.readouterr().err


def figures(
    name: str, lengths: str, rate: float, n: int, quantity: str
) -> tuple[float, float, float]:
    values = np.array(quantities(build(name, rate, n, 0, lengths))[quantity])
    return values.mean(), float(np.percentile(values, 99)), values.std()


@real_data
@pytest.mark.parametrize(
    ("name", "lengths", "n", "quantity", "within"),
    [
        ("chatbot", "trace", 1391, "prompt", 0.005),
        ("chatbot", "trace", 1391, "output", 0.01),
        ("coding", "trace", 559, "prompt", 0.005),
        ("coding", "trace", 559, "output", 0.06),
        ("summarization", "dataset", 60_000, "prompt", 0.01),
        ("summarization", "dataset", 60_000, "output", 0.03),
    ],
)
def test_the_paper_s_lengths(
    real: None, name: str, lengths: str, n: int, quantity: str, within: float
) -> None:
    said = next(r for r in SCENARIOS[name].reported if r.quantity == quantity)
    assert figures(name, lengths, 1.0, n, quantity) == pytest.approx(
        (said.mean, said.p99, said.std), rel=within
    )


@real_data
def test_the_windows_are_the_paper_s(real: None) -> None:
    for name, counts, cv, most in (
        ("azure-code", (905, 559), 7.43, 30),
        ("azure-conv", (1561, 1391), 0.99, 15),
    ):
        trace = arrivals.window(name)
        assert (len(trace.times), len(trace.fitting(2048).times)) == counts
        assert burstiness(trace.times.tolist())[0] == pytest.approx(cv, abs=0.005)
        assert np.bincount(trace.times.astype(int)).max() == most


@real_data
@pytest.mark.parametrize(
    "variant",
    [(n, k) for n, s in SCENARIOS.items() for k in ("dataset", "trace")[: 1 + s.has_trace]],
)
def test_the_profile_is_like_the_real_data(
    monkeypatch: pytest.MonkeyPatch, real: None, variant: tuple[str, str]
) -> None:
    name, lengths = variant
    theirs = [build(name, 1.0, 2000, seed, lengths) for seed in range(4)]
    assert all(w.source == "real traces" for w in theirs)
    monkeypatch.delenv("SLOS_DATA")
    mine = [build(name, 1.0, 2000, seed, lengths) for seed in range(4)]
    for quantity in quantities(mine[0]):
        a, b = (
            np.concatenate([quantities(w)[quantity] for w in group]) for group in (mine, theirs)
        )
        assert a.mean() == pytest.approx(b.mean(), rel=0.08), quantity
        assert np.percentile(a, 90) == pytest.approx(np.percentile(b, 90), rel=0.1), quantity
    a, b = (
        np.mean([burstiness([r.arrival for r in w.requests])[0] for w in group])
        for group in (mine, theirs)
    )
    assert a == pytest.approx(b, rel=0.1)


@real_data
@pytest.mark.parametrize(
    "name", [*TABLES, *(f"{t}{kept}" for t in arrivals.STARTS for kept in ("", "/2048"))]
)
def test_drawn_quantiles_are_the_data_s(real: None, name: str) -> None:
    """In a draw so large that its tail is no noise: a window of 559 requests has a P99 of five."""
    profile = synthetic.lengths(name)
    if name in TABLES:
        data = load(name).data
    else:
        trace = arrivals.window(name.partition("/")[0])
        data = np.stack([trace.prompt, trace.output], axis=1)
    data = data if profile.limit is None else data[data.sum(axis=1) <= profile.limit]
    drawn = profile.draw(np.random.default_rng(11), 50_000)
    assert drawn.mean(axis=0) == pytest.approx(data.mean(axis=0), rel=0.03)
    for q in (10, 50, 90, 99):
        # between neighbouring ranks: few rows leave wide steps in the tail, and P99 may fall into
        # one
        below, above = np.percentile(data, (q - 0.3, q + 0.3), axis=0, method="hazen")
        mine = np.percentile(drawn, q, axis=0)
        assert (0.97 * below - 1 <= mine).all() and (mine <= 1.03 * above + 1).all(), (
            q,
            below,
            mine,
            above,
        )
    assert np.abs(make_profiles.spearman(drawn) - make_profiles.spearman(data)).max() < 0.12


@real_data
def test_the_profile_is_what_its_script_makes(real: None, root: Path) -> None:
    assert (
        make_profiles.text(make_profiles.make())
        == (root / "workloads" / "profiles.json").read_text()
    )


@real_data
def test_rows_of_every_table(real: None) -> None:
    sizes = {name: len(load(name).data) for name in TABLES}
    assert sizes == {
        "sharegpt": 30731, "humaneval": 164, "arxiv": 28257, "toolbench-rounds": 600,
        "toolbench-calls": 37, "s1k": 503,
    }  # fmt: skip
