"""Conversations: prompts that grow, whose content they begin with, and which rounds are drawn."""

import json
from pathlib import Path

import numpy as np
import pytest

from workloads import build, own, sessions
from workloads.published import Objectives, read, write

ASKED = Objectives(tpot=0.1, ttft=1.0)


def made(path: Path, text: str, most: int | None = None) -> tuple[list[own.Row], str]:
    """The rows of a file, and what was said of it."""
    path.write_text(text)
    table = read(path, ASKED, most)
    return list(own.load(write(table, path.with_name("plain.csv")))), "; ".join(table.remarks)


def test_a_round_that_adds_to_its_session_brings_all_that_was_said(tmp_path: Path) -> None:
    text = "session,arrival,prompt,output\na,0,100,20\nb,1,70,10\na,2,30,40\na,3,5,6\n,4,9,9\n"
    rows, said = made(tmp_path / "mine.csv", text)
    assert [r.stage.prompt for r in rows] == [100, 70, 150, 195, 9]
    assert [r.prefix for r in rows] == [
        (("a.0", 120),), (("b.0", 80),), (("a.0", 190),), (("a.0", 201),), ()
    ]  # fmt: skip
    assert "2 sessions, prompt is what a round adds to its session" in said
    with pytest.raises(ValueError, match="longest request of mine = 201 must be at most 195"):
        made(tmp_path / "mine.csv", text, 195)


def test_prompts_that_are_whole_stay_and_one_cut_short_shares_nothing(tmp_path: Path) -> None:
    text = "session,arrival,prompt,output\na,0,100,20\na,2,150,40\na,3,200,6\na,4,120,5\n"
    rows, said = made(tmp_path / "mine.csv", text)
    assert [r.stage.prompt for r in rows] == [100, 150, 200, 120]
    assert [r.prefix[0] for r in rows] == [("a.0", 120), ("a.0", 190), ("a.0", 206), ("a.1", 125)]
    assert "1 sessions, prompt is what a round is sent" in said


@pytest.mark.parametrize(("size", "block"), [(512, 512), (16, 16)])
def test_hashes_say_what_prompts_share(size: int, block: int, tmp_path: Path) -> None:
    lines = [(2 * size, [7, 8]), (2 * size + 1, [7, 8, 9]), (size, [4])]
    text = "\n".join(
        json.dumps({"timestamp": t, "input_length": n, "output_length": 3, "hash_ids": ids})
        for t, (n, ids) in enumerate(lines)
    )
    rows, said = made(tmp_path / "trace.jsonl", text)
    assert f"hash_ids taken for blocks of {block} tokens" in said
    assert [r.prefix for r in rows] == [
        ((7, size), (8, size)), ((7, size), (8, size), (9, 1)), ((4, size),)
    ]  # fmt: skip


def test_hashes_that_fit_no_block_are_left(tmp_path: Path) -> None:
    text = json.dumps({"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [1] * 9})
    more = text.replace("0", "5").replace('9, "output', '900, "output')
    rows, said = made(tmp_path / "trace.jsonl", f"{text}\n{more}")
    assert "hash_ids fit no block" in said and all(r.prefix == () for r in rows)


def test_turns_of_sharegpt_are_a_session(tmp_path: Path) -> None:
    turns = [{"from": who, "value": "x" * 40} for who in ("human", "gpt") * 2]
    rows, _ = made(tmp_path / "talks.json", json.dumps([{"conversations": turns}]))
    assert [(r.stage.prompt, r.prefix) for r in rows] == [
        (10, (("1.0", 20),)), (30, (("1.0", 40),))
    ]  # fmt: skip


def test_another_lap_is_other_content(tmp_path: Path) -> None:
    text = "session,arrival,prompt,output\na,0,100,20\na,2,150,40\na,3,200,6\n"
    path = tmp_path / "mine.csv"
    path.write_text(text)
    table = write(read(path, ASKED), tmp_path / "plain.csv")
    requests = build(str(table), 2.0, 9, seed=3).requests
    contexts = [(r.prefix[0][0], r.context) for r in requests]
    assert len(set(contexts)) == 9 and all(r.prefix[0][1] == r.context for r in requests)
    for name in {name for name, _ in contexts}:
        sizes = [n for other, n in contexts if other == name]
        assert sizes == sorted(sizes), "a session only grows"


def test_rounds_are_drawn_in_their_order(tmp_path: Path) -> None:
    names = [f"s{i // 3}" for i in range(30)] + ["", ""]
    which, numbers = sessions.drawn(np.random.default_rng(1), names, 500)
    for number in set(numbers.tolist()) - {0}:
        turns = which[numbers == number].tolist()
        assert turns == list(range(turns[0], turns[0] + len(turns)))
        assert turns[0] % 3 == 0 or turns[0] == 31, "a new session begins at its beginning"
    assert len(set(which.tolist())) == 32
