"""Kueue's scheduler test through the production runtime and a real journal, in real or in virtual time.

The generator is that of kubernetes-sigs/kueue, test/performance/scheduler/configs/baseline: 5 cohorts of 6
queues with a quota of 20 and a borrowing limit of 100, each with 350 small (1 unit, 200 ms, priority 50), 100
medium (5, 500 ms, 100) and 50 large workloads (20, 1 s, 200), created every 100, 500 and 1,200 ms. Every
workload is a job of one task whose end is a timer; nothing else is simulated. Usage is reckoned as there:
units times time over the quota times the time from the first creation to the last end. Kueue's figures
include an API server and etcd; ours a journal in SQLite with a flush for every batch.
"""

from __future__ import annotations

import argparse
import heapq
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tidecell.cell.journal import Journal
from tidecell.cell.log import EventLog, MemoryLog
from tidecell.cell.runtime import Runtime
from tidecell.server.__main__ import collect_rarely
from tidecell.structs.job import Band, JobSpec, Priority
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    ControlStarted,
    Event,
    Input,
    JobAccepted,
    JobFinished,
    JobSubmitted,
    MachineSeen,
    PolicyProposed,
    StartTask,
    StopTask,
    TaskDown,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskRef,
    TaskUp,
)
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy, Quota, Team

COHORTS, QUEUES, QUOTA, BORROW = 5, 6, 20, 100
# class: (count, interval_s, units, runs_s, priority)
CLASSES = {
    "small": (350, 0.1, 1, 0.2, 50),
    "medium": (100, 0.5, 5, 0.5, 100),
    "large": (50, 1.2, 20, 1.0, 200),
}
KUEUE = {"wall_s": 351.1, "usage": 55.9, "large": 16.5, "medium": 76.8, "small": 215.5}
TARGET = {"wall_s": 72.0, "usage": 85.0}
LOWER_BOUND_S = 66.0


def policy(patience_s: float, scale: float) -> Policy:
    """Return the cohorts and queues as teams."""
    quota = Quota({"cpu": 1000 * QUOTA}, borrow={"cpu": 1000 * BORROW})
    teams = [
        Team(f"cq-{c}-{q}", {"batch": quota}, cohort=f"cohort-{c}")
        for c in range(COHORTS)
        for q in range(QUEUES)
    ]
    return Policy(tuple(teams), patience_s=patience_s)


def creations(scale: float) -> list[tuple[float, JobSpec]]:
    """Return every workload and when it is created, in order; ``scale`` shortens the test."""
    out = []
    for c in range(COHORTS):
        for q in range(QUEUES):
            for name, (count, interval_s, units, _, priority) in CLASSES.items():
                for number in range(round(count * scale)):
                    spec = JobSpec(
                        f"{name}-{c}-{q}-{number}",
                        argv=("true",),
                        resources=Resources(1000 * units),
                        priority=Priority(Band.BATCH, priority),
                        grace_period_s=0.0,
                        team=f"cq-{c}-{q}",
                    )
                    out.append(((number + 1) * interval_s, spec))
    return sorted(out, key=lambda pair: pair[0])


@dataclass
class NoOpExecutor:
    """Starts nothing: a task is up at once, and its end is a timer."""

    due: list[tuple[float, TaskRef]] = field(default_factory=list)
    running: set[TaskRef] = field(default_factory=set)

    def take(self, commands: Sequence[object], now_s: float) -> list[Input]:
        """Carry out commands; return what is told at once."""
        told: list[Input] = []
        for command in commands:
            if isinstance(command, StartTask):
                runs_s = CLASSES[command.spec.name.partition("-")[0]][3]
                heapq.heappush(self.due, (now_s + runs_s, command.ref))
                self.running.add(command.ref)
                told.append(TaskUp(command.ref, command.machine))
            elif isinstance(command, StopTask) and command.ref in self.running:
                self.running.discard(command.ref)
                told.append(TaskDown(command.ref, command.machine, -15))
        return told

    def ended(self, now_s: float) -> list[Input]:
        """Return the ends that are due."""
        told: list[Input] = []
        while self.due and self.due[0][0] <= now_s:
            _, ref = heapq.heappop(self.due)
            if ref in self.running:
                self.running.discard(ref)
                told.append(TaskDown(ref, "all", 0))
        return told


