"""Goodput as `vllm bench serve` counts it, of the same times; and an objective on the end."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from test_replay import EASY, chats, one_by_one, serving

from slos.core.attainment import Live
from slos.core.roofline import Plane, Roofline
from slos.core.types import Progress, Request, Stage
from slos.replay.command import main
from slos.replay.replay import run
from slos.replay.results import Replayed, good, goodput, judged, limits_of, table

NO_TIME = Roofline((Plane(1e-9, 0.0, 0.0),))
WORDS = ("ttft:300", "tpot:55", "e2el:1500")


def recorded(count: int = 200) -> tuple[list[list[float]], Replayed]:
    """Times of every token of requests, a tenth of them lost, and what replay makes of them."""
    rng, times, outcomes = np.random.default_rng(0), [], []
    for i in range(count):
        gaps = rng.exponential(0.05, rng.integers(1, 40))
        each = (0.1 * i + np.cumsum([rng.exponential(0.2), *gaps[1:]])).tolist()
        request = Request(f"r{i}", 0.1 * i, (Stage(10, len(each), EASY),))
        live = Live(request, Progress(request.id, request.arrival, 0, 0.0, 1.0))
        live.start_stage(0, request.arrival, NO_TIME)
        live.emit(each)
        outcomes.append(live.outcome(each[-1]))
        times.append(each)
    failures = {o.id: "lost" for o in outcomes[::10]}
    lost = {"ttft": float("nan"), "tpot": float("nan")}
    outcomes = [
        judged(o, False, False, **lost) if i % 10 == 0 else o for i, o in enumerate(outcomes)
    ]
    return times, Replayed(outcomes, failures)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("words", [WORDS, WORDS[:1], WORDS[1:2], WORDS[2:]])
def test_the_numbers_are_those_of_vllm_bench_serve(words: tuple[str, ...]) -> None:
    serve = pytest.importorskip("vllm.benchmarks.serve", reason="vLLM is not installed")
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput

    times, replayed = recorded()
    outputs = [
        RequestFuncOutput(
            success=i % 10 > 0, start_time=0.1 * i, ttft=each[0] - 0.1 * i, prompt_len=10,
            latency=each[-1] - 0.1 * i, output_tokens=len(each), itl=np.diff(each).tolist(),
        )
        for i, each in enumerate(times)
    ]  # fmt: skip
    span = max(each[-1] for each in times)
    limits = limits_of(words)
    assert limits == serve.parse_goodput(words)
    theirs, _ = serve.calculate_metrics([], outputs, span, None, [50, 99], limits)
    assert 0 < sum(good(replayed, limits)) < 180
    assert goodput(replayed, limits) == pytest.approx(theirs.request_goodput)
    lines = {line.split(",")[0]: line.split()[-3:] for line in table(replayed, limits).splitlines()}
    for name in ("ttft", "tpot", "e2el"):
        percentiles = dict(getattr(theirs, f"percentiles_{name}_ms"))
        expected = getattr(theirs, f"mean_{name}_ms"), percentiles[50], percentiles[99]
        assert lines[name.upper()] == [f"{ms:.1f}" for ms in expected]
    assert f"goodput {theirs.request_goodput:.3f} requests/s within" in table(replayed, limits)


def test_words_of_another_form_are_refused() -> None:
    for word in ("ttft", "itl:5", "ttft:-1", "ttft:fast", "ttft:"):
        with pytest.raises(ValueError, match=f"goodput = '{word}' must be NAME:MILLISECONDS"):
            limits_of([word])


def test_the_end_is_asked_for_and_judged_by() -> None:
    with serving() as fake:
        met, missed = (run(chats(3), fake.url, e2e=e2e) for e2e in (20.0, 1e-6))
    assert all(o.attained for o in met.outcomes) and not any(o.attained for o in missed.outcomes)
    assert {body["vllm_xargs"]["slo_e2e"] for body in fake.bodies} == {20.0, 1e-6}
    two = Request("two", 0.0, (Stage(4, 2, EASY), Stage(0, 2, EASY)))
    with pytest.raises(ValueError, match=r"e2e of requests of several stages = \['two'\]"):
        run([two], "http://127.0.0.1:9", e2e=1.0)


def test_the_command_counts_and_writes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(one_by_one) as fake:
        command = [
            "--url",
            fake.url,
            "--requests",
            "4",
            "--rate",
            "20",
            "--ttft",
            "9",
            "--tpot",
            "1",
        ]
        command += ["--e2e", "30", "--output", str(tmp_path / "rows.csv"), "--goodput"]
        assert main([*command, "e2el:30000", "ttft:20000"]) == 0
        assert main([*command, "e2e:3"]) == 2
    said = capsys.readouterr()
    assert "requests/s within e2el 30000 ms, ttft 20000 ms" in said.out
    assert "goodput = 'e2e:3' must be NAME:MILLISECONDS" in said.err
    assert pd.read_csv(tmp_path / "rows.csv")["good"].tolist() == [True] * 4
    assert json.dumps(fake.bodies[0]["vllm_xargs"]["slo_e2e"]) == "30.0"
