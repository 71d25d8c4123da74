"""Loaders, checksums and downloads, on small files and a local server."""

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest

from workloads import build, download, files, load_azure
from workloads.__main__ import main
from workloads.arrivals import TRACES
from workloads.lengths import TABLES, load

CONV, CODE = TRACES["azure-conv"], TRACES["azure-code"]
SHAREGPT = TABLES["sharegpt"].sources[0].file


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache, no data folder."""
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def pins(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The pinned checksums, replaced by none."""
    pinned: dict[str, str] = {}
    monkeypatch.setattr(files, "PINNED", pinned)
    return pinned


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text.encode()
    )
    return path


def azure(rows: int, start: int = 0, zone: str = "", every: float = 1.0) -> str:
    lines = ["TIMESTAMP,ContextTokens,GeneratedTokens"]
    for i in range(rows):
        t = start + i * every
        lines.append(
            "2024-05-10 "
            f"{int(t) // 3600:02}:{int(t) // 60 % 60:02}:{t % 60:09.6f}{zone},{100 + i},{1 + i}"
        )
    return "\r\n".join(lines) + "\r\n"


def small_folder(folder: Path, suffix: str = "") -> Path:
    """A data folder with enough for every scenario."""
    for name in (CONV, CODE):
        write(folder / (name + suffix), azure(3000))
    both = (
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
        + "300,40,340,7.5\n500,60,560,8.3\n" * 3
    )
    write(folder / (SHAREGPT + suffix), both)
    write(folder / (TABLES["arxiv"].sources[0].file + suffix), both)
    write(
        folder / f"coding/humaneval_lengths.csv{suffix}",
        "task_id,prompt_tokens_cl100k,solution_tokens_cl100k\nHumanEval/0,118,50\nHumanEval/1,109,87\n",
    )
    write(
        folder / f"toolcalling/toolbench_eval_rounds.csv{suffix}",
        "subset,query_tokens,tools_json_tokens,n_tool_messages,final_answer_tokens\nG1,40,400,3,77\nG1,50,600,2,0\n",
    )
    write(
        folder / f"toolcalling/toolbench_example_calls.csv{suffix}",
        "file,call,new_prompt_tokens,output_tokens\na,1,756,8\na,2,327,27\na,3,0,99\n",
    )
    write(
        folder / f"reasoning/skythought_reasoning_lengths.csv{suffix}",
        "model,prompt_tokens,thinking_tokens,answer_tokens,thought_closed\n"
        "Sky-T1-math-32B,75,1070,386,1\nSky-T1-math-32B,75,9,9,0\nSky-T1-math-14B,75,8,8,1\n",
    )
    return folder


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_the_named_folder_comes_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pins: dict, suffix: str
) -> None:
    monkeypatch.setenv("SLOS_DATA", str(small_folder(tmp_path / "data", suffix)))
    for name in ("chatbot", "coding", "summarization", "tool-calling", "reasoning", "mixed"):
        assert build(name, 1.0, 8).source == "real traces"
    chat = build("chatbot", 1.0, 20)
    assert {(r.prompt, r.output) for r in chat.requests} == {(300, 40), (500, 60)}
    assert chat.origins == (CONV, SHAREGPT)
    [thought] = {
        tuple((s.prompt, s.output) for s in r.stages) for r in build("reasoning", 1.0, 9).requests
    }
    assert thought == ((75, 1070), (0, 386))
    shapes = {
        tuple((s.prompt, s.output) for s in r.stages)
        for r in build("tool-calling", 1.0, 30).requests
    }
    # the second gave no answer
    assert shapes == {((440, 27), (327, 27), (327, 77)), ((650, 27), (327, 27))}


