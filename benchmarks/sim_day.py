"""A day of a 1,000-machine cell in virtual time: the production runtime, scheduler and autoscalers.

The synthetic day is drawn with a seed: data preparation in arrays, small jobs, gangs of 8 to 64 accelerators,
elastic and best-effort training, services that follow a load curve, and machines that fail and come back;
submissions follow office hours, and more is asked for than fits. The aim is one minute. With ``--philly`` the
busiest day of the Philly trace runs instead, on a cell so small that it queues.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tidecell.server.__main__ import collect_rarely
from tidecell.sim.published import read_philly
from tidecell.sim.recorder import Recorder
from tidecell.sim.report import Figures, figures_of
from tidecell.sim.simple import make_machine
from tidecell.sim.table import read_table
from tidecell.sim.trace import read_fleet
from tidecell.sim.workload import Behaviour, LoadPoint, MachineChange, SimJob, Workload
from tidecell.sim.world import World
from tidecell.structs.job import (
    Band,
    Checkpoint,
    JobSpec,
    Kind,
    Preemption,
    Priority,
    Replicas,
    Retry,
    RetryOn,
    Scaling,
)
from tidecell.structs.machine import MachineSpec
from tidecell.structs.resources import GPU, Resources
from tidecell.structs.work import Array

ROOT = Path(os.environ.get("TIDECELL_TRACES", Path(__file__).parents[1] / ".." / "shared" / "traces"))
DAY_S = 86_400.0
GIB = 1 << 30
AIM_S = 60.0
AGAIN = Retry(on=(RetryOn.INTERRUPTION,), max=1000)
CHECKPOINT = Checkpoint("ckpt", 600.0)
TEAMS = ("pretrain", "post", "data", "eval", "speech", "vision", "serving", "research")


def machines() -> list[MachineSpec]:
    """Return 400 machines of 8 accelerators, 100 of 4, and 500 without."""
    sizes = [
        ("h", 400, 96_000, 1024, 8, "H100"),
        ("l", 100, 64_000, 256, 4, "L4"),
        ("c", 500, 64_000, 256, 0, ""),
    ]
    return [
        make_machine(f"{kind}{i:03}", cpu, memory * GIB, gpus, model)
        for kind, count, cpu, memory, gpus, model in sizes
        for i in range(count)
    ]


class Day:
    """Draws one day.

    Attributes:
        scale: Share of the usual number of jobs.
    """

    def __init__(self, seed: int, scale: float) -> None:
        self.rng = random.Random(seed)
        self.scale = scale
        self.jobs: list[SimJob] = []
        self.load: list[LoadPoint] = []

    def moment(self) -> float:
        """Return a moment of submission: three times as many at 14:00 as at 02:00."""
        while True:
            at_s = self.rng.random() * DAY_S
            if self.rng.random() < 0.5 + 0.5 * math.sin(2 * math.pi * (at_s / DAY_S - 8 / 24)) * 0.5 + 0.25:
                return round(at_s, 1)

    def took_s(self, median_s: float, sigma: float, most_s: float = 36_000.0) -> float:
        """Return a duration, log-normal as those of published traces."""
        return round(min(most_s, median_s * math.exp(self.rng.gauss(0.0, sigma))), 1)

    def add(self, kind: str, count: int, draw: Callable[[str], tuple[JobSpec, float | None]]) -> None:
        """Add jobs of one kind."""
        for i in range(round(count * self.scale)):
            spec, work_s = draw(f"{kind}-{i}")
            self.jobs.append(SimJob(spec, self.moment(), work_s))

    def spec(
        self, name: str, cpus: float, memory: int, gpus: float, band: Band = Band.BATCH, **more: object
    ) -> JobSpec:
        """Return what is submitted."""
        order = self.rng.choice((0, 0, 0, 2, 5))
        return JobSpec(
            name,
            run="simulated",
            resources=Resources(round(cpus * 1000), memory * GIB, round(gpus * GPU)),
            priority=Priority(band, order),
            team=self.rng.choice(TEAMS),
            retry=AGAIN,
            **more,  # type: ignore[arg-type]
        )

    def draw(self) -> None:
        """Draw the whole day."""
        rng = self.rng
        self.add("prepare", 750, self._array)
        self.add("probe", 400, lambda n: (self.spec(n, 0.5, 1, 0, Band.MONITORING), self.took_s(60, 0.5)))
        self.add(
            "small", 8500, lambda n: (self.spec(n, rng.choice((2, 4, 8, 16)), 16, 0), self.took_s(900, 1.4))
        )
        self.add(
            "scratch", 2500, lambda n: (self.spec(n, 4, 16, 0, Band.BEST_EFFORT), self.took_s(1200, 1.2))
        )
        self.add(
            "debug",
            5000,
            lambda n: (self.spec(n, 6, 48, rng.choice((0.25, 0.5, 1, 1))), self.took_s(400, 1.2)),
        )
        self.add("tune", 2600, self._tune)
        self.add("sweep", 600, lambda n: (self.spec(n, 8, 64, 1, Band.BEST_EFFORT), self.took_s(3600, 1.0)))
        self.add("gang", 650, self._gang)
        self.add("elastic", 130, self._elastic)
        self.add("urgent", 60, lambda n: (self.spec(n, 48, 256, 8, Band.PRODUCTION), self.took_s(1800, 0.7)))
        for i in range(max(1, round(12 * self.scale))):
            self._service(i)
        self.jobs.sort(key=lambda j: (j.submit_s, j.spec.name))

    def _array(self, name: str) -> tuple[JobSpec, float]:
        items = self.rng.randint(8, 72)
        spec = self.spec(name, 8, 32, 0, array=Array(items), replicas=Replicas(0, min(items, 32)))
        return spec, self.took_s(3000, 0.9)

    def _tune(self, name: str) -> tuple[JobSpec, float]:
        gpus = self.rng.choice((1, 2, 2, 4, 4, 8, 8))
        return self.spec(name, 6 * gpus, 64 * gpus, gpus, checkpoint=CHECKPOINT), self.took_s(2700, 1.1)

    def _gang(self, name: str) -> tuple[JobSpec, float]:
        size = self.rng.choice((1, 2, 2, 2, 4, 4, 8))
        spec = self.spec(
            name, 64, 512, 8, replicas=Replicas(size, size), checkpoint=CHECKPOINT, accelerator_type="H100"
        )
        return spec, self.took_s(5400, 0.8)

    def _elastic(self, name: str) -> tuple[JobSpec, float]:
        spec = self.spec(
            name,
            64,
            512,
            8,
            replicas=Replicas(1, 6),
            checkpoint=CHECKPOINT,
            preemption=Preemption.ABOVE_MIN,
            accelerator_type="H100",
        )
        return spec, self.took_s(7200, 0.6)

    def _service(self, i: int) -> None:
        """A service that follows the day, with a load point every five minutes."""
        name = f"chat-{i}"
        spec = self.spec(
            name,
            12,
            128,
            2,
            Band.PRODUCTION,
            kind=Kind.SERVICE,
            replicas=Replicas(1, 24),
            scaling=Scaling(target=8.0),
        )
        self.jobs.append(SimJob(spec, 0.0, None, stop_s=DAY_S))
        peak, phase = self.rng.uniform(40, 170), self.rng.uniform(7, 11)
        for at_s in range(300, int(DAY_S), 300):
            wave = 0.55 - 0.45 * math.cos(2 * math.pi * (at_s / DAY_S - (phase - 6) / 24))
            self.load.append(LoadPoint(float(at_s), name, round(peak * wave * self.rng.uniform(0.9, 1.1), 1)))


def failures(fleet: list[MachineSpec], seed: int) -> list[MachineChange]:
    """Return machines that fail and come back after an hour or so: one of a hundred a day."""
    rng = random.Random(seed + 1)
    out = []
    for machine in fleet:
        if rng.random() < 0.012:
            at_s = rng.random() * DAY_S
            out.append(MachineChange(at_s, machine, up=False))
            out.append(MachineChange(at_s + rng.uniform(1200, 7200), machine, up=True))
    return sorted(out, key=lambda c: c.at_s)


def synthetic(seed: int, scale: float) -> Workload:
    """Return the day on its cell."""
    day, fleet = Day(seed, scale), machines()
    day.draw()
    if scale < 1:
        fleet = fleet[:: max(1, round(1 / scale))]
    load = tuple(sorted(day.load, key=lambda p: (p.at_s, p.service)))
    return Workload(
        tuple(fleet), tuple(day.jobs), tuple(failures(fleet, seed)), load, f"synthetic day {seed}"
    )


def philly(num_machines: int) -> Workload | None:
    """Return the day of the Philly trace on which most was submitted; None: the trace is not there."""
    path = ROOT / "gpu" / "philly_jobs_pollux.csv.gz"
    if not path.exists():
        print(f"skipped: {path} is not there (docs/sim.md says what it is)", file=sys.stderr)
        return None
    fleet = read_fleet(f"{num_machines}:gpu=8,cpu=64")
    jobs, notes = read_philly(read_table(path), fleet.machines)
    by_day: dict[int, list[SimJob]] = {}
    for job in jobs:
        by_day.setdefault(int(job.submit_s // DAY_S), []).append(job)
    busiest = max(by_day.values(), key=len)
    return Workload(tuple(fleet.machines), tuple(busiest), source="Philly, busiest day", notes=tuple(notes))


def run(workload: Workload, seed: int, batch_s: float, until_s: float) -> tuple[World, Figures, float, float]:
    """Simulate; return the world, its figures, and seconds of CPU and of wall."""
    world = World(workload, seed, Behaviour(batch_s=batch_s, starts_after_s=10.0))
    recorder = Recorder()
    world.observers.append(recorder)
    cpu_s, wall_s = time.process_time(), time.perf_counter()
    world.open()
    world.run(workload.start_s + until_s)
    recorder.close(workload.start_s + until_s)
    figures = figures_of(world, recorder)
    return world, figures, time.process_time() - cpu_s, time.perf_counter() - wall_s


def emit(name: str, value: float, unit: str, baseline: float | None = None) -> None:
    """Print one result."""
    ratio = round(value / baseline, 3) if baseline else None
    print(
        json.dumps(
            {"name": name, "value": round(value, 3), "unit": unit, "baseline": baseline, "ratio": ratio}
        ),
        flush=True,
    )


def report(
    name: str, workload: Workload, world: World, figures: Figures, cpu_s: float, wall_s: float
) -> None:
    """Print what it took, and that the day was a busy one."""
    tasks = sum(
        max(j.spec.replicas.max, 1) if j.spec.array is None else j.spec.array.count for j in workload.jobs
    )
    emit(f"{name}_cpu", cpu_s, "s", AIM_S)
    emit(f"{name}_wall", wall_s, "s", AIM_S)
    emit(f"{name}_jobs", len(workload.jobs), "jobs")
    emit(f"{name}_tasks", tasks, "tasks")
    emit(f"{name}_passes", world.num_ticks, "passes")
    emit(f"{name}_gpu_utilisation", figures.utilisation.gpu or 0.0, "%")
    emit(f"{name}_cpu_utilisation", figures.utilisation.cpu or 0.0, "%")
    emit(f"{name}_finished", figures.num_finished, "jobs")
    emit(f"{name}_waiting_at_end", figures.num_waiting, "jobs")
    emit(f"{name}_evictions", figures.evictions, "tasks")
    if figures.wait_s is not None:
        emit(f"{name}_wait_p90", figures.wait_s.p90, "s of virtual time")
    emit(f"{name}_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, "MiB")


def main() -> None:
    """Run one day."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of machines and jobs")
    parser.add_argument("--batch", type=float, default=0.0, help="decide inputs of so many seconds together")
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--philly", action="store_true", help="only the busiest day of the Philly trace")
    parser.add_argument("--philly-machines", type=int, default=20, help="of 8 accelerators")
    parser.add_argument("--profile", default="", help="write a profile of cProfile")
    args = parser.parse_args()
    collect_rarely()
    until_s = args.hours * 3600.0
    days = [] if args.philly else [("sim_day", synthetic(args.seed, args.scale))]
    if args.philly or (args.scale == 1.0 and args.hours == 24.0):
        days += [("sim_philly_day", found)] if (found := philly(args.philly_machines)) is not None else []
    for name, workload in days:
        if args.profile:
            import cProfile

            profile = cProfile.Profile()
            result = profile.runcall(run, workload, args.seed, args.batch, until_s)
            profile.dump_stats(args.profile)
        else:
            result = run(workload, args.seed, args.batch, until_s)
        report(name, workload, *result)


if __name__ == "__main__":
    main()
