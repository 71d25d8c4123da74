"""What a run was worth: attainment, and capacity as the largest load at a target attainment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import exp, inf, log, sqrt

from slos.core.attainment import Outcome
from slos.core.types import require


def attainment(outcomes: Sequence[Outcome], client: bool = False) -> float:
    """Share of requests that met every objective: the paper's rule, or mean TPOT from the first token (`client`)."""
    require(len(outcomes) > 0, "outcomes", len(outcomes), "at least one")
    return sum(o.attained_client if client else o.attained for o in outcomes) / len(outcomes)


class NoCapacity(ValueError):
    """No load attains the target."""


@dataclass(frozen=True, slots=True)
class Tried:
    """One load that was tried, and its attainment."""

    rate: float
    attainment: float


def capacity(
    attained_at: Callable[[float], float],
    target: float = 0.9,
    start: float = 1.0,
    precision: float = 0.02,
    limit: int = 40,
) -> tuple[float, list[Tried]]:
    """Largest rate with `attained_at(rate)` >= target, by growth from `start`, then bisection; and the probes.

    Returns the highest rate of the final bracket that attained the target. Of the rates within a factor of 2**20 of
    `start`: raises NoCapacity where none attains it, ValueError where all do.
    """
    require(0 < target <= 1, "target", target, "in (0, 1]")
    require(start > 0, "start", start, "positive (requests per second)")
    require(0 < precision < 1, "precision", precision, "in (0, 1)")
    probes: list[Tried] = []
    low, high, rate = 0.0, inf, start
    while len(probes) < limit:
        probes.append(Tried(rate, attained_at(rate)))
        low, high = (rate, high) if probes[-1].attainment >= target else (low, rate)
        if low and high <= low * (1 + precision):
            return low, probes
        rate = high / 1.5 if not low else low * 1.5 if high == inf else sqrt(low * high)
        if not start / 2**20 < rate < start * 2**20:
            break
    where = f"no capacity near start = {start:g} at target {target:g}"
    if low:
        raise ValueError(f"{where}: even {low:g} requests per second attain it; take more requests, or tighter SLOs")
    raise NoCapacity(f"{where}: not even {rate:g} requests per second attain it; check SLOs and profile")


def geometric_mean(values: Sequence[float]) -> float:
    """Of positive values, at least one."""
    require(len(values) > 0 and min(values) > 0, "values", list(values), "positive and at least one")
    return exp(sum(map(log, values)) / len(values))


def interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and its 95 % confidence interval over seeds (Student's t on logarithms): mean, low, high.

    values: positive rates or ratios; of a single value no interval can be told, and it stands for all three.
    """
    n, mean = len(values), geometric_mean(values)
    if n == 1:
        return values[0], values[0], values[0]
    t95 = (12.71, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
    t = t95[n - 2] if n - 2 < len(t95) else 1.96 + 2.372 / (n - 1) + 2.823 / (n - 1) ** 2  # Cornish and Fisher
    factor = exp(t * sqrt(sum(log(v / mean) ** 2 for v in values) / (n - 1) / n))
    return mean, mean / factor, mean * factor
