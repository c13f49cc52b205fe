"""The state of a cell, and ``apply``: what an event changes.

``apply`` decides nothing: whatever is not in the event is not its business. Replaying the journal
through it rebuilds the state, also after the rules in ``step`` have changed. The records are mutable
and belong to this module; everything else reads them.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec

from tidecell.structs.errors import InvariantError
from tidecell.structs.job import ACTIVE, TERMINAL, TRANSITIONS, Cause, JobSpec, TaskState
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    CellOpened,
    Claim,
    ClaimDropped,
    Claimed,
    Event,
    JobAccepted,
    JobDesired,
    JobFinished,
    JobReprioritized,
    JobRescaled,
    JobStopping,
    MachineGone,
    MachineJoined,
    PolicySet,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskReadiness,
    TaskRef,
    TaskStarted,
    TaskStopping,
)
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy

MAX_FINISHED = 2000  # finished runs kept in memory and in snapshots; the journal keeps all
STORY_LENGTH = 12
LOOKAHEAD = 256  # items of an array that wait openly; the others wait behind them, unseen


@dataclass
class Notice:
    """Why a task was told to leave, for whom and until when."""

    cause: Cause
    deadline_s: float
    given_s: float
    new_size: int = 0
    by: str = ""
    stopping: bool = False  # the process itself was asked to end (a draining replica: not yet)


@dataclass
class Task:
    """One replica of a job and its present start."""

    index: int
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    epoch: int = 0
    machine: str = ""
    accelerators: tuple[int, ...] = ()
    resources: Resources = field(default_factory=Resources)  # granted at its placement
    shape: int = 0
    envelope: str = ""
    pid: int = 0
    port: int = 0
    ready: bool = False
    placed_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    notice: Notice | None = None
    exit_code: int | None = None
    message: str = ""
    failures: int = 0
    not_before_s: float = 0.0
    last_cause: Cause | None = None

    @property
    def active(self) -> bool:
        """Whether it holds resources on a machine."""
        return self.state in ACTIVE


@dataclass
class Job:
    """One run of a job."""

    uid: str
    spec: JobSpec
    submitted_s: float
    desired: int
    tasks: list[Task] = field(default_factory=list)
    started_s: float = 0.0
    finished_s: float = 0.0
    stopping: JobStopping | None = None
    outcome: TaskState | None = None
    exit_code: int = 0
    message: str = ""
    desired_why: str = ""
    story: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Index the tasks: those without an end, and how the others ended."""
        self.open = {t.index: None for t in self.tasks if t.state not in TERMINAL}
        self.ended = Counter(t.state for t in self.tasks if t.state in TERMINAL)
        self.num_active = sum(1 for t in self.tasks if t.active)

    @property
    def state(self) -> TaskState:
        """The job's state, read off its tasks."""
        if self.outcome is not None:
            return self.outcome
        states = {t.state for t in self.open_tasks()}
        for state in (TaskState.RUNNING, TaskState.RESIZING, TaskState.STARTING):
            if state in states:
                return state
        return TaskState.PENDING

    @property
    def live(self) -> bool:
        """Whether it has no outcome yet."""
        return self.outcome is None

    def open_tasks(self) -> list[Task]:
        """Return the tasks that have not ended for good, in order; of a large array these are few."""
        return [self.tasks[i] for i in self.open]

    def active_tasks(self) -> list[Task]:
        """Return the tasks that hold resources."""
        return [t for t in self.open_tasks() if t.active]

    def staying_tasks(self) -> list[Task]:
        """Return the active tasks that were not told to leave."""
        return [t for t in self.open_tasks() if t.active and t.notice is None]

    @property
    def num_succeeded(self) -> int:
        """How many tasks have done their work."""
        return self.ended[TaskState.SUCCEEDED]


@dataclass
class Machine:
    """A machine of the cell and the last thing we have journaled from its agent."""

    spec: MachineSpec
    up: bool = True
    agent_seq: int = 0


