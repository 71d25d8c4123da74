"""What an engine tells its router, and when."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO
from slos.policies.routers import Load
from slos.serving.load_report import EVERY, Report, Reporter, load_of
from slos.serving.objectives import Objectives, Phase
from slos.serving.tracked import Tracked

ROOFLINE = Roofline((Plane(1e-4, 0.0, 5e-3), Plane(1.2e-4, 1e-5, 2e-3)), k_ctx=1e-7, tile=16)
LOAD = Load("", 100.5, 3, 2, 40, 64, 16, 900, ((0.02, 1), (0.05, 1)), 21)


@pytest.mark.parametrize("roofline", [None, ROOFLINE])
def test_a_report_is_read_as_it_was_written(tmp_path: Path, roofline: Roofline | None) -> None:
    report, path = Report(LOAD, 100.0, roofline), tmp_path / "load.json"
    report.write(path)
    assert Report.parse(path.read_text()) == report and [*tmp_path.iterdir()] == [path]


def test_it_is_told_now_and_then_even_where_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "load.json"
    reporter, told = Reporter(str(path)), []
    soon, later = EVERY / 2, 2 * EVERY
    for now in (100.0, 100.0 + soon, 100.0 + later, 50.0, 50.0 + soon, 50.0 + later):
        reporter.tell(now, True, lambda now=now: Report(LOAD, now))
        told.append(Report.parse(path.read_text()).at)
    assert told == [100.0, 100.0, 100.0 + later, 50.0, 50.0, 50.0 + later]
    reporter.tell(50.0 + later, False, lambda: Report(LOAD, 0.0))
    assert Report.parse(path.read_text()).at == 0.0, "the last request has ended"


def engines(prompt: int, most: int, output: int = 0, computed: int = 0) -> Tracked:
    """A request as the engine has it, that has put out `output` tokens since it came."""
    request: Any = SimpleNamespace(
        request_id="r", arrival_time=0.0, num_tokens=prompt, num_prompt_tokens=prompt,
        max_tokens=most, num_output_tokens=0, output_token_ids=[], num_output_placeholders=0,
        num_computed_tokens=computed,
    )  # fmt: skip
    tracked = Tracked.of(request, Objectives((Phase(SLO(0.1, ttft=1.0)),)), ROOFLINE)
    request.num_tokens, request.num_output_tokens = prompt + output, output
    return tracked


def test_a_load_is_of_what_is_left_and_what_will_be_held() -> None:
    waits, speaks = engines(40, 24), engines(30, 10, 3, 32)  # 64 tokens at the end, and 40
    load = load_of([waits, speaks], 1, 7.0, 9, 20, 16)
    assert load == Load("", 7.0, 1, 1, 9, 20, 16, 40, ((0.1, 1),), 7)
