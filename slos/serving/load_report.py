"""What an engine tells its router: its load, and what it believes of its hardware."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from slos.core.roofline import Roofline
from slos.core.types import Load
from slos.files import write_whole
from slos.hardware.profiles import as_json, of_json
from slos.serving.tracked import Tracked


@dataclass(frozen=True, slots=True)
class Report:
    """An engine's load, when that was (seconds since the epoch), and what it believes."""

    load: Load
    at: float
    roofline: Roofline | None = None

    def write(self, path: Path) -> None:
        """As a JSON file: all of it or nothing."""
        roofline = self.roofline and as_json(self.roofline)
        raw = {"load": asdict(self.load), "at": self.at, "roofline": roofline}
        write_whole(path, json.dumps(raw))

    @classmethod
    def parse(cls, text: str) -> Report:
        raw = json.loads(text)
        load = raw["load"] | {"decodes": tuple(map(tuple, raw["load"]["decodes"]))}
        return cls(Load(**load), raw["at"], raw["roofline"] and of_json(raw["roofline"]))


def load_of(
    tracked: Iterable[Tracked], running: int, step_end: float, free_blocks: int, total_blocks: int,
    block_size: int,
) -> Load:  # fmt: skip
    """As `Replica.load` has it, of an engine whose steps in flight end, and count as done, then."""
    tiers: Counter[float] = Counter()
    count = prefill = claimed = 0
    for t in tracked:
        p, count = t.sync(), count + 1
        if not p.best_effort:
            claimed += t.claim
            left = p.left if p.left > 1 or not p.computed else 0
            prefill += left
            tiers[p.tpot] += not left
    decodes = tuple(sorted((tpot, n) for tpot, n in tiers.items() if n))
    blocks = free_blocks, total_blocks, block_size
    return Load("", step_end, count - running, running, *blocks, prefill, decodes, claimed)
