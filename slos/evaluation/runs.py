"""One simulated run; and what may be changed of it: objectives, and what the policy believes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

from slos.core.attainment import Outcome
from slos.core.roofline import Roofline
from slos.core.types import SLO, Request, Stage, require
from slos.hardware.profiles import Profile, profile, profiles, scaled
from slos.policies.predictors import make_predictor
from slos.policies.routers import make_router
from slos.sim.cluster import cluster, link
from slos.sim.simulator import Observer, stream
from workloads.scenarios import by_name

WHERE = {
    "replicas": 1, "topology": "", "router": "", "seed": 0, "belief": None, "predictor": "oracle"
}  # fmt: skip
"""Where a system runs, unless said otherwise (`slos.sim.cluster`, `slos.policies.routers`); what
policies believe of the roofline, if not the truth; who predicts lengths, of
`slos.policies.predictors`."""


def hardware_of(scenario: str, name: str = "", drafts: bool = False) -> Profile:
    """The profile of that name, or the scenario's own, with its draft model if asked for."""
    own = by_name(scenario)
    name = name or (own.drafting if drafts else "") or own.profile
    cure = f"one of {', '.join(profiles())}, or a JSON file"
    require(bool(name), "profile", name, f"given for {Path(own.name).name}", cure)
    return profile(name)


def parse_setting(text: str) -> dict[str, Any]:
    """`"chunk=512,watermark=0.02"` to keyword arguments; numbers only."""
    pairs = [part.split("=") for part in text.split(",") if part]
    try:
        return {n.strip(): int(v) if v.strip().isdigit() else float(v) for n, v in pairs}
    except ValueError:
        form = "name=number, comma-separated, as in 'chunk=512'"
        raise ValueError(f"setting {text!r} must read {form}") from None


def serve(
    requests: Sequence[Request], system: str, hardware: Profile, setting: str = "",
    observe: Observer | None = None, **where: Any,
) -> list[Outcome]:  # fmt: skip
    """Simulate one system on a cluster.

    where: as in `WHERE`, the others are fields of the worlds, as `max_drafts` and `acceptance`.
    """
    given = (where.pop(n, d) for n, d in WHERE.items())
    replicas, topology, router, seed, belief, predictor = given
    lengths = partial(make_predictor, predictor, requests)
    settings = parse_setting(setting) | ({"roofline": belief} if belief else {})
    nodes = cluster(system, hardware, lengths, replicas, topology, where, **settings)
    chosen = make_router(router, hardware.roofline, lengths()) if router else None
    wire = link(hardware) if ":" in topology else None
    return list(stream(requests, nodes, chosen, seed, wire, observe))


def scaled_slos(requests: Sequence[Request], factor: float) -> list[Request]:
    """The same requests with objectives `factor` times as long."""
    require(factor > 0, "slo_scale", factor, "positive")

    def loose(slo: SLO) -> SLO:
        tightest = 1 / (slo.slowdown or inf)
        bound = f"at least {tightest:.3g} for a slowdown of {slo.slowdown}"
        require(factor >= tightest, "slo_scale", factor, bound)
        times = {name: getattr(slo, name) for name in ("tpot", "ttft", "slowdown")}
        return replace(slo, **{name: t * factor for name, t in times.items() if t is not None})

    return _with_slos(requests, loose)


def by_rule(requests: Sequence[Request], rule: str) -> list[Request]:
    """The same requests, to be served and judged by a rule of pace, of `slos.core.pace`."""
    return _with_slos(requests, lambda slo: replace(slo, rule=rule))


def _with_slos(requests: Sequence[Request], change: Callable[[SLO], SLO]) -> list[Request]:
    def changed(request: Request) -> tuple[Stage, ...]:
        return tuple(replace(s, slo=change(s.slo)) for s in request.stages)

    return [replace(r, stages=changed(r)) for r in requests]


def believed(true: Roofline, text: str) -> Roofline:
    """What `text` makes of the true roofline.

    "scale=0.7" takes batches for so much shorter; "tile=1" does not know tiles, nor does
    "smooth=1", which is right on the average; "k_ctx=0" knows no context. Raises ValueError for
    unknown names.
    """
    changes, known = parse_setting(text), ("k_ctx", "scale", "smooth", "tile")
    good, bound = changes.keys() <= set(known), f"made of {', '.join(known)}"
    require(good, "belief", text, bound, "write name=number")
    if changes.pop("smooth", 0):
        planes = tuple(replace(p, b=p.b + p.k1 * (true.tile - 1) / 2) for p in true.planes)
        true = replace(true, planes=planes, tile=1)
    return replace(scaled(true, changes.pop("scale", 1.0)), **changes)
