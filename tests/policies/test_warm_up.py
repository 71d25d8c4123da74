"""After the warm-up no kernel is compiled while requests are served."""

import os
import subprocess
import sys
from pathlib import Path

SERVE = """
import sys
from itertools import product

from numba.core.dispatcher import Dispatcher

from slos.policies.oracle import Oracle
from slos.core.pace import RULES
from slos.evaluation.runs import by_rule
from slos.hardware.profiles import profile
from slos.policies.slos_serve import SLOsServe
from slos.policies.warm_up import warm_up
from slos.sim.replica import World
from slos.sim.simulator import simulate
from workloads import build

KERNELS = {
    f"{name}.{key}": kernel
    for name, module in sorted(sys.modules.items()) if name.startswith("slos.")
    for key, kernel in vars(module).items() if isinstance(kernel, Dispatcher)
}

def compiled():
    return {name: [str(s) for s in kernel.signatures] for name, kernel in KERNELS.items()}

warm_up()
before, hardware = compiled(), profile("opt-6.7b-draft-a100")
never = [name for name, found in before.items() if ".ablated." not in name and not found]
assert not never, never
for drafts, rule in product((0, 4), RULES):
    work = by_rule(build("mixed", 28.0, 150, 0).requests, rule)
    policy = SLOsServe(hardware.roofline, Oracle(work))
    assert any(o.declined for o in simulate(work, policy, World.of(hardware, max_drafts=drafts)))
late = {name: found for name, found in compiled().items() if found != before[name]}
assert not late, late
print(len([name for name, found in before.items() if found]))
"""


def test_nothing_is_compiled_while_requests_are_served(root: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", SERVE], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20, "kernels that the warm-up compiles"
