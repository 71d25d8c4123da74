"""The paper's six scenarios (section 6): lengths, arrivals, objectives per stage; and mixes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any

from slos.core.types import SLO, require


@dataclass(frozen=True, slots=True)
class Reported:
    """Tokens that the paper reports for one quantity; None where it reports no such figure."""

    quantity: str
    mean: float
    p99: float | None = None
    std: float | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """A scenario and its sources.

    profile: the hardware of `slos/hardware/profiles.json` that it runs on by default, or none.
    max_context: longer requests are dropped, None: none are. slos: of each stage (tool calling: of
    the loop rounds and of the last; reasoning: thinking and response). table: of `lengths.TABLES`;
    arrivals: of `arrivals.STARTS`, or "poisson". parts: the scenarios that a mix joins, with their
    shares of its requests, each with its own lengths, arrivals and objectives. drafting: the
    profile with a draft model, or none.
    """

    name: str
    profile: str
    max_context: int | None
    slos: tuple[SLO, ...] = ()
    table: str = ""
    arrivals: str = ""
    reported: tuple[Reported, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    drafting: str = ""

    @property
    def has_trace(self) -> bool:
        """Whether it has lengths="trace"."""
        return bool(self.parts) or self.arrivals not in ("", "poisson")


def _slo(slowdown: float, tpot: float) -> SLO:
    return SLO(tpot=tpot, slowdown=slowdown)


def _reported(**quantities: tuple[float, ...]) -> tuple[Reported, ...]:
    return tuple(Reported(name, *figures) for name, figures in quantities.items())


# the paper drafts for OPT only
OPT: dict[str, Any] = {
    "profile": "opt-6.7b-a100", "max_context": 2048, "drafting": "opt-6.7b-draft-a100"
}  # fmt: skip
SCENARIOS = {s.name: s for s in (
    Scenario(
        "chatbot", **OPT, slos=(_slo(5, 0.1),), table="sharegpt", arrivals="azure-conv",
        reported=_reported(prompt=(763, 1591, 424), output=(266, 619, 160)),
    ),
    Scenario(
        "coding", **OPT, slos=(_slo(5, 0.05),), table="humaneval", arrivals="azure-code",
        reported=_reported(prompt=(847, 2010, 617), output=(26, 232, 47)),
    ),
    Scenario(
        "summarization", **OPT, slos=(_slo(3, 0.1),), table="arxiv", arrivals="poisson",
        reported=_reported(prompt=(1333, 1946, 444), output=(202, 1508, 234)),
    ),
    # ToolLLaMA takes 8192; the reported P99 of the prompt needs more than 2048, and 4096 is
    # Llama-2's own.
    Scenario(
        "tool-calling", "toolllama-7b-a100", 4096, slos=(_slo(3, 0.05), _slo(3, 0.1)),
        table="toolbench-rounds", arrivals="poisson",
        reported=_reported(prompt=(690, 2131, 356), output=(116, 363, 66)),
    ),
    # The response goes on where the thinking ends: it has a pace, and no first token of its own to
    # wait for.
    Scenario(
        "reasoning", "r1-qwen-1.5b-a100", None, slos=(_slo(3, 0.05), SLO(tpot=0.1)),
        table="s1k", arrivals="poisson",
        reported=_reported(prompt=(127, 421, 83), thinking=(4693,), response=(803,)),
    ),
    Scenario("mixed", **OPT, parts=dict.fromkeys(("chatbot", "coding", "summarization"), 1.0)),
)}  # fmt: skip


INTERACTIVE, SERVER = SLO(tpot=0.03, ttft=0.5), SLO(tpot=0.1, ttft=2.0)
"""Of Llama-3.1-8B in MLPerf Inference 5.1 (mlcommons.org/2025/09/small-llm-inference-5-1), in
seconds: its interactive and its server scenario."""


def _longer(name: str, most: int, slos: tuple[SLO, ...] = ()) -> Scenario:
    """A scenario with a model of today and its contexts, and with other objectives if given."""
    end = f"-{most // 1024}k{'-mlperf' if slos else ''}"
    own = replace(SCENARIOS[name], name=name + end, max_context=most, reported=())
    parts = {part + end: share for part, share in own.parts.items()}
    where = {"profile": "llama-3.1-8b-h100", "drafting": "llama-3.1-8b-draft-h100"}
    return replace(own, parts=parts, slos=slos or own.slos, **where)


LONGER = {
    s.name: s
    for slos in ((), (INTERACTIVE,))
    for s in (
        _longer("chatbot", 8192, slos),
        _longer("coding", 8192, slos),
        _longer("summarization", 8192, slos and (SERVER,)),
        _longer("tool-calling", 8192, slos and (INTERACTIVE, INTERACTIVE)),
        _longer("reasoning", 32768, slos and (INTERACTIVE, SLO(tpot=INTERACTIVE.tpot))),
        _longer("mixed", 8192, slos),
    )
}
"""Besides the paper's, by name alone: no table or figure of the paper's scenarios has them. The
summaries of arXiv stay below 4,096 tokens, as their lengths were published."""


def by_name(name: str) -> Scenario:
    """The scenario `name`, the mix "chatbot=2,coding=1" of some by their shares, or the requests of
    a file "my.csv".

    A mix has the hardware of its parts if that is one; a file has none. ValueError with the known
    names for others.
    """
    if name.endswith(".csv"):
        return Scenario(name, "", None)
    if "=" in name or "," in name:
        return _mix(name)
    known = {**SCENARIOS, **LONGER}
    require(name in known, "scenario", name, f"one of {', '.join(known)}")
    return known[name]


def _mix(text: str) -> Scenario:
    known, parts = [s.name for s in SCENARIOS.values() if not s.parts], {}
    for part, _, share in (p.strip().partition("=") for p in text.split(",")):
        new = part in known and part not in parts
        require(new, "mix", part, f"one of {', '.join(known)}, each once")
        with suppress(ValueError):
            parts[part] = float(share or 1)
        good = 0 < parts.get(part, 0.0) < inf
        require(good, f"share of {part}", share, "a positive number")
    if len(parts) == 1:
        return SCENARIOS[part]
    joined = [SCENARIOS[p] for p in parts]
    hardware, drafting = {s.profile for s in joined}, {s.drafting for s in joined}
    one = [names.pop() if len(names) == 1 else "" for names in (hardware, drafting)]
    limits = {s.max_context for s in joined}
    most = None if None in limits else max(n for n in limits if n)
    name = ",".join(f"{part}={share:g}" for part, share in parts.items())
    return Scenario(name, one[0], most, parts=parts, drafting=one[1])
