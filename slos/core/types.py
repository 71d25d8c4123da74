"""The contracts: what a request is, what a policy sees and what it answers.

Seconds, tokens and KV blocks everywhere. A host (the simulator, the vLLM plug-in) owns the mutable
`Progress` records and shows them to a policy inside a `View`; the policy answers with a `Batch`.
True output lengths live in `Request`, which a policy never sees: it learns a length only from the
`LengthPredictor` that it was given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from slos.core.pace import PAPER, RULES

QUOTED = 200  # characters of a value in a message, at the most
NEVER = inf  # a time that does not come


def require(ok: bool, name: str, value: object, bound: str, cure: str = "") -> None:
    """Raise `ValueError` naming the value, its bound and the cure unless `ok`."""
    if not ok:
        shown = repr(value)
        shown = shown if len(shown) <= QUOTED else shown[: QUOTED - 3] + "..."
        raise ValueError(f"{name} = {shown} must be {bound}{'; ' + cure if cure else ''}")


@dataclass(frozen=True, slots=True)
class SLO:
    """Objectives of one stage: the first token in time, then a steady pace (paper, section 2).

    tpot: seconds per output token. The first token is due `ttft` seconds after the stage arrives,
    or `slowdown` times the zero-load time of its prompt; a stage that continues without a new
    prompt has neither and goes on at its pace. rule: by which the pace is counted, of
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
        require(None in (ttft, slow), "ttft", ttft, "None beside a slowdown", "give only one")
        require(self.rule in RULES, "rule", self.rule, f"one of {', '.join(RULES)}")

    def first_token(self, zero_load: float) -> float:
        """Seconds until the first token is due; zero_load: what its prompt takes alone."""
        if self.ttft is not None:
            return self.ttft
        return self.slowdown * zero_load if self.slowdown is not None else self.tpot


@dataclass(frozen=True, slots=True)
class Stage:
    """`prompt` new tokens join the context, then `output` tokens are generated.

    A stage with `wait` > 0 begins that many seconds after the one before it ended (a tool runs);
    like the stateless API call that it is, it has given its KV blocks back and brings its whole
    context as a prompt again.
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
        """Whether it continues the stage before it: its first token is due at its pace."""
        return self.prompt == 0 and self.wait == 0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the workload made it: the truth, output lengths included. Its stages have one
    rule of pace. `kind` groups requests in reports.

    prefix: what its context begins with, outputs included, as (name, tokens) in turn: where names
    are the same tokens are, which a prefix cache finds. (("system", 300),) is a prompt that others
    share, (("talk 7", context),) a turn of a conversation. What lies beyond is the request's own.
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
        """Tokens of the whole conversation, prompts and outputs."""
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

    `tokens` are known (context and what was generated), `computed` of them are in the KV cache;
    when the last of them is computed the next token appears. `due` is the deadline of that next
    token: the first token of a stage at `t0`, token n at t0 + n * tpot, where t0 moves to the first
    token's time (`slos.core.pace`) if that came late, or early where `client` is true. `later_tpot`
    is the smallest TPOT of the `stages_left` that follow without a wait, infinite if there are
    none; `follows`: whether this one did. `elsewhere`: if it is declined before it starts another
    replica is asked, at once better than late.

    With a prefix cache: `cached` tokens of one that waits are found if it starts in this step, and
    perhaps not later; once it runs they are among the `computed`. `shared`: its KV blocks that
    others hold too; while it waits, of those that it would find.
    For predictors of lengths: `kind`, the class of the request; `limit` and `told`, to how many
    tokens of context it may grow and the client says it will; `told_stage`, the output tokens of
    this stage by the client; 0 where it says nothing.
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
        """Tokens to compute until the next one appears: 1 while decoding, more while prefilling."""
        return self.tokens - self.computed - self.cached

    @property
    def due(self) -> float:
        return self.t0 + self.generated * self.tpot


@dataclass(frozen=True, slots=True)
class View:
    """What a policy may know at a step. `running` hold KV blocks, oldest admission first; `waiting`
    hold none. At most max_seqs run at once, and a decode has at most max_drafts draft tokens."""

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
        """Free KV blocks that `tokens` more of a request take; of one that starts those too that it
        finds free, if none that it would share with is preempted in this step."""
        if p.computed:
            return self.blocks(p.computed + tokens) - self.blocks(p.computed)
        return self.blocks(p.cached + tokens) - p.shared

    def frees(self, *victims: Progress) -> int:
        """KV blocks that come free if these running requests are preempted, at the least."""
        held = sum(self.blocks(p.computed) for p in victims)
        shared = sum(p.shared for p in victims)
        if not shared or len(victims) == 1:
            return held - shared
        # where they hold more than all share with others, they share it with each other
        twice = sum(self.blocks(p.computed) for p in self.running)
        twice -= self.total_blocks - self.free_blocks
        return held - min(shared, twice)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: ordered `{request id: tokens}`; a prefill chunk is n, a decode 1, a decode with
    drafts 1 + drafts. What is found in a prefix cache is held first and counts as no token; one
    that finds more than the view said, because another of the batch computes it, is given so much
    less, but a token at least.

    `preempt` ids lose their KV blocks before the step and keep their tokens; `decline` ids become
    best effort, or leave for another replica (`Progress.elsewhere`). `repeat`: for so many steps in
    a row the policy would answer the same while none arrives or ends a stage; a host may save those
    calls, and accounts for every step.
    """

    tokens: Mapping[str, int] = field(default_factory=dict)
    preempt: tuple[str, ...] = ()
    decline: tuple[str, ...] = ()
    repeat: float = 1

    def __post_init__(self) -> None:
        require(self.repeat >= 1, "repeat", self.repeat, "at least 1 step")


@dataclass(frozen=True, slots=True)
class Load:
    """What a router may know of one replica, as it will be when the step in flight ends.

    step_end: when that is, now if none is in flight. waiting, running: requests. Of those that are
    not best effort, which gives way: `prefill_tokens` left to compute, `decodes` as (TPOT,
    requests) ascending, and `claimed_blocks`, the KV blocks that they will have held at their ends.
    """

    replica: str
    step_end: float
    waiting: int
    running: int
    free_blocks: int
    total_blocks: int
    block_size: int = 16
    prefill_tokens: int = 0
    decodes: tuple[tuple[float, int], ...] = ()
    claimed_blocks: int = 0


class Policy(Protocol):
    """Decides one step. Reads no clock, never sleeps, uses no global random state."""

    def step(self, view: View) -> Batch: ...


class Router(Protocol):
    """Names the replicas to ask for a request, as a policy would see it at its arrival, in turn:
    each may pass it on to the next, the last one keeps it. `loads` is never empty."""

    def rank(self, request: Progress, loads: Sequence[Load]) -> Sequence[str]: ...


class LengthPredictor(Protocol):
    """Says how many tokens a request will still add to its context before it gives its KV blocks
    back: `remaining`, at least 1, and of those `after_stage` in stages that follow without a wait.
    Both may change from step to step. `at_least` so many output tokens of this stage are sure to
    come. A subclass inherits that it is sure of nothing, and learns nothing of what its host tells.
    """

    def remaining(self, progress: Progress) -> int: ...

    def after_stage(self, progress: Progress) -> int: ...

    def at_least(self, progress: Progress) -> int:
        return 1

    def began(self, progress: Progress) -> None:
        """A stage has its first token; its host keeps the record up to date."""

    def ended(self, progress: Progress, last: bool) -> None:
        """A stage ended, as the record is now; last: the KV blocks came back."""

    def aborted(self, progress: Progress) -> None:
        """A request ends, and no stage with it."""
