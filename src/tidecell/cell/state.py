"""The state of a cell, and ``apply``: what an event changes.

``apply`` decides nothing: whatever is not in the event is not its business. Replaying the journal
through it rebuilds the state, also after the rules in ``step`` have changed. The records are mutable
and belong to this module; everything else reads them.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from tidecell.cell.records import CellState, Drain, Job, Machine, Notice, Rollout, Task, Version
from tidecell.cell.revisions import LIFECYCLE_APPLY
from tidecell.cell.routing import ROUTING_APPLY
from tidecell.cell.slots import LOOKAHEAD, open_items, resize, set_desired, trim
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import ACTIVE, TERMINAL, TRANSITIONS, Cause, TaskState
from tidecell.structs.messages import (
    CellOpened,
    Claim,
    ClaimDropped,
    Claimed,
    Event,
    JobAccepted,
    JobDesired,
    JobFinished,
    JobHeld,
    JobReleased,
    JobReprioritized,
    JobRescaled,
    JobStopping,
    MachineGone,
    MachineJoined,
    PolicySet,
    ScheduleDecided,
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
from tidecell.structs.traffic import Routing

MAX_FINISHED = 2000  # finished runs kept in memory and in snapshots; the journal keeps all
STORY_LENGTH = 12
NOTHING = Resources()
PREEMPTED_WINDOW_S = 3600.0  # preemptions further apart are counted anew


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
    state.index.note(state, event)
    state.seq += 1


def _job(state: CellState, uid: str) -> Job:
    job = state.jobs.get(uid)
    if job is None:
        raise InvariantError(f"event about job '{uid}', which is not known")
    return job


def _task(state: CellState, ref: TaskRef) -> tuple[Job, Task]:
    job, index = _job(state, ref.uid), ref.index
    task = job.tasks[index] if 0 <= index < len(job.tasks) else None
    if task is None or task.epoch != ref.epoch:
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


def _tell(job: Job, text: str, at_s: float) -> None:
    story = job.story
    story.append(f"{at_s:.3f} {text}")
    if len(story) > STORY_LENGTH:
        del story[:-STORY_LENGTH]


def _cell_opened(state: CellState, event: CellOpened, at_s: float) -> None:
    state.epoch = event.epoch


def _machine_joined(state: CellState, event: MachineJoined, at_s: float) -> None:
    known = state.machines.get(event.spec.name)
    if known is None:
        state.machines[event.spec.name] = Machine(event.spec)
    else:
        known.spec, known.up, known.held = event.spec, True, False


def _machine_gone(state: CellState, event: MachineGone, at_s: float) -> None:
    machine = state.machines[event.name]
    machine.up, machine.lost_s, machine.release_s = False, at_s, event.release_s
    machine.held = event.release_s > 0


def _policy_set(state: CellState, event: PolicySet, at_s: float) -> None:
    state.policy = event.policy


def _job_accepted(state: CellState, event: JobAccepted, at_s: float) -> None:
    spec = event.spec
    desired = spec.replicas.min if spec.scaling is not None else spec.replicas.max
    count = 0 if spec.array is not None or spec.schedule is not None else spec.replicas.max
    tasks = [Task(i) for i in range(count)]
    job = Job(event.uid, spec, at_s, desired, tasks, needs=event.needs, who=event.who)
    job.held, job.begin_s, job.parent, job.target_s = spec.hold, spec.begin_s, event.parent, event.target_s
    if spec.schedule is not None:
        job.desired, job.through_s = 0, at_s
    else:
        open_items(job)
    state.jobs[event.uid] = job
    state.by_name[spec.name] = event.uid
    if event.parent:
        parent = _job(state, event.parent)
        parent.due = tuple(t for t in parent.due if t != event.target_s)
        parent.runs.append(event.uid)
    else:
        state.counters[spec.name] = state.counters.get(spec.name, 0) + 1
    state.live_uids[event.uid] = None
    _tell(job, "accepted", at_s)


def _job_held(state: CellState, event: JobHeld, at_s: float) -> None:
    job = _job(state, event.uid)
    job.held = True
    _tell(job, "held", at_s)


def _job_released(state: CellState, event: JobReleased, at_s: float) -> None:
    job = _job(state, event.uid)
    job.held, job.begin_s = False, 0.0
    _tell(job, "released", at_s)


def _schedule_decided(state: CellState, event: ScheduleDecided, at_s: float) -> None:
    job = _job(state, event.uid)
    job.through_s, job.due = event.through_s, event.due
    _tell(job, f"{len(event.due)} due, {event.skipped} skipped", at_s)


def _job_rescaled(state: CellState, event: JobRescaled, at_s: float) -> None:
    job = _job(state, event.uid)
    job.spec = msgspec.structs.replace(job.spec, replicas=event.replicas)
    if job.spec.schedule is not None:
        return
    if job.spec.array is not None:
        open_items(job)
        _tell(job, f"parallel {event.replicas.max}", at_s)
        return
    resize(job)
    _tell(job, f"replicas {event.replicas}", at_s)


def _job_reprioritized(state: CellState, event: JobReprioritized, at_s: float) -> None:
    job = _job(state, event.uid)
    job.spec = msgspec.structs.replace(job.spec, priority=event.priority)
    _tell(job, f"priority {event.priority}", at_s)


def _job_desired(state: CellState, event: JobDesired, at_s: float) -> None:
    job = _job(state, event.uid)
    set_desired(job, event.desired)
    job.desired_why = event.why
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
    _trim_runs(state, job)
    while len(state.finished_uids) > MAX_FINISHED:
        _forget(state, state.finished_uids.popleft())


def _trim_runs(state: CellState, run: Job) -> None:
    """Of a schedule's finished runs only so many are remembered."""
    parent = state.jobs.get(run.parent)
    if parent is None or parent.spec.schedule is None:
        return
    over = [uid for uid in parent.runs if not state.jobs[uid].live]
    for uid in over[: max(0, len(over) - parent.spec.schedule.history)]:
        state.finished_uids.remove(uid)
        _forget(state, uid)


