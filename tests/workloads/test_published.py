"""Traces as they are published: layouts, objectives, what is left out and what is said."""

import gzip
import json
import re
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
        ("mooncake.JSONL", MOONCAKE, [(900, 20), (1300, 20)], [0.0, 0.4]),
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
        ValueError, match=r"must be at most 150 tokens; 84.5% are longer: .*--max-context"
    ):
        read(path, Objectives(), 150)


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("timestamp", "arrival"), ("Arrival", "arrival"), ("arrivel", "arrival"),
        ("arrived_at", "arrival"), ("arrived", "arrival"), ("timestamp ", "arrival"),
        ("Arrival_Time", "arrival"), ("arrivalTime", "arrival"), ("arrival_ms", "arrival"),
        ("ts", "arrival"), ("created_at", "arrival"), ("request time (s)", "arrival"),
        ("tpot_ms", "tpot"), ("TTFT", "ttft"), ("session_id", "session"), ("Value", "value"),
    ],
)  # fmt: skip
def test_a_near_miss_is_refused_with_the_name_that_is_meant(
    wrong: str, meant: str, tmp_path: Path
) -> None:
    columns = {"prompt": 10, "output": 5, "tpot": 0.1, "ttft": 1, wrong: 2}
    columns.pop(meant, None)
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(",".join(map(str, row)) for row in (columns, columns.values())))
    with pytest.raises(ValueError, match=rf"{re.escape(wrong.strip())}'.*rename it to '{meant}'"):
        read(path, ASKED)


def test_a_time_that_is_no_arrival_is_passed_over_by_name(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("Elapsed time,type,,prompt,output\n3,a,7,10,5\n")
    [said] = read(path, ASKED).remarks
    assert "Poisson" in said and "passed over: Elapsed time, a column without a name, type" in said


def test_a_layout_is_known_however_its_columns_are_written(tmp_path: Path) -> None:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE.replace("TIMESTAMP,ContextTokens", "timestamp, contexttokens "))
    assert [row["prompt"] for row in read(path, ASKED).rows] == [374, 396]
    path.write_text(AZURE.replace("TIMESTAMP", "Time"))
    with pytest.raises(ValueError, match=r"'Time'.*rename it to 'arrival'"):
        read(path, ASKED)


@pytest.mark.parametrize(
    ("times", "arrivals"),
    [
        (["2024-05-10 00:00:00.5+02:00", "2024-05-10 00:00:01.7500000+02:00"], [0.0, 1.25]),
        (["2024-05-10 00:00:00+00:00", "2024-05-10 00:00:00.25"], [0.0, 0.25]),
        (["-5", "1"], [0.0, 6.0]),
        (["9", "1"], [0.0, 8.0]),
    ],
)
def test_times_are_seconds_or_dates(
    times: list[str], arrivals: list[float], tmp_path: Path
) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("\n".join(["arrival,prompt,output", *(f"{t},10.0,5" for t in times)]))
    assert [row["arrival"] for row in read(path, ASKED).rows] == arrivals


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,output,tpot,ttft\n9,5,50,1000\n", "row 2: tpot = '50' must be at"),
        ("a.csv", "arrival,prompt,output\nnan,9,5\n", "row 2: arrival = 'nan' must be seconds"),
        ("a.csv", "arrival,prompt,output\n1700000000000,9,5\n", "2023-11-16 18:15:46; divide"),
        ("a.csv", "prompt;output\n9;5\n", "must be comma-separated"),
        ("a.csv", "prompt,output,tpot,ttft,slowdown\n9,5,1,1,2\n", "a.csv, row 2: objectives"),
        ("a.csv", "prompt,output,value\n9,5,high\n", "a.csv, row 2: value = 'high'"),
        ("a.csv", "", "header = [] must be"),
        ("a.csv", "prompt,output\n", "rows = 0 must be at least 1"),
        ("a.csv.gz", "prompt,output\n9,5\n", "a.csv.gz: content must be UTF-8 text"),
        ("a.csv.zst", "prompt,output\n9,5\n", "a.csv.zst: content must be UTF-8 text"),
        ("a.jsonl", '{"prompt": 9, "output": 5}\n[9, 5]\n', "row 2 = '[9, 5]' must be a JSON"),
        ("a.jsonl", '{"prompt": 9, "output": 5}\n{"prompt": 9}\n', "row 2, output = '' must be"),
        ("a.csv", "timestamp,input_length,output_length,hash_ids\n0,9,5,1 2\n", "hash_ids = '1 2'"),
        ("a.csv", "timestamp,input_length,output_length,hash_ids\n0,9,5,12\n", "hash_ids = '12'"),
        ("a.json", '[{"prompt": 9, "output": 5}]', "a list of requests is a .jsonl file"),
        ("a.json", '[{"conversations": "none"}]', "item 1"),
        ("a.json", '[{"conversations": [{"role": "user", "content": "x"}]}]', "item 1"),
        ("a.csv", "arrival,prompt,output\n3,9,5\n", "at least; drop the column"),
        ("a.json", "{}", "content = 'dict' must be a list of"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_file_is_named(
    name: str, text: str, message: str, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)):
        write(read(tmp_path / name, ASKED), tmp_path / "plain.csv")
    with pytest.raises(ValueError, match=r"tpot = 50.* divide milliseconds by 1000"):
        Objectives(tpot=50.0, ttft=1.0).cells(tmp_path, [])


