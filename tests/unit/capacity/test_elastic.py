"""Shares of machines for elastic trainings: cases whose answer is plain."""

from __future__ import annotations

import pytest

from tidecell.capacity.elastic import (
    ElasticTraining,
    Placement,
    SharingRule,
    num_replicas,
    pack,
    share_machines,
    sizes_to_consider,
)
from tidecell.capacity.goodput import GoodputCurve

LINEAR = GoodputCurve(tuple(float(n) for n in range(5)), (0.0, 0.0, *(float(n) for n in range(2, 65))))
# A second replica adds nothing.
FLAT = GoodputCurve((0.0, 1.0, 1.0, 1.0, 1.0), (0.0, 0.0, *(1.0 for _ in range(2, 65))))


def training(
    name: str,
    curve: GoodputCurve | None = LINEAR,
    left: float | None = 36000.0,
    placement: Placement = (),
    largest_size_seen: int = 64,
    max_replicas: int = 64,
    min_replicas: int = 1,
) -> ElasticTraining:
    return ElasticTraining(
        name,
        curve,
        left,
        largest_size_seen=largest_size_seen,
        max_replicas=max_replicas,
        min_replicas=min_replicas,
        placement=placement,
    )


def test_one_training_that_scales_gets_everything() -> None:
    assert num_replicas(share_machines([training("a")], (4, 4, 4, 4))) == {"a": 16}


def test_a_training_that_does_not_scale_gets_one_gpu_and_the_other_the_rest() -> None:
    sizes = num_replicas(share_machines([training("flat", FLAT), training("steep")], (4, 4)))
    assert sizes["flat"] == 1
    assert sizes["steep"] == 4  # a size that is neither within a machine nor whole ones is not offered


def test_of_two_alike_the_shorter_gets_more() -> None:
    bend = GoodputCurve((0.0, 1.0, 1.9, 2.6, 3.2), (0.0, 0.0, 1.5, *(n**0.6 for n in range(3, 65))))
    sizes = num_replicas(
        share_machines([training("long", bend, 3600.0), training("short", bend, 900.0)], (4,) * 4)
    )
    assert sizes["short"] > sizes["long"] > 0


def test_with_one_gpu_the_shortest_runs_and_the_others_wait() -> None:
    jobs = [training("a", left=9000.0), training("b", left=300.0), training("c", left=4000.0)]
    assert share_machines(jobs, (1,)) == {"b": ((0, 1),)}


def test_a_training_without_a_step_starts_small() -> None:
    sizes = num_replicas(share_machines([training("new", None, largest_size_seen=0)], (4,) * 16))
    assert sizes == {"new": SharingRule().first_size}


def test_a_size_grows_by_the_exploration_factor_at_most() -> None:
    grown = share_machines([training("a", largest_size_seen=1, placement=((0, 1),))], (4,) * 16)
    assert num_replicas(grown) == {"a": SharingRule().exploration_factor}


def test_the_smallest_size_is_kept_or_nothing() -> None:
    assert share_machines([training("gang", min_replicas=6, max_replicas=8)], (4,)) == {}
    placed = share_machines([training("gang", min_replicas=6, max_replicas=6)], (4, 4))
    assert placed == {"gang": ((0, 4), (1, 2))}


def test_who_keeps_its_size_keeps_its_places() -> None:
    placement = ((1, 2), (3, 2))
    kept = share_machines([training("a", placement=placement, max_replicas=4)], (4,) * 4)
    assert kept == {"a": placement}


def test_a_small_gain_is_not_worth_a_restart() -> None:
    slight = GoodputCurve((0.0, 1.0, 1.9, 2.7, 3.0), (0.0, 0.0, *(3.0 + n / 100 for n in range(2, 65))))
    nearly_done = training("a", slight, left=200.0, placement=((0, 4),))
    assert share_machines([nearly_done], (4,) * 4) == {"a": ((0, 4),)}


def test_replicas_leave_a_machine_that_has_gone() -> None:
    moved = share_machines([training("a", placement=((3, 2),), max_replicas=2)], (4, 4, 4, 0))
    assert moved == {"a": ((0, 2),)}


def test_packing_takes_whole_machines_then_the_tightest_rest() -> None:
    free = [4, 1, 3, 4]
    assert pack(7, free) == ((0, 4), (2, 3))
    assert free == [0, 1, 0, 4]


def test_packing_more_than_there_is_is_an_error() -> None:
    with pytest.raises(ValueError, match="5 replicas do not fit into 4 free GPUs"):
        pack(5, [2, 2])


def test_sizes_are_all_within_a_machine_and_whole_machines_beyond() -> None:
    assert sizes_to_consider(4, 16) == (1, 2, 3, 4, 8, 12, 16)
    assert sizes_to_consider(8, 6) == (1, 2, 3, 4, 5, 6)
    assert sizes_to_consider(0, 0) == ()


def test_no_machines_means_that_all_wait() -> None:
    assert share_machines([training("a")], ()) == {}


def test_one_name_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="two elastic trainings have one name"):
        share_machines([training("a"), training("a")], (4,))


def test_an_impossible_size_range_is_an_error() -> None:
    with pytest.raises(ValueError, match="'a' has sizes 3 to 2"):
        share_machines([training("a", min_replicas=3, max_replicas=2)], (4,))
