"""The layout of `slos`: which package may import which, and where heavy libraries may be
imported."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

BELOW = {
    "core": (),
    "files": (),
    "workloads": ("core", "files"),
    "hardware": ("core", "files"),
    "planning": ("core",),
    "policies": ("planning",),
    "sim": ("policies", "hardware"),
    "serving": ("policies", "hardware"),
    "fleet": ("serving",),
    "replay": ("serving", "workloads"),
    "records": ("core", "files"),
    "evaluation": ("sim", "records", "workloads"),
    "studies": ("evaluation", "replay"),
    "ask": ("studies",),
    "reproduce": ("records",),
}
"""The order: each package, and those right below it. It may import these, and what they may."""

ENGINES = {
    "vllm": {
        "serving/vllm_plugin.py",
        "serving/launch.py",
        "hardware/recorder.py",
        "hardware/grid.py",
        "hardware/measure.py",
    },
    "ray": {"fleet/gateway.py", "records/sweep.py"},
    "torch": {"serving/tiny_model.py", "hardware/measure.py"},
}
"""The modules that host an engine, by the library that only they import."""


def allowed(package: str) -> set[str]:
    return {package}.union(*map(allowed, BELOW[package]))


def package_of(module: str) -> str:
    """ "core" of slos.core.types, "files" of slos.files, "workloads" of workloads.build."""
    return [*module.removeprefix("slos.").split("."), ""][0]


def modules(root: Path) -> dict[str, Path]:
    """Every module of slos and workloads by its name, that of a package without `__init__`."""
    paths = [p for folder in ("slos", "workloads") for p in sorted((root / folder).rglob("*.py"))]
    return {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p
        for p in paths
    }


def imported(path: Path) -> Iterator[str]:
    """What a file imports, in functions too: `from a import b` is a.b, whatever b is."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}, line {node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def arrows(root: Path) -> dict[str, set[str]]:
    """The modules of ours that each module imports."""
    known = modules(root)
    found = {}
    for name, path in known.items():
        ours = [t for t in imported(path) if t.split(".")[0] in ("slos", "workloads")]
        found[name] = {t if t in known else t.rpartition(".")[0] for t in ours}
        assert found[name] <= known.keys(), f"{name} imports what is not there"
    return found


def test_imports_point_down_only(root: Path) -> None:
    for name, targets in arrows(root).items():
        if name != "slos":
            below = allowed(package_of(name))
            wrong = sorted(t for t in targets if package_of(t) not in below)
            assert not wrong, f"{name} imports {wrong}, and may import {sorted(below)} only"


def test_no_module_is_long(root: Path) -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in modules(root).items()}
    assert {name: n for name, n in lines.items() if n > 300} == {}


def test_no_modules_import_each_other_in_a_circle(root: Path) -> None:
    TopologicalSorter(arrows(root)).prepare()  # which raises CycleError


def test_every_package_is_in_the_order(root: Path) -> None:
    assert {package_of(name) for name in modules(root)} - {"slos"} == BELOW.keys()


def test_the_tests_lie_in_the_folders_of_what_they_test(root: Path) -> None:
    folders = {p.parent.name for p in (root / "tests").glob("*/test_*.py")}
    assert folders <= BELOW.keys()


def test_only_the_hosts_import_their_engines(root: Path) -> None:
    for path in modules(root).values():
        for library in {t.split(".")[0] for t in imported(path)} & ENGINES.keys():
            where = path.relative_to(root / "slos").as_posix()
            assert where in ENGINES[library], f"{where} imports {library}"


def loaded(root: Path, code: str) -> set[str]:
    """The packages and modules that are loaded after `code`."""
    code = f"import sys; {code}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_the_simulator_starts_without_heavy_packages(root: Path) -> None:
    names = loaded(root, "import slos.sim.cluster, workloads")
    assert "slos.planning.planner" in names
    heavy = {"vllm", "torch", "ray", "pandas", "matplotlib", "datasets", "seaborn", "IPython"}
    assert not heavy & {m.split(".")[0] for m in names}
