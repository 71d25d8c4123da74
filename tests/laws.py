"""What must hold after every step of every policy, and the random workloads that it is tried on.

`Lawful` stands between a simulator and a policy. It keeps a model of its own, written as plainly as
possible, of where every request is, and compares it with what the simulator shows: nothing is lost
or made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from math import fsum
from operator import attrgetter

from hypothesis import settings
from hypothesis import strategies as st
from pool import Pool

from slos.core.attainment import Outcome
from slos.core.pace import PAPER, RULES
from slos.core.roofline import Plane, Roofline
from slos.core.types import SLO, Batch, LengthPredictor, Policy, Progress, Request, Stage, View
from slos.policies import AS_PUBLISHED, POLICIES, make_policy
from slos.policies.oracle import Oracle
from slos.policies.slos_serve import SLOsServe
from slos.sim.prefix_cache import PrefixCache
from slos.sim.replica import Replica, Step, World
from slos.sim.simulator import simulate


def examples(most: int) -> settings:
    """Of a property that takes long: `most` examples, a fifth of them in the quick loop."""
    quick = settings.get_current_profile_name() == "quick"
    return settings(max_examples=most // 5 if quick else most)


EVERYTHING = attrgetter(*(f.name for f in fields(Progress)))
WHERE = attrgetter("stage", "generated", "tokens", "computed")


@dataclass(slots=True)
class Place:
    """Where the model has a request: `times` are those of its tokens and `arrived` its arrival,
    both by stage."""

    stage: int = 0
    generated: int = 0
    tokens: int = 0
    computed: int = 0
    seen: int = 0  # tokens that the last view said would be found
    times: list[list[float]] = field(default_factory=list)
    # with the tokens that the stage had to compute then
    arrived: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class Lawful:
    """A policy under watch; give it to `simulate` with `observe`, then call `end` with the
    outcomes."""

    policy: Policy
    requests: Sequence[Request]
    world: World
    repeats: bool = True
    clock: float = 0.0
    batch: Batch = field(default_factory=Batch)
    batches: list[Batch] = field(default_factory=list)
    here: dict[str, Place] = field(default_factory=dict)
    away: dict[str, tuple[float, Place]] = field(default_factory=dict)  # back when
    # not before when, from another replica
    fetched: dict[str, tuple[float, Place]] = field(default_factory=dict)
    declined: set[str] = field(default_factory=set)
    sent: dict[str, Progress] = field(default_factory=dict)  # handed over, as they were then
    # one that is declined for another replica
    passed: Callable[[str, float, Place], None] | None = None
    leaves: Callable[[str, float, Place], None] | None = None  # one that comes back after a wait
    sends: Callable[[str, float, Place], None] | None = None  # one that has its first token
    gone: dict[str, Place] = field(default_factory=dict)
    pool: Pool | None = None
    within: int = 0  # tokens that are found in the batch that computes them
    last: tuple[float, float] = (-1.0, -1.0)  # when the last step began and ended
    freed: int = 0  # KV blocks of those that left with it
    asked: float = -1.0  # when the policy was asked last
    by_id: dict[str, Request] = field(init=False)

    def __post_init__(self) -> None:
        self.by_id = {r.id: r for r in self.requests}
        if not self.leaves:  # alone
            self.away = {r.id: (r.arrival, Place()) for r in self.requests}
        if self.world.prefix_cache:
            self.pool = Pool(self.world.kv_blocks, self.world.block_size)

    def step(self, view: View) -> Batch:
        self.check(
            view.now,
            view.waiting,
            view.running,
            view.free_blocks,
            self.world.kv_blocks - view.total_blocks,
            self.world.asynchronous and view.now == self.last[1] != self.asked,
        )
        self.asked = view.now
        everybody = [*view.waiting, *view.running]
        for p in everybody:
            assert (p.cached, p.shared) == self.shown(p), f"{p.id}: what it would find or shares"
            self.here[p.id].seen = p.cached
        before = [EVERYTHING(p) for p in everybody]
        batch = self.policy.step(view)
        assert [*view.waiting, *view.running] == everybody, "the policy changed a queue"
        assert [EVERYTHING(p) for p in everybody] == before, "the policy wrote to a Progress"
        self.batch = batch if self.repeats else replace(batch, repeat=1)
        self.batches.append(self.batch)
        for p in everybody:
            if p.id in batch.decline and p.elsewhere:
                assert self.passed and not p.computed and not p.best_effort
                self.passed(p.id, view.now, self.here.pop(p.id))
            elif p.id in batch.decline:
                self.declined.add(p.id)
        for id in batch.preempt:
            self.here[id].computed = 0
            if self.pool:
                self.pool.release(id)
        return self.batch

    def shown(self, p: Progress) -> tuple[int, int]:
        """What a request would find if it started now, in tokens, and shares, in blocks."""
        if not self.pool:
            return 0, 0
        if p.computed:
            return 0, self.pool.shared(self.pool.tables[p.id], 1)
        found = self.pool.found(self.by_id[p.id], p.tokens)
        return len(found) * self.pool.size, self.pool.shared(found, 0)

    def cache(self, count: int) -> dict[str, int]:
        """Let the model of the pool go through the steps that just ended; the tokens of each that
        were computed. Who starts holds what is there first of all."""
        pool, here, tokens = self.pool, self.here, dict(self.batch.tokens)
        self.within = 0
        if not pool:
            return tokens
        starts = [id for id in tokens if not here[id].computed]
        for id in starts:
            pool.start(self.by_id[id], here[id].tokens)
        for id in [*(id for id in tokens if id not in starts), *starts]:
            place, r = here[id], self.by_id[id]
            if id in starts:
                seen, place.computed = place.seen, pool.start(r, place.tokens)
                assert place.computed >= seen, "what the view said was not found"
                if place.computed > seen:  # by the batch itself: so much less is left to do
                    tokens[id] = max(1, tokens[id] - (place.computed - seen))
                    self.within += place.computed - seen
            drafted = tokens[id] > 1 and self.left(id) == 1
            self.keep(id, place.computed + (1 if drafted else tokens[id]))
        for step in range(2, count + 1):  # of a leap: all decode
            for id in tokens:
                self.keep(id, here[id].computed + step)
        return tokens

    def keep(self, id: str, tokens: int) -> None:
        """A request has computed so many."""
        if self.pool:
            self.pool.grow(self.by_id[id], tokens)
            self.pool.fill(self.by_id[id], tokens)

    def check(
        self,
        now: float,
        waiting: Sequence[Progress],
        running: Sequence[Progress],
        free: int,
        lent: int,
        ahead: bool = False,
    ) -> None:
        """ahead: what is shown is what was known when the step began that has just ended."""
        assert now >= self.clock, "the clock went back"
        self.clock = now
        for id in [id for id, (back, _) in self.away.items() if back <= now]:
            back, place = self.away.pop(id)
            self.enter(id, place, back)
        shown = [p.id for p in (*waiting, *running)]
        for id in self.fetched.keys() & {p.id for p in running}:
            earliest, self.here[id] = self.fetched.pop(id)
            assert now >= earliest, "it came before its KV cache could"
        came = {id: p.arrived[-1][0] for id, p in self.here.items() if not p.computed}
        known = self.here.keys() - {id for id in came if ahead and came[id] > self.last[0]}
        ahead, known = ahead and bool(known), known or self.here.keys()  # else it looks again
        assert sorted(shown) == sorted(known), "a request was lost or is here twice"
        for p in (*waiting, *running):
            assert WHERE(p) == WHERE(self.here[p.id]), f"{p.id} is not where its tokens brought it"
        assert all(p.computed == 0 for p in waiting), "a waiting request holds KV"
        assert all(0 < p.computed < p.tokens for p in running)
        held = sum(-(-p.computed // self.world.block_size) for p in running)
        if self.pool:
            held = self.pool.held
        assert free == self.world.kv_blocks - held - lent - self.freed * ahead >= 0 <= lent, (
            "the KV ledger does not add up"
        )
        assert len(running) <= self.world.max_seqs

    def left(self, id: str) -> int:
        return self.here[id].tokens - self.here[id].computed

    def enter(self, id: str, place: Place, now: float) -> None:
        """A request begins a stage here."""
        self.here[id] = place
        place.tokens += self.by_id[id].stages[place.stage].prompt
        place.generated = 0
        place.times.append([])
        place.arrived.append((now, place.tokens - place.computed))

    def release(self, leave: dict[str, int]) -> int:
        """Requests leave, with the blocks that each holds; how many blocks are free by that."""
        if not self.pool:
            return sum(leave.values())
        before = self.pool.held
        for id in leave:
            self.pool.release(id)
        return before - self.pool.held

    def ends(self, step: Step, tokens: dict[str, int]) -> list[float]:
        """Of each of the steps that were taken at once."""
        total = sum(tokens.values())
        drafts = max(n - 1 if self.left(id) == 1 else 0 for id, n in tokens.items())
        context = sum(self.here[id].computed for id in tokens) - self.within
        ends, now = [], step.start
        for k in range(step.count):
            now += self.world.roofline.time(total, drafts, context + k * total)
            ends.append(now)
        if self.world.noise:
            ends = [step.end]
        assert ends[-1] == step.end, "a step must last as the roofline says"
        return ends

    def observe(self, replica: Replica, step: Step, done: tuple[Outcome, ...]) -> None:
        assert step.start == self.clock < step.end and 1 <= step.count <= max(1, self.batch.repeat)
        tokens = self.cache(step.count)
        ends = self.ends(step, tokens)
        finished, spoke, leave = set(), [], {}
        size = self.world.block_size
        for id, n in tokens.items():
            place, stages, left = self.here[id], self.by_id[id].stages, self.left(id)
            assert 1 <= n <= (left if left > 1 else 1 + self.world.max_drafts)
            assert step.count == 1 or n == left == 1, "only plain decodes are taken at once"
            if n < left:
                place.computed += n
                continue  # its prefill goes on: no token yet
            spoke.append(id)
            new = step.count
            if n > left:  # how many drafts were accepted is the world's secret: up to all of them
                shown = replica.live[id].progress if id in replica.live else self.sent.pop(id, None)
                goes_on = shown is not None and shown.stage == place.stage
                upto = shown.generated if shown and goes_on else stages[place.stage].output
                new = upto - place.generated
                assert 1 <= new <= n
            place.computed += new if n >= left == 1 else n
            place.generated += new
            place.tokens += new
            place.times[-1] += ends if new == step.count else ends * new
            assert place.generated <= stages[place.stage].output
            self.keep(id, place.computed)
            if place.generated < stages[place.stage].output:
                continue
            if place.stage + 1 == len(stages):
                finished.add(id)
                leave[id] = -(-place.computed // size)
                self.gone[id] = self.here.pop(id)
            elif wait := stages[place.stage + 1].wait:
                leave[id] = -(-place.computed // size)
                del self.here[id]
                place.stage, place.computed = place.stage + 1, 0
                if self.leaves:
                    self.leaves(id, step.end + wait, place)
                else:
                    self.away[id] = (step.end + wait, place)
            else:
                place.stage += 1
                self.enter(id, place, step.end)
        if self.sends:
            for id in [id for id in spoke if id in self.here and self.left(id) == 1]:
                self.sends(id, step.end, self.here.pop(id))
        assert {o.id for o in done} == finished and len(done) == len(finished)
        self.last = [step.start, *ends][-2], step.end
        self.freed = self.release(leave)
        if self.pool and isinstance(replica.kv, PrefixCache):
            assert replica.kv.evicted == self.pool.evicted
        self.check(step.end, replica.waiting, replica.running, replica.kv.free, replica.kv.lent)

    def end(self, outcomes: Sequence[Outcome]) -> None:
        assert not self.here and not self.away and not self.fetched, "somebody was left behind"
        assert sorted(o.id for o in outcomes) == sorted(self.gone)
        assert [o.finish for o in outcomes] == sorted(o.finish for o in outcomes)
        for o in outcomes:
            r, place = self.by_id[o.id], self.gone[o.id]
            assert [len(t) for t in place.times] == [s.output for s in r.stages], (
                "tokens were lost or made twice"
            )
            assert o.finish == place.times[-1][-1] and (o.prompt, o.output) == (r.prompt, r.output)
            assert o.declined == (o.id in self.declined)
            paper = in_time(r, place, self.world.roofline) and not o.declined
            client = for_clients(r, place, self.world.roofline) and not o.declined
            assert (o.attained_paper, o.attained_client) == (paper, client)
            assert o.rule == r.rule and o.attained == (paper if r.rule == PAPER else client)


def for_clients(request: Request, place: Place, roofline: Roofline) -> bool:
    """The clients' rule, from the times of all tokens: the first one in time, then the mean of
    the gaps, with the one before a stage that goes on."""
    ok, before = True, 0.0
    for stage, times, (arrived, left) in zip(
        request.stages, place.times, place.arrived, strict=True
    ):
        due = arrived + stage.slo.first_token(roofline.time(left))
        ok = ok and (stage.goes_on or times[0] <= due + 1e-6)
        gaps = [b - a for a, b in pairwise([before, *times] if stage.goes_on else times)]
        before = times[-1]
        ok = ok and (not gaps or fsum(gaps) / len(gaps) <= stage.slo.tpot + 1e-6)
    return ok


def in_time(request: Request, place: Place, roofline: Roofline) -> bool:
    """The paper's rule, from the times of all tokens: t0 = max(deadline, first token), then t0 + n
    * TPOT."""
    t0, ok = 0.0, True
    for i, (stage, times, (arrived, left)) in enumerate(
        zip(request.stages, place.times, place.arrived, strict=True)
    ):
        # goes on at its own pace where the stage before it was due
        if i and not stage.prompt and not stage.wait:
            t0 = (
                t0
                + (request.stages[i - 1].output - 1) * request.stages[i - 1].slo.tpot
                + stage.slo.tpot
            )
        else:
            t0 = arrived + stage.slo.first_token(roofline.time(left))
            ok = ok and times[0] <= t0 + 1e-6
            t0 = max(t0, times[0]) if times[0] > t0 + 1e-6 else t0
        looked_at = {*range(10, len(times), 10), len(times) - 1}
        ok = ok and all(times[n] <= t0 + n * stage.slo.tpot + 1e-6 for n in looked_at)
    return ok


def run(
    name: str, requests: Sequence[Request], world: World, seed: int = 0, repeats: bool = True
) -> list[Outcome]:
    """Simulate under watch."""
    watched = Lawful(build(name, requests, world), requests, world, repeats)
    outcomes = simulate(requests, watched, world, seed, watched.observe)
    watched.end(outcomes)
    assert len(outcomes) == len(requests)
    return outcomes


def build(
    name: str, requests: Sequence[Request], world: World, lengths: LengthPredictor | None = None
) -> Policy:
    if name in PATHOLOGICAL:
        return PATHOLOGICAL[name]()
    name, off = ABLATED.get(name, (name, {}))
    kind = (POLICIES | AS_PUBLISHED)[name]
    drafts = is_dataclass(kind) and "drafts" in (f.name for f in fields(kind))
    settings = {"drafts": world.max_drafts} if drafts else {}
    return make_policy(name, world.roofline, lengths or Oracle(requests), **settings, **off)


# Pathological policies: legal and bad.


class RejectAll:
    """Declines everybody, then serves the oldest alone."""

    def step(self, view: View) -> Batch:
        decline = tuple(q.id for q in view.waiting if not q.best_effort)
        keeps = [q for q in (*view.running, *view.waiting) if not q.elsewhere]
        if not keeps:
            return Batch(decline=decline)
        p = min(keeps, key=lambda p: p.id)
        return Batch(
            {p.id: p.left}, preempt=tuple(q.id for q in view.running if q is not p), decline=decline
        )


class Reverse:
    """Youngest first, whole prompts; an older one loses its blocks to it."""

    def step(self, view: View) -> Batch:
        tokens, preempt, free, seats = {}, [], view.free_blocks, view.max_seqs - len(view.running)
        running = list(view.running)
        for p in (*reversed(view.running), *reversed(view.waiting)):
            need = view.needs(p, p.left) + (0 if p.computed else p.shared)
            while need > free and running and running[0] is not p and running[0].id not in tokens:
                victim = running.pop(0)
                preempt.append(victim.id)
                free += view.frees(victim)
                seats += 1
            if p.id not in preempt and need <= free and (p.computed or seats):
                tokens[p.id], free, seats = p.left, free - need, seats - (not p.computed)
        return Batch(tokens, preempt=tuple(preempt))


class OneAtATime:
    """One token of one request a step, and repeats as long as it may."""

    def step(self, view: View) -> Batch:
        p = (*view.running, *view.waiting)[0]
        return Batch({p.id: 1}, repeat=1000)


class Churn:
    """Serves one request with whole prompts, and preempts it after every second token."""

    def step(self, view: View) -> Batch:
        p = (*view.running, *view.waiting)[0]
        again = p.computed > 0 and p.generated % 2 == 1
        return Batch({p.id: p.tokens}, preempt=(p.id,)) if again else Batch({p.id: p.left})


PATHOLOGICAL: dict[str, Callable[[], Policy]] = {
    "reject-all": RejectAll,
    "reverse": Reverse,
    "one-at-a-time": OneAtATime,
    "churn": Churn,
}
ABLATED: dict[str, tuple[str, dict[str, int]]] = {
    "in-turn": ("slos-serve", {"best_effort": 0}),
    "first-come": ("slos-serve", {"admission": 0}),
    "neither": ("slos-serve", {"admission": 0, "best_effort": 0}),
    "fixed": ("slos-serve", {"batch_tokens": 16}),
}
EVERY = [*POLICIES, *AS_PUBLISHED, *ABLATED, *PATHOLOGICAL]


@dataclass
class Watch:
    """A `SLOsServe` that must preempt the newest best effort first, and others only as a last
    resort."""

    policy: SLOsServe
    preempted: list[str] = field(default_factory=list)
    admitted: set[str] = field(default_factory=set)  # ran, not as best effort: the promise
    rounds: set[tuple[str, float]] = field(default_factory=set)  # the same, and when each began

    def step(self, view: View) -> Batch:
        batch = self.policy.step(view)
        aged = self.policy._aged  # best effort that is promised an easy pace
        low = [p for p in view.running if p.best_effort or p.id in batch.decline]
        effort = [p.id for p in low if p.id not in aged]
        gone = [id for id in batch.preempt if id in effort]
        assert gone == effort[::-1][: len(gone)], "not the newest first"
        if len(gone) < len(batch.preempt):
            assert not set(effort) & batch.tokens.keys(), (
                "a guaranteed request made room for best effort"
            )
        self.preempted += gone
        for p in (*view.running, *view.waiting):
            if p.id in batch.decline:
                assert (p.id, p.arrival) not in self.rounds, f"{p.id} was promised and is declined"
            elif p.id in batch.tokens and not p.best_effort:
                self.admitted.add(p.id)
                self.rounds.add((p.id, p.arrival))
        return batch


# Random workloads. Batches take 20 ms and more, so TPOTs of 30 to 100 ms and bursts make a small
# machine busy.

FAST = Roofline((Plane(0.0002, 0.001, 0.02), Plane(0.0008, 0.0, 0.001)))
KINDS = ("goes on", "turn", "tool", "silent tool")  # how a stage can follow another
slos = st.builds(
    SLO, tpot=st.sampled_from([0.03, 0.05, 0.1]), slowdown=st.sampled_from([1.0, 3.0, 5.0])
)


@st.composite
def stages(draw: st.DrawFn, most: int = 3, kinds: Sequence[str] = KINDS) -> tuple[Stage, ...]:
    """By either rule of pace."""
    made = [Stage(draw(st.integers(1, 60)), draw(st.integers(1, 30)), draw(slos))]
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=most - 1)):
        prompt = draw(st.integers(1, 20)) if kind in ("turn", "tool") else 0
        wait = draw(st.sampled_from([0.01, 0.3])) if kind in ("tool", "silent tool") else 0.0
        slo = SLO(tpot=draw(st.sampled_from([0.03, 0.1]))) if kind == "goes on" else draw(slos)
        made.append(Stage(prompt, draw(st.integers(1, 25)), slo, wait))
    rule = draw(st.sampled_from([*RULES]))
    return tuple(replace(s, slo=replace(s.slo, rule=rule)) for s in made)


PREFIXES = (
    (), (), (("system", 20),), (("system", 20), ("talk", 90)), (("system", 9), ("talk", 30)),
    (("talk", 40),), (("talk", 300),),
)  # fmt: skip
"""What requests begin with: alike up to some block, or in all."""


@st.composite
def requests(
    draw: st.DrawFn, size: int = 8, of: st.SearchStrategy[tuple[Stage, ...]] | None = None
) -> list[Request]:
    n = draw(st.integers(1, size))
    times = draw(st.lists(st.sampled_from([0.0, 0.0, 0.1, 0.25, 0.7, 1.5]), min_size=n, max_size=n))
    of, prefix = stages() if of is None else of, st.sampled_from(PREFIXES)
    return [
        Request(f"r{i}", t, draw(of), draw(st.sampled_from([1.0, 1.0, 2.0])), prefix=draw(prefix))
        for i, t in enumerate(sorted(times))
    ]


@st.composite
def worlds(
    draw: st.DrawFn,
    requests: Sequence[Request],
    k_ctx: float = 2e-5,
    noise: float = 0.3,
    drafts: int = 3,
    caching: bool = False,
    ahead: bool = False,
) -> World:
    """A world whose KV cache just holds the longest request, or a few times that; caching: with a
    prefix cache or without; ahead: with asynchronous scheduling or without."""
    size = draw(st.sampled_from([4, 16]))
    blocks = max(-(-r.context // size) for r in requests) + draw(st.sampled_from([1, 3, 20]))
    roofline = replace(
        FAST, k_ctx=draw(st.sampled_from([0.0, k_ctx])), tile=draw(st.sampled_from([1, 1, 16]))
    )
    drafts, accepted = draw(st.sampled_from([0, drafts])), draw(st.sampled_from([0.0, 0.7, 1.0]))
    seqs, sigma = draw(st.sampled_from([2, 256])), draw(st.sampled_from([0.0, noise]))
    cache, ahead = caching and draw(st.booleans()), ahead and draw(st.booleans())
    plain = World(roofline, blocks, size, seqs, sigma, drafts, accepted)
    return replace(plain, prefix_cache=cache, asynchronous=ahead)
