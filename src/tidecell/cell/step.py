"""``step``: what an input means. Pure: reads the state, returns events and commands, changes nothing.

What follows from the new state (a job is done, a replica is surplus, a dependency failed) is not
decided here but in ``reconcile``, which the runtime calls for every job that an input touched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec.structs import replace

from tidecell.cell.admission import check_admissible, check_capacity, resolve_needs
from tidecell.cell.allocs import check_bands, check_stop, find_row, jobs_in
from tidecell.cell.disruptions import spare_disruptions
from tidecell.cell.drains import closed_machines, note_drained, request_drain
from tidecell.cell.endings import task_ended
from tidecell.cell.losses import give_up_held, lost_tasks, release_at
from tidecell.cell.quota import begin_periods, check_priority, check_quota
from tidecell.cell.resizing import check_in_place, plan_resize, resize_command, resize_commands
from tidecell.cell.routing import decide_routing
from tidecell.cell.state import CellState, Job, Task
from tidecell.cell.verify import verify_plan
from tidecell.cell.versions import earlier, restored, revise, spec_of
from tidecell.structs.access import OWNER
from tidecell.structs.errors import ConflictError, NotFoundError, RefusedError
from tidecell.structs.job import Cause, JobSpec, Replicas, TaskState
from tidecell.structs.lifecycle import (
    DrainRequested,
    JobIdle,
    JobRevised,
    PromoteRequested,
    RollbackRequested,
    RolloutPromoted,
    SpecChanged,
    TaskUnhealthy,
)
from tidecell.structs.messages import (
    CellOpened,
    Command,
    ControlStarted,
    DesiredProposed,
    Event,
    Input,
    JobAccepted,
    JobChanged,
    JobDesired,
    JobHeld,
    JobHoldRequested,
    JobReleased,
    JobReprioritized,
    JobRescaled,
    JobStopping,
    JobStopRequested,
    JobSubmitted,
    MachineGone,
    MachineJoined,
    MachineLost,
    MachineSeen,
    PlanProposed,
    PolicyProposed,
    PolicySet,
    ReplicaDrained,
    StartTask,
    StopTask,
    TaskDown,
    TaskNoticed,
    TaskProbed,
    TaskReadiness,
    TaskRef,
    TaskStarted,
    TaskStopping,
    TaskUp,
    Tick,
)
from tidecell.structs.routing_messages import KeyProposed, KeyRevokeRequested, RoutingProposed


@dataclass
class Decision:
    """What an input leads to.

    Attributes:
        events: Facts to journal and apply, in order.
        commands: Effects to ask the engines for, once the events are durable.
        touched: Uids of the jobs to reconcile; None: all live ones.
    """

    events: list[Event] = field(default_factory=list)
    commands: list[Command] = field(default_factory=list)
    touched: set[str] | None = field(default_factory=set)


def step(state: CellState, message: Input, now_s: float) -> Decision:
    """Return what ``message`` means in this state; change nothing.

    Args:
        state: The cell as it is.
        message: What the outside tells us.
        now_s: Seconds since the epoch.

    Raises:
        RefusedError, ConflictError, NotFoundError: A user's request cannot be granted.
    """
    return _STEP[type(message)](state, message, now_s)


def _control_started(state: CellState, message: ControlStarted, now_s: float) -> Decision:
    return Decision([CellOpened(state.epoch + 1)], touched=None)


def _submitted(state: CellState, message: JobSubmitted, now_s: float) -> Decision:
    check_admissible(state, message.spec)
    # Whoever owns the cell may submit for anybody; a live job's user was asked when it was submitted.
    by = "" if message.who == OWNER else message.spec.labels.get("user", "")
    check_quota(state, message.spec, now_s, by)
    number = state.counters.get(message.spec.name, 0) + 1
    uid = f"{message.spec.name}.{number}"
    needs = resolve_needs(state, message.spec)
    return Decision([JobAccepted(uid, message.spec, needs, message.who)], touched={uid})


def _live(state: CellState, name: str) -> Job:
    job = state.find(name)
    if job is None:
        raise NotFoundError(f"no job named '{name}'", "tide ps -a lists all jobs")
    if not job.live:
        raise ConflictError(f"job '{name}' is {job.state} and cannot be changed")
    return job


def _changed(state: CellState, message: JobChanged, now_s: float) -> Decision:
    job = _changeable(state, message.name)
    events: list[Event] = []
    if message.replicas is not None and job.spec.array is not None:  # of an array only the most counts
        message = msgspec.structs.replace(message, replicas=Replicas(0, message.replicas.max))
    if message.replicas is not None and message.replicas != job.spec.replicas:
        if not 0 <= message.replicas.min <= message.replicas.max or message.replicas.max < 1:
            raise RefusedError(
                f"replicas {message.replicas.min}..{message.replicas.max} is no range",
                "give MIN..MAX with 0 <= MIN <= MAX and MAX at least 1",
            )
        check_capacity(state, job.spec, message.replicas)
        check_quota(state, replace(job.spec, replicas=message.replicas), now_s)
        events.append(JobRescaled(job.uid, message.replicas))
    if message.priority is not None and message.priority != job.spec.priority:
        check_priority(state, job, message.priority, now_s)
        check_bands(state, replace(job.spec, priority=message.priority))
        events.append(JobReprioritized(job.uid, message.priority))
    return Decision(events, touched={job.uid})


def _changeable(state: CellState, name: str) -> Job:
    job = _live(state, name)
    if job.stopping is not None:
        raise ConflictError(f"job '{name}' is stopping ({job.stopping.cause})")
    return job


def _spec_changed(state: CellState, message: SpecChanged, now_s: float) -> Decision:
    job = _changeable(state, message.spec.name)
    _check_revised(state, job, message.spec, now_s)
    resizing = plan_resize(state, job, message.spec, now_s, message.in_use)
    if not message.restart:
        check_in_place(job, message.spec, resizing)
    event = revise(state, job, message.spec, message.who, resized=resizing.resized)
    return _revised(state, job, event)


def _revised(state: CellState, job: Job, event: JobRevised | None) -> Decision:
    if event is None:
        return Decision(touched={job.uid})
    return Decision([event], resize_commands(state, job, event), {job.uid})


def _check_revised(state: CellState, job: Job, spec: JobSpec, now_s: float) -> None:
    """Raise RefusedError if the team's quota does not cover what the job would be."""
    check_quota(state, spec, now_s)
    check_priority(state, job, spec.priority, now_s)
    check_bands(state, spec)


