"""Truth between the measurements."""

from __future__ import annotations

import numpy as np
import pytest

from tidecell.sim.training_profile import EpochStatistics, StepTimes, TrainingProfile, interpolate


def test_a_linear_function_is_interpolated_exactly() -> None:
    rng = np.random.default_rng(7)
    points = rng.uniform(0, 10, (60, 3))
    values = np.column_stack([points @ np.array([1.0, -2.0, 0.5]) + 3, points[:, 0]])
    for _ in range(20):
        at = rng.dirichlet(np.ones(60)) @ points
        assert interpolate(points, values, at) == pytest.approx([at @ [1.0, -2.0, 0.5] + 3, at[0]])


def test_the_simplex_is_the_one_whose_circle_is_empty() -> None:
    # Delaunay cuts this kite along the short diagonal (1, 0)-(1, 1), so the far corners do not mix.
    points = np.array([[0.0, 0.5], [1.0, 0.0], [1.0, 1.0], [2.0, 0.5]])
    values = np.array([[100.0], [0.0], [0.0], [0.0]])
    assert interpolate(points, values, np.array([1.2, 0.5])) == pytest.approx([0.0])
    assert interpolate(points, values, np.array([0.5, 0.5])) == pytest.approx([50.0])


def test_outside_the_measured_hull_there_is_no_answer() -> None:
    points = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    assert interpolate(points, points, np.array([0.9, 0.9])) is None
    assert interpolate(points, points, np.array([0.2, 0.2])) == pytest.approx([0.2, 0.2])


def times() -> StepTimes:
    rows = np.array([[8.0, 2.0, 0.2], [4.0, 1.0, 0.1]])
    return StepTimes({(1,): rows, (1, 3): rows * 2, (2,): rows}, np.array([[3.0, 6.0, 4.0, 9.0, 1.0]]))


def test_a_measured_placement_is_interpolated_over_the_local_batch() -> None:
    assert times().at((1,), 6) == pytest.approx((1.5, 0.15))


def test_rotations_of_a_ring_are_the_same() -> None:
    assert times().at((3, 1), 8) == times().at((1, 3), 8)


def test_a_batch_outside_the_measured_range_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"local batch 9 on placement \(1,\) was not measured; 4 to 8 were"):
        times().at((1,), 9)


def test_a_size_outside_everything_measured_is_an_error() -> None:
    with pytest.raises(ValueError, match="30 replicas on 1 machines with local batch 8"):
        times().at((30,), 8)


def statistics(scale: int) -> EpochStatistics:
    return EpochStatistics((10.0 * scale, 20.0), (100, 200 * scale), (1.0, 2.0), (4.0 * scale, 8.0))


def profile() -> TrainingProfile:
    return TrainingProfile(
        "toy",
        times(),
        {8: statistics(1), 16: statistics(2)},
        num_epochs=2,
        min_local_batch_size=4,
        max_local_batch_size=8,
    )


def test_noise_and_steps_lie_between_the_validated_batches() -> None:
    assert profile().noise(12, 0) == pytest.approx((1.0, 6.0))
    assert profile().iterations(12, 1) == pytest.approx(300.0)
    assert profile().noise(8, 1) == (2.0, 8.0)


def test_progress_of_an_epoch_is_the_least_over_batches() -> None:
    assert [profile().progress_after(e) for e in range(3)] == [0.0, 10.0, 20.0]


def test_a_batch_that_was_not_validated_is_an_error() -> None:
    with pytest.raises(ValueError, match="batch size 32 of 'toy' is outside 8 to 16"):
        profile().noise(32, 0)
