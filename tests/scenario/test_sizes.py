"""Replicas of one job that ask for different resources."""

from __future__ import annotations

import random

import pytest

from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.job import JobSpec, Override, Reason, Replicas
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import Resources

GI = 1 << 30


def machine(name: str, cpu: int, gpus: int = 0) -> MachineSpec:
    devices = tuple(Accelerator(i, "A100") for i in range(gpus))
    return MachineSpec(name, Resources(1000 * cpu, 64 * GI, 1000 * gpus), devices)


BASE = Resources(1000)


def gang(*sizes: Resources) -> JobSpec:
    own = tuple(Override(i, i, size) for i, size in enumerate(sizes) if size != BASE)
    count = len(sizes)
    return JobSpec("g", argv=("x",), resources=BASE, replicas=Replicas(count, count), tasks=own)


def plan_of(spec: JobSpec, *machines: MachineSpec, cached: bool = False) -> tuple[dict[int, str], object]:
    tasks = tuple(TaskView(i, pending=True) for i in range(spec.replicas.max))
    job = JobView("g.1", spec, 0.0, spec.replicas.max, tasks)
    plan, trace = schedule(Snapshot(10.0, machines, (job,)), options=Options(cached=cached))
    for p in plan.placements:
        assert p.resources == spec.request(p.index)
    return {p.index: p.machine for p in plan.placements}, trace.waiting.get("g.1")


def test_the_large_replica_does_not_lose_its_place_to_small_ones() -> None:
    """The last of the gang needs the large machine: it is placed first."""
    spec = gang(Resources(1000), Resources(1000), Resources(8000))
    where, _ = plan_of(spec, machine("big", 8), machine("small", 2))
    assert where == {0: "small", 1: "small", 2: "big"}


def test_only_one_replica_needs_an_accelerator() -> None:
    spec = gang(Resources(1000, 0, 2000), Resources(1000), Resources(1000))
    where, _ = plan_of(spec, machine("gpu", 1, gpus=2), machine("cpu", 2))
    assert where == {0: "gpu", 1: "cpu", 2: "cpu"}


def test_a_gang_whose_leader_fits_nowhere_waits_whole_and_says_why() -> None:
    where, waiting = plan_of(gang(Resources(16_000), Resources(1000)), machine("a", 8))
    assert where == {}
    assert waiting is not None
    assert waiting.reasons[0] is Reason.NO_MATCHING_MACHINE
    assert "16 cpu" in waiting.detail


@pytest.mark.parametrize("seed", range(60))
def test_plans_are_equal_with_and_without_the_cache(seed: int) -> None:
    rng = random.Random(seed)
    machines = tuple(machine(f"m{i}", rng.choice([2, 4, 8]), rng.choice([0, 0, 2])) for i in range(6))
    jobs = []
    for number in range(rng.randint(2, 8)):
        sizes = [Resources(rng.choice([1000, 2000, 4000]), 0, rng.choice([0, 0, 1000])) for _ in range(3)]
        spec = gang(*sizes[: rng.randint(1, 3)])
        tasks = tuple(TaskView(i, pending=True) for i in range(spec.replicas.max))
        jobs.append(JobView(f"g{number}.1", spec, float(number), spec.replicas.max, tasks))
    snapshot = Snapshot(10.0, machines, tuple(jobs))
    one, other = (
        schedule(snapshot, 3, options=Options(cached=True)),
        schedule(snapshot, 3, options=Options(cached=False)),
    )
    assert one == other
    held: dict[str, int] = {}
    for p in one[0].placements:
        held[p.machine] = held.get(p.machine, 0) + p.resources.cpu_millis
    assert all(
        n <= next(m for m in machines if m.name == name).capacity.cpu_millis for name, n in held.items()
    )
