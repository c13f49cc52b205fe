"""Choosing a replica."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from tidecell.traffic.balance import Load, least_outstanding, power_of_two, share


def test_of_two_the_one_with_fewer_requests_is_chosen() -> None:
    loads = [Load(in_flight=3, ready_since_s=-100), Load(in_flight=1, ready_since_s=-100)]
    assert {power_of_two(loads, Random(seed), 0.0) for seed in range(50)} == {1}


def test_a_tie_goes_to_the_faster_one() -> None:
    loads = [Load(2, 80.0, -100), Load(2, 20.0, -100)]
    assert {power_of_two(loads, Random(seed), 0.0) for seed in range(50)} == {1}


def test_the_most_loaded_of_many_is_never_chosen() -> None:
    loads = [Load(in_flight=n, ready_since_s=-100) for n in (1, 1, 1, 9)]
    chosen = Counter(power_of_two(loads, Random(seed), 0.0) for seed in range(500))
    assert set(chosen) == {0, 1, 2}


def test_a_new_replica_warms_up_slowly() -> None:
    new, old = Load(0, 0.0, ready_since_s=10.0), Load(2, 0.0, ready_since_s=-100)
    assert [share(new, 10.0 + age_s) for age_s in (0.0, 2.5, 5.0)] == [0.25, 0.5, 1.0]
    assert power_of_two([new, old], Random(1), 10.0) == 1
    assert power_of_two([new, old], Random(1), 15.0) == 0


def test_least_outstanding_breaks_ties_at_random() -> None:
    loads = [Load(1, 0.0, -100), Load(0, 0.0, -100), Load(0, 0.0, -100)]
    assert {least_outstanding(loads, Random(seed), 0.0) for seed in range(50)} == {1, 2}


def test_nothing_to_choose_from_is_an_error() -> None:
    with pytest.raises(ValueError, match="no replica to choose from"):
        power_of_two([], Random(1), 0.0)


def test_the_latency_average_starts_at_the_first_value() -> None:
    load = Load()
    load.observe_latency(100.0)
    load.observe_latency(200.0)
    assert load.latency_ewma_ms == 120.0
