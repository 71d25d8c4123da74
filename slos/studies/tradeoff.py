"""The trade-off behind the system (paper, section 2): a larger batch serves more tokens per second
and takes longer, so objectives bound the batch, and with it the load."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from slos.evaluation.plots import colors, finish, panels, plain_log
from slos.files import Frame
from slos.hardware.profiles import profile

MODELS = (
    "opt-6.7b-a100", "opt-13b-a100x2", "opt-30b-a100x4", "opt-13b-h100", "toolllama-7b-a100",
    "r1-qwen-1.5b-a100",
)  # fmt: skip
PACES = (0.05, 0.1)  # the paper's TPOTs, seconds
PROMPT = 1000  # tokens, for its time to the first one


def batches(names: Sequence[str] = MODELS, most: int = 4096) -> Frame:
    """By profile and tokens of a step: seconds of the step, which is the TPOT that it can keep;
    tokens per second and GPU; and seconds until a prompt of `PROMPT` tokens has its first token,
    which takes whole steps of that size."""
    rows, sizes = [], np.unique(np.geomspace(16, most, 120).astype(int)).tolist()
    for name in names:
        hardware = profile(name)
        for n in sizes:
            seconds = hardware.roofline.time(n)
            steps = -(-PROMPT // n)
            rows.append((name, n, seconds, n / seconds / hardware.gpus, steps * seconds))
    return pd.DataFrame(rows, columns=["profile", "tokens", "tpot", "per_second", "ttft"])


def gains(names: Sequence[str] = MODELS) -> Frame:
    """What the looser of the paper's two paces allows: tokens of a step at each, and how many times
    the tokens per second."""
    rows = []
    for name in names:
        tight, loose = (profile(name).roofline.fits(pace) for pace in PACES)
        gain = (loose / PACES[1]) / (tight / PACES[0])
        rows.append((name, tight, loose, gain))
    columns = ["profile", *(f"tokens in {1e3 * pace:g} ms" for pace in PACES), "tokens/s (x)"]
    return pd.DataFrame(rows, columns=columns)


def tradeoff_chart(table: Frame) -> Figure:
    """Left: tokens per second against tokens of a step, dots where a step takes as long as the
    paper's TPOTs. Right: the objectives that a size of step can just keep; what lies above and to
    the right of a line can be kept, too."""
    titles = ["throughput", f"objectives that can be kept, prompts of {PROMPT} tokens"]
    figure, (left, right) = panels(titles, (4.6, 3.6), (0, 0.6), "tokens per second and GPU")
    for name, color in colors(list(dict.fromkeys(table["profile"]))).items():
        rows, hardware = table[table["profile"] == name], profile(name)
        left.plot(rows["tokens"], rows["per_second"], color=color, label=name)
        for pace, marker in zip(PACES, "os", strict=True):
            n = hardware.roofline.fits(pace)
            looks = {"color": color, "markeredgecolor": "black", "markersize": 6}
            left.plot(n, n / hardware.roofline.time(n) / hardware.gpus, marker, **looks)
        # of larger steps only those that bring the first token sooner
        best = rows[rows["ttft"] == rows["ttft"].cummin()]
        right.step(1e3 * best["tpot"], best["ttft"], where="post", color=color)
    for pace in PACES:
        right.axvline(1e3 * pace, color="0.6", linewidth=0.8, linestyle="--")
    left.set(xlabel="tokens of a step", xscale="log")
    right.set(xlabel="time per output token (ms)", ylabel="time to the first token (s)")
    right.set(xscale="log", yscale="log")
    for axis in (left.xaxis, right.xaxis, right.yaxis):
        plain_log(axis, 1, 2, 5)
    said = "simulated: rooflines of the profiles; circles and squares: steps of 50 and 100 ms"
    return finish(figure, said, left, ncols=3)
