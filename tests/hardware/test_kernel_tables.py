"""Steps put together from tables of kernels."""

from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from slos.hardware.kernel_tables import FILE, GPUS, Composition, Kernels
from slos.hardware.shapes import shape_of

PRODUCT, PROMPT, DECODE, WIRE = 1e-12, 1e-9, 1e-6, 1e-10  # milliseconds of a unit of work of each


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Kernels that take as long as their work, so that every sum can be told by hand."""
    sizes = (1024, 4096, 16384)
    cells = [
        (m, n, k, m * n * k * PRODUCT) for m, n, k in product((1, 16, 64, 256, 1024), sizes, sizes)
    ]
    cells = [(m, n, k, 50 * t if (m, n, k) == (64, 4096, 4096) else t) for m, n, k, t in cells]
    gemm = pd.DataFrame(cells, columns=["m", "n", "k", "latency"]).assign(gemm_dtype="bfloat16")
    kinds = {"attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    heads = {"num_heads": 32, "num_key_value_heads": 8}
    prompts = [(1, n, 0, n * n * PROMPT) for n in range(128, 16385, 128)]
    decodes = [(b, 1, n, b * n * DECODE) for b, n in product((1, 256), (1, 65536))]
    columns = ["batch_size", "isl", "step", "latency"]
    shared = {"gpu": ["vllm_graph"] * 2, "num_gpus": [2, 2], "message_size": [1, 1 << 30]}
    wire = pd.DataFrame(shared | {"latency": [WIRE, (1 << 30) * WIRE]})
    made = {
        "gemm": gemm,
        "context_attention": pd.DataFrame(prompts, columns=columns).assign(**kinds, **heads),
        "generation_attention": pd.DataFrame(decodes, columns=columns).assign(**kinds, **heads),
        "custom_allreduce": wire.rename(columns={"gpu": "backend"}),
    }
    for kind, table in made.items():
        table.to_parquet(tmp_path / FILE.format("h100", kind))
    return tmp_path


def test_a_step_is_the_sum_of_its_kernels(tables: Path) -> None:
    kernels, s = Kernels(tables, "h100"), shape_of("llama-3.1-8b")
    layers = s.weights - 2 * s.vocabulary * s.hidden
    moved = s.layers * 2 * (8 * 4096 + 2 * 40 * 128 + 3 * 14336) / GPUS["h100"].bandwidth

    def linear(tokens: int, answers: int) -> float:
        products = 1e-3 * PRODUCT * (layers * tokens + s.vocabulary * s.hidden * answers)
        return products + moved * tokens

    decodes = kernels.step("llama-3.1-8b", 1, Composition(decodes=64, length=1000))
    read = 1e-3 * DECODE * 64 * 1000 * s.layers
    assert decodes == pytest.approx(linear(64, 64) + read), "an outlier of the table is not used"
    chunk = kernels.step("llama-3.1-8b", 1, Composition(chunk=1024, prefix=1024))
    part = 1e-3 * PROMPT * (2048**2 - 1024**2) * s.layers
    assert chunk == pytest.approx(linear(1024, 1) + part)
    both = kernels.step("llama-3.1-8b", 1, Composition(960, 0, 16, 500, 3))
    rest = 1e-3 * s.layers * (PROMPT * 960**2 + DECODE * 16 * 500)
    assert both == pytest.approx(linear(1024, 65) + rest, rel=1e-3)


def test_several_gpus_share_a_step_and_send_their_sums(tables: Path) -> None:
    kernels = Kernels(tables, "h100")
    assert kernels.all_reduce(2, 8192) == pytest.approx(8192 * 1e-3 * WIRE, rel=1e-3)
    with pytest.raises(ValueError, match=r"heads and KV heads = \(16, 4\)"):
        kernels.step("llama-3.1-8b", 2, Composition(decodes=1, length=10))


def test_gpus_send_a_number_for_each_token_and_hidden_unit(
    tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice a layer; the table counts numbers, not their bytes."""
    sent: list[float] = []
    monkeypatch.setattr(Kernels, "prompt_attention", lambda *_: 0.0)
    monkeypatch.setattr(Kernels, "all_reduce", lambda _, gpus, size: sent.append(size) or 1.0)
    kernels, s = Kernels(tables, "h100"), shape_of("llama-3.1-8b")
    seconds = kernels.step("llama-3.1-8b", 2, Composition(chunk=1000))
    assert sent == [1000 * s.hidden] and 2 * s.layers < seconds < 2 * s.layers + 1


def test_what_lacks_is_named(tables: Path) -> None:
    with pytest.raises(ValueError, match="gpu = 'b200' must be one of a100, h100, h200"):
        Kernels(tables, "b200")
    with pytest.raises(FileNotFoundError, match="a100_sxm"):
        Kernels(tables, "a100")
    with pytest.raises(ValueError, match="shape = 'opt-13b' must be one of llama"):
        shape_of("opt-13b")
