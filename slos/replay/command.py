"""The command: replays a scenario, or a file of requests, against a server."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from slos.core.pace import CLIENT, RULES
from slos.core.types import Request, Stage, require
from slos.files import write_whole
from slos.hardware.profiles import profile
from slos.replay.client import find
from slos.replay.replay import run
from slos.replay.results import Labels, good, limits_of, rows, table
from workloads import SCENARIOS, build, own, published
from workloads.scenarios import by_name

RATE = 1.0  # requests per second, where neither the options nor a file say
OPTIONS = (  # name, type, metavar, default, help
    ("url", str, "URL", "http://127.0.0.1:8000", "address of the server (%(default)s)"),
    ("model", str, "NAME", None, "a model of the server (its first)"),
    ("scenario", str, "NAME", "chatbot", f"one of {', '.join(SCENARIOS)}, or a file of requests"),
    ("requests", str, "N|FILE", "", "how many (100, or all of a file); or a file of requests, in a "
     "layout of workloads/published.py: CSV, Azure, BurstGPT, Mooncake, ShareGPT"),
    ("num-requests", int, "N", None, "how many, where --requests is a file"),
    ("rate", float, "R", None, "requests per second (1; a file with arrivals sets its own times)"),
    ("seed", int, "N", 0, "seed of requests and prompts (%(default)s)"),
    ("lengths", str, "NAME", "dataset", "lengths from the dataset or the trace (%(default)s)"),
    ("max-context", int, "N", None, "tokens of a request (what the server allows); longer ones are "
     "left out"),
    ("ttft", float, "S", None, "TTFT objective in seconds, instead of the requests' own"),
    ("tpot", float, "S", None, "TPOT objective in seconds, instead of the requests' own"),
    ("e2e", float, "S", None, "objective for the last token in seconds, in addition"),
    ("slowdown", float, "X", None, "TTFT objective for a file without one: a multiple of the "
     "prompt's time on an idle GPU; needs --profile"),
    ("profile", str, "NAME", None, "the server's hardware, for TTFT objectives by slowdown"),
    ("timeout", float, "S", 600.0, "seconds that a call may take (%(default)g)"),
    ("vocabulary", int, "N", 500, "token ids are below this (%(default)s)"),
    ("system", str, "NAME", "server", "name of the server in the rows (%(default)s)"),
    ("output", str, "CSV", None, "write a row per request to this file"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """Requests to be replayed, the name of what they are, where they come from, and what there is
    to say of them. rate: in requests per second."""

    requests: Sequence[Request]
    name: str
    source: str
    rate: float
    said: str


def with_objectives(request: Request, ttft: float | None, tpot: float | None, rule: str) -> Request:
    """The same request with these objectives, in seconds, where not None, and rule of pace."""

    def change(stage: Stage) -> Stage:
        slo = stage.slo if tpot is None else replace(stage.slo, tpot=tpot)
        if ttft is not None and not stage.goes_on:
            slo = replace(slo, ttft=ttft, slowdown=None)
        return replace(stage, slo=replace(slo, rule=rule))

    return replace(request, stages=tuple(map(change, request.stages)))


def in_seconds(given: argparse.Namespace, where: str, slowdown: object) -> None:
    """Refuse an objective by slowdown where the server's zero-load times are not known."""
    known, bound = given.profile is not None, "in seconds where no hardware is given"
    cure = "give --ttft, or the server's hardware by --profile"
    require(not slowdown or known, f"{where}: slowdown", slowdown, bound, cure)


def of_file(path: Path, given: argparse.Namespace, limit: int | None) -> Asked:
    """Requests of a file at their own times, or at the rate that is given."""
    number = given.num_requests
    with TemporaryDirectory() as folder:
        objectives = published.Objectives(given.tpot, given.ttft, given.slowdown)
        left_out = 1.0 if given.max_context else published.TOO_MANY
        read = published.read(path, objectives, limit, left_out)
        for row in read.rows:
            slow = given.ttft is None and row.get("slowdown")
            in_seconds(given, f"{path}, row {row['row']}", slow)
        plain = published.write(read, Path(folder) / f"{path.name.split('.')[0]}.csv")
        if given.rate is None and "arrival" in read.columns:
            requests = own.as_they_are(plain, number)
        else:
            n = len(read.rows) if number is None else number
            rate = RATE if given.rate is None else given.rate
            requests = build(str(plain), rate, n, given.seed).requests
    rate = given.rate or len(requests) / (requests[-1].arrival or 1.0)
    return Asked(requests, path.name, "own requests", rate, "; ".join(read.remarks))


