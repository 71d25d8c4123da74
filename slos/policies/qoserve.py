"""QoServe, first published as Niyama (Goel et al., ASPLOS'26, arXiv 2503.22562), as a policy.

Every decode has a token in every step. What is left of the step is for prompts, and three rules
say how much that is and whose:

1. Dynamic chunking: a step takes as many tokens as the most urgent decode has slack for.
2. Hybrid prioritization: prompts go by deadline, longer ones a little later.
3. Eager relegation: a prompt that cannot be in time any more goes behind all others.

A prompt starts where its own tokens fit the KV cache, as in Sarathi-Serve, on which it is built.
The original never preempts, and stops where the cache is full; here the youngest is preempted.
Constants are those of the authors' code: `deadline_scheduler.py` of branch `niyama_asplos2026` of
microsoft/sarathi-serve.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from slos.core.roofline import Roofline
from slos.core.types import FOREVER, Batch, LengthPredictor, Progress, View, require
from slos.policies.baselines import admit, decodes_first

# tokens that a step may take, decodes included: the first where none fits
SIZES = (128, *range(256, 2049, 256), 2552)
SHORT = 32_000  # while fewer tokens of the KV cache are free it may take
SIZES_IF_SHORT = (128, 256, 384, 512)
# prompt tokens per second, as they are expected at first, and what a step leaves of that
RATE, DECAY = 8500.0, 0.995


@dataclass(slots=True)
class QoServe:
    """As published; settings tune a rule or take it away.

    roofline: how long a step takes (theirs are two linear fits for one GPU). margin: times the
    predicted seconds that have to fit the slack. free: a step has any size up to the largest.
    by_deadline: rule 2, else by arrival. hybrid: seconds of deadline per token left (0.001 at low
    load in the paper). relegate: rule 3. foresee: not theirs, but the next step from here to ours:
    a prompt starts where the KV cache holds all requests to their ends, by `lengths`.
    """

    roofline: Roofline
    lengths: LengthPredictor
    margin: float = 1.2
    free: bool = False
    by_deadline: bool = True
    hybrid: float = 0.008
    relegate: bool = True
    foresee: bool = False
    _relegated: set[str] = field(init=False, repr=False, default_factory=set)
    _rate: float = field(init=False, repr=False, default=RATE)
    _last: tuple[float, int] = field(init=False, repr=False, default=(0.0, 0))

    def __post_init__(self) -> None:
        require(self.margin > 0, "margin", self.margin, "positive (times the predicted seconds)")
        require(self.hybrid >= 0, "hybrid", self.hybrid, "at least 0 (seconds per token)")

    def step(self, view: View) -> Batch:
        then, prompt_tokens = self._last
        if prompt_tokens and view.now > then:  # how fast prompts went in the last step
            self._rate = DECAY * self._rate + (1 - DECAY) * prompt_tokens / (view.now - then)
        tokens, preempted, prompts, free = decodes_first(view)
        decoding = [p for p in view.running if p.id in tokens]
        queue = self.ordered(view, [*prompts, *view.waiting])
        size = self.size(view, decoding, queue)
        if preempted:  # no room for others
            queue = [p for p in queue if p.computed]
        left = self.fill(view, tokens, queue, (size - len(tokens), free))
        self._last = view.now, sum(tokens.get(p.id, 0) for p in queue)
        steady = not (prompts or preempted or view.waiting) and left == free
        return Batch(tokens, tuple(preempted), repeat=FOREVER if steady else 1)

    def size(self, view: View, decoding: Sequence[Progress], queue: Sequence[Progress]) -> int:
        """Tokens of the step, those of the decodes included."""
        slack = min((p.due for p in decoding), default=inf) - view.now
        context = sum(p.computed for p in (*decoding, *queue[:1]))
        if self.free:
            fits = self.roofline.fits(min(slack, 1e6) / self.margin, 0, context)
            return min(max(fits, SIZES[0]), SIZES[-1])
        sizes = SIZES_IF_SHORT if view.free_blocks * view.block_size < SHORT else SIZES
        fit = [n for n in sizes if self.margin * self.roofline.time(n, 0, context) <= slack]
        return max(fit, default=sizes[0])

    def ordered(self, view: View, prompts: Sequence[Progress]) -> list[Progress]:
        """The order in which prompts are served."""
        if self.relegate:
            known, now = self._relegated.intersection(p.id for p in prompts), view.now
            gone = (p.id for p in prompts if not p.computed and now + p.left / self._rate > p.due)
            self._relegated = known.union(gone)

        def rank(p: Progress) -> tuple[bool, float]:
            deadline = p.due + self.hybrid * p.left if self.by_deadline else 0.0
            return p.id in self._relegated, deadline

        queue = sorted(prompts, key=rank)
        return self._fitting(view, queue) if self.foresee else queue

    def fill(
        self, view: View, tokens: dict[str, int], queue: Sequence[Progress], left: tuple[int, int]
    ) -> int:
        """Give prompts what is `left` of the step's tokens and of the blocks; the blocks left."""
        return admit(view, tokens, queue, left)[1]

    def _fitting(self, view: View, queue: Sequence[Progress]) -> list[Progress]:
        """Without those that start where the KV cache will not hold all of them at every step to
        come, in which each has a token."""
        lives = sorted((self.lengths.remaining(p), p.tokens) for p in view.running)
        kept, closed = [], False
        for p in queue:
            if not p.computed and not closed:
                insort(lives, life := (self.lengths.remaining(p), p.tokens))
                if closed := peak(lives) > view.total_blocks * view.block_size and len(lives) > 1:
                    lives.remove(life)
            kept += [p] if p.computed or not closed else []
        return kept


def peak(lives: Sequence[tuple[int, int]]) -> int:
    """Most KV tokens held at once, by requests of (steps to go, tokens), fewest steps
    first."""
    most, held, count = 0, sum(tokens for _, tokens in lives), len(lives)
    for steps, tokens in lives:
        most = max(most, held + count * steps)
        held, count = held - tokens, count - 1
    return most