@dataclass
class CellState:
    """Everything the cell knows. Rebuilt from the journal; changed by ``apply`` alone."""

    epoch: int = 0
    seq: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)  # name -> uid of its newest run
    counters: dict[str, int] = field(default_factory=dict)  # name -> number of its newest run
    claims: dict[tuple[str, int], Claim] = field(default_factory=dict)
    live_uids: dict[str, None] = field(default_factory=dict)  # insertion-ordered set
    finished_uids: deque[str] = field(default_factory=deque)
    policy: Policy | None = None

    def live_jobs(self) -> Iterator[Job]:
        """Yield jobs without an outcome, oldest first."""
        for uid in self.live_uids:
            yield self.jobs[uid]

    def find(self, name: str) -> Job | None:
        """Return the newest run of that name, or the run of that uid."""
        uid = self.by_name.get(name, name)
        return self.jobs.get(uid)

    def task(self, ref: TaskRef) -> Task | None:
        """Return the task if this very start of it is the present one."""
        job = self.jobs.get(ref.uid)
        if job is None or not 0 <= ref.index < len(job.tasks):
            return None
        task = job.tasks[ref.index]
        return task if task.epoch == ref.epoch else None

    def ref(self, job: Job, task: Task) -> TaskRef:
        """Return the reference of a task's present start."""
        return TaskRef(job.uid, task.index, task.epoch)


def apply(state: CellState, event: Event, at_s: float) -> None:
    """Change ``state`` by one event; deterministic, decides nothing.

    Args:
        state: Changed in place.
        event: The fact.
        at_s: When it was decided, seconds since the epoch; kept beside it in the journal.

    Raises:
        InvariantError: The event does not fit the state; the journal and the rules disagree.
    """
    _APPLY[type(event)](state, event, at_s)
    state.seq += 1


def _job(state: CellState, uid: str) -> Job:
    job = state.jobs.get(uid)
    if job is None:
        raise InvariantError(f"event about job '{uid}', which is not known")
    return job


def _task(state: CellState, ref: TaskRef) -> tuple[Job, Task]:
    job = _job(state, ref.uid)
    task = state.task(ref)
    if task is None:
        raise InvariantError(f"event about task {ref}, which is not its present start", job.story)
    return job, task


def _move(job: Job, task: Task, to: TaskState) -> None:
    if to not in TRANSITIONS[task.state]:
        raise InvariantError(f"task {job.uid}/{task.index} cannot go from {task.state} to {to}", job.story)
    job.num_active += (to in ACTIVE) - (task.state in ACTIVE)
    task.state = to
    if to in TERMINAL:
        del job.open[task.index]
        job.ended[to] += 1


def _open_items(job: Job) -> None:
    """Let the next items of an array wait openly: as many as may run at once, but few that only wait.

    So a pass over the cell costs what runs and could start, not what the array holds.
    """
    array = job.spec.array
    if array is None:
        return
    most = min(job.spec.replicas.max, job.num_active + LOOKAHEAD)
    while len(job.tasks) < array.count and len(job.open) < most:
        job.open[len(job.tasks)] = None
        job.tasks.append(Task(len(job.tasks)))
    job.desired = len(job.tasks)


def _tell(job: Job, text: str, at_s: float) -> None:
    job.story.append(f"{at_s:.3f} {text}")
    del job.story[:-STORY_LENGTH]


def _cell_opened(state: CellState, event: CellOpened, at_s: float) -> None:
    state.epoch = event.epoch


def _machine_joined(state: CellState, event: MachineJoined, at_s: float) -> None:
    known = state.machines.get(event.spec.name)
    if known is None:
        state.machines[event.spec.name] = Machine(event.spec)
    else:
        known.spec, known.up = event.spec, True


def _machine_gone(state: CellState, event: MachineGone, at_s: float) -> None:
    state.machines[event.name].up = False


def _policy_set(state: CellState, event: PolicySet, at_s: float) -> None:
    state.policy = event.policy


def _job_accepted(state: CellState, event: JobAccepted, at_s: float) -> None:
    spec = event.spec
    desired = spec.replicas.min if spec.scaling is not None else spec.replicas.max
    count = 0 if spec.array is not None else spec.replicas.max
    job = Job(event.uid, spec, at_s, desired, [Task(i) for i in range(count)])
    _open_items(job)
    state.jobs[event.uid] = job
    state.by_name[spec.name] = event.uid
    state.counters[spec.name] = state.counters.get(spec.name, 0) + 1
    state.live_uids[event.uid] = None
    _tell(job, "accepted", at_s)