def _rollback(state: CellState, message: RollbackRequested, now_s: float) -> Decision:
    job = _changeable(state, message.name)
    version = earlier(job, message.version)
    why = f"rollback to version {version.number}"
    spec = restored(job, version)
    _check_revised(state, job, spec, now_s)
    resized = plan_resize(state, job, spec, now_s, message.in_use).resized
    return _revised(state, job, revise(state, job, spec, message.who, why, version.stable, resized))


def _promote(state: CellState, message: PromoteRequested, now_s: float) -> Decision:
    job = _changeable(state, message.name)
    rollout = job.rollout
    if rollout is None:
        raise ConflictError(
            f"job '{message.name}' has no update under way", f"tide history {message.name} shows its versions"
        )
    if rollout.promoted and not rollout.halted:
        raise ConflictError(f"the update of job '{message.name}' goes on already")
    return Decision([RolloutPromoted(job.uid, message.who)], touched={job.uid})


def _stop_requested(state: CellState, message: JobStopRequested, now_s: float) -> Decision:
    job = _live(state, message.name)
    check_stop(state, job, message.force)
    grace_s = 0.0 if message.immediately else None
    if job.stopping is None:
        stop = JobStopping(job.uid, TaskState.CANCELLED, Cause.CANCEL, "stopped on request", 0, grace_s)
        return Decision([stop], touched={job.uid})
    if not message.immediately:
        return Decision(touched={job.uid})
    # Already stopping: hurry what is left. The engine keeps the earlier of two deadlines.
    runs = [job] if not job.spec.is_alloc else jobs_in(state, job.spec.name)
    hurry: list[Command] = [
        StopTask(state.ref(run, t), t.machine, job.stopping.cause, 0.0)
        for run in runs
        for t in run.active_tasks()
    ]
    return Decision([], hurry, {job.uid})


def _hold_requested(state: CellState, message: JobHoldRequested, now_s: float) -> Decision:
    job = _live(state, message.name)
    if job.stopping is not None:
        raise ConflictError(f"job '{message.name}' is stopping ({job.stopping.cause})")
    if message.hold:
        return Decision([] if job.held else [JobHeld(job.uid)], touched={job.uid})
    waits = job.held or job.begin_s > now_s
    return Decision([JobReleased(job.uid)] if waits else [], touched={job.uid})


