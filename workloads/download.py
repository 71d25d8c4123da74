"""Fills the cache: `python -m workloads --download [NAME ...]`. Nothing is ever downloaded without being asked for.

Files with a known checksum must have it; of others the checksum is recorded at the first download and must stay. Of
data sets that come as text only the lengths are used, estimated by `estimate_tokens`.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
import re
import tempfile
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

from workloads.arrivals import TRACES
from workloads.files import PINNED, cache_folder, digest, recorded, tokens, verify
from workloads.lengths import TABLES

GITHUB = "https://raw.githubusercontent.com"
AZURE_2023 = f"{GITHUB}/Azure/AzurePublicDataset/master/data"
AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
SARATHI = f"{GITHUB}/microsoft/sarathi-serve/72339db5b120614033b317880ad3a05a5e4c9415/data/processed_traces"
FILES = {
    **{name: (file, AZURE_2024 if "2024" in name else AZURE_2023) for name, file in TRACES.items()},
    "sharegpt": (TABLES["sharegpt"].sources[0].file, SARATHI),
    "arxiv": (TABLES["arxiv"].sources[0].file, f"{GITHUB}/microsoft/vidur/main/data/processed_traces"),
    "humaneval": ("coding/HumanEval.jsonl", f"{GITHUB}/openai/human-eval/master/data"),
}
"""Name -> (file in the cache, folder on the web). ShareGPT and arXiv come as others' published token counts."""


@dataclass(frozen=True, slots=True)
class Hub:
    """A data set of the `datasets` library: the arguments of `load_dataset`."""

    path: str
    data_files: str | None = None
    split: str = "train"


HUB = {
    "toolbench": Hub("Yhyu13/ToolBench_toolllama_G123_dfs", "toolllama_G123_dfs_eval.json"),
    "s1k": Hub("simplescaling/s1K"),
}
LARGE = ("azure-code-2024", "azure-conv-2024")
"""A week of 2024 is gigabytes, and none of the six scenarios needs it: only by name."""


def download(names: Sequence[str] = (), say: Callable[[str], object] = print) -> None:
    """Fetch the data sets `names` (all that the scenarios need, if empty) into the cache; skip what is there.

    Raises ValueError for an unknown name, a wrong checksum or a row without its fields, ConnectionError where the
    network fails, ImportError without the `datasets` library.
    """
    known, folder = [*FILES, *HUB], cache_folder()
    for name in names:
        if name not in known:
            raise ValueError(f"download = {name!r} must be one of {', '.join(known)}")
    for name in names or [n for n in known if n not in LARGE]:
        if name in FILES:
            file, base = FILES[name]
            fresh = _fetch(folder, file, f"{base}/{Path(file).name}{'.gz' if file.endswith('.jsonl') else ''}")
            say(f"{name}: {folder / file} {'downloaded' if fresh else 'was there'}")
        if name in _DERIVED:
            files, derive = _DERIVED[name]
            if all(_good(folder, f) for f in files):
                say(f"{name}: {', '.join(files)} was there")
                continue
            rows = hub_rows(HUB[name]) if name in HUB else _json_lines(folder / FILES[name][0])
            for file, (header, table) in zip(files, derive(name, rows), strict=True):
                _write_csv(folder, file, header, table)
                say(f"{name}: {folder / file} written, {len(table)} rows, tokens estimated")


def estimate_tokens(text: str) -> int:
    """Tokens of a text by rule: 1 for every 8 letters of a word, every 3 digits, every run of signs, every line break.

    Its sums are within 8 % of cl100k's on HumanEval's prompts and solutions, ToolBench's queries and tool schemas.
    """
    pieces = re.findall(r"[A-Za-z]{1,8}|\d{1,3}|[^\sA-Za-z\d]+|\n\s*", text)
    return max(1, len(pieces))


def hub_rows(hub: Hub) -> Iterable[Mapping[str, Any]]:
    """Rows of a data set through the `datasets` library, which keeps its own cache in ours."""
    try:
        from datasets import load_dataset  # only here: the kit runs without it
    except ImportError:
        raise ImportError(f"{hub.path} needs the `datasets` library; pip install datasets") from None
    place = str(cache_folder() / "hub")
    return cast(
        Iterable[Mapping[str, Any]],
        load_dataset(hub.path, data_files=hub.data_files, split=hub.split, cache_dir=place),
    )


def _good(folder: Path, file: str) -> bool:
    """Whether a file is in the cache with the checksum it should have; ValueError if with another."""
    expected = PINNED.get(file) or recorded(folder).get(file)
    if not expected or not (folder / file).is_file():
        return False
    verify(folder / file, expected)
    return True


