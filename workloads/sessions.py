"""Conversations: rounds whose prompts begin with all that was said; and requests drawn of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

OPEN = 100  # sessions under way at once, where a file has no arrivals: our choice
BLOCKS = (512, *(2**k for k in range(3, 12)))  # tokens of a hash: Mooncake's, then others
Cells = dict[str, Any]


def grow(rows: Sequence[Cells]) -> str:
    """Give every row, in order of arrival, its whole prompt and whose content that begins with
    (`prefix`); returns what the file was taken to mean.

    A prompt counts all that the model was sent, or only what a round adds to its session; the file
    is taken for the latter if most later rounds are shorter than what was said before them.
    """
    rows = [row for row in rows if row["session"]]  # others are alone
    before: dict[str, int] = {}
    later = shorter = 0
    for row in rows:
        said = before.get(row["session"])
        later, shorter = later + (said is not None), shorter + (row["prompt"] < (said or 0))
        before[row["session"]] = row["prompt"] + row["output"]
    adds = 2 * shorter > later
    context: dict[str, tuple[int, int]] = {}  # of each session: tokens, and its new beginnings
    for row in rows:
        said, fresh = context.get(row["session"], (0, 0))
        if adds:
            row["prompt"] += said
        elif row["prompt"] < said:  # the client cut the beginning off
            fresh += 1
        whole = row["prompt"] + row["output"]
        context[row["session"]] = whole, fresh
        row["prefix"] = json.dumps([[f"{row['session']}.{fresh}", whole]])
    how = "adds to its session" if adds else "is sent, its session included"
    return f"{len(before)} sessions, prompt is what a round {how}"


def hashed(rows: Sequence[Cells]) -> str:
    """Give every row the `prefix` that its `hash_ids` tell; returns what there is to say."""
    rows = [row for row in rows if row["hash_ids"]]  # others are alone
    ids = [json.loads(row["hash_ids"]) for row in rows]
    counted = [(row["prompt"], len(each)) for row, each in zip(rows, ids, strict=True)]
    fits = (b for b in BLOCKS if all(-(-prompt // b) == n for prompt, n in counted))
    size = next(fits, 0)
    for row, each in zip(rows, ids, strict=True) if size else ():
        last = row["prompt"] - size * (len(each) - 1)
        row["prefix"] = json.dumps([[h, size] for h in each[:-1]] + [[each[-1], last]])
    return f"hash_ids taken for blocks of {size} tokens" if size else "hash_ids fit no block: left"


def laps(which: np.ndarray) -> np.ndarray:
    """How often a ring of requests has begun anew before each, int64 [n]: then content differs."""
    return np.cumsum(np.diff(which, prepend=which[:1]) < 0)


def drawn(
    rng: np.random.Generator, sessions: Sequence[str], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """n of the rows of `sessions`, and a number of each one's session, int64 [n] both: of `OPEN`
    sessions at random the next round, and another session where one ends."""
    rounds: dict[str, list[int]] = {}
    for i, name in enumerate(sessions):
        rounds.setdefault(name or f"alone {i}", []).append(i)
    names, found = list(rounds), []
    first = rng.permutation(len(names))[:OPEN]
    under_way = [[names[k], int(rng.integers(len(rounds[names[k]]))), 0] for k in first]
    for number in range(1, n + 1):
        at = under_way[rng.integers(len(under_way))]
        name, turn, lap = at
        found.append((rounds[name][turn], lap))
        more = turn + 1 < len(rounds[name])
        at[:] = [name, turn + 1, lap] if more else [names[rng.integers(len(names))], 0, number]
    which, numbers = np.array(found, dtype=np.int64).T
    return which, numbers
