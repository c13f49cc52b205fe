"""Tasks placed, journaled and committed a second on 5,000 machines; with preemption; with unschedulable ones.

The cases are those of kube-scheduler's own performance tests (test/integration/scheduler_perf):
SchedulingBasic, PreemptionBasic and Unschedulable with 5,000 nodes of 4 cpu and 32 GiB, pods of 0.1 cpu and
500 MiB. Their CI floors of 680, 570 and 590 pods/s are the baseline. Ours is one process with a journal on
disk. What is timed is from the moment when tasks may start to the durable commit of their placement: the pass
over the cell, the check of its plan against the state, its application and the journal. A preemption ends
when the beneficiary's own placement is committed, after its victims have gone. Submission is timed beside it.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tidecell.cell.journal import Journal
from tidecell.cell.runtime import Runtime
from tidecell.server.__main__ import collect_rarely
from tidecell.structs.job import Band, JobSpec, Priority
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    Command,
    ControlStarted,
    Input,
    JobSubmitted,
    MachineSeen,
    StartTask,
    StopTask,
    TaskDown,
    TaskNoticed,
    TaskPlaced,
    TaskUp,
    Tick,
)
from tidecell.structs.resources import Resources

MACHINE = Resources(4000, 32 << 30)
POD = Resources(100, 500 << 20)
LOW, HIGH = Resources(900, 500 << 20), Resources(3000, 500 << 20)
TOO_LARGE = Resources(9000, 500 << 20)  # larger than any machine that is up when it is scheduled
BEGIN_S = 1_000.0
CLOCK: Callable[[], float] = time.perf_counter


def spec(name: str, size: Resources, band: Band = Band.BATCH, begin_s: float = 0.0) -> JobSpec:
    """Return a job of one task."""
    return JobSpec(
        name,
        argv=("true",),
        resources=size,
        priority=Priority(band, 0),
        begin_s=begin_s,
        grace_period_s=0.0,
    )


class Cell:
    """A runtime over a journal on disk, whose machines all stay up."""

    def __init__(self, folder: Path, num_machines: int, extra: Sequence[MachineSpec] = ()) -> None:
        self.runtime = Runtime(Journal(folder / "journal.db"))
        machines = [MachineSpec(f"m{i:05}", MACHINE) for i in range(num_machines)]
        self.runtime.tick([ControlStarted(), *(MachineSeen(m) for m in (*machines, *extra))], 1.0)

    def submit(self, specs: Sequence[JobSpec], now_s: float) -> float:
        """Submit jobs in one batch; return how many seconds that took."""
        inputs: list[Input] = [JobSubmitted(s) for s in specs]
        began_s = CLOCK()
        outcome = self.runtime.tick(inputs, now_s)
        took_s = CLOCK() - began_s
        if any(outcome.errors):
            raise ValueError(f"a job was refused: {next(e for e in outcome.errors if e)}")
        self.start(outcome.commands, now_s)
        return took_s

    def start(self, commands: Sequence[Command], now_s: float) -> None:
        """Say that everything ordered has been done."""
        up: list[Input] = [TaskUp(c.ref, c.machine) for c in commands if isinstance(c, StartTask)]
        up += [TaskDown(c.ref, c.machine, -15) for c in commands if isinstance(c, StopTask)]
        if up:
            self.runtime.tick(up, now_s)


def basic(folder: Path, num_machines: int, num_tasks: int, unschedulable: int = 0) -> dict[str, float]:
    """Place many small tasks, all at once and then in batches; ``unschedulable`` ones wait meanwhile."""
    large = [MachineSpec("large", Resources(16_000, 64 << 30))] if unschedulable else []
    cell = Cell(folder, num_machines, large)
    if unschedulable:  # accepted for a machine that is full by the time
        cell.submit([spec("filler", Resources(16_000, 60 << 30), Band.PRODUCTION)], 2.0)
        cell.submit([spec(f"never-{i}", TOO_LARGE, Band.PRODUCTION) for i in range(unschedulable)], 2.0)
    jobs = [spec(f"t{i}", POD, begin_s=BEGIN_S) for i in range(num_tasks)]
    submit_s = cell.submit(jobs, 3.0)
    began_s = CLOCK()
    outcome = cell.runtime.tick([Tick()], BEGIN_S)
    took_s = CLOCK() - began_s
    check(outcome.events, num_tasks)
    cell.start(outcome.commands, BEGIN_S + 1)
    began_s, placed = CLOCK(), 0
    for at in range(0, num_tasks, 500):
        batch: list[Input] = [JobSubmitted(spec(f"u{i}", POD)) for i in range(at, at + 500)]
        now = cell.runtime.tick(batch, BEGIN_S + 2 + at)
        placed += sum(isinstance(e, TaskPlaced) for e in now.events)
    batched_s = CLOCK() - began_s
    if placed != num_tasks:
        raise ValueError(f"{placed} of {num_tasks} were placed in batches")
    return {"submit": num_tasks / submit_s, "place": num_tasks / took_s, "batches": num_tasks / batched_s}


def preemption(folder: Path, num_machines: int, num_tasks: int) -> float:
    """Fill the cell with low work, then place large tasks above it; return beneficiaries served a second.

    Timed until every beneficiary's place is journaled: victims told to leave and gone, the task placed.
    """
    cell = Cell(folder, num_machines)
    cell.submit([spec(f"low{i}", LOW, Band.BEST_EFFORT) for i in range(4 * num_machines)], 2.0)
    cell.submit([spec(f"high{i}", HIGH, Band.PRODUCTION, BEGIN_S) for i in range(num_tasks)], 3.0)
    began_s, now_s = CLOCK(), BEGIN_S
    outcome = cell.runtime.tick([Tick()], now_s)
    told = sum(isinstance(e, TaskNoticed) for e in outcome.events)
    placed = sum(isinstance(e, TaskPlaced) for e in outcome.events)
    while placed < num_tasks:
        now_s += 1.0
        ends: list[Input] = [
            TaskDown(c.ref, c.machine, -15) for c in outcome.commands if isinstance(c, StopTask)
        ]
        outcome = cell.runtime.tick([*ends, Tick()], now_s)
        new = sum(isinstance(e, TaskPlaced) and e.ref.uid.startswith("high") for e in outcome.events)
        if not new and not any(isinstance(c, StopTask) for c in outcome.commands):
            raise ValueError(f"stuck at {placed} of {num_tasks}")
        told += sum(isinstance(e, TaskNoticed) for e in outcome.events)
        placed += new
    took_s = CLOCK() - began_s
    if told < 3 * num_tasks:
        raise ValueError(f"only {told} were told to leave for {num_tasks}")
    return num_tasks / took_s


def check(events: Sequence[object], num_tasks: int) -> None:
    """Raise unless that many were placed."""
    placed = sum(isinstance(e, TaskPlaced) for e in events)
    if placed != num_tasks:
        raise ValueError(f"{placed} of {num_tasks} were placed")


def emit(name: str, value: float, baseline: float | None, unit: str = "tasks/s") -> None:
    """Print one result."""
    ratio = round(value / baseline, 2) if baseline else None
    row = {"name": name, "value": round(value, 1), "unit": unit, "baseline": baseline, "ratio": ratio}
    print(json.dumps(row), flush=True)


def main() -> None:
    """Run the three cases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", type=int, default=5000)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--preemptors", type=int, default=5000, help="at most as many as machines")
    parser.add_argument("--case", choices=["basic", "preemption", "unschedulable"], action="append")
    parser.add_argument(
        "--cpu", action="store_true", help="CPU seconds instead, where others use the machine"
    )
    options = parser.parse_args()
    global CLOCK
    CLOCK = time.process_time if options.cpu else time.perf_counter
    cases = options.case or ["basic", "unschedulable", "preemption"]
    collect_rarely()  # as the control plane does
    with tempfile.TemporaryDirectory(prefix="tide-throughput-") as name:
        warm = Path(name) / "warm"
        warm.mkdir()
        basic(warm, 600, 500)  # a service compiles its kernels once, not once a pass
        for case in cases:
            folder = Path(name) / case
            folder.mkdir()
            if case == "preemption":
                rate = preemption(folder, options.machines, min(options.preemptors, options.machines))
                emit("throughput_preemption", rate, 570.0)
                continue
            stuck = 200 if case == "unschedulable" else 0
            rates = basic(folder, options.machines, options.tasks, stuck)
            emit(f"throughput_{case}", rates["place"], 590.0 if stuck else 680.0)
            emit(f"throughput_{case}_batches_of_500", rates["batches"], None)
            emit(f"throughput_{case}_submitted", rates["submit"], None, "jobs/s")
    emit("throughput_memory", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, None, "MiB")


if __name__ == "__main__":
    main()
