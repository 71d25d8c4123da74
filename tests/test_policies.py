"""The registry, a newcomer's policy, and what the core may import."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from laws import FAST

from slos.core.types import SLO, Batch, LengthPredictor, Oracle, Request, Stage, View
from slos.metrics import attainment
from slos.policies import POLICIES, make_policy
from slos.policies.baselines import VLLM, Sarathi
from slos.policies.slos_serve import SLOsServe
from slos.sim.simulator import World, simulate

WORK = [Request(f"r{i}", 0.1 * i, (Stage(10 + i, 5, SLO(tpot=0.1, slowdown=5.0)),)) for i in range(4)]


def test_make_policy_gives_beliefs_and_settings() -> None:
    lengths = Oracle(WORK)
    policy = make_policy("slos-serve", FAST, lengths, longest_step=0.07)
    assert isinstance(policy, SLOsServe)
    assert (policy.roofline, policy.lengths, policy.longest_step) == (FAST, lengths, 0.07)
    assert make_policy("sarathi", FAST, lengths, chunk=64) == Sarathi(chunk=64)
    assert make_policy("vllm", FAST, lengths) == VLLM()
    assert make_policy("slos-serve", FAST, lengths) is not make_policy("slos-serve", FAST, lengths)


def test_make_policy_names_the_choices() -> None:
    with pytest.raises(ValueError, match="policy = 'fcfs' must be one of vllm, vllm-v1, sarathi, slos-serve; or add"):
        make_policy("fcfs", FAST, Oracle(WORK))
    with pytest.raises(ValueError, match=r"setting of policy 'sarathi' = 'chunks' must be one of chunk, .*watermark"):
        make_policy("sarathi", FAST, Oracle(WORK), chunks=3)
    with pytest.raises(ValueError, match="chunk = 0"):
        make_policy("sarathi", FAST, Oracle(WORK), chunk=0)


@dataclass
class ShortestFirst:
    """A newcomer's policy: whole requests one after the other, the shortest first."""

    lengths: LengthPredictor
    most: int = 1000

    def step(self, view: View) -> Batch:
        p = view.running[0] if view.running else min(view.waiting, key=self.lengths.remaining)
        return Batch({p.id: min(p.left, self.most)})


def test_a_newcomers_policy_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(POLICIES, "shortest-first", ShortestFirst)
    policy = make_policy("shortest-first", FAST, Oracle(WORK), most=6)
    outcomes = simulate(WORK, policy, World(FAST, 10))
    assert [o.id for o in outcomes] == ["r0", "r1", "r2", "r3"] and attainment(outcomes) > 0
    with pytest.raises(ValueError, match=r"setting of policy .* = 'least' must be one of most"):
        make_policy("shortest-first", FAST, Oracle(WORK), least=1)


def test_the_core_starts_without_heavy_packages(root: Path) -> None:
    code = "import sys, slos.policies, slos.simulator, slos.metrics, workloads; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert "slos.planner" in loaded.split()
    heavy = {"vllm", "torch", "ray", "pandas", "matplotlib", "datasets", "seaborn", "IPython"}
    assert not heavy & {m.split(".")[0] for m in loaded.split()}


def test_only_the_hosts_import_their_engines(root: Path) -> None:
    vllm, ray, torch = {"vllm_plugin.py", "launch.py"}, {"serve.py", "sweep.py"}, {"tiny_model.py"}
    allowed = {"vllm": vllm, "ray": ray, "torch": torch, "workloads": None}
    paths = sorted((root / "slos").rglob("*.py"))
    assert len(paths) > 8
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for package in {m.split(".")[0] for m in modules} & allowed.keys():
                where = allowed[package]
                assert where is None or path.name in where, f"{path.name} imports {package}"
            below = path.parent.name == "slos" and path.name not in ("ask.py", "bench.py")
            assert not (below and any("slos.evaluation" in m for m in modules)), f"{path.name} imports slos.evaluation"
