"""How much load can this hardware carry under these objectives, and which scheduler carries most?
All simulated.

The best setting of every system counts: token budget, and draft length if there are drafts (ours
picks its own). Before several replicas the baselines have least-loaded routing, ours its own.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace
from math import ceil, nan
from pathlib import Path

import pandas as pd

from slos.core.attainment import attainment
from slos.core.types import Request, require
from slos.evaluation.capacity_search import NoCapacity, Probe, Search, scaled_slos, search, serve
from slos.evaluation.grids import (
    BASELINE,
    BEST_ROUTER,
    RIVAL_ROUTER,
    SETTINGS,
    fixed_drafts,
    typical,
)
from slos.evaluation.stats import capacities, interval, rows_of
from slos.files import Frame, commit, results_dir, write_whole
from slos.policies import OURS, POLICIES
from slos.records.sweep import sweep
from workloads import SCENARIOS, build

LATENCIES = ["accepted_ttft_p99", "accepted_tpot_p99", "declined", "declined_ttft_p50"]
BOUNDS = {
    "replicas": (1, 1000), "drafts": (0, 100), "acceptance": (0, 1), "slo_scale": (0.01, 100),
    "target": (0.01, 1), "rate": (0.001, 1e6), "num_requests": (1, 1e6), "seeds": (1, 100),
}  # fmt: skip


def alone(case: Search, requests: Sequence[Request]) -> float:
    """The share that meets all objectives where each request has a replica to itself, at least if
    it is the target."""
    spread, hardware = [replace(r, arrival=1e6 * i) for i, r in enumerate(requests)], case.hardware
    share = 0.0
    plain = [replace(case, system=name) for name in (BASELINE, OURS)]
    for c in [*plain, *(fixed_drafts(plain[0], case.max_drafts) if case.max_drafts else ())]:
        world = {"max_drafts": c.max_drafts, "acceptance": c.acceptance}
        share = max(share, attainment(serve(spread, c.system, hardware, c.setting, **world)))
        if share >= case.target:
            break
    return share


def tried(case: Search) -> list[Probe]:
    """Every load of a search; none where no load attains the target."""
    try:
        return search(case)
    except NoCapacity:
        return []


def carried(cases: Sequence[Search], seeds: int) -> list[Probe]:
    """The capacities, seed by seed, of those cases that have one for every seed."""
    runs = [replace(case, seed=seed) for case in cases for seed in range(seeds)]
    rows = [
        row for row in sweep(tried, runs, results_dir("ask") / "probes.csv", Probe) if row.capacity
    ]
    found = Counter((row.system, row.setting) for row in rows)
    return [row for row in rows if found[row.system, row.setting] == seeds]


def answer(case: Search, systems: Collection[str], seeds: int, rate: float = 0.0) -> Frame:
    """A row per system, the strongest first; without those that attain the target at no load for
    some seed.

    case: of any system. Draft lengths are tried at the setting that is best with a typical one.
    capacity, low, high: requests per second and GPU, with the interval over seeds; each: of the
    seeds. LATENCIES of `Probe`: at that load, mean over seeds. to_ours: over ours, NaN where that
    has no row. needed: replicas for `rate` requests per second, estimated from the capacity per
    GPU.
    """
    routers = {
        name: BEST_ROUTER if name == OURS else RIVAL_ROUTER for name in systems if case.replicas > 1
    }
    settings = [(name, setting) for name in systems for setting in SETTINGS.get(name, ("",))]
    cases = [
        replace(case, system=name, setting=text, router=routers.get(name, ""))
        for name, text in settings
    ]
    rows = carried(cases, seeds)
    if case.max_drafts:
        able = [c for c in cases if hasattr(POLICIES[c.system], "drafts")]
        drafting = {
            typical(tries): tries
            for tries in ([c, *fixed_drafts(c, case.max_drafts)] for c in able)
        }
        found = carried([*drafting], seeds)
        best = dict(capacities(pd.DataFrame(found))[["system", "setting"]].values) if found else {}
        others = [
            d
            for c in drafting
            if best.get(c.system) == c.setting
            for d in drafting[c][1:]
            if d != c
        ]
        rows += [*found, *carried(others, seeds)]
    if not rows:
        return pd.DataFrame(columns=["system", "capacity"])
    at = pd.DataFrame(rows)
    latencies = at.groupby(["system", "setting"], as_index=False)[LATENCIES].mean()
    best = (
        capacities(at)
        .sort_values("capacity", ascending=False)
        .merge(latencies, on=["system", "setting"])
    )
    best = best.rename(columns={"rate": "each"}).assign(
        gpus=case.gpus, replicas=case.replicas, commit=commit()
    )
    best["needed"] = [ceil(rate * case.replicas / (c * case.gpus)) for c in best["capacity"]]
    ours = dict(zip(best["system"], best["capacity"], strict=True)).get(OURS, nan)
    return best.assign(
        to_ours=best["capacity"] / ours, slo_scale=case.slo_scale, target=case.target
    )


def objectives(requests: Sequence[Request]) -> str:
    """A line for each kind of request: what is asked of its first tokens and of its pace."""

    def among(values: Sequence[float | None], unit: str) -> str:
        given = [v for v in values if v]
        return (
            " to ".join(dict.fromkeys(f"{f(given):g}" for f in (min, max))) + unit if given else ""
        )

    lines = []
    for kind in sorted({r.kind for r in requests}):
        slos = {s.slo for r in requests if r.kind == kind for s in r.stages}
        first = (
            among([s.ttft for s in slos], " s"),
            among([s.slowdown for s in slos], " times its zero-load time"),
        )
        share = sum(r.kind == kind for r in requests) / len(requests)
        lines.append(
            f"  {kind} ({share:.0%}): first token within {' or '.join(filter(None, first))}"
        )
        lines[-1] += f", then {among([1e3 * s.tpot for s in slos], ' ms')} a token"
    return "\n".join(lines)


def table(best: Frame, rate: float = 0.0) -> str:
    """The rows for a terminal, with the replicas needed if a rate was asked for."""

    def seconds(column: str) -> Frame:
        return best[column].map("{:.2f} s".format).where(best[column].notna(), "-")

    whole = best[["capacity", "low", "high"]].mul(best["gpus"], axis=0).map("{:.2f}".format)
    shown = {
        "system": best["system"], "best setting": best["setting"].replace("", "-"),
        "requests/s": whole["capacity"],
        "95 % interval": (
            whole["low"] + " to " + whole["high"]
        ).where(best["seeds"] > 1, "one seed"),
        "P99 TTFT": seconds("accepted_ttft_p99"),
        "P99 TPOT": (1e3 * best["accepted_tpot_p99"]).map("{:.0f} ms".format),
        "declined": best["declined"].map("{:.0%}".format),
        "their P50 TTFT": seconds("declined_ttft_p50"),
        "to ours": best["to_ours"].map("{:.2f}x".format).replace("nanx", "-"),
    } | ({f"for {rate:g}/s": best["needed"]} if rate else {})  # fmt: skip
    return pd.DataFrame(shown).to_string(index=False)


def in_words(best: Frame, rate: float = 0.0) -> str:
    """The answer in a sentence or two."""
    if best.empty:
        return "No load can be carried: the objectives are too tight for this hardware."
    first, *others = rows_of(best)
    text = (
        f"{first.system} carries most: {first.capacity * first.gpus:.2f} requests per second on "
        f"{first.gpus} GPU(s)"
    )
    if others:
        ratio, low, high = interval(
            [a / b for a, b in zip(first.each, others[0].each, strict=True)]
        )
        spread = f" [{low:.2f}, {high:.2f}]" if first.seeds > 1 else ""
        text += f", {ratio:.2f}x{spread} what {others[0].system} carries, the next"
        text += "; these seeds cannot tell the two apart" if low <= 1 <= high else ""
    return text + (
        f". For {rate:g} it takes about {first.needed} replica(s): try that as --replicas."
        if rate
        else "."
    )


def posed(case: Search, seeds: int) -> tuple[str, float]:
    """The question in words, and for how many seconds a request may be in service on the average.

    Raises ValueError where a request does not fit the hardware, or where the target is out of reach
    at any load.
    """
    hardware = case.hardware
    made = [build(case.scenario, 1.0, case.num_requests, seed) for seed in range(seeds)]
    requests = [r for workload in made for r in scaled_slos(workload.requests, case.slo_scale)]
    longest = max(requests, key=lambda r: r.context)
    most = min(hardware.max_context, hardware.kv_blocks * hardware.block_size - case.max_drafts)
    require(
        longest.context <= most, f"longest request of {longest.kind}", longest.context,
        f"at most {most} tokens on {hardware.name}",
        "leave such requests out, or name another --profile",
    )  # fmt: skip
    share, step = alone(case, requests[: case.num_requests]), 1e3 * hardware.roofline.time(1)
    require(
        share >= case.target, "share of requests that meet their objectives alone", round(share, 3),
        f"at least {case.target:g} on {hardware.name}, where a step takes {step:.0f} ms",
        "loosen them (--slo-scale)",
    )  # fmt: skip
    zero_load = hardware.roofline.time
    lasts = [
        s.slo.first_token(zero_load(s.prompt)) + s.output * s.slo.tpot
        for r in requests
        for s in r.stages
    ]
    name = made[0].origins[0] if case.scenario.endswith(".csv") else made[0].scenario
    where = f"{case.replicas} replica(s) of {hardware.model} on {hardware.gpus} {hardware.gpu}"
    drafts = (
        f", at most {case.max_drafts} drafts accepted at {case.acceptance:g}"
        if case.max_drafts
        else ""
    )
    lines = [
        f"Workload: {name} ({made[0].source}), {seeds} seed(s) of {case.num_requests} requests",
        objectives(requests),
        f"Hardware: {where}{drafts}, simulated",
        f"Capacity: {case.target:.0%} of the requests meet every objective; P99 of those not "
        "declined",
    ]
    return "\n".join(lines), sum(lasts) / len(requests)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer; returns 0, or 2 after a message where the question is wrong."""
    parser = argparse.ArgumentParser(prog="python -m slos.studies.your_own", description=__doc__)
    what, add = parser.add_mutually_exclusive_group(), parser.add_argument
    what.add_argument(
        "--mix",
        default="mixed",
        metavar="NAME=SHARE,...",
        help=f"of {', '.join(SCENARIOS)} (mixed)",
    )
    what.add_argument(
        "--requests", default="", metavar="FILE.csv", help="your own requests, see workloads/own.py"
    )
    add(
        "--profile",
        default="",
        help="of slos/hardware/profiles.json, or a JSON file with such an entry (the scenarios' "
        "own)",
    )
    add("--replicas", type=int, default=1, metavar="N")
    add(
        "--drafts",
        type=int,
        default=0,
        metavar="N",
        help="longest draft, if the profile has a draft model (0: none)",
    )
    add(
        "--acceptance",
        type=float,
        default=0.7,
        metavar="P",
        help="the chance of each draft token (0.7)",
    )
    add(
        "--slo-scale",
        type=float,
        default=1.0,
        metavar="X",
        help="makes all objectives so many times as long (1)",
    )
    add(
        "--target",
        type=float,
        default=0.9,
        metavar="SHARE",
        help="of requests that meet all objectives (0.9)",
    )
    add("--systems", nargs="+", default=list(POLICIES), choices=POLICIES, help="(all)")
    add("--rate", type=float, metavar="R", help="how many replicas for R requests/s?")
    add(
        "--num-requests",
        type=int,
        default=600,
        metavar="N",
        help="per replica and simulation (600)",
    )
    add("--seeds", type=int, default=3, metavar="N", help="runs of every load (3)")
    add("--csv", type=Path, metavar="FILE", help="write the rows there, too")
    ask = parser.parse_args(argv)
    try:
        for name, (low, high) in BOUNDS.items():
            value = vars(ask)[name]
            good = value is None or low <= value <= high
            require(good, f"--{name.replace('_', '-')}", value, f"of {low:g} to {high:g}")
        require(
            ask.requests.endswith(".csv") or not ask.requests,
            "--requests",
            ask.requests,
            "a .csv file",
        )
        require(not (ask.csv and ask.csv.is_dir()), "--csv", str(ask.csv), "a file, not a folder")
        case = Search(
            ask.requests or ask.mix, "", profile=ask.profile,
            num_requests=ask.num_requests * ask.replicas, target=ask.target, replicas=ask.replicas,
            max_drafts=ask.drafts, acceptance=ask.acceptance, slo_scale=ask.slo_scale,
        )  # fmt: skip
        question, lasts = posed(case, ask.seeds)
        print(question, flush=True)
        best = answer(case, dict.fromkeys(ask.systems).keys(), ask.seeds, ask.rate or 0.0)
        absent = [
            f"{name}: not attained, at any load\n" for name in {*ask.systems} - {*best["system"]}
        ]
        print(
            f"\n{'' if best.empty else table(best, ask.rate)}\n{''.join(sorted(absent))}\n"
            f"{in_words(best, ask.rate)}"
        )
        if case.num_requests < 3 * (at_once := case.gpus * best["capacity"].max() * lasts):
            print(
                f"Too short to trust: {at_once:.0f} requests may be in service at once; take more "
                "--num-requests."
            )
        if ask.csv:
            write_whole(ask.csv, best.to_csv(index=False))
    except (ValueError, OSError) as error:
        print(f"slos.studies.your_own: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("slos.studies.your_own: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
