"""One capacity search: a system with its setting on a scenario; and every load that it tried."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import count
from math import inf, log, nan, sqrt
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np

from slos.core.attainment import Outcome, attainment
from slos.core.pace import CLIENT, PAPER
from slos.core.types import Request, require
from slos.evaluation.runs import believed, by_rule, hardware_of, scaled_slos, serve
from slos.hardware.profiles import Profile, profiles
from slos.policies import AS_PUBLISHED, POLICIES
from slos.sim.cluster import roles
from slos.sim.simulator import Observer
from workloads import build

STRIDE = 1.5  # from one load to the next, until there is a bracket


@dataclass(frozen=True, slots=True)
class Search:
    """One capacity search: a system with its setting on a scenario, for one seed. profile "" is the
    scenario's own.

    scenario: a name, a mix of some, or a CSV of requests (see `workloads.scenarios.by_name`).
    replicas: how many of the topology (see `slos.sim.cluster`); router: of `slos.policies.routers`,
    "" where there is no choice. max_drafts: the longest draft, on hardware with a draft model;
    acceptance: the chance of each draft token. slo_scale: of all objectives; kv_scale: of the KV
    cache; belief: of the policy about the roofline, see `believed`; rule: of pace, by which
    requests are served and judged, see `slos.core.pace`; predictor: of output lengths, see
    `slos.policies.predictors`.
    prefix_cache: whether what was computed is found again, which in the paper's setting it is not;
    asynchronous: whether a step is decided while the one before it runs, as vLLM does today.
    max_context: tokens of the longest request, if less than the scenario's. start: requests per
    second near which the capacity is supposed, 0 where nothing is known. near: the same, for a
    search that is to find what it finds without (see `capacity`), so that it is no part of the key.
    """

    scenario: str
    system: str
    setting: str = ""
    profile: str = ""
    lengths: str = "dataset"
    seed: int = 0
    num_requests: int = 400
    target: float = 0.9
    precision: float = 0.02
    replicas: int = 1
    router: str = ""
    topology: str = ""
    max_drafts: int = 0
    acceptance: float = 0.7
    slo_scale: float = 1.0
    kv_scale: float = 1.0
    belief: str = ""
    rule: str = PAPER
    prefix_cache: bool = False
    asynchronous: bool = False
    predictor: str = "oracle"
    max_context: int = 0
    start: float = 0.0
    near: float = field(default=0.0, compare=False)

    def __str__(self) -> str:
        hardware, scenario, own = self.hardware.name, self.scenario, Path(self.scenario)
        if own.suffix == ".csv":  # as a profile of one's own, it may change
            scenario = f"{own.name}#{crc32(own.read_bytes()):08x}"
        if self.profile not in ("", *profiles()):
            hardware += f"#{crc32(repr(self.hardware).encode()):08x}"
        several = self.replicas > 1 or bool(self.topology)
        usual = [scenario, self.lengths, hardware, self.system, self.setting]
        drafts = f"{self.max_drafts} drafts at {self.acceptance:g}" * bool(self.max_drafts)
        where = [f"{self.replicas}x {self.topology}".strip() * several, self.router]
        unusual = [
            f"KV x{self.kv_scale:g}" * (self.kv_scale != 1),
            f"SLOs x{self.slo_scale:g}" * (self.slo_scale != 1),
            f"belief {self.belief}" * bool(self.belief),
            f"{self.rule}'s rule" * (self.rule != PAPER),
            "prefix cache" * self.prefix_cache,
            "asynchronous" * self.asynchronous,
            f"lengths by {self.predictor}" * (self.predictor != "oracle"),
            f"to {self.max_context} tokens" * bool(self.max_context),
            f"from {self.start:g}/s" * bool(self.start),
        ]
        target = f"target {self.target:g} to {self.precision:g}"
        numbers = f"{self.num_requests} requests, {target}, seed {self.seed}"
        return f"{' '.join(filter(None, [*usual, drafts, *where, *unusual]))}, {numbers}"

    @property
    def hardware(self) -> Profile:
        hardware = hardware_of(self.scenario, self.profile, self.max_drafts > 0)
        bound, cure = f"0: {hardware.name} has no draft model", "its planes need k2, the seconds of"
        good = self.max_drafts == 0 or hardware.drafts
        require(good, "max_drafts", self.max_drafts, bound, f"{cure} a draft step")
        return replace(hardware, kv_tokens=round(hardware.kv_tokens * self.kv_scale))

    @property
    def gpus(self) -> int:
        return self.hardware.gpus * self.replicas * len(roles(self.topology))


@dataclass(frozen=True, slots=True)
class Probe:
    """One load that a search tried: requests per second and GPU, attainments, latencies in seconds.

    attainment: by the `rule` of pace that was asked for, as was the `target`; those by both rules
    follow.
    ttft_p99, tpot_p99: of all requests. accepted_...: of those not declined; declined_...: of the
    others. NaN: of none.
    """

    scenario: str
    lengths: str
    system: str
    setting: str
    profile: str
    replicas: int
    router: str
    topology: str
    seed: int
    rate: float
    rule: str
    target: float
    attainment: float
    attainment_paper: float
    attainment_client: float
    declined: float
    hops: float
    ttft_p99: float
    tpot_p99: float
    accepted_ttft_p99: float
    accepted_tpot_p99: float
    declined_ttft_p50: float
    capacity: bool
    source: str
    status: str = "simulated"


def requests_of(case: Search, rate: float) -> tuple[Sequence[Request], str]:
    """A case's requests at `rate` per second in all, and their source."""
    most = case.max_context or None
    workload = build(case.scenario, rate, case.num_requests, case.seed, case.lengths, most)
    asked = by_rule(workload.requests, case.rule)
    return asked if case.slo_scale == 1 else scaled_slos(asked, case.slo_scale), workload.source


