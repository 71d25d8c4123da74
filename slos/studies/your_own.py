"""How much load can this hardware carry under these objectives, and which scheduler carries most?
All simulated.

The best setting of every system counts: token budget, and draft length if there are drafts (ours
picks its own). Before several replicas a baseline has the better router, ours its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from math import ceil, nan
from typing import Any

import pandas as pd

from slos.core.attainment import attainment
from slos.core.pace import CLIENT, RULES, other
from slos.core.types import Request, require
from slos.evaluation.capacity_search import Search, outcomes_at, probe, requests_of
from slos.evaluation.grids import BASELINE, fixed_drafts
from slos.evaluation.runs import serve
from slos.evaluation.sizes import check_names
from slos.evaluation.stats import capacities, interval, rows_of, strongest
from slos.files import Frame, commit, results_dir
from slos.policies import OURS, POLICIES, ordinary
from slos.studies.own_requests import Mine, most_tokens
from slos.studies.trials import SCOUTING, probed, scout, scouted
from workloads import build

LATENCIES = ["accepted_ttft_p99", "accepted_tpot_p99", "declined", "declined_ttft_p50"]
FEWEST, MOST = 600, 8000  # requests of a run, per replica, unless more are asked for
ENOUGH = 3  # times as many as may be in service at once
LOOKS = 3  # at most, to find how many that are
FLOOD = 1e6  # requests per second that nothing can carry, unless a run has too few
SHARES = [f"attainment_{rule}" for rule in RULES]
BOUNDS = {
    "replicas": (1, 1000), "drafts": (0, 100), "acceptance": (0, 1), "slo_scale": (0.01, 100),
    "target": (0.01, 1), "rate": (0, 1e6), "num_requests": (0, 1e6), "seeds": (1, 100),
    "max_context": (0, 1e7),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """workload: a mix of scenarios, or a CSV of requests. profile: a name or a JSON file, "" for
    the scenarios' own. rate: requests per second for which replicas are counted, 0 for none.
    num_requests: per replica and simulation, 0 for as many as it takes (see `settled`). The others:
    see `Search`. Raises ValueError for unknown systems and rules, and for values out of bounds."""

    workload: str = "mixed"
    profile: str = ""
    systems: Sequence[str] = tuple(ordinary())
    replicas: int = 1
    drafts: int = 0
    acceptance: float = 0.7
    slo_scale: float = 1.0
    target: float = 0.9
    rate: float = 0.0
    num_requests: int = 0
    seeds: int = 3
    rule: str = CLIENT
    max_context: int = 0
    prefix_cache: bool = False
    asynchronous: bool = False
    start: float = 0.0

    def __post_init__(self) -> None:
        for name, (low, high) in BOUNDS.items():
            value = getattr(self, name)
            require(low <= value <= high, name, value, f"of {low:g} to {high:g}")
        require(len(self.systems) > 0, "systems", self.systems, "at least one")
        check_names("system", self.systems, POLICIES)
        check_names("rule", [self.rule], RULES)

    @property
    def case(self) -> Search:
        """As a search, of no system yet."""
        return Search(
            self.workload, "", profile=self.profile, num_requests=self.num_requests * self.replicas,
            target=self.target, replicas=self.replicas, max_drafts=self.drafts,
            acceptance=self.acceptance, slo_scale=self.slo_scale, rule=self.rule,
            max_context=self.max_context, prefix_cache=self.prefix_cache,
            asynchronous=self.asynchronous, start=self.start,
        )  # fmt: skip

    def requests(self) -> list[Request]:
        """Of all seeds, the first one's first, at 1 request per second."""
        cases = (replace(self.case, seed=seed) for seed in range(self.seeds))
        return [r for case in cases for r in requests_of(case, 1.0)[0]]


def question(mix: str, path: str = "", **given: Any) -> tuple[Question, str]:
    """The question about a mix or a file of requests, by fields of `Question` and `Mine`, and what
    there is to say of the file. Raises ValueError for unknown fields, and as those two."""
    own, plain = ([f.name for f in fields(kind)] for kind in (Mine, Question))
    check_names("option", given, dict.fromkeys(own[1:] + plain[1:]))
    work, said = Mine(path, **{name: given[name] for name in own if name in given}).workload(mix)
    return Question(work, **{name: given[name] for name in plain if name in given}), said


def described(asked: Question) -> str:
    """The question in words: workload, objectives by kind of request, hardware."""
    made, hardware, requests = build(asked.workload, 1.0, 1), asked.case.hardware, asked.requests()
    name = made.origins[0] if asked.workload.endswith(".csv") else made.scenario
    most = f" of at most {asked.max_context} tokens" if asked.max_context else ""
    drafts = f", at most {asked.drafts} drafts accepted at {asked.acceptance:g}"
    columns = ["kind", "first token (s)", "or times its zero load", "then per token (ms)"]
    slos = [(r.kind, s.slo) for r in requests for s in r.stages]
    rows = [(kind, s.ttft, s.slowdown, 1e3 * s.tpot) for kind, s in slos]
    each = pd.DataFrame(rows, columns=columns).groupby("kind")
    asks = each.agg(["min", "max"]).astype(float).dropna(axis=1, how="all")
    asks[("share", "")] = pd.Series(Counter(r.kind for r in requests)) / len(requests)
    return (
        f"Capacity: {asked.target:.0%} of the requests meet every objective\n"
        f"by {RULES[asked.rule]}; P99 of those not declined\n"
        f"Workload: {name} ({made.source}), {asked.seeds} seed(s) of {asked.case.num_requests} "
        f"requests{most}\n{asks.to_string(float_format='{:.3g}'.format, na_rep='-')}\n"
        f"Hardware: {asked.replicas} replica(s) of {hardware.model} on {hardware.gpus} "
        f"{hardware.gpu}{drafts if asked.drafts else ''}, simulated"
    )