def test_trace_lengths_are_the_window_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pins: dict
) -> None:
    monkeypatch.setenv("SLOS_DATA", str(small_folder(tmp_path)))
    # requests of 900..1199 s have 1000..1299 prompt and 901..1200 output tokens, of which
    # 1000+901.. to 1073+974 fit
    requests = build("chatbot", 1.0, 74, seed=3, lengths="trace").requests
    assert sorted(r.prompt for r in requests) == list(range(1000, 1074))
    assert all(r.output == r.prompt - 99 for r in requests)
    more = build("chatbot", 1.0, 500, seed=3, lengths="trace").requests
    assert [r.stages for r in more[:74]] == [r.stages for r in requests]
    assert {r.prompt for r in more[74:]} <= set(range(1000, 1074))


def test_a_file_that_the_folder_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, pins: dict
) -> None:
    folder = small_folder(tmp_path / "data")
    (folder / CONV).unlink()
    monkeypatch.setenv("SLOS_DATA", str(folder))
    with pytest.raises(FileNotFoundError, match=f"must hold {CONV}; add it, or unset SLOS_DATA"):
        build("chatbot", 1.0, 5)
    assert build("coding", 1.0, 5).source == "real traces"
    monkeypatch.setenv("SLOS_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"SLOS_DATA = '.*nowhere' must be a folder"):
        build("chatbot", 1.0, 5)


def test_the_cache_is_used_where_it_has_everything(cache: Path, pins: dict) -> None:
    write(cache / CONV, azure(3000))
    assert build("chatbot", 1.0, 5).source == "synthetic profile"
    small_folder(cache)
    assert build("chatbot", 1.0, 5).source == "real traces"


def test_a_changed_file_is_read_again(tmp_path: Path, cache: Path, pins: dict) -> None:
    path = write(cache / SHAREGPT, "num_prefill_tokens,num_decode_tokens\n10,20\n")
    assert load("sharegpt").data.tolist() == [[10, 20]]
    write(path, "num_prefill_tokens,num_decode_tokens\n10,20\n30,40\n")
    assert load("sharegpt").data.tolist() == [[10, 20], [30, 40]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("num_prefill_tokens\n1\n", "row 1: header = .* must have the column 'num_decode_tokens'"),
        ("", "row 1: header = .* must have the column"),
        ("num_prefill_tokens,num_decode_tokens\n", "rows = 0 must be at least 1"),
        (
            "num_prefill_tokens,num_decode_tokens\n5,6\n7\n",
            "row 3: .'7'. must have 2 fields, it has 1",
        ),
        (
            "num_prefill_tokens,num_decode_tokens\n5,\n",
            "row 2, num_decode_tokens = '' must be an integer of 1",
        ),
        ("num_prefill_tokens,num_decode_tokens\n5,-6\n", "row 2, num_decode_tokens = '-6' must be"),
        ("num_prefill_tokens,num_decode_tokens\n0,6\n", "row 2, num_prefill_tokens = '0' must be"),
        (
            "num_prefill_tokens,num_decode_tokens\n5,nan\n",
            "row 2, num_decode_tokens = 'nan' must be",
        ),
        (
            "num_prefill_tokens,num_decode_tokens\n5,6\n5,1_0\n",
            "row 3, num_decode_tokens = '1_0' must be",
        ),
        (
            "num_prefill_tokens,num_decode_tokens\n5,2000000\n",
            "row 2, num_decode_tokens = '2000000' .* to 1000000",
        ),
    ],
)
def test_bad_rows_of_lengths(cache: Path, pins: dict, text: str, says: str) -> None:
    path = write(cache / SHAREGPT, text)
    with pytest.raises(ValueError, match=says) as error:
        load("sharegpt")
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        (["noon,1,1"], "row 2, TIMESTAMP = 'noon' must be a date and time"),
        (["2023-11-16 18:00:00,1,1", ",1,1"], "row 3, TIMESTAMP = '' must be a date and time"),
        (
            ["2023-11-16 18:00:00,1,1", "2023-11-16 18:00:01+00:00,1,1"],
            "row 3, TIMESTAMP = .* like the first row's",
        ),
        (
            ["2023-11-16 18:00:05,1,1", "2023-11-16 18:00:04,1,1"],
            "row 3, TIMESTAMP = .*04' must not be earlier",
        ),
        (
            ["2023-11-16 18:00:05,-1,1"],
            "row 2, ContextTokens = '-1' must be an integer of 0 to 1000000",
        ),
        (["2023-11-16 18:00:05,1,1e3"], "row 2, GeneratedTokens = '1e3' must be"),
        (["2023-11-16 18:00:05,1,1,1"], "row 2: .* must have 3 fields, it has 4"),
        ([], "start = 0.0 must be a time with requests after it"),
    ],
)
def test_bad_rows_of_a_trace(tmp_path: Path, rows: list[str], says: str) -> None:
    path = write(
        tmp_path / "trace.csv", "\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows])
    )
    with pytest.raises(ValueError, match=says) as error:
        load_azure(path)
    assert str(path) in str(error.value)


