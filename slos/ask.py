"""How much load can this hardware carry under these objectives, and which scheduler carries most? All simulated.

The best setting of every system counts. Before several replicas the baselines have least-loaded routing, ours its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from math import ceil, nan
from pathlib import Path

import pandas as pd

from slos.evaluation.ablation import RIVAL_ROUTER
from slos.evaluation.compare import rows_of
from slos.evaluation.experiments import SETTINGS, capacities
from slos.evaluation.scaling import BEST_ROUTER
from slos.metrics import NoCapacity, interval
from slos.policies import POLICIES
from slos.report import OURS, Frame, results_dir, write_whole
from slos.search import Probe, Search, scaled_slos, search
from slos.sweep import commit, sweep
from slos.types import Request, require
from workloads import SCENARIOS, build


def tried(case: Search) -> list[Probe]:
    """Every load of a search; none where no load attains the target."""
    try:
        return search(case)
    except NoCapacity:
        return []


def answer(case: Search, systems: Collection[str], seeds: int, rate: float = 0.0) -> Frame:
    """A row per system, the strongest first; without those that attain the target at no load for some seed.

    case: of any system. capacity, low, high: requests per second and GPU, with the interval over seeds; each: of the
    seeds. ttft_p99, tpot_p99 (s), declined (share): at that load, mean over seeds. to_ours: over ours, NaN where that
    has no row. needed: replicas for `rate` requests per second, estimated from the capacity per GPU.
    """
    routers = {name: BEST_ROUTER if name == OURS else RIVAL_ROUTER for name in systems if case.replicas > 1}
    cases = [
        replace(case, system=name, setting=setting, router=routers.get(name, ""), seed=seed)
        for name, setting, seed in ((n, s, i) for n in systems for s in SETTINGS.get(n, ("",)) for i in range(seeds))
    ]
    rows = [row for row in sweep(tried, cases, results_dir("ask") / "probes.csv", Probe) if row.capacity]
    at = pd.DataFrame(rows, columns=[f.name for f in fields(Probe)])
    at = at[at.groupby(["system", "setting"])["seed"].transform("size") == seeds]
    if at.empty:
        return at
    latencies = at.groupby(["system", "setting"], as_index=False)[["ttft_p99", "tpot_p99", "declined"]].mean()
    best = capacities(at).sort_values("capacity", ascending=False).merge(latencies, on=["system", "setting"])
    best = best.rename(columns={"rate": "each"}).assign(gpus=case.gpus, replicas=case.replicas, commit=commit())
    best["needed"] = [ceil(rate * case.replicas / (c * case.gpus)) for c in best["capacity"]]
    ours = dict(zip(best["system"], best["capacity"], strict=True)).get(OURS, nan)
    return best.assign(to_ours=best["capacity"] / ours, slo_scale=case.slo_scale, target=case.target)


def objectives(requests: Sequence[Request]) -> str:
    """A line for each kind of request: what is asked of its first tokens and of its pace."""

    def among(values: Sequence[float | None], unit: str) -> str:
        given = [v for v in values if v]
        return " to ".join(dict.fromkeys(f"{f(given):g}" for f in (min, max))) + unit if given else ""

    lines = []
    for kind in sorted({r.kind for r in requests}):
        slos = {s.slo for r in requests if r.kind == kind for s in r.stages}
        first = among([s.ttft for s in slos], " s"), among([s.slowdown for s in slos], " times its zero-load time")
        lines.append(f"  {kind}: first token within {' or '.join(filter(None, first))}")
        lines[-1] += f", then {among([1e3 * s.tpot for s in slos], ' ms')} a token"
    return "\n".join(lines)


def table(best: Frame, rate: float = 0.0) -> str:
    """The rows for a terminal, with the replicas needed if a rate was asked for."""
    whole = best[["capacity", "low", "high"]].mul(best["gpus"], axis=0).map("{:.2f}".format)
    shown = {
        "system": best["system"], "best setting": best["setting"].replace("", "-"), "requests/s": whole["capacity"],
        "95 % interval": (whole["low"] + " to " + whole["high"]).where(best["seeds"] > 1, "one seed"),
        "per GPU": best["capacity"].map("{:.2f}".format), "P99 TTFT": best["ttft_p99"].map("{:.2f} s".format),
        "P99 TPOT": (1e3 * best["tpot_p99"]).map("{:.0f} ms".format), "declined": best["declined"].map("{:.0%}".format),
        "to ours": best["to_ours"].map("{:.2f}x".format),
    } | ({f"needed at {rate:g}/s": best["needed"]} if rate else {})  # fmt: skip
    return pd.DataFrame(shown).to_string(index=False)


def in_words(best: Frame, rate: float = 0.0) -> str:
    """The answer in a sentence or two."""
    if best.empty:
        return "No load can be carried: the objectives are too tight for this hardware."
    first, *others = rows_of(best)
    text = f"{first.system} carries most: {first.capacity * first.gpus:.2f} requests per second on {first.gpus} GPU(s)"
    if others:
        ratio, low, high = interval([a / b for a, b in zip(first.each, others[0].each, strict=True)])
        text += f", {ratio:.2f}x [{low:.2f}, {high:.2f}] what {others[0].system} carries, the next"
        text += "; these seeds cannot tell the two apart" if low <= 1 <= high else ""
    return text + (f". For {rate:g} it takes about {first.needed} replica(s): try that as --replicas." if rate else ".")


def main(argv: Sequence[str] | None = None) -> int:
    """Print the answer; returns 0, or 2 after a message where the question is wrong."""
    parser = argparse.ArgumentParser(prog="python -m slos.ask", description=__doc__)
    what, add = parser.add_mutually_exclusive_group(), parser.add_argument
    what.add_argument("--mix", default="mixed", metavar="NAME=SHARE,...", help=f"of {', '.join(SCENARIOS)} (mixed)")
    what.add_argument("--requests", default="", metavar="FILE.csv", help="your own requests, see workloads/own.py")
    add("--profile", default="", help="of slos/profiles.json, or a JSON file with such an entry (the scenarios' own)")
    add("--replicas", type=int, default=1, metavar="N")
    add("--slo-scale", type=float, default=1.0, metavar="X", help="makes all objectives so many times as long (1)")
    add("--target", type=float, default=0.9, metavar="SHARE", help="of requests that meet all objectives (0.9)")
    add("--systems", nargs="+", default=list(POLICIES), choices=POLICIES, help="(all)")
    add("--rate", type=float, default=0.0, metavar="R", help="how many replicas for R requests/s?")
    add("--num-requests", type=int, default=600, metavar="N", help="per replica and simulation (600)")
    add("--seeds", type=int, default=3, metavar="N", help="runs of every load (3)")
    add("--csv", type=Path, metavar="FILE", help="write the rows there, too")
    ask = parser.parse_args(argv)
    try:
        for name, least in (("replicas", 1), ("seeds", 1), ("num_requests", 1), ("rate", 0)):
            require(vars(ask)[name] >= least, name, vars(ask)[name], f"at least {least}")
        require(ask.requests.endswith(".csv") or not ask.requests, "requests", ask.requests, "a .csv file")
        n, scale = ask.num_requests * ask.replicas, ask.slo_scale
        case = Search(ask.requests or ask.mix, "", profile=ask.profile, num_requests=n, target=ask.target)
        case = replace(case, replicas=ask.replicas, slo_scale=scale)
        made, hardware = [build(case.scenario, 1.0, n, seed) for seed in range(ask.seeds)], case.hardware
        requests = [r for m in made for r in scaled_slos(m.requests, scale)]
        longest, most = max(r.context for r in requests), min(hardware.max_context, hardware.kv_tokens)
        require(longest <= most, "longest request", longest, f"at most {most} tokens on {hardware.name}", "drop it")
        name = made[0].origins[0] if ask.requests else made[0].scenario
        print(f"Workload: {name} ({made[0].source}), {ask.seeds} seed(s) of {n} requests\n{objectives(requests)}")
        print(f"Hardware: {ask.replicas} replica(s) of {hardware.model} on {hardware.gpus} {hardware.gpu}, simulated")
        print(f"Capacity: {ask.target:.0%} of the requests meet every objective; latencies are of all\n", flush=True)
        best = answer(case, dict.fromkeys(ask.systems).keys(), ask.seeds, ask.rate)
        if ask.csv:
            write_whole(ask.csv, best.to_csv(index=False))
    except (ValueError, OSError) as error:
        print(f"slos.ask: {error}", file=sys.stderr)
        return 2
    absent = [f"{name}: not attained, at any load\n" for name in ask.systems if name not in set(best["system"])]
    print(f"{'' if best.empty else table(best, ask.rate)}\n{''.join(absent)}\n{in_words(best, ask.rate)}")
    paced = sum(s.output * s.slo.tpot for r in requests for s in r.stages) / len(requests)
    if n < 3 * (at_once := case.gpus * best["capacity"].max() * paced):
        print(f"Too short to trust: {at_once:.0f} of {n} requests are in service at once; take more --num-requests.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