def in_service(asked: Question) -> float:
    """For how many seconds a request may be in service on the average. Raises ValueError where a
    request does not fit the hardware, or where the target is out of reach at any load."""
    case, hardware, requests = asked.case, asked.case.hardware, asked.requests()
    longest = max(requests, key=lambda r: r.context)
    most = most_tokens(hardware, asked.drafts)
    require(
        longest.context <= most, f"longest request of {longest.kind}", longest.context,
        f"at most {most} tokens on {hardware.name}",
        f"name a profile that takes it, or give max_context = {most}: longer ones are left out",
    )  # fmt: skip
    share, step = alone(case, requests[: case.num_requests]), 1e3 * hardware.roofline.time(1)
    name = "share of requests that meet their objectives alone"
    bound = f"at least {case.target:g} on {hardware.name}, where a step takes {step:.0f} ms"
    require(share >= case.target, name, round(share, 3), bound, "loosen them (slo_scale)")
    stages = [s for r in requests for s in r.stages]
    first = [s.slo.first_token(hardware.roofline.time(s.prompt)) for s in stages]
    return (sum(first) + sum(s.output * s.slo.tpot for s in stages)) / len(requests)


def alone(case: Search, requests: Sequence[Request]) -> float:
    """The share that meets all objectives, each request alone; at least, if it is the target. A
    prefix cache has what those before it left."""
    far, share = [replace(r, arrival=1e6 * i) for i, r in enumerate(requests)], 0.0
    plain, n = [replace(case, system=name) for name in (BASELINE, OURS)], case.max_drafts
    world = {"max_drafts": n, "acceptance": case.acceptance, "prefix_cache": case.prefix_cache}
    for c in [*plain, *(fixed_drafts(plain[0], n) if n else ())]:
        share = max(share, attainment(serve(far, c.system, case.hardware, c.setting, **world)))
        if share >= case.target:
            break
    return share


def settled(asked: Question, size: str) -> Question:
    """The question with a number of requests: as many as the answer can be trusted with (see
    `caution`), by a quick search, and another one where that was too short itself. Raises
    ValueError as `in_service`."""
    if asked.num_requests:
        return asked
    asked = replace(asked, num_requests=FEWEST)
    seconds = in_service(asked)
    for _ in range(LOOKS):
        first, before = scout(asked.case, asked.systems), asked.num_requests
        enough = 4 * before
        if probe(first, FLOOD).attainment < first.target:
            rate = scouted(first, results_dir(size))
            asked, at_once = replace(asked, start=rate), rate * (1 + SCOUTING) * seconds
            enough = max(FEWEST, ceil(ENOUGH * at_once / asked.replicas / 100) * 100)
        asked = replace(asked, num_requests=min(enough, MOST))
        if enough <= before:
            break
    return asked


def answer(asked: Question, size: str) -> Frame:
    """A row per system, the strongest first; without those that attain the target at no load for
    some seed. Its runs are kept in results/<size>/your_own.csv.

    capacity, low, high: requests per second and GPU, with the interval over seeds, no narrower than
    the search's precision; each: of the seeds. LATENCIES and SHARES of `Probe`: at that load, mean
    over seeds. to_ours: over ours, NaN where that has no row. needed: replicas for `rate` requests
    per second, by the capacity per GPU. at_once: requests that may be in service at once.
    """
    seconds, case = in_service(asked), asked.case
    rows = probed(case, asked.systems, asked.seeds, results_dir(size))
    if not rows:
        return pd.DataFrame(columns=["system", "capacity", "at_once"])
    at, which = pd.DataFrame(rows), ["system", "setting", "router"]
    latencies = at.groupby(which, as_index=False)[LATENCIES + SHARES].mean()
    best = strongest(capacities(at, "router", precision=case.precision), "system")
    best = best.sort_values("capacity", ascending=False)
    best = best.merge(latencies, on=which).rename(columns={"rate": "each"})
    ours = best.set_index("system")["capacity"].get(OURS, nan)
    return best.assign(
        gpus=case.gpus, replicas=asked.replicas, commit=commit(), slo_scale=asked.slo_scale,
        target=asked.target, rule=asked.rule, to_ours=best["capacity"] / ours,
        needed=[counted(asked.rate * asked.replicas / case.gpus, r) for r in rows_of(best)],
        at_once=best["capacity"] * case.gpus * seconds,
    )  # fmt: skip


