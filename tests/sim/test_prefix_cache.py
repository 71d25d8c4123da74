"""The prefix cache by hand; `laws` holds it against one that counts block by block."""

from dataclasses import replace

import pytest
from laws import FAST

from slos.core.types import SLO, Request, Stage
from slos.evaluation.capacity_search import Search
from slos.policies.baselines import VLLMV1
from slos.policies.oracle import Oracle
from slos.policies.slos_serve import SLOsServe
from slos.sim.ledger import Ledger
from slos.sim.prefix_cache import Contents, PrefixCache
from slos.sim.replica import Replica, World
from slos.sim.simulator import Link, stream

PACE = SLO(tpot=0.1, slowdown=5.0)


def req(id: str, at: float, prompt: int, output: int, *prefix: tuple[str, int]) -> Request:
    return Request(id, at, (Stage(prompt, output, PACE),), prefix=prefix)


def served(work: list[Request], blocks: int = 100, **changes: int) -> Replica:
    """A replica that has served all of it, and its policy's last word."""
    world = replace(World(FAST, blocks, 4, prefix_cache=True), **changes)  # type: ignore[arg-type]
    replica = Replica("", VLLMV1(), world)
    assert len(list(stream(work, [replica]))) == len(work)
    return replica


def cache_of(replica: Replica) -> PrefixCache:
    assert isinstance(replica.kv, PrefixCache)
    return replica.kv


def test_a_round_finds_all_that_was_computed_before_it() -> None:
    rounds = (Stage(10, 3, PACE), Stage(5, 2, PACE, wait=1.0))
    cache = cache_of(served([Request("a", 0.0, rounds)]))
    # the last token of an answer is never computed: 12 of 13 are, 3 blocks; then 17 of 19
    assert (cache.hits, cache.evicted, cache.free, cache.idle_blocks) == (12, 0, 100, 4)


def test_a_turn_finds_the_answer_too_and_another_talk_does_not() -> None:
    talk = [
        req("a", 0.0, 10, 4, ("talk", 14)),
        req("b", 2.0, 20, 4, ("talk", 24)),
        req("c", 4.0, 20, 4, ("other", 24)),
    ]
    assert cache_of(served(talk)).hits == 12


def test_the_last_token_is_computed_again() -> None:
    same = [req(name, at, 8, 1, ("same", 8)) for name, at in (("a", 0.0), ("b", 2.0))]
    assert cache_of(served(same)).hits == 4, "the second block would leave no token"


def test_what_a_prompt_begins_with_is_shared_while_it_is_held() -> None:
    work = [req(f"r{i}", 0.0 if i == 0 else 0.05, 12, 30, ("system", 8)) for i in range(4)]
    seen: list[tuple[int, int]] = []
    world = World(FAST, 100, 4, prefix_cache=True)
    replica = Replica("", VLLMV1(), world)

    def look(replica: Replica, *_: object) -> None:
        if len(replica.running) == 4:
            distinct = replica.kv.held
            seen.append((distinct, sum(replica.kv.blocks(p.computed) for p in replica.running)))

    list(stream(work, [replica], observe=look))
    assert seen and all(one_by_one - distinct == 6 for distinct, one_by_one in seen)


def test_least_recently_used_goes_first_and_ends_before_beginnings() -> None:
    """8 blocks of 4: a and b leave 3 each; c takes the 2 that are empty and a's last."""
    work = [req(n, at, 12, 1, (n, 12)) for n, at in (("a", 0.0), ("b", 1.0), ("c", 2.0))]
    again = [req("a2", 3.0, 13, 1, ("a", 13)), req("b2", 4.0, 13, 1, ("b", 13))]
    assert cache_of(served([*work, again[0]], 8)).hits == 8
    assert cache_of(served([*work, again[1]], 8)).hits == 12


def test_two_that_compute_the_same_at_once_share_what_the_first_computes() -> None:
    work = [req(n, 0.0, 13, 2, ("same", 13)) for n in "ab"]
    cache = cache_of(served(work))
    assert cache.hits == 12 and len(cache.cached) == 1


