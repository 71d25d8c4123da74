"""The schedulers that the paper compares with, as policies.

All three serve first come, first served, and know no objectives. When the KV cache is full they
preempt the youngest request and recompute it later, as the originals do. `drafts` is their fixed
draft length, if there is a draft model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from sys import maxsize
from typing import final

from slos.core.types import FOREVER, Batch, Progress, View, require


def _evict(
    running: list[Progress], p: Progress, need: int, free: int, view: View, whole: bool
) -> tuple[int, list[str]]:
    """Pop from the tail of `running` until `need` blocks are free or `p` is gone: free blocks, ids
    preempted. whole: a prefill under way gives back the blocks of all its tokens."""
    victims, before = list[Progress](), free
    while need > free:
        victims.append(victim := running.pop())
        if whole and victim.left > 1:
            before += view.blocks(victim.tokens) - view.blocks(victim.computed)
        free = before + view.frees(*victims)
        if victim is p:
            break
    return free, [victim.id for victim in victims]


def _serve(
    view: View, first: Sequence[Progress], others: Sequence[Progress], free: int, drafts: int,
    budget: int = maxsize,
) -> tuple[dict[str, int], list[str], int]:  # fmt: skip
    """Serve the tokens left of each of `first` within the budget, with `drafts` added to decodes;
    preempt the youngest if blocks run out. Returns the tokens, the ids preempted and the free
    blocks. others: prefills under way, which are younger.
    """
    tokens, preempted, running = dict[str, int](), list[str](), [*first, *others]
    drafts, size = min(drafts, view.max_drafts), view.block_size
    for at, p in enumerate(first):
        if at >= len(running) or not budget:
            break
        left = p.tokens - p.computed
        # drafts that do not fit the whole cache would preempt their own request again and again
        more = min(drafts, view.total_blocks * size - p.tokens) if left == 1 else 0
        n = min(left + max(0, more), budget)
        need = -(-(p.computed + n) // size) - -(-p.computed // size)
        if need > free:
            free, victims = _evict(running, p, need, free, view, whole=bool(others))
            preempted += victims
            if victims[-1] == p.id:
                break
        tokens[p.id] = n
        budget -= n
        free -= need
    return tokens, preempted, free


def decodes_first(
    view: View, drafts: int = 0
) -> tuple[dict[str, int], list[str], list[Progress], int]:
    """A token plus `drafts` for every decode, the oldest first. Returns the tokens, the ids
    preempted, the prefills under way, and the free blocks besides those reserved for them."""
    decoding = [p for p in view.running if p.tokens - p.computed == 1]
    prefilling = [p for p in view.running if p.tokens - p.computed > 1]
    set_aside = sum(view.blocks(p.tokens) - view.blocks(p.computed) for p in prefilling)
    free = view.free_blocks - set_aside
    tokens, preempted, free = _serve(view, decoding, prefilling, free, drafts)
    # the prompt of a stage that follows an output, which no admission reserved
    if prefilling and free < 0:
        keep = [p for p in (*decoding, *prefilling) if p.id not in preempted]
        free, victims = _evict(keep, keep[0], 0, free, view, whole=True)
        preempted += victims
        tokens = {id: n for id, n in tokens.items() if id not in victims}
    return tokens, preempted, [p for p in prefilling if p.id not in preempted], free


def admit(
    view: View, tokens: dict[str, int], queue: Sequence[Progress], left: tuple[int, int],
    watermark: float = 0.0, whole: bool = False,
) -> tuple[int, int]:  # fmt: skip
    """Add chunks of the prompts in `queue` to `tokens`, in order; returns the budget and blocks
    left. The blocks decrease if and only if a request has started.

    left: the step's token budget, and the free blocks besides those reserved for prefills under
    way, which may be in the queue too. A request that starts gets its blocks reserved; then
    `watermark` of all blocks must stay free, unless it is alone. None overtakes the first one that
    does not fit. whole: no chunks; a prompt above the budget runs alone.
    """
    seats, reserve = view.max_seqs - len(view.running), int(watermark * view.total_blocks)
    (budget, free), closed = left, False
    for p in queue:
        if budget <= 0 or (whole and tokens and p.left > budget):
            break
        if not p.computed:
            if closed:
                continue
            need, alone = view.needs(p, p.left), not view.running and not tokens
            closed = seats <= 0 or need > free - (0 if alone else reserve)
            if closed:
                continue
            seats, free = seats - 1, free - need
        tokens[p.id] = n = p.left if whole else min(p.left, budget)
        budget -= n
    return budget, free


@final
@dataclass(slots=True)
class VLLM:
    """vLLM as in the paper (before V1): whole prompts, prefill first; otherwise all decode.

    max_batched_tokens bounds a prefill batch (a longer prompt runs alone); `watermark` of all
    blocks must stay free at admission.
    """

    max_batched_tokens: int = 2048
    watermark: float = 0.01
    drafts: int = 0

    def __post_init__(self) -> None:
        most = self.max_batched_tokens
        require(most >= 1, "max_batched_tokens", most, "at least 1")
        require(0 <= self.watermark < 1, "watermark", self.watermark, "in [0, 1)")

    def step(self, view: View) -> Batch:
        tokens, left = dict[str, int](), (self.max_batched_tokens, view.free_blocks)
        admit(view, tokens, view.waiting, left, self.watermark, whole=True)
        if tokens:
            return Batch(tokens)
        tokens, preempted, _ = _serve(view, view.running, (), view.free_blocks, self.drafts)
        return Batch(tokens, preempt=tuple(preempted), repeat=1 if preempted else FOREVER)


@final
@dataclass(slots=True)
class VLLMV1:
    """vLLM V1's default: one token budget, for running requests, then waiting ones, in chunks.

    max_batched_tokens: `vllm serve` uses 2048 on an A100, 8192 on an H100. A waiting request is
    admitted if its whole prompt fits the free blocks, but not in a step that preempts.
    """

    max_batched_tokens: int = 2048
    drafts: int = 0

    def __post_init__(self) -> None:
        most = self.max_batched_tokens
        require(most >= 1, "max_batched_tokens", most, "at least 1")

    def step(self, view: View) -> Batch:
        most, free = self.max_batched_tokens, view.free_blocks
        tokens, preempted, free = _serve(view, view.running, (), free, self.drafts, most)
        total, left = sum(tokens.values()), free
        if not preempted:
            _, left = admit(view, tokens, view.waiting, (most - total, free))
        # a token each, so all decode
        steady = not preempted and left == free and total == len(view.running) < most
        return Batch(tokens, preempt=tuple(preempted), repeat=FOREVER if steady else 1)


@final
@dataclass(slots=True)
class Sarathi:
    """Sarathi-Serve: stall-free batches of at most `chunk` tokens: decodes, then prefills under
    way, then new ones. Admission reserves all blocks of a prompt, and `watermark` of all blocks
    must stay free.
    """

    chunk: int = 512
    watermark: float = 0.01
    drafts: int = 0

    def __post_init__(self) -> None:
        require(self.chunk >= 1, "chunk", self.chunk, "at least 1 token")
        require(0 <= self.watermark < 1, "watermark", self.watermark, "in [0, 1)")

    def step(self, view: View) -> Batch:
        tokens, preempted, prompts, free = decodes_first(view, self.drafts)
        queue = prompts if preempted else [*prompts, *view.waiting]
        budget = self.chunk - sum(tokens.values())
        _, left = admit(view, tokens, queue, (budget, free), self.watermark)
        steady = not (prompts or preempted) and left == free
        return Batch(tokens, preempt=tuple(preempted), repeat=FOREVER if steady else 1)
