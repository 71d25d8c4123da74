"""The steps of an engine of vLLM's while they are under way, and what is measured of each. The
engine's own objects are read by duck typing: nothing here imports it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

Measured = tuple[float, float, float, float]
"""Tokens, draft steps, context tokens, and seconds of one executed step."""


@dataclass(frozen=True, slots=True)
class Step:
    """`tokens` computed for `requests`, of which `decodes` decode; the longest draft that was
    verified, in tokens; `context`, the KV tokens that its requests had before it; `seconds` of the
    step, and `planning` seconds of them inside `schedule`; `end` on the engine's clock."""

    tokens: int
    requests: int
    decodes: int
    draft_steps: int
    context: int
    seconds: float
    planning: float
    end: float

    @property
    def measured(self) -> Measured:
        return self.tokens, self.draft_steps, self.context, self.seconds


class InFlight:
    """The steps that were scheduled and whose tokens are not here yet, each with its begin.

    With asynchronous scheduling a step lasts from the end of the one before it: what is decided or
    prepared meanwhile costs nothing.
    """

    def __init__(self) -> None:
        self.flying: deque[tuple[float, Step]] = deque()
        self.last_end, self.busy = 0.0, False

    def began(
        self, start: float, out: Any, requests: Mapping[str, Any], planning: float = 0.0
    ) -> None:
        """A step was formed from `start` on; out: vLLM's, of `requests`, perhaps of none."""
        ran = out.num_scheduled_tokens
        if ran:
            drafts = max(map(len, out.scheduled_spec_decode_tokens.values()), default=0)
            before = {id: requests[id].num_computed_tokens - n for id, n in ran.items()}
            decodes = sum(n >= requests[id].num_prompt_tokens for id, n in before.items())
            begin = self.last_end if self.busy and not self.flying else start
            counts = sum(ran.values()), len(ran), decodes, drafts, sum(before.values())
            self.flying.append((begin, Step(*counts, 0.0, planning, 0.0)))
        self.busy = bool(ran)

    def ended(self, now: float) -> Step:
        """The oldest step in flight, which has ended."""
        begin, step = self.flying.popleft()
        seconds, self.last_end = now - max(begin, self.last_end), now
        return replace(step, seconds=seconds, end=now)

    def pause(self) -> None:
        """The caller does something else now: the next step begins when it is asked for."""
        self.busy = False
