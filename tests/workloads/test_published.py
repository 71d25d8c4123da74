"""Traces as they are published: layouts, objectives, what is left out and what is said."""

import gzip
import json
from pathlib import Path

import pytest

from workloads import build, own
from workloads.published import Objectives, read, write

ASKED = Objectives(tpot=0.1, ttft=1.0)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9951690,396,109\n"
    "2023-11-16 18:15:51.2224670,879,0\n"
)
BURST = (
    "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    "5,ChatGPT,472,18,490,Conversation log\n45,GPT-4,87,230,317,API log\n"
)
MOONCAKE = "\n".join(
    json.dumps({"timestamp": t, "input_length": n, "output_length": 20, "hash_ids": [1, 2]})
    for t, n in ((0, 900), (400, 1300))
)
SHAREGPT = json.dumps(
    [
        {
            "conversations": [
                {"from": "human", "value": "x" * 400},
                {"from": "gpt", "value": "y" * 40},
                {"from": "human", "value": "x" * 40},
                {"from": "gpt", "value": "y" * 80},
            ]
        }
    ]
)


@pytest.mark.parametrize(
    ("name", "text", "lengths", "arrivals"),
    [
        ("azure.csv", AZURE, [(374, 44), (396, 109)], [0.0, 4.314579]),
        ("burstgpt.csv", BURST, [(472, 18), (87, 230)], [0.0, 40.0]),
        ("mooncake.jsonl", MOONCAKE, [(900, 20), (1300, 20)], [0.0, 0.4]),
        ("sharegpt.json", SHAREGPT, [(100, 10), (120, 20)], None),
    ],
)
@pytest.mark.parametrize("packed", ["", ".gz", ".zst"])
def test_a_published_layout_becomes_requests(
    name: str,
    text: str,
    lengths: list[tuple[int, int]],
    arrivals: list[float] | None,
    packed: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / (name + packed)
    if packed == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    elif packed == ".zst":
        pa = pytest.importorskip("pyarrow")
        with pa.output_stream(str(path), compression="zstd") as out:
            out.write(text.encode())
    else:
        path.write_text(text)
    rows = own.load(write(read(path, ASKED), tmp_path / "requests.csv"))
    assert [(r.stage.prompt, r.stage.output) for r in rows] == lengths
    assert [r.arrival for r in rows] == (arrivals or [None, None])
    assert {(r.stage.slo.tpot, r.stage.slo.ttft) for r in rows} == {(0.1, 1.0)}
    with pytest.raises(ValueError, match=r"--tpot and --ttft or --slowdown"):
        read(path, Objectives())


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE)
    [first, empty] = read(path, ASKED).remarks
    assert "Azure" in first and "arrivals of the file" in first
    assert empty == "1 without a token of prompt or output: left out"
    lines = [f"{100 + i},20,0.1,1" for i in range(199)] + ["9000,100,0.1,1"]
    path.write_text("\n".join(["prompt,output,tpot,ttft,deadline", *(f"{x},7" for x in lines)]))
    table = read(path, Objectives(), 2048)
    assert len(table.rows) == 199 and "Poisson" in table.remarks[0]
    assert "passed over: deadline" in table.remarks[0]
    assert table.remarks[1].startswith("1 of 200 longer than 2048 tokens")
    with pytest.raises(
        ValueError, match=r"must be at most 150 tokens; 84% are longer: .*--max-context"
    ):
        read(path, Objectives(), 150)


@pytest.mark.parametrize("wrong", ["timestamp", "Arrival", "arrivel", "arrived_at"])
def test_a_near_miss_is_refused_with_the_name_that_is_meant(wrong: str, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(f"{wrong},prompt,output,tpot,ttft\n0.1,10,5,0.1,1\n0.2,10,5,0.1,1\n")
    with pytest.raises(ValueError, match=rf"{wrong}.*rename it to 'arrival'"):
        read(path, Objectives())


def test_a_column_twice_or_of_no_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,output,output,tpot,ttft\n1,2,3,0.1,1\n")
    with pytest.raises(ValueError, match="without a column twice"):
        read(path, Objectives())
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="a layout of Azure, BurstGPT, Mooncake, ShareGPT"):
        read(path, Objectives())


def test_what_is_no_json_is_refused_with_the_name_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("{nothing\n")
    with pytest.raises(ValueError, match=r"mine\.jsonl: content must be JSON"):
        read(path, ASKED)


def test_kind_and_value_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,output,tpot,ttft,kind,value\n9,5,0.1,1,gold,3\n8,5,0.1,1,free,1\n")
    made = build(str(path), 1.0, 40).requests
    assert {(r.prompt, r.kind, r.value) for r in made} == {(9, "gold", 3.0), (8, "free", 1.0)}
    path.write_text("prompt,output,tpot,ttft,value\n9,5,0.1,1,-3\n")
    with pytest.raises(ValueError, match=r"row 2: value = -3.0 must be positive"):
        own.load(path)
