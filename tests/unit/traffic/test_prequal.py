"""Prequal's pool."""

from __future__ import annotations

from random import Random

import pytest

from tidecell.structs.traffic import PrequalPolicy
from tidecell.traffic.balance import Load
from tidecell.traffic.prequal import MAX_USES, Prequal, reuse_limit


def fleet(num: int) -> list[Load]:
    return [Load(0, 0.0, -100.0, f"r{i}") for i in range(num)]


def filled(
    answers: list[tuple[float, float]], policy: PrequalPolicy | None = None
) -> tuple[Prequal, list[Load]]:
    """Return a pool with one answer (RIF, latency) per replica."""
    prequal, loads = Prequal(policy or PrequalPolicy(), Random(1)), fleet(len(answers))
    for load, (rif, latency_ms) in zip(loads, answers, strict=True):
        prequal.observe(load, rif, latency_ms, len(loads), 0.0)
    return prequal, loads


def test_of_the_cold_the_fastest_is_chosen() -> None:
    prequal, loads = filled([(1, 90.0), (2, 20.0), (3, 50.0), (99, 1.0)])
    assert prequal.choose(loads, 0.1) == (1, "cold")


def test_if_all_are_hot_the_one_with_the_fewest_requests_is_chosen() -> None:
    prequal, loads = filled([(1, 10.0)] * 3)
    for probe, rif in zip(prequal._pool, (7, 5, 9), strict=True):
        probe.rif = rif  # as after many requests that were sent since
    assert prequal.choose(loads, 0.1) == (1, "hot")


def test_a_choice_counts_as_one_more_request_there() -> None:
    prequal, loads = filled([(1, 10.0), (1, 11.0)])
    prequal.choose(loads, 0.1)
    probe = prequal.probe_of(loads[0])
    assert probe is not None
    assert probe.rif == 2


def test_without_two_answers_two_are_drawn_at_random() -> None:
    prequal, loads = Prequal(PrequalPolicy(), Random(1)), fleet(3)
    prequal.observe(loads[0], 1, 10.0, 3, 0.0)
    assert prequal.choose(loads, 0.1)[1] == "unprobed"
    assert prequal.num_fallbacks == 1


def test_answers_older_than_a_second_are_not_used() -> None:
    prequal, loads = filled([(1, 10.0), (1, 20.0)])
    assert prequal.choose(loads, 0.9)[1] == "cold"
    assert prequal.choose(loads, 1.1)[1] == "unprobed"


def test_an_answer_is_used_as_often_as_the_limit_says() -> None:
    policy = PrequalPolicy(remove_rate=0.0, probe_rate=4.0, delta=11.0)
    prequal, loads = Prequal(policy, Random(1)), fleet(100)
    for i in range(3):
        prequal.observe(loads[i], 50 * (i > 0), 10.0 + i, 100, 0.0)
    limit = reuse_limit(policy, 100)
    assert 3.0 < limit < 4.0
    chosen = [prequal.choose(loads, 0.1)[0] for _ in range(5)]
    assert chosen.count(0) in (3, 4)


def test_the_pool_keeps_the_newest_sixteen() -> None:
    prequal, loads = filled([(1, 10.0)] * 20)
    assert len(prequal) == 16
    assert prequal.probe_of(loads[3]) is None
    assert prequal.probe_of(loads[4]) is not None


def test_a_newer_answer_replaces_the_older_of_the_same_replica() -> None:
    prequal, loads = filled([(1, 10.0), (1, 20.0)])
    prequal.observe(loads[0], 1, 30.0, 2, 0.1)
    assert len(prequal) == 2
    assert prequal.choose(loads, 0.1)[0] == 1


def test_a_replica_that_may_not_be_tried_is_dropped_from_the_pool() -> None:
    prequal, loads = filled([(1, 10.0), (1, 20.0), (1, 30.0)])
    assert prequal.choose(loads[1:], 0.1) == (0, "cold")
    assert prequal.probe_of(loads[0]) is None


def test_three_different_replicas_are_probed_per_request() -> None:
    prequal, loads = Prequal(PrequalPolicy(), Random(1)), fleet(50)
    for _ in range(20):
        targets = prequal.targets(loads)
        assert len({load.id for load in targets}) == 3


def test_half_a_probe_per_request_is_one_for_every_second() -> None:
    prequal, loads = Prequal(PrequalPolicy(probe_rate=0.5), Random(1)), fleet(50)
    assert [len(prequal.targets(loads)) for _ in range(6)] == [0, 1, 0, 1, 0, 1]


def test_the_oldest_and_the_worst_are_removed_in_turn() -> None:
    policy = PrequalPolicy(probe_rate=5.0)
    prequal, loads = filled([(1, 50.0), (1, 90.0), (1, 10.0), (1, 20.0)] + [(5, 30.0)] * 8, policy)
    prequal.choose(loads, 0.1)
    assert prequal.probe_of(loads[1]) is None  # the slowest
    prequal.choose(loads, 0.1)
    assert prequal.probe_of(loads[0]) is None  # the oldest


@pytest.mark.parametrize(
    ("num", "expected"), [(100, 2.0 / (0.84 * 3 - 1)), (1_000_000, 1.0), (16, MAX_USES), (2, MAX_USES)]
)
def test_the_reuse_limit_is_the_papers(num: int, expected: float) -> None:
    assert reuse_limit(PrequalPolicy(), num) == pytest.approx(expected, rel=1e-3)


def test_a_new_replica_with_a_good_answer_is_passed_over_now_and_then() -> None:
    chosen = []
    for seed in range(400):
        prequal, loads = Prequal(PrequalPolicy(), Random(seed)), fleet(2)
        loads[0].ready_since_s = 0.0
        prequal.observe(loads[0], 0, 1.0, 2, 1.0)
        prequal.observe(loads[1], 0, 50.0, 2, 1.0)
        chosen.append(prequal.choose(loads, 1.25)[0])
    assert 0.18 < chosen.count(0) / 400 < 0.32
