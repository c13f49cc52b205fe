"""A cell without processes: the real runtime over a scripted engine, for stories and random walks.

The engine does what agents do: it keeps what was started, forgets commands to machines that are away,
and says only what the test tells it to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidecell.cell.invariants import check_state
from tidecell.cell.journal import Journal, Record
from tidecell.cell.runtime import Outcome, Runtime
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState, Job, Task, apply
from tidecell.scheduler.snapshot import Snapshot
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import Band, JobSpec, Kind, Preemption, Priority, Replicas
from tidecell.structs.lifecycle import ResizeTask
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.messages import (
    AnyEvent,
    Command,
    Event,
    Input,
    JobChanged,
    JobStopRequested,
    JobSubmitted,
    MachineLost,
    MachineSeen,
    StartTask,
    StopTask,
    TaskDown,
    TaskRef,
    TaskUp,
    Tick,
)
from tidecell.structs.resources import Resources

GIB = 1 << 30


class MemoryJournal:
    """The part of a journal that a runtime uses, in memory, through the same encoding."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, bytes]] = []

    @property
    def last_seq(self) -> int:
        return len(self.rows)

    def append(self, events: Sequence[Event], at_s: float) -> None:
        self.rows += [(at_s, msgspec.json.encode(e)) for e in events]

    def replay(self, use_snapshot: bool = True) -> CellState:
        state = CellState()
        for record in self.records():
            apply(state, record.event, record.at_s)
        return state

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        for seq, (at_s, body) in enumerate(self.rows, 1):
            if seq > after:
                yield Record(seq, at_s, msgspec.json.decode(body, type=AnyEvent))

    def snapshot_due(self) -> bool:
        return False

    def write_snapshot(self, state: CellState) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def machine_spec(
    name: str,
    cpu: float = 4,
    memory_gib: int = 16,
    gpus: Sequence[str] = (),
    holds: Sequence[str] = (),
    **attributes: str,
) -> MachineSpec:
    accelerators = tuple(Accelerator(i, kind) for i, kind in enumerate(gpus))
    capacity = Resources(int(cpu * 1000), memory_gib * GIB, len(gpus) * 1000)
    return MachineSpec(name, capacity, accelerators, attributes, holds=tuple(holds))


def job_spec(
    name: str,
    cpu: float = 1,
    replicas: int | tuple[int, int] = 1,
    band: Band = Band.BATCH,
    order: int = 0,
    memory_gib: float = 0,
    gpus: float = 0,
    **rest: Any,
) -> JobSpec:
    low, high = (replicas, replicas) if isinstance(replicas, int) else replicas
    if rest.get("kind") is Kind.SERVICE:
        rest.setdefault("preemption", Preemption.NEVER)
    return JobSpec(
        name,
        run="true",
        resources=Resources(int(cpu * 1000), int(memory_gib * GIB), round(gpus * 1000)),
        replicas=Replicas(low, high),
        priority=Priority(band, order),
        **rest,
    )


def service_spec(name: str, **rest: Any) -> JobSpec:
    return job_spec(name, **{"band": Band.PRODUCTION, "kind": Kind.SERVICE, **rest})


@dataclass
class Process:
    """What an agent knows of one started task."""

    command: StartTask
    up: bool = False
    stop_by_s: float | None = None
    resources: Resources | None = None


@dataclass
class Engine:
    """The agents of all machines: what they run, which of them are reachable."""

    processes: dict[TaskRef, Process] = field(default_factory=dict)
    attached: dict[str, MachineSpec] = field(default_factory=dict)

    def take(self, commands: Sequence[Command], now_s: float) -> None:
        for command in commands:
            if getattr(command, "machine", "") not in self.attached:
                continue  # lost on the way; reissued when the machine is seen again
            if isinstance(command, StartTask):
                process = self.processes.setdefault(command.ref, Process(command))
                if process.command is command:
                    process.resources = command.resources
            elif isinstance(command, ResizeTask) and command.ref in self.processes:
                self.processes[command.ref].resources = command.resources
            elif isinstance(command, StopTask) and command.ref in self.processes:
                process = self.processes[command.ref]
                deadline_s = now_s + command.grace_s
                process.stop_by_s = min(deadline_s, process.stop_by_s or deadline_s)

    def running_on(self, machine: str) -> tuple[TaskRef, ...]:
        return tuple(sorted(r for r, p in self.processes.items() if p.command.machine == machine))


