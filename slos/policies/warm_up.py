"""Compiles every kernel of SLOs-Serve before the first request comes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from slos.core.roofline import Plane, Roofline
from slos.core.types import Progress, View
from slos.planning.batching import longest_step
from slos.planning.lookahead import keeps_pace, proven
from slos.planning.speculation import Acceptance, Drafting
from slos.policies.oracle import Fixed
from slos.policies.slos_serve import SLOsServe


def warm_up() -> None:
    """Compile every kernel as the policy calls it, so that none is while requests are served."""
    roofline, view = Roofline((Plane(1e-3, 1e-3, 1e-2),)), View(0.0, (), (), 99, 99, max_drafts=2)
    prompt = Progress("", 0.0, 999, 2.0, 0.1)
    decode = Progress("", 0.0, 99, 1.0, 0.1, generated=1, computed=98, client=True)
    policy = SLOsServe(roofline, Fixed(10))
    plan = policy.sort(replace(view, running=[decode], waiting=[prompt]))
    policy.admit(plan)
    plan.guaranteed, plan.jobs = [decode, prompt], policy.jobs([decode, prompt])
    proven(0.0, plan.jobs, plan.engine)
    for plan.unproven in (True, False):
        policy._form(plan)
    policy._latest_end(plan)
    longest_step(plan.engine, 0.0)
    drafting = Drafting(view, roofline, Acceptance(), plan.engine, short=False)
    drafting._proven(plan.jobs, plan.share, np.ones(2, np.int64))
    for jobs in (plan.jobs, plan.jobs[:1]):
        drafting.lengths(jobs, np.ones(len(jobs)), 0.1)
    plan.jobs = plan.jobs[:1]
    keeps_pace(0.0, plan.jobs, plan.engine)
