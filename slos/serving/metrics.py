"""What becomes of requests, for Prometheus: counted in the engine, shown at vLLM's own `/metrics`.

An engine is a process of its own. A thread of it writes what it has counted to a file, in
Prometheus' text format, and the front-end reads the files whenever it is asked for its metrics. So
neither waits for the other, and a full disk costs no more than numbers that stand still.
"""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable, Iterable
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from slos.core.pace import TOLERANCE
from slos.serving.calls import METRICS
from slos.serving.failsafe import Failsafe
from slos.serving.tracked import Tracked

EVERY = 0.5  # seconds between two looks at what there is to write
LATE = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, inf)
SECONDS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, inf)
OURS = re.compile(rb"^(# (HELP|TYPE) )?slos_.*\n", re.MULTILINE)
RATIOS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.4, 1.7, 2.0, 3.0, 5.0, inf)


class Metrics:
    """The numbers of one engine, whose requests are `living()`."""

    def __init__(self, living: Callable[[], Iterable[Tracked]]) -> None:
        self.registry = CollectorRegistry()

        def made(kind: Any, name: str, what: str, *labels: str, **more: Any) -> Any:
            return kind(f"slos_{name}", what, labels, registry=self.registry, **more)

        what = "Requests by what became of them: attained, late, best_effort (served after it was "
        what += "declined), declined (ended unserved), aborted."
        self.requests = made(Counter, "requests", what, "class", "outcome")
        what = "Seconds by which a request missed the worst of its deadlines, 0 if none."
        self.lateness = made(Histogram, "lateness_seconds", what, "class", buckets=LATE)
        what = "Seconds that a step took."
        self.steps = made(Histogram, "step_seconds", what, buckets=SECONDS)
        what = "Time of a step over what the roofline says."
        self.ratio = made(Histogram, "step_roofline_ratio", what, buckets=RATIOS)
        what = "Seconds that the policy took to decide on a step."
        self.planning = made(Histogram, "planning_seconds", what, buckets=SECONDS)
        what = "Requests that are best effort now, waiting or running."
        best_effort = made(Gauge, "best_effort_requests", what)
        best_effort.set_function(lambda: sum(t.progress.best_effort for t in living()))

    def ended(self, t: Tracked, aborted: bool, now: float) -> None:
        """A request is over, at `now` if it was served."""
        kind = t.progress.kind
        if aborted or not t.request.num_output_tokens:
            return self.requests.labels(kind, "declined" if t.declined else "aborted").inc()
        late = t.late(now)
        self.lateness.labels(kind).observe(max(0.0, late))
        outcome = "attained" if late <= TOLERANCE else "late"
        self.requests.labels(kind, "best_effort" if t.progress.best_effort else outcome).inc()

    def step(self, seconds: float, expected: float | None) -> None:
        self.steps.observe(seconds)
        if expected:
            self.ratio.observe(seconds / expected)

    def publish(self, engine: int) -> None:
        """Keep a file up to date from now on, if `METRICS` names a folder. engine: its number."""
        if folder := os.environ.get(METRICS):
            path = Path(folder) / f"{engine}.prom"
            threading.Thread(target=self._write, args=(path,), daemon=True).start()

    def _write(self, path: Path) -> None:
        written, part, failsafe = b"", path.with_suffix(".part"), Failsafe()
        while path.parent.is_dir():  # the folder goes with its server
            with failsafe("writing metrics"):
                if (text := generate_latest(self.registry)) != written:
                    part.write_bytes(text)
                    part.replace(path)
                    written = text
            time.sleep(EVERY)


def totals(text: str) -> dict[tuple[str, ...], float]:
    """Samples of a server's `/metrics` by name, class and outcome, summed over the rest."""
    found: dict[tuple[str, ...], float] = {}
    for family in text_string_to_metric_families(text):
        for s in family.samples:
            key = (s.name, *(s.labels[k] for k in ("class", "outcome") if k in s.labels))
            found[key] = found.get(key, 0.0) + s.value
    return found


def merged(label: str, texts: Iterable[tuple[str, str]]) -> bytes:
    """One text of several, in Prometheus' format; whose a sample was is its `label`. texts: by
    name."""
    families: dict[str, Any] = {}
    for name, text in texts:
        for family in text_string_to_metric_families(text):
            samples = [s._replace(labels={label: name} | s.labels) for s in family.samples]
            before = families.setdefault(family.name, family)
            before.samples = samples if before is family else before.samples + samples
    known = [f for name, f in families.items() if not name.endswith("_created")]
    return generate_latest(cast(Any, SimpleNamespace(collect=lambda: known)))


def of_engines(folder: str | Path) -> bytes:
    """What the engines of a server have written."""
    return merged("engine", [(p.stem, p.read_text()) for p in sorted(Path(folder).glob("*.prom"))])


async def show(app: Any, scope: Any, receive: Any, send: Any) -> None:
    """The ASGI answer of `app` to `/metrics`, and after it what the engines of this server have
    written.

    Added as text, since vLLM has one registry for one front-end and others for several; the latter
    show some of ours, too, without their engine.
    """
    folder = os.environ.get(METRICS)
    ours = of_engines(folder) if folder else b""
    start: dict[str, Any] = {}
    text = b""

    async def sent(message: Any) -> None:
        nonlocal text
        if message["type"] == "http.response.start":
            return start.update(message)
        text += message.get("body", b"")
        if message.get("more_body"):
            return
        if start["status"] == 200:
            text = OURS.sub(b"", text) + ours
        headers = [h for h in start.get("headers", ()) if h[0].lower() != b"content-length"]
        await send(start | {"headers": [*headers, (b"content-length", str(len(text)).encode())]})
        await send({"type": "http.response.body", "body": text})

    # neither packed nor OpenMetrics, which ends with a line that says so
    plain = [h for h in scope["headers"] if h[0] not in (b"accept", b"accept-encoding")]
    await app(scope | {"headers": plain}, receive, sent)
