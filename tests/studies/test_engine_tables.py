"""What is made of measured rows: the load that is carried, and how far a simulation is off."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slos.studies.engine_tables import _falling, capacities, errors, gain, gains
from slos.studies.real_engine import OURS, STOCK, TOLD


def table(attained: list[float], status: str = "measured", ttft: float = 1.0) -> pd.DataFrame:
    rates = [float(2**i) for i in range(len(attained))]
    fields = {
        "scenario": "w",
        "system": "s",
        "status": status,
        "rate": rates,
        "attainment": attained,
    }
    return pd.DataFrame(fields | {"ttft": ttft, "tpot": 0.1})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_what_falls_is_kept_and_the_mean_too(values: list[float]) -> None:
    falling = _falling(values)
    assert (falling[:-1] >= falling[1:] - 1e-12).all() and falling.mean() == pytest.approx(
        sum(values) / len(values)
    )
    ordered = sorted(values, reverse=True)
    assert _falling(ordered) == pytest.approx(ordered)


def test_capacity_lies_between_the_loads_around_the_target() -> None:
    [row] = capacities(table([1.0, 0.95, 0.85, 0.2])).itertuples()
    assert row.capacity == pytest.approx(2**1.5) and row.bound == ""
    [row] = capacities(table([1.0, 0.97, 0.95])).itertuples()
    assert row.capacity == 4 and row.bound == "at least"
    # one dip by chance is not the end
    [row] = capacities(table([1.0, 0.85, 1.0, 0.5])).itertuples()
    assert 8 > row.capacity > 4
    [row] = capacities(table([0.45, 0.2])).itertuples()
    assert row.capacity == 1 and row.bound == "at most"
    [row] = capacities(table([0.9])).itertuples()
    assert row.capacity == 1 and row.bound == "at least"


@pytest.mark.parametrize(
    ("ours", "other", "said"),
    [
        ([1.0, 0.8, 0.0], [0.8, 0.0, 0.0], "at least 1.41x"),
        ([1.0, 1.0, 1.0], [1.0, 0.8, 0.0], "at least 2.83x"),
        ([1.0, 1.0, 0.8], [1.0, 0.8, 0.0], "2.00x"),
        ([1.0, 0.8, 0.0], [1.0, 1.0, 1.0], "at most 0.35x"),
        ([0.8, 0.0, 0.0], [1.0, 0.8, 0.0], "at most 0.71x"),
        ([1.0, 1.0, 1.0], [0.8, 0.0, 0.0], "at least 4.00x"),
        ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0], "a ratio that these loads do not tell"),
        ([0.8, 0.0, 0.0], [0.8, 0.0, 0.0], "a ratio that these loads do not tell"),
    ],
)
def test_a_gain_says_so_where_the_loads_do_not_reach_as_far(
    ours: list[float], other: list[float], said: str
) -> None:
    both = pd.concat([table(ours), table(other).assign(system="t")])
    found = capacities(both)
    assert gain(found.set_index("system"), "s", "t") == said
    names = found["system"].map({"s": OURS, "t": STOCK})
    assert gains(found.assign(system=names)).iloc[0].tolist() == ["w", "measured", said]
    told = found[found["system"] == "s"].assign(system=TOLD)
    series = gains(pd.concat([found.assign(system=names), told]))
    assert series.columns[2:].tolist() == [
        "SLOs-Serve over vLLM's own", "SLOs-Serve, lengths told, over vLLM's own",
    ] and series.iloc[0].tolist()[2:] == [said, said]  # fmt: skip


def test_errors_are_of_the_simulation_against_the_measurement() -> None:
    both = pd.concat([table([1.0, 0.9]), table([0.9, 0.95], "simulated", ttft=1.2)])
    off = errors(both)
    assert off["attainment"].tolist() == pytest.approx([-10, 5]) and off[
        "ttft"
    ].tolist() == pytest.approx([20, 20])
