"""An interactive corner for notebooks: the timeline of a burst, drawn anew as its sliders move."""

from __future__ import annotations

from io import BytesIO

import matplotlib.pyplot as plt
from IPython.display import DisplayHandle, Image
from ipywidgets import Dropdown, FloatSlider, VBox
from matplotlib.figure import Figure

from slos.evaluation.plots import name_of
from slos.evaluation.runs import scaled_slos
from slos.hardware.profiles import Profile
from slos.policies import OURS, POLICIES
from slos.studies.timeline import burst_timeline, timeline, with_burst
from workloads import build

# seconds; short, so that chats are answered in less than one
SPAN, BURST_AT, BURST_FOR = 60.0, 20.0, 5.0


def answer(
    scenario: str, hardware: Profile, load: float, slo_scale: float, burst: float, policy: str
) -> Figure:
    """A minute under `policy`: `load` requests/s, `burst` times as many for 5 s, objectives
    `slo_scale` times as long. Raises ValueError for unknown names and values out of bounds."""
    base = build(scenario, load, max(1, round(load * SPAN)), seed=1)
    requests, more = list(base.requests), (burst - 1) * load
    if extra := round(more * BURST_FOR):
        requests = with_burst(requests, BURST_AT, build(scenario, more, extra, seed=2).requests)
    run = timeline(scaled_slos(requests, slo_scale), policy, hardware)
    figure = burst_timeline(requests, [run], f"simulated, {base.source}, {hardware.name}")
    figure.set_size_inches(8, 6)
    return figure


def picture(figure: Figure) -> Image:
    """Rendered once and closed: in the notebook it would take twice as long and show up again."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=80)
    plt.close(figure)
    return Image(file.getvalue())


def corner(scenario: str, hardware: Profile, rate: float) -> VBox:
    """Displays the timeline, an output that needs no front-end; returns sliders that redraw it."""

    def slider(text: str, value: float, low: float, high: float, step: float) -> FloatSlider:
        bounds = {"min": low, "max": high, "step": step}
        return FloatSlider(value, description=text, continuous_update=False, **bounds)

    named = [(name_of(p), p) for p in POLICIES]
    controls = [
        slider("requests/s", rate, rate / 5, 1.6 * rate, rate / 10),
        slider("SLOs, times", 1.0, 0.5, 2.0, 0.1),
        slider("burst, times", 6.0, 1.0, 8.0, 0.5),
        Dropdown(options=named, value=OURS, description="policy"),
    ]

    def draw() -> Image:
        return picture(answer(scenario, hardware, *(control.value for control in controls)))

    shown = DisplayHandle()
    shown.display(draw())
    for control in controls:
        control.observe(lambda _: shown.update(draw()), "value")
    return VBox(controls)