def _fetch(folder: Path, file: str, url: str) -> bool:
    """Download `url`, decompressed, to `folder / file`; False if it is there already. A file is whole or not there."""
    if _good(folder, file):
        return False
    expected = PINNED.get(file) or recorded(folder).get(file)
    with _replacing(folder / file) as part:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as out:
                packed = url.endswith(".gz")
                stream = gzip.GzipFile(fileobj=answer) if packed else answer
                while block := stream.read(1 << 20):
                    out.write(block)
                length = answer.headers.get("Content-Length")
                if length and not packed and out.tell() != int(length):
                    raise EOFError(f"only {out.tell()} of {length} bytes came")
        except (OSError, EOFError, HTTPException, zlib.error) as error:
            raise ConnectionError(f"{url}: {error}; check the network, or put {folder / file} there by hand") from error
        with part.open("rb") as f:
            found = digest(f)
        if expected and found != expected:
            raise ValueError(f"{file} from {url}: sha256 = {found} must be {expected}; nothing was kept")
    _record(folder, file)
    return True


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """A path to write to that takes the place of `target` if all went well, and is gone if not."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix=".part")
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def _record(folder: Path, file: str) -> None:
    with (folder / file).open("rb") as f:
        sums = recorded(folder) | {file: digest(f)}
    with _replacing(folder / "SHA256SUMS") as part:
        part.write_text("".join(f"{value}  {name}\n" for name, value in sorted(sums.items())))


def _write_csv(folder: Path, file: str, header: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    with _replacing(folder / file) as part, part.open("w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([header, *rows])
    _record(folder, file)


def _json_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open() as f:
        for n, line in enumerate(f, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, row {n}: {line[:60]!r} must be JSON: {error}") from None


def _field(name: str, row: int, fields: Mapping[str, Any], key: str) -> Any:
    if not fields.get(key):
        raise ValueError(f"{name}, row {row}, {key} = {fields.get(key)!r} must be there and not empty")
    return fields[key]


Derived = list[tuple[tuple[str, ...], list[list[int]]]]
"""(header, rows) of every file that a data set is turned into."""


def _texts(keys: Sequence[str], header: tuple[str, ...]) -> Callable[[str, Iterable[Mapping[str, Any]]], Derived]:
    """One row of token counts per row of texts; a list of texts counts by its first."""

    def derive(name: str, rows: Iterable[Mapping[str, Any]]) -> Derived:
        table = []
        for n, row in enumerate(rows, start=1):
            texts = [_field(name, n, row, key) for key in keys]
            table.append([estimate_tokens(t if isinstance(t, str) else t[0]) for t in texts])
        return [(header, table)]

    return derive


def _toolbench(name: str, rows: Iterable[Mapping[str, Any]]) -> Derived:
    """Rounds and calls of conversations: everything before the model's first word is the first prompt."""
    rounds, calls = [], []
    for n, row in enumerate(rows, start=1):
        talk = _field(name, n, row, "conversations")
        turns = [(_field(name, n, t, "from"), str(t.get("value") or "")) for t in talk]
        spoken = [i for i, (who, _) in enumerate(turns) if who == "assistant"]
        if not spoken or spoken[0] == 0:
            raise ValueError(f"{name}, row {n}, conversations = {[w for w, _ in turns]} must be a prompt, then answers")
        sizes = [estimate_tokens(text) if text else 0 for _, text in turns]
        answered = "Finish" in turns[spoken[-1]][1]
        first = tokens(Path(name), n, "prompt", str(sum(sizes[: spoken[0]])))
        rounds.append([first, len(spoken), sizes[spoken[-1]] if answered else 0])
        for before, at in pairwise(spoken):
            if (new := sum(sizes[before + 1 : at])) and sizes[at]:
                calls.append([new, sizes[at]])
    return [(("prompt_tokens", "rounds", "answer_tokens"), rounds), (("new_prompt_tokens", "output_tokens"), calls)]


_DERIVED: dict[str, tuple[tuple[str, ...], Callable[[str, Iterable[Mapping[str, Any]]], Derived]]] = {
    "humaneval": (
        ("coding/humaneval_estimated.csv",),
        _texts(("prompt", "canonical_solution"), ("prompt_tokens", "output_tokens")),
    ),
    "s1k": (
        ("reasoning/s1K_estimated.csv",),
        _texts(("question", "thinking_trajectories", "attempt"), ("prompt_tokens", "thinking_tokens", "answer_tokens")),
    ),
    "toolbench": (
        ("toolcalling/toolbench_rounds_estimated.csv", "toolcalling/toolbench_calls_estimated.csv"),
        _toolbench,
    ),
}
