"""Attainment on a grid of loads."""

from __future__ import annotations

import pandas as pd
import pytest

from slos.evaluation.capacity_search import search
from slos.evaluation.grids import searches
from slos.evaluation.stats import capacities
from slos.policies import OURS
from slos.studies import capacity

pytestmark = pytest.mark.usefixtures("no_data")


def test_all_systems_of_a_scenario_have_the_same_loads() -> None:
    cases = [
        c
        for c in searches("smoke", ["coding"], ["sarathi", OURS])
        if c.setting in ("chunk=512", "chunk=2048", "")
    ]
    best = capacities(pd.DataFrame([row for case in cases for row in search(case)]))
    top = best["capacity"].max()
    rows = capacity.at_loads("smoke", best, cases, 1)
    shares = capacity.LOADS["smoke"]
    assert len(rows) == 2 * len(shares) and set(rows["setting"]) == set(best["setting"])
    for _, mine in rows.groupby("system"):
        assert list(mine["rate"]) == pytest.approx([share * top for share in shares])
    # at its capacity the strongest system attains the target, as its search found
    strongest = best.loc[best["capacity"].idxmax(), "system"]
    at_top = rows[(rows["system"] == strongest) & (rows["rate"] == rows["rate"].max())]
    assert at_top["attainment"].iloc[0] >= 0.9
    figure = capacity.attainment_curves(rows, "made up")
    assert [line.get_label() for line in figure.axes[0].get_lines()][:2] == [
        "Sarathi-Serve", "SLOs-Serve",
    ]  # fmt: skip
    assert "one seed" in " ".join(text.get_text() for text in figure.texts)
