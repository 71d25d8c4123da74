"""Settings of the plug-in, in `--additional-config`."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from slos.core.pace import CLIENT
from slos.core.roofline import Roofline
from slos.core.types import SLO, LengthPredictor, Policy, Progress, Request, Stage, View, require
from slos.hardware.profiles import Profile, profile
from slos.policies import make_policy
from slos.policies.oracle import Oracle
from slos.policies.predictors import make_predictor
from slos.serving.lengths import FailsafeLengths
from slos.serving.objectives import Objectives, Phase, bounded, within

KINDS: dict[str, Any] = {"str": str, "bool": bool, "float": int | float}
KINDS |= {"float | None": int | float | None, "Mapping[str, Any]": Mapping}


@dataclass(frozen=True, slots=True)
class Settings:
    """What `--additional-config '{"slos": {...}}'` may say.

    policy, options: a name in `slos.policies` and its settings. profile: a shipped one's name or a
    JSON file to start from; without one vLLM schedules until a roofline is learned. learn: keep
    fitting it. save: file to keep it in. predictor: of output lengths, as "quantile:0.9";
    `slos.policies.predictors` says what a higher level is good for. slowdown or ttft, tpot, e2e,
    rule of pace, value: objectives of a request that brings none. reject: whether a request that
    cannot be in time ends (HTTP 429) instead of becoming best effort. load: file for a router to
    read it from.
    """

    policy: str = "slos-serve"
    options: Mapping[str, Any] = field(default_factory=dict)
    profile: str = ""
    learn: bool = True
    caution: float = 0.75
    save: str = ""
    predictor: str = "quantile"
    ttft: float | None = None
    slowdown: float | None = None
    tpot: float = 0.1
    e2e: float | None = None
    rule: str = CLIENT
    value: float = 1.0
    reject: bool = False
    load: str = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            value, kind = getattr(self, f.name), str(f.type)
            ok = isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
            require(ok, f"slos setting {f.name}", value, f"a {kind}")
        knows = bool(self.profile) or self.learn
        require(knows, "slos setting learn", self.learn, "true without a profile")
        for name, path in (("save", self.save), ("load", self.load)):
            there, bound = Path(path).parent.is_dir(), "in a folder that exists"
            require(there, f"slos setting {name}", path, bound, "make it")
        # which say what is wrong with them
        _ = self.objectives, self.lengths(), self.start

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Settings:
        bound = 'an object, such as {"policy": "slos-serve"}'
        require(isinstance(config, Mapping), "slos settings", config, bound)
        known = [f.name for f in fields(cls)]
        for name in config:
            require(name in known, "slos setting", name, f"one of {', '.join(known)}")
        return cls(**config)

    @property
    def start(self) -> Profile | None:
        """The profile to start from, if there is one."""
        return profile(self.profile) if self.profile else None

    def lengths(self) -> FailsafeLengths:
        return FailsafeLengths(make_predictor(self.predictor))

    def policy_for(self, roofline: Roofline, lengths: LengthPredictor) -> Policy:
        return make_policy(self.policy, roofline, lengths, **self.options)

    def try_policy(self) -> None:
        """A step of it, so that wrong settings are refused before a request comes."""
        work = [Request("0", 0.0, (Stage(90, 20, SLO(0.1)),))]
        policy = self.policy_for(profile("opt-6.7b-a100").roofline, Oracle(work))
        policy.step(View(0.0, [Progress("0", 0.0, 90, 9.0, 0.1)], (), 900, 1000))

    @property
    def objectives(self) -> Objectives:
        slowdown = 5.0 if self.ttft is None and self.slowdown is None else self.slowdown
        slo = replace(bounded("", self.tpot, self.ttft, slowdown), rule=self.rule)
        within("", "e2e", self.e2e)
        return Objectives((Phase(slo),), self.value, e2e=self.e2e)


def check_engine(scheduler: Any, settings: Settings) -> None:
    """Raises ValueError for options of vLLM that the plug-in does not support. scheduler: vLLM's,
    already constructed."""
    config, parallel = scheduler.scheduler_config, scheduler.parallel_config
    cure = "leave --scheduling-policy out"
    # the only one that can be put into an order
    require(isinstance(scheduler.waiting, deque), "scheduling policy", config.policy, "fcfs", cure)
    # a chunk that is cut ends where the state is not kept that the prefix cache then looks for
    aligned, cure = scheduler.need_mamba_block_aligned_split, "add --no-enable-prefix-caching"
    require(not aligned, "mamba_cache_mode", "align", "none", cure)
    # a step computes a canvas of tokens again and again, of which no policy knows
    model = scheduler.vllm_config.model_config
    diffusion = getattr(model, "is_diffusion", False)
    require(not diffusion, "model", model.model, "one that does not diffuse", "add --stock")
    # a request would get a token in every so many steps, and policies plan for one in each
    pipeline, cure = parallel.pipeline_parallel_size, "use --tensor-parallel-size"
    require(pipeline == 1, "--pipeline-parallel-size", pipeline, "1", cure)
    # engines of one server would write it by turns
    engine, cure = parallel.data_parallel_index, "leave --data-parallel-size out"
    one = not (settings.load and engine)
    require(one, "slos setting load", settings.load, "of a server with one engine", cure)