@pytest.mark.parametrize(("long", "fits"), [(49, True), (50, True), (51, False)])
def test_a_share_of_one_in_twenty_may_be_too_long(long: int, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,output\n" + "10,5\n" * (1000 - long) + "900,5\n" * long)
    if fits:
        assert len(read(path, ASKED, 500).rows) == 1000 - long
    else:
        with pytest.raises(ValueError, match=r"5\.1% are longer"):
            read(path, ASKED, 500)
    assert len(read(path, ASKED, 500, 1.0).rows) == 1000 - long
    with pytest.raises(ValueError, match="max_context = 8 must be what some requests fit"):
        read(path, ASKED, 8, 1.0)


def test_a_column_twice_or_of_no_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,output,output,tpot,ttft\n1,2,3,0.1,1\n")
    with pytest.raises(ValueError, match="without a column twice"):
        read(path, Objectives())
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="a layout of Azure, BurstGPT, Mooncake, ShareGPT"):
        read(path, Objectives())


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("mine.jsonl", "{nothing\n", "row 1 = '{nothing' must be a JSON object"),
        ("mine.jsonl", f'{MOONCAKE}\n{{"timest', "row 3 = '{\"timest' must be a JSON object"),
        ("mine.jsonl", "[1, 2]", r"row 1 = '\[1, 2\]' must be a JSON object"),
        ("mine.json", MOONCAKE, "content must be JSON; a file with an object a line is a .jsonl"),
        ("mine.jsonl", MOONCAKE.replace("[1, 2]", '"x"'), "row 1: hash_ids = 'x' must be a JSON"),
    ],
)
def test_what_is_no_json_is_refused_with_file_and_row(
    name: str, text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.jsonl?(, |: ){said}"):
        read(path, ASKED)


def test_hash_ids_may_be_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(MOONCAKE.replace("[1, 2]", '["a", "b"]').replace("1300", "1000"))
    [_, said] = read(path, ASKED).remarks
    assert said == "hash_ids taken for blocks of 512 tokens"


def test_what_a_row_lacks_is_blank(tmp_path: Path) -> None:
    """A null, a field of other lines only, an empty cell: the objectives that are given fill it."""
    path = tmp_path / "mine.jsonl"
    lines = [
        {"prompt": 9, "output": 5, "tpot": 0.2, "ttft": 2, "session": None, "kind": None},
        {"prompt": 8, "output": 5, "tpot": None, "slowdown": 3, "session": None},
        {"prompt": 7, "output": 5, "kind": "gold", "session": "a"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = own.load(write(read(path, ASKED), tmp_path / "plain.csv"))
    slos = [(r.stage.slo.tpot, r.stage.slo.ttft, r.stage.slo.slowdown) for r in rows]
    assert slos == [(0.2, 2.0, None), (0.1, None, 3.0), (0.1, 1.0, None)]
    assert [(r.kind, r.session, len(r.prefix)) for r in rows] == [
        ("", "", 0), ("", "", 0), ("gold", "a", 1)
    ]  # fmt: skip
    path = tmp_path / "mine.csv"
    path.write_text("prompt,output,tpot,ttft\n9,5,0.2,\n8,5,,2\n")
    assert [(r["tpot"], r["ttft"]) for r in read(path, ASKED).rows] == [("0.2", 1.0), (0.1, "2")]
    path = tmp_path / "mooncake.jsonl"
    path.write_text(MOONCAKE.replace("[1, 2]", "null", 1).replace("1300", "1000"))
    assert ["prefix" in row for row in read(path, ASKED).rows] == [False, True]


def test_kind_and_value_are_honoured(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,output,tpot,ttft,kind,value\n9,5,0.1,1,gold,3\n8,5,0.1,1,free,1\n")
    made = build(str(path), 1.0, 40).requests
    assert {(r.prompt, r.kind, r.value) for r in made} == {(9, "gold", 3.0), (8, "free", 1.0)}
    path.write_text("prompt,output,tpot,ttft,value\n9,5,0.1,1,-3\n")
    with pytest.raises(ValueError, match=r"row 2: value = -3.0 must be positive"):
        own.load(path)