def _desired(state: CellState, message: DesiredProposed, now_s: float) -> Decision:
    job = state.jobs.get(message.uid)
    if job is None or not job.live or job.stopping is not None or job.spec.scaling is None:
        return Decision()
    desired = max(job.spec.replicas.min, min(job.spec.replicas.max, message.desired))
    spare = spare_disruptions(job)
    if spare is not None:  # it shrinks as its budget allows; the rest is asked for again
        desired = max(desired, min(job.desired, job.desired - max(0, spare)))
    if desired == job.desired:
        return Decision()
    return Decision([JobDesired(job.uid, desired, message.why)], touched={job.uid})


def _machine_seen(state: CellState, message: MachineSeen, now_s: float) -> Decision:
    """Bring what the agent runs and what we believe it runs together."""
    decision = Decision(touched=set())
    known = state.machines.get(message.spec.name)
    if known is None or not known.up or known.spec != message.spec:
        decision.events.append(MachineJoined(message.spec))
    running = set(message.running)
    for job, task in state.tasks_on(message.spec.name):
        ref = state.ref(job, task)
        if job.spec.is_alloc:  # no agent knows of it, and it is where it was
            continue
        if ref in running:
            running.discard(ref)
            if task.resized:  # it may not have heard
                decision.commands.append(resize_command(task, ref))
            if task.notice is not None and task.notice.stopping:
                decision.commands.append(stop_command(job, task, ref, now_s))
        elif not task.started_s:
            # The order to start it may still be on its way to this very agent, also if it has been told
            # to leave since: said again, and then to stop, so that its end is known and not guessed.
            decision.commands.append(start_command(job, task, ref))
            if task.notice is not None and task.notice.stopping:
                decision.commands.append(stop_command(job, task, ref, now_s))
        else:
            lost = TaskDown(ref, task.machine, exit_code=-1, lost=True)
            decision.events.append(task_ended(job, task, lost, now_s))
        _touch(decision, job.uid)
    for stray in sorted(running):
        decision.commands.append(StopTask(stray, message.spec.name, Cause.CANCEL, 0.0))
    return decision


def _touch(decision: Decision, uid: str) -> None:
    if decision.touched is not None:
        decision.touched.add(uid)


def start_command(job: Job, task: Task, ref: TaskRef) -> StartTask:
    """Return the command that starts a placed task; sending it twice does no harm."""
    size = 1 if job.spec.array is not None else job.num_staying
    spec = spec_of(job, task).for_task(task.index)
    return StartTask(ref, task.machine, task.attempt, spec, task.accelerators, size, task.resources)


def stop_command(job: Job, task: Task, ref: TaskRef, now_s: float) -> StopTask:
    """Return the command that ends a noticed task, with what is left of its grace period."""
    notice = task.notice
    if notice is None:
        raise ValueError(f"task {ref} was not told to leave")
    left_s = max(0.0, notice.deadline_s - now_s)
    return StopTask(ref, task.machine, notice.cause, left_s, notice.new_size, notice.by)


def _machine_lost(state: CellState, message: MachineLost, now_s: float) -> Decision:
    known = state.machines.get(message.name)
    if known is None or not known.up:
        return Decision()
    release_s = release_at(state.machines.values(), now_s)
    decision = Decision([MachineGone(message.name, release_s)], touched=set())
    for job, task in lost_tasks(state, [message.name]) if not release_s else ():
        down = TaskDown(state.ref(job, task), task.machine, exit_code=-1, lost=True)
        decision.events.append(task_ended(job, task, down, now_s))
        _touch(decision, job.uid)
    return decision


def _task_up(state: CellState, message: TaskUp, now_s: float) -> Decision:
    task = state.task(message.ref)
    if task is None or not task.active:
        return Decision([], [StopTask(message.ref, message.machine, Cause.CANCEL, 0.0)])
    if task.started_s:
        return Decision()
    event = TaskStarted(message.ref, message.machine, message.pid, message.port, message.agent_seq)
    return Decision([event], touched={message.ref.uid})


def _task_down(state: CellState, message: TaskDown, now_s: float) -> Decision:
    task = state.task(message.ref)
    if task is None or not task.active:
        return Decision()  # told before, or a start that we gave up
    job = state.jobs[message.ref.uid]
    decision = Decision([task_ended(job, task, message, now_s)], touched={job.uid})
    alloc = state.find(job.spec.alloc) if task.envelope else None
    if alloc is not None:  # it may have been the last that was inside
        _touch(decision, alloc.uid)
    return decision


def _probed(state: CellState, message: TaskProbed, now_s: float) -> Decision:
    task = state.task(message.ref)
    if task is None or not task.active or task.ready == message.ready:
        return Decision()
    return Decision([TaskReadiness(message.ref, message.ready)], touched={message.ref.uid})


