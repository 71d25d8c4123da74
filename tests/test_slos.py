"""`import slos`: the life of a request names functions that are there, and names come when they are
used."""

import re
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_layout import loaded

import slos

HEAVY = {"IPython", "matplotlib", "numba", "numpy", "pandas", "ray", "torch", "vllm", "yaml"}


def found(path: str) -> Any:
    """What a dotted path names."""
    parts, n = path.split("."), len(path.split("."))
    while find(".".join(parts[:n])) is None:
        n -= 1
    return reduce(getattr, parts[n:], import_module(".".join(parts[:n])))


def find(module: str) -> Any:
    try:
        return find_spec(module)
    except ModuleNotFoundError:  # its parent is a module or a class
        return None


STEPS = re.findall(r"^(\d)\. (.*?)(?=^\d\. |^\n)", f"{slos.__doc__}", re.DOTALL | re.MULTILINE)
NAMED = re.findall(r"`((?:slos|workloads)\.[\w.]+)`", f"{slos.__doc__}")
FILES = re.findall(r"`(slos/[\w/]+\.py)`", f"{slos.__doc__}")


def test_the_life_of_a_request_has_eight_steps_that_name_what_to_read() -> None:
    assert [number for number, _ in STEPS] == list("12345678")
    for _, text in STEPS:
        assert set(re.findall(r"`([\w.]+)`", text)) & set(NAMED), text


def test_what_it_names_is_there(root: Path) -> None:
    assert all(callable(found(path)) for path in NAMED)
    assert FILES and all((root / path).is_file() for path in FILES)


def test_names_are_those_of_their_modules() -> None:
    for module, names in slos.HOMES.items():
        for name in names.split():
            assert getattr(slos, name) is getattr(import_module(module), name)
    wanted = "Request Stage SLO View Batch simulate capacity profile POLICIES"
    assert set(wanted.split()) <= set(dir(slos)) == set(slos.__dir__())
    with pytest.raises(AttributeError, match=r"no attribute 'nonsense'; it has .*Request"):
        slos.nonsense  # noqa: B018


def test_nothing_heavy_is_loaded_before_it_is_used(root: Path) -> None:
    def packages(code: str) -> set[str]:
        return {name.split(".")[0] for name in loaded(root, code)}

    assert not packages("import slos; dir(slos)") & {*HEAVY, "workloads"}
    assert not packages("import slos; slos.Request, slos.SLO") & HEAVY
    later = {"IPython", "matplotlib", "pandas", "ray", "torch", "vllm"}
    assert not packages("import slos; slos.simulate, slos.POLICIES, slos.profile") & later
