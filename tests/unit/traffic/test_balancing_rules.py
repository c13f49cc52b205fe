"""The simple rules, subsets, breakers, ejection by policy."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tidecell.structs.traffic import BreakerPolicy, OutlierPolicy
from tidecell.traffic.balance import Load, RoundRobin, WeightedRoundRobin, least_tokens
from tidecell.traffic.breaker import Breaker
from tidecell.traffic.health import Health
from tidecell.traffic.latency_at_rif import LatencyAtRif
from tidecell.traffic.subset import subset


def loads(*weights: float) -> list[Load]:
    return [Load(0, 0.0, -100.0, str(i), weight) for i, weight in enumerate(weights)]


def test_round_robin_takes_each_in_turn() -> None:
    turns, some = RoundRobin(), loads(1, 1, 1)
    assert [turns.choose(some, Random(1), 0.0) for _ in range(6)] == [0, 1, 2, 0, 1, 2]


def test_a_new_replica_is_passed_over_now_and_then() -> None:
    turns, some, rng = RoundRobin(), loads(1, 1), Random(1)
    some[0].ready_since_s = 0.0
    chosen = Counter(turns.choose(some, rng, 1.25) for _ in range(4000))
    assert 0.15 < chosen[0] / 4000 < 0.25  # one turn in four of its own, and those it passes on


def test_weights_are_kept_to_within_one_turn() -> None:
    turns, some, rng = WeightedRoundRobin(), loads(5, 3, 2), Random(1)
    chosen: Counter[int] = Counter()
    for num in range(1, 1001):
        chosen[turns.choose(some, rng, 0.0)] += 1
        for i, share in enumerate((0.5, 0.3, 0.2)):
            assert abs(chosen[i] - share * num) <= 2.0


def test_a_weight_of_zero_gets_nothing_unless_all_have_it() -> None:
    rng = Random(1)
    turns, some = WeightedRoundRobin(), loads(1, 0)
    assert {turns.choose(some, rng, 0.0) for _ in range(20)} == {0}
    assert {turns.choose(loads(0, 0), rng, 0.0) for _ in range(50)} == {0, 1}


def test_a_replica_that_was_away_makes_up_for_nothing() -> None:
    turns, some, rng = WeightedRoundRobin(), loads(1, 1), Random(1)
    for _ in range(100):
        turns.choose(some[:1], rng, 0.0)
    chosen = Counter(turns.choose(some, rng, 0.0) for _ in range(20))
    assert abs(chosen[0] - 10) <= 1


def test_least_tokens_sees_the_work_and_not_the_number() -> None:
    some = loads(1, 1)
    some[0].in_flight, some[0].tokens = 1, 100_000
    some[1].in_flight, some[1].tokens = 9, 900
    assert least_tokens(some, Random(1), 0.0) == 1


def test_least_tokens_breaks_ties_evenly() -> None:
    chosen = Counter(least_tokens(loads(1, 1, 1), Random(seed), 0.0) for seed in range(900))
    assert all(250 < chosen[i] < 350 for i in range(3))


def test_nothing_to_choose_from_is_an_error() -> None:
    for choose in (RoundRobin().choose, WeightedRoundRobin().choose, least_tokens):
        with pytest.raises(ValueError, match="no replica to choose from"):
            choose([], Random(1), 0.0)


def test_each_replica_is_in_as_many_subsets_as_the_others() -> None:
    ids = [f"r{i}" for i in range(100)]
    for size, clients in ((10, 100), (7, 28), (25, 40)):
        counts = Counter(name for client in range(clients) for name in subset(ids, client, size))
        assert set(counts) == set(ids)
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_subset_has_at_least_the_size_that_was_asked_for() -> None:
    ids = [f"r{i}" for i in range(100)]
    assert all(7 <= len(subset(ids, client, 7)) <= 8 for client in range(50))
    assert subset(ids, 3, 0) == sorted(ids)
    assert subset(ids, 3, 200) == sorted(ids)


def test_a_subset_does_not_depend_on_the_order_of_the_replicas() -> None:
    ids = [f"r{i}" for i in range(30)]
    shuffled = ids[:]
    Random(1).shuffle(shuffled)
    assert subset(ids, 5, 6) == subset(shuffled, 5, 6)


def test_a_breaker_opens_when_most_fails_and_closes_after_its_trials() -> None:
    breaker = Breaker(BreakerPolicy(min_requests=10, open_s=5.0, trials=2))
    for number in range(10):
        assert breaker.allow(0.0) == ""
        breaker.record(number < 4, 0.0)
    assert breaker.allow(1.0) == "breaker_open"
    assert [breaker.allow(5.0) for _ in range(3)] == ["", "", "breaker_open"]
    breaker.record(True, 5.5)
    breaker.record(True, 5.5)
    assert breaker.state == "closed"


def test_a_failed_trial_opens_it_for_twice_as_long() -> None:
    breaker = Breaker(BreakerPolicy(min_requests=1, open_s=5.0, max_open_s=15.0))
    breaker.record(False, 0.0)
    spans = []
    now_s = 0.0
    for _ in range(4):
        spans.append(breaker.open_s())
        now_s += breaker.open_s()
        assert breaker.allow(now_s) == ""
        breaker.record(False, now_s)
    assert spans == [5.0, 10.0, 15.0, 15.0]


def test_a_trial_whose_client_left_is_tried_again() -> None:
    breaker = Breaker(BreakerPolicy(min_requests=1, open_s=5.0, trials=1))
    breaker.record(False, 0.0)
    assert [breaker.allow(5.0), breaker.allow(5.0)] == ["", "breaker_open"]
    breaker.forget()
    assert breaker.allow(5.0) == ""


def test_old_failures_count_less_and_less() -> None:
    breaker = Breaker(BreakerPolicy(min_requests=10, window_s=1.0))
    for _ in range(9):
        breaker.record(False, 0.0)
    breaker.record(False, 2.0)  # 9 have become 2.25
    assert breaker.state == "closed"


def test_a_breaker_may_bound_what_is_in_flight() -> None:
    assert Breaker(BreakerPolicy(max_in_flight=2)).allow(0.0, in_flight=2) == "breaker_full"


def test_ejection_follows_its_policy() -> None:
    policy = OutlierPolicy(after=2, base_s=1.0, max_s=2.0, max_share=0.34)
    peers = [Health(), Health(), Health()]
    assert [peers[0].failed(0.0, peers, policy) for _ in range(2)] == [False, True]
    assert not any(peers[1].failed(0.0, peers, policy) for _ in range(4))  # a third is the most
    assert peers[0].ejected_until_s == 1.0


def test_latency_is_that_of_the_nearest_known_number_in_flight() -> None:
    record = LatencyAtRif()
    for rif, latency_ms in ((1, 10.0), (1, 12.0), (1, 900.0), (8, 80.0)):
        record.rif = rif
        record.finish(rif, latency_ms, 0.0)
    record.rif = 0
    assert record.estimate_ms(1.0) == 12.0  # the median: one slow request says little
    record.rif = 6
    assert record.estimate_ms(1.0) == 80.0
    assert record.estimate_ms(100.0) == 0.0  # all of it is old
