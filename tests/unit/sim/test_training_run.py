"""Trainings under virtual time whose completion times can be worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from tidecell.sim.training import ClusterShape, run_training
from tidecell.sim.training_job import Placement, Training, TrainingJob
from tidecell.sim.training_policies import Goodput, PolluxLike, Tiresias
from tidecell.sim.training_profile import EpochStatistics, StepTimes, TrainingProfile
from tidecell.structs.errors import InvariantError, SpecError

CLUSTER_SIZES = ((1,), (2,), (3,), (4,), (1, 1), (4, 4))


def profile(num_epochs: int = 2, steps_per_epoch: int = 300) -> TrainingProfile:
    """A step takes 1 s at batch 8 and 0.5 s at 4, at any size; more samples teach nothing."""
    rows = np.array([[1.0, 0.125, 0.0], [8.0, 1.0, 0.0]])
    done = tuple(float(steps_per_epoch * (e + 1)) for e in range(num_epochs))
    statistics = EpochStatistics(done, tuple(int(d) for d in done), (1.0,) * num_epochs, (0.0,) * num_epochs)
    return TrainingProfile(
        "toy",
        StepTimes(dict.fromkeys(CLUSTER_SIZES, rows), np.empty((0, 5))),
        {8: statistics},
        num_epochs=num_epochs,
        min_local_batch_size=1,
        max_local_batch_size=8,
    )


def job(name: str, submitted_s: float = 0.0, num_replicas: int = 1) -> TrainingJob:
    return TrainingJob(name, "toy", submitted_s, num_replicas, 8)


class Fixed:
    """Gives what it was told."""

    name = "fixed"
    declared_batch = True

    def __init__(self, placements: Mapping[str, Placement]) -> None:
        self._placements = placements

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        return self._placements


def test_completion_is_the_next_decision_plus_a_restart_plus_the_work() -> None:
    # Submitted at 10, seen at 60, starts after 30 s, 600 steps of 1 s.
    report = run_training([job("a", 10.0)], {"toy": profile()}, Fixed({"a": ((0, 1),)}))
    assert report.jobs[0].completed_s == 60 + 30 + 600
    assert report.jct_mean_s == report.jct_median_s == report.jct_p99_s == 680
    assert report.restarts == 0


def test_two_replicas_halve_the_work() -> None:
    report = run_training([job("a")], {"toy": profile()}, Fixed({"a": ((0, 2),)}))
    assert report.jobs[0].completed_s == 60 + 30 + 300
    assert report.jobs[0].gpu_s == 2 * (30 + 300)


def test_utilisation_is_what_was_given_over_what_there_was() -> None:
    report = run_training([job("a", 60.0)], {"toy": profile()}, Fixed({"a": ((0, 1),)}), 1, 1)
    assert report.makespan_s == 60 + 630  # arrived just after a decision
    assert report.gpu_utilisation == pytest.approx(630 / 690)


class Moving(Fixed):
    """Moves the job once, at 180 s."""

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        return {"a": ((0 if now_s < 180 else 1, 1),)}


def test_a_move_costs_one_restart() -> None:
    report = run_training([job("a")], {"toy": profile()}, Moving({}))
    assert report.jobs[0].completed_s == 60 + 30 + 600 + 30
    assert report.restarts == 1


def test_tiresias_runs_in_order_of_arrival_what_fits() -> None:
    jobs = [job("a", 0, 4), job("b", 1, 4), job("c", 2, 4)]
    report = run_training(jobs, {"toy": profile()}, Tiresias(), nodes=2)
    starts = {o.name: o.first_start_s for o in report.jobs}
    # Four replicas need 150 s and 30 s to start: done at 240, so c starts then.
    assert starts == {"a": 60, "b": 60, "c": 240}


def test_goodput_gives_the_shorter_of_two_the_only_gpu_first() -> None:
    profiles = {"toy": profile(), "long": profile(num_epochs=40)}
    jobs = [TrainingJob("a-long", "long", 0.0, 1, 8), TrainingJob("b-short", "toy", 200.0, 1, 8)]
    report = run_training(jobs, profiles, Goodput(), nodes=1, gpus_per_node=1)
    done = {o.name: o.completed_s for o in report.jobs}
    assert done["b-short"] < 1000 < done["a-long"]


@pytest.mark.parametrize("policy", [Goodput, PolluxLike, Tiresias])
def test_every_policy_finishes_everything_the_same_way_twice(policy) -> None:  # type: ignore[no-untyped-def]
    jobs = [job(f"j{i}", 45.0 * i, 1 + i % 2) for i in range(12)]
    first = run_training(jobs, {"toy": profile()}, policy(), nodes=2)
    assert first.num_jobs == 12
    assert first == run_training(jobs, {"toy": profile()}, policy(), nodes=2)
    document = json.loads(first.to_json())
    assert len(document["jobs"]) == 12
    assert "jobs" not in json.loads(first.to_json(with_jobs=False))


def test_a_policy_that_gives_a_gpu_twice_is_stopped() -> None:
    greedy = Fixed({"a": ((0, 4),), "b": ((0, 1),)})
    with pytest.raises(InvariantError, match="gives 1 places of machine 0 to 'b'"):
        run_training([job("a"), job("b")], {"toy": profile()}, greedy)


def test_a_policy_that_starves_a_job_is_stopped() -> None:
    with pytest.raises(InvariantError, match="leaves 1 jobs unfinished for ever"):
        run_training([job("a")], {"toy": profile()}, Fixed({}), interval_s=3600.0)


def test_a_bad_workload_lists_every_mistake() -> None:
    with pytest.raises(SpecError) as caught:
        run_training(
            [job("a"), job("a"), TrainingJob("b", "unheard-of", 0.0, 1, 8)],
            {"toy": profile()},
            Tiresias(),
            nodes=0,
        )
    assert caught.value.render() == (
        "error: the training workload has 3 mistakes\n\n"
        "  cluster: 0 machines with 4 GPUs hold nothing\n"
        "  a: is the name of two jobs\n"
        "  unheard-of: has no profile\n"
        "    hint: there are profiles of toy"
    )
