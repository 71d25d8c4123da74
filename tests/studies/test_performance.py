"""The trade-off of batch sizes: throughput against how soon and how steadily tokens come."""

from __future__ import annotations

import pytest

from slos.hardware.profiles import profile
from slos.studies import performance


def test_larger_steps_serve_more_and_keep_looser_objectives() -> None:
    table = performance.batches(["opt-6.7b-a100"], most=2000)
    assert table["per_second"].is_monotonic_increasing and table["tpot"].is_monotonic_increasing
    one = table[table["tokens"] == 16].iloc[0]
    step = profile("opt-6.7b-a100").roofline.time(16)
    assert one.tpot == step and one.ttft == pytest.approx(63 * step), "1000 tokens in steps of 16"
    whole = table[table["tokens"] == 2000].iloc[0]
    assert whole.ttft == whole.tpot, "the prompt in one step"


def test_what_the_looser_pace_allows() -> None:
    """The figures of the paper's profile: 366 tokens in 50 ms, 1093 in 100 ms."""
    row = performance.gains(["opt-6.7b-a100"]).iloc[0]
    assert tuple(row)[:3] == ("opt-6.7b-a100", 366, 1093)
    assert row["tokens/s (x)"] == pytest.approx(1093 / 366 / 2)
    pair = performance.batches(["opt-13b-a100x2", "opt-13b-h100"])
    assert set(pair["profile"]) == {"opt-13b-a100x2", "opt-13b-h100"}