def test_a_policy_sees_what_is_cached_before_it_plans() -> None:
    """A prompt that is hopeless without: 400 tokens in 0.1 s, of which 396 are there."""
    first = req("a", 0.0, 400, 2, ("talk", 402))
    hurried = Stage(410, 2, SLO(tpot=0.1, ttft=0.1))
    work = [first, Request("b", 5.0, (hurried,), prefix=(("talk", 412),))]
    attained = []
    for caching in (False, True):
        world = World(FAST, 200, 4, prefix_cache=caching)
        done = stream(work, [Replica("", SLOsServe(FAST, Oracle(work)), world)])
        attained.append([o.attained for o in done])
    assert attained == [[True, False], [True, True]]


@pytest.mark.parametrize("topology", [("prefill", "decode"), ("prefill", "prefill", "decode")])
def test_a_cache_that_is_handed_over_stays_behind(topology: tuple[str, ...]) -> None:
    rounds = (Stage(10, 3, PACE), Stage(5, 2, PACE, wait=1.0))
    work = [Request(f"r{i}", 0.1 * i, rounds, prefix=(("system", 8),)) for i in range(6)]
    world = World(FAST, 30, 4, prefix_cache=True)
    nodes = [Replica(f"{role}{i}", VLLMV1(), world, role) for i, role in enumerate(topology)]

    class First:
        def rank(self, request, loads):
            return [loads[0].replica]

    assert len(list(stream(work, nodes, First()))) == 6
    assert cache_of(nodes[0]).hits >= 6 * 8
    for node in nodes:
        assert (node.kv.free, node.kv.lent, node.kv.held) == (30, 0, 0)


def test_names_of_contents() -> None:
    contents = Contents(4)
    a = contents.of(req("a", 0.0, 20, 1, ("system", 10), ("talk", 12)))
    b = contents.of(req("b", 0.0, 20, 1, ("system", 10), ("talk", 40)))
    c = contents.of(req("c", 0.0, 20, 1, ("system", 9), ("talk", 12)))
    assert a.ends[:2] == (2, 5) and a.pieces[:2] == b.pieces[:2] and a.pieces[2] != b.pieces[2]
    assert c.pieces[0] == a.pieces[0] and c.pieces[1] != a.pieces[1], "other tokens before it"
    assert not contents.of(req("d", 0.0, 20, 1)).shared
    assert contents.of(req("e", 0.0, 20, 1, ("short", 3))).ends[0] > 100, "not a whole block"


def test_without_is_the_rule() -> None:
    assert isinstance(Replica("", VLLMV1(), World(FAST, 8)).kv, Ledger)
    case = Search("tool-calling", "sarathi", num_requests=30)
    assert str(replace(case, prefix_cache=True)) == str(case).replace(",", " prefix cache,", 1)
    sizes = [Replica(str(n), VLLMV1(), World(FAST, 8, n, prefix_cache=True)) for n in (4, 16)]
    with pytest.raises(ValueError, match="block sizes of prefix caches"):
        list(stream([], sizes, object()))  # type: ignore[arg-type]


def test_a_block_that_several_share_is_lent_once() -> None:
    """Three leave the prefill replica for as long as a cache travels; they begin alike."""
    work = [req(id, at, 12, 3, ("system", 8)) for id, at in (("a", 0.0), ("b", 0.0), ("c", 0.05))]
    world, held = World(FAST, 30, 4, prefix_cache=True), []
    nodes = [Replica(role, VLLMV1(), world, role) for role in ("prefill", "decode")]

    def look(node: Replica, *_: object) -> None:
        held.append((node.name, node.kv.held, node.kv.lent))

    list(stream(work, nodes, link=Link(1.0, 4.0), observe=look))
    assert min(n for _, n, _ in held) >= 0
    assert ("prefill", 2, 3) in held, "what they share, and a block of each"
