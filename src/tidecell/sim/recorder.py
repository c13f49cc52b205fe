"""Watches a world and keeps what its figures are made from. Pure.

Everything is derived from journaled events, in time proportional to their number, never from looking at the
whole state: a day of a large cell has half a million of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidecell.cell.runtime import Outcome
from tidecell.cell.state import CellState
from tidecell.structs.job import Band, Cause, JobSpec, TaskState
from tidecell.structs.messages import (
    Event,
    JobAccepted,
    JobFinished,
    JobReprioritized,
    MachineGone,
    MachineJoined,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskRef,
)
from tidecell.structs.resources import Resources


@dataclass
class JobRecord:
    """What happened to one job.

    Attributes:
        placed_s: When its whole gang had been given machines for the first time.
        num_evicted: How often one of its tasks gave way to a higher band.
        num_lost: How often a machine went away under one of its tasks.
    """

    uid: str
    spec: JobSpec
    submit_s: float
    placed_s: float | None = None
    finished_s: float | None = None
    outcome: TaskState | None = None
    num_evicted: int = 0
    num_lost: int = 0
    active: int = 0

    @property
    def band(self) -> Band:
        """Its band."""
        return self.spec.priority.band


@dataclass
class Series:
    """What was used over time, as a staircase: (moment, used, capacity), and the exact integrals."""

    points: list[tuple[float, Resources, Resources]] = field(default_factory=list)
    used: Resources = field(default_factory=Resources)
    capacity: Resources = field(default_factory=Resources)
    used_area: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    capacity_area: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    last_s: float | None = None

    def advance(self, now_s: float) -> None:
        """Count what was used until now."""
        if self.last_s is not None and now_s > self.last_s:
            took_s = now_s - self.last_s
            for area, value in ((self.used_area, self.used), (self.capacity_area, self.capacity)):
                for i, amount in enumerate(_vector(value)):
                    area[i] += amount * took_s
        self.last_s = now_s

    def note(self, now_s: float) -> None:
        """Keep a point of the staircase."""
        if self.points and self.points[-1][0] == now_s:
            self.points.pop()
        self.points.append((now_s, self.used, self.capacity))


def _vector(r: Resources) -> tuple[int, int, int]:
    return (r.cpu_millis, r.memory_bytes, r.gpu_millis)


@dataclass(frozen=True)
class Eviction:
    """A task that was told to leave for somebody."""

    at_s: float
    uid: str
    index: int
    by: str
    machine: str
    new_size: int


@dataclass
class Recorder:
    """An observer of a world."""

    jobs: dict[str, JobRecord] = field(default_factory=dict)
    series: Series = field(default_factory=Series)
    evictions: list[Eviction] = field(default_factory=list)
    starts: list[tuple[float, str, int, str]] = field(default_factory=list)  # when, uid, index, machine
    num_events: int = 0
    _granted: dict[TaskRef, tuple[Resources, str]] = field(default_factory=dict)
    _machines: dict[str, Resources] = field(default_factory=dict)

    def __call__(self, now_s: float, outcome: Outcome, state: CellState) -> None:
        """Take in one tick."""
        if not outcome.events:
            return
        self.series.advance(now_s)
        before = (self.series.used, self.series.capacity)
        for event in outcome.events:
            self._take(event, now_s, state)
        self.num_events += len(outcome.events)
        if (self.series.used, self.series.capacity) != before or not self.series.points:
            self.series.note(now_s)

    def close(self, until_s: float | None) -> None:
        """End the record: at a given moment, or with the last thing that happened."""
        if until_s is not None:
            self.series.advance(until_s)

    @property
    def end_s(self) -> float:
        """Until when the record goes."""
        return self.series.last_s or 0.0

    def begin(self, state: CellState, now_s: float) -> None:
        """Take in what runs already when the simulation begins."""
        self.series.last_s = now_s
        for machine in state.machines.values():
            if machine.up:
                self._joined(machine.spec.name, machine.spec.capacity)
        for job in state.live_jobs():
            record = JobRecord(job.uid, job.spec, job.submitted_s)
            self.jobs[job.uid] = record
            for task in job.active_tasks():
                record.active += 1
                self._grant(state.ref(job, task), task.resources, task.machine)
            if record.active >= job.spec.replicas.min:
                record.placed_s = job.started_s or now_s
        self.series.note(now_s)

    def _take(self, event: Event, now_s: float, state: CellState) -> None:
        if isinstance(event, TaskPlaced):
            self._placed(event, now_s)
        elif isinstance(event, TaskEnded):
            self._ended(event)
        elif isinstance(event, JobAccepted):
            self.jobs[event.uid] = JobRecord(event.uid, event.spec, now_s)
        elif isinstance(event, JobFinished):
            record = self.jobs[event.uid]
            record.finished_s, record.outcome = now_s, event.state
        elif isinstance(event, TaskNoticed) and event.cause is Cause.PREEMPT:
            self.jobs[event.ref.uid].num_evicted += 1
            machine = self._granted[event.ref][1]
            self.evictions.append(
                Eviction(now_s, event.ref.uid, event.ref.index, event.by, machine, event.new_size)
            )
        elif isinstance(event, MachineJoined):
            self._joined(event.spec.name, event.spec.capacity)
        elif isinstance(event, MachineGone):
            self._joined(event.name, Resources())
        elif isinstance(event, JobReprioritized):
            record = self.jobs[event.uid]
            record.spec = state.jobs[event.uid].spec

    def _placed(self, event: TaskPlaced, now_s: float) -> None:
        record = self.jobs[event.ref.uid]
        record.active += 1
        self._grant(event.ref, event.resources, event.machine)
        self.starts.append((now_s, event.ref.uid, event.ref.index, event.machine))
        if record.placed_s is None and record.active >= max(1, record.spec.replicas.min):
            record.placed_s = now_s

    def _grant(self, ref: TaskRef, resources: Resources, machine: str) -> None:
        self._granted[ref] = (resources, machine)
        self.series.used = self.series.used + resources

    def _ended(self, event: TaskEnded) -> None:
        resources, _ = self._granted.pop(event.ref, (Resources(), ""))
        self.series.used = self.series.used - resources
        record = self.jobs[event.ref.uid]
        record.active -= 1
        record.num_lost += event.cause is Cause.LOST

    def _joined(self, name: str, capacity: Resources) -> None:
        self.series.capacity = self.series.capacity - self._machines.get(name, Resources()) + capacity
        self._machines[name] = capacity
