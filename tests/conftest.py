"""What every test shares: no deadlines, since the machine may be busy, and none of the caller's
settings; and which tests are slow.

Slow is what starts an engine, Ray, a browser or a notebook. Of engines that is told here: a file
that is skipped without vLLM, or a test that asks for a `model`; of the rest a mark tells. What
takes longest starts first, so that no process is left alone with it while the others have ended.
"""

import os
import re
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("slos", deadline=None, derandomize="CI" in os.environ)
settings.register_profile("quick", settings.get_profile("slos"), max_examples=25)
QUICK = "not slow"
ENGINE = re.compile(r'^pytest\.importorskip\(\s*"vllm"', re.MULTILINE)


def pytest_configure(config: pytest.Config) -> None:
    settings.load_profile("quick" if config.option.markexpr == QUICK else "slos")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The quick loop does not even import the files that import an engine."""
    if config.option.markexpr != QUICK or collection_path.suffix != ".py":
        return None
    return needs_engine(collection_path) or None


@cache
def needs_engine(path: Path) -> bool:
    return bool(ENGINE.search(path.read_text()))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "model" in getattr(item, "fixturenames", ()) or needs_engine(item.path):
            item.add_marker("slow")
    items.sort(key=minutes, reverse=True)  # those that are equal keep their order


def minutes(item: pytest.Item) -> float:
    """How long a test takes, as far as its mark tells."""
    marks = [*item.iter_markers("slow")]
    return max((mark.kwargs.get("minutes", 0.1) for mark in marks), default=0.0)


@pytest.fixture
def root() -> Path:
    """The repository."""
    return Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("EXTRA", "PROGRESS", "PYTHON", "RESULTS", "VENV"):
        monkeypatch.delenv(f"SLOS_{name}", raising=False)


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The synthetic profile, whatever lies about, and results in a folder of their own."""
    (tmp_path / "cache").mkdir()
    monkeypatch.delenv("SLOS_DATA", raising=False)
    monkeypatch.setenv("SLOS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SLOS_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights; only where vLLM is installed."""
    from slos.serving.tiny_model import write

    return write(tmp_path_factory.mktemp("model") / "tiny", hidden=64, layers=2)