def test_both_layouts_of_azure(tmp_path: Path, cache: Path) -> None:
    header = "TIMESTAMP,ContextTokens,GeneratedTokens"
    first, second = "2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319600,3180,8"
    old = write(tmp_path / "old.csv", "\r\n".join((header, first, second)))
    trace = load_azure(old)
    assert trace.times.tolist() == [0, pytest.approx(0.052)] and trace.prompt.tolist() == [
        4808,
        3180,
    ]
    new = write(tmp_path / "week.csv.gz", azure(100, zone="+00:00"))
    part = load_azure(new, start=10.5, seconds=5)
    assert part.times.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5] and part.output.tolist() == [
        12,
        13,
        14,
        15,
        16,
    ]
    assert part.span == 5 and load_azure(new).span == 99
    write(cache / TRACES["azure-code-2024"], azure(4, zone="+00:00"))
    assert len(load_azure("azure-code-2024").times) == 4
    with pytest.raises(FileNotFoundError, match="'azure-conv-2024' is neither a file nor one of"):
        load_azure("azure-conv-2024")
    with pytest.raises(ValueError, match="start = -1 must be at least 0"):
        load_azure(new, start=-1)
    with pytest.raises(ValueError, match="start = 500 must be a time with requests after it"):
        load_azure(new, start=500)


def test_thirty_thousand_rows_load_at_once(tmp_path: Path) -> None:
    text = (
        "num_prefill_tokens,num_decode_tokens,num_total_tokens,pd_ratio\n"
        + "1402,711,2113,1.97\n" * 30_000
    )
    path = write(tmp_path / "many.csv.gz", text)
    begin = perf_counter()
    assert (
        len(files.read_lengths(path, ("num_prefill_tokens", "num_decode_tokens"), (1, 1))) == 30_000
    )
    assert perf_counter() - begin < 3  # about 0.1 s; a busy machine may need more


def test_a_wrong_checksum_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = small_folder(tmp_path / "data")
    monkeypatch.setenv("SLOS_DATA", str(folder))
    with pytest.raises(ValueError, match=rf"{SHAREGPT}: sha256 = [0-9a-f]{{64}} must be 6d6c29"):
        build("chatbot", 1.0, 5)
    write(folder / "SHA256SUMS", f"{'0' * 64}  coding/humaneval_lengths.csv\n")
    with pytest.raises(ValueError, match=r"humaneval_lengths.csv: sha256 = .* must be 0000"):
        build("coding", 1.0, 5)
    write(folder / "SHA256SUMS", "what?\n")
    with pytest.raises(
        ValueError, match=r"SHA256SUMS, row 1: 'what.' must be '<64 hex digits>  <name>'"
    ):
        build("reasoning", 1.0, 5)


def test_a_broken_archive_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "trace.csv.gz", azure(5000))
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"trace.csv.gz: content must be"):
        load_azure(path)
    with pytest.raises(ValueError, match=r"trace.csv.gz: content must be"):
        files.verify(path, "0" * 64)
    path.write_bytes(b"no gzip")
    with pytest.raises(ValueError, match=r"trace.csv.gz: content must be"):
        load_azure(path)


