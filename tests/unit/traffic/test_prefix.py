"""Prefix-aware choices."""

from __future__ import annotations

from random import Random

from tidecell.structs.traffic import PrefixPolicy
from tidecell.traffic.balance import Load
from tidecell.traffic.prefix import Held, PrefixBalancer, chain


def fleet(num: int) -> list[Load]:
    return [Load(0, 0.0, -100.0, f"r{i}") for i in range(num)]


def test_a_block_hash_covers_all_that_comes_before_it() -> None:
    one, other = chain(b"a" * 64 + b"c" * 64, 64), chain(b"b" * 64 + b"c" * 64, 64)
    assert len(one) == 2
    assert one[1] != other[1]
    assert chain(b"a" * 64 + b"d" * 70, 64)[0] == one[0]
    assert chain(b"a" * 63, 64) == []


def test_a_prompt_goes_where_its_beginning_is() -> None:
    balancer, loads = PrefixBalancer(PrefixPolicy(), Random(1)), fleet(4)
    balancer.sent("r2", [1, 2, 3], 1536, 0.0)
    assert balancer.choose(loads, [1, 2, 9], 1536) == (2, "prefix_hit", 2)


def test_the_longest_match_wins() -> None:
    balancer, loads = PrefixBalancer(PrefixPolicy(), Random(1)), fleet(3)
    balancer.sent("r0", [1], 512, 0.0)
    balancer.sent("r1", [1, 2, 3], 1536, 0.0)
    assert balancer.choose(loads, [1, 2, 3, 4], 2048) == (1, "prefix_hit", 3)


def test_a_replica_above_the_bound_is_left_though_it_has_the_prefix() -> None:
    policy = PrefixPolicy(load_slack=0.25, load_floor_tokens=0)
    balancer, loads = PrefixBalancer(policy, Random(1)), fleet(4)
    balancer.sent("r2", [1, 2], 1024, 0.0)
    loads[2].tokens = 40_000
    index, reason, match = balancer.choose(loads, [1, 2], 1024)
    assert index != 2
    assert (reason, match) == ("prefix_moved", 0)


def test_a_prompt_nobody_knows_goes_to_one_of_two_homes_whichever_router_is_asked() -> None:
    loads = fleet(8)
    for block in range(50):
        chosen = {
            PrefixBalancer(PrefixPolicy(), Random(seed)).choose(loads, [block], 512)[0] for seed in range(5)
        }
        assert len(chosen) == 1


def test_new_prompts_are_spread_by_what_was_computed_lately() -> None:
    balancer, loads, computed = PrefixBalancer(PrefixPolicy(), Random(1)), fleet(4), [0] * 4
    for block in range(400):
        index, reason, _ = balancer.choose(loads, [block], 512)
        assert reason == "prefix_new"
        balancer.sent(loads[index].id, [block], 512, 0.0)
        computed[index] += 1
    assert max(computed) <= 115


def test_what_a_replica_reports_as_evicted_is_not_expected_there() -> None:
    balancer, loads = PrefixBalancer(PrefixPolicy(), Random(1)), fleet(2)
    balancer.sent("r1", [1, 2], 1024, 0.0)
    balancer.report("r1", evicted=[1, 2])
    assert balancer.choose(loads, [1, 2], 1024)[1] == "prefix_new"


def test_what_a_replica_reports_as_stored_is_found_there() -> None:
    balancer, loads = PrefixBalancer(PrefixPolicy(), Random(1)), fleet(2)
    balancer.report("r1", stored=[1, 2])
    assert balancer.choose(loads, [1, 2, 3], 1536) == (1, "prefix_hit", 2)


def test_a_replica_that_is_gone_is_forgotten() -> None:
    balancer = PrefixBalancer(PrefixPolicy(), Random(1))
    balancer.sent("r1", [1], 512, 0.0)
    balancer.keep(["r0"])
    assert len(balancer.held("r1")) == 0


def test_beyond_its_capacity_the_oldest_chains_end_is_taken_for_evicted() -> None:
    held = Held(4)
    held.use([1, 2, 3])
    held.use([7, 8])
    assert held.matched([1, 2, 3]) == 2
    assert held.matched([7, 8]) == 2
