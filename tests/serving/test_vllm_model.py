"""A real model in vLLM on the CPU: at temperature 0 our scheduler gives the stock scheduler's
tokens, one by one.

In float32, so that what else is in a batch does not tip the balance between two tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)
import torch
from engine import profile_file
from vllm import LLM, SamplingParams, TokensPrompt
from vllm.envs import disable_envs_cache

from slos.core.roofline import Plane, Roofline
from slos.core.types import Batch, View

pytestmark = [pytest.mark.xdist_group("model"), pytest.mark.filterwarnings("ignore")]

BELIEF = Roofline((Plane(5e-5, 0.0, 5e-3),))
LENGTH = 24


def prompts(stems: int, repeats: bool = False) -> list[list[int]]:
    """Of very different lengths; with `stems`, each begins with one of so many; with `repeats`,
    easy to look up."""
    dice = Random(1)
    beginnings = [[dice.randint(5, 250) for _ in range(70)] for _ in range(stems)] or [[]]
    made = [
        dice.choice(beginnings) + [dice.randint(5, 250) for _ in range(dice.randint(1, 90))]
        for _ in range(16)
    ]
    return [p[:8] * 6 for p in made] if repeats else made


class Dice:
    """Skips, chunks, preempts and asks for drafts at random."""

    def __init__(self) -> None:
        self.dice = Random(2)

    def step(self, view: View) -> Batch:
        tokens = {}
        for p in (*view.running, *view.waiting):
            if self.dice.random() < 0.8:
                most = 1 + view.max_drafts if p.left == 1 else p.left
                tokens[p.id] = self.dice.randint(1, most) if self.dice.random() < 0.7 else most
        return Batch(tokens, tuple(p.id for p in view.running if self.dice.random() < 0.01))


@pytest.fixture(scope="module")
def known() -> dict[str, Any]:
    """What the stock scheduler has answered, by what it was asked."""
    return {}


@pytest.fixture
def generate(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any]
) -> Iterator[Callable[..., Any]]:
    """Answers of all prompts by one engine, and what its scheduler did."""
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    disable_envs_cache()  # an engine of another test may have filled it
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(
        asked: list[list[int]], policy: str | Any | None, drafts: str = "",
        sampling: dict[str, Any] | None = None, predictor: str = "quantile", **options: Any,
    ) -> tuple[list[list[int]], Counter[str]]:  # fmt: skip
        if drafts:
            where = {"model": str(model)} if drafts == "draft_model" else {"prompt_lookup_max": 3}
            options["speculative_config"] = {"method": drafts, "num_speculative_tokens": 3} | where
        if policy is not None:
            slos = {"profile": profile_file(tmp_path, BELIEF), "tpot": 0.02, "slowdown": 5.0}
            slos |= {"predictor": predictor}
            options |= {
                "scheduler_cls": "slos.serving.vllm_plugin.SLOScheduler",
                "additional_config": {"slos": slos},
            }
        llm = LLM(
            str(model), dtype="float32", enforce_eager=True, block_size=32, max_model_len=256,
            max_num_seqs=8, kv_cache_memory_bytes=16 << 20, disable_log_stats=True,
            **({"enable_prefix_caching": False, "max_num_batched_tokens": 256} | options),
        )  # fmt: skip
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler  # type: ignore[attr-defined]
        seen: Counter[str] = Counter()
        preempt, schedule = scheduler._preempt_request, scheduler.schedule

        def preempted(*args: Any, **kwargs: Any) -> None:
            seen["preempted"] += 1
            if (
                policy is not None
                and not scheduler.tracked[args[0].request_id].progress.best_effort
            ):
                seen["promised and preempted"] += 1
            preempt(*args, **kwargs)

        def scheduled(*args: Any, **kwargs: Any) -> Any:
            out = schedule(*args, **kwargs)
            seen["steps"] += 1
            seen["chunks"] += sum(
                scheduler.requests[id].is_prefill_chunk for id in out.num_scheduled_tokens
            )
            seen["drafts"] += sum(map(len, out.scheduled_spec_decode_tokens.values()))
            if policy is not None:
                best_effort = sum(t.progress.best_effort for t in scheduler.tracked.values())
                seen["declined"] = max(seen["declined"], best_effort)
            seen["cached"] += sum(r.num_computed_tokens for r in out.scheduled_new_reqs)
            return out

        scheduler._preempt_request, scheduler.schedule = preempted, scheduled
        if policy is not None and not isinstance(policy, str):
            scheduler.slo_policy = policy
        how = {"max_tokens": LENGTH, "ignore_eos": True} | (sampling or {})
        params = SamplingParams(temperature=0.0, **how)
        outputs = llm.generate(
            [TokensPrompt(prompt_token_ids=p) for p in asked], params, use_tqdm=False
        )
        seen["failed"] = getattr(scheduler, "failed", False)
        pool = scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
        llm.llm_engine.engine_core.shutdown()
        return [list(o.outputs[0].token_ids) for o in outputs], seen

    def once(asked: list[list[int]], policy: str | Any | None, **how: Any) -> Any:
        if policy is not None:
            return run(asked, policy, **how)
        if (key := repr((asked, how))) not in known:
            known[key] = run(asked, None, **how)
        return known[key]

    yield once
    torch.set_num_threads(threads)


def differ(
    mine: list[list[int]], theirs: list[list[int]]
) -> dict[int, tuple[list[int], list[int]]]:
    assert len(mine) == len(theirs) and all(len(t) == LENGTH for t in theirs)
    return {i: (a, b) for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b}


def test_chunks_kv_pressure_and_preemptions_change_no_token(generate):
    asked = prompts(stems=0)
    theirs, stock = generate(asked, None)
    # answers tell prompts apart
    assert stock["preempted"] == 0 and len({tuple(t) for t in theirs}) == len(asked)
    mine, seen = generate(
        asked, "slos-serve", max_num_batched_tokens=48, num_gpu_blocks_override=14
    )
    assert differ(mine, theirs) == {} and seen["chunks"] and not seen["failed"]
    mine, seen = generate(asked, Dice(), max_num_batched_tokens=48, num_gpu_blocks_override=14)
    assert (
        differ(mine, theirs) == {}
        and seen["chunks"]
        and seen["preempted"] > 5
        and not seen["failed"]
    )


def test_prefix_caching_changes_no_token(generate):
    asked = prompts(stems=2)
    theirs, _ = generate(asked, None)
    for policy in ("slos-serve", Dice()):
        mine, seen = generate(asked, policy, enable_prefix_caching=True)
        assert differ(mine, theirs) == {} and seen["cached"] > 200 and not seen["failed"]


@pytest.mark.parametrize("method", ["ngram", "draft_model"])
def test_speculative_decoding_changes_no_token(generate, method):
    asked = prompts(stems=0, repeats=method == "ngram")
    theirs, _ = generate(asked, None)
    for policy in ("slos-serve", Dice()):
        mine, seen = generate(asked, policy, drafts=method)
        assert differ(mine, theirs) == {} and not seen["failed"]
        assert seen["drafts"] > 5 or policy == "slos-serve"  # which drafts only where it pays


@pytest.mark.parametrize("predictor", ["max-tokens", "quantile:0.9", "quantile"])
def test_promises_hold_where_answers_end_early(generate, predictor):
    """All are promised in turn, of lengths that nobody knows; four of the longest fill the cache.
    With what nine of ten grow to, none or hardly one loses its KV blocks; with a quarter some do,
    and are served all the same."""
    asked = [p[: 5 + 3 * i] for i, p in enumerate(prompts(stems=0) * 3)]
    early = {
        "max_tokens": 120, "ignore_eos": False, "stop_token_ids": list(range(5, 20)),
        "extra_args": {"slo_ttft": 60.0, "slo_tpot": 1.0, "slo_class": "early"},
    }  # fmt: skip
    theirs, _ = generate(asked, None, sampling=early)
    tight = {"num_gpu_blocks_override": 16}  # of 32 tokens
    mine, seen = generate(asked, "slos-serve", sampling=early, predictor=predictor, **tight)
    assert mine == theirs and not seen["failed"]
    lengths = [len(tokens) for tokens in mine]
    assert sum(n < 60 for n in lengths) > 5 and len(set(lengths)) > 8
    assert seen["declined"] == 0
    few = {"max-tokens": 0, "quantile:0.9": 4, "quantile": seen["steps"]}
    assert seen["promised and preempted"] <= few[predictor]
