"""The paper's six scenarios: which lengths, which arrivals, which objectives per stage (section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from slos.types import SLO, require


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

    profile: the hardware of `slos/profiles.json` that it runs on by default. max_context: longer requests are dropped,
    None: none are. slos: of each stage (tool calling: of the loop rounds and of the last; reasoning: thinking and
    response). table: of `lengths.TABLES`; arrivals: of `arrivals.STARTS`, or "poisson". parts: the scenarios that a mix
    joins, each with its own lengths, arrivals and objectives. drafting: the profile with a draft model, or none.
    """

    name: str
    profile: str
    max_context: int | None
    slos: tuple[SLO, ...] = ()
    table: str = ""
    arrivals: str = ""
    reported: tuple[Reported, ...] = ()
    parts: tuple[str, ...] = ()
    drafting: str = ""

    @property
    def has_trace(self) -> bool:
        """Whether it has lengths="trace"."""
        return bool(self.parts) or self.arrivals != "poisson"


def _slo(slowdown: float, tpot: float) -> SLO:
    return SLO(tpot=tpot, slowdown=slowdown)


OPT_DRAFT = "opt-6.7b-draft-a100"  # the paper drafts for OPT only
SCENARIOS = {
    s.name: s
    for s in (
        Scenario(
            "chatbot", "opt-6.7b-a100", 2048, (_slo(5, 0.1),), "sharegpt", "azure-conv",
            (Reported("prompt", 763, 1591, 424), Reported("output", 266, 619, 160)),
            drafting=OPT_DRAFT,
        ),
        Scenario(
            "coding", "opt-6.7b-a100", 2048, (_slo(5, 0.05),), "humaneval", "azure-code",
            (Reported("prompt", 847, 2010, 617), Reported("output", 26, 232, 47)),
            drafting=OPT_DRAFT,
        ),
        Scenario(
            "summarization", "opt-6.7b-a100", 2048, (_slo(3, 0.1),), "arxiv", "poisson",
            (Reported("prompt", 1333, 1946, 444), Reported("output", 202, 1508, 234)),
            drafting=OPT_DRAFT,
        ),
        # ToolLLaMA takes 8192; the reported P99 of the prompt needs more than 2048, and 4096 is Llama-2's own.
        Scenario(
            "tool-calling", "toolllama-7b-a100", 4096, (_slo(3, 0.05), _slo(3, 0.1)), "toolbench-rounds", "poisson",
            (Reported("prompt", 690, 2131, 356), Reported("output", 116, 363, 66)),
        ),
        # The response goes on where the thinking ends: it has a pace, and no first token of its own to wait for.
        Scenario(
            "reasoning", "r1-qwen-1.5b-a100", None, (_slo(3, 0.05), SLO(tpot=0.1)), "s1k", "poisson",
            (Reported("prompt", 127, 421, 83), Reported("thinking", 4693), Reported("response", 803)),
        ),
        Scenario("mixed", "opt-6.7b-a100", 2048, parts=("chatbot", "coding", "summarization"), drafting=OPT_DRAFT),
    )
}  # fmt: skip


def by_name(name: str) -> Scenario:
    """The scenario `name`; ValueError with the known names if there is none."""
    require(name in SCENARIOS, "scenario", name, f"one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
