"""A running server, watched: its load, what becomes of its requests, and its best-effort queue."""

from __future__ import annotations

import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import URLError
from urllib.request import Request as Call
from urllib.request import urlopen

import pandas as pd
from IPython.display import DisplayHandle
from matplotlib.figure import Figure

from slos.core.types import Request, require
from slos.evaluation import plots
from slos.evaluation.sizes import of_size
from slos.files import Frame
from slos.policies import OURS
from slos.replay import replay
from slos.replay.client import headers
from slos.serving.metrics import totals
from slos.serving.tiny_model import write
from slos.studies import real_engine
from slos.studies.engine_workloads import bursty, steady
from slos.studies.sliders import picture
from slos.studies.timeline import with_burst

EVERY = 0.5  # seconds between two looks
SETTLED = 1.0  # seconds after which a server shows all that has been
WINDOW = 5.0  # seconds over which attainment is counted
OUTCOMES = ("attained", "late", "best_effort", "declined", "aborted")
CALIBRATION = "calibration"  # the class of the server's own requests
SECONDS = {"smoke": 6.0, "quick": 10.0, "full": 60.0}
"""For which a server of one's own is watched, and loaded."""
LOADS = 0.05, 0.5
"""Requests in the time of a decode step: all the time, and for a fifth of it on top."""


def sample(url: str) -> dict[str, float]:
    """Requests that run, wait and are best effort now, and by outcome how many are over; without
    those that calibrated it. Raises OSError if the server shows no metrics."""
    url = url.rstrip("/").removesuffix("/v1")
    try:
        with urlopen(Call(f"{url}/metrics", headers=headers()), timeout=10) as answer:
            found = totals(answer.read().decode())
    except (URLError, ValueError) as error:
        raise OSError(
            f"{url}/metrics shows no metrics ({error}); start a server there, or give another "
            "url, or the key in OPENAI_API_KEY"
        ) from None
    gauges = {
        "running": "vllm:num_requests_running", "waiting": "vllm:num_requests_waiting",
        "queue": "slos_best_effort_requests",
    }  # fmt: skip
    counts: dict[str, float] = dict.fromkeys(OUTCOMES, 0.0)
    for key, value in found.items():
        if key[0] == "slos_requests_total" and key[1] != CALIBRATION:
            counts[key[2]] += value
    return {name: found.get((key,), 0.0) for name, key in gauges.items()} | counts


def watch(url: str, over: Callable[[float], bool], show: Callable[[Frame], object]) -> Frame:
    """A row for each look at the server until it is `over`, by the seconds since the first one.
    show: what to do with the rows so far at each look."""
    start, first, rows = time.monotonic(), sample(url), []
    while True:
        if last := bool(rows) and over(time.monotonic() - start):
            time.sleep(SETTLED)
        now = sample(url) if rows else dict(first)
        past = {name: now[name] - first[name] for name in OUTCOMES}
        rows.append(now | past | {"second": time.monotonic() - start if rows else 0.0})
        table = pd.DataFrame(rows)
        show(table)
        if last:
            return table
        time.sleep(EVERY)


def in_time(rows: Frame) -> Frame:
    """Per cent of the requests that attained their objectives, of those that ended within the last
    `WINDOW` seconds; nan where none did."""
    counts, before = rows[["second", *OUTCOMES]], rows[["second"]] - WINDOW
    then = pd.merge_asof(before, counts, on="second").fillna(0.0)
    new = (counts - then).drop(columns="second")
    judged = new.drop(columns="aborted").sum(axis=1)
    return 100 * new["attained"] / judged.where(judged > 0)


def load(step: float, seconds: float) -> list[Request]:
    """Two tiers, and a burst of documents after a third of the time. step: seconds of a decode."""
    light, heavy = (rate / step for rate in LOADS)
    base = bursty(light, max(4, round(light * seconds)), 0, step)
    documents = steady(heavy, max(8, round(heavy * seconds / 5)), 1, step)
    return with_burst(base, seconds / 3, documents)


def run(size: str, url: str = "", seconds: float = 0.0) -> Frame:
    """Watch the server at `url` and redraw the figure in place; without one, a small server of this
    kit's own under a load that it cannot carry for a while. Raises ValueError for an unknown size
    or where vLLM is needed and not there, OSError where nothing answers at `url`."""
    require(seconds >= 0, "seconds", seconds, "at least 0 (0: those of the size)")
    seconds, shown = seconds or of_size(size, SECONDS), DisplayHandle()
    shown.display(f"watched for {seconds:g} s")

    def show(rows: Frame) -> None:
        shown.update(picture(figure(rows)))

    if url:
        return watch(url, lambda now: now >= seconds, show)
    cure = "give the url of a server, or SLOS_EXTRA=cpu ./run_all.sh installs it"
    require(real_engine.has_engine(), "vllm", None, "installed", cure)
    with (
        tempfile.TemporaryDirectory(prefix="slos-live-") as name,
        ThreadPoolExecutor(1) as sender,
        warnings.catch_warnings(),
    ):
        folder = Path(name)
        saved = folder / "profile.json"
        more = "--save-profile", str(saved)
        with real_engine.server(write(folder / "tiny"), OURS, folder, *more) as url:
            engine = real_engine.calibrate(url, saved)
            warnings.filterwarnings("ignore", "lag = ")  # the server's own numbers are shown
            sent = sender.submit(replay.run, load(engine.step, seconds), url)
            return watch(url, lambda _: sent.done(), show)


def figure(rows: Frame) -> Figure:
    """Load, best effort and attainment over time."""
    titles = "Requests at the server", "Best effort, waiting or running", "In time"
    drawn, (load, queue, met) = plots.panels(titles, (3.6, 2.8), (0, 0.4), "requests", sharex=True)
    ours, other = plots.colors(["a", "b"]).values()
    for name, color, line in (("running", ours, "-"), ("waiting", other, "--")):
        load.plot(rows["second"], rows[name], line, color=color, label=name)
    load.legend(frameon=False, fontsize=8)
    queue.fill_between(rows["second"], rows["queue"], step="post", color=other)
    met.plot(rows["second"], in_time(rows), color=ours)
    met.axhline(90, **plots.DASHED)
    met.set(ylim=(-4, 104), ylabel=f"% of the last {WINDOW:g} s")
    for axis in (load, queue, met):
        axis.set_xlabel("seconds")
        axis.set_xlim(0, max(1.0, rows["second"].max()))
    for axis in (load, queue):
        axis.set_ylim(0, max(1.0, 1.05 * axis.get_ylim()[1]))
        axis.locator_params(axis="y", integer=True)
    return plots.finish(drawn, "measured, as the engine counts")


def summary(rows: Frame) -> Frame:
    """What became of the requests that ended while it was watched."""
    ended = rows[list(OUTCOMES)].iloc[-1].astype(int)
    share = 100 * ended / max(1, ended.sum())
    return pd.DataFrame({"requests": ended, "%": share.round(1)}).rename_axis("outcome")