class Cell:
    """Builder verbs around a runtime.

    Attributes:
        events: Everything that was decided, with its time.
        debug: Check every invariant after every tick.
    """

    def __init__(self, journal: Journal | MemoryJournal | None = None, seed: int = 0) -> None:
        self.journal = journal or MemoryJournal()
        self.seed = seed
        self.now_s = 1_000.0
        self.last_was_tick = False
        self.engine = Engine()
        self.events: list[tuple[float, Event]] = []
        self.commands: list[Command] = []
        self.runtime = Runtime(self.journal, seed, debug=True)  # type: ignore[arg-type]

    @property
    def state(self) -> CellState:
        return self.runtime.state

    def send(self, *inputs: Input) -> Outcome:
        """One tick; commands reach the engine, answers come back."""
        outcome = self.runtime.tick(inputs, self.now_s)
        self.last_was_tick = any(isinstance(m, Tick) for m in inputs)
        self.events += [(self.now_s, e) for e in outcome.events]
        self.commands += outcome.commands
        self.engine.take(outcome.commands, self.now_s)
        check_state(self.state)
        return outcome

    def ask(self, message: Input) -> None:
        """One tick of one request; its refusal is raised."""
        error = self.send(message).errors[0]
        if error is not None:
            raise error

    # ---------------------------------------------------------------------------------- verbs

    def machine(
        self, name: str, cpu: float = 4, memory_gib: int = 16, gpus: Sequence[str] = (), **more: Any
    ) -> Cell:
        spec = machine_spec(name, cpu, memory_gib, gpus, **more)
        self.engine.attached[name] = spec
        self.send(MachineSeen(spec, self.engine.running_on(name)))
        return self

    def lose(self, name: str, processes_die: bool = True) -> None:
        self.engine.attached.pop(name, None)
        if processes_die:
            for ref in self.engine.running_on(name):
                del self.engine.processes[ref]
        self.send(MachineLost(name))

    def submit(self, spec: JobSpec) -> Job:
        self.ask(JobSubmitted(spec))
        return self.job(spec.name)

    def stop(self, name: str, immediately: bool = False) -> None:
        self.ask(JobStopRequested(name, immediately))

    def scale(self, name: str, low: int, high: int) -> None:
        self.ask(JobChanged(name, replicas=Replicas(low, high)))

    def prio(self, name: str, priority: Priority) -> None:
        self.ask(JobChanged(name, priority=priority))

    def up(self, name: str = "") -> Cell:
        """Everything that was started (of this job) runs."""
        for ref, process in sorted(self.engine.processes.items()):
            if not process.up and (not name or process.command.spec.name == name):
                process.up = True
                self.send(TaskUp(ref, process.command.machine, pid=ref.epoch))
        return self

    def down(self, ref: TaskRef, exit_code: int = 0, **rest: Any) -> None:
        """A process ends."""
        process = self.engine.processes.pop(ref)
        self.send(TaskDown(ref, process.command.machine, exit_code, **rest))

    def leave(self, name: str = "") -> Cell:
        """Everything that was told to stop (of this job) ends as it was told."""
        for ref, process in sorted(self.engine.processes.items()):
            if process.stop_by_s is not None and (not name or process.command.spec.name == name):
                self.down(ref)
        return self

    def after(self, seconds: float) -> Cell:
        self.now_s += seconds
        self.send(Tick())
        return self

    def restart(self) -> None:
        """A new control plane takes over from the journal."""
        self.runtime = Runtime(self.journal, self.seed, debug=True)  # type: ignore[arg-type]

    # -------------------------------------------------------------------------------- reading

    def job(self, name: str) -> Job:
        job = self.state.find(name)
        assert job is not None, name
        return job

    def task(self, name: str, index: int = 0) -> Task:
        return self.job(name).tasks[index]

    def ref(self, name: str, index: int = 0) -> TaskRef:
        job = self.job(name)
        return self.state.ref(job, job.tasks[index])

    def staying(self, name: str) -> int:
        return len(self.job(name).staying_tasks())

    def snapshot(self) -> Snapshot:
        return take_snapshot(self.state, self.now_s)

    def story(self, kind: type[Event]) -> list[Any]:
        """All events of a type, in order."""
        return [e for _, e in self.events if isinstance(e, kind)]


def refusal(cell: Cell, message: Input) -> TidecellError:
    """Send a request that must be refused; return why."""
    error = cell.send(message).errors[0]
    assert error is not None, f"{message} was granted"
    return error