def _idle(state: CellState, message: JobIdle, now_s: float) -> Decision:
    job = state.jobs.get(message.uid)
    if job is None or not job.live or job.stopping is not None or job.spec.idle_gpu is None:
        return Decision()
    rule = job.spec.idle_gpu
    text = f"its accelerators were below {rule.below_percent} % for {rule.for_s:g} s"
    return Decision([JobStopping(job.uid, TaskState.TIMEOUT, Cause.TIMEOUT, text, 124)], touched={job.uid})


def _unhealthy(state: CellState, message: TaskUnhealthy, now_s: float) -> Decision:
    """A replica that does not answer any more is started again; requests on it get its grace period."""
    task = state.task(message.ref)
    if task is None or task.state is not TaskState.RUNNING or task.notice is not None:
        return Decision()
    job = state.jobs[message.ref.uid]
    size = len(job.staying_tasks()) - 1
    told = TaskNoticed(message.ref, Cause.UNHEALTHY, now_s + job.spec.grace_period_s, size)
    return Decision([told], touched={job.uid})


def _drained(state: CellState, message: ReplicaDrained, now_s: float) -> Decision:
    task = state.task(message.ref)
    if task is None or task.notice is None or task.notice.stopping:
        return Decision()
    job = state.jobs[message.ref.uid]
    command = stop_command(job, task, message.ref, now_s)
    return Decision([TaskStopping(message.ref)], [command], {job.uid})


def _plan(state: CellState, message: PlanProposed, now_s: float) -> Decision:
    verified = verify_plan(state, message.plan, now_s)
    commands: list[Command] = []
    for placed in verified.placed:
        job = state.jobs[placed.ref.uid]
        if job.spec.is_alloc:  # nothing has to be started: it is there
            verified.events.append(TaskStarted(placed.ref, placed.machine))
            continue
        size = 1
        if job.spec.array is None:
            size = job.num_staying + verified.num_placed[job.uid]
        commands.append(
            StartTask(
                placed.ref,
                placed.machine,
                placed.attempt,
                job.spec.for_task(placed.ref.index),
                placed.accelerators,
                size,
                placed.resources,
            )
        )
    return Decision(verified.events, commands, verified.touched)


def _policy(state: CellState, message: PolicyProposed, now_s: float) -> Decision:
    policy = message.policy
    if policy is not None:
        policy = begin_periods(policy, state.policy, now_s)
    if policy == state.policy:
        return Decision()
    return Decision([PolicySet(policy)], touched=set())


def _routing(state: CellState, message: Input, now_s: float) -> Decision:
    return Decision(decide_routing(state, message, now_s), touched=set())


def _drain(state: CellState, message: DrainRequested, now_s: float) -> Decision:
    return Decision(request_drain(state, message, now_s), touched=None)


def _tick(state: CellState, message: Tick, now_s: float) -> Decision:
    return Decision(
        [*give_up_held(state, now_s), *note_drained(state, now_s)], touched=due_jobs(state, now_s)
    )


def due_jobs(state: CellState, now_s: float) -> set[str]:
    """Return the live jobs for which time alone may have changed what follows from their state."""
    due = {*state.index.timed, *state.index.overdue(now_s)}
    for name in closed_machines(state, now_s) if state.drains else ():
        load = state.index.load(name)
        due.update(uid for uid, _ in load.tasks)
        due.update(uid for uid, _ in load.claims)
    for uid, rows in state.index.claims_of.items():  # held on what is not there any more
        if any(find_row(state, name) is None for name in rows.values()):
            due.add(uid)
    return due


_STEP: dict[type[Input], Callable[[CellState, Any, float], Decision]] = {
    ControlStarted: _control_started,
    JobSubmitted: _submitted,
    JobChanged: _changed,
    JobStopRequested: _stop_requested,
    JobHoldRequested: _hold_requested,
    DesiredProposed: _desired,
    MachineSeen: _machine_seen,
    MachineLost: _machine_lost,
    TaskUp: _task_up,
    TaskDown: _task_down,
    TaskProbed: _probed,
    ReplicaDrained: _drained,
    PlanProposed: _plan,
    PolicyProposed: _policy,
    RoutingProposed: _routing,
    KeyProposed: _routing,
    KeyRevokeRequested: _routing,
    Tick: _tick,
    SpecChanged: _spec_changed,
    RollbackRequested: _rollback,
    PromoteRequested: _promote,
    DrainRequested: _drain,
    TaskUnhealthy: _unhealthy,
    JobIdle: _idle,
}

__all__ = ["Decision", "due_jobs", "start_command", "step", "stop_command"]
