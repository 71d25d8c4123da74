"""Requests of one's own, in a layout in which traces are published, made ready for a simulation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

from slos.core.types import require
from slos.files import results_dir
from slos.hardware.profiles import Profile, profile
from workloads import published


@dataclass(frozen=True, slots=True)
class Mine:
    """Requests of one's own, in any layout of `workloads.published`: a file ("" for a mix),
    objectives for those that have none (seconds; 0: none), and the most tokens of one (0: what the
    hardware takes)."""

    path: str
    profile: str = ""
    tpot: float = 0.0
    ttft: float = 0.0
    slowdown: float = 0.0
    max_context: int = 0
    drafts: int = 0
    prefix_cache: bool = False

    def __post_init__(self) -> None:
        require(isinstance(self.path, str), "requests", self.path, "the name of a file")

    def workload(self, mix: str = "") -> tuple[str, str]:
        """The same as a CSV that can be simulated, and what there is to say: where arrivals come
        from, what was passed over, what was left out. Without a file, the `mix`. Raises ValueError
        as `published.read`, and for objectives of a mix."""
        asked = {"tpot": self.tpot, "ttft": self.ttft, "slowdown": self.slowdown}
        for name, value in asked.items() if not self.path else ():
            cure = "a mix has its own objectives, slo_scale changes them"
            require(not value, name, value, "of a file of requests", cure)
        if not self.path:
            return mix, ""
        limit, path = self.max_context, Path(self.path)
        if self.profile and not limit:
            limit = most_tokens(profile(self.profile), self.drafts)
        objectives = published.Objectives(
            self.tpot or None, self.ttft or None, self.slowdown or None
        )
        left_out = 1.0 if self.max_context else published.TOO_MANY
        table = published.read(path, objectives, limit or None, left_out)
        key = crc32(repr((path.resolve(), self)).encode())
        out = results_dir("ask") / f"requests-{key:08x}" / f"{path.name.split('.')[0]}.csv"
        unused = [n for n, x in asked.items() if x and all(r.get(n) != x for r in table.rows)]
        own = f"passed over: {', '.join(unused)} given, since the file has its own"
        anew = "what prompts share is computed anew, unless prefix_cache is given"
        alone = "prompts share nothing that prefix_cache could keep: no session, no hash_ids"
        shared = "prefix" in table.columns
        said = [*table.remarks, *([own] if unused else ())]
        if shared != self.prefix_cache:
            said.append(anew if shared else alone)
        return str(published.write(table, out)), "; ".join(said)


def most_tokens(hardware: Profile, drafts: int = 0) -> int:
    """Tokens that the longest request may have."""
    return min(hardware.max_context, hardware.kv_blocks * hardware.block_size - drafts)
