"""A cell of 12,000 machines and 150,000 tasks: packed from scratch, online passes, what the cache is worth.

Machines and task shapes are those of the openb trace: the node list repeated, tasks with accelerators up
to 90 % of what there is, the rest tasks without, scaled so that all ask for 90 % of the cores (most of a
Borg cell is such), with ``gpu_spec`` as constraint. Without it, or with ``--synthetic``, a seeded mix of
the same kind. Every task is a job of its own, the worst case for the scheduler. Times are CPU seconds of
this process, one core; Numba's compilation is done before. What the cell consists of is frozen for the
garbage collector, as the control plane does at its start.

Anchors: Borg packs a cell's whole workload in a few hundred seconds, an online pass is under 0.5 s
(EuroSys 2015, section 3.4).
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import resource
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from tidecell.scheduler.board import occupied_fleet
from tidecell.scheduler.fleet import Fleet
from tidecell.scheduler.options import Options
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Kept, Snapshot, TaskView
from tidecell.server.__main__ import collect_rarely
from tidecell.structs.job import Band, JobSpec, Priority, Shape
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.messages import Plan
from tidecell.structs.resources import Resources

HERE = Path(__file__).resolve().parent
TRACES = Path(os.environ.get("TIDECELL_TRACES") or HERE.parent.parent / "shared" / "traces") / "fgd"
SHARE = 0.9
NOW_S = 1_000_000.0

Pod = tuple[Resources, tuple[str, ...]]  # what a task asks for, and the accelerator types it takes


def show(name: str, value: float, unit: str, baseline: float | None = None, **more: object) -> None:
    """Print one result."""
    ratio = round(value / baseline, 4) if baseline else None
    line = {"name": name, "value": round(value, 4), "unit": unit, "baseline": baseline, "ratio": ratio}
    print(json.dumps({**line, **more}), flush=True)


# ---------------------------------------------------------------------------------------- the cell


def openb_machines() -> list[tuple[Resources, str, int]]:
    """Return (capacity, accelerator type, number of accelerators) of each machine of the trace."""
    import csv
    import gzip

    with gzip.open(TRACES / "openb_node_list_gpu_node.csv.gz", "rt") as file:
        return [
            (
                Resources(int(r["cpu_milli"]), int(r["memory_mib"]) << 20, int(r["gpu"]) * 1000),
                r["model"],
                int(r["gpu"]),
            )
            for r in csv.DictReader(file)
        ]


def openb_pods() -> list[Pod]:
    """Return the shapes of the default variant."""
    import pyarrow.parquet as pq

    columns = ["variant", "cpu_milli", "memory_mib", "num_gpu", "gpu_milli", "gpu_spec"]
    rows = pq.read_table(TRACES / "openb_pods.parquet", columns=columns).to_pylist()
    return [
        (
            Resources(
                r["cpu_milli"],
                r["memory_mib"] << 20,
                r["gpu_milli"] if r["num_gpu"] == 1 else r["num_gpu"] * 1000,
            ),
            tuple(r["gpu_spec"].split("|")) if r["gpu_spec"] else (),
        )
        for r in rows
        if r["variant"] == "default"
    ]


def synthetic(rng: random.Random) -> tuple[list[tuple[Resources, str, int]], list[Pod]]:
    """Return machines and shapes of the same kind as the trace's."""
    kinds = [("A10", 1), ("T4", 2), ("V100", 4), ("G2", 8), ("G2", 8), ("G3", 8)]
    machines = []
    for _ in range(1200):
        model, count = rng.choice(kinds)
        machines.append((Resources(rng.choice([64, 96, 128]) * 1000, 384 << 30, count * 1000), model, count))
    pods: list[Pod] = []
    for _ in range(8000):
        gpu = rng.choice([0, 200, 500, 500, 800, 1000, 1000, 1000, 2000, 4000, 8000])
        cpu = rng.choice([1000, 2000, 4000, 6000, 8000, 11908])
        spec = (rng.choice(["V100", "T4", "G2"]),) if gpu and rng.random() < 0.2 else ()
        pods.append((Resources(cpu, rng.choice([2, 4, 8, 16, 30]) << 30, gpu), spec))
    return machines, pods


def machine_specs(rows: Sequence[tuple[Resources, str, int]], count: int) -> tuple[MachineSpec, ...]:
    """Return so many machines, the trace's list repeated."""
    out = []
    for number in range(count):
        capacity, model, gpus = rows[number % len(rows)]
        devices = tuple(Accelerator(i, model) for i in range(gpus))
        out.append(MachineSpec(f"m{number:05d}", capacity, devices, {"rack": f"r{number // 40}"}))
    return tuple(out)


def workload(
    pods: Sequence[Pod], machines: Sequence[MachineSpec], count: int, rng: random.Random
) -> list[Pod]:
    """Return so many shapes: accelerators up to 90 % of what there is, the rest without.

    The latter are scaled so that all together ask for 90 % of the cores and of the memory at most.
    """
    with_gpu = [p for p in pods if p[0].gpu_millis]
    without = [p for p in pods if not p[0].gpu_millis]
    total = sum((m.capacity for m in machines), Resources())
    room = SHARE * total.gpu_millis
    chosen: list[Pod] = []
    while room > 0 and len(chosen) < count:
        chosen.append(rng.choice(with_gpu))
        room -= chosen[-1][0].gpu_millis
    used = sum((p[0] for p in chosen), Resources())
    rest = [rng.choice(without)[0] for _ in range(count - len(chosen))]
    asked = sum(rest, Resources())
    cpu = min(1.0, (SHARE * total.cpu_millis - used.cpu_millis) / max(1, asked.cpu_millis))
    memory = min(1.0, (SHARE * total.memory_bytes - used.memory_bytes) / max(1, asked.memory_bytes))
    chosen += [(Resources(max(10, int(r.cpu_millis * cpu)), int(r.memory_bytes * memory)), ()) for r in rest]
    rng.shuffle(chosen)
    return chosen