def _forget(state: CellState, uid: str) -> None:
    job = state.jobs.pop(uid)
    state.index.forget(job)
    parent = state.jobs.get(job.parent)
    if parent is not None:
        parent.runs.remove(uid)
    if state.by_name.get(job.spec.name) == uid:
        del state.by_name[job.spec.name]


def _task_placed(state: CellState, event: TaskPlaced, at_s: float) -> None:
    job = _job(state, event.ref.uid)
    task = job.tasks[event.ref.index]
    _move(job, task, TaskState.STARTING)
    task.attempt, task.epoch, task.machine = event.attempt, event.ref.epoch, event.machine
    # Journals of 0.1.0 do not say what was granted: it was what the job asks for.
    task.resources = event.resources if not event.resources.is_zero() else job.spec.request(task.index)
    task.accelerators, task.shape, task.envelope = event.accelerators, event.shape, event.envelope
    task.placed_s, task.program = at_s, job.program
    if event.attempt > 1:  # what is left of the start before; failures and preemptions go on counting
        task.pid, task.port, task.notice, task.exit_code, task.message = 0, 0, None, None, ""
        task.ready, task.ready_s, task.started_s, task.ended_s, task.not_before_s = False, 0.0, 0.0, 0.0, 0.0
    if job.spec.array is not None:
        open_items(job)
    if job.rollout is not None and job.program == job.rollout.program:
        job.rollout.trying_s = job.rollout.trying_s or at_s
    _tell(job, f"{task.index} placed on {event.machine} (attempt {event.attempt})", at_s)


def _task_started(state: CellState, event: TaskStarted, at_s: float) -> None:
    job, task = _task(state, event.ref)
    if task.state is TaskState.STARTING:
        _move(job, task, TaskState.RUNNING)
    task.pid, task.port, task.started_s = event.pid, event.port, at_s
    job.started_s = job.started_s or at_s
    if not job.spec.is_service and not task.ready:
        task.ready, task.ready_s = True, at_s
    _ack(state, event.machine, event.agent_seq)
    _tell(job, f"{task.index} started", at_s)


def _task_readiness(state: CellState, event: TaskReadiness, at_s: float) -> None:
    job, task = _task(state, event.ref)
    task.ready, task.ready_s = event.ready, at_s
    _tell(job, f"{task.index} {'ready' if event.ready else 'not ready'}", at_s)


def _task_noticed(state: CellState, event: TaskNoticed, at_s: float) -> None:
    job, task = _task(state, event.ref)
    _move(job, task, TaskState.RESIZING)
    task.notice = Notice(event.cause, event.deadline_s, at_s, event.new_size, event.by)
    if event.cause is Cause.UPDATE and job.rollout is not None:
        job.rollout.disrupted += 1
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
    task.accelerators, task.resources, task.shape, task.envelope = (), NOTHING, 0, ""
    task.last_cause = event.cause
    task.failures, task.tried, task.failed_on = event.failures, event.tried, event.failed_on
    if event.cause is Cause.PREEMPT:
        lately = at_s < task.last_preempted_s + PREEMPTED_WINDOW_S
        task.num_preempted = task.num_preempted + 1 if lately else 1
        task.last_preempted_s = at_s
    task.not_before_s = event.not_before_s
    _ack(state, event.machine, event.agent_seq)
    trim(job)
    if job.spec.array is not None:
        open_items(job)
    _tell(job, f"{task.index} ended ({event.exit_code}) {event.cause or ''} -> {event.then}", at_s)


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
    JobHeld: _job_held,
    JobReleased: _job_released,
    ScheduleDecided: _schedule_decided,
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
    **LIFECYCLE_APPLY,
    **ROUTING_APPLY,
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
            "drains": state.drains,
            "live": list(state.live_uids),
            "finished": list(state.finished_uids),
            "policy": state.policy,
            "routing": state.routing,
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
    routing: Routing | None = None
    drains: dict[str, Drain] = {}


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
        drains=stored.drains,
        live_uids=dict.fromkeys(stored.live),
        finished_uids=deque(stored.finished),
        policy=stored.policy,
        routing=stored.routing,
    )


__all__ = [
    "ACTIVE",
    "LOOKAHEAD",
    "TERMINAL",
    "CellState",
    "Drain",
    "Job",
    "Machine",
    "Notice",
    "Rollout",
    "Task",
    "Version",
    "apply",
    "decode_state",
    "encode_state",
]
