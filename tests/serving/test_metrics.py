"""What becomes of requests, as Prometheus is shown it: the judgement of one, and the way there."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from slos.core.attainment import Live
from slos.core.pace import CLIENT, PAPER, TOLERANCE
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Progress, Request, Stage
from slos.serving import metrics as module
from slos.serving.calls import METRICS
from slos.serving.metrics import Metrics, merged, of_engines, totals
from slos.serving.objectives import CLASSES, NAME, REST, Classes, Objectives, Phase, parse
from slos.serving.tracked import Tracked

NO_TIME = Roofline((Plane(1e-9, 0.0, 0.0),))


class Lengths:
    def began(self, progress: Progress) -> None:
        pass

    def ended(self, progress: Progress, last: bool) -> None:
        pass


def tracked(phases: tuple[Phase, ...], kind: str = "") -> Tracked:
    request: Any = SimpleNamespace(
        request_id="r", arrival_time=0.0, num_tokens=10, num_prompt_tokens=10, max_tokens=400,
        num_output_tokens=0, output_token_ids=[],
    )  # fmt: skip
    return Tracked.of(request, Objectives(phases, kind=kind), NO_TIME)


def answered(t: Tracked, times: list[tuple[float, int]]) -> float:
    """Its lateness after steps at these times with so many tokens each; vLLM ends a request before
    the plug-in looks at its last tokens."""
    for k, (now, count) in enumerate(times, start=1):
        t.request.output_token_ids += [7] * count
        t.request.num_output_tokens += count
        if k < len(times):
            t.emitted(now, Lengths())  # type: ignore[arg-type]
    return t.late(times[-1][0])


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([CLIENT, PAPER]),
    st.lists(st.tuples(st.sampled_from([0.02, 0.05, 0.11, 0.4]), st.integers(1, 3)), min_size=1),
    st.integers(0, 12),
)
def test_the_engine_judges_as_attainment_does(
    rule: str, gaps: list[tuple[float, int]], first_phase: int
) -> None:
    """Of one phase or two, several tokens at once as with drafts."""
    times, now = [], 0.0
    for gap, count in gaps:
        times.append((now := now + gap, count))
    total = sum(count for _, count in times)
    first, second = SLO(0.1, ttft=0.3, rule=rule), SLO(0.06, rule=rule)
    two = 0 < first_phase < total
    stages = (Stage(10, total, first),)
    phases = (Phase(first),)
    if two:
        stages = Stage(10, first_phase, first), Stage(0, total - first_phase, second)
        phases = Phase(first, tokens=first_phase), Phase(second)
    live = Live(Request("r", 0.0, stages), Progress("r", 0.0, 0, 0.0, 1.0))
    each = [now for now, count in times for _ in range(count)]
    for k, stage in enumerate(stages):
        live.start_stage(k, 0.0, NO_TIME)
        part, each = each[: stage.output], each[stage.output :]
        live.emit(part)
    late = answered(tracked(phases), times)
    assert (late <= 2 * TOLERANCE) == live.outcome(now).attained


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where engines write; their threads end with it."""
    (folder := tmp_path / "metrics").mkdir()
    monkeypatch.setenv(METRICS, str(folder))
    yield folder
    shutil.rmtree(folder)


def shown(folder: Path, done: Callable[[dict], bool]) -> dict[tuple, float]:
    """Samples by name and labels, when they are as they should be."""
    end = time.monotonic() + 120
    while True:
        families = list(text_string_to_metric_families(of_engines(folder).decode()))
        found = {
            (
                s.name,
                s.labels["engine"],
                *(v for k, v in s.labels.items() if k != "engine"),
            ): s.value
            for f in families
            for s in f.samples
        }
        if done(found) or time.monotonic() > end:
            return found
        time.sleep(0.05)


def test_two_engines_are_shown_side_by_side(folder: Path) -> None:
    slo, waiting = SLO(0.1, ttft=1.0, rule=CLIENT), tracked((Phase(SLO(0.1, ttft=1.0)),))
    for engine in (0, 1):
        metrics = Metrics(lambda: [waiting])
        metrics.publish(engine)
        for first in (0.5, 3.0):
            t = tracked((Phase(slo),), kind="chat")
            answered(t, [(first, 1), (first + 0.05, 1)])
            metrics.ended(t, False, first + 0.05)
        declined, gone = tracked((Phase(slo),)), tracked((Phase(slo),))
        declined.declined = True
        metrics.ended(declined, True, 9.0)
        metrics.ended(gone, True, 9.0)
        late = tracked((Phase(slo),), kind="batch")
        late.progress.best_effort = True
        answered(late, [(0.1, 1)])
        metrics.ended(late, False, 0.1)
        metrics.step(0.02, 0.01)
    waiting.progress.best_effort = True
    found = shown(folder, lambda f: all(f.get(("slos_best_effort_requests", e)) for e in "01"))
    for engine in ("0", "1"):
        counted = {k[2:]: v for k, v in found.items() if k[:2] == ("slos_requests_total", engine)}
        assert counted == {
            ("chat", "attained"): 1, ("chat", "late"): 1, ("", "declined"): 1, ("", "aborted"): 1,
            ("batch", "best_effort"): 1,
        }  # fmt: skip
        assert found["slos_lateness_seconds_bucket", engine, "chat", "0.0"] == 1
        assert found["slos_lateness_seconds_bucket", engine, "chat", "3.0"] == 2
        assert found["slos_lateness_seconds_sum", engine, "chat"] == pytest.approx(2.0)
        assert found["slos_step_roofline_ratio_sum", engine] == pytest.approx(2.0)
        assert found["slos_best_effort_requests", engine] == 1