def outcomes_at(
    case: Search, rate: float, observe: Observer | None = None
) -> tuple[list[Outcome], str]:
    """Outcomes of a case at `rate` in all, and the requests' source. observe: after every step."""
    hardware = case.hardware
    belief = believed(hardware.roofline, case.belief) if case.belief else None
    asked, source = requests_of(case, rate)
    outcomes = serve(
        asked, case.system, hardware, case.setting, observe, replicas=case.replicas,
        router=case.router, topology=case.topology, belief=belief, predictor=case.predictor,
        max_drafts=case.max_drafts, acceptance=case.acceptance, prefix_cache=case.prefix_cache,
        asynchronous=case.asynchronous,
    )  # fmt: skip
    return outcomes, source


def probe(case: Search, rate: float) -> Probe:
    """What a case comes to at a load of `rate` requests per second in all."""
    outcomes, source = outcomes_at(case, rate)
    accepted, declined = ([o for o in outcomes if o.declined == gone] for gone in (False, True))

    def late(name: str, of: Sequence[Outcome], share: float = 0.99) -> float:
        return float(np.quantile([getattr(o, name) for o in of], share)) if of else nan

    return row_of(
        Probe, case, rate=rate / case.gpus, attainment=attainment(outcomes),
        attainment_paper=attainment(outcomes, PAPER),
        attainment_client=attainment(outcomes, CLIENT),
        declined=len(declined) / len(outcomes), hops=sum(o.hops for o in outcomes) / len(outcomes),
        ttft_p99=late("ttft", outcomes), tpot_p99=late("tpot", outcomes),
        accepted_ttft_p99=late("ttft", accepted), accepted_tpot_p99=late("tpot", accepted),
        declined_ttft_p50=late("ttft", declined, 0.5), capacity=False, source=source,
    )  # fmt: skip


def row_of(kind: Any, case: Search, **found: Any) -> Any:
    """A row of results: the fields that it shares with its case, and what was `found`."""
    shared = {f.name for f in fields(kind)} & {f.name for f in fields(case)} - {"profile"}
    same = {name: getattr(case, name) for name in shared}
    return kind(profile=case.hardware.name, **same, **found)


def search(case: Search) -> list[Probe]:
    """Capacity of one case: every load that was tried, the capacity marked. Raises NoCapacity."""
    rows = tried(case)
    if not any(row.capacity for row in rows):
        least = min(row.rate for row in rows)
        said = f"not even {least:.3g} requests per second and GPU attain it"
        raise NoCapacity(f"{case}: {said}; check SLOs and profile, or leave this one out")
    return rows


