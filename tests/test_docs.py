"""docs/extending.md and CONTRIBUTING.md: every recipe runs, and what they name is there."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import matplotlib
import pytest
import yaml
from test_setup import declared

import slos

ROOT = Path(__file__).parents[1]
EXTENDING = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
RECIPES = re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", EXTENDING, re.DOTALL | re.MULTILINE)
DOCUMENTS = {
    "docs/extending.md": EXTENDING,
    "CONTRIBUTING.md": (ROOT / "CONTRIBUTING.md").read_text(),
}


def blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_there_is_a_recipe_for_each_thing_that_can_be_added() -> None:
    titles = ["A policy", "A router", "A workload", "A profile", "A study"]
    assert [title for title, _ in RECIPES] == titles
    for _, text in RECIPES:
        lines = [line for block in blocks(text) for line in block.splitlines() if line.strip()]
        assert 5 <= len(lines) <= 26 and max(map(len, lines)) <= 100


def test_the_recipes_run_in_their_order(
    tmp_path: Path, no_data: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    matplotlib.use("Agg")
    monkeypatch.setattr(os, "cpu_count", lambda: 1)  # so that Ray is not started
    monkeypatch.chdir(tmp_path)
    tables = [(table, dict(table)) for table in (slos.POLICIES, slos.ROUTERS, slos.SCENARIOS)]
    names: dict[str, object] = {"__name__": "recipes"}
    try:
        for block in blocks(EXTENDING):
            exec(compile(block, "docs/extending.md", "exec"), names)
    finally:
        added = [{*table} - {*before} for table, before in tables]
        for table, before in tables:
            for name in {*table} - {*before}:
                del table[name]
    assert added == [{"one-by-one"}, {"roomiest"}, {"hurried"}]
    assert (tmp_path / "mine.json").exists()
    smoke = Path(os.environ["SLOS_RESULTS"]) / "smoke"
    assert (smoke / "chunks.csv").exists() and (smoke / "figures" / "chunks.png").exists()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_named_is_there(name: str) -> None:
    text = DOCUMENTS[name]
    paths = re.findall(
        r"`((?:\.|docs|notebooks|results|slos|tests|workloads)[\w./-]*/[\w./-]*)`", text
    )
    made = ("./", "results/full", "notebooks/NN_")
    for path in [p for p in paths if not p.startswith(made)]:
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m ((?:slos|workloads)[\w.]*)", text):
        assert find_spec(module), module
    for table, path in re.findall(r"`([A-Z]+)`\s+(?:of|in)\s+`([\w/]+\.py)`", text):
        assert re.search(rf"^{table}\b", (ROOT / path).read_text(), re.MULTILINE), table
    for word in ("/root", "/home", "/work", "http://"):
        assert word not in text


def test_hooks_are_local_and_of_tools_that_come_with_the_environment() -> None:
    tools = {r.name for r in declared("dev")}
    for repository in yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]:
        assert repository["repo"] == "local"
        for hook in repository["hooks"]:
            found = re.match(r"\.venv/bin/(\w+)", hook["entry"])
            assert found and found[1] in tools and hook["language"] == "system"
