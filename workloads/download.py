"""Fills the cache: `python -m workloads --download [NAME ...]`. Nothing is ever downloaded without
being asked for.

Addresses name a revision where the publisher has some. Files with a known checksum must have it; of
others, and of what is made of data sets, the checksum is recorded at the first download and must
stay. Of data sets that come as text only the lengths are used, estimated by
`estimate_tokens`.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import shutil
import urllib.request
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

from slos.core.types import require
from slos.files import replacing, write_whole
from workloads.arrivals import TRACES
from workloads.files import cache_folder, checksum, expected_checksum, recorded, tokens, verify
from workloads.lengths import CALLS, ROUNDS, TABLES, THOUGHT

GITHUB = "https://raw.githubusercontent.com"
AZURE_2023 = f"{GITHUB}/Azure/AzurePublicDataset/790921015d50dd6aae7f7e47f39ba0e235ad6b08/data"
AZURE_2024 = "https://github.com/Azure/AzurePublicDataset/releases/download/dataset-llm-2024"
SARATHI = f"{GITHUB}/microsoft/sarathi-serve/72339db5b120614033b317880ad3a05a5e4c9415/data"
VIDUR = f"{GITHUB}/microsoft/vidur/6d98aa8f71696520acc603d87439e77cc78160a7/data"
OPENAI = f"{GITHUB}/openai/human-eval/6d43fb980f9fee3c892a914eda09951f772ad10d/data"
FILES = {
    **{name: (file, AZURE_2024 if "2024" in name else AZURE_2023) for name, file in TRACES.items()},
    "sharegpt": (TABLES["sharegpt"].sources[0].file, f"{SARATHI}/processed_traces"),
    "arxiv": (TABLES["arxiv"].sources[0].file, f"{VIDUR}/processed_traces"),
    "humaneval": ("coding/HumanEval.jsonl", OPENAI),
}
"""Name -> (file in the cache, folder on the web). Two come as others' published token counts."""


class Hub(NamedTuple):
    """A data set of the `datasets` library: the arguments of `load_dataset`."""

    path: str
    data_files: str | None = None
    split: str = "train"


HUB = {
    "toolbench": Hub("Yhyu13/ToolBench_toolllama_G123_dfs", "toolllama_G123_dfs_eval.json"),
    "s1k": Hub("simplescaling/s1K"),
}
DERIVED = {
    "humaneval": ["coding/humaneval_estimated.csv"],
    "s1k": ["reasoning/s1K_estimated.csv"],
    "toolbench": [f"toolcalling/toolbench_{name}_estimated.csv" for name in ("rounds", "calls")],
}
"""Files of lengths that texts are turned into."""
TEXTS = {
    "humaneval": {"prompt_tokens": "prompt", "output_tokens": "canonical_solution"},
    "s1k": dict(zip(THOUGHT, ("question", "thinking_trajectories", "attempt"), strict=True)),
}
"""Columns of such a file, and the text that each one counts."""
# gigabytes that none of the six scenarios needs: only by name
LARGE = ("azure-code-2024", "azure-conv-2024")

Texts = Iterable[Mapping[str, Any]]
Lengths = list[Sequence[Any]]  # a header and rows of token counts


def download(names: Sequence[str] = (), say: Callable[[str], object] = print) -> None:
    """Fetch the data sets `names` (all that the scenarios need, if empty) into the cache; skip what
    is there.

    Raises ValueError for an unknown name, a wrong checksum or a row without its fields,
    ConnectionError where the network fails.
    """
    known, folder = [*FILES, *HUB], cache_folder()
    for name in names:
        require(name in known, "download", name, f"one of {', '.join(known)}")
    for name in names or [n for n in known if n not in LARGE]:
        if name in FILES:
            file, base = FILES[name]
            packed = ".gz" if file.endswith(".jsonl") else ""
            fresh = _fetch(folder, file, f"{base}/{Path(file).name}{packed}")
            say(f"{name}: {folder / file} {'downloaded' if fresh else 'was there'}")
        files = DERIVED.get(name, ())
        if files and all(_good(folder, f) for f in files):
            say(f"{name}: {', '.join(files)} was there")
        elif files:
            rows = hub_rows(HUB[name]) if name in HUB else _json_lines(folder / FILES[name][0])
            for file, table in zip(files, lengths_of(name, rows), strict=True):
                with replacing(folder / file) as part:
                    with part.open("w", newline="") as f:
                        csv.writer(f, lineterminator="\n").writerows(table)
                    _check(folder, file, part, name)
                _record(folder, file)
                say(f"{name}: {folder / file} written, {len(table) - 1} rows, tokens estimated")