def _job_rescaled(state: CellState, event: JobRescaled, at_s: float) -> None:
    job = _job(state, event.uid)
    job.spec = msgspec.structs.replace(job.spec, replicas=event.replicas)
    if job.spec.array is not None:
        _open_items(job)
        _tell(job, f"parallel {event.replicas.max}", at_s)
        return
    for index in range(len(job.tasks), event.replicas.max):
        job.open[index] = None
        job.tasks.append(Task(index))
    elastic = job.spec.scaling is None
    wanted = event.replicas.max if elastic else job.desired
    job.desired = max(event.replicas.min, min(event.replicas.max, wanted))
    _trim(job)
    _tell(job, f"replicas {event.replicas}", at_s)


def _trim(job: Job) -> None:
    """Forget tasks above the maximum, from the end, once they hold nothing."""
    if job.spec.array is not None:
        return
    while len(job.tasks) > job.spec.replicas.max and not job.tasks[-1].active:
        task = job.tasks.pop()
        if task.index in job.open:
            del job.open[task.index]
        else:
            job.ended[task.state] -= 1


def _job_reprioritized(state: CellState, event: JobReprioritized, at_s: float) -> None:
    job = _job(state, event.uid)
    job.spec = msgspec.structs.replace(job.spec, priority=event.priority)
    _tell(job, f"priority {event.priority}", at_s)


def _job_desired(state: CellState, event: JobDesired, at_s: float) -> None:
    job = _job(state, event.uid)
    job.desired, job.desired_why = event.desired, event.why
    _tell(job, f"desired {event.desired}", at_s)


def _job_stopping(state: CellState, event: JobStopping, at_s: float) -> None:
    job = _job(state, event.uid)
    job.stopping = event
    _tell(job, f"stopping: {event.cause}", at_s)


def _job_finished(state: CellState, event: JobFinished, at_s: float) -> None:
    job = _job(state, event.uid)
    if job.outcome is not None:
        raise InvariantError(f"job '{job.uid}' finishes twice", job.story)
    for task in job.open_tasks():
        if task.state is TaskState.PENDING:
            _move(job, task, event.state)
    job.outcome, job.exit_code, job.message = event.state, event.exit_code, event.message
    job.finished_s = at_s
    _tell(job, f"finished {event.state}", at_s)
    del state.live_uids[event.uid]
    state.finished_uids.append(event.uid)
    while len(state.finished_uids) > MAX_FINISHED:
        _forget(state, state.finished_uids.popleft())


def _forget(state: CellState, uid: str) -> None:
    job = state.jobs.pop(uid)
    if state.by_name.get(job.spec.name) == uid:
        del state.by_name[job.spec.name]


def _task_placed(state: CellState, event: TaskPlaced, at_s: float) -> None:
    job = _job(state, event.ref.uid)
    task = job.tasks[event.ref.index]
    _move(job, task, TaskState.STARTING)
    job.tasks[event.ref.index] = Task(
        index=task.index,
        state=task.state,
        attempt=event.attempt,
        epoch=event.ref.epoch,
        machine=event.machine,
        accelerators=event.accelerators,
        # Journals of 0.1.0 do not say what was granted: it was what the job asks for.
        resources=event.resources if event.resources != Resources() else job.spec.request(task.index),
        shape=event.shape,
        envelope=event.envelope,
        placed_s=at_s,
        failures=task.failures,
        last_cause=task.last_cause,
    )
    _open_items(job)
    _tell(job, f"{task.index} placed on {event.machine} (attempt {event.attempt})", at_s)


def _task_started(state: CellState, event: TaskStarted, at_s: float) -> None:
    job, task = _task(state, event.ref)
    if task.state is TaskState.STARTING:
        _move(job, task, TaskState.RUNNING)
    task.pid, task.port, task.started_s = event.pid, event.port, at_s
    job.started_s = job.started_s or at_s
    task.ready = task.ready or not job.spec.is_service
    _ack(state, event.machine, event.agent_seq)
    _tell(job, f"{task.index} started", at_s)


def _task_readiness(state: CellState, event: TaskReadiness, at_s: float) -> None:
    job, task = _task(state, event.ref)
    task.ready = event.ready
    _tell(job, f"{task.index} {'ready' if event.ready else 'not ready'}", at_s)


