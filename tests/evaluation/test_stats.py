"""Capacities, their intervals, and what is put next to the paper's numbers."""

import pandas as pd
import pytest

from slos.evaluation.stats import capacities, interval, save
from workloads import SCENARIOS


def test_no_interval_is_narrower_than_the_search() -> None:
    assert interval([5.0], 0.25) == pytest.approx((5, 4, 6.25))
    row = {
        "scenario": "coding", "lengths": "dataset", "system": "vllm", "setting": "",
        "profile": "p", "source": "s", "status": "simulated", "rate": 4.0, "capacity": True,
    }  # fmt: skip
    best = capacities(pd.DataFrame([row | {"seed": seed} for seed in (0, 1)]), precision=0.25)
    assert (best["low"][0], best["high"][0]) == pytest.approx((3.2, 5.0))


@pytest.mark.usefixtures("no_data")
def test_numbers_of_other_hardware_are_no_headline() -> None:
    own = [(name, s.profile, "made up") for name, s in SCENARIOS.items()]
    best = pd.DataFrame(own, columns=["scenario", "profile", "source"])
    numbers = {"capacity_vs_best": (2.0, 1.9, 2.1)}
    assert len(save("smoke", best, "01_capacity", numbers)) == 1
    best.loc[0, "profile"] = "opt-13b-h100"
    assert "nothing is put" in save("smoke", best, "01_capacity", numbers).columns[0]
