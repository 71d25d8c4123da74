"""The upper bound next to capacities: the load that no scheduler exceeds, even one that knows the
future (`slos.evaluation.bound`), and the share of it that each system carries.

The bound is of the long run: of few requests many are served after the last has come, so that a
short run may carry more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from slos.evaluation.bound import Bound, bound, bound_of
from slos.evaluation.capacity_search import Search
from slos.evaluation.grids import swept
from slos.evaluation.sizes import Size, of_size
from slos.evaluation.stats import geometric_mean, strongest
from slos.files import Frame
from slos.policies import OURS

SHARE = "share of the bound"
SIZES = {"smoke": Size(60, 1, 0.03), "quick": Size(150, 1, 0.03), "full": Size(400, 3, 0.03)}


def run(size: str, cases: Sequence[Search], workers: int | None = None) -> Frame:
    """Rows of `Bound` for what the cases ask for, from results/<size>/bounds.csv where they lie
    already. Where there is no bound (drafts, several kinds of replicas, a prefix cache) there is no
    row, nor is there of several replicas, whose bound takes long."""
    s = of_size(size, SIZES)
    plain = [c for c in cases if not (c.max_drafts or c.topology or c.prefix_cache)]
    few = [c for c in plain if c.replicas == 1 and c.seed < s.seeds]
    each = dict.fromkeys(replace(bound_of(case), **s.effort) for case in few)
    return swept(size, "bounds", bound, [*each], Bound, workers)


def beside(best: Frame, found: Frame) -> Frame:
    """A table of capacities with the bound and the share of it that is carried; without these
    columns where none is known. Both have the column `rule`: the bound of a row is by its own rule
    of pace. A bound is the mean over its seeds."""
    if found.empty:
        return best
    columns = ("scenario", "lengths", "profile", "rule", "target")
    keys = [c for c in columns if c == "rule" or c in best]
    means = found.groupby(keys)["rate"].agg(geometric_mean).rename("bound").reset_index()
    best = best.merge(means, "left", keys)
    return best.assign(**{SHARE: best["capacity"] / best["bound"]})


def shares(best: Frame, *by: str) -> Frame:
    """Which share of the bound ours and the best other carry, as means over what agrees in `rule`
    and `by`, in words."""
    keys, ours, cells = [*dict.fromkeys(("rule", *by))], best["system"] == OURS, {}
    for name, part in (("ours", best[ours]), ("the best other", best[~ours])):
        most = strongest(part, *dict.fromkeys(("scenario", *keys)))
        means = most.groupby(keys, sort=False)[SHARE].agg(geometric_mean)
        cells[name] = means.map("{:.0%}".format)
    return pd.DataFrame(cells)
