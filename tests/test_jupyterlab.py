"""The quick start in a real JupyterLab in a headless Chromium: opened, run and looked at; skipped
without those."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import matplotlib.image
import nbformat
import pytest

PATIENCE = 600.0  # seconds, on a busy machine
NAME = "00_quickstart.ipynb"
LAB = [
    "no-browser",
    "allow-root",
    "ip=127.0.0.1",
    "port=0",
    "LabApp.expose_app_in_browser=1",
    "LabApp.news_url=None",
]
CHROMIUM = [
    "headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage",
    "disable-background-networking", "disable-component-update", "no-first-run", "no-proxy-server",
    "window-size=1500,2400",
]  # fmt: skip
SETTINGS = {
    "apputils-extension/notification": '{"fetchNews": "false"}',  # asks nothing
    "notebook-extension/tracker": '{"windowingMode": "none"}',  # has all cells in the page
}
IDLE = (
    "return window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === "
    "'idle'"
)
RUN = """const run = name => window.jupyterapp.commands.execute(name);
run('notebook:run-all-cells').then(() => run('docmanager:save')).then(
    () => { window.finished = 'saved' }, error => { window.finished = String(error) })"""
FIGURES = """return [...document.querySelectorAll('.jp-Notebook .jp-OutputArea-output img')].filter(
    image => image.complete && image.naturalWidth > 300 && image.clientWidth > 300
).map(image => image.src)"""


def eventually(what: str, answer: Callable[[], Any]) -> Any:
    end = time.monotonic() + PATIENCE
    while not (given := answer()):
        assert time.monotonic() < end, f"not within {PATIENCE:.0f} s: {what}"
        time.sleep(0.3)
    return given


@contextmanager
def jupyterlab(root: Path, folder: Path, scratch: Path) -> Iterator[str]:
    """Serves the folder on a free port of the loopback; gives the address, with {} for what is to
    be opened."""
    # a backend other than the kernel's own shows no figure
    foreign = ("JUPYTER", "MPLBACKEND", "SLOS_")
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(foreign)
    }
    for name in (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
        "SLOS_CACHE",
    ):
        environment[name] = str(scratch / name)
    environment |= {
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": str(root),
        "SLOS_RESULTS": str(folder / "results"),
    }
    for name, text in SETTINGS.items():
        path = (
            scratch
            / "JUPYTER_CONFIG_DIR"
            / "lab/user-settings/@jupyterlab"
            / f"{name}.jupyterlab-settings"
        )
        path.parent.mkdir(parents=True)
        path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", "jupyterlab", *(f"--{flag}" for flag in LAB)]
    with (log := scratch / "server.log").open("wb") as out:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out)

    def announced() -> list[str]:
        assert server.poll() is None, log.read_text(encoding="utf-8")
        found = (scratch / "JUPYTER_RUNTIME_DIR").glob("jpserver-*.json")
        return [text for path in found if (text := path.read_text(encoding="utf-8")).endswith("}")]

    try:
        known = json.loads(eventually("a server", announced)[0])
        yield f"http://127.0.0.1:{known['port']}/lab/tree/{{}}?reset&token={known['token']}"
    finally:
        server.terminate()  # it stops its kernels
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        server.kill()
        server.wait()


@pytest.mark.slow(minutes=1)
def test_the_quick_start_runs_in_jupyterlab(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="needs selenium: pip install selenium"
    )
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (browser and driver):
        pytest.skip(
            "needs chromium and chromedriver: apt-get install chromium chromium-driver "
            "fonts-dejavu-core"
        )
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
    picture = Path(os.environ.get("SLOS_ARTIFACTS") or tmp_path) / "jupyterlab_00_quickstart.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    (folder := tmp_path / "notebooks").mkdir()
    text = (root / "notebooks" / NAME).read_text(encoding="utf-8")
    assert text.count(r"size = \"quick\"") == 1
    (folder / NAME).write_text(
        text.replace(r"size = \"quick\"", r"size = \"smoke\""), encoding="utf-8"
    )
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*CHROMIUM, f"user-data-dir={tmp_path / 'browser'}"):
        options.add_argument(f"--{flag}")
    with (
        jupyterlab(root, folder, tmp_path) as address,
        # quits at the end
        webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as page,
    ):
        try:
            page.get(address.format(NAME))
            eventually("the notebook with an idle kernel", lambda: page.execute_script(IDLE))
            page.execute_script(RUN)
            assert (
                eventually("all cells run", lambda: page.execute_script("return window.finished"))
                == "saved"
            )
            cells = [
                cell
                for cell in nbformat.read(folder / NAME, as_version=4).cells
                if cell.cell_type == "code"
            ]
            outputs = [output for cell in cells for output in cell.outputs]
            strange = [
                output
                for output in outputs
                if output.output_type not in ("execute_result", "display_data")
            ]
            assert strange == [], "an error, or a warning"
            assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
            assert sum("image/png" in output.data for output in outputs) == 2, "each figure once"
            eventually("the figures in the page", lambda: len(page.execute_script(FIGURES)) == 2)
            assert len(page.find_elements("css selector", ".jp-Notebook .widget-slider")) == 3
            before = page.execute_script(FIGURES)
            page.find_element(
                "css selector", ".jp-Notebook .widget-dropdown option:not(:checked)"
            ).click()
            eventually(
                "the second drawn anew",
                lambda: page.execute_script(FIGURES)[1:] not in ([], before[1:]),
            )
            assert page.execute_script(FIGURES)[:1] == before[:1], "the first is left alone"
        finally:
            page.save_screenshot(str(picture))

    assert (folder / "results" / "smoke" / "figures" / "burst_timeline.png").exists()
    assert matplotlib.image.imread(picture)[..., :3].std() > 0.05, "the screenshot is blank"
