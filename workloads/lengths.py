"""Tables of lengths: rows of a real data set, or quantiles of one (*synthetic profile*)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import erf, sqrt
from pathlib import Path

import numpy as np

from workloads.files import ARXIV, SHAREGPT, locate, read_lengths, stamp


@dataclass(frozen=True, slots=True)
class Source:
    """A file that can fill a table: its columns, what its rows must match, and a remark."""

    file: str
    columns: tuple[str, ...]
    where: tuple[tuple[str, str], ...] = ()
    note: str = ""

    @property
    def origin(self) -> str:
        return f"{self.file} ({self.note})" if self.note else self.file


@dataclass(frozen=True, slots=True)
class Table:
    """A table's columns, the smallest value of each, and its files, the preferred first."""

    columns: tuple[str, ...]
    low: tuple[int, ...]
    sources: tuple[Source, ...]


ESTIMATED = "tokens estimated from the text"
STAND_IN = "a stand-in for s1K: another reasoner's answers to competition mathematics"
PAIR = ("prompt", "output")
VIDUR = ("num_prefill_tokens", "num_decode_tokens")
AZURE = ("ContextTokens", "GeneratedTokens")
COUNTED = ("prompt_tokens", "output_tokens")
THOUGHT = ("prompt_tokens", "thinking_tokens", "answer_tokens")
ROUNDS = ("prompt_tokens", "rounds", "answer_tokens")
CALLS = ("new_prompt_tokens", "output_tokens")
QUERIES = ("query_tokens+tools_json_tokens", "n_tool_messages", "final_answer_tokens")
LATER_CALLS = (("call", r"[2-9]|\d\d+"), ("new_prompt_tokens", r"(?!0$).*"))
FINISHED = (("model", r"Sky-T1-.*-32B.*"), ("thought_closed", "1"))
TABLES = {
    # Llama-2 tokens; the prompt holds the earlier turns of its conversation.
    "sharegpt": Table(PAIR, (1, 1), (Source(SHAREGPT, VIDUR),)),
    # The output is the canonical solution. cl100k tokens: a vocabulary made with code in mind, as
    # served models have; OPT's own spends more on indentation.
    "humaneval": Table(PAIR, (1, 1), (
        Source("coding/humaneval_lengths.csv", ("prompt_tokens_cl100k", "solution_tokens_cl100k")),
        Source("coding/humaneval_estimated.csv", COUNTED, note=ESTIMATED),
    )),
    "arxiv": Table(PAIR, (1, 1), (Source(ARXIV, VIDUR),)),
    # One row per query: first prompt (query and tool schemas), rounds, final answer (0: the agent
    # gave up).
    "toolbench-rounds": Table(("prompt", "rounds", "answer"), (1, 1, 0), (
        Source("toolcalling/toolbench_eval_rounds.csv", QUERIES),
        Source("toolcalling/toolbench_rounds_estimated.csv", ROUNDS, note=ESTIMATED),
    )),
    # One row per call after the first: the tool's response and what the model wrote next.
    "toolbench-calls": Table(PAIR, (1, 1), (
        Source("toolcalling/toolbench_example_calls.csv", CALLS, LATER_CALLS),
        Source("toolcalling/toolbench_calls_estimated.csv", CALLS, note=ESTIMATED),
    )),
    # Of the stand-in only answers that finished thinking.
    "s1k": Table(("prompt", "thinking", "response"), (1, 1, 1), (
        Source("reasoning/s1K_estimated.csv", THOUGHT, note=ESTIMATED),
        Source("reasoning/skythought_reasoning_lengths.csv", THOUGHT, FINISHED, STAND_IN),
    )),
}  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Real rows, int64 [rows, columns], drawn with replacement, so that correlations are kept."""

    origin: str
    data: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        """n rows as int64 [n, columns]."""
        return self.data[rng.integers(len(self.data), size=n)]


@dataclass(frozen=True, slots=True, eq=False)
class Quantiles:
    """Marginal quantiles joined by a Gaussian copula; drawn from as `Rows` are.

    probabilities: float64 [Q]; quantiles: float64 [columns, Q]; factor: lower Cholesky factor of
    the copula's correlation, float64 [columns, columns]; limit: most tokens of a row, if the rows
    behind it had such a limit.
    """

    origin: str
    probabilities: np.ndarray
    quantiles: np.ndarray
    factor: np.ndarray
    limit: int | None = None

    def draw(self, rng: np.random.Generator, n: int) -> np.ndarray:
        z = rng.standard_normal((max(n, 256), len(self.quantiles)))
        columns = []
        for row, values in zip(self.factor, self.quantiles, strict=True):
            u = [0.5 * (1 + erf(x / sqrt(2))) for x in (z * row).sum(axis=1)]
            columns.append(np.rint(np.interp(u, self.probabilities, values)))
        rows = np.stack(columns, axis=1).astype(np.int64)
        if self.limit is not None:
            self._exchange(rng, rows, self.limit)
        return rows[:n]

    @staticmethod
    def _exchange(rng: np.random.Generator, rows: np.ndarray, limit: int) -> None:
        """A row over the limit exchanges its prompt with another's where both then fit: dropping
        it would lose the longest outputs, and this way the marginals stay what they are."""
        for i in np.flatnonzero(rows.sum(axis=1) > limit):
            others = rng.permutation(len(rows))
            rest = rows[:, 1:].sum(axis=1)
            fits = (rows[others, 0] + rest[i] <= limit) & (rows[i, 0] + rest[others] <= limit)
            if fits.any():
                j = others[fits.argmax()]
                rows[[i, j], 0] = rows[[j, i], 0]
            else:  # only if hardly anything fits
                rows[i, 0] = max(1, limit - rest[i])


def load(name: str) -> Rows:
    """The table `name` from its file; FileNotFoundError without one, ValueError for a bad row."""
    files = [source.file for source in TABLES[name].sources]
    path = locate(files)
    if path is None:
        where = "neither in the data folder nor in the cache"
        raise FileNotFoundError(f"{' or '.join(files)}: {where}")
    return _load(name, path, stamp(path))


@cache
def _load(name: str, path: Path, _: tuple[int, int]) -> Rows:
    table, file = TABLES[name], path.name.removesuffix(".gz")
    source = next(s for s in table.sources if Path(s.file).name == file)
    return Rows(source.origin, read_lengths(path, source.columns, table.low, source.where))
