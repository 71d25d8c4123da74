"""SLOs-Serve: how much load can this hardware carry under these objectives, and which scheduler
carries most?

The life of a request, and the function to read for each step:

1. A workload makes it: an arrival, and stages of prompt and output tokens with objectives.
   `workloads.build.build`
2. When the clock reaches its arrival, a router ranks the replicas that may serve it.
   `slos.sim.simulator.stream`, `slos.policies.routers.Cheapest.rank`
3. A replica that is idle shows its policy a `View` of the queues, and executes the `Batch` that the
   policy returns. `slos.sim.replica.Replica.begin`; inside vLLM, `slos/serving/vllm_plugin.py`
4. The policy decides which requests it admits and what the next batch holds.
   `slos.policies.slos_serve.SLOsServe.step`; a simpler one, `slos.policies.baselines.Sarathi.step`
5. A dynamic program picks the requests of the greatest value whose deadlines leave enough tokens
   per second and KV blocks (paper, section 4.1). `slos.planning.planner.sweep`
6. A look-ahead simulates the coming steps one by one and proves that every promise holds.
   `slos.planning.lookahead.look_ahead`
7. The batch is formed: decodes and drafts, then as many prefill tokens as the time allows. The
   roofline says how long it takes. `slos.planning.batching.form`, `slos.core.roofline.Roofline`
8. The step ends and its tokens appear. At its end a request gives its blocks back, and it is
   decided whether it met every objective.
   `slos.sim.replica.Replica.finish`, `slos.core.attainment.attainment`

In a notebook `import slos` is enough: the names in `HOMES` are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "slos.core.types": "Batch Policy Progress Request SLO Stage View",
    "slos.core.roofline": "Plane Roofline",
    "slos.core.attainment": "Outcome attainment",
    "slos.hardware.profiles": "Profile profile profiles",
    "slos.policies": "POLICIES make_policy",
    "slos.policies.oracle": "Oracle",
    "slos.policies.routers": "ROUTERS Load Router make_router",
    "slos.sim.simulator": "World simulate stream",
    "slos.evaluation.capacity_search": "Search capacity search",
    "slos.evaluation.runs": "serve",
    "workloads": "SCENARIOS build",
}
"""By module, the names that can be imported from here."""


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'slos' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted(" ".join(HOMES.values()).split())
