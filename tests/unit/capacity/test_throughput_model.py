"""Step times of any size from the few that were seen."""

from __future__ import annotations

import numpy as np
import pytest

from tidecell.capacity.throughput_model import StepObservation, StepTimeModel, fit_step_times

TRUE = StepTimeModel(0.05, 0.002, 0.08, 0.004, 0.03, 0.002, 2.0)


def observed(num_nodes: int, num_replicas: int, local: int, model: StepTimeModel = TRUE) -> StepObservation:
    compute_s = model.compute_time_s(np.array([local]))
    network_s = model.network_time_s(np.array([num_nodes]), np.array([num_replicas]))
    step_s = float(model.step_time_s(compute_s, network_s)[0])
    return StepObservation(num_nodes, num_replicas, local, step_s, step_s - float(compute_s[0]))


def predicted(model: StepTimeModel, num_nodes: int, num_replicas: int, local: int) -> float:
    return observed(num_nodes, num_replicas, local, model).step_time_s


def test_a_model_fitted_to_its_own_steps_predicts_sizes_it_has_not_seen() -> None:
    seen = [observed(n, r, b) for n, r in ((1, 1), (1, 2), (1, 4), (2, 8), (4, 16)) for b in (16, 64)]
    fitted = fit_step_times(seen)
    for nodes, replicas, local in ((1, 3, 32), (3, 12, 48), (6, 24, 16)):
        assert predicted(fitted, nodes, replicas, local) == pytest.approx(
            observed(nodes, replicas, local).step_time_s, rel=0.03
        )


def test_after_one_step_on_one_gpu_the_network_is_thought_free() -> None:
    fitted = fit_step_times([observed(1, 1, 32)])
    assert predicted(fitted, 1, 1, 32) == pytest.approx(observed(1, 1, 32).step_time_s, rel=1e-6)
    assert predicted(fitted, 4, 16, 32) == pytest.approx(observed(1, 1, 32).step_time_s, rel=1e-5)


def test_with_one_batch_size_seen_half_of_compute_is_thought_constant() -> None:
    fitted = fit_step_times([observed(1, 1, 32)])
    assert fitted.compute_base_s == pytest.approx(fitted.compute_per_sample_s * 32)


def test_crossing_machines_is_thought_dearer_than_what_was_seen_inside_one() -> None:
    fitted = fit_step_times([observed(1, 1, 32), observed(1, 2, 32), observed(1, 4, 32)])
    assert fitted.across_base_s == pytest.approx(1.1 * fitted.within_base_s)


def test_times_are_never_negative_even_where_noise_slopes_down() -> None:
    fitted = fit_step_times(
        [StepObservation(1, 1, 10, 1.0, 0.0), StepObservation(1, 1, 100, 0.9, 0.0), observed(2, 2, 10)]
    )
    assert fitted.compute_base_s > 0
    assert fitted.compute_per_sample_s > 0
    assert fitted.across_base_s > 0


def test_nothing_observed_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one observation, got none"):
        fit_step_times([])


def test_a_step_that_was_all_waiting_is_an_error() -> None:
    with pytest.raises(ValueError, match="longer than their sync times"):
        fit_step_times([StepObservation(1, 2, 8, 1.0, 1.0)])
