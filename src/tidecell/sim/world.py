"""A cell in virtual time: the production runtime over simulated machines and tasks. Pure.

``World`` plays everything that is not the cell: users who submit and stop, agents that start and end
processes, machines that come and go, load on services. What the cell decides is decided by the runtime that
runs live: ``step``, ``reconcile``, ``schedule``, ``verify_plan`` and the autoscaler, unchanged. A world
depends on its workload and seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from tidecell.capacity.autoscale import Autoscaler
from tidecell.cell.log import EventLog, MemoryLog
from tidecell.cell.reconcile import GANG_REPAIR_S
from tidecell.cell.runtime import Outcome, Runtime
from tidecell.cell.state import CellState, Job, Task
from tidecell.sim.clock import Clock
from tidecell.sim.progress import Progress
from tidecell.sim.workload import Behaviour, LoadPoint, MachineChange, SimJob, Workload
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import JobSpec, TaskState
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    Command,
    ControlStarted,
    DesiredProposed,
    Event,
    Input,
    JobAccepted,
    JobFinished,
    JobStopRequested,
    JobSubmitted,
    MachineLost,
    MachineSeen,
    ReplicaDrained,
    StartTask,
    StopTask,
    TaskDown,
    TaskEnded,
    TaskNoticed,
    TaskProbed,
    TaskRef,
    TaskStarted,
    TaskUp,
    Tick,
)

FIRST_PORT = 20_000
SCALE_EVERY_S = 5.0
# The cell reads a moment of 0 as "never", so the time of a trace is moved away from it.
ORIGIN_S = 1_000_000.0
RETRY_S = 0.5  # how soon the cell looks again when a pass left something to do

Happening = Callable[[], Input | None]
Observer = Callable[[float, Outcome, CellState], None]


@dataclass
class _Process:
    """A simulated process on a machine."""

    ref: TaskRef
    machine: str
    spec: JobSpec
    up: bool = False
    deadline_s: float = math.inf


@dataclass
class _Service:
    """A service whose size follows its load."""

    scaler: Autoscaler
    ongoing: float = 0.0


@dataclass(frozen=True)
class Refusal:
    """A job that the cell did not take."""

    name: str
    at_s: float
    error: TidecellError


@dataclass
class World:
    """Everything around a runtime.

    Attributes:
        start_s: When it begins; None: with the first submission, in the workload's own time.
        observers: Called after every tick with its time, its outcome and the state.
        refusals: Jobs that admission refused, with the error a user would have seen.
        progress: By uid, of every job that ever started or will.
    """

    workload: Workload
    seed: int = 0
    behaviour: Behaviour = field(default_factory=Behaviour)
    log: EventLog = field(default_factory=lambda: MemoryLog(keep=False))
    debug: bool = False
    start_s: float | None = None
    observers: list[Observer] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    progress: dict[str, Progress] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.offset_s = ORIGIN_S if self.start_s is None else 0.0
        start_s = self.workload.start_s + self.offset_s if self.start_s is None else self.start_s
        self.clock: Clock[Happening] = Clock(start_s)
        self.runtime = Runtime(self.log, self.seed, self.debug)
        self.processes: dict[TaskRef, _Process] = {}
        self.attached: dict[str, MachineSpec] = {}
        self.num_ticks = 0
        self._submitted: dict[str, SimJob] = {}
        self._services: dict[str, _Service] = {}
        self._drained: list[TaskRef] = []
        self._tick_due = False
        self._wake_s = math.inf
        self._beat_s = start_s + self.behaviour.heartbeat_s
        self._port = FIRST_PORT

    @property
    def state(self) -> CellState:
        """The cell as it is."""
        return self.runtime.state

    # -------------------------------------------------------------------------------- running

    def open(self) -> None:
        """Attach the machines and schedule all that the workload says will happen."""
        for machine in self.workload.machines:
            self.attached[machine.name] = machine
        self._tick([ControlStarted(), *(MachineSeen(m) for m in self.workload.machines)])
        self._expect_all()

    def resume(self, jobs: Mapping[str, SimJob]) -> None:
        """Go on from the state that the log leads to: what runs there goes on running.

        Args:
            jobs: How each live job goes on, by uid.
        """
        self.attached.update({n: m.spec for n, m in self.state.machines.items() if m.up})
        for job in self.state.live_jobs():
            progress = Progress(jobs[job.uid], job.uid, since_s=self.clock.now_s)
            progress.first_start_s = job.started_s or None
            self.progress[job.uid] = progress
            for task in job.active_tasks():
                self._adopt(job, task, progress)
            if job.spec.max_duration_s and job.started_s:
                self._tick_at(job.started_s + job.spec.max_duration_s)
            for task in job.open_tasks():
                if task.not_before_s > self.clock.now_s:
                    self._tick_at(task.not_before_s)
            self._expect_end(progress)
        self._expect_all()
        self._tick([Tick()])

    def _adopt(self, job: Job, task: Task, progress: Progress) -> None:
        """Take over a task that holds a machine already."""
        ref = self.state.ref(job, task)
        starting = task.state is TaskState.STARTING
        self.processes[ref] = _Process(ref, task.machine, job.spec, up=not starting)
        if starting or not task.started_s:
            self.clock.at(self.clock.now_s + self.behaviour.starts_after_s, lambda: self._up(ref))
        else:
            progress.running[ref] = self.clock.now_s
            self._expect_item(progress, ref)
        if task.notice is not None and task.notice.stopping:
            leaves_s = min(task.notice.deadline_s, self.clock.now_s + self.behaviour.leaves_after_s)
            self.clock.at(leaves_s, lambda: self._end(ref, -15))
        elif task.notice is not None:
            self._drained.append(ref)

    def _expect_all(self) -> None:
        self.expect(self.workload.jobs)
        for change in self.workload.changes:
            self.clock.at(change.at_s + self.offset_s, self._changing(change))
        for point in self.workload.load:
            self.clock.at(point.at_s + self.offset_s, self._loading(point))

    def expect(self, jobs: Iterable[SimJob]) -> None:
        """Let jobs be submitted when they are."""
        for job in jobs:
            self.clock.at(job.submit_s + self.offset_s, self._submitting(job))

    def run(self, until_s: float = math.inf) -> None:
        """Let time pass until nothing more happens by itself, or until a moment of the workload's time."""
        until_s += self.offset_s
        while (next_s := self._next_s()) is not None and next_s <= until_s:
            batch_s = self.behaviour.batch_s
            now_s = min(math.ceil(next_s / batch_s) * batch_s, until_s) if batch_s else next_s
            self._pass(max(now_s, self.clock.now_s))
        if math.isfinite(until_s):
            self._pass(max(until_s, self.clock.now_s))

    def _next_s(self) -> float | None:
        """Return when something happens next; nothing does in a cell where all that lives just waits."""
        times = [t for t in (self.clock.next_s(), self._wake_s) if t is not None and math.isfinite(t)]
        if self._moves():
            times.append(self._beat_s)
        return min(times, default=None)

    def _moves(self) -> bool:
        """Whether time alone may change anything: something waits, or a job's rules look at the clock.

        Ends, limits and back-offs have timers of their own; a cell in which all runs need not tick.
        """
        index = self.state.index
        return bool(len(self.clock)) and bool(index.candidates or index.timed or self._live_policy())

    def _live_policy(self) -> bool:
        return self.state.policy is not None and bool(self.state.live_uids)

    def _pass(self, now_s: float) -> None:
        inputs = [told for _, happen in self.clock.take_until(now_s) if (told := happen()) is not None]
        inputs += [ReplicaDrained(ref) for ref in self._drained]
        self._drained.clear()
        if now_s >= self._beat_s or self._tick_due:
            self._beat_s, self._tick_due = now_s + self.behaviour.heartbeat_s, False
            inputs.append(Tick())
        if inputs or self.runtime.dirty:
            self._tick(inputs)
        else:  # nobody told the cell anything, and it has nothing left to do
            self._wake_s = math.inf

    def _tick(self, inputs: list[Input]) -> None:
        now_s = self.clock.now_s
        self._wake_s = math.inf
        outcome = self.runtime.tick(inputs, now_s)
        self.num_ticks += 1
        for message, error in zip(inputs, outcome.errors, strict=True):
            if error is not None and isinstance(message, JobSubmitted):
                self.refusals.append(Refusal(message.spec.name, now_s - self.offset_s, error))
        for event in outcome.events:
            follow = _FOLLOW.get(type(event))
            if follow is not None:
                follow(self, event)
        for command in outcome.commands:
            self._carry_out(command)
        if self.runtime.dirty and outcome.events:
            self._wake_s = now_s + max(RETRY_S, self.behaviour.batch_s)
        for observe in self.observers:
            observe(now_s - self.offset_s, outcome, self.state)

    def _tick_at(self, at_s: float) -> None:
        """Let the cell look at everything at a moment: a time limit, a deadline, the end of a back-off."""

        def due() -> None:
            self._tick_due = True

        self.clock.at(at_s, due)

    # --------------------------------------------------------------------------------- events

    def _accepted(self, event: JobAccepted) -> None:
        job = self._submitted.pop(event.spec.name, None) or SimJob(event.spec, self.clock.now_s, None)
        self.progress[event.uid] = Progress(job, event.uid, job.done_s, self.clock.now_s)
        if job.stop_s is not None:
            self.clock.at(job.stop_s + self.offset_s, lambda: self._stop_request(event.uid))
        if event.spec.scaling is not None:
            scaler = Autoscaler(event.spec.scaling, event.spec.replicas.min, event.spec.replicas.max)
            service = self._services.setdefault(event.spec.name, _Service(scaler))
            service.scaler = scaler
            self.clock.at(self.clock.now_s + SCALE_EVERY_S, lambda: self._scale(event.uid))

    def _started(self, event: TaskStarted) -> None:
        progress = self.progress.get(event.ref.uid)
        if progress is None or event.ref not in self.processes:
            return
        limit_s = progress.job.spec.max_duration_s
        if limit_s and progress.first_start_s is None:
            self._tick_at(self.clock.now_s + limit_s)
        progress.start(event.ref, self.clock.now_s)
        self._expect_item(progress, event.ref)
        self._expect_end(progress)

    def _ended(self, event: TaskEnded) -> None:
        progress = self.progress.get(event.ref.uid)
        if progress is not None:
            progress.stop(event.ref, self.clock.now_s)
            self._expect_end(progress)
        if event.then is TaskState.PENDING:
            again_s = max(event.not_before_s, self.clock.now_s)
            if event.not_before_s > self.clock.now_s:
                self._tick_at(again_s)
            if progress is not None and progress.job.spec.replicas.min > 1:
                self._tick_at(again_s + GANG_REPAIR_S)

    def _noticed(self, event: TaskNoticed) -> None:
        progress = self.progress.get(event.ref.uid)
        if progress is not None and progress.job.spec.is_service:
            self._drained.append(event.ref)  # no requests are simulated: nothing is in flight
            self._wake_s = min(self._wake_s, self.clock.now_s + RETRY_S)

    def _finished(self, event: JobFinished) -> None:
        self.progress[event.uid].advance(self.clock.now_s)
        self._services.pop(self.progress[event.uid].job.spec.name, None)

    # ------------------------------------------------------------------------------- happenings

    def _submitting(self, job: SimJob) -> Happening:
        def submit() -> Input:
            self._submitted[job.spec.name] = job
            return JobSubmitted(job.spec)

        return submit

    def _stop_request(self, uid: str) -> Input | None:
        job = self.state.jobs.get(uid)
        return JobStopRequested(uid) if job is not None and job.live else None

    def _changing(self, change: MachineChange) -> Happening:
        def change_now() -> Input | None:
            name = change.machine.name
            if change.up:
                self.attached[name] = change.machine
                return MachineSeen(change.machine, self._running_on(name))
            self.attached.pop(name, None)
            for ref in self._running_on(name):
                del self.processes[ref]
            return MachineLost(name)

        return change_now

    def _running_on(self, machine: str) -> tuple[TaskRef, ...]:
        return tuple(sorted(ref for ref, p in self.processes.items() if p.machine == machine))

    def _loading(self, point: LoadPoint) -> Happening:
        def load() -> None:
            service = self._services.get(point.service)
            if service is not None:
                service.ongoing = point.ongoing

        return load

    def _scale(self, uid: str) -> Input | None:
        """Ask the autoscaler of a service, as the live cell does every few seconds."""
        job = self.state.jobs.get(uid)
        service = self._services.get(job.spec.name) if job is not None else None
        if job is None or not job.live or service is None or not self._has_load_ahead():
            return None
        now_s = self.clock.now_s
        self.clock.at(now_s + SCALE_EVERY_S, lambda: self._scale(uid))
        ready = sum(1 for t in job.staying_tasks() if t.ready)
        wanted = service.scaler.observe(now_s, service.ongoing, ready, job.desired)
        return DesiredProposed(uid, wanted.desired, wanted.reason) if wanted.desired != job.desired else None

    def _has_load_ahead(self) -> bool:
        last_s = self.workload.load[-1].at_s if self.workload.load else -math.inf
        return self.clock.now_s <= last_s + self.offset_s + 3600.0

    # --------------------------------------------------------------------------------- agents

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, StartTask):
            self._start(command)
        elif isinstance(command, StopTask):
            self._stop(command)

    def _start(self, command: StartTask) -> None:
        if command.ref in self.processes or command.machine not in self.attached:
            return
        self.processes[command.ref] = _Process(command.ref, command.machine, command.spec)
        at_s = self.clock.now_s + self.behaviour.starts_after_s
        self.clock.at(at_s, lambda: self._up(command.ref))

    def _up(self, ref: TaskRef) -> Input | None:
        process = self.processes.get(ref)
        if process is None:
            return None
        process.up, port = True, 0
        if process.spec.is_service:
            self._port += 1
            port = self._port
            self.clock.at(self.clock.now_s, lambda: self._ready(ref))
        return TaskUp(ref, process.machine, pid=ref.epoch, port=port)

    def _ready(self, ref: TaskRef) -> Input | None:
        return TaskProbed(ref, ready=True) if ref in self.processes else None

    def _stop(self, command: StopTask) -> None:
        process = self.processes.get(command.ref)
        if process is None:
            return
        leaves_s = self.clock.now_s + min(command.grace_s, self.behaviour.leaves_after_s)
        if leaves_s < process.deadline_s:
            process.deadline_s = leaves_s
            self.clock.at(leaves_s, lambda: self._end(command.ref, -15))

    def _end(self, ref: TaskRef, exit_code: int) -> Input | None:
        process = self.processes.pop(ref, None)
        return TaskDown(ref, process.machine, exit_code) if process is not None else None

    def _expect_end(self, progress: Progress) -> None:
        left_s = progress.left_s()
        if left_s is not None:
            version = progress.version
            self.clock.at(self.clock.now_s + left_s, lambda: self._work_done(progress, version))

    def _expect_item(self, progress: Progress, ref: TaskRef) -> None:
        """An item of an array ends by itself, whatever the others do."""
        job = progress.job
        if job.spec.array is not None and job.work_s is not None:
            self.clock.at(self.clock.now_s + job.work_s, lambda: self._end(ref, job.exit_code))

    def _work_done(self, progress: Progress, version: int) -> Input | None:
        """The work of a job is done: one replica after another ends by itself."""
        if progress.version != version:
            return None
        code = progress.job.exit_code
        refs = sorted(ref for ref in progress.running if ref in self.processes)
        for ref in refs[1:]:
            self.clock.at(self.clock.now_s, lambda ref=ref: self._end(ref, code))  # type: ignore[misc]
        return self._end(refs[0], code) if refs else None


_FOLLOW: dict[type[Event], Callable[[World, Event], None]] = {
    JobAccepted: World._accepted,  # type: ignore[dict-item]
    TaskStarted: World._started,  # type: ignore[dict-item]
    TaskEnded: World._ended,  # type: ignore[dict-item]
    TaskNoticed: World._noticed,  # type: ignore[dict-item]
    JobFinished: World._finished,  # type: ignore[dict-item]
}

__all__ = ["Refusal", "World"]