# --- downloads ---


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the address at which a local server shows it."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def at(monkeypatch: pytest.MonkeyPatch, name: str, base: str) -> None:
    monkeypatch.setitem(download.FILES, name, (download.FILES[name][0], base))


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_download_is_checked_and_kept(
    monkeypatch: pytest.MonkeyPatch, site: tuple[Path, str], cache: Path, pins: dict, scheme: str
) -> None:
    folder, url = site
    text = azure(50)
    write(folder / Path(CONV).name, text)
    at(monkeypatch, "azure-conv", url if scheme == "http" else folder.as_uri())
    pins[CONV] = hashlib.sha256(text.encode()).hexdigest()
    said: list[str] = []
    download.download(["azure-conv"], said.append)
    assert (cache / CONV).read_bytes() == text.encode() and said[-1].endswith("downloaded")
    assert files.recorded(cache) == {CONV: pins[CONV]}
    (folder / Path(CONV).name).unlink()  # a second time asks nobody
    download.download(["azure-conv"], said.append)
    assert said[-1].endswith("was there")
    assert len(load_azure("azure-conv").times) == 50
    write(cache / CONV, text + "x")
    for broken in (
        lambda: load_azure("azure-conv"),
        lambda: download.download(["azure-conv"], said.append),
    ):
        with pytest.raises(ValueError, match=f"{CONV}: sha256 = .* must be {pins[CONV]}"):
            broken()


def test_a_wrong_download_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, site: tuple[Path, str], cache: Path
) -> None:
    folder, url = site
    at(monkeypatch, "azure-code", url)
    with pytest.raises(ConnectionError, match=r"http://127.*code.csv: .*404.*; check the network"):
        download.download(["azure-code"])
    write(folder / Path(CODE).name, azure(3))
    with pytest.raises(
        ValueError, match=f"{CODE} from http://.*: sha256 = .* must be 54e9a6.*; nothing was kept"
    ):
        download.download(["azure-code"])
    assert not [p for p in cache.rglob("*") if p.is_file()]
    with pytest.raises(
        ValueError, match="download = 'everything' must be one of azure-code, azure-conv"
    ):
        download.download(["everything"])
    assert main(["--download", "azure-code"]) == 2


def test_an_unknown_checksum_is_recorded_at_first(
    monkeypatch: pytest.MonkeyPatch, site: tuple[Path, str], cache: Path
) -> None:
    folder, url = site
    at(monkeypatch, "azure-code-2024", url)
    file = TRACES["azure-code-2024"]
    write(folder / Path(file).name, azure(5))
    download.download(["azure-code-2024"], lambda _: None)
    assert len(load_azure("azure-code-2024").times) == 5
    (cache / file).unlink()
    write(folder / Path(file).name, azure(6))  # the publisher changed it
    line = rf"sha256 = .* must be .*; nothing was kept: remove its line in {cache}.*SHA256SUMS"
    with pytest.raises(ValueError, match=line):
        download.download(["azure-code-2024"], lambda _: None)
    assert not (cache / file).exists()


def test_every_address_is_fixed_or_its_checksum_recorded() -> None:
    revision = re.compile(r"/[0-9a-f]{40}/")
    for name, (file, base) in download.FILES.items():
        fixed = revision.search(base) and file in files.PINNED
        assert fixed or name in download.LARGE, f"{name}: {base}"


def test_humaneval_becomes_lengths(
    monkeypatch: pytest.MonkeyPatch, site: tuple[Path, str], cache: Path, pins: dict
) -> None:
    folder, url = site
    at(monkeypatch, "humaneval", url)
    rows = [
        {
            "task_id": f"HumanEval/{i}",
            "prompt": "def f(x):\n",
            "canonical_solution": "    return x\n",
        }
        for i in "01"
    ]
    write(folder / "HumanEval.jsonl.gz", "".join(json.dumps(r) + "\n" for r in rows))
    said: list[str] = []
    download.download(["humaneval"], said.append)
    assert "2 rows, tokens estimated" in said[-1]
    assert load("humaneval").data.tolist() == [[6, 3]] * 2
    assert (
        load("humaneval").origin
        == "coding/humaneval_estimated.csv (tokens estimated from the text)"
    )
    download.download(["humaneval"], said.append)
    assert said[-1].endswith("was there")
    write(cache / "coding/HumanEval.jsonl", "{")
    with pytest.raises(ValueError, match=r"row 1: '\{' must be JSON"):
        list(download._json_lines(cache / "coding/HumanEval.jsonl"))


