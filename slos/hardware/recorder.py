"""A row of every step that vLLM executes, and how long its scheduler took to decide it."""

from __future__ import annotations

import csv
from dataclasses import astuple, fields
from pathlib import Path
from time import perf_counter
from typing import Any, cast

from vllm.v1.core.sched.async_scheduler import AsyncScheduler

from slos.hardware.steps import InFlight, Step


class Recording:
    """Mixin over a scheduler of vLLM's: its executed steps in `steps`, on the clock of
    `perf_counter`; where `--additional-config` names a file as "steps", they are in that CSV file
    when the engine shuts down, and every `FLUSH` steps."""

    FLUSH = 256

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        config = dict(cast(Any, self).vllm_config.additional_config or {})
        self.path = Path(config["steps"]) if config.get("steps") else None
        self.steps: list[Step] = []
        self.written = 0
        self.in_flight = InFlight()
        # tokens that the draft model proposes next; None: as many as vLLM says
        self.drafts: int | None = None

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        start = perf_counter()
        out = cast(Any, super()).schedule(*args, **kwargs)
        self.in_flight.began(start, out, cast(Any, self).requests, perf_counter() - start)
        return out

    def _update_after_schedule(self, scheduler_output: Any) -> None:
        if self.drafts is not None:
            scheduler_output.num_spec_tokens_to_schedule = self.drafts
        cast(Any, super())._update_after_schedule(scheduler_output)

    def update_from_output(self, scheduler_output: Any, *args: Any, **kwargs: Any) -> Any:
        if scheduler_output.num_scheduled_tokens and self.in_flight.flying:
            self.steps.append(self.in_flight.ended(perf_counter()))
            if len(self.steps) >= self.written + self.FLUSH:
                self.flush()
        return cast(Any, super()).update_from_output(scheduler_output, *args, **kwargs)

    def flush(self) -> None:
        """Append to the file, if there is one, what is not in it yet."""
        if self.path:
            with self.path.open("a", newline="") as out:
                writer = csv.writer(out)
                if not self.written:
                    writer.writerow(f.name for f in fields(Step))
                writer.writerows(astuple(step) for step in self.steps[self.written :])
            self.written = len(self.steps)

    def shutdown(self) -> None:
        self.flush()
        cast(Any, super()).shutdown()


class Stock(Recording, AsyncScheduler):
    """vLLM's own scheduler, recorded."""
