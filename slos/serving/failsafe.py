"""A guard around what an engine does besides scheduling: a failure there must not end it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

logger = logging.getLogger("vllm.slos")  # a name under vLLM's, so that its log shows it


class Failsafe:
    """`with failsafe("learning"):` logs the first failure of each name, and the engine goes on."""

    def __init__(self) -> None:
        self.warned: set[str] = set()

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception:
            if what not in self.warned:
                logger.exception("%s failed; the engine goes on without", what)
            self.warned.add(what)
