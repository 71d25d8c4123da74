"""Which of a crowd are planned."""

from slos.core.types import Progress
from slos.planning.candidates import MOST_PLANNED, planned


def test_a_planning_takes_the_admitted_and_the_first_to_be_due() -> None:
    crowd = [Progress(f"r{i}", 0.0, 9, float(7 * i % 400), 0.1) for i in range(400)]
    mine, others = planned(crowd, {"r399"})
    dues = [p.due for p in mine[1:]]
    assert mine[0].id == "r399" and len(mine) == MOST_PLANNED
    assert dues == sorted(dues) and dues[-1] < min(p.due for p in others)
