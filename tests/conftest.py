"""What every test shares: no deadlines, since the machine may be busy, and none of the caller's
settings; and which tests are slow.

Slow is what starts an engine, Ray, a browser or a notebook. Of engines that is told here: a file
that is skipped without vLLM, or a test that asks for a `model`; of the rest a mark tells.
"""

import os
import re
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
    return bool(ENGINE.search(collection_path.read_text())) or None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "model" in getattr(item, "fixturenames", ()) or ENGINE.search(item.path.read_text()):
            item.add_marker("slow")


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
