"""The answer to a question of one's own: real runs of a tiny size, on the synthetic profile."""

import csv
import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos import ask
from slos.core.attainment import attainment
from slos.core.pace import CLIENT, PAPER, RULES
from slos.core.types import SLO, Request, Stage
from slos.evaluation import sizes
from slos.evaluation.capacity_search import Probe, Search, capacity, probe, search
from slos.evaluation.runs import hardware_of, scaled_slos, serve
from slos.evaluation.stats import rows_of
from slos.hardware.profiles import profile
from slos.policies import ordinary
from slos.studies import trials, your_own
from slos.studies.own_requests import Mine
from slos.studies.your_own import Question
from workloads import SCENARIOS, build

TINY = ["--num-requests", "40", "--seeds", "1"]
ROWS = [(3.0, 500, 40, 0.05, 1.0, ""), (3.5, 900, 20, 0.1, "", 5), (5.0, 100, 60, 0.05, 0.5, "")]


@pytest.fixture(autouse=True)
def _synthetic(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr("slos.records.sweep.os.cpu_count", lambda: 1)  # no Ray for so little
    monkeypatch.chdir(tmp_path)


def write(
    path: Path, rows: list[tuple], columns: str = "arrival,prompt,output,tpot,ttft,slowdown"
) -> Path:
    with path.open("w", newline="") as f:
        csv.writer(f).writerows([columns.split(","), *rows])
    return path


def rows_in(folder: Path) -> pd.DataFrame:
    files = [folder / "results" / "smoke" / name for name in (trials.ROWS, trials.CHOICES)]
    return pd.concat([pd.read_csv(file, keep_default_na=False) for file in files])


def told(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert ask.main(argv) == 0
    return capsys.readouterr().out


# The answer


def test_it_prints_who_carries_most(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    question = [
        "--profile",
        "opt-13b-h100",
        "--mix",
        "chatbot=2,coding=1",
        "--replicas",
        "2",
        "--slo-scale",
        "0.8",
    ]
    text = told(capsys, *question, *TINY, "--rate", "100", "--csv", str(tmp_path / "out.csv"))
    assert "chatbot=2,coding=1 (synthetic profile), 1 seed(s) of 80 requests" in text
    [coding] = [line.split() for line in text.splitlines() if line.startswith("coding ")]
    assert coding[1:] == ["4", "4", "40", "40", "0.338"], "zero loads, ms a token, share"
    assert "2 replica(s) of OPT-13B on 1 H100-80G, simulated" in text
    rows = pd.read_csv(tmp_path / "out.csv")
    assert set(rows["system"]) == set(ordinary()) and rows["capacity"].is_monotonic_decreasing
    best = rows.iloc[0]
    assert (
        f"At most {2 * best.capacity:.2f} requests per second on 2 GPU(s), by {best.system}" in text
    )
    ours = rows.set_index("system").loc["slos-serve"]
    assert ours.to_ours == 1 and list(rows["to_ours"]) == pytest.approx(
        list(rows["capacity"] / ours.capacity)
    )
    end = text.index(" requests per second on")
    rows_told = text[text.index("best setting") : end].splitlines()
    lines = {line.split()[0]: line.split() for line in reversed(rows_told[1:-1]) if line}
    for system, each, ratio in zip(rows["system"], rows["capacity"], rows["to_ours"], strict=True):
        line = lines[system]
        assert {f"{2 * each:.2f}", f"{ratio:.2f}x"} <= set(line)
        # replicas for 100/s, at the most: loads are tried 2 % apart
        assert int(line[-1]) - 1 < 1.02 * 100 / each <= int(line[-1])

    # what it says of one system is what the search of its best setting says, behind the router that
    # it has
    for name, routers in (
        ("slos-serve", ["cheapest"]),
        ("sarathi", ["round-robin", "least-loaded"]),
    ):
        row = rows.set_index("system").loc[name]
        setting = "" if pd.isna(row.setting) else str(row.setting)
        case = Search(
            "chatbot=2,coding=1", name, setting, "opt-13b-h100", num_requests=80, replicas=2,
            slo_scale=0.8, rule=CLIENT,
        )  # fmt: skip
        behind = [search(replace(case, router=router)) for router in routers]
        found = max((p for probes in behind for p in probes if p.capacity), key=lambda p: p.rate)
        # the answer's search began elsewhere, and attainment of so few is no steady line
        assert row.capacity == pytest.approx(found.rate, rel=0.2)
        at = probe(replace(case, router=row.router), 2 * row.capacity)
        for column in your_own.LATENCIES:
            assert row[column] == pytest.approx(getattr(at, column), nan_ok=True)
        assert at.attainment >= 0.9
        assert f"{row.accepted_ttft_p99:.2f} s {1e3 * row.accepted_tpot_p99:.0f} ms" in " ".join(
            lines[name]
        )


def test_the_best_setting_counts_and_seeds_make_an_interval(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(trials.SETTINGS, "sarathi", ("chunk=64", "chunk=512"))
    asked = Question("coding", systems=["sarathi"], num_requests=40, seeds=2)
    case = asked.case
    [row] = rows_of(your_own.answer(asked, "smoke"))
    each = {
        setting: [
            capacity_of(replace(case, system="sarathi", setting=setting, seed=s)) for s in range(2)
        ]
        for setting in ("chunk=64", "chunk=512")
    }
    best = max(each, key=lambda setting: np.prod(each[setting]))
    assert row.setting == best and row.each == pytest.approx(each[best], rel=0.05)
    assert row.low < row.capacity < row.high
    assert np.isnan(row.to_ours)


def test_a_run_too_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    one = ["--mix", "coding", "--systems", "slos-serve", "--seeds", "1"]
    short = told(capsys, *one, "--num-requests", "20")
    assert short.index("Too short to trust") < short.index("best setting")
    assert "slos-serve carries most" not in short
    assert "Too short to trust" not in told(capsys, *one, "--num-requests", "300")


def test_what_is_given_and_not_used_is_said(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "own.csv", [(1000, 200, 0.1, 1)], "prompt,output,tpot,ttft")
    asked = ["--requests", str(path), "--profile", "opt-13b-h100", *TINY, "--systems", "vllm-v1"]
    text = told(capsys, *asked, "--tpot", "0.05", "--slowdown", "5", "--prefix-cache")
    assert "passed over: tpot, slowdown given, since the file has its own" in text
    assert "prompts share nothing that prefix_cache could keep" in text
    plain = told(capsys, *asked)
    assert "given, since" not in plain and "prompts share" not in plain


def test_a_file_without_hardware_is_named_as_it_was_given(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "own.csv", [(1000, 200, 0.1, 1)], "prompt,output,tpot,ttft")
    assert ask.main(["--requests", str(path)]) == 2
    assert "profile = '' must be given for own.csv; one of" in capsys.readouterr().err


def test_the_longest_requests_of_a_mix_can_be_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--mix", "reasoning", "--profile", "opt-13b-h100", *TINY, "--systems", "vllm-v1"]
    assert ask.main(asked) == 2
    assert "give max_context = 2048" in capsys.readouterr().err
    assert "requests of at most 2048 tokens" in told(capsys, *asked, "--max-context", "2048")


def test_a_conversation_is_found_again_where_that_is_asked_for(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [(i, f"s{i % 5}", 400, 10, 0.1, 1) for i in range(60)]
    path = write(tmp_path / "own.csv", rows, "arrival,session,prompt,output,tpot,ttft")
    asked = ["--requests", str(path), "--profile", "opt-13b-h100", "--systems", "vllm-v1"]
    asked += ["--max-context", "2048", "--num-requests", "60", "--seeds", "1"]
    text = told(capsys, *asked)
    assert "what prompts share is computed anew, unless prefix_cache is given" in text
    found = told(capsys, *asked, "--prefix-cache")
    assert "computed anew" not in found
    most = [float(re.findall(r"carries ([\d.]+) requests", t)[0]) for t in (text, found)]
    assert most[1] > 1.2 * most[0]


def test_what_only_a_prefix_cache_makes_possible_is_possible_with_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # 400 tokens take 44 ms, the 810 of a second round 61 ms
    rows = [(i, f"s{i % 5}", 400, 10, 0.1, 0.06) for i in range(60)]
    path = write(tmp_path / "own.csv", rows, "arrival,session,prompt,output,tpot,ttft")
    asked = ["--requests", str(path), "--profile", "opt-13b-h100", "--systems", "vllm-v1"]
    asked += ["--max-context", "2048", "--num-requests", "60", "--seeds", "1", "--target", "0.8"]
    assert ask.main(asked) == 2
    assert "alone = " in capsys.readouterr().err
    assert "vllm-v1 carries " in told(capsys, *asked, "--prefix-cache")


def test_objectives_out_of_reach_and_a_run_that_ends_too_soon(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # a step takes 27 ms: the first of them cannot be met
    rows = [(1000, 500, 0.01, 0.1), (1000, 500, 0.1, 0.1)]
    path = str(write(tmp_path / "own.csv", rows, "prompt,output,tpot,ttft"))
    asked = ["--requests", path, "--profile", "opt-13b-h100", *TINY, "--systems", "vllm-v1"]
    assert ask.main(asked) == 2
    assert re.search(
        r"alone = 0\.\d+ must be at least 0.9 on .* 27 ms; loosen them", capsys.readouterr().err
    )
    assert "vllm-v1 carries " in told(capsys, *asked, "--slo-scale", "4")
    assert ask.main([*asked, "--num-requests", "3", "--slo-scale", "100"]) == 2
    assert "requests per second attain it; take more requests" in capsys.readouterr().err


def test_what_no_system_attains_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def tried(case: Search) -> list[Probe]:
        return [] if case.system == "vllm" else search(case)

    monkeypatch.setattr(trials, "tried", tried)
    question = ["--mix", "coding", *TINY, "--systems", "vllm"]
    text = told(capsys, *question)
    assert "vllm: not attained, at any load" in text and "No load can be carried" in text
    text = told(capsys, *question, "vllm-v1")
    assert "vllm: not attained" in text and "vllm-v1 carries " in text


def test_stopped_by_hand(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(your_own, "answer", stop)
    assert ask.main(["--mix", "coding", *TINY]) == 130
    assert "the same command goes on" in capsys.readouterr().err


# How it is searched


def test_settings_are_chosen_by_one_seed_and_the_best_is_measured_by_all(tmp_path: Path) -> None:
    asked = Question("coding", systems=["vllm-v1", "slos-serve"], num_requests=300, seeds=2)
    best = your_own.answer(asked, "smoke").set_index("system")
    rows = rows_in(tmp_path)
    chosen = best.loc["vllm-v1", "setting"]
    others = {s for s in trials.SETTINGS["vllm-v1"] if s != chosen}
    tries = {setting: set(part["seed"]) for setting, part in rows.groupby("setting")}
    assert tries == {"": {0, 1}, chosen: {0, 1}} | {setting: {0} for setting in others}
    assert rows.groupby("system")["run"].nunique().to_dict() == {"vllm-v1": 3, "slos-serve": 3}
    for system, row in best.iterrows():
        # from elsewhere another one may be found where attainment goes up and down with the load
        runs = rows[(rows["system"] == system) & rows["run"].str.contains(r"seed 1$")]["run"]
        [start] = {float(run.partition("from ")[2].partition("/s")[0]) for run in runs}
        case = replace(asked.case, system=str(system), setting=row.setting, start=start)
        whole = [capacity_of(replace(case, seed=seed)) for seed in range(2)]
        assert row.each == pytest.approx(whole, rel=2 * case.precision)


def test_a_run_is_as_long_as_it_takes(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", [(400, 60, 0.2, 3)], "prompt,output,tpot,ttft")
    question = Question(str(path), "opt-13b-h100", systems=["slos-serve"], seeds=1)
    asked = your_own.settled(question, "smoke")
    assert asked.num_requests > your_own.FEWEST and asked.num_requests % 100 == 0
    assert your_own.caution(your_own.answer(asked, "smoke"), asked) == ""
    assert f"1 seed(s) of {asked.num_requests} requests" in your_own.described(asked)
    short = replace(asked, num_requests=200)
    assert your_own.settled(short, "smoke") is short, "what was asked for stays"
    assert "Too short" in your_own.caution(your_own.answer(short, "smoke"), short)


def test_where_a_first_look_is_too_short_to_find_a_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(your_own, "FEWEST", 10)
    path = write(tmp_path / "own.csv", [(400, 20, 0.2, 3)], "prompt,output,tpot,ttft")
    question = Question(str(path), "opt-13b-h100", systems=["slos-serve"], seeds=1)
    assert your_own.settled(question, "smoke").num_requests > 40


# Drafts


def test_drafts_are_tried_at_the_best_budget(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = ("chunk=64", "chunk=1024")
    monkeypatch.setitem(trials.SETTINGS, "sarathi", settings)
    asked = Question(
        "coding",
        systems=["sarathi", "slos-serve"],
        num_requests=100,
        seeds=1,
        drafts=4,
        rule=PAPER,
    )
    case, best = asked.case, your_own.answer(asked, "smoke").set_index("system")
    found = {s: capacity_of(replace(case, system="sarathi", setting=s)) for s in settings}
    drafting = {
        f"{s},drafts=3": capacity_of(replace(case, system="sarathi", setting=f"{s},drafts=3"))
        for s in settings
    }
    budget = max(drafting, key=lambda s: drafting[s]).removesuffix(",drafts=3")
    tried = [f"{budget},drafts={n}" for n in (1, 2, 4)]
    found |= drafting | {s: capacity_of(replace(case, system="sarathi", setting=s)) for s in tried}
    top = max(found, key=lambda s: found[s])
    assert best.loc["sarathi", "setting"] == top and "drafts" in top
    assert best.loc["sarathi", "capacity"] == pytest.approx(found[top], rel=0.05)
    assert best.loc["slos-serve", "capacity"] == pytest.approx(
        capacity_of(replace(case, system="slos-serve")), rel=0.2
    )
    assert set(best["profile"]) == {"opt-6.7b-draft-a100"}
    assert set(rows_in(tmp_path)["setting"]) == {*found, ""}, "and nothing else is tried"


def test_drafts_make_tight_objectives_possible(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # a step takes 25 ms
    path = write(tmp_path / "own.csv", [(100, 200, 0.012, 0.3)], "prompt,output,tpot,ttft")
    asked = [
        "--requests",
        str(path),
        "--profile",
        "opt-6.7b-draft-a100",
        *TINY,
        "--systems",
        "vllm-v1",
    ]
    assert ask.main(asked) == 2
    text = told(capsys, *asked, "--drafts", "5", "--acceptance", "1")
    assert "at most 5 drafts accepted at 1, simulated" in text
    assert re.search(r"vllm-v1 max_batched_tokens=\d+,drafts=[1-5]", text)


def capacity_of(case: Search) -> float:
    return next(p.rate for p in search(case) if p.capacity)


def rows_with(*each: list[float], at_once: float = 1.0) -> pd.DataFrame:
    """Systems a, b, ... that carry so much, seed by seed."""
    rows = [(name, sum(x) / len(x), x) for name, x in zip("abc", each, strict=False)]
    table = pd.DataFrame(rows, columns=["system", "capacity", "each"])
    return table.assign(gpus=1, needed="0", seeds=len(each[0]), at_once=at_once)


def test_a_winner_is_named_where_the_interval_leaves_no_doubt() -> None:
    asked = Question(num_requests=40, systems=["vllm"])

    def words(*each: list[float], at_once: float = 1.0) -> str:
        return your_own.in_words(rows_with(*each, at_once=at_once), asked)

    doubtful = words([2.0, 3.0], [2.1, 2.7], [1.0, 1.5])
    assert "cannot tell a, b apart" in doubtful and "carries most" not in doubtful
    # the seeds agree to the last digit, but loads are tried 2 % apart
    assert "a carries most: 2.50 requests per second" in words([2.0, 3.0], [1.0, 1.5])
    assert "2.00x [1.96, 2.04] what b carries" in words([2.0, 3.0], [1.0, 1.5])
    assert "cannot tell a, b apart" in words([2.0, 3.0], [1.97, 2.95])
    assert "a carries most in this one seed" in words([2.0], [1.0])
    assert "cannot tell a, b apart" in words([2.0], [1.97])
    short = words([2.0, 3.0], [1.0, 1.5], at_once=14.0)
    assert "carries most." in short and "a carries most" not in short
    assert "Too short to trust" in your_own.caution(rows_with([2.0], at_once=14.0), asked)
    assert your_own.caution(rows_with([2.0], at_once=13.0), asked) == ""


# By kind


def test_kinds_are_told_apart_at_the_load_that_is_carried(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # the second kind has no time to wait: it is what is lost
    rows = [(300, 20, 0.1, 5, "easy")] * 9 + [(900, 20, 0.1, 0.07, "tight")]
    path = write(tmp_path / "own.csv", rows, "prompt,output,tpot,ttft,kind")
    asked = ["--requests", str(path), "--profile", "opt-13b-h100", "--systems", "vllm-v1"]
    text = told(capsys, *asked, "--seeds", "1", "--num-requests", "300")
    rows_told = [line.split() for line in text.splitlines() if line.strip().startswith("vllm-v1")]
    kinds = {line[1]: line for line in rows_told if line[1] in ("easy", "tight")}
    assert sum(int(line[2]) for line in kinds.values()) == 300
    share = {kind: int(line[3].rstrip("%")) for kind, line in kinds.items()}
    assert share["easy"] >= 90 and share["tight"] < share["easy"]


# A mix


PLAIN = st.sampled_from([name for name, s in SCENARIOS.items() if not s.parts])


@given(
    st.dictionaries(PLAIN, st.floats(0.1, 10), min_size=2), st.integers(1, 60), st.integers(0, 9)
)
def test_a_mix_keeps_its_shares(shares, n, seed) -> None:
    made = build(",".join(f"{name}={share}" for name, share in shares.items()), 2.0, n, seed)
    counts, whole = Counter(r.kind for r in made.requests), sum(shares.values())
    assert len(made.requests) == n and max(r.arrival for r in made.requests) <= n / 2.0
    for name, share in shares.items():
        # the name has six digits of a share
        assert abs(counts[name] - n * share / whole) < 1 + 1e-3
    for r in made.requests:
        own = SCENARIOS[r.kind]
        assert r.stages[-1].slo == own.slos[-1] and r.context <= (own.max_context or r.context)


def test_a_mix_of_equal_shares_is_mixed() -> None:
    ours, theirs = (
        build(name, 2.0, 70, 3) for name in ("chatbot,coding=1,summarization=1", "mixed")
    )
    assert [replace(r, id="") for r in ours.requests] == [
        replace(r, id="") for r in theirs.requests
    ]
    assert build("coding=3", 2.0, 20) == build("coding", 2.0, 20)


def test_a_mix_has_the_hardware_of_its_parts() -> None:
    assert hardware_of("chatbot,coding").name == "opt-6.7b-a100"
    assert hardware_of("chatbot,reasoning", "opt-13b-h100").name == "opt-13b-h100"
    with pytest.raises(
        ValueError, match=r"profile = '' must be given for chatbot=1,reasoning=1; one of .*opt-13b"
    ):
        hardware_of("chatbot,reasoning")


@pytest.mark.parametrize(
    ("mix", "message"),
    [
        ("chat", "scenario = 'chat' must be one of chatbot,"),
        ("chat=1", "mix = 'chat' must be one of chatbot,"),
        ("mixed=1,coding=1", "mix = 'mixed' must be one of"),
        ("coding=1,coding=2", "each once"),
        ("coding=0,chatbot=1", "share of coding = '0' must be a positive number"),
        ("coding=x,chatbot=1", "share of coding = 'x' must be a positive number"),
        ("coding=inf,chatbot=1", "share of coding = 'inf' must be a positive number"),
    ],
)
def test_a_wrong_mix_is_refused(mix: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask.main(["--mix", mix]) == 2
    assert message in capsys.readouterr().err


# A file


def test_options_by_name_are_those_of_the_command(tmp_path: Path) -> None:
    """As the notebook's `more` hands them over."""
    rows = [(0.0, 500, 40), (1.0, 9000, 20), (2.0, 500, 40)]
    path = write(tmp_path / "own.csv", rows, "arrival,prompt,output")
    asked, said = your_own.question(
        "", str(path), tpot=0.1, slowdown=3.0, max_context=8192, asynchronous=True, drafts=2,
        num_requests=2, profile="opt-6.7b-draft-a100",
    )  # fmt: skip
    stages = {r.stages for r in asked.requests()}
    assert stages == {(Stage(500, 40, SLO(0.1, slowdown=3.0, rule=CLIENT)),)}
    assert asked.case.asynchronous and (asked.drafts, asked.max_context) == (2, 8192)
    assert "1 of 3 longer than 8192 tokens: left out" in said
    with pytest.raises(ValueError, match=r"option = 'draft' must be one of .*slowdown.* drafts"):
        your_own.question("mixed", draft=2)
    with pytest.raises(ValueError, match=r"drafts = '3' must be a whole number"):
        sizes.check({"more": {"drafts": "3"}})


def test_requests_that_are_left_have_times_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    with pytest.raises(ValueError, match=r"max_context = 200 must be one that leaves in requests"):
        build(str(path), 1.0, 5, max_context=200)


def test_a_mix_has_its_own_objectives() -> None:
    assert Mine("", "").workload("chatbot=2,coding") == ("chatbot=2,coding", "")
    with pytest.raises(ValueError, match=r"ttft = 0\.3 must be of a file of requests; a mix has"):
        Mine("", "", ttft=0.3).workload("chatbot")


def test_requests_of_a_file_come_in_its_order_at_the_rate_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    made = build(str(path), 2.0, 6, seed=1)
    slos = [SLO(0.05, ttft=1.0), SLO(0.1, slowdown=5.0), SLO(0.05, ttft=0.5)]
    stages = [Stage(p, o, slo) for (_, p, o, *_), slo in zip(ROWS, slos, strict=True)]
    first = stages.index(made.requests[0].stages[0])
    assert [r.stages for r in made.requests] == [(stages[(first + i) % 3],) for i in range(6)]
    gaps = [1.0, 0.5, 1.5]  # before each row; before the first, which follows the last, a mean one
    expected = [gaps[(first + i) % 3] * (6 / 2.0) / (6 + gaps[first]) for i in range(1, 6)]
    assert list(np.diff([r.arrival for r in made.requests])) == pytest.approx(expected)
    assert made.source == "own requests" and made.origins == ("own.csv, 3 rows",)
    faster = build(str(path), 20.0, 6, seed=1).requests
    assert [r.arrival for r in faster] == pytest.approx([r.arrival / 10 for r in made.requests])
    assert len(build(str(path), 1.0, 9, max_context=600).requests) == 9
    assert {r.context for r in build(str(path), 1.0, 9, max_context=600).requests} == {540, 160}


def test_without_arrivals_they_are_poisson_and_drawn(tmp_path: Path) -> None:
    path = write(
        tmp_path / "own.csv", [row[1:] for row in ROWS], "prompt,output,tpot,ttft,slowdown"
    )
    made = build(str(path), 5.0, 600).requests
    gaps = np.diff([r.arrival for r in made])
    assert 0.85 < gaps.std() / gaps.mean() < 1.15 and gaps.mean() == pytest.approx(0.2, rel=0.02)
    assert all(150 < n < 250 for n in Counter(r.prompt for r in made).values())


def test_a_file_from_a_spreadsheet(tmp_path: Path) -> None:
    path = tmp_path / "own.csv"
    path.write_text("prompt, output, tpot, ttft\n\n10, 20, 0.05, 1\n\n", encoding="utf-8-sig")
    assert {r.stages for r in build(str(path), 2.0, 6).requests} == {
        (Stage(10, 20, SLO(0.05, ttft=1.0)),)
    }


def test_a_file_has_the_capacity_of_its_requests(tmp_path: Path) -> None:
    chats = scaled_slos(build("chatbot", 1.0, 30, 4).requests, 0.9)
    rows = [
        (r.arrival, r.prompt, r.output, r.stages[0].slo.tpot, r.stages[0].slo.slowdown)
        for r in chats
    ]
    path = write(tmp_path / "chats.csv", rows, "arrival,prompt,output,tpot,slowdown")
    asked = Question(
        str(path), "opt-6.7b-a100", ["slos-serve"], num_requests=30, seeds=1, rule=PAPER
    )
    [row] = rows_of(your_own.answer(asked, "smoke"))

    drawn = build(str(path), 1.0, 30).requests
    by_stages = {r.stages: i for i, r in enumerate(chats)}
    order = [by_stages[r.stages] for r in drawn]
    # the chats themselves, from another one on
    assert order == [(order[0] + i) % 30 for i in range(30)]

    def attained_at(rate: float) -> float:
        at = [
            Request(chats[k].id, r.arrival / rate, chats[k].stages)
            for k, r in zip(order, drawn, strict=True)
        ]
        return attainment(serve(at, "slos-serve", profile("opt-6.7b-a100")))

    assert attained_at(row.capacity) >= 0.9
    expected = capacity(attained_at, 0.9, 3.0, asked.case.precision)[0]
    assert row.capacity == pytest.approx(expected, rel=2 * asked.case.precision)


def test_the_rule_of_pace_is_named_and_the_other_one_stands_beside() -> None:
    for rule, beside in ((CLIENT, PAPER), (PAPER, CLIENT)):
        asked = Question("chatbot", systems=["vllm-v1"], num_requests=60, seeds=1, rule=rule)
        assert RULES[rule] in your_own.described(asked).splitlines()[1]
        best = your_own.answer(asked, "smoke")
        share = your_own.table(best)[f"by {beside}'s rule"]
        assert [*share] == [f"{best[f'attainment_{beside}'].iloc[0]:.0%}"]
        assert best[f"attainment_{rule}"].iloc[0] >= 0.9
    with pytest.raises(ValueError, match="rule = 'mean' must be one of paper, client"):
        Question(rule="mean")


def test_a_file_that_changed_is_run_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "own.csv", ROWS)
    case = Search(str(path), "vllm", "", "opt-13b-h100")
    before = str(case)
    write(path, ROWS[:2])
    assert str(case) != before and "own.csv#" in before and str(tmp_path) not in before
    # so is a profile of one's own, even under the name of one that ships
    mine = tmp_path / "gpu.json"
    fields = {
        k: v for k, v in asdict(profile("opt-13b-h100")).items() if k not in ("name", "roofline")
    }
    mine.write_text(json.dumps({"opt-13b-h100": fields | {"planes": [[1e-4, 0, 0.01]]}}))
    assert str(replace(case, profile=str(mine))) != str(case)


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        (
            "prompt;output;tpot;ttft",
            "9;9;1;1",
            "header = ['prompt;output;tpot;ttft'] must be comma-separated, with a",
        ),
        (
            "prompt,output,ttft",
            "9,9,1",
            "objectives = None must be in the file or given; give --tpot",
        ),
        (
            "prompt,output,tpot",
            "9,9,1",
            "objectives = None must be in the file or given; give --ttft or --slowdown",
        ),
        ("prompt,output,tpot,ttft", "9,-1,1,1", "row 3, output = '-1' must be an integer of 0 to"),
        ("prompt,output,tpot,ttft", "9,9,fast,1", "row 3: tpot = 'fast' must be a finite number"),
        (
            "prompt,output,tpot,ttft",
            "9,9,0,1",
            "row 3: tpot = 0.0 must be positive; give seconds per output token",
        ),
        (
            "prompt,output,tpot,ttft",
            "9,9,1,",
            "row 3: objectives = {'tpot': 1.0} must be tpot, and ttft or slowdown",
        ),
        ("prompt,output,tpot,slowdown", "9,9,1,.5", "row 3: slowdown = 0.5 must be at least 1"),
        (
            "prompt,output,tpot,ttft,arrival",
            "9,9,1,1,",
            "row 3: arrival = '' must be seconds below 1e+11, or a date",
        ),
        (
            "prompt,output,tpot,ttft,arrival",
            "9,9,1,1,1",
            "arrivals = 0.0 must be of two times at least",
        ),
    ],
)
def test_a_wrong_file_is_refused(
    columns, row, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = {"prompt": "9", "output": "9", "tpot": "1", "ttft": "1", "slowdown": "2", "arrival": "1"}
    names = columns.split(",")
    path = write(
        tmp_path / "own.csv", [tuple(good.get(c, c) for c in names), tuple(row.split(","))], columns
    )
    assert ask.main(["--requests", str(path), "--profile", "opt-13b-h100"]) == 2
    error = capsys.readouterr().err
    assert message in error and "own.csv" in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--replicas", "0"], "replicas = 0 must be of 1 to 1000"),
        (["--num-requests", "-1"], "num_requests = -1 must be of 0 to 1e+06"),
        (
            ["--tpot", "0.05"],
            "tpot = 0.05 must be of a file of requests; a mix has its own objectives",
        ),
        (["--max-context", "-1"], "max_context = -1 must be of 0 to"),
        (["--seeds", "0"], "seeds = 0 must be of 1 to 100"),
        (["--target", "1.5"], "target = 1.5 must be of 0.01 to 1"),
        (["--rate", "-1"], "rate = -1.0 must be of 0 to 1e+06"),
        (["--rate", "inf"], "rate = inf must be of"),
        (["--slo-scale", "0"], "slo_scale = 0.0 must be of 0.01 to 100"),
        (["--slo-scale", "0.01"], "slo_scale = 0.01 must be at least 0.333 for a slowdown of 3"),
        (["--drafts", "-1"], "drafts = -1 must be of 0 to 100"),
        (["--drafts", "5", "--acceptance", "nan"], "acceptance = nan must be of 0 to 1"),
        (
            ["--drafts", "5", "--mix", "tool-calling"],
            "max_drafts = 5 must be 0: toolllama-7b-a100 has no draft model",
        ),
        (["--csv", "."], "csv = '.' must be a file, not a folder"),
        (["--profile", "a100"], "profile 'a100' is unknown; known: "),
        (["--requests", "own.txt"], "No such file or directory: 'own.txt'"),
        (["--requests", "none.csv", "--profile", "opt-13b-h100"], "none.csv"),
        (["--mix", "chatbot,reasoning", "--profile", "opt-13b-h100"], "request of reasoning ="),
        (
            ["--mix", "reasoning", "--profile", "opt-13b-h100"],
            "must be at most 2048 tokens on opt-13b-h100",
        ),
    ],
)
def test_a_wrong_question_is_refused(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask.main(argv) == 2
    error = capsys.readouterr().err
    assert "slos.ask: " in error and message in error


def test_a_request_as_long_as_the_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = {
        "model": "m",
        "gpu": "g",
        "gpus": 1,
        "kv_tokens": 167,
        "max_context": 999,
        "source": "made up",
    }
    (tmp_path / "gpu.json").write_text(
        json.dumps({"mine": mine | {"planes": [[7e-5, 3e-3, 0.02]]}})
    )
    # 10 blocks of 16
    for tokens, drafts, fits in ((160, 0, True), (161, 0, False), (155, 5, True), (156, 5, False)):
        path = write(tmp_path / "own.csv", [(100, tokens - 100, 0.1, 1)], "prompt,output,tpot,ttft")
        asked = ["--requests", str(path), "--profile", "gpu.json", "--drafts", str(drafts), *TINY]
        if fits:
            assert "requests per second on 1 GPU(s)" in told(capsys, *asked)
        else:
            assert ask.main(asked) == 2
            assert (
                f"longest request of own = {tokens} must be at most {160 - drafts}"
                in capsys.readouterr().err
            )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("[]", ""), ("{}", ""), ("nothing", ""),
        (
            {"gpus": None, "planes": None},
            "'max_context', 'source'] must be complete; add gpus, planes",
        ),
        ({"kvtokens": 5}, "mine: field = 'kvtokens' must be one of model, gpu"),
        ({"kv_tokens": "5"}, "mine: kv_tokens = '5' must be of type int"),
        (
            {"planes": [[1e-4, 0]]},
            "mine: plane = [0.0001, 0] must be three finite numbers; give k1, k2 and b in seconds",
        ),
        ({"planes": [1e-4, 0, 1]}, "mine: plane = 0.0001 must be three finite numbers"),
        ({"planes": [[-1, 0, 1]]}, "k1 = -1 must be positive"),
        ({"block_size": 0}, "block_size = 0 must be at least 1"),
    ],
)  # fmt: skip
def test_a_broken_profile_is_refused(
    change, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {
        "model": "m",
        "gpu": "g",
        "gpus": 1,
        "kv_tokens": 900,
        "max_context": 999,
        "source": "made up",
    }
    text = change
    if isinstance(change, dict):
        fields = mine | {"planes": [[1e-4, 0, 0.02]]} | change
        text = json.dumps({"mine": {k: v for k, v in fields.items() if v is not None}})
    (tmp_path / "gpu.json").write_text(text)
    assert ask.main(["--profile", str(tmp_path / "gpu.json")]) == 2
    error = capsys.readouterr().err
    assert "gpu.json" in error and message in error
