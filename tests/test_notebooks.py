"""The notebooks: small, without logic and outputs, and all of them run at the smoke size, once."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import pandas as pd
import pytest

from slos.evaluation.sizes import SIZES, size_of
from slos.hardware.profiles import profiles
from slos.policies import POLICIES, ordinary
from slos.reproduce import missing
from workloads import SCENARIOS

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LOGIC = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda, ast.While, ast.Try)
PATIENCE = 1800  # seconds, on a busy machine
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_of(path: Path) -> list[Any]:
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def parameters_of(path: Path) -> Any:
    [cell] = [cell for cell in code_of(path) if "parameters" in cell.metadata.get("tags", [])]
    return cell


def test_there_are_notebooks_with_numbered_names() -> None:
    assert NOTEBOOKS and all(re.fullmatch(r"\d\d_[a-z_]+\.ipynb", path.name) for path in NOTEBOOKS)
    assert len({path.name[:2] for path in NOTEBOOKS}) == len(NOTEBOOKS)


@each
def test_it_is_committed_without_outputs(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() <= {"kernelspec", "language_info", "slos"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    for cell in code_of(path):
        assert cell.outputs == [] and cell.execution_count is None, "run nbstripout on it"
        assert cell.metadata.keys() <= {"tags"}


@each
def test_it_asks_a_question_takes_parameters_and_has_no_logic(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert 3 <= len(cells) <= 14
    assert cells[0].cell_type == "markdown" and re.match(r"# .*\?\n", cells[0].source), (
        "begins with its question"
    )
    assert "arXiv 2504.08784" in cells[0].source or "paper" in cells[0].source
    for cell in code_of(path):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        most = 14 if "parameters" in cell.metadata.get("tags", []) else 12
        assert len(lines) <= most, f"{cell.id} has {len(lines)} lines"
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, LOGIC), f"{cell.id}: {ast.unparse(node)} belongs into slos/"


@each
def test_its_parameters_are_plain_values_with_a_remark(path: Path) -> None:
    cell, names = parameters_of(path), []
    assert cell.id == code_of(path)[0].id, "the first cell of code"
    for statement in ast.parse(cell.source).body:
        assert isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
        ast.literal_eval(statement.value)
        names.append(statement.targets[0].id)
    assert names[0] == "size" and 'size = "quick"' in cell.source


KNOWN = {
    "size": SIZES,
    "scenario": SCENARIOS,
    "scenarios": SCENARIOS,
    "systems": POLICIES,
    "profile": profiles(),
}


NAMED = [
    (path, name)
    for path in NOTEBOOKS
    for name in KNOWN
    if f"\n{name} = " in f"\n{parameters_of(path).source}"
]


@pytest.mark.parametrize(
    ("path", "parameter"), NAMED, ids=lambda value: getattr(value, "stem", value)
)
def test_an_unknown_name_is_refused_with_the_known_ones(
    path: Path, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything has run, if it can be: the cells are executed here, at the smoke size."""
    for variable in ("SLOS_CACHE", "SLOS_RESULTS"):
        monkeypatch.setenv(variable, str(tmp_path / variable))
    monkeypatch.delenv("SLOS_DATA", raising=False)
    first, *cells = code_of(path)
    values: dict[str, Any] = {}
    exec(first.source, values)
    values["size"] = "smoke"
    values[parameter] = ["nonsense"] if isinstance(values[parameter], list) else "nonsense"
    with pytest.raises(ValueError, match="nonsense") as refused:
        for cell in cells:
            exec(cell.source, values)
    assert all(name in str(refused.value) for name in KNOWN[parameter])
    assert not list(tmp_path.rglob("*.csv")), "refused before the first run"


def values_of(path: Path) -> dict[str, Any]:
    """The parameters of a notebook as they stand there."""
    values: dict[str, Any] = {}
    exec(parameters_of(path).source, {}, values)
    return values


TYPED = [(path, name) for path in NOTEBOOKS for name in values_of(path)]


@pytest.mark.parametrize(("path", "parameter"), TYPED, ids=lambda v: getattr(v, "stem", v))
def test_a_parameter_of_a_wrong_type_is_refused_by_its_name(
    path: Path, parameter: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `papermill -p` hands over what was typed."""
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path))
    known: dict[str, Any] = values_of(path)
    known[parameter] = "fast" if isinstance(known[parameter], list | int | float) else 7
    with pytest.raises(ValueError, match=f"^{parameter} = .+ must be "):
        for cell in code_of(path)[1:]:
            exec(cell.source, known)
    assert not list(tmp_path.rglob("*.csv")), "refused before the first run"


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size = 'huge' must be one of smoke, quick, full"):
        size_of("huge")


def reproduce(results: Path, cache: Path) -> str:
    environment = os.environ | {"SLOS_CACHE": str(cache), "MPLBACKEND": "Agg"}
    environment.pop("SLOS_DATA", None)
    command = [sys.executable, "-m", "slos.reproduce", "smoke", "--results", str(results)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow(minutes=6)
def test_all_run_at_the_smoke_size_and_are_done_then(tmp_path: Path) -> None:
    """One test, so that they run once however the tests are spread over processes."""
    results, made = tmp_path / "results", tmp_path / "results" / "smoke"
    out = reproduce(results, tmp_path / "cache")
    run = [path for path in NOTEBOOKS if not missing(path)]
    for path in run:
        assert f"{path.stem}: done (" in out and (made / "notebooks" / path.name).exists()
    for path in set(NOTEBOOKS) - set(run):
        assert f"{path.stem}: skipped, vllm not installed; SLOS_EXTRA=cpu" in out
    assert "paper" in out and "NOT RUN" in out

    figures = {path.name: path for path in (made / "figures").iterdir()}
    assert {
        "burst_timeline.png",
        "capacity_dataset.png",
        "attainment_dataset.png",
        "ratio_dataset.png",
    } <= set(figures)
    for path in figures.values():
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        picture = matplotlib.image.imread(path)[..., :3]
        assert min(picture.shape[:2]) > 300 and picture.std() > 0.05, f"{path.name} is blank"
        assert len({tuple(c) for c in (picture[::7, ::7].reshape(-1, 3) * 8).astype(int)}) > 4, (
            "it has colours"
        )

    capacity = pd.read_csv(made / "capacity.csv", keep_default_na=False)
    assert set(capacity["scenario"]) == set(SCENARIOS) and len(SCENARIOS) == 6
    assert set(capacity["system"]) == set(ordinary()) and len(ordinary()) >= 4
    assert (
        len(capacity) == len(SCENARIOS) * len(ordinary()) and min(capacity["capacity"].tolist()) > 0
    )
    assert set(capacity["source"]) == {"synthetic profile"} and set(capacity["status"]) == {
        "simulated"
    }
    headlines = pd.read_csv(made / "headlines.csv").set_index("key")
    others = [name.replace("-", "_") for name in ordinary() if not name.startswith("slos-serve")]
    assert set(headlines.index) >= {f"capacity_vs_{name}" for name in (*others, "best")}
    assert min(headlines["value"].tolist()) > 0

    rows = {path.name: path.read_bytes() for path in made.glob("*.csv")}
    again = reproduce(results, tmp_path / "cache")
    assert all(f"{path.stem}: done already" in again for path in run)
    assert {path.name: path.read_bytes() for path in made.glob("*.csv")} == rows