def tried(case: Search) -> list[Probe]:
    """The same; no load is marked where none attains the target. Raises ValueError if all do."""
    require(case.replicas >= 1, "replicas", case.replicas, "at least 1")
    known = case.system in POLICIES or case.system in AS_PUBLISHED
    require(known, "system", case.system, f"one of {', '.join(POLICIES)}")
    rows: list[Probe] = []

    def attained_at(rate: float) -> float:
        rows.append(probe(case, rate))
        return rows[-1].attainment

    stride = (1 + case.precision) ** 3.9 if case.start else STRIDE  # then two bisections suffice
    usual = {"reasoning": 0.5, "tool-calling": 0.4, "coding": 10.0}.get(case.scenario, 3.0)
    start = case.start or usual * case.gpus
    try:
        best, probes = capacity(attained_at, case.target, start, case.precision, stride, case.near)
    except NoCapacity:
        return rows
    except ValueError as error:
        raise ValueError(f"{case}: {error}") from None
    return [replace(r, capacity=p.rate == best) for r, p in zip(rows, probes, strict=True)]


def carried(case: Search) -> Probe | None:
    """The capacity alone; None where no load attains the target."""
    return next((row for row in tried(case) if row.capacity), None)


class NoCapacity(ValueError):
    """No load attains the target."""


class Tried(NamedTuple):
    """One load that was tried, and its attainment."""

    rate: float
    attainment: float


def capacity(
    attained_at: Callable[[float], float], target: float = 0.9, start: float = 1.0,
    precision: float = 0.02, stride: float = STRIDE, near: float = 0.0,
) -> tuple[float, list[Tried]]:  # fmt: skip
    """A rate with `attained_at(rate)` >= target while the next one of the `load`s is below it; and
    the probes.

    By growth from `start`, first by a factor of `stride`, then bisection; or from the load next to
    `near`, first to its neighbour. Both find the same where attainment falls as the load grows. Of
    the rates within a factor of 2**20 of `start`: raises NoCapacity where none attains the target,
    ValueError where all do.
    """
    require(0 < target <= 1, "target", target, "in (0, 1]")
    require(start > 0, "start", start, "positive (requests per second)")
    require(0 < precision < 1, "precision", precision, "in (0, 1)")
    halvings = next(n for n in count() if stride ** (1 / 2**n) <= 1 + precision)
    steps = 2**halvings
    i = round(steps * log(near / start, stride)) if near else 0
    jump, widest = 1 if near else steps, max(1, int(steps * log(STRIDE, stride)))
    low, high, probes = -inf, inf, list[Tried]()
    while True:
        rate = load(i, start, stride, halvings)
        if not start / 2**20 < rate < start * 2**20:
            break
        probes.append(Tried(rate, attained_at(rate)))
        low, high = (i, high) if probes[-1].attainment >= target else (low, i)
        if high - low == 1:
            return load(int(low), start, stride, halvings), probes
        if high - low < inf:
            i = int(low + high) // 2
        else:
            i, jump = i + (jump if high == inf else -jump), min(2 * jump, widest)
    where = f"no capacity near start = {start:g} at target {target:g}"
    attain = "requests per second attain it"
    if high == inf:
        cure = "take more requests, or tighter SLOs"
        raise ValueError(f"{where}: even {probes[-1].rate:g} {attain}; {cure}")
    raise NoCapacity(f"{where}: not even {rate:g} {attain}; check SLOs and profile")


def load(i: int, start: float, stride: float, halvings: int) -> float:
    """`start` * `stride` ** (i / 2**halvings), the loads among which a capacity is looked for, to
    the last bit as growth and bisection come to it."""
    whole, part = divmod(i, 2**halvings)
    low, high = (_grown(start, stride, n) for n in (whole, whole + 1))
    for bit in reversed(range(halvings)):
        middle = sqrt(low * high)
        low, high = (middle, high) if part >> bit & 1 else (low, middle)
    return low


def _grown(rate: float, stride: float, times: int) -> float:
    for _ in range(abs(times)):
        rate = rate * stride if times > 0 else rate / stride
    return rate
