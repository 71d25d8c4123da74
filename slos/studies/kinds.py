"""What the kinds of requests come to at the load that a system carries: attainment, declines and
latencies of each, since a capacity is of all of them together."""

from __future__ import annotations

from dataclasses import asdict, replace

import pandas as pd

from slos.evaluation.capacity_search import outcomes_at
from slos.evaluation.stats import rows_of
from slos.files import Frame
from slos.studies.your_own import Question


def by_kind(best: Frame, asked: Question) -> Frame:
    """A row per system and kind, of the first seed at that seed's capacity; none where there is one
    kind. best: of `your_own.answer`."""
    tables, columns = [], {}
    for row in rows_of(best):
        case = replace(asked.case, system=row.system, setting=row.setting, router=row.router)
        outcomes, _ = outcomes_at(case, row.each[0] * case.gpus)
        frame: Frame = pd.DataFrame([asdict(o) for o in outcomes])
        if frame["kind"].nunique() == 1:
            return pd.DataFrame()
        groups = frame.groupby("kind", sort=False)
        accepted = frame[~frame["declined"]].groupby("kind", sort=False)
        columns = {
            "requests": groups.size(),
            "attained": groups["attained"].mean().map("{:.0%}".format),
            "declined": groups["declined"].mean().map("{:.0%}".format),
            "P99 TTFT": accepted["ttft"].quantile(0.99).map("{:.2f} s".format),
            "P99 TPOT": (1e3 * accepted["tpot"].quantile(0.99)).map("{:.0f} ms".format),
        }
        tables.append(pd.DataFrame(columns).reset_index().assign(system=row.system))
    if not tables:
        return pd.DataFrame()
    whole = pd.concat(tables, ignore_index=True).fillna("-")
    return whole[["system", "kind", *columns]]
