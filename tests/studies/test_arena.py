"""The arena: what it runs, what it makes of the rows, and what the reference run says."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from slos.core.pace import CLIENT, PAPER
from slos.evaluation.grids import FIXED_DRAFTS, MAX_DRAFTS, SETTINGS, can_draft
from slos.evaluation.plots import name_of
from slos.evaluation.stats import geometric_mean
from slos.policies import LATER, OURS, POLICIES
from slos.policies.routers import ROUTERS
from slos.studies import arena
from workloads import SCENARIOS

REFERENCE = Path(__file__).parents[2] / "results" / "reference" / "arena.csv"


def test_every_system_is_tried_with_all_its_settings_everywhere() -> None:
    cases = arena.cases("full")
    tried = sum(len(SETTINGS.get(name, ("",))) for name in POLICIES)
    assert len(cases) == len({str(c) for c in cases}) == tried * len(SCENARIOS) * 3
    assert {c.system for c in cases} == set(POLICIES) and set(LATER) < set(POLICIES)
    assert all(SETTINGS[name][0] == "" for name in LATER), "as published"
    assert ROUTERS.keys() >= set(arena.ROUTERS)


def test_what_is_best_is_asked_further() -> None:
    found = pd.DataFrame(
        [(name, system, setting) for name in SCENARIOS
         for system, setting in (("sarathi", "chunk=512"), ("adaserve", ""), (OURS, ""))],
        columns=["scenario", "system", "setting"],
    )  # fmt: skip
    cases = arena.further("full", found)
    assert len(cases) == len({str(c) for c in cases})
    assert {(c.target, c.max_drafts, c.replicas, c.rule) for c in cases} == {
        (0.9, 0, 1, CLIENT), (0.98, 0, 1, PAPER), (0.9, 0, 4, PAPER), (0.9, MAX_DRAFTS, 1, PAPER)
    }  # fmt: skip
    for several in ([c for c in cases if c.max_drafts], [c for c in cases if c.replicas > 1]):
        assert {c.scenario for c in several} == set(filter(can_draft, SCENARIOS))
    drafting = {c.setting for c in cases if c.system == "sarathi" and c.max_drafts}
    assert drafting == {"chunk=512", *(f"chunk=512,drafts={n}" for n in FIXED_DRAFTS)}
    assert {c.router for c in cases if c.replicas > 1} == set(arena.ROUTERS)
    assert {c.router for c in cases if c.replicas == 1} == {""}


def rows(*carried: tuple[str, str, float]) -> pd.DataFrame:
    """Capacities of two seeds, the second one's twice as large."""
    return pd.DataFrame(
        [
            {
                "scenario": "coding", "lengths": "dataset", "system": system, "setting": setting,
                "profile": "p", "router": "", "replicas": 1, "target": 0.9, "drafts": 0,
                "rule": PAPER,
                "seed": seed, "rate": rate * (1 + seed), "capacity": True, "source": "s",
                "status": "simulated",
            }
            for system, setting, rate in carried for seed in (0, 1)
        ]
    )  # fmt: skip


def test_ours_over_the_best_later_one() -> None:
    found = arena.best(
        rows((OURS, "", 6.0), ("qoserve", "", 3.0), ("qoserve", "margin=1", 4.0),
             ("scorpio", "", 2.0), ("sarathi", "", 5.0))
    )  # fmt: skip
    [row] = arena.ahead(found).to_dict("records")
    assert row["against"] == "qoserve" and row["ratio"] == pytest.approx(1.5)


def test_the_ladder_starts_at_sarathi_and_ends_at_ours() -> None:
    rungs = [(s, t, 2.0 + i) for i, several in enumerate(arena.LADDER.values()) for s, t in several]
    climbed = arena.ladder(rows(*rungs)).set_index("system")["ratio"]
    assert list(climbed.index) == list(arena.LADDER)
    assert climbed.tolist() == pytest.approx([1 + i / 2 for i in range(len(arena.LADDER))])
    assert set(rungs[-1][:1]) == {OURS} and {c.system for c in arena.ladder_cases("smoke")} == {
        "sarathi", "qoserve", OURS,
    }  # fmt: skip


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size = 'huge' must be one of smoke, quick, full"):
        arena.cases("huge")


def reference() -> pd.DataFrame:
    """One replica, no drafts, 90 %, the paper's rule."""
    table = pd.read_csv(REFERENCE, keep_default_na=False)
    asked = (table["replicas"] == 1) & (table["drafts"] == 0) & (table["target"] == 0.9)
    if "rule" in table:
        asked &= table["rule"] == PAPER
    return pd.DataFrame(table[asked])


def test_in_the_reference_run_ours_is_nowhere_behind() -> None:
    table = reference()
    grid = table.pivot_table("capacity", "scenario", "system")
    assert set(grid.index) == set(SCENARIOS) and set(grid) == set(POLICIES)
    ahead = (grid[OURS] / grid[list(LATER)].max(axis=1)).tolist()
    assert min(ahead) > 1 and geometric_mean(ahead) > 1.15


def test_the_readme_shows_the_rows() -> None:
    table = reference()
    grid = table.pivot_table("capacity", "system", "scenario")[list(SCENARIOS)]
    text = (REFERENCE.parents[2] / "README.md").read_text()
    for name in ("sarathi", "fair-batching", "scorpio", "qoserve", OURS):
        cells = " | ".join(f"{x:#.3g}" for x in grid.loc[name])
        assert f"| {name_of(name)} | {cells} |" in text