def _task_noticed(state: CellState, event: TaskNoticed, at_s: float) -> None:
    job, task = _task(state, event.ref)
    _move(job, task, TaskState.RESIZING)
    task.notice = Notice(event.cause, event.deadline_s, at_s, event.new_size, event.by)
    _tell(job, f"{task.index} told to leave: {event.cause} {event.by}".rstrip(), at_s)


def _task_stopping(state: CellState, event: TaskStopping, at_s: float) -> None:
    _, task = _task(state, event.ref)
    if task.notice is not None:
        task.notice.stopping = True


def _task_ended(state: CellState, event: TaskEnded, at_s: float) -> None:
    job, task = _task(state, event.ref)
    _move(job, task, event.then)
    task.exit_code, task.message = event.exit_code, event.message
    task.ended_s, task.notice, task.ready, task.pid, task.port = at_s, None, False, 0, 0
    task.accelerators, task.resources, task.shape, task.envelope = (), Resources(), 0, ""
    task.last_cause = event.cause
    task.failures = event.failures
    task.not_before_s = event.not_before_s
    _ack(state, event.machine, event.agent_seq)
    _trim(job)
    _open_items(job)
    what = f"{task.index} ended ({event.exit_code})"
    _tell(job, f"{what} {event.cause or ''} -> {event.then}", at_s)


def _ack(state: CellState, machine: str, agent_seq: int) -> None:
    known = state.machines.get(machine)
    if known is not None:
        known.agent_seq = max(known.agent_seq, agent_seq)


def _claimed(state: CellState, event: Claimed, at_s: float) -> None:
    state.claims[event.claim.uid, event.claim.index] = event.claim


def _claim_dropped(state: CellState, event: ClaimDropped, at_s: float) -> None:
    state.claims.pop((event.uid, event.index), None)


_APPLY: dict[type[Event], Any] = {
    CellOpened: _cell_opened,
    MachineJoined: _machine_joined,
    MachineGone: _machine_gone,
    PolicySet: _policy_set,
    JobAccepted: _job_accepted,
    JobRescaled: _job_rescaled,
    JobReprioritized: _job_reprioritized,
    JobDesired: _job_desired,
    JobStopping: _job_stopping,
    JobFinished: _job_finished,
    TaskPlaced: _task_placed,
    TaskStarted: _task_started,
    TaskReadiness: _task_readiness,
    TaskNoticed: _task_noticed,
    TaskStopping: _task_stopping,
    TaskEnded: _task_ended,
    Claimed: _claimed,
    ClaimDropped: _claim_dropped,
}


def encode_state(state: CellState) -> bytes:
    """Return the whole state as JSON, for a snapshot; the same state gives the same bytes."""
    return msgspec.json.encode(
        {
            "epoch": state.epoch,
            "seq": state.seq,
            "machines": state.machines,
            "jobs": list(state.jobs.values()),
            "by_name": state.by_name,
            "counters": state.counters,
            "claims": list(state.claims.values()),
            "live": list(state.live_uids),
            "finished": list(state.finished_uids),
            "policy": state.policy,
        },
        order="deterministic",
    )


class _Stored(msgspec.Struct):
    epoch: int
    seq: int
    machines: dict[str, Machine]
    jobs: list[Job]
    by_name: dict[str, str]
    counters: dict[str, int]
    claims: list[Claim]
    live: list[str]
    finished: list[str]
    policy: Policy | None = None


def decode_state(body: bytes) -> CellState:
    """Return the state that ``encode_state`` wrote."""
    stored = msgspec.json.decode(body, type=_Stored)
    for job in stored.jobs:
        for task in job.tasks:
            if task.active and task.resources == Resources():  # a snapshot of 0.1.0
                task.resources = job.spec.request(task.index)
    return CellState(
        epoch=stored.epoch,
        seq=stored.seq,
        machines=stored.machines,
        jobs={job.uid: job for job in stored.jobs},
        by_name=stored.by_name,
        counters=stored.counters,
        claims={(c.uid, c.index): c for c in stored.claims},
        live_uids=dict.fromkeys(stored.live),
        finished_uids=deque(stored.finished),
        policy=stored.policy,
    )


__all__ = [
    "ACTIVE",
    "TERMINAL",
    "CellState",
    "Job",
    "Machine",
    "Notice",
    "Task",
    "apply",
    "decode_state",
    "encode_state",
]
