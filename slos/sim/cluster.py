"""Clusters by name: replicas side by side, or prefill and decode replicas with a KV hand-over
(DistServe).

DistServe (Zhong et al., OSDI'24) is a topology, not a policy: ordinary policies run on replicas
with roles. "2:1" means two prefill replicas and one decode replica; the decode side fetches a KV
cache when it has room for it, as there. "pooled" is one engine as large as all replicas together:
what perfect routing would make of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from slos.core.roofline import Roofline
from slos.core.types import LengthPredictor, require
from slos.hardware.profiles import Profile
from slos.hardware.shapes import kv_bytes
from slos.policies import make_policy
from slos.policies.oracle import Fixed
from slos.sim.replica import Replica
from slos.sim.simulator import Link
from slos.sim.world import World

NVLINK = 300e9
"""Bytes per second from one A100 to another: NVLink has 600 GB/s, half each way (NVIDIA's A100 data
sheet). A machine without it has 32 GB/s (PCIe 4.0 x16), and DistServe's own had 25 Gbit/s between
machines, 3 GB/s."""

POOLED = "pooled"


def roles(topology: str) -> tuple[str, ...]:
    """Of each replica of a topology: "" is one that does everything, "2:1" two for prefill and one
    for decode."""
    if topology in ("", POOLED):
        return ("",)
    counts = [int(part) if part.isdigit() else 0 for part in topology.split(":")]
    two = len(counts) == 2 and min(counts) > 0
    require(two, "topology", topology, "'' or prefill:decode, as in '2:1'")
    return ("prefill",) * counts[0] + ("decode",) * counts[1]


def pooled(hardware: Profile, count: int) -> Profile:
    """`count` times the tokens per second and the KV cache in one engine; a batch still costs what
    it costs empty."""
    old = hardware.roofline
    planes = tuple(replace(p, k1=p.k1 / count) for p in old.planes)
    roofline = Roofline(planes, old.k_ctx / count, old.tile * count if old.tile > 1 else 1)
    more = {name: count * getattr(hardware, name) for name in ("kv_tokens", "gpus", "max_seqs")}
    return replace(hardware, roofline=roofline, **more)


def cluster(
    system: str, hardware: Profile, lengths: Callable[[], LengthPredictor], replicas: int = 1,
    topology: str = "", changes: Mapping[str, Any] | None = None, **settings: Any,
) -> list[Replica]:  # fmt: skip
    """`replicas` times a topology, each of the replicas with a fresh policy, and a fresh predictor
    by `lengths`: an engine learns from what it serves itself.

    changes: fields of the worlds, as `max_drafts` and `acceptance`. settings: of the policies;
    `roofline` among them is what they believe, by default what is true.
    """
    require(replicas >= 1, "replicas", replicas, "at least 1")
    fields = {"zero_load": hardware.roofline, **(changes or {})}
    if topology == POOLED:
        hardware, replicas = pooled(hardware, replicas), 1
    world, settings = World.of(hardware, **fields), {"roofline": hardware.roofline} | settings
    nodes, kinds = [], roles(topology) * replicas
    for i, role in enumerate(kinds):
        # a request leaves a prefill replica with its first token
        expected = Fixed(1) if role == "prefill" else lengths()
        policy = make_policy(system, lengths=expected, **settings)
        nodes.append(Replica(f"{role or 'replica'}-{i:02}", policy, world, role, expected))
    return nodes


def link(hardware: Profile, bandwidth: float = NVLINK) -> Link:
    """What a hand-over costs: of a model on several GPUs each sends its part at `bandwidth` bytes
    per second."""
    return Link(kv_bytes(hardware.model), bandwidth * hardware.gpus)