def job(number: int, pod: Pod, at_s: float, specs: dict[Pod, JobSpec]) -> JobView:
    """Return a waiting job of one task; jobs of one shape share their spec."""
    spec = specs.get(pod)
    if spec is None:
        request, types = pod
        first = types[0] if types else ""
        others = tuple(Shape(request, kind) for kind in types[1:])
        priority = Priority(Band.BATCH)
        spec = specs[pod] = JobSpec(
            f"k{len(specs)}", resources=request, accelerator_type=first, any_of=others, priority=priority
        )
    return JobView(f"t{number}.1", spec, at_s, 1, (TaskView(0, pending=True),))


# ------------------------------------------------------------------------------------------ passes


def place(jobs: dict[str, JobView], fleet: Fleet, plan: Plan) -> None:
    """Do to the picture of the cell what the plan's events would do."""
    for p in plan.placements:
        task = TaskView(
            0, machine=p.machine, accelerators=p.accelerators, resources=p.resources, placed_s=NOW_S
        )
        old = jobs[p.uid]
        jobs[p.uid] = JobView(old.uid, old.spec, old.submitted_s, 1, (task,))
        fleet.occupy(fleet.rows[p.machine], p.resources, p.accelerators)


def churn(
    jobs: dict[str, JobView], fleet: Fleet, pods: Sequence[Pod], number: int, count: int, rng: random.Random
) -> list[str]:
    """End so many tasks and submit as many; return the uids of what waits."""
    specs: dict[Pod, JobSpec] = {}
    for uid in rng.sample(list(jobs), count):
        task = jobs.pop(uid).tasks[0]
        if task.machine:
            fleet.vacate(fleet.rows[task.machine], task.resources, task.accelerators)
    for at in range(count):
        fresh = job(number + at, pods[rng.randrange(len(pods))], NOW_S + number + at, specs)
        jobs[fresh.uid] = fresh
    return [uid for uid, j in jobs.items() if j.tasks[0].pending]


def online(
    jobs: dict[str, JobView], machines: tuple[MachineSpec, ...], pods: Sequence[Pod], passes: int
) -> tuple[list[float], int]:
    """Return the CPU seconds of passes after 1 % churn each, and how many tasks they placed."""
    rng = random.Random(2)
    fleet = occupied_fleet(Snapshot(NOW_S, machines, tuple(jobs.values())))
    times, placed, number = [], 0, 10_000_000
    for _ in range(passes):
        count = len(jobs) // 100
        waiting = churn(jobs, fleet, pods, number, count, rng)
        number += count
        snapshot = Snapshot(NOW_S, machines, tuple(jobs.values()))
        start_s = time.process_time()
        plan, _ = schedule(snapshot, kept=Kept(fleet, jobs, tuple(waiting)))
        times.append(time.process_time() - start_s)
        placed += len(plan.placements)
        place(jobs, fleet, plan)
    return times, placed


def main() -> None:
    """Run all parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machines", type=int, default=12_000)
    parser.add_argument("--tasks", type=int, default=150_000)
    parser.add_argument("--passes", type=int, default=50)
    parser.add_argument("--synthetic", action="store_true", help="Do not read the trace.")
    options = parser.parse_args()
    collect_rarely()  # as the control plane does
    rng = random.Random(1)
    if options.synthetic or not (TRACES / "openb_pods.parquet").exists():
        print("openb trace not used: a seeded synthetic mix (see ../shared/traces or TIDECELL_TRACES)")
        rows, pods = synthetic(rng)
    else:
        rows, pods = openb_machines(), openb_pods()
    machines = machine_specs(rows, options.machines)
    shapes = workload(pods, machines, options.tasks, rng)
    specs: dict[Pod, JobSpec] = {}
    jobs = {j.uid: j for j in (job(i, pod, NOW_S + i, specs) for i, pod in enumerate(shapes))}
    snapshot = Snapshot(NOW_S, machines, tuple(jobs.values()))
    warm = Snapshot(NOW_S, machines, tuple(jobs.values())[:200])
    schedule(warm)  # compiles

    start_s = time.process_time()
    plan, _ = schedule(snapshot)
    scratch_s = time.process_time() - start_s
    size = f"{options.machines}x{options.tasks}"
    placed = len(plan.placements)
    show(f"pack_from_scratch_{size}", scratch_s, "s", 300.0, placed=placed, kinds=len(specs))
    show("pack_from_scratch_rate", placed / scratch_s, "tasks/s")

    few = Snapshot(NOW_S, machines, tuple(jobs.values())[:1500])
    for cached in (True, False):
        start_s = time.process_time()
        part, _ = schedule(few, options=Options(cached=cached))
        rate = len(part.placements) / (time.process_time() - start_s)
        show(f"ablation_cache_{'on' if cached else 'off'}", rate, "tasks/s", tasks=len(few.jobs))

    fleet = occupied_fleet(Snapshot(NOW_S, machines, ()))
    place(jobs, fleet, plan)
    gc.collect()
    gc.freeze()
    times, moved = online(jobs, machines, shapes, options.passes)
    times_ms = sorted(1000 * t for t in times)
    p99_ms = times_ms[min(len(times_ms) - 1, round(0.99 * len(times_ms)))]
    show("online_pass_p99", p99_ms, "ms", 500.0, median=round(statistics.median(times_ms), 2), placed=moved)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    show("peak_memory", peak, "MiB", 1536.0)


if __name__ == "__main__":
    main()