S1K = [
    {"question": "What is 2+2?", "thinking_trajectories": ["Let me think.\nFour."], "attempt": "4"},
    {"question": "Why?", "thinking_trajectories": ["Hm"], "attempt": "Because."},
]
TALK = [
    {"from": "system", "value": "You have tools: weather"},
    {"from": "user", "value": "Is it raining?"},
    {"from": "assistant", "value": "Action: weather"},
    {"from": "function", "value": '{"rain": true}'},
    {"from": "assistant", "value": "Action: Finish\nIt is raining."},
]


def test_text_sets_become_lengths(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    rows = {
        "s1k": S1K,
        "toolbench": [{"id": "Step 2", "conversations": TALK}, {"conversations": TALK[:3]}],
    }
    by_hub = {hub: rows[name] for name, hub in download.HUB.items()}
    monkeypatch.setattr(download, "hub_rows", by_hub.__getitem__)
    said: list[str] = []
    download.download(["s1k", "toolbench"], said.append)
    [file] = download.DERIVED["s1k"]
    (cache / file).unlink()
    by_hub[download.HUB["s1k"]] = S1K[:1]  # the publisher changed it
    with pytest.raises(
        ValueError, match=r"s1K.* from s1k: sha256 = .* must be .*: remove its line"
    ):
        download.download(["s1k"])
    by_hub[download.HUB["s1k"]] = S1K
    download.download(["s1k"], lambda _: None)
    assert len(said) == 3 and all("tokens estimated" in s for s in said)
    assert load("s1k").data.tolist() == [[6, 7, 1], [2, 1, 2]]
    rounds = load("toolbench-rounds").data
    # the second never finished
    assert rounds[:, 1].tolist() == [2, 1] and rounds[1, 2] == 0 < rounds[0, 2]
    assert load("toolbench-calls").data.shape == (1, 2)
    made = build("reasoning", 1.0, 20)
    assert made.source == "real traces" and made.origins[-1].startswith(
        "reasoning/s1K_estimated.csv"
    )
    assert {len(r.stages) for r in build("tool-calling", 1.0, 20).requests} == {1, 2}


@pytest.mark.parametrize(
    ("name", "rows", "says"),
    [
        (
            "s1k",
            [S1K[0], {"question": "Why?"}],
            "s1k, row 2, thinking_trajectories = None must be there",
        ),
        ("toolbench", [{"id": "x"}], "toolbench, row 1, conversations = None must be there"),
        (
            "toolbench",
            [{"conversations": TALK[2:]}],
            "row 1, conversations = .'assistant'.* must be a prompt, then",
        ),
    ],
)
def test_text_rows_without_their_fields(
    monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, rows: list, says: str
) -> None:
    monkeypatch.setattr(download, "hub_rows", lambda _: rows)
    with pytest.raises(ValueError, match=says):
        download.download([name])
    assert not cache.exists()


def test_the_datasets_library_reads_a_local_set(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "rows.jsonl", "".join(json.dumps(r) + "\n" for r in S1K))
    rows = download.hub_rows(download.Hub("json", str(path)))
    [[header, *table]] = download.lengths_of("s1k", rows)
    assert header == ["prompt_tokens", "thinking_tokens", "answer_tokens"] and np.shape(table) == (
        2,
        3,
    )
    assert list((cache / "hub").rglob("*.arrow"))


@pytest.mark.parametrize(
    ("text", "count"), [("", 1), ("hello world", 2), ("internationalization", 3), ("2024", 2)]
)
def test_estimated_tokens(text: str, count: int) -> None:
    assert download.estimate_tokens(text) == count
