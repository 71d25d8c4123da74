"""What an engine tells its router, and when."""

from __future__ import annotations

from pathlib import Path

import pytest

from slos.core.roofline import Plane, Roofline
from slos.policies.routers import Load
from slos.serving.load_report import EVERY, Report, Reporter

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
