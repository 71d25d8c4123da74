"""What is asked why: the causes are told apart where they are known, and looking on changes
nothing."""

import re
from dataclasses import fields

import pandas as pd
import pytest
from laws import FAST

from slos.core.lengths import Oracle
from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import Search
from slos.files import ROOT
from slos.policies import OURS
from slos.policies.slos_serve import SLOsServe
from slos.records.claims import read_claims
from slos.sim.replica import World
from slos.sim.simulator import simulate
from slos.studies import causes
from slos.studies.causes import SHORT, VLLM, WITHOUT, Finding, Watched

pytestmark = pytest.mark.usefixtures("no_data")


@pytest.mark.parametrize(
    ("blocks", "slowdown", "memory"), [(40, 20.0, True), (4000, 3.0, False), (40, 3.0, False)]
)
def test_memory_is_the_cause_only_where_it_alone_is_missing(
    blocks: int, slowdown: float, memory: bool
) -> None:
    """40 blocks hold five of the requests; 20 prefills can be in time at a slowdown of 20, and
    three at one of 3."""
    work = [
        Request(f"r{i:02}", 0.0, (Stage(100, 20, SLO(tpot=0.1, slowdown=slowdown)),))
        for i in range(20)
    ]
    world, policy = World(FAST, blocks), Watched(FAST, Oracle(work))
    policy.short = {}
    outcomes = simulate(work, policy, world)
    assert outcomes == simulate(work, SLOsServe(FAST, Oracle(work)), world)
    assert policy.short and set(policy.short.values()) == {memory}
    assert {o.id for o in outcomes if o.declined} <= policy.short.keys()


def test_what_is_asked_and_what_is_found(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    causes.main(["--scenarios", "coding", "reasoning", "--requests", "40", "--workers", "1"])
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert (tmp_path / "quick" / "causes.csv").exists()
    [coding], [reasoning] = (
        [row[1:] for row in rows if row[:1] == [name]] for name in ("coding", "reasoning")
    )
    assert coding[:1] == ["0.00"] and float(coding[1]) > 1 and float(coding[3]) >= 1, (
        "bound by first tokens"
    )
    assert reasoning == ["0.00", "-", "-", "-"], "by tokens per second; it has no draft model"


def test_the_grid_and_the_means() -> None:
    grid = causes.cases(["chatbot", "reasoning"], 50, 2)
    assert [(c.scenario, c.system, c.max_drafts, c.seed) for c in grid if c.seed == 1] == [
        ("chatbot", OURS, 0, 1), ("chatbot", OURS, 10, 1), ("chatbot", "vllm", 0, 1),
        ("reasoning", OURS, 0, 1),
    ]  # fmt: skip
    assert len(grid) == 8 and all(isinstance(c, Search) and c.num_requests == 50 for c in grid)
    rows = [
        ("a", SHORT, 0, 0.2),
        ("a", SHORT, 1, 0.4),
        ("b", SHORT, 0, 0.0),
        ("a", VLLM, 0, 2.0),
        ("b", VLLM, 0, 8.0),
    ]
    table = causes.table([Finding(*row[:3], 1.0, row[3], "made up", "simulated") for row in rows])
    assert table[SHORT].dropna().to_dict() == pytest.approx({"a": 0.3, "b": 0.0})
    assert table[VLLM].to_dict() == pytest.approx({"a": 2.0, "b": 8.0, "geometric mean": 4.0})
    assert WITHOUT not in table


def test_why_quotes_what_was_found() -> None:
    """To quote anew: run it, copy results/quick/causes.csv to results/reference."""
    rows = pd.read_csv(ROOT / "results" / "reference" / "causes.csv")[
        [f.name for f in fields(Finding)]
    ]
    table = causes.table([Finding(*row) for row in rows.itertuples(index=False)])
    why = {c.key: c.why for c in read_claims() if "(python -m slos.studies.causes)" in c.why}
    assert f"drafts bring vLLM {table.loc['geometric mean', VLLM]:.2f}x" in why["headline_vs_vllm"]
    assert (
        f"of one token it would carry {table.loc['coding', WITHOUT]:.2f}x"
        in why["ablation_speculation"]
    )
    shares = [
        (key, *found)
        for key, text in why.items()
        for found in re.findall(r"(\d+) % in ([a-z-]+)", text)
    ]
    assert len(shares) >= 10
    for key, percent, scenario in shares:
        cause = SHORT + ", drafting" * ("with drafts" in why[key])
        assert f"{table.loc[scenario, cause]:.0%}" == f"{percent}%", (key, scenario)
