"""Which scheduler carries most, and how much? `notebooks/11_your_own.ipynb` as a command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from slos.core.types import require
from slos.files import write_whole
from slos.policies import POLICIES
from slos.studies.your_own import Question, answer, described, in_words, table
from workloads import SCENARIOS

HELP = {
    "profile": "of slos/hardware/profiles.json, or such a file (the scenarios' own)",
    "replicas": "behind one router",
    "drafts": "longest draft, if the profile has a draft model",
    "acceptance": "the chance of each draft token",
    "slo_scale": "makes all objectives so many times as long",
    "target": "share of requests that meet all objectives",
    "rate": "how many replicas for so many requests per second?",
    "num_requests": "per replica and simulation",
    "seeds": "runs of every load",
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.ask", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    mix = f"NAME=SHARE,... of {', '.join(SCENARIOS)} (mixed)"
    what.add_argument("--mix", default="mixed", help=mix)
    what.add_argument("--requests", default="", help="your own, a CSV: see workloads/own.py")
    for f in fields(Question):
        if f.name in HELP:
            name = f"--{f.name.replace('_', '-')}"
            text = HELP[f.name] + f" ({f.default})" * bool(f.default)
            parser.add_argument(name, type=type(f.default), default=f.default, help=text)
    parser.add_argument("--systems", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows there, too")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer; returns 0, or 2 after a message where the question is wrong."""
    given = options().parse_args(argv)
    mine, out = given.requests, given.csv
    try:
        require(mine.endswith(".csv") or not mine, "requests", mine, "a .csv file")
        require(not (out and out.is_dir()), "csv", str(out), "a file, not a folder")
        rest = {name: getattr(given, name) for name in (*HELP, "systems")}
        asked = Question(mine or given.mix, **rest)
        print(described(asked), flush=True)
        best = answer(asked, "ask")
        print(f"\n{table(best, asked.rate).to_string(index=False)}\n\n{in_words(best, asked)}")
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
