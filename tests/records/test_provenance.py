"""`slos.records.provenance`: what a row depends on, and that nothing else makes it again."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_layout import loaded

from slos.evaluation.capacity_search import search
from slos.policies import AS_PUBLISHED, OURS, POLICIES, ordinary
from slos.records.provenance import Code, digests

ALL = {"", *POLICIES, *AS_PUBLISHED}
PATIENCE = 600.0


@pytest.fixture
def kit(root: Path, tmp_path: Path, no_data: None) -> Path:
    """A copy of the sources, compiled kernels and all."""
    for package in ("slos", "workloads"):
        shutil.copytree(root / package, tmp_path / "kit" / package)
    return tmp_path / "kit"


def append(kit: Path, name: str, text: str) -> None:
    with (kit / name).open("a") as f:
        f.write(text)


def replace(kit: Path, name: str, old: str, new: str) -> None:
    text = (kit / name).read_text()
    assert text.count(old) == 1
    (kit / name).write_text(text.replace(old, new))


def add_policy(kit: Path) -> None:
    """The README's, as the README says."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [name] = re.findall(r"save it as `slos/policies/(\w+)\.py`", readme)
    [line] = re.findall(r"line in `POLICIES` there: `(.+?)`", readme)
    policy = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)[0]
    (kit / "slos" / "policies" / f"{name}.py").write_text(policy)
    [kind] = re.findall(r"class (\w+)", policy)
    registry = "slos/policies/__init__.py"
    own = "from slos.policies.baselines import"
    replace(kit, registry, own, f"from slos.policies.{name} import {kind}\n{own}")
    replace(kit, registry, f'    "{OURS}":', f'    {line}\n    "{OURS}":')


CHANGES: list[tuple[str, Callable[[Path], object], set[str]]] = [
    ("a policy is added", add_policy, {""}),
    ("a study is added", lambda kit: append(kit, "slos/studies/mine.py", "x = 1\n"), set()),
    ("a chart changes", lambda kit: append(kit, "slos/evaluation/plots.py", "x = 1\n"), set()),
    ("more is tried", lambda kit: append(kit, "slos/evaluation/grids.py", "x = 1\n"), set()),
    ("the engine changes", lambda kit: append(kit, "slos/serving/launch.py", "x = 1\n"), set()),
    ("our policy changes", lambda kit: append(kit, "slos/policies/slos_serve.py", "#\n"), {OURS}),
    ("our planner changes", lambda kit: append(kit, "slos/planning/planner.py", "#\n"), {OURS}),
    (
        "another class has a name",
        lambda kit: replace(
            kit, "slos/policies/__init__.py", '"sarathi": Sarathi', '"sarathi": VLLM'
        ),
        {"sarathi"},
    ),
    (
        "policies are made otherwise",
        lambda kit: replace(
            kit, "slos/policies/__init__.py", "return make(", "settings = {}\n    return make("
        ),
        ALL,
    ),
    ("the contracts change", lambda kit: append(kit, "slos/core/types.py", "#\n"), ALL),
    ("the simulator changes", lambda kit: append(kit, "slos/sim/replica.py", "#\n"), ALL),
    ("hardware changes", lambda kit: append(kit, "slos/hardware/profiles.json", "\n"), ALL),
    ("a workload changes", lambda kit: append(kit, "workloads/scenarios.py", "#\n"), ALL),
    ("the data changes", lambda kit: append(kit.parent, "cache/trace.csv", "1"), ALL),
]


@pytest.mark.parametrize(
    ("change", "changed"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES]
)
def test_a_row_depends_on_what_made_it_alone(
    kit: Path, change: Callable[[Path], object], changed: set[str]
) -> None:
    before = digests(search, kit)
    assert before.keys() == ALL
    change(kit)
    after = digests(search, kit)
    # rows of a case without a policy may be of any: they change with each of them
    expected = changed | {""} if changed else changed
    assert {name for name in before if after[name] != before[name]} == expected


def test_baselines_do_not_depend_on_our_algorithm(kit: Path) -> None:
    before = digests(search, kit)
    shutil.rmtree(kit / "slos" / "planning")
    after = digests(search, kit)
    # AdaServe learns how often drafts are accepted as ours does
    ours = {"", OURS, "adaserve"}
    assert {name for name in before if after[name] != before[name]} == ours


def test_whatever_a_run_loads_is_behind_its_rows(root: Path) -> None:
    code, module = Code(root), search.__module__
    ours = {name for name in loaded(root, f"import {module}") if name in code.paths}
    packages = {name for name, path in code.paths.items() if path.name == "__init__.py"}
    assert ours - packages <= {name for name, _ in code.behind(module, search.__name__, "")}


def test_code_from_elsewhere_depends_on_everything(kit: Path) -> None:
    before = digests(add_policy, kit)
    assert before.keys() == ALL and len({*before.values()}) == 1
    append(kit, "slos/studies/mine.py", "x = 1\n")
    assert digests(add_policy, kit)[""] != before[""]


RUN = """
from slos.evaluation.grids import run_searches, searches
from slos.evaluation.stats import capacities
from slos.records.report import capacity_tables
from slos.studies.capacity import save_capacities
probes = run_searches("smoke", searches("smoke", ["coding"]), 1)
print(capacity_tables(save_capacities("smoke", capacities(probes))))
"""


def test_an_added_policy_is_simulated_alone_and_is_in_the_table(kit: Path) -> None:
    env = os.environ | {"PYTHONPATH": str(kit), "SLOS_PROGRESS": str(kit / "progress")}
    for systems in (ordinary(), ("earliest",), ()):
        command = [sys.executable, "-c", RUN]
        done = subprocess.run(
            command, cwd=kit, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, done.stderr
        progress = kit / "progress"
        labels = progress.read_text().splitlines()[1:] if progress.exists() else []
        progress.unlink(missing_ok=True)
        for name in {*POLICIES, "earliest"}:
            run = any(f" {name} " in label or f" {name}," in label for label in labels)
            assert run == (name in systems), labels
        if "sarathi" in systems:
            assert "earliest" not in done.stdout
            add_policy(kit)
        else:
            [head, _, row] = [line for line in done.stdout.splitlines() if line[:1] == "|"][:3]
            at = [cell.strip() for cell in head.split("|")].index("earliest")
            assert float(row.split("|")[at].split()[0]) > 0
