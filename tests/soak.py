"""Random attacks for as long as one likes: `python tests/soak.py --minutes 60`.

Worlds with steep planes, tiles, contexts and drafts, where every promise must be kept; clusters of
every router and topology; objectives that nobody should send; sweeps that are killed. Ends with 0
and what was tried, or with the seed of what failed: `--seed` begins there.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import RLock

from laws import EVERY, FAST, Lawful, Watch, build
from tqdm.auto import tqdm

from slos.core.roofline import Plane, Roofline
from slos.core.types import QUOTED, SLO, Request, Stage
from slos.hardware.profiles import Profile
from slos.policies import POLICIES
from slos.policies.oracle import Oracle
from slos.policies.routers import ROUTERS, make_router
from slos.policies.slos_serve import SLOsServe
from slos.records.sweep import sweep
from slos.serving.middleware import fields_of
from slos.serving.objectives import FIELDS
from slos.sim.cluster import cluster
from slos.sim.simulator import simulate, stream
from slos.sim.world import World

TOPOLOGIES = ("", "", "1:1", "2:1", "1:2", "pooled")
PLANES = (
    (), (Plane(0.002, 0.0, -0.1),), (Plane(0.01, 0.0, -0.3),), (Plane(0.0005, 0.002, 0.2),),
    (Plane(0.001, 0.0, 1.5),), (Plane(0.03, 0.0, -1.0), Plane(0.001, 0.0, 0.05)),
)  # fmt: skip
ODD = (
    0, -1, 1e-9, 1e308, float("nan"), float("inf"), True, None, "", "x", "9" * 400, [], {}, "[]",
    '[{"tpot": 1}, {"tpot": 2}]', "[" * 9999, "\0", {"tpot": 1},
)  # fmt: skip


def work_of(dice: random.Random, pace: float) -> list[Request]:
    """`pace`: seconds per token; three tenths of it are faster than any step."""
    now, work = 0.0, []
    for i in range(dice.randint(1, 40)):
        now += dice.choice([0.0, 0.0, 0.1, 1.0]) * pace * 10
        slo = SLO(pace * dice.choice([0.3, 0.7, 1.0, 3.0]), slowdown=dice.choice([1.0, 3.0, 5.0]))
        stages = [Stage(dice.randint(1, 200), dice.randint(1, 60), slo)]
        for _ in range(dice.choice([0, 0, 1, 3])):
            prompt, wait = dice.choice([(0, 0.0), (0, 0.0), (20, 0.3), (0, 0.3)])
            own = SLO(slo.tpot * dice.choice([1.0, 2.0]))
            own = own if (prompt, wait) == (0, 0.0) else slo
            stages.append(Stage(prompt, dice.randint(1, 30), own, wait))
        work.append(Request(f"r{i}", now, tuple(stages), dice.choice([1.0, 2.0])))
    return work


def world_of(dice: random.Random) -> tuple[list[Request], World]:
    planes = (*FAST.planes, *dice.choice(PLANES))
    k_ctx, tile = dice.choice([0.0, 0.0, 1e-6, 2e-5]), dice.choice([1, 1, 16, 64])
    roofline = Roofline(planes, k_ctx, tile)
    work, size = work_of(dice, 2 * roofline.time(8)), dice.choice([4, 16])
    blocks = max(-(-r.context // size) for r in work) + dice.choice([0, 1, 20, 400])
    drafts, accepted = dice.choice([(0, 0.7), (3, 0.0), (8, 0.9)])
    seats = dice.choice([2, 8, 256])
    return work, World(roofline, blocks, size, seats, max_drafts=drafts, acceptance=accepted)


def promises(dice: random.Random) -> str:
    """Ours keeps its word, where a promise is for a round."""
    work, world = world_of(dice)
    watch = Watch(SLOsServe(world.roofline, Oracle(work)))
    for o in simulate(work, watch, world, dice.randrange(99)):
        assert o.attained == (o.id in watch.admitted and not o.declined), f"{o.id}: promise"
    return "promises"


def laws(dice: random.Random) -> str:
    """Every policy, under watch, with noise."""
    work, world = world_of(dice)
    world = replace(world, noise=dice.choice([0.0, 0.3]))
    watched = Lawful(build(dice.choice(EVERY), work, world), work, world, dice.random() < 0.8)
    outcomes = simulate(work, watched, world, dice.randrange(99), watched.observe)
    watched.end(outcomes)
    return "policies"


def clusters(dice: random.Random) -> str:
    """Every router and topology: each request is served once."""
    work, world = world_of(dice)
    tokens = (world.kv_blocks + 400) * world.block_size
    hardware = Profile("x", "x", "x", 1, world.roofline, tokens, 9999, "made up", world.block_size)
    oracle, count = Oracle(work), dice.randint(1, 3)
    changes = {"max_drafts": world.max_drafts, "acceptance": world.acceptance}
    topology, policy = dice.choice(TOPOLOGIES), dice.choice([*POLICIES])
    nodes = cluster(policy, hardware, lambda: oracle, count, topology, changes)
    router = make_router(dice.choice([*ROUTERS]), world.roofline, oracle)
    outcomes = list(stream(work, nodes, router, dice.randrange(99)))
    assert sorted(o.id for o in outcomes) == sorted(r.id for r in work), "lost, or served twice"
    return "clusters"


def hostile(dice: random.Random) -> str:
    """Objectives that are malformed are refused, in few words."""
    xargs = {dice.choice([*FIELDS, "slo_", "x"]): dice.choice(ODD) for _ in range(3)}
    fields = {"prompt": "x", "vllm_xargs": dice.choice([xargs, dice.choice(ODD)])}
    body = json.dumps(fields | {dice.choice(["slo_ttft", "a"]): dice.choice(ODD)}).encode()
    body = dice.choice([body, body[: dice.randrange(1, 60)], body.decode().encode("utf-16")])
    headers = {dice.choice(["x-slo-ttft", "x-slo_tpot", "x-slo-x", "y"]): str(dice.choice(ODD))}
    try:
        fields_of(body, dice.choice([{}, headers]))
    except ValueError as error:
        assert len(str(error)) < 3 * QUOTED + 300, "a long refusal"
    return "hostile calls"


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    value: float


def rows_of(name: str) -> list[Row]:
    return [Row(name, len(name) / 3)]


def killed(dice: random.Random) -> str:
    """A sweep that is killed leaves whole rows, and the next one adds the others."""
    names = [f"case {i}" for i in range(30)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.csv"
        if not (child := os.fork()):
            tqdm.set_lock(RLock())  # theirs is shared: who is killed with it would hold it for ever
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            sweep(rows_of, names, path, Row, workers=1)
            os._exit(0)
        time.sleep(dice.random() * 0.1)
        os.kill(child, 9)
        os.waitpid(child, 0)
        assert sweep(rows_of, names, path, Row, workers=1) == [r for n in names for r in rows_of(n)]
    return "kills"


ATTACKS = (promises, promises, laws, laws, clusters, hostile, hostile)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="(%(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of the first attack (%(default)s)")
    given = parser.parse_args(argv)
    end, seed, tried = time.monotonic() + 60 * given.minutes, given.seed, Counter[str]()
    while time.monotonic() < end or seed == given.seed:
        dice = random.Random(seed)
        attack = killed if seed % 100 == 99 else dice.choice(ATTACKS)
        try:
            tried[attack(dice)] += 1
        except Exception:
            traceback.print_exc()
            print(f"soak: {attack.__name__} failed at --seed {seed}, after {dict(tried)}")
            return 1
        seed += 1
    print(f"soak: {seed - given.seed} attacks held: {dict(tried)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
