"""`slos.studies.scaling`: the grids, and what is made of their rows, with numbers worked out by
hand."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from slos.evaluation.grids import BASELINE, BEST_ROUTER, PLAIN
from slos.evaluation.stats import rows_of, save, select
from slos.policies import OURS, POLICIES
from slos.policies.routers import ROUTERS
from slos.sim.cluster import POOLED
from slos.studies import scaling
from slos.studies.scaling import SIZES, disaggregation_cases, scaling_cases
from workloads import SCENARIOS


@pytest.mark.parametrize(
    ("call", "known"),
    [
        (lambda: scaling_cases("huge"), SIZES),
        (lambda: scaling_cases("smoke", ["gaming"]), SCENARIOS),
        (lambda: scaling_cases("smoke", systems=["orca"]), POLICIES),
        (lambda: scaling_cases("smoke", routers=["dice"]), ROUTERS),
        (lambda: disaggregation_cases("smoke", ["gaming"]), SCENARIOS),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    call: Callable[[], object], known: list[str]
) -> None:
    with pytest.raises(ValueError) as refused:
        call()
    assert all(name in str(refused.value) for name in known), refused.value


def test_the_grids_have_every_case_once() -> None:
    for cases in (scaling_cases("full"), disaggregation_cases("full")):
        assert len({str(c) for c in cases}) == len(cases) and {c.scenario for c in cases} == set(
            SCENARIOS
        )
    size, cases = SIZES["full"], scaling_cases("full", ["coding"])
    assert len(cases) == size.seeds * (2 + 2 * 2 * 2 + 2 * 3 + 1 + 2)
    assert {c.router for c in cases if c.replicas == 16} == {BEST_ROUTER}
    assert all(c.num_requests == c.replicas * size.num_requests for c in cases)
    assert all(bool(c.router) == (c.replicas > 1 and c.topology != POOLED) for c in cases)
    eight = scaling.h100_cases("full")
    assert {c.replicas for c in eight} == {1, 2, 4, 8} and not {c.topology for c in eight} - {""}
    assert {c.hardware.name for c in eight} == {scaling.H100}
    assert {c.scenario for c in scaling.h100_cases("quick")} == {"chatbot"}
    apart = disaggregation_cases("quick", ["coding"], [OURS])
    assert [c.gpus for c in apart] == [2, 3, 3, 2, 3] and {c.num_requests for c in apart} == {
        240,
        360,
    }


def frame(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    """Two seeds of equal capacity, so that no interval is in the way."""
    columns = ["scenario", "system", "replicas", "router", "topology", "capacity"]
    best = pd.DataFrame(rows, columns=columns)
    gpus = [3 if ":" in t else n for n, t in zip(best["replicas"], best["topology"], strict=True)]
    return best.assign(
        rate=[[c, c] for c in best["capacity"]], gpus=gpus, source="made up", profile="p"
    )


CARRIED = [
    ("coding", OURS, 1, "", "", 2.0),
    ("coding", OURS, 4, PLAIN, "", 2.5),
    ("coding", OURS, 4, BEST_ROUTER, "", 3.0),
    ("coding", OURS, 4, "", POOLED, 5.0),
    ("coding", BASELINE, 1, "", "", 1.0),
    ("coding", BASELINE, 4, PLAIN, "", 1.0),
    ("coding", BASELINE, 4, BEST_ROUTER, "", 1.5),
    ("chatbot", OURS, 1, "", "", 1.0),
    ("chatbot", OURS, 4, PLAIN, "", 1.0),
    ("chatbot", OURS, 4, BEST_ROUTER, "", 1.0),
    ("chatbot", OURS, 4, "", POOLED, 1.0),
]


def test_routing_and_scaling() -> None:
    best = frame(CARRIED)
    gains = {(r.scenario, r.system, r.what): r.ratio for r in rows_of(scaling.routing(best, 4))}
    assert gains == pytest.approx(
        {
            ("coding", OURS, BEST_ROUTER): 1.2,
            ("coding", OURS, POOLED): 2.0,
            ("coding", BASELINE, BEST_ROUTER): 1.5,
            ("chatbot", OURS, BEST_ROUTER): 1.0,
            ("chatbot", OURS, POOLED): 1.0,
        }
    )
    numbers = scaling.scaling_numbers(best, 4)
    assert numbers["ablation_routing"][0] == pytest.approx(1.2**0.5)
    assert numbers["routing_coding"][0] == pytest.approx(1.2)
    assert numbers["routing_pooled"][0] == pytest.approx(2**0.5)
    assert numbers["scaling_coding"][0] == pytest.approx(6.0)
    assert numbers["scaling_chatbot"][0] == pytest.approx(4.0)
    ladder = select(scaling.scaling(best), system=OURS, what=BEST_ROUTER, replicas=4)
    assert ladder.set_index("scenario")["ratio"].to_dict() == {"coding": 1.5, "chatbot": 1.0}


def test_disaggregation() -> None:
    best = frame(
        [
            ("coding", "vllm", 1, "least-loaded", "2:1", 2.0),
            ("coding", "vllm", 1, "least-loaded", "1:2", 1.0),
            ("coding", "vllm", 3, "least-loaded", "", 1.0),
            ("coding", OURS, 3, "least-loaded", "", 5.0),
            ("coding", OURS, 1, "least-loaded", "1:2", 4.0),
        ]
    )
    [row] = rows_of(scaling.against_distserve(best))
    assert (row.ratio, row.system, row.what) == (pytest.approx(2.5), "vllm", "2:1")
    itself = scaling.against_itself(best).set_index("system")["ratio"]
    assert itself.to_dict() == pytest.approx({"vllm": 2.0, OURS: 0.8})
    assert scaling.distserve_numbers(best) == {}, "vLLM V1 may be the better DistServe"
    other = select(best, system="vllm").assign(system=BASELINE, rate=[[1.0, 1.0]] * 3)
    both = pd.concat([best, other], ignore_index=True)
    [(mean, *_)] = scaling.distserve_numbers(both).values()
    assert mean == pytest.approx(2.5)
    assert save("smoke", best, "04_disaggregation", {}).empty, (
        "two of six scenarios are no headline"
    )
