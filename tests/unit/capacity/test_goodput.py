"""Goodput is throughput times efficiency, at the best batch size."""

from __future__ import annotations

import pytest

from tidecell.capacity.goodput import BatchLimits, GoodputModel
from tidecell.capacity.throughput_model import StepTimeModel

LIMITS = BatchLimits(initial=32, largest=1024, min_local=8, max_local=64)
# A step of one replica: 0.1 s and 1 ms a sample; the network is as good as free.
STEPS = StepTimeModel(0.1, 0.001)


def test_where_larger_batches_teach_nothing_the_initial_one_is_best() -> None:
    # No variance: the gradient of any batch is the same, so a step is a step.
    choice = GoodputModel(STEPS, grad_sqr=1.0, grad_var=0.0, limits=LIMITS).best(1, 1)
    assert (choice.local_batch_size, choice.accumulation_steps) == (32, 0)
    assert choice.goodput == pytest.approx(32 / 0.132)


def test_where_every_sample_counts_the_largest_batch_is_best() -> None:
    choice = GoodputModel(STEPS, grad_sqr=0.0, grad_var=1.0, limits=LIMITS).best(4, 16)
    assert choice.local_batch_size == 64
    assert choice.goodput == pytest.approx(1024 / 0.164, rel=1e-3)


def test_a_micro_batch_never_exceeds_memory() -> None:
    choice = GoodputModel(STEPS, grad_sqr=0.0, grad_var=1.0, limits=LIMITS).best(1, 2)
    assert choice.local_batch_size <= 64
    assert choice.local_batch_size * (choice.accumulation_steps + 1) * 2 <= 1024 + 2 * 8


def test_more_replicas_than_the_largest_batch_feeds_are_worth_nothing() -> None:
    model = GoodputModel(STEPS, grad_sqr=1.0, grad_var=1.0, limits=LIMITS)
    assert model.best(50, 200).goodput == 0.0


def test_a_fixed_batch_is_split_and_not_changed() -> None:
    model = GoodputModel(STEPS, grad_sqr=0.0, grad_var=1.0, limits=LIMITS, fixed_batch_size=64)
    choice = model.best(1, 4)
    assert (choice.local_batch_size, choice.accumulation_steps) == (16, 0)


def test_the_curve_holds_what_best_says_of_each_size() -> None:
    steps = StepTimeModel(0.1, 0.001, across_base_s=0.2, across_per_replica_s=0.01, within_base_s=0.02)
    model = GoodputModel(steps, grad_sqr=1.0, grad_var=5.0, limits=LIMITS)
    curve = model.curve(gpus_per_node=4, max_replicas=12)
    for replicas in range(1, 5):
        assert curve.at(1, replicas) == pytest.approx(model.best(1, replicas).goodput)
    for replicas in range(2, 13):
        assert curve.at(2, replicas) == pytest.approx(model.best(max(2, -(-replicas // 4)), replicas).goodput)
    assert curve.at(1, 4) > curve.at(2, 4)
    assert curve.at(2, 13) == 0.0
