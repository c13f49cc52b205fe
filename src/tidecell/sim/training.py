"""Trainings on a cluster under virtual time: arrivals, a policy every interval, completion times.

Knows no particular policy and no file format. Every interval all trainings run on, then the policy sees
those that have arrived and not finished, and gives each its places for the next interval.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from tidecell.sim.training_job import Placement, Training, TrainingJob
from tidecell.sim.training_profile import TrainingProfile
from tidecell.structs.errors import InvariantError, Mistake, SpecError

# A simulation that takes longer than this has a job that never gets anywhere.
LONGEST_S = 120 * 24 * 3600.0


class ClusterShape(msgspec.Struct, frozen=True):
    """Machines that are all alike."""

    num_nodes: int = 16
    gpus_per_node: int = 4


class TrainingPolicy(Protocol):
    """Who gets which places.

    Attributes:
        name: For reports.
        declared_batch: Whether trainings keep the batch size their user asked for.
    """

    name: str
    declared_batch: bool

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        """Return places by job name; a job not named gets none."""
        ...


class JobOutcome(msgspec.Struct, frozen=True):
    """How a job fared."""

    name: str
    application: str
    submitted_s: float
    first_start_s: float
    completed_s: float
    jct_s: float
    restarts: int
    gpu_s: float


class TrainingReport(msgspec.Struct, frozen=True):
    """How a workload fared under a policy.

    Attributes:
        gpu_utilisation: GPU-seconds given to jobs over those there were, from the first arrival to the
            last completion, 0 to 1.
        restarts: Changes of places of running jobs, all together (a first start is none).
    """

    policy: str
    num_jobs: int
    num_nodes: int
    gpus_per_node: int
    interval_s: float
    jct_mean_s: float
    jct_median_s: float
    jct_p99_s: float
    makespan_s: float
    gpu_utilisation: float
    restarts: int
    jobs: tuple[JobOutcome, ...]

    def to_json(self, *, with_jobs: bool = True) -> str:
        """Return the report as one JSON object."""
        document = msgspec.to_builtins(self)
        if not with_jobs:
            del document["jobs"]
        return json.dumps(document)


def run_training(
    workload: Sequence[TrainingJob],
    profiles: Mapping[str, TrainingProfile],
    policy: TrainingPolicy,
    nodes: int = 16,
    gpus_per_node: int = 4,
    interval_s: float = 60.0,
) -> TrainingReport:
    """Run a workload to its end and report.

    Args:
        workload: Jobs, names unique.
        profiles: What is true of each application.
        policy: Who gets which places; a fresh one for each run.
        nodes: Machines.
        gpus_per_node: Places on each.
        interval_s: Seconds between the policy's decisions.

    Raises:
        SpecError: An empty workload, a name twice, an application without a profile, a bad size.
        InvariantError: The policy gave a place twice.
    """
    _check(workload, profiles, nodes, gpus_per_node, interval_s)
    cluster = ClusterShape(nodes, gpus_per_node)
    ordered = sorted(workload, key=lambda job: job.submitted_s)
    waiting = [
        Training(job, profiles[job.application], declared_batch=policy.declared_batch) for job in ordered
    ]
    finished: list[Training] = []
    active: list[Training] = []
    now_s = 0.0
    while waiting or active:
        if not active:  # nothing happens before the next arrival
            now_s = max(now_s, math.floor(waiting[0].job.submitted_s / interval_s) * interval_s)
        for training in active:
            training.run(interval_s)
        now_s += interval_s
        finished += [t for t in active if t.completed_s is not None]
        active = [t for t in active if t.completed_s is None]
        while waiting and waiting[0].job.submitted_s <= now_s:
            waiting[0].skip_to(now_s)
            active.append(waiting.pop(0))
        if active:
            _reallocate(policy, now_s, active, cluster)
        if now_s > LONGEST_S:
            raise InvariantError(f"policy {policy.name!r} leaves {len(active)} jobs unfinished for ever")
    return _report(policy.name, finished, cluster, interval_s)


def _check(
    workload: Sequence[TrainingJob],
    profiles: Mapping[str, TrainingProfile],
    nodes: int,
    gpus_per_node: int,
    interval_s: float,
) -> None:
    mistakes = []
    if not workload:
        mistakes.append(Mistake("workload", "has no jobs"))
    if nodes < 1 or gpus_per_node < 1:
        mistakes.append(Mistake("cluster", f"{nodes} machines with {gpus_per_node} GPUs hold nothing"))
    if not interval_s > 0:
        mistakes.append(Mistake("interval_s", f"is {interval_s:g}; it must be above 0"))
    names: set[str] = set()
    for job in workload:
        if job.name in names:
            mistakes.append(Mistake(job.name, "is the name of two jobs"))
        names.add(job.name)
    for application in sorted({job.application for job in workload} - set(profiles)):
        hint = f"there are profiles of {', '.join(sorted(profiles)) or 'nothing'}"
        mistakes.append(Mistake(application, "has no profile", hint))
    if mistakes:
        raise SpecError(mistakes, "the training workload")


def _reallocate(
    policy: TrainingPolicy, now_s: float, active: Sequence[Training], cluster: ClusterShape
) -> None:
    """Ask the policy and carry out what changed."""
    placements = policy.allocate(now_s, active, cluster)
    free = [cluster.gpus_per_node] * cluster.num_nodes
    for name, placement in placements.items():
        for node, count in placement:
            free[node] -= count
            if count < 1 or free[node] < 0:
                raise InvariantError(
                    f"policy {policy.name!r} gives {count} places of machine {node} to {name!r}"
                )
    for training in active:
        placement = placements.get(training.job.name, ())
        if placement != training.placement:
            training.place(placement, now_s)


def _report(
    policy: str, finished: Sequence[Training], cluster: ClusterShape, interval_s: float
) -> TrainingReport:
    outcomes = tuple(sorted((_outcome(t) for t in finished), key=lambda o: (o.submitted_s, o.name)))
    times = sorted(o.jct_s for o in outcomes)
    began_s = min(o.submitted_s for o in outcomes)
    makespan_s = max(o.completed_s for o in outcomes) - began_s
    capacity = cluster.num_nodes * cluster.gpus_per_node * makespan_s
    return TrainingReport(
        policy=policy,
        num_jobs=len(outcomes),
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        interval_s=interval_s,
        jct_mean_s=statistics.fmean(times),
        jct_median_s=statistics.median(times),
        jct_p99_s=times[min(len(times) - 1, math.ceil(0.99 * len(times)) - 1)],
        makespan_s=makespan_s,
        gpu_utilisation=sum(o.gpu_s for o in outcomes) / capacity if capacity > 0 else 0.0,
        restarts=sum(o.restarts for o in outcomes),
        jobs=outcomes,
    )


def _outcome(training: Training) -> JobOutcome:
    job = training.job
    assert training.completed_s is not None
    assert training.first_start_s is not None
    return JobOutcome(
        name=job.name,
        application=job.application,
        submitted_s=job.submitted_s,
        first_start_s=training.first_start_s,
        completed_s=training.completed_s,
        jct_s=training.completed_s - job.submitted_s,
        restarts=training.restarts,
        gpu_s=training.attained_gpu_s,
    )
