"""A row of every step that vLLM executes, and how long its scheduler took to decide it."""

from __future__ import annotations

import csv
from collections import deque
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from vllm.v1.core.sched.async_scheduler import AsyncScheduler


@dataclass(frozen=True, slots=True)
class Step:
    """One executed step: `tokens` computed for `requests`, of which `decodes` decode; the longest
    draft that was verified, in tokens; `context`, the KV tokens that its requests had before it;
    `seconds` of the step, and `planning` seconds of them inside `schedule`; `end` on the clock of
    `perf_counter`.

    With asynchronous scheduling a step lasts from the end of the one before it: what is decided or
    prepared meanwhile costs nothing."""

    tokens: int
    requests: int
    decodes: int
    draft_steps: int
    context: int
    seconds: float
    planning: float
    end: float


COLUMNS = tuple(f.name for f in fields(Step))


class Recording:
    """Mixin over a scheduler of vLLM's: its executed steps in `steps`. Where `--additional-config`
    names a file as "steps", they go to that CSV file every `FLUSH` steps, and when the engine shuts
    down."""

    FLUSH = 256

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = dict(cast(Any, self).vllm_config.additional_config or {})
        self.path = Path(config["steps"]) if config.get("steps") else None
        self.steps: list[Step] = []
        self.drafts: int | None = None  # tokens to propose next; None: as many as vLLM says
        self._flying: deque[tuple[float, int, int, int, int, int, float]] = deque()
        self._last_end, self._busy = 0.0, False

    @property
    def in_flight(self) -> int:
        """Steps that were scheduled and whose tokens are not here yet."""
        return len(self._flying)

    def pause(self) -> None:
        """The caller does something else now: the next step begins when it is asked for."""
        self._busy = False

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        out = cast(Any, super()).schedule(*args, **kwargs)
        planning = perf_counter() - start
        ran = out.num_scheduled_tokens
        if ran:
            drafts = max(map(len, out.scheduled_spec_decode_tokens.values()), default=0)
            requests = cast(Any, self).requests
            before = {id: requests[id].num_computed_tokens - n for id, n in ran.items()}
            decodes = sum(n >= requests[id].num_prompt_tokens for id, n in before.items())
            begin = self._last_end if self._busy and not self._flying else start
            tokens, context = sum(ran.values()), sum(before.values())
            self._flying.append((begin, tokens, len(ran), decodes, drafts, context, planning))
        self._busy = bool(ran)
        return out

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if self.drafts is not None:
            scheduler_output.num_spec_tokens_to_schedule = self.drafts
        cast(Any, super())._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.num_scheduled_tokens and self._flying:
            now = perf_counter()
            begin, tokens, requests, decodes, drafts, context, planning = self._flying.popleft()
            seconds, self._last_end = now - max(begin, self._last_end), now
            step = Step(tokens, requests, decodes, drafts, context, seconds, planning, now)
            self.steps.append(step)
            if len(self.steps) >= self.FLUSH:
                self.flush()
        return cast(Any, super()).update_from_output(scheduler_output, *args, **kwargs)

    def flush(self) -> None:
        """Move the steps to the end of the file, if there is one."""
        if self.path:
            with self.path.open("a", newline="") as out:
                writer = csv.writer(out)
                if not out.tell():
                    writer.writerow(COLUMNS)
                writer.writerows(astuple(step) for step in self.steps)
            self.steps.clear()

    def shutdown(self) -> None:
        self.flush()
        cast(Any, super()).shutdown()


class Stock(Recording, AsyncScheduler):
    """vLLM's own scheduler, recorded."""