def estimate_tokens(text: str) -> int:
    """Tokens of a text by rule: 1 for every 8 letters of a word, every 3 digits, every run of
    signs, every line break.

    Its sums are within 8 % of cl100k's on HumanEval's prompts and solutions, ToolBench's queries
    and tool schemas.
    """
    pieces = re.findall(r"[A-Za-z]{1,8}|\d{1,3}|[^\sA-Za-z\d]+|\n\s*", text)
    return max(1, len(pieces))


def hub_rows(hub: Hub) -> Texts:
    """Rows of a data set through the `datasets` library, which keeps its own cache in ours."""
    from datasets import load_dataset  # seconds that no other source need wait for

    more: Any = {"data_files": hub.data_files, "cache_dir": str(cache_folder() / "hub")}
    return cast(Texts, load_dataset(hub.path, split=hub.split, **more))


def _good(folder: Path, file: str) -> bool:
    """Whether a file is in the cache with the checksum known of it; ValueError with another."""
    expected = expected_checksum(folder, file)
    if not expected or not (folder / file).is_file():
        return False
    verify(folder / file, expected)
    return True


def _fetch(folder: Path, file: str, url: str) -> bool:
    """Download `url`, decompressed, to `folder / file`; False if it is there already."""
    if _good(folder, file):
        return False
    with replacing(folder / file) as part:
        try:
            with urllib.request.urlopen(url, timeout=60) as answer, part.open("wb") as out:
                packed, length = url.endswith(".gz"), answer.headers.get("Content-Length")
                content = gzip.GzipFile(fileobj=answer) if packed else answer
                shutil.copyfileobj(content, out, 1 << 20)
                if length and not packed and out.tell() != int(length):
                    raise EOFError(f"only {out.tell()} of {length} bytes came")
        except (OSError, EOFError, HTTPException, zlib.error) as error:
            cure = f"check the network, or put {folder / file} there by hand"
            raise ConnectionError(f"{url}: {error}; {cure}") from error
        _check(folder, file, part, url)
    _record(folder, file)
    return True


def _check(folder: Path, file: str, part: Path, source: str) -> None:
    """Raises ValueError unless `part`, the new `file`, has the checksum known of it, if any is."""
    found, expected = checksum(part), expected_checksum(folder, file)
    if expected and found != expected:
        line = f"remove its line in {folder / 'SHA256SUMS'} to take the new one"
        cure = f"nothing was kept: {line if file in recorded(folder) else 'try again'}"
        raise ValueError(f"{file} from {source}: sha256 = {found} must be {expected}; {cure}")


def _record(folder: Path, file: str) -> None:
    sums = sorted((recorded(folder) | {file: checksum(folder / file)}).items())
    write_whole(folder / "SHA256SUMS", "".join(f"{value}  {name}\n" for name, value in sums))


def _json_lines(path: Path) -> Texts:
    with path.open() as f:
        for n, line in enumerate(f, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}, row {n}: {line[:60]!r} must be JSON: {error}") from None


def _field(name: str, row: int, fields: Mapping[str, Any], key: str) -> Any:
    found = fields.get(key)
    require(bool(found), f"{name}, row {row}, {key}", found, "there and not empty")
    return found


def lengths_of(name: str, rows: Texts) -> list[Lengths]:
    """Token counts of texts, for each file in `DERIVED`; a list of texts counts by its first."""
    if name == "toolbench":
        return _toolbench(name, rows)
    table: Lengths = [list(TEXTS[name])]
    for n, row in enumerate(rows, start=1):
        texts = [_field(name, n, row, key) for key in TEXTS[name].values()]
        table.append([estimate_tokens(t if isinstance(t, str) else t[0]) for t in texts])
    return [table]


def _toolbench(name: str, rows: Texts) -> list[Lengths]:
    """Rounds and calls of conversations: all before the model's first word is the first prompt."""
    rounds: Lengths = [ROUNDS]
    calls: Lengths = [CALLS]
    for n, row in enumerate(rows, start=1):
        talk = _field(name, n, row, "conversations")
        turns = [(_field(name, n, t, "from"), str(t.get("value") or "")) for t in talk]
        spoken = [i for i, (who, _) in enumerate(turns) if who == "assistant"]
        here, good = f"{name}, row {n}, conversations", bool(spoken) and spoken[0] > 0
        require(good, here, [who for who, _ in turns], "a prompt, then answers")
        sizes = [estimate_tokens(text) if text else 0 for _, text in turns]
        answered = "Finish" in turns[spoken[-1]][1]
        first = tokens(Path(name), n, "prompt", str(sum(sizes[: spoken[0]])))
        rounds.append([first, len(spoken), sizes[spoken[-1]] if answered else 0])
        for before, at in pairwise(spoken):
            if (new := sum(sizes[before + 1 : at])) and sizes[at]:
                calls.append([new, sizes[at]])
    return [rounds, calls]