def of_scenario(given: argparse.Namespace, limit: int | None) -> Asked:
    number = 100 if given.num_requests is None else given.num_requests
    rate = RATE if given.rate is None else given.rate
    made = build(given.scenario, rate, number, given.seed, given.lengths, limit)
    return Asked(made.requests, made.scenario, made.source, rate, "")


def asked_of(given: argparse.Namespace, most: int | None) -> Asked:
    """The requests that the options name, none with more tokens than the server takes.

    Raises ValueError for what cannot be replayed, naming the request.
    """
    bound, cure = "of a file of requests", "a scenario has its own objectives, --ttft changes them"
    require(bool(given.file or not given.slowdown), "slowdown", given.slowdown, bound, cure)
    scenario = None if given.file else by_name(given.scenario)
    limits = (given.max_context, most, scenario and scenario.max_context)
    limit = min((n for n in limits if n), default=None)
    asked = of_scenario(given, limit) if scenario else of_file(given.file, given, limit)
    objectives = given.ttft, given.tpot, given.slo_rule
    requests = [with_objectives(r, *objectives) for r in asked.requests]
    for r in requests:
        in_seconds(given, asked.name, next(filter(None, (s.slo.slowdown for s in r.stages)), None))
    return replace(asked, requests=requests)


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """What was typed; `file` is the path of the requests, None for a scenario."""
    said = "Replay a workload against a server."
    parser = argparse.ArgumentParser(prog="python -m slos.replay", description=said)
    for name, kind, metavar, default, text in OPTIONS:
        how: Any = {"type": kind, "metavar": metavar, "default": default, "help": text}
        parser.add_argument(f"--{name}", **how)
    within = "count requests within ttft:500 tpot:50 e2el:5000, as `vllm bench serve` does"
    parser.add_argument("--goodput", nargs="*", default=[], metavar="NAME:MS", help=within)
    pace = "rule of pace to ask for and judge by (%(default)s: mean time per token after the first)"
    parser.add_argument("--slo-rule", default=CLIENT, choices=RULES, help=pace)
    nothing = "send no field that only vLLM knows, and so no objectives"
    parser.add_argument("--plain", action="store_true", help=nothing)
    given = parser.parse_args(argv)
    if given.requests.lstrip("-").isdigit():
        given.num_requests, given.requests = int(given.requests), ""
    if not given.requests and Path(given.scenario).suffix:
        given.requests = given.scenario
    given.file = Path(given.requests) if given.requests else None
    return given


def main(argv: Sequence[str] | None = None) -> int:
    """Replay and print; returns 0, 1 where all requests failed, 2 where what is asked is wrong."""
    given = options(argv)
    try:
        folder = bool(given.output) and Path(given.output).is_dir()
        require(not folder, "output", given.output, "a file, not a folder")
        roofline = profile(given.profile).roofline if given.profile else None
        limits = limits_of(given.goodput)
        asked_of(given, None)  # faults of the options are found without a server
        server = asyncio.run(find(given.url, given.model))
        asked = asked_of(given, server.max_context)
        span = max(r.arrival for r in asked.requests)
        many = f"{len(asked.requests)} requests in {span:.0f} s"
        head = f"{asked.name} ({asked.source}): {many} to {server.model} at {server.url}"
        print("\n".join(filter(None, [head, asked.said])), flush=True)
        how = {name: getattr(given, name) for name in ("seed", "vocabulary", "timeout", "e2e")}
        to = server.url, server.model, roofline
        replayed = run(asked.requests, *to, **how, vllm=not given.plain)
    except (ValueError, OSError) as error:
        print(f"replay: {error}", file=sys.stderr)
        return 2
    print(table(replayed, limits))
    if given.output:
        run_of = asked.name, given.system, server.model, asked.rate, given.seed, given.lengths
        labels = Labels(*run_of, source=asked.source)
        more = {"good": good(replayed, limits)} if limits else {}
        found = rows(labels, replayed).assign(**more)
        write_whole(Path(given.output), found.to_csv(index=False))
        print(f"{len(replayed.outcomes)} rows in {given.output}")
    return 0 if len(replayed.failures) < len(replayed.outcomes) else 1
