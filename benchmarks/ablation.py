"""What each means of saving time is worth, switched one at a time; and what it costs large jobs.

The cell is that of ``cell_pack``: 12,000 machines, 150,000 tasks packed. The means are those of Borg (EuroSys
2015, section 3.4): kept scores, equivalence classes, relaxed randomisation, and with them our runs of single
tasks. Two things are measured for each:

- how many tasks a second one pass places, of 1,500 new ones;
- how long gangs (``--gang`` replicas of 8 accelerators each) wait while small work churns. Time is simulated:
  it goes on by the CPU seconds of each pass and a rest of 50 ms, small tasks end and arrive at ``--rate`` a
  second, a gang arrives every two seconds and runs for eight. A slow scheduler takes in more at once, and
  everybody waits for its passes. A cache that remembered misfits would show here: Kueue's equivalence hashing
  raised the mean admission of its large jobs from 6.7 to 16.5 s (its issue tracker's figures, not ours).
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from cell_pack import (
    NOW_S,
    TRACES,
    Pod,
    job,
    machine_specs,
    openb_machines,
    openb_pods,
    place,
    show,
    synthetic,
    workload,
)

from tidecell.scheduler.board import occupied_fleet
from tidecell.scheduler.fleet import Fleet
from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Kept, Snapshot, TaskView
from tidecell.server.__main__ import collect_rarely
from tidecell.structs.job import Band, JobSpec, Priority, Replicas
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Plan
from tidecell.structs.resources import Resources

REST_S = 0.05  # between two passes
GANG_EVERY_S = 2.0
GANG_RUNS_S = 8.0
WAYS = {
    "usual": Options(),
    "runs_off": Options(runs=False),
    "cache_off": Options(cached=False),
    "classes_off": Options(classes=False),
    "sample_100": Options(sample=100),
    "sample_1000": Options(sample=1000),
}


@dataclass
class Cell:
    """The cell under churn: its jobs, and the columns that a live control plane would keep."""

    machines: tuple[MachineSpec, ...]
    pods: Sequence[Pod]
    gang: int
    jobs: dict[str, JobView]
    fleet: Fleet
    rng: random.Random = field(default_factory=lambda: random.Random(2))
    specs: dict[Pod, JobSpec] = field(default_factory=dict)
    arrived_s: dict[str, float] = field(default_factory=dict)  # gangs that wait
    ends_s: dict[str, float] = field(default_factory=dict)  # gangs that run
    waits_s: list[float] = field(default_factory=list)
    number: int = 10_000_000

    def end(self, uid: str) -> None:
        """A job is over."""
        for task in self.jobs.pop(uid).tasks:
            if task.machine:
                self.fleet.vacate(self.fleet.rows[task.machine], task.resources, task.accelerators)

    def small(self, count: int) -> None:
        """So many small tasks end, and as many arrive."""
        small = [uid for uid in self.rng.sample(list(self.jobs), count + self.gang) if uid[0] == "t"]
        for uid in small[:count]:
            self.end(uid)
        for _ in range(count):
            self.number += 1
            fresh = job(self.number, self.rng.choice(self.pods), NOW_S + self.number, self.specs)
            self.jobs[fresh.uid] = fresh

    def large(self, at_s: float) -> None:
        """A gang arrives."""
        self.number += 1
        spec = JobSpec(
            f"g{self.number}",
            resources=Resources(32_000, 64 << 30, 8000),
            replicas=Replicas(self.gang, self.gang),
            priority=Priority(Band.BATCH, 1),
        )
        tasks = tuple(TaskView(i, pending=True) for i in range(self.gang))
        uid = f"g{self.number}.1"
        self.jobs[uid] = JobView(uid, spec, NOW_S + self.number, self.gang, tasks)
        self.arrived_s[uid] = at_s

    def one_pass(self, options: Options) -> tuple[Plan, float]:
        """Schedule; return the plan and the CPU seconds."""
        waiting = tuple(uid for uid, j in self.jobs.items() if j.tasks[0].pending)
        snapshot = Snapshot(NOW_S, self.machines, tuple(self.jobs.values()))
        begun_s = time.process_time()
        plan, _ = schedule(snapshot, kept=Kept(self.fleet, self.jobs, waiting), options=options)
        return plan, time.process_time() - begun_s

    def take(self, plan: Plan, now_s: float) -> None:
        """Do what a plan says; note which gangs started."""
        gangs: dict[str, list[TaskView]] = {}
        for p in plan.placements:
            if p.uid in self.arrived_s:
                task = TaskView(
                    p.index,
                    machine=p.machine,
                    accelerators=p.accelerators,
                    resources=p.resources,
                    placed_s=NOW_S,
                )
                gangs.setdefault(p.uid, []).append(task)
                self.fleet.occupy(self.fleet.rows[p.machine], p.resources, p.accelerators)
        for uid, tasks in gangs.items():
            old = self.jobs[uid]
            self.jobs[uid] = JobView(uid, old.spec, old.submitted_s, self.gang, tuple(tasks))
            self.waits_s.append(now_s - self.arrived_s.pop(uid))
            self.ends_s[uid] = now_s + GANG_RUNS_S
        place(self.jobs, self.fleet, Plan(tuple(p for p in plan.placements if p.uid not in gangs)))


def churn(cell: Cell, options: Options, seconds: float, rate: float) -> tuple[list[float], list[float]]:
    """Let a cell run; return how long passes took, and how long gangs waited, those that wait still too."""
    now_s, seen_s, owed, next_gang_s = 0.0, 0.0, 0.0, 1.0
    passes = []
    while now_s < seconds:
        owed += rate * (now_s - seen_s)
        seen_s = now_s
        cell.small(int(owed))
        owed -= int(owed)
        for uid in [uid for uid, end_s in cell.ends_s.items() if end_s <= now_s]:
            del cell.ends_s[uid]
            cell.end(uid)
        while next_gang_s <= now_s:
            cell.large(next_gang_s)
            next_gang_s += GANG_EVERY_S
        plan, took_s = cell.one_pass(options)
        passes.append(took_s)
        now_s += took_s
        cell.take(plan, now_s)
        now_s += REST_S
    return passes, cell.waits_s + [now_s - at_s for at_s in cell.arrived_s.values()]


def main() -> None:
    """Run all ways."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=12_000)
    parser.add_argument("--tasks", type=int, default=150_000)
    parser.add_argument("--rate", type=float, default=300.0, help="small tasks a second")
    parser.add_argument("--seconds", type=float, default=40.0, help="of simulated time")
    parser.add_argument("--gang", type=int, default=16, help="replicas of a large job")
    parser.add_argument("--way", choices=list(WAYS), action="append")
    options = parser.parse_args()
    collect_rarely()
    rng = random.Random(1)
    if (TRACES / "openb_pods.parquet").exists():
        rows, pods = openb_machines(), openb_pods()
    else:
        print("openb trace not used: a seeded synthetic mix (see ../shared/traces or TIDECELL_TRACES)")
        rows, pods = synthetic(rng)
    machines = machine_specs(rows, options.machines)
    shapes = workload(pods, machines, options.tasks, rng)
    specs: dict[Pod, JobSpec] = {}
    jobs = {j.uid: j for j in (job(i, pod, NOW_S + i, specs) for i, pod in enumerate(shapes))}
    plan, _ = schedule(Snapshot(NOW_S, machines, tuple(jobs.values())))
    fleet = occupied_fleet(Snapshot(NOW_S, machines, ()))
    place(jobs, fleet, plan)
    gc.collect()
    gc.freeze()
    for name in options.way or WAYS:
        way = WAYS[name]
        cell = Cell(machines, shapes, options.gang, dict(jobs), fleet.copy())
        schedule(Snapshot(NOW_S, machines, tuple(jobs.values())[:20]), options=way)  # compiles
        cell.small(min(1500, len(jobs) // 2))
        plan, took_s = cell.one_pass(way)
        show(f"ablation_{name}_placed", len(plan.placements) / took_s, "tasks/s", tasks=len(plan.placements))
        cell = Cell(machines, shapes, options.gang, dict(jobs), fleet.copy())
        passes, waits = churn(cell, way, options.seconds, options.rate)
        show(
            f"ablation_{name}_large_jobs",
            statistics.mean(waits),
            "s",
            most=round(max(waits), 3),
            gangs=len(waits),
            never=len(cell.arrived_s),
            pass_ms=round(1000 * statistics.mean(passes), 1),
            passes=len(passes),
        )


if __name__ == "__main__":
    main()
