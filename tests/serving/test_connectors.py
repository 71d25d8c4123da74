"""KV connectors (disaggregated prefill): what another engine computed is loaded and used, and what
this one hands over is whole, whatever the policy answers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

pytest.importorskip(
    "vllm", reason="vLLM is not installed: SLOS_EXTRA=cpu ./run_all.sh test installs it"
)
from engine import BLOCK, drained, serve
from test_vllm_plugin import LOOPS, TIGHT, Chaos, answers, build, workload
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
)

from slos.core.types import SLO, Batch, Request, Stage, View

pytestmark = pytest.mark.filterwarnings("ignore")
__all__ = ["build"]  # a fixture


@dataclass
class Loads(KVConnectorMetadata):
    """By request: its tokens, and the blocks that they go to. failed: those that get there not."""

    loads: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)


class Prefilled(KVConnectorBase_V1):
    """Another engine has computed the whole blocks of every prompt; loading takes a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.next, self.loaded = Loads(), set[str]()

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        if request.num_preemptions:
            return 0, False
        more = (request.num_prompt_tokens - 1) // BLOCK * BLOCK - num_computed_tokens
        return (more, True) if more > 0 else (0, False)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        if num_external_tokens:
            self.loaded.add(request.request_id)
            tokens = list(request.prompt_token_ids)
            self.next.loads[request.request_id] = tokens, list(blocks.get_block_ids()[0])

    def build_connector_meta(self, scheduler_output: Any) -> Loads:
        meta, self.next = self.next, Loads()
        return meta

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...


class Lossy(Prefilled):
    """Nothing comes, and each is asked for once."""

    def get_num_new_matched_tokens(
        self, request: Any, num_computed_tokens: int
    ) -> tuple[int, bool]:
        if request.request_id in self.loaded:
            return 0, False
        return super().get_num_new_matched_tokens(request, num_computed_tokens)

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        super().update_state_after_alloc(request, blocks, num_external_tokens)
        self.next.failed |= {request.request_id} & self.next.loads.keys()


def of(connector: type[Prefilled], **more: Any) -> KVTransferConfig:
    where = {"kv_connector": connector.__name__, "kv_connector_module_path": __name__}
    return KVTransferConfig(kv_role="kv_both", **where, **more)


CONNECTOR, LOSSY = of(Prefilled), of(Lossy, kv_load_failure_policy="recompute")


class Spurns(Chaos):
    """Gives nothing to those whose prompts were loaded."""

    def step(self, view: View) -> Batch:
        batch = super().step(view)
        loaded = {p.id for p in view.running if not p.generated}
        tokens = {id: n for id, n in batch.tokens.items() if id not in loaded}
        return replace(batch, tokens=tokens)


@pytest.mark.parametrize("policy", [None, Chaos(1, 0.1), Spurns(2, 0.1)])
@pytest.mark.parametrize("loop", LOOPS)
def test_loaded_prompts_are_used_and_no_token_changes(build, loop, policy):
    requests, prompts = workload(seed=30, size=30)
    core, clock = build(policy, blocks=TIGHT, kv_transfer_config=CONNECTOR, **LOOPS[loop])
    s, dropped = core.scheduler, set()
    preempt = s._preempt_request

    def watched(request: Any, *args: Any, **kwargs: Any) -> None:
        preempt(request, *args, **kwargs)
        dropped.add(request.drop_stale_output)

    s._preempt_request = watched
    assert s.requires_kv_delivery
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and dropped <= {True} and len(s.connector.loaded) > 15
    assert dropped or not policy, "some were preempted"


class Without:
    """Gives to all but one request."""

    def __init__(self, id: str) -> None:
        self.id = id

    def step(self, view: View) -> Batch:
        return Batch({p.id: p.left for p in (*view.running, *view.waiting) if p.id != self.id})


@pytest.mark.parametrize("policy", [None, Chaos(1, 0.1)])
@pytest.mark.parametrize("loop", LOOPS)
def test_what_could_not_be_loaded_is_computed_and_no_token_changes(build, loop, policy):
    requests, prompts = workload(seed=31, size=30)
    core, clock = build(policy, blocks=TIGHT, kv_transfer_config=LOSSY, **LOOPS[loop])
    assert serve(core, clock, requests, prompts) == answers(requests, prompts)
    assert drained(core) and len(core.scheduler.connector.loaded) > 15


@pytest.mark.parametrize("connector", [CONNECTOR, LOSSY], ids=["loaded", "lost"])
def test_one_that_gets_nothing_does_not_block_those_that_wait(build, connector):
    lengths = {"first": (10, 60), "spurned": (100, 5), "later": (10, 5)}
    requests = [
        Request(id, 0.02 * i, (Stage(*lengths[id], SLO(0.1)),)) for i, id in enumerate(lengths)
    ]
    prompts = {r.id: [7] * r.stages[0].prompt for r in requests}
    core, clock = build(Without("spurned"), kv_transfer_config=connector)
    living: list[set[str]] = []
    present = core.scheduler.requests
    serve(core, clock, requests, prompts, between=lambda step: living.append({*present}))
    assert core.scheduler.connector.loaded == {"spurned"}
    assert any("first" in some and "later" not in some for some in living[30:])
