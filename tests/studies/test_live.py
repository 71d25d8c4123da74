"""A watched server: what is read of it, the figure that moves, and what is said without one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from slos.core.pace import CLIENT
from slos.studies import live

HEAD = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0",model_name="m"}} {running}
vllm:num_requests_waiting{{engine="0",model_name="m"}} 2.0
# TYPE slos_best_effort_requests gauge
slos_best_effort_requests{{engine="0"}} {queue}
slos_best_effort_requests{{engine="1"}} 1.0
# TYPE slos_requests_total counter
slos_requests_total{{engine="0",class="calibration",outcome="late"}} 99.0
slos_requests_total{{engine="0",class="a",outcome="attained"}} {attained}
slos_requests_total{{engine="0",class="b",outcome="attained"}} 1.0
slos_requests_total{{engine="0",class="b",outcome="late"}} {late}
"""


class Moving(BaseHTTPRequestHandler):
    """A server on which more happens every time that it is looked at."""

    looks = 0

    def do_GET(self) -> None:
        good = self.headers.get("Authorization") == "Bearer a-key" and self.path == "/metrics"
        n, Moving.looks = Moving.looks, Moving.looks + 1
        text = HEAD.format(running=n, queue=2 * n, attained=10 + 3 * n, late=n)
        self.send_response(200 if good else 401)
        self.end_headers()
        self.wfile.write(text.encode() if good else b"")

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(live, "EVERY", 0.01)
    monkeypatch.setattr(live, "SETTLED", 0.01)
    Moving.looks = 0
    with ThreadingHTTPServer(("127.0.0.1", 0), Moving) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_server_is_watched_as_it_moves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "a-key")
    shown: list[int] = []
    rows = live.watch(f"{url}/v1/", lambda _: len(shown) == 4, lambda r: shown.append(len(r)))
    assert shown == [1, 2, 3, 4, 5]
    assert rows["running"].tolist() == [0, 1, 2, 3, 4] and set(rows["waiting"]) == {2}
    assert rows["queue"].tolist() == [1, 3, 5, 7, 9], "of both engines"
    assert rows["attained"].tolist() == [0, 3, 6, 9, 12] and rows["late"].tolist() == [
        0,
        1,
        2,
        3,
        4,
    ]
    assert live.in_time(rows).round().tolist()[1:] == [75] * 4
    assert live.summary(rows)["requests"].to_dict() == {
        "attained": 12, "late": 4, "best_effort": 0, "declined": 0, "aborted": 0,
    }  # fmt: skip
    figure = live.figure(rows)
    assert [np.asarray(line.get_ydata()).tolist() for line in figure.axes[0].lines] == [
        rows["running"].tolist(),
        rows["waiting"].tolist(),
    ]
    plt.close(figure)


def test_attainment_is_that_of_the_last_seconds() -> None:
    rows = pd.DataFrame({"second": [0.0, 4.0, 8.0, 12.0, 16.0], "attained": [0.0, 4, 4, 8, 8]})
    rows = rows.assign(
        late=[0.0, 0, 4, 4, 4], best_effort=0.0, declined=0.0, aborted=[0.0, 0, 0, 9, 9]
    )
    met = live.in_time(rows).tolist()
    assert met[1:4] == [100, 50, 50] and pd.isna([met[0], met[4]]).tolist() == [True, False]


def test_nobody_there_and_no_key_are_said(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(OSError, match=r"metrics shows no metrics \(HTTP Error 401.*OPENAI_API_KEY"):
        live.run("smoke", url)
    with pytest.raises(OSError, match="shows no metrics"):
        live.run("smoke", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="size = 'huge' must be one of smoke"):
        live.run("huge")


def test_the_load_is_too_much_for_a_while() -> None:
    requests = live.load(0.01, 15.0)
    middle = [r for r in requests if 5 <= r.arrival < 9]
    assert {r.kind for r in requests} == {"interactive", "batch", "one"}
    assert len(middle) > 2 * len([r for r in requests if r.arrival < 5]) > 0
    assert all(r.rule == CLIENT for r in requests) and len({r.id for r in requests}) == len(
        requests
    )
