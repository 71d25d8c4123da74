"""Batch time, its inverse, the fit, and the profiles."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.core.roofline import Plane, Roofline
from slos.hardware.fit import fit, main
from slos.hardware.profiles import Profile, profile, profiles

planes = st.builds(Plane, st.floats(1e-6, 0.01), st.floats(0, 0.01), st.floats(0, 0.1))
several = st.lists(planes, min_size=1, max_size=3).map(tuple)
rooflines = st.builds(
    Roofline, several, st.sampled_from([0.0, 1e-7]), st.sampled_from([1, 1, 8, 128])
)


def test_time_by_hand() -> None:
    r = Roofline((Plane(0.001, 0.002, 0.02), Plane(0.002, 0.0, 0.0)), k_ctx=0.0001)
    assert r.time(10) == pytest.approx(0.03)
    assert r.time(10, draft_steps=3) == pytest.approx(0.036)
    assert r.time(30, context=100) == pytest.approx(0.07), (
        "the second plane is higher from 20 tokens on"
    )
    assert (r.fits(0.03), r.fits(0.0299), r.fits(0.06), r.fits(0.01)) == (10, 9, 30, 0)
    assert r.array.tolist() == [(0.001, 0.002, 0.02), (0.002, 0.0, 0.0)]
    tiled = replace(r, tile=16)
    assert [tiled.time(n) for n in (0, 1, 16, 17)] == pytest.approx([0.02, 0.036, 0.036, 0.064])
    assert [tiled.fits(s) for s in (0.0359, 0.036, 0.0639, 0.064)] == [0, 16, 16, 32]


@given(rooflines, st.integers(1, 20_000), st.integers(0, 8), st.integers(0, 50_000))
def test_fits_inverts_time(r: Roofline, tokens: int, drafts: int, context: int) -> None:
    seconds = r.time(tokens, drafts, context)
    assert r.fits(seconds, drafts, context) >= tokens
    most = r.fits(seconds * 1.3, drafts, context)
    assert r.time(most, drafts, context) <= seconds * 1.3 + 1e-9 * 1.001
    assert r.time(most + 1, drafts, context) > seconds * 1.3
    assert most % r.tile == 0


@given(rooflines, st.integers(0, 20_000), st.integers(0, 20_000))
def test_tiles_round_up_and_nothing_else(r: Roofline, tokens: int, more: int) -> None:
    smooth = replace(r, tile=1)
    whole = -(-tokens // r.tile) * r.tile
    assert smooth.time(tokens) <= r.time(tokens) == r.time(whole) == smooth.time(whole)
    assert r.time(tokens) <= r.time(tokens + more) <= r.time(tokens) + r.time(more) + 1e-9, (
        "two batches pay twice"
    )


def test_the_papers_figures() -> None:
    r = profile("opt-6.7b-a100").roofline
    assert 350 <= r.fits(0.049) <= r.fits(0.050) <= 367  # the authors: 351 in 49 ms
    assert 1078 <= r.fits(0.099) <= r.fits(0.100) <= 1093  # 1078 in 99 ms


GRID = [
    (n, s, c) for n in (1, 8, 64, 200, 400, 700, 1000, 2000) for s in (0, 1, 4) for c in (0, 5000)
]


@pytest.mark.parametrize(
    "truth",
    [
        Roofline((Plane(7e-5, 3e-3, 0.03),)),
        Roofline((Plane(1e-5, 0.0, 0.025), Plane(8e-5, 0.0, 0.003))),
        Roofline((Plane(2e-5, 1e-3, 0.02),), k_ctx=1e-6),
        Roofline((Plane(1e-5, 0.0, 0.025), Plane(8e-5, 0.0, 0.003)), tile=128),
    ],
)
def test_fit_recovers_noiseless_planes(truth: Roofline) -> None:
    rows = [(n, s, c, truth.time(n, s, c)) for n, s, c in GRID]
    found = fit(rows, planes=len(truth.planes), context=truth.k_ctx > 0, tile=truth.tile)
    assert found.r2 == pytest.approx(1, abs=1e-6)
    assert len(found.errors) == len(GRID) and found.errors.max() < 1e-3
    for n, s, c in GRID:
        assert found.roofline.time(n, s, c) == pytest.approx(truth.time(n, s, c), rel=1e-3)
    assert found.roofline.k_ctx == pytest.approx(truth.k_ctx, rel=1e-3)


def test_fit_reports_what_it_cannot_explain() -> None:
    rng = np.random.default_rng(0)
    noisy = [
        (n, 0.0, 0.0, (0.02 + 5e-5 * n) * rng.lognormal(0, 0.2)) for n in list(range(1, 400, 4)) * 2
    ]
    found = fit(noisy, planes=1)
    assert 0 < found.r2 < 0.9
    seconds = np.array([row[3] for row in noisy])
    told = np.array([found.roofline.time(row[0]) for row in noisy])
    assert (
        found.errors == pytest.approx(abs(told - seconds) / seconds)
        and 0.1 < found.errors.mean() < 0.2
    )


def test_fit_reads_a_csv_and_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "steps.csv"
    path.write_text(
        "seconds,tokens,gpu\n" + "".join(f"{0.02 + 0.001 * n},{n},x\n" for n in range(1, 9))
    )
    [plane] = fit(path, planes=1).roofline.planes
    assert (plane.k1, plane.b) == (pytest.approx(0.001), pytest.approx(0.02))
    assert fit(str(path), planes=1).r2 == pytest.approx(1)
    for text, message in (
        ("tokens,time\n1,1\n", "steps.csv: columns .* with 'seconds'"),
        ("tokens,seconds\n1,0.1\n2,fast\n", "steps.csv, row 3: seconds = 'fast'"),
        ("tokens,seconds\n1,0.1\n2,\n", "steps.csv, row 3: seconds = '' must be a finite"),
        ("tokens,seconds,context\n1,0.1,\n2,1,nan\n", "row 3: context = 'nan' must be a finite"),
        ("tokens,seconds,draft_steps\n1,1,-1\n", "row 2: draft_steps = '-1' must be a finite"),
        (
            "tokens,seconds\n" + "1,0.1\n" * 8 + "2,0\n",
            "seconds = 0.0 must be positive in every row",
        ),
        ("tokens,seconds\n1,0.1\n2,0.1\n", "rows = 2 must be at least 8 for 2 plane"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            fit(path)
    path.write_text("tokens,seconds\n1,0.1\n", "utf-16")
    with pytest.raises(ValueError, match=r"steps\.csv: content must be UTF-8 text"):
        fit(path)
    with pytest.raises(ValueError, match="planes = 0"):
        fit([(1, 0, 0, 1.0)] * 4, planes=0)


def test_equal_times_are_explained() -> None:
    assert fit([(n, 0, 0, 0.01) for n in (1, 10, 100, 1000)], planes=1).r2 > 0.99


@pytest.mark.parametrize("name", ["mine.json", "mine"])
def test_the_command_makes_a_profile_whatever_its_file_is_called(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps, out = tmp_path / "steps.csv", str(tmp_path / name)
    given = [str(steps), "--model", "m", "--gpu", "g", "--kv-tokens", "4096", "-o", out]
    steps.write_text("tokens,seconds\n")
    assert main(given) == 2
    assert "batch sizes = 0 must be several" in capsys.readouterr().err
    steps.write_text("tokens,seconds\n" + "".join(f"{n},{0.01 + n / 1e4}\n" for n in range(1, 9)))
    assert main(given) == 0
    assert profile(out).name == "mine"
    assert main([*given, "--max-context", "0"]) == 2
    assert "max_context = 0 must be at least 1 token" in capsys.readouterr().err


def test_profiles(tmp_path: Path) -> None:
    assert all(p.name == name and p.source and p.kv_blocks > 100 for name, p in profiles().items())
    with pytest.raises(ValueError, match=r"'gpt' is unknown; known: .*opt-6\.7b-a100.*JSON"):
        profile("gpt")
    path = tmp_path / "mine.json"
    fields = {
        "model": "m",
        "gpu": "g",
        "gpus": 1,
        "kv_tokens": 70,
        "max_context": 64,
        "source": "measured here",
    }
    path.write_text(
        json.dumps({"mine": fields | {"planes": [[1e-4, 0, 0.01]], "k_ctx": 1e-7, "tile": 64}})
    )
    mine = profile(str(path))
    assert (
        mine.name == "mine"
        and mine.kv_blocks == 4
        and mine.roofline == Roofline((Plane(1e-4, 0, 0.01),), 1e-7, 64)
    )
    for wrong in ({"gpus": 0}, {"kv_tokens": 3}, {"max_context": 0}, {"source": ""}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Profile(**({"name": "x", "roofline": mine.roofline, **fields} | wrong))  # type: ignore[arg-type]


def test_planes_are_checked() -> None:
    for plane in ((0.0, 0.0, 0.0), (1.0, -1.0, 0.0)):
        with pytest.raises(ValueError, match=r"k1|k2"):
            Plane(*plane)
    with pytest.raises(ValueError, match=r"b = -1.0 .* in one of the planes"):
        Roofline((Plane(1.0, 0.0, -1.0), Plane(2.0, 0.0, -2.0)))


def test_times_that_grow_faster_than_tokens_are_fitted() -> None:
    true = Roofline((Plane(1e-4, 0.0, 0.02), Plane(4e-4, 0.0, -0.6)))
    found = fit([(n, 0, 0, true.time(n)) for n in range(64, 4096, 64)])
    assert found.r2 > 0.999 and min(p.b for p in found.roofline.planes) < -0.5
    with pytest.raises(ValueError, match="planes"):
        Roofline(())
    with pytest.raises(ValueError, match="k_ctx"):
        Roofline((Plane(1, 0, 0),), k_ctx=-1)
    with pytest.raises(ValueError, match="tile = 0"):
        Roofline((Plane(1, 0, 0),), tile=0)


@given(several, st.floats(0.002, 0.02), st.floats(-0.5, -0.001), st.integers(1, 400))
def test_no_chunking_is_faster_than_the_least_time(flat, k1, b, tokens) -> None:
    """And the best one, of chunks that differ by a token at the most, comes near it."""
    r = Roofline((*flat, Plane(k1, 0.0, b)))
    each = [r.time(-(-tokens // n)) * (tokens % n) for n in range(1, tokens + 1)]
    rest = [r.time(tokens // n) * (n - tokens % n) for n in range(1, tokens + 1)]
    best = min(a + b for a, b in zip(each, rest, strict=True))
    assert r.least_time(tokens) <= best + 1e-9
    if r.chunk > 20:  # else whole tokens are far from it
        assert best <= 1.1 * r.least_time(tokens) + r.time(min(r.chunk, tokens))
    plain = Roofline(flat)
    assert plain.least_time(tokens) == plain.time(tokens)
