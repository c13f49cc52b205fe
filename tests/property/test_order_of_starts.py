"""Invariant 10 on random single passes: the head starts if it fits, and nobody jumps it at its cost."""

from __future__ import annotations

import random

import pytest

from tidecell.scheduler import schedule as passes
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.sim.order_check import check_order
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import Band, JobSpec, Preemption, Priority, Replicas
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.resources import Resources

NOW_S = 10_000.0
BANDS = (Band.BEST_EFFORT, Band.BATCH, Band.BATCH, Band.PRODUCTION)


def machine(rng: random.Random, number: int) -> MachineSpec:
    gpus = rng.choice([0, 0, 2, 4])
    kind = rng.choice(["H100", "T4"])
    devices = tuple(Accelerator(i, kind) for i in range(gpus))
    return MachineSpec(f"m{number}", Resources(rng.choice([4, 8, 16]) * 1000, 32 << 30, gpus * 1000), devices)


def spec(rng: random.Random, name: str) -> JobSpec:
    gpu = rng.choice([0, 0, 250, 500, 1000, 2000])
    gang = rng.choice([1, 1, 1, 2, 3, 5])
    limit_s = rng.choice([0.0, 60.0, 600.0, 3600.0, 40_000.0])
    return JobSpec(
        name,
        run="true",
        resources=Resources(rng.choice([500, 1000, 2000, 5000]), rng.choice([0, 1, 8]) << 30, gpu),
        accelerator_type=rng.choice(["", "", "H100"]) if gpu else "",
        replicas=Replicas(gang, gang + rng.choice([0, 0, 2])),
        priority=Priority(rng.choice(BANDS), rng.randrange(3)),
        preemption=rng.choice([Preemption.ANY, Preemption.NEVER]),
        max_duration_s=limit_s,
        grace_period_s=rng.choice([0.0, 30.0]),
    )


def waiting(rng: random.Random, number: int) -> JobView:
    asked = spec(rng, f"w{number}")
    tasks = tuple(TaskView(i, pending=True) for i in range(asked.replicas.max))
    return JobView(f"w{number}.1", asked, NOW_S - rng.randrange(500), asked.replicas.max, tasks)


def cell(seed: int) -> Snapshot:
    """Return a cell in which much runs already, by the scheduler itself, and more waits."""
    rng = random.Random(seed)
    machines = tuple(machine(rng, i) for i in range(rng.randrange(2, 6)))
    first = Snapshot(NOW_S, machines, tuple(waiting(rng, i) for i in range(12)))
    plan, _ = schedule(first)
    running = []
    for job in first.jobs:
        mine = [p for p in plan.placements if p.uid == job.uid]
        if not mine or rng.random() < 0.2:
            continue
        tasks = tuple(
            TaskView(
                p.index, machine=p.machine, accelerators=p.accelerators, resources=p.resources, placed_s=1.0
            )
            for p in mine
        )
        limit_s = job.spec.max_duration_s
        ends_s = NOW_S + rng.uniform(0, limit_s) if limit_s else 0.0
        running.append(JobView(job.uid.replace("w", "r"), job.spec, 1.0, len(mine), tasks, ends_by_s=ends_s))
    return Snapshot(
        NOW_S, machines, (*running, *(waiting(rng, 100 + i) for i in range(rng.randrange(3, 14))))
    )


def heads(seeds: range) -> int:
    """Check cells; return in how many there was a head to look at."""
    found = 0
    for seed in seeds:
        snapshot = cell(seed)
        plan, trace = schedule(snapshot)
        found += check_order(snapshot, plan, trace)
    return found


def test_the_head_is_never_kept_waiting_or_delayed():
    assert heads(range(200)) > 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_head_is_never_kept_waiting_or_delayed_on_many_more_cells():
    assert heads(range(1_000, 9_000)) > 4_000


def test_a_scheduler_that_keeps_no_place_is_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(passes, "reserve", lambda board, job, indices, releases, heads_start_s: 0.0)
    with pytest.raises(InvariantError, match=r"with .* it starts at"):
        heads(range(400))


def test_a_scheduler_that_overlooks_room_is_seen(monkeypatch: pytest.MonkeyPatch):
    place, preempt = passes._place, passes._preempt
    monkeypatch.setattr(passes, "_place", lambda run, unit: len(unit.tasks) == 1 and place(run, unit))
    monkeypatch.setattr(passes, "_preempt", lambda run, unit: len(unit.tasks) == 1 and preempt(run, unit))
    with pytest.raises(InvariantError, match="there is room for it"):
        heads(range(400))
