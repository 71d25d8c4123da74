"""Which scheduler carries most, and how much? `notebooks/11_your_own.ipynb` as a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from slos.core.pace import RULES
from slos.core.types import require
from slos.files import write_whole
from slos.policies import POLICIES, ordinary
from slos.studies import your_own
from slos.studies.own_requests import Mine
from workloads import SCENARIOS

HELP = {
    "profile": "of slos/hardware/profiles.json, or such a file (the scenarios' own)",
    "replicas": "behind one router",
    "drafts": "longest draft, if the profile has a draft model",
    "acceptance": "the chance of each draft token",
    "slo_scale": "makes all objectives so many times as long",
    "target": "share of requests that meet all objectives",
    "rate": "how many replicas for so many requests per second?",
    "num_requests": "per replica and simulation (0: as many as the answer can be trusted with)",
    "seeds": "runs of every load",
    "rule": "of pace: client, mean time per token after the first one; paper, token by token from "
    "the first one's deadline",
    "max_context": "leave out longer requests (what the profile takes)",
    "prefix_cache": "find again what prompts share: rounds of sessions, hash_ids",
}

OWN = {
    "tpot": "objective of --requests that have none: seconds per token",
    "ttft": "and seconds to the first token",
    "slowdown": "or times the zero-load time of the prompt",
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.ask", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    mix = f"NAME=SHARE,... of {', '.join(SCENARIOS)} (mixed)"
    what.add_argument("--mix", default="mixed", help=mix)
    layouts = "your own, in a layout of workloads/published.py: CSV, Azure, BurstGPT, Mooncake, ..."
    what.add_argument("--requests", default="", metavar="FILE", help=layouts)
    for name, text in OWN.items():
        parser.add_argument(f"--{name}", type=float, default=0, help=text)
    for f in fields(your_own.Question):
        if f.name in HELP:
            text = HELP[f.name] + f" ({f.default})" * bool(f.default)
            how: dict[str, Any] = {"type": type(f.default), "default": f.default}
            how |= {"choices": RULES} if f.name == "rule" else {}
            how = {"action": "store_true"} if isinstance(f.default, bool) else how
            parser.add_argument(f"--{f.name.replace('_', '-')}", help=text, **how)
    parser.add_argument("--systems", nargs="+", default=ordinary(), choices=POLICIES)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer; returns 0, or 2 after a message where the question is wrong."""
    given = options().parse_args(argv)
    mine, out = given.requests, given.csv
    try:
        require(not (out and out.is_dir()), "csv", str(out), "a file, not a folder")
        rest = {name: getattr(given, name) for name in (*HELP, "systems")}
        work, said = given.mix, ""
        if mine:
            names = [f.name for f in fields(Mine) if f.name != "path"]
            work, said = Mine(mine, **{n: getattr(given, n) for n in names}).workload()
        for name in () if mine else OWN:
            cure = "a mix has its own objectives, slo_scale changes them"
            require(not getattr(given, name), name, getattr(given, name), "of --requests", cure)
        asked = your_own.settled(your_own.Question(work, **rest), "ask")
        print(your_own.described(asked) + f"\nRequests: {said}" * bool(said), flush=True)
        best = your_own.answer(asked, "ask")
        shown = your_own.table(best, asked.rate).to_string(index=False)
        doubt = f"{your_own.caution(best, asked)}\n".lstrip("\n")
        kinds = your_own.by_kind(best, asked)
        parts = "" if kinds.empty else f"\n{kinds.to_string(index=False)}\n"
        print(f"\n{doubt}{shown}\n{parts}\n{your_own.in_words(best, asked)}")
        if out:
            write_whole(out, best.to_csv(index=False))
    except (ValueError, OSError) as error:
        print(f"slos.ask: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("slos.ask: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
