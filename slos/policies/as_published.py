"""The baselines as the paper had them, where that is no setting of today's policies.

The authors published a simulation with their engines (one commit of August 2025). There vLLM and
Sarathi-Serve are simpler than the engines of these names, and so is memory. The settings of all of
them are `AS_PUBLISHED` of `slos.evaluation.grids`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from sys import maxsize
from typing import final

from slos.core.roofline import Roofline
from slos.core.types import FOREVER, Batch, LengthPredictor, Progress, View
from slos.policies.baselines import VLLM, Sarathi, admit, decodes_first

ONE_BY_ONE = VLLM(max_batched_tokens=1, watermark=0.0)  # each prompt is a batch of its own
GRID = 32  # the authors look for a cap among 1, 33, 65, ... tokens


def cap(roofline: Roofline, requests: Sequence[Progress]) -> int:
    """Most tokens of a step within the strictest TPOT of `requests`, at least one of them; 1 at the
    least. OPT-6.7B on an A100: 353 at 50 ms, 1089 at 100."""
    most = roofline.fits(min(p.tpot for p in requests))
    return 1 + max(0, most - 1) // GRID * GRID


def set_aside(view: View, lengths: LengthPredictor, step: Callable[[View], Batch]) -> Batch:
    """What a policy's `step` answers with memory as in the authors' simulation: prompt and output
    are set aside whole at admission, and what does not fit is declined.

    There a declined request is gone. Here it is served to its end when none but declined ones are
    left, and gives way at once.
    """

    def whole(p: Progress) -> int:
        return view.blocks(p.tokens + lengths.remaining(p))

    gone = [p for p in view.running if p.best_effort]
    running = [p for p in view.running if not p.best_effort]
    free = view.free_blocks + view.frees(*gone)
    left, admitted, declined = min(free, view.total_blocks - sum(map(whole, running))), [], []
    for p in view.waiting:
        if not p.best_effort:
            fits = whole(p) <= left
            # what it would share with those that go is gone, too
            (admitted if fits else declined).append(replace(p, shared=0) if gone else p)
            left -= whole(p) if fits else 0
    no = tuple(p.id for p in declined)
    if running or admitted:
        batch = step(replace(view, running=running, waiting=admitted, free_blocks=free))
        return replace(batch, preempt=(*batch.preempt, *(p.id for p in gone)), decline=no)
    last = [p for p in view.waiting if p.best_effort or not p.elsewhere]
    return replace(ONE_BY_ONE.step(replace(view, waiting=last)), decline=no)


@final
@dataclass(slots=True)
class VLLMAuthors:
    """vLLM in the authors' simulation: each prompt is a batch of its own, else all decode; memory
    as `set_aside`."""

    lengths: LengthPredictor

    def step(self, view: View) -> Batch:
        return set_aside(view, self.lengths, ONE_BY_ONE.step)


@final
@dataclass(slots=True)
class SarathiAuthors:
    """Sarathi-Serve in the authors' simulation: what decodes leave of the cap is split equally over
    all prompts (rounded down); while no request decodes, all prompts are one batch, whole.

    paged: whether memory is as in the engine, where a prompt waits until its blocks are free;
    instead of `set_aside`.
    """

    roofline: Roofline
    lengths: LengthPredictor
    paged: bool = False

    def step(self, view: View) -> Batch:
        return self.split(view) if self.paged else set_aside(view, self.lengths, self.split)

    def split(self, view: View) -> Batch:
        tokens, preempted, prompts, free = decodes_first(view)
        new: dict[str, int] = {}
        if not preempted:
            watermark = 0.01 if self.paged else 0.0
            admit(view, new, view.waiting, (maxsize, free), watermark)
        prompts += [p for p in view.waiting if p.id in new]
        share = maxsize
        if tokens and prompts:
            room = cap(self.roofline, [p for p in view.running if p.id in tokens]) - len(tokens)
            share = max(0, room) // len(prompts)
        tokens |= {p.id: min(p.left, share) for p in prompts if share}
        steady = not (prompts or preempted)
        return Batch(tokens, preempt=tuple(preempted), repeat=FOREVER if steady else 1)


@final
@dataclass(slots=True)
class SarathiCapped:
    """Sarathi-Serve, the engine, whose chunk is the `cap` of those who decode; of everybody while
    none does."""

    roofline: Roofline

    def step(self, view: View) -> Batch:
        decodes = [p for p in view.running if p.left == 1]
        requests = decodes or [*view.running, *view.waiting]
        return Sarathi(chunk=cap(self.roofline, requests)).step(view)
