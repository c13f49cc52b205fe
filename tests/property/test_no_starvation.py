"""What is kept for a blocked gang never moves back: however much small work comes, less and less is missing.

Nothing here has a time limit, so no start can be told; each end brings the gang nearer all the same.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.scheduler.whatif import carry_out, vacate
from tidecell.structs.job import JobSpec, Replicas
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.placement import Topology
from tidecell.structs.resources import GPU, Resources

DEVICES = 8


def cell_of(num_machines: int, rng: random.Random) -> Snapshot:
    """Machines of differing numbers of cores, full of small work."""
    devices = tuple(Accelerator(i, "H100") for i in range(DEVICES))
    machines = tuple(
        MachineSpec(
            f"m{i}",
            Resources(1000 * rng.choice([32, 64, 96]), 512 << 30, GPU * DEVICES),
            devices,
            {"rack": f"r{i % 3}"},
        )
        for i in range(num_machines)
    )
    return Snapshot(0.0, machines, ())


def small(number: int, now_s: float, rng: random.Random) -> JobView:
    wanted = rng.choice([250, 500, GPU, GPU, 2 * GPU])
    spec = JobSpec(f"s{number}", argv=("x",), resources=Resources(100, 1 << 30, wanted))
    return JobView(f"s{number}.1", spec, now_s, 1, (TaskView(0, pending=True),))


def missing(snapshot: Snapshot, size: int, count: int, racks: bool) -> int:
    """Thousandths of accelerators that are lacking where the gang is nearest to a start."""
    busy = {m.name: np.zeros(DEVICES, int) for m in snapshot.machines}
    for job in snapshot.jobs:
        for task in job.tasks:
            for device in task.accelerators:
                busy[task.machine][device] += min(GPU, task.resources.gpu_millis)
    totals = []
    for rack in sorted({m.attributes["rack"] for m in snapshot.machines}) if racks else [""]:
        needs: list[int] = []
        for machine in snapshot.machines:
            if rack in ("", machine.attributes["rack"]):
                order = np.sort(busy[machine.name])
                needs += [int(order[at : at + size].sum()) for at in range(0, DEVICES - size + 1, size)]
        totals.append(sum(sorted(needs)[:count]))
    return min(totals)


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize(
    ("size", "count", "racks"), [(8, 1, False), (8, 2, False), (4, 3, False), (8, 2, True)]
)
def test_a_blocked_gang_comes_nearer_with_every_end(seed: int, size: int, count: int, racks: bool) -> None:
    rng = random.Random(seed)
    snapshot = cell_of(6, rng)
    number = 0
    for _ in range(60):
        number += 1
        snapshot = add(snapshot, small(number, 0.0, rng))
    snapshot = run(snapshot)
    ran = tuple(j for j in snapshot.jobs if any(t.machine for t in j.tasks))
    snapshot = Snapshot(0.0, snapshot.machines, ran)  # nobody waits who came before the gang
    topology = Topology("rack", required=True) if racks else None
    gang = JobSpec(
        "gang",
        argv=("x",),
        resources=Resources(4000, 1 << 30, size * GPU),
        replicas=Replicas(count, count),
        topology=topology,
    )
    tasks = tuple(TaskView(i, pending=True) for i in range(count))
    snapshot = run(add(snapshot, JobView("gang.1", gang, 1.0, count, tasks)))
    least = missing(snapshot, size, count, racks)
    for step in range(400):
        running = [j for j in snapshot.jobs if any(t.machine for t in j.tasks)]
        gone = rng.choice([j.uid for j in running if j.uid != "gang.1"])
        jobs = tuple(j for j in snapshot.jobs if j.uid != gone)
        snapshot = Snapshot(snapshot.now_s + 1.0, snapshot.machines, jobs)
        for _ in range(rng.choice([0, 1, 3])):
            number += 1
            snapshot = add(snapshot, small(number, snapshot.now_s, rng))
        snapshot = run(snapshot)
        if any(j.uid == "gang.1" and any(t.machine for t in j.tasks) for j in snapshot.jobs):
            return
        now = missing(snapshot, size, count, racks)
        assert now <= least, f"step {step}: {now} lack, {least} did before"
        least = now
    raise AssertionError("it never started")


def add(snapshot: Snapshot, job: JobView) -> Snapshot:
    return Snapshot(snapshot.now_s, snapshot.machines, (*snapshot.jobs, job))


def run(snapshot: Snapshot) -> Snapshot:
    return vacate(carry_out(snapshot, schedule(snapshot)[0]))
