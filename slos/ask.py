"""Which scheduler carries most load, and how much? `notebooks/11_your_own.ipynb` as a command."""

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
from workloads import SCENARIOS

HELP = {
    "profile": "a name of slos.profiles(), or a JSON file (the scenarios' own)",
    "replicas": "number of replicas, behind one router",
    "drafts": "longest draft, in tokens, if the profile has a draft model",
    "acceptance": "probability that a draft token is accepted",
    "slo_scale": "factor on all objectives: 2 makes them twice as long",
    "target": "share of requests that meet all objectives",
    "rate": "requests per second: how many replicas do they need?",
    "num_requests": "requests per replica and simulation (0: as many as a sound answer needs)",
    "seeds": "number of runs at every load",
    "rule": "rule of pace: client, mean time per token after the first; paper, token by token from "
    "the deadline of the first",
    "max_context": "leave out requests with more tokens (what the profile allows)",
    "prefix_cache": "simulate a prefix cache: prompts share rounds of a session, or hash_ids",
    "asynchronous": "decide on a step while the one before it runs, as vLLM does today",
}

OWN = {
    "tpot": "objective for --requests without one: seconds per token",
    "ttft": "and seconds to the first token",
    "slowdown": "or a multiple of the prompt's time on an idle GPU",
}


def options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m slos.ask", description=__doc__)
    what = parser.add_mutually_exclusive_group()
    mix = f"scenarios and their shares, NAME=SHARE,... of {', '.join(SCENARIOS)} (mixed)"
    what.add_argument("--mix", default="mixed", help=mix)
    layouts = "your own requests, in a layout of workloads/published.py: CSV, Azure, ..."
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
    systems = f"schedulers to compare ({' '.join(ordinary())})"
    parser.add_argument("--systems", nargs="+", default=ordinary(), choices=POLICIES, help=systems)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows to this file")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer; returns 0, or 2 after a message where the question is wrong."""
    given = options().parse_args(argv)
    out = given.csv
    try:
        require(not (out and out.is_dir()), "csv", str(out), "a file, not a folder")
        more = {name: getattr(given, name) for name in (*HELP, *OWN, "systems")}
        asked, said = your_own.question(given.mix, given.requests, **more)
        asked = your_own.settled(asked, "ask")
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
