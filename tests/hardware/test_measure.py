"""Measuring a device: fits of measured steps, shapes of models, and a rehearsal on the CPU."""

import json
import sys
import time
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slos.core.roofline import Plane, Roofline
from slos.files import Frame
from slos.hardware import fit
from slos.hardware.profiles import profile
from slos.hardware.shapes import SHAPES, write
from slos.policies import OURS
from slos.studies import engine_tables, gpu

ROWS = ["tokens", "draft_steps", "context", "seconds"]


def rows_of(*names: str) -> list[tuple[float, float, float, float]]:
    tables = [gpu.steps(name)[ROWS] for name in names]
    return [tuple(row) for row in pd.concat(tables).itertuples(index=False)]


@pytest.mark.parametrize("name", [*gpu.MODELS, "opt-6.7b-draft-h200"])
def test_shipped_profiles_are_the_fits_of_the_measured_steps(name: str) -> None:
    plain = name.replace("-draft", "")
    found = fit.fitted(rows_of(*dict.fromkeys([plain, name])))
    known = profile(name)
    assert len(found.fit.roofline.planes) == len(known.roofline.planes)
    for tokens, context in ((1, 0), (64, 10_000), (512, 0), (4096, 10_000)):
        mine = found.fit.roofline.time(tokens, 0, context)
        assert mine == pytest.approx(known.roofline.time(tokens, 0, context), rel=1e-3)
    assert known.margin == pytest.approx(found.margin, abs=1e-3)
    assert f"R2 {found.fit.r2:.3f}"[:-1] in known.source
    assert profile(str(gpu.FOLDER / f"{name}.json")) == known, "the file that the run left"


def decodes(steps: Frame) -> Frame:
    """Means over decodes of one batch in a row, without the last before a prompt and the first
    after one; steps: of a server, the warm-up of which ends with its second pause."""
    warm = steps[: np.flatnonzero(steps["end"].diff() > 2)[1]]
    alone = warm["tokens"] == warm["decodes"]
    known = (warm["end"].diff() - warm["seconds"]).abs() < 1e-4
    known &= alone & alone.shift(1, fill_value=False) & alone.shift(-1, fill_value=False)
    rows = ((warm["decodes"].diff() != 0) | ~known).cumsum()[known]
    each = warm[known].groupby(rows)
    means = each[["decodes", "context", "seconds"]].mean().assign(steps=each.size())
    return means[(means["steps"] >= 3) & (each["seconds"].std() < 0.1 * means["seconds"])]


def test_long_contexts_of_the_13b_are_decodes_of_the_servers_warm_up() -> None:
    tables = [decodes(pd.read_csv(gpu.FOLDER / name)) for name in gpu.STEPS.values()]
    found = pd.concat(tables).sort_values(["decodes", "context"])
    known = gpu.steps("opt-13b-h200")
    known = known[known["call"] == 4].sort_values(["decodes", "context"])
    for name in found:
        assert known[name].tolist() == pytest.approx(found[name].tolist(), rel=1e-4), name


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-5, 1e-4), st.floats(0.002, 0.02))
def test_pauses_and_differences_of_a_busy_machine_are_left_out(
    seed: int, k1: float, b: float
) -> None:
    rng = np.random.default_rng(seed)
    true = Roofline((Plane(k1, 0.0, b),))
    tokens = rng.choice([1, 2, 8, 32, 128, 512, 2048, 8192], 60)
    rows = [(float(n), 0.0, 0.0, true.time(n) * rng.uniform(0.98, 1.02)) for n in tokens]
    rows[3] = (*rows[3][:3], 1e-5)
    rows[7] = (*rows[7][:3], 5 * rows[7][3])
    found = fit.fitted(rows).fit.roofline
    for n in (1, 100, 8000):
        assert found.time(n) == pytest.approx(true.time(n), rel=0.05)


