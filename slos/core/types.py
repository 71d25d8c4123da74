"""The contracts: what a request is, what a policy sees, and what it returns.

All quantities are in seconds, tokens and KV blocks. A host (the simulator, the vLLM plug-in) owns
the mutable `Progress` records and shows them to a policy in a `View`; the policy returns a `Batch`.
The true output lengths are in `Request`, which a policy never sees: it learns lengths only from the
`LengthPredictor` that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from slos.core.pace import PAPER, RULES

QUOTED = 200  # characters of a value in a message, at most
FOREVER = inf  # `Batch.repeat` until a request arrives or ends a stage


def require(ok: bool, name: str, value: object, bound: str, cure: str = "") -> None:
    """Raise `ValueError` that names the value, its bound and the cure, unless `ok`."""
    if not ok:
        shown = repr(value)
        shown = shown if len(shown) <= QUOTED else shown[: QUOTED - 3] + "..."
        raise ValueError(f"{name} = {shown} must be {bound}{'; ' + cure if cure else ''}")


@dataclass(frozen=True, slots=True)
class SLO:
    """Objectives of one stage: the first token in time, then a steady pace (paper, section 2).

    tpot: seconds per output token. The first token is due `ttft` seconds after the stage arrives,
    or `slowdown` times the zero-load time of its prompt; a stage that continues without a new
    prompt has neither and continues at its pace. rule: the rule by which the pace is counted, from
    `slos.core.pace`.
    """

    tpot: float
    ttft: float | None = None
    slowdown: float | None = None
    rule: str = PAPER

    def __post_init__(self) -> None:
        ttft, slow = self.ttft, self.slowdown
        require(self.tpot > 0, "tpot", self.tpot, "positive", "give seconds per output token")
        require(ttft is None or ttft > 0, "ttft", ttft, "positive", "give seconds, or None")
        require(slow is None or slow >= 1, "slowdown", slow, "at least 1 (times zero load)")
        require(None in (ttft, slow), "ttft", ttft, "None with a slowdown", "give only one")
        require(self.rule in RULES, "rule", self.rule, f"one of {', '.join(RULES)}")

    def first_token(self, zero_load: float) -> float:
        """Seconds until the first token is due; zero_load: seconds that its prompt takes alone."""
        if self.ttft is not None:
            return self.ttft
        return self.slowdown * zero_load if self.slowdown is not None else self.tpot


@dataclass(frozen=True, slots=True)
class Stage:
    """`prompt` new tokens join the context, then `output` tokens are generated.

    A stage with `wait` > 0 begins that many seconds after the end of the stage before it (a tool
    runs). Like the stateless API call that it stands for, it holds no KV blocks in the meantime and
    computes its whole context again as a prompt.
    """

    prompt: int
    output: int
    slo: SLO
    wait: float = 0.0

    def __post_init__(self) -> None:
        require(self.prompt >= 0, "prompt", self.prompt, "at least 0 tokens")
        require(self.output >= 1, "output", self.output, "at least 1 token")
        require(0 <= self.wait < inf, "wait", self.wait, "at least 0 seconds and finite")

    @property
    def goes_on(self) -> bool:
        """Whether it continues the stage before it: its first token is due at that stage's pace."""
        return self.prompt == 0 and self.wait == 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the workload made it: the truth, output lengths included. All its stages have
    the same rule of pace. `kind` groups requests in reports.

    prefix: what its context begins with, outputs included, as a sequence of (name, tokens). Equal
    names stand for equal tokens, which a prefix cache finds. (("system", 300),) is a prompt that
    other requests share, (("talk 7", context),) a turn of a conversation. The rest is its own.
    """

    id: str
    arrival: float
    stages: tuple[Stage, ...]
    value: float = 1.0
    kind: str = ""
    prefix: tuple[tuple[str | int, int], ...] = ()

    def __post_init__(self) -> None:
        id, start, stages = self.id, self.arrival, self.stages
        require(0 <= start < inf, f"{id}: arrival", start, "at least 0 and finite")
        require(len(stages) > 0, f"{id}: stages", stages, "at least one")
        first, rules = stages[0], sorted({stage.slo.rule for stage in stages})
        require(first.prompt >= 1, f"{id}: first prompt", first.prompt, "at least 1 token")
        require(first.wait == 0, f"{id}: first wait", first.wait, "0", "move the arrival instead")
        require(self.value > 0, f"{id}: value", self.value, "positive")
        shortest = min((n for _, n in self.prefix), default=1)
        require(shortest >= 1, f"{id}: tokens of a prefix", shortest, "at least 1")
        require(len(rules) == 1, f"{id}: rules of pace", rules, "the same in every stage")

    @property
    def rule(self) -> str:
        """The rule of pace that it is judged by."""
        return self.stages[0].slo.rule

    @property
    def context(self) -> int:
        """Tokens of all stages, prompts and outputs."""
        return self.prompt + self.output

    @property
    def prompt(self) -> int:
        return sum(s.prompt for s in self.stages)

    @property
    def output(self) -> int:
        return sum(s.output for s in self.stages)


@dataclass(slots=True, eq=False)
class Progress:
    """How far a request has come in its current stage. Hosts write it; for policies it is
    read-only.

    `tokens` are known (context and generated tokens), and `computed` of them are in the KV cache;
    when the last of them is computed the next token appears. `due` is the deadline of that next
    token: t0 for the first token of a stage, t0 + n * tpot for token n. t0 moves to the time of the
    first token (`slos.core.pace`) if that came late, or also if it came early and `client` is true.
    `later_tpot` is the smallest TPOT of the `stages_left` that follow without a wait, infinite if
    there are none; `follows`: whether this stage goes on where another ended. `elsewhere`: if it is
    declined before it starts, another replica is asked, so the sooner the better.

    With a prefix cache: `cached` tokens of a waiting request are found if it starts in this step,
    and perhaps not later; once it runs they count as `computed`. `shared`: those of its KV blocks
    that other requests hold too; while it waits, of the blocks that it would find.
    For length predictors: `kind`, the class of the request; `limit` and `told`, the tokens of
    context to which it may grow, and to which its client says it will; `told_stage`, the output
    tokens of this stage by the client; 0 where the client says nothing.
    """

    id: str
    arrival: float
    tokens: int
    t0: float
    tpot: float
    value: float = 1.0
    stage: int = 0
    generated: int = 0
    computed: int = 0
    best_effort: bool = False
    later_tpot: float = inf
    elsewhere: bool = False
    client: bool = False
    follows: bool = False
    stages_left: int = 0
    cached: int = 0
    shared: int = 0
    kind: str = ""
    limit: float = inf
    told: int = 0
    told_stage: int = 0

    @property
    def left(self) -> int:
        """Tokens to compute until the next one appears: 1 in decode, more in prefill."""
        return self.tokens - self.computed - self.cached

    @property
    def due(self) -> float:
        return self.t0 + self.generated * self.tpot


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may know at a step. `running` hold KV blocks, oldest admission first; `waiting`
    hold none. At most max_seqs run at once; a decode has at most max_drafts draft tokens."""

    now: float
    waiting: Sequence[Progress]
    running: Sequence[Progress]
    free_blocks: int
    total_blocks: int
    block_size: int = 16
    max_seqs: int = 256
    max_drafts: int = 0

    def blocks(self, tokens: int) -> int:
        """KV blocks that `tokens` tokens occupy."""
        return -(-tokens // self.block_size)

    def needs(self, p: Progress, tokens: int) -> int:
        """Free KV blocks that `tokens` more of a request take. If it starts, cached blocks that no
        other holds count too; no request that it would share with may be preempted in this step."""
        if p.computed:
            return self.blocks(p.computed + tokens) - self.blocks(p.computed)
        return self.blocks(p.cached + tokens) - p.shared

    def frees(self, *victims: Progress) -> int:
        """KV blocks that become free, at least, if these running requests are preempted."""
        held = sum(self.blocks(p.computed) for p in victims)
        shared = sum(p.shared for p in victims)
        if not shared or len(victims) == 1:
            return held - shared
        # holdings beyond the blocks in use are shared; the victims share at most so many
        twice = sum(self.blocks(p.computed) for p in self.running)
        twice -= self.total_blocks - self.free_blocks
        return held - min(shared, twice)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: ordered `{request id: tokens}`; a prefill chunk is n, a decode 1, a decode with
    drafts 1 + drafts. Tokens that are found in a prefix cache do not count. If a request finds more
    than the view said, because another request of the batch computes it, it gets as many tokens
    less, but at least one.

    `preempt` ids lose their KV blocks before the step and keep their tokens; `decline` ids become
    best effort, or leave for another replica (`Progress.elsewhere`). `repeat`: the policy would
    answer the same for so many steps in a row, as long as no request arrives or ends a stage, and
    `cached` and `shared` stay; a host may skip those calls, but accounts for every step.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    preempt: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
    repeat: float = 1

    def __post_init__(self) -> None:
        require(self.repeat >= 1, "repeat", self.repeat, "at least 1 step")


class Policy(Protocol):
    """Decides on one step. It reads no clock, never sleeps and uses no global random state."""

    def step(self, view: View) -> Batch: ...


class LengthPredictor(Protocol):
    """Predicts how many tokens a request will still add to its context before it gives back its KV
    blocks: `remaining`, at least 1, of which `after_stage` in stages that follow without a wait.
    Both may change from step to step. `at_least`: output tokens of this stage that are sure to
    come. By default a predictor is sure of one token, and learns nothing from its host.
    """

    def remaining(self, progress: Progress) -> int: ...

    def after_stage(self, progress: Progress) -> int: ...

    def at_least(self, progress: Progress) -> int:
        return 1

    def began(self, progress: Progress) -> None:
        """A stage has its first token; the host keeps `progress` up to date."""

    def ended(self, progress: Progress, last: bool) -> None:
        """A stage ended, and `progress` is as it is now; last: the KV blocks were given back."""

    def aborted(self, progress: Progress) -> None:
        """A request was aborted in the middle of a stage."""