def counted(rate: float, row: Any) -> str:
    """Replicas for a rate, as its capacity's interval tells: "3", or "3 to 4"."""
    least, most = ceil(rate / row.high), ceil(rate / row.low)
    return str(least) if least == most else f"{least} to {most}"


def table(best: Frame, rate: float = 0.0) -> Frame:
    """The rows to be read, with the share that attains by the other rule of pace at that load, and
    the replicas needed if a rate was asked for."""
    if best.empty:
        return best
    beside = other(best["rule"].iloc[0])
    whole = best[["capacity", "low", "high"]].mul(best["gpus"], axis=0).map("{:.2f}".format)
    spread = (whole["low"] + " to " + whole["high"]).where(best["seeds"] > 1, "one seed")
    shown = {"system": best["system"], "best setting": best["setting"].replace("", "-")}
    shown |= {"router": best["router"]} if any(best["router"]) else {}
    shown |= {
        "requests/s": whole["capacity"], "95 % interval": spread,
        "P99 TTFT": _shown(best["accepted_ttft_p99"], "{:.2f} s"),
        "P99 TPOT": _shown(1e3 * best["accepted_tpot_p99"], "{:.0f} ms"),
        f"by {beside}'s rule": _shown(best[f"attainment_{beside}"], "{:.0%}"),
        "declined": _shown(best["declined"], "{:.0%}"),
        "their P50 TTFT": _shown(best["declined_ttft_p50"], "{:.2f} s"),
        "to ours": _shown(best["to_ours"], "{:.2f}x"),
    } | ({f"for {rate:g}/s": best["needed"]} if rate else {})  # fmt: skip
    return pd.DataFrame(shown)


def _shown(values: Frame, form: str) -> Frame:
    """Numbers to be read, of none a dash."""
    return values.map(form.format).where(values.notna(), "-")


def by_kind(best: Frame, asked: Question) -> Frame:
    """What the kinds of requests come to, since a capacity is of all together: a row per system and
    kind, of the first seed at that seed's capacity; none where there is one kind."""
    tables = []
    for row in rows_of(best):
        case = replace(asked.case, system=row.system, setting=row.setting, router=row.router)
        outcomes, _ = outcomes_at(case, row.each[0] * case.gpus)
        frame: Frame = pd.DataFrame([asdict(o) for o in outcomes])
        groups = frame.groupby("kind", sort=False)
        accepted = frame[~frame["declined"]].groupby("kind", sort=False)
        shown = {
            "system": row.system, "requests": groups.size(),
            "attained": _shown(groups["attained"].mean(), "{:.0%}"),
            "declined": _shown(groups["declined"].mean(), "{:.0%}"),
            "P99 TTFT": _shown(accepted["ttft"].quantile(0.99), "{:.2f} s"),
            "P99 TPOT": _shown(1e3 * accepted["tpot"].quantile(0.99), "{:.0f} ms"),
        }  # fmt: skip
        if len(groups) == 1:
            return pd.DataFrame()
        tables.append(pd.DataFrame(shown).reset_index().set_index(["system", "kind"]))
    return pd.concat(tables).fillna("-").reset_index() if tables else best


def caution(best: Frame, asked: Question) -> str:
    """What makes the answer one not to be trusted, to be said before it; or nothing."""
    if best.empty or asked.case.num_requests >= ENOUGH * (at_once := best["at_once"].max()):
        return ""
    return (
        f"Too short to trust: {at_once:.0f} requests may be in service at once, and a run has "
        f"{asked.case.num_requests}; take more num_requests."
    )


def in_words(best: Frame, asked: Question) -> str:
    """The answer in a sentence or two. A winner is named where its lead over the next is surer than
    the search's precision and the seeds."""
    absent = sorted({*asked.systems} - {*best["system"]})
    lines = [f"{name}: not attained, at any load" for name in absent]
    if best.empty:
        return "\n".join([*lines, "No load can be carried: the objectives are too tight."])
    first, *others = rows_of(best)
    load = f"{first.capacity * first.gpus:.2f} requests per second on {first.gpus} GPU(s)"
    leads = {}
    for o in others:
        ratios = [a / b for a, b in zip(first.each, o.each, strict=True)]
        leads[o.system] = interval(ratios, asked.case.precision)
    same = [first.system, *(name for name, (_, low, _) in leads.items() if low <= 1)]
    if not others:
        lines.append(f"{first.system} carries {load}.")
    elif len(same) > 1:
        lines.append(f"At most {load}; these runs cannot tell {', '.join(same)} apart.")
    elif caution(best, asked):
        lines.append(f"At most {load}, by {first.system}; longer runs tell which carries most.")
    else:
        name, (ratio, low, high) = next(iter(leads.items()))
        seed = " in this one seed" if first.seeds == 1 else ""
        lead = f"{ratio:.2f}x [{low:.2f}, {high:.2f}] what {name} carries, the next"
        lines.append(f"{first.system} carries most{seed}: {load}, {lead}.")
    if asked.rate:
        need = f"it takes about {first.needed} replica(s): try that as replicas."
        lines.append(f"For {asked.rate:g} {need}")
    return "\n".join(lines)
