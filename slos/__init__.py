"""SLOs-Serve: how much load can this hardware carry under these objectives, and which scheduler
carries most.

The life of a request, and the function to read for each step:

1. A workload makes it: stages of prompt and output tokens with objectives, and an arrival.
   `workloads.build.build`
2. The clock comes to its arrival, and a router ranks the replicas that it may go to.
   `slos.sim.simulator.stream`, `slos.policies.routers.Cheapest.rank`
3. Its replica is idle, shows its policy a `View` of the queues, and executes the `Batch` that it
   gets. `slos.sim.replica.Replica.begin`; inside vLLM, `slos/serving/vllm_plugin.py`
4. The policy decides whom it admits and what the next batch holds.
   `slos.policies.slos_serve.SLOsServe.step`; a simpler one, `slos.policies.baselines.Sarathi.step`
5. A dynamic program picks the requests of most value whose deadlines leave enough tokens per second
   and KV blocks (paper, section 4.1). `slos.planning.planner.sweep`
6. A look ahead takes the steps to come one by one and proves that every promise holds.
   `slos.planning.lookahead.look_ahead`
7. The batch is formed: decodes and drafts, then as much of the prompts as time is left for; how
   long it takes, the roofline tells. `slos.planning.batching.form`, `slos.core.roofline.Roofline`
8. The step ends, its tokens appear, blocks are given back, and at last it is told whether every
   objective was met. `slos.sim.replica.Replica.finish`, `slos.core.attainment.attainment`

In a notebook `import slos` is enough: the names of `HOMES` are loaded when they are first used.
"""

from importlib import import_module
from typing import Any

HOMES = {
    "slos.core.types": "Batch Load Policy Progress Request Router SLO Stage View",
    "slos.core.roofline": "Plane Roofline",
    "slos.core.attainment": "Outcome attainment",
    "slos.core.lengths": "Oracle",
    "slos.hardware.profiles": "Profile profile profiles",
    "slos.policies": "POLICIES make_policy",
    "slos.policies.routers": "ROUTERS make_router",
    "slos.sim.simulator": "World simulate stream",
    "slos.evaluation.capacity_search": "Search capacity search",
    "slos.evaluation.runs": "serve",
    "workloads": "SCENARIOS build",
}
"""The modules whose names can be had from here."""


def __getattr__(name: str) -> Any:
    for module, names in HOMES.items():
        if name in names.split():
            return getattr(import_module(module), name)
    raise AttributeError(f"module 'slos' has no attribute {name!r}; it has {', '.join(__dir__())}")


def __dir__() -> list[str]:
    return sorted(" ".join(HOMES.values()).split())
