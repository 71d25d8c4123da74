"""Profiles made of tables of kernels: those that ship, and what was measured beside them."""

import pytest

from slos.hardware.profiles import entry_of, profile, profiles
from slos.hardware.shapes import shape_of
from slos.studies import kernel_profiles
from slos.studies.kernel_profiles import WANTED


def test_the_profiles_that_ship_are_those_that_are_made() -> None:
    assert {w.name for w in WANTED} <= profiles().keys()
    for wanted in WANTED:
        shipped = profile(wanted.name)
        assert shipped.kv_tokens == kernel_profiles.kv_tokens(wanted)
        assert "AIConfigurator" in shipped.source and shipped.max_context >= 4096
        assert shipped.max_seqs == (256 if wanted.gpu == "a100" else 1024)
        assert shipped.drafts == bool(wanted.draft)


def test_the_memory_that_is_left_is_what_vllm_found() -> None:
    """40,592 tokens on an 80 GB card, by the log of the server that served the measured requests
    (inference-sim, eval/ground_truth/jan20-codellama-train-1); and what was measured on an H200."""
    assert profile("codellama-34b-h100").kv_tokens == pytest.approx(40_592, rel=0.01)
    measured = profile("llama-3.1-8b-h200").kv_tokens
    assert profile("llama-3.1-8b-h200-kernels").kv_tokens == pytest.approx(measured, rel=0.02)


def test_shapes_have_the_weights_that_their_names_say() -> None:
    said = {"llama-3.1-8b": 8.03e9, "llama-3.1-70b": 70.6e9, "llama-3.2-1b": 1.236e9}
    said |= {"llama-2-7b": 6.74e9, "codellama-34b": 33.7e9, "qwen3-8b": 8.19e9}
    for name, weights in said.items():
        assert shape_of(name).weights == pytest.approx(weights, rel=0.002)


def test_steps_that_were_measured_whole() -> None:
    table = kernel_profiles.checks().set_index(["profile", "steps"])
    own = table.loc["llama-3.1-8b-h200-kernels"]
    assert own["number"].sum() == 82
    assert 0.85 < own.loc["decodes", "ratio"] < 1.05
    assert 0.85 < own.loc["with prompts, 1000 tokens or more", "ratio"] < 1.05
    assert "0.94 times" in profile("llama-3.1-8b-h200-kernels").source
    assert kernel_profiles.told(profile("opt-6.7b-a100")) == ""


def test_the_same_tables_make_the_same_profile() -> None:
    tables = kernel_profiles.kernels("h100")
    if tables is None:
        pytest.skip("no gpu_profiles/ in the data folder")
    [wanted] = [w for w in WANTED if w.name == "llama-3.1-8b-h100"]
    again = kernel_profiles.made(tables, wanted)
    assert entry_of(again) == entry_of(profile("llama-3.1-8b-h100"))
