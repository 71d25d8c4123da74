"""What becomes of every request in short simulations of everything there is, equal to the last bit.

A change that is to leave the outcomes alone leaves `pinned.json` alone. One that changes them on
purpose says why, and makes the file anew: `python tests/sim/test_pinned.py`. The lengths are those
of the synthetic profile, and arrivals are rounded, because the functions that made them may differ
in their last bit from one machine to another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import pytest

from slos.core.attainment import Outcome, attainment
from slos.core.pace import CLIENT, PAPER
from slos.core.types import Request
from slos.evaluation.capacity_search import capacity
from slos.evaluation.runs import believed, by_rule, hardware_of, scaled_slos, serve
from slos.evaluation.stats import geometric_mean
from slos.studies.timeline import with_burst
from workloads import build

PINNED = Path(__file__).with_name("pinned.json")
TOOLS = ("tool-calling", "slos-serve")  # its capacity is pinned, not its outcomes
WITHIN = 0.06  # of that capacity


class Case(NamedTuple):
    """One simulation. burst: requests that all come within a second; noise: of step times, as in
    `World`."""

    scenario: str
    system: str
    rate: float
    requests: int = 240
    setting: str = ""
    profile: str = ""
    lengths: str = "dataset"
    replicas: int = 1
    router: str = ""
    topology: str = ""
    drafts: int = 0
    noise: float = 0.0
    burst: int = 0
    kv_scale: float = 1.0
    slo_scale: float = 1.0
    belief: str = ""
    values: bool = False
    rule: str = PAPER

    def __str__(self) -> str:
        told = [self.scenario, self.system]
        told += [
            f"{k}={v}" for k, v in self._asdict().items() if v != self._field_defaults.get(k, v)
        ]
        return " ".join(told)


RATES = {
    "chatbot": 5.0, "coding": 14.0, "summarization": 5.0, "tool-calling": 1.5, "reasoning": 1.6,
    "mixed": 6.0,
}  # fmt: skip
SYSTEMS = ("vllm", "vllm-v1", "sarathi", "slos-serve")
OURS = "slos-serve"
CASES = [Case(s, p, rate) for s, rate in RATES.items() for p in SYSTEMS if (s, p) != TOOLS]
CASES += [
    Case("chatbot", OURS, 4.0, lengths="trace"),
    Case("coding", "sarathi", 6.0, lengths="trace"),
    Case("chatbot=2,coding=1", OURS, 9.0),
    *(Case("mixed", OURS, 27.0, 400, replicas=3, router=r)
      for r in ("round-robin", "least-loaded", "sequential", "cheapest")),
    Case("coding", "vllm-v1", 36.0, 400, replicas=3, router="least-loaded"),
    Case("tool-calling", "sarathi", 4.0, replicas=2, router="round-robin"),
    Case("mixed", OURS, 12.0, replicas=2, topology="pooled"),
    Case("chatbot", "vllm", 8.0, topology="1:1"),
    Case("mixed", OURS, 12.0, topology="2:1", router="least-loaded"),
    Case("tool-calling", "vllm-v1", 3.0, topology="1:2", router="least-loaded"),
    Case("chatbot", OURS, 12.0, replicas=2, topology="1:1", router="sequential"),
    Case("chatbot", OURS, 7.0, drafts=8),
    Case("mixed", OURS, 9.0, drafts=4, burst=30),
    Case("chatbot", OURS, 6.0, drafts=4, setting="speculate=0"),
    Case("coding", "sarathi", 12.0, drafts=4, setting="drafts=3,chunk=1024"),
    Case("summarization", "vllm-v1", 5.0, drafts=4, setting="drafts=2"),
    Case("summarization", "vllm", 5.0, drafts=4, setting="drafts=4"),
    Case("mixed", OURS, 22.0, 400, drafts=6, replicas=2, router="cheapest"),
    Case("chatbot", OURS, 6.0, profile="llama-2-7b-a100"),
    Case("mixed", "sarathi", 14.0, profile="llama-2-7b-h100"),
    Case("coding", OURS, 25.0, profile="llama-2-7b-h100", belief="tile=1,k_ctx=0"),
    Case("mixed", OURS, 5.0, belief="scale=0.8"),
    Case("chatbot", OURS, 4.0, noise=0.2),
    Case("coding", "vllm-v1", 10.0, noise=0.1),
    Case("mixed", OURS, 3.0, burst=40),
    Case("mixed", "sarathi", 3.0, burst=40),
    Case("summarization", OURS, 4.0, kv_scale=0.3),
    Case("reasoning", OURS, 1.5, kv_scale=0.1),
    Case("summarization", "vllm-v1", 4.0, kv_scale=0.3),
    Case("mixed", OURS, 5.0, slo_scale=0.7),
    Case("mixed", OURS, 9.0, values=True),
    Case("mixed", OURS, 5.0, setting="admission=0"),
    Case("mixed", OURS, 5.0, setting="best_effort=0"),
    Case("mixed", OURS, 5.0, setting="admission=0,best_effort=0"),
    Case("mixed", OURS, 5.0, setting="batch_tokens=512"),
    *(Case(s, OURS, rate, rule=CLIENT) for s, rate in RATES.items() if s != TOOLS[0]),
    Case("coding", "sarathi", 14.0, rule=CLIENT),
    Case("mixed", OURS, 9.0, drafts=4, burst=30, rule=CLIENT),
    Case("mixed", OURS, 27.0, 400, replicas=3, router="cheapest", rule=CLIENT),
    Case("mixed", OURS, 5.0, setting="best_effort=0", rule=CLIENT),
]  # fmt: skip


def _rounded(requests: Sequence[Request]) -> list[Request]:
    return [
        replace(
            r,
            arrival=round(r.arrival, 3),
            stages=tuple(replace(s, wait=round(s.wait, 3)) for s in r.stages),
        )
        for r in requests
    ]


def outcomes(case: Case) -> list[Outcome]:
    requests = _rounded(build(case.scenario, case.rate, case.requests, 0, case.lengths).requests)
    if case.burst:
        more = _rounded(build(case.scenario, case.burst, case.burst, 1).requests)
        requests = with_burst(requests, round(requests[-1].arrival / 2, 3), more)
    if case.values:
        requests = [replace(r, value=1.0 + i % 3) for i, r in enumerate(requests)]
    requests = by_rule(requests, case.rule)
    hardware = hardware_of(case.scenario, case.profile, case.drafts > 0)
    belief = believed(hardware.roofline, case.belief) if case.belief else None
    hardware = replace(hardware, kv_tokens=round(hardware.kv_tokens * case.kv_scale))
    return serve(
        scaled_slos(requests, case.slo_scale), case.system, hardware, case.setting,
        replicas=case.replicas, router=case.router, topology=case.topology, belief=belief,
        noise=case.noise, max_drafts=case.drafts,
    )  # fmt: skip


def _exact(value: object, noise: float) -> str:
    """A number to the last bit; with noise, which is an exponential, to the microsecond."""
    if not isinstance(value, float):
        return str(value)
    return f"{value:.6f}" if noise else value.hex()


def summary(case: Case) -> str:
    """What became of the requests, as a few counts and a hash of all of it."""
    found = outcomes(case)
    lines = [
        " ".join(
            _exact(value, case.noise)
            for value in (
                o.id, o.arrival, o.finish, o.ttft, o.ttft_slo, o.tpot, o.lateness, o.preemptions,
                o.declined, o.attained, o.attained_client, o.replica, o.hops,
            )
        )
        for o in found
    ]  # fmt: skip
    attained, declined, hops = (
        sum(getattr(o, name) for o in found) for name in ("attained", "declined", "hops")
    )
    told = (
        f"{attained} attain, {declined} declined, {sum(o.preemptions for o in found)} preemptions, "
        f"{hops} hops"
    )
    return f"{told}, {sha256(chr(10).join(lines).encode()).hexdigest()[:16]}"


def tool_calling() -> float:
    """Requests per second that ours carries where requests wait for tools: of four seeds the
    geometric mean."""
    found = []
    for seed in range(4):

        def attained_at(rate: float, seed: int = seed) -> float:
            requests = _rounded(build(TOOLS[0], rate, 250, seed).requests)
            return attainment(serve(requests, TOOLS[1], hardware_of(TOOLS[0])))

        found.append(capacity(attained_at, start=0.45, precision=0.02)[0])
    return geometric_mean(found)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_outcomes_are_those_that_were_pinned(case: Case, no_data: None) -> None:
    assert summary(case) == json.loads(PINNED.read_text())[str(case)]


def test_every_case_is_pinned_once() -> None:
    assert [*map(str, CASES), " ".join(TOOLS)] == [*json.loads(PINNED.read_text())]


def test_tool_calling_carries_about_as_much_as_was_pinned(no_data: None) -> None:
    assert tool_calling() == pytest.approx(
        json.loads(PINNED.read_text())[" ".join(TOOLS)], rel=WITHIN
    )


if __name__ == "__main__":
    os.environ.pop("SLOS_DATA", None)
    os.environ["SLOS_CACHE"] = os.devnull
    PINNED.write_text(
        json.dumps(
            {**{str(c): summary(c) for c in CASES}, " ".join(TOOLS): tool_calling()}, indent=1
        )
        + "\n"
    )
