"""What an engine tells its router: its load, and what it believes of its hardware."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from slos.core.roofline import Roofline
from slos.files import write_whole
from slos.hardware.profiles import as_json, of_json
from slos.policies.routers import Load
from slos.serving.tracked import Tracked

EVERY = 0.01  # seconds between two reports


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
            claimed += -(-t.claim // block_size)
            left = p.left if p.left > 1 or not p.computed else 0
            prefill += left
            tiers[p.tpot] += not left
    decodes = tuple(sorted((tpot, n) for tpot, n in tiers.items() if n))
    blocks = free_blocks, total_blocks, block_size
    return Load("", step_end, count - running, running, *blocks, prefill, decodes, claimed)


class Reporter:
    """Keeps the report of an engine in a file for its router, if `path` names one."""

    def __init__(self, path: str) -> None:
        self.path = Path(path) if path else None
        self.last = 0.0

    def tell(self, now: float, busy: bool, report: Callable[[], Report]) -> None:
        """Write it, every `EVERY` seconds while requests keep the engine `busy`, and at their
        end."""
        if not self.path or (busy and 0 <= now - self.last < EVERY):  # a clock may be set back
            return
        self.last = now
        if self.path.exists():
            os.utime(self.path)  # a sign of life, even where the disk is full
        report().write(self.path)