def test_a_full_disk_costs_numbers_that_stand_still(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    full, write = [True], Path.write_bytes

    def write_bytes(path: Path, data: bytes) -> int:
        if full[0]:
            raise OSError(28, "No space left on device")
        return write(path, data)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    metrics = Metrics(list)
    metrics.publish(0)
    metrics.step(0.02, 0.01)
    time.sleep(0.1)
    assert not list(folder.iterdir())
    full[0] = False
    found = shown(folder, lambda f: ("slos_step_seconds_count", "0") in f)
    assert found["slos_step_seconds_count", "0"] == 1
    assert [r.getMessage() for r in caplog.records].count(
        "writing metrics failed; the engine goes on without"
    ) == 1


def test_numbers_that_cannot_be_read_once_are_shown_later(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    asked: list[int] = []

    def living() -> list[Tracked]:
        asked.append(1)
        if len(asked) < 3:
            raise RuntimeError("dictionary changed size during iteration")
        return []

    Metrics(living).publish(0)
    assert ("slos_best_effort_requests", "0") in shown(folder, bool)


def test_classes_are_clients_to_name_and_yet_bounded() -> None:
    classes = Classes()
    names = [f"class {i}" for i in range(3 * CLASSES)]
    known = [classes.of(name) for name in names]
    assert known == names[:CLASSES] + [REST] * 2 * CLASSES
    assert classes.of(names[0]) == names[0] and len(classes.names) == CLASSES


@given(st.text(max_size=NAME))
@example("\r")
@example("\ud800")
@example('} 1"\\n')
def test_no_class_that_a_client_may_name_spoils_the_metrics(name: str) -> None:
    try:
        kind = parse({"slo_class": name}, Objectives((Phase(SLO(0.1)),))).kind
    except ValueError:
        return
    metrics = Metrics(list)
    metrics.requests.labels(kind, "attained").inc()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "0.prom").write_bytes(generate_latest(metrics.registry))
        text = merged("replica", [("a", of_engines(folder).decode())]).decode()
    assert totals(text)["slos_requests_total", name, "attained"] == 1


def test_servers_are_shown_as_one() -> None:
    metrics = Metrics(list)
    metrics.step(0.02, 0.01)
    text = generate_latest(metrics.registry).decode()
    text += "# HELP vllm:seconds A histogram.\n# TYPE vllm:seconds histogram\n"
    text += 'vllm:seconds_bucket{le="+Inf",model_name="m"} 3.0\n'
    text += 'vllm:seconds_count{model_name="m"} 3.0\nvllm:seconds_sum{model_name="m"} 1.5\n'
    all_of_them = merged("replica", [("a", text), ("b", text), ("c", "")]).decode()
    for name in "ab":
        assert f'slos_step_seconds_count{{replica="{name}"}} 1.0' in all_of_them
        assert f'vllm:seconds_sum{{model_name="m",replica="{name}"}} 1.5' in all_of_them
    assert all_of_them.count("# TYPE slos_step_seconds histogram") == 1
    assert totals(all_of_them)["vllm:seconds_count",] == 6


def test_they_stand_behind_those_of_the_front_end(folder: Path) -> None:
    """Which may show some of them itself: vLLM with several front-ends does."""
    ours = b"# HELP slos_x Ours.\n# TYPE slos_x gauge\nslos_x %d\n"
    text = b"# HELP own What vLLM counts.\n# TYPE own gauge\nown 3.0\n" + ours % 0
    (folder / "0.prom").write_bytes(ours % 2)
    asked: list[Any] = []
    answer: list[Any] = []

    async def front_end(scope: Any, receive: Any, send: Any) -> None:
        asked.extend(scope["headers"])
        headers = [(b"content-length", str(len(text)).encode()), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": text[:9], "more_body": True})
        await send({"type": "http.response.body", "body": text[9:]})

    async def send(message: Any) -> None:
        answer.append(message)

    packed = [(b"accept", b"application/openmetrics-text"), (b"accept-encoding", b"gzip")]
    scope = {"type": "http", "path": "/metrics", "headers": [*packed, (b"a", b"")]}
    asyncio.run(module.show(front_end, scope, None, send))
    start, body = answer
    assert asked == [(b"a", b"")]
    assert dict(start["headers"])[b"content-length"] == str(len(body["body"])).encode()
    assert totals(body["body"].decode()) == {("own",): 3.0, ("slos_x",): 2.0}