@dataclass
class Recorder:
    """What Kueue's recorder notes, from the events."""

    created_s: dict[str, float] = field(default_factory=dict)
    admitted_s: dict[str, float] = field(default_factory=dict)
    placed: dict[TaskRef, tuple[float, int]] = field(default_factory=dict)
    used: float = 0.0
    finished: int = 0
    evictions: int = 0
    last_s: float = 0.0

    def note(self, events: Sequence[Event], now_s: float) -> None:
        """Take what a tick decided."""
        for event in events:
            if isinstance(event, JobAccepted):
                self.created_s[event.uid] = now_s
            elif isinstance(event, TaskPlaced):
                self.admitted_s[event.ref.uid] = now_s
                self.placed[event.ref] = (now_s, event.resources.cpu_millis)
            elif isinstance(event, TaskEnded):
                since_s, millis = self.placed.pop(event.ref)
                self.used += millis / 1000 * (now_s - since_s)
            elif isinstance(event, JobFinished):
                self.finished, self.last_s = self.finished + 1, now_s
            elif isinstance(event, TaskNoticed) and event.by:
                self.evictions += 1

    def waits(self) -> dict[str, float]:
        """Return the mean time from creation to admission of each class."""
        times: dict[str, list[float]] = defaultdict(list)
        for uid, at_s in self.admitted_s.items():
            times[uid.partition("-")[0]].append(at_s - self.created_s[uid])
        return {name: sum(v) / len(v) for name, v in times.items()}


def run(log: EventLog, scale: float, patience_s: float, virtual: bool) -> tuple[float, Recorder, float]:
    """Run the whole test; return wall time, what was recorded, and the CPU time that it took.

    Args:
        log: The journal.
        scale: Share of the workloads to create.
        patience_s: The policy's.
        virtual: Jump from one moment to the next instead of waiting for it.
    """
    runtime, executor, recorder = Runtime(log), NoOpExecutor(), Recorder()
    units = COHORTS * QUEUES * QUOTA
    machine = MachineSpec("all", Resources(1000 * units))
    runtime.tick([ControlStarted(), PolicyProposed(policy(patience_s, scale)), MachineSeen(machine)], 1.0)
    todo = creations(scale)
    began_s, cpu_s, now_s, at = time.monotonic(), time.process_time(), 0.0, 0
    inputs: list[Input] = []
    while recorder.finished < len(todo):
        if not virtual:
            now_s = time.monotonic() - began_s
        while at < len(todo) and todo[at][0] <= now_s:
            inputs.append(JobSubmitted(todo[at][1]))
            at += 1
        inputs += executor.ended(now_s)
        if inputs or runtime.dirty:
            outcome = runtime.tick(inputs, 1.0 + now_s)
            for error in outcome.errors:
                if error is not None:
                    raise error
            recorder.note(outcome.events, now_s)
            inputs = executor.take(outcome.commands, now_s)
            continue
        moments = [executor.due[0][0]] if executor.due else []
        moments += [todo[at][0]] if at < len(todo) else []
        if virtual:
            now_s = min(moments)
        else:
            time.sleep(max(0.0, min(moments) - (time.monotonic() - began_s)))
    return recorder.last_s - todo[0][0], recorder, time.process_time() - cpu_s


def emit(name: str, value: float, unit: str, baseline: float | None, more_is_better: bool = False) -> None:
    """Print one result; a ratio above 1 is better than the baseline."""
    ratio = (value / baseline if more_is_better else baseline / value) if baseline and value else None
    row = {"name": name, "value": round(value, 2), "unit": unit, "baseline": baseline}
    print(json.dumps({**row, "ratio": round(ratio, 2) if ratio else None}), flush=True)


def main() -> None:
    """Run it and print Kueue's own figures beside ours."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--virtual", action="store_true", help="in virtual time, without a disk")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the workloads (default: all)")
    parser.add_argument("--patience", type=float, default=3.0, help="the policy's patience, seconds")
    options = parser.parse_args()
    collect_rarely()  # as the control plane does
    folder = tempfile.TemporaryDirectory(prefix="tide-kueue-")
    log = MemoryLog(keep=False) if options.virtual else Journal(Path(folder.name) / "journal.db")
    wall_s, recorder, cpu_s = run(log, options.scale, options.patience, options.virtual)
    usage = 100 * recorder.used / (COHORTS * QUEUES * QUOTA * wall_s)
    prefix = "kueue_virtual" if options.virtual else "kueue"
    emit(f"{prefix}_wall", wall_s, "s", KUEUE["wall_s"])
    emit(f"{prefix}_usage", usage, "%", KUEUE["usage"], more_is_better=True)
    for name, value in sorted(recorder.waits().items()):
        emit(f"{prefix}_admission_{name}", value, "s", KUEUE[name])
    emit(f"{prefix}_evictions", recorder.evictions, "", None)
    emit(f"{prefix}_cpu_time", cpu_s, "s", None)
    folder.cleanup()


if __name__ == "__main__":
    main()