def test_a_profile_of_steps_measured_anywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    steps = tmp_path / "steps.csv"
    steps.write_text("tokens,seconds\n1,0.005\n64,0.006\n512,0.011\n2048,0.041\n8192,0.16\n")
    asked = [str(steps), "--model", "mine", "--gpu", "theirs", "--kv-tokens", "100000"]
    assert fit.main([*asked, "-o", str(tmp_path / "my_gpu.json")]) == 0
    made = profile(str(tmp_path / "my_gpu.json"))
    assert made.name == "my_gpu" and made.roofline.time(8192) == pytest.approx(0.16, rel=0.1)
    steps.write_text("tokens,ms\n1,5\n")
    assert fit.main([*asked, "-o", str(tmp_path / "other.json")]) == 2
    assert "with 'seconds'" in capsys.readouterr().err


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_are_configurations_that_are_known(shape: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write(SHAPES[shape], tmp_path)
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.hidden_size == SHAPES[shape]["hidden_size"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == SHAPES[shape]["vocab_size"]
    assert tokenizer.decode(tokenizer.encode("Once upon")) == "Once upon"


def test_the_rows_of_the_gpu_say_what_the_readme_does(root: Path) -> None:
    table, off = gpu.engine()
    carried = engine_tables.capacities(table)
    said = engine_tables.gains(carried).set_index(["scenario", "status"]).iloc[:, 0]
    most = carried[carried["system"] == OURS].set_index(["scenario", "status"])["capacity"]
    text = " ".join((root / "README.md").read_text().split())
    for workload, where in (
        ("bursty", "in bursts of two tiers"),
        ("steady", "under a steady load"),
    ):
        told = f"{where} ({most[workload, 'measured']:.1f}"
        assert told in text and f"{said[workload, 'measured']} " in text
    assert "simulator says {} and {};".format(*said.xs("simulated", level="status")) in text
    median, worst = off["attainment"].abs().median(), off["attainment"].abs().max()
    assert f"off by {median:.0f} points in the median, by {worst:.0f} at most" in text


def test_the_cache_of_several_gpus_is_what_the_engine_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is used by other processes, whose peaks are not known here."""
    torch = pytest.importorskip("torch")
    from slos.hardware.measure import kv_room

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = SimpleNamespace(parallel_config=SimpleNamespace(world_size=2))
    assert kv_room(SimpleNamespace(kv_tokens=1600, config=config)) == 1600  # type: ignore[arg-type]


@pytest.mark.parametrize(("complete", "missing"), [(0, [64, 768, 512]), (1, [768, 512]), (3, [])])
def test_a_profile_says_what_there_was_no_time_for(
    monkeypatch: pytest.MonkeyPatch, complete: int, missing: list[int]
) -> None:
    pytest.importorskip("vllm")
    from slos.hardware import grid
    from slos.hardware.measure import profile_of

    config = SimpleNamespace(parallel_config=SimpleNamespace(world_size=2))
    bench: Any = SimpleNamespace(
        max_context=1024, kv_tokens=8192, drafts=0, rows=[], config=config,
        scheduler=SimpleNamespace(block_size=16),
    )  # fmt: skip

    def level(bench: Any, context: int, *args: Any, **kwargs: Any) -> None:
        bench.rows += [
            grid.Row("", n, n, n, 0, n * context, 0.01 + n * 1e-4, 6) for n in (8, 4, 2, 1)
        ]
        if len(bench.rows) > 4 * complete:
            raise grid.TimeUp

    def first(bench: Any, *args: Any) -> None:  # warms up
        monkeypatch.setattr(grid, "level", level)

    monkeypatch.setattr(grid, "level", first)
    rows = grid.measure(bench, 60.0, lambda rows: None)
    source = profile_of("x", "x", bench, rows, "").source
    assert bench.missing == missing
    assert ("give more --minutes" in source) == bool(missing)


@pytest.mark.slow
def test_recorded_steps_go_to_the_file_and_none_is_kept(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # vLLM's own
        pytest.importorskip("vllm")
        from slos.hardware.recorder import COLUMNS, Recording

    class Scheduler:
        def __init__(self) -> None:
            steps = str(tmp_path / "steps.csv")
            self.vllm_config = SimpleNamespace(additional_config={"steps": steps})
            self.requests = {"r": SimpleNamespace(num_computed_tokens=8, num_prompt_tokens=5)}

        def schedule(self) -> SimpleNamespace:
            ran: dict = {"num_scheduled_tokens": {"r": 1}, "scheduled_spec_decode_tokens": {}}
            return SimpleNamespace(**ran)

        def update_from_output(self, out: SimpleNamespace) -> None:
            pass

        def shutdown(self) -> None:
            pass

    class Recorded(Recording, Scheduler):
        FLUSH = 4

    for _ in range(2):  # a second engine goes on with the file
        scheduler = Recorded()
        for _ in range(10):
            scheduler.update_from_output(scheduler.schedule())
            assert len(scheduler.steps) < Recorded.FLUSH
        scheduler.shutdown()
    table: Frame = pd.read_csv(tmp_path / "steps.csv")
    assert tuple(table.columns) == COLUMNS and len(table) == 20
    assert (table[["tokens", "requests", "decodes", "context"]].to_numpy() == (1, 1, 1, 7)).all()


@pytest.mark.slow(minutes=3)
@pytest.mark.xdist_group("servers")
@pytest.mark.filterwarnings("ignore:lag = ")  # of a client that shares two cores with both servers
def test_a_rehearsal_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both calls of the script, with a tiny model, on vLLM's engine for CPUs."""
    pytest.importorskip("vllm")
    from slos.studies import on_gpu

    # half a minute of measuring, and much more for an engine to start on a busy machine
    monkeypatch.setattr(on_gpu, "STARTING", 690.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    engine = {"enforce_eager": True, "max_num_batched_tokens": 512, "max_num_seqs": 32}
    engine["num_gpu_blocks_override"] = 640  # a cache of 2 GiB takes many seconds to make
    monkeypatch.setenv("SLOS_ENGINE", json.dumps(engine))
    asked = ["profiles", "--models", "tiny", "--minutes", "12", "--out", str(tmp_path)]
    assert on_gpu.main(asked) == 0, [p.read_text()[-1000:] for p in tmp_path.glob("*.log")]
    steps: Frame = pd.read_csv(tmp_path / "steps-tiny-cpu.csv")
    assert len(steps) >= 8 and (steps["decodes"] > 0).any() and (steps["tokens"] > 100).any()
    name = str(tmp_path / "tiny-cpu.json")
    assert "measured" in profile(name).source
    loads = ["--loads", '{"bursty": [3], "steady": [3]}', "--seconds", "3", "--minutes", "12"]
    loads += ["--num-gpu-blocks-override", "640"]
    assert on_gpu.main(["engine", "--profile", name, "--out", str(tmp_path), *loads]) == 0
    measured: Frame = pd.read_csv(tmp_path / "measured.csv")
    assert set(measured["system"]) == set(on_gpu.RECORDED)
    assert (measured["outside"] < 1).all()
    assert "vllm_plugin" in profile(str(tmp_path / "calibrated.json")).source
    for system in on_gpu.RECORDED:
        recorded: Frame = pd.read_csv(tmp_path / f"steps-{system}.csv")
        assert (recorded["planning"] < recorded["seconds"]).mean() > 0.9


@pytest.mark.slow
def test_a_measurement_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One in a call of CUDA does not see that it is to end; the others must not be lost by it."""
    from slos.studies import on_gpu

    hanging = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    real = on_gpu.subprocess.Popen
    run = lambda _, **how: real([sys.executable, "-c", hanging], **how)  # noqa: E731
    monkeypatch.setattr(on_gpu.subprocess, "Popen", run)
    monkeypatch.setattr(on_gpu, "KILLED", 0.2)
    said = on_gpu.one_profile("tiny", tmp_path, 0.1, time.monotonic() + 20.5, ())
    assert "way 0 ended with -9" in said


def test_what_is_asked_of_an_engine_is_checked_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from slos.studies import on_gpu

    with pytest.raises(ValueError, match="workload = 'burst' must be one of bursty, steady"):
        on_gpu.Engine("opt-13b-h100", tmp_path, loads={"burst": [10.0]})
    with pytest.raises(ValueError, match="system = 'vllm' must be one of"):
        on_gpu.Engine("opt-13b-h100", tmp_path, budgets={"vllm": 512})
    assert on_gpu.main(["engine", "--out", str(tmp_path)]) == 2
    assert on_gpu.main(["profiles", "--minutes", "1", "--out", str(tmp_path)]) == 2
    # no time is left when its servers are up
    url = {on_gpu.OURS: "http://127.0.0.1:9"}
    monkeypatch.setattr(on_gpu.Engine, "servers", lambda self: nullcontext(url))
    asked = ["engine", "--profile", "opt-13b-h100", "--out", str(tmp_path), "--minutes", "0.01"]
    assert on_gpu.main([*asked, "--loads", '{"steady": [3]}']) == 1


def test_the_sample_profile_is_made_of_the_sample_steps(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "my_gpu.json"
    asked = ["--model", "OPT-13B", "--gpu", "H200", "--kv-tokens", "134000"]
    asked += ["--max-context", "2048", "-o", str(out)]
    assert fit.main([str(root / "docs" / "my_steps.csv"), *asked]) == 0
    mine, sample = profile(str(out)), profile(str(root / "docs" / "my_gpu.json"))
    assert mine.roofline.time(700, 0, 100) == pytest.approx(sample.roofline.time(700, 0, 100))


FIVE = "1,0.02\n64,0.021\n256,0.028\n512,0.045\n1024,0.08\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\ufeffTokens, Seconds \r\n" + FIVE.replace("\n", "\r\n"), ""),
        ("tokens;seconds\n1;0.02\n", "must be comma-separated, with 'tokens'"),
        (
            "tokens,seconds\n" + FIVE.replace(".", ","),
            "row 2 = ['1', '0', '02'] must be of 2 fields",
        ),
        ("tokens,seconds\n-1,0.02\n" + FIVE, "row 2: tokens = '-1' must be"),
        ("tokens,seconds\n1,nan\n" + FIVE, "row 2: seconds = 'nan' must be"),
        ("tokens,seconds\n" + FIVE.replace("0.0", ""), "divide milliseconds by 1000"),
        ("tokens,seconds\n" + "64,0.02\n" * 5, "batch sizes = 1 must be several"),
    ],
)
def test_five_steps_are_read_or_what_is_wrong_is_said(
    text: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.csv").write_text(text, newline="")
    asked = ["--model", "m", "--gpu", "g", "--kv-tokens", "2000", "-o", str(tmp_path / "my.json")]
    assert fit.main([str(tmp_path / "s.csv"), *asked]) == (2 if said else 0)
    assert said in capsys.readouterr().err
    assert (tmp_path / "my.json").exists() == (not said)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1, 2]", "must be one profile"),
        ('{"a": 1}', "must be one profile"),
        ("{", "it is no JSON"),
        ('{"x": {"planes": [[1, 2]]}}', "lacking|add model"),
    ],
)
def test_a_file_that_holds_no_profile_is_told_how_one_looks(
    text: str, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "my.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        profile(str(path))


def test_an_entry_without_a_name_is_named_by_its_file(root: Path, tmp_path: Path) -> None:
    [(_, entry)] = json.loads((root / "docs" / "my_gpu.json").read_text()).items()
    path = tmp_path / "eight.json"
    path.write_text("\ufeff" + json.dumps(entry))
    assert profile(str(path)).name == "eight"


def test_the_gains_on_measured_profiles_are_what_the_readme_says(root: Path) -> None:
    table: Frame = pd.read_csv(gpu.FOLDER / "capacity.csv")
    text = " ".join((root / "README.md").read_text().split())
    for name, label in zip(gpu.MODELS, ("OPT-6.7B", "OPT-13B", "Llama-3.1-8B"), strict=True):
        gain = float(np.exp(np.log(table[table["profile"] == name]["ratio"]).mean()))
        assert f"{gain:.2f}x ({label})" in text
