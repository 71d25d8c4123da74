"""What every test shares: no deadlines, since the machine may be busy, and none of the caller's
settings."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("slos", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("slos")


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
