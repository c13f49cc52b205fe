"""Emptying machines for maintenance, within every job's disruption budget. Pure.

A draining machine takes no new work. A service's replica leaves once another, elsewhere, stands in for it;
where none finds room, as many leave as the job's budget allows. A job's tasks get their notice at once, as
many as the budget allows: an elastic job shrinks and grows back elsewhere. What is left at the deadline is
ended, with its grace period. Borg drains machines likewise (EuroSys 2015, section 4); the deadline that
overrules is Nomad's.
"""

from __future__ import annotations

from collections.abc import Sequence

from tidecell.cell.disruptions import is_available, spare_disruptions
from tidecell.cell.records import CellState, Drain, Job, Task
from tidecell.cell.slots import free_slots
from tidecell.structs.errors import ConflictError, NotFoundError, RefusedError
from tidecell.structs.job import Cause, TaskState
from tidecell.structs.lifecycle import (
    DrainCancelled,
    DrainRequested,
    MachineDrained,
    MachineDraining,
    SlotClosed,
    SlotOpened,
)
from tidecell.structs.message_base import Event, TaskRef
from tidecell.structs.messages import TaskNoticed

DEADLINE_S = 600.0  # of a drain that names none
# How long a drain waits for a stand-in to find room before it uses the job's own budget instead.
PATIENCE_S = 15.0


def closed_machines(state: CellState, now_s: float) -> frozenset[str]:
    """Return the names of machines that take no new work."""
    return frozenset(name for name, drain in state.drains.items() if now_s >= drain.start_s)


def request_drain(state: CellState, message: DrainRequested, now_s: float) -> list[Event]:
    """Return the event of a drain that somebody asks for, or takes back.

    Raises:
        NotFoundError: There is no such machine.
        ConflictError: There is nothing to cancel.
        RefusedError: The deadline is before the start.
    """
    name = message.machine
    if name not in state.machines:
        known = ", ".join(sorted(state.machines)[:10]) or "none has joined"
        raise NotFoundError(f"no machine named '{name}'; machines are: {known}", "tide machines lists them")
    if message.cancel:
        if name not in state.drains:
            raise ConflictError(f"machine '{name}' is not being drained")
        return [DrainCancelled(name, message.who)]
    start_s = message.start_s or now_s
    deadline_s = message.deadline_s or start_s + DEADLINE_S
    if deadline_s < start_s:
        raise RefusedError(
            f"the drain of '{name}' would end {start_s - deadline_s:.0f} s before it starts",
            "give a deadline after --at",
        )
    return [MachineDraining(name, start_s, deadline_s, message.who)]


def note_drained(state: CellState, now_s: float) -> list[Event]:
    """Return an event for each draining machine that has become empty."""
    closed = closed_machines(state, now_s)
    waiting = {name for name in closed if not state.drains[name].drained}
    if not waiting:
        return []
    waiting = {name for name in waiting if not state.index.load(name).tasks}
    return [MachineDrained(name) for name in sorted(waiting)]


def drain_steps(state: CellState, job: Job, now_s: float) -> list[Event]:
    """Return what drains ask of a job now; also the end of standing in once a drain is cancelled."""
    if job.spec.alloc:
        return []  # its tasks leave with their envelopes
    closed = closed_machines(state, now_s)
    here = [t for t in job.staying_tasks() if t.machine in closed]
    overdue = [t for t in here if now_s >= state.drains[t.machine].deadline_s]
    if overdue:
        return _take(job, overdue, now_s, forced=True)
    if job.rollout is not None:
        return []  # the update places its new replicas elsewhere; what is left comes after it
    if not here:
        return _stop_standing_in(job)
    if not job.spec.is_service:
        spare = spare_disruptions(job)
        return _take(job, here if spare is None else here[: max(0, spare)], now_s)
    since_s = min(state.drains[t.machine].start_s for t in here)
    return _drain_service(job, here, now_s, patient=now_s < since_s + PATIENCE_S)


def _drain_service(job: Job, here: Sequence[Task], now_s: float, patient: bool) -> list[Event]:
    """Let replicas leave for which another stands in; want stand-ins for the others."""
    if idle := [t for t in here if not is_available(t)]:
        return _take(job, idle, now_s)
    room = sum(1 for t in job.staying_tasks() if is_available(t)) - job.desired
    spare = spare_disruptions(job)
    if spare is not None:
        room = min(room, spare) if patient else spare
    if room > 0:
        return _take(job, here[:room], now_s)
    surplus = len(job.extra) - len(job.vacant)
    return [SlotOpened(job.uid, index, "drain") for index in free_slots(job, len(here) - surplus)]


def _take(job: Job, tasks: Sequence[Task], now_s: float, forced: bool = False) -> list[Event]:
    """Give notice; where more replicas are wanted than the job's own number, the slot closes."""
    out: list[Event] = []
    size, surplus = len(job.staying_tasks()), len(job.extra) - len(job.vacant)
    for task in tasks:
        size -= 1
        ref = TaskRef(job.uid, task.index, task.epoch)
        deadline_s = now_s + job.spec.grace_period_s
        out.append(TaskNoticed(ref, Cause.DRAIN, deadline_s, size, forced=forced))
        if surplus > 0 and job.wants(task.index):
            out.append(SlotClosed(job.uid, task.index))
            surplus -= 1
    return out


def _stop_standing_in(job: Job) -> list[Event]:
    """Want no more replicas than the job's own number: those that wait go first."""
    surplus = len(job.extra) - len(job.vacant)
    if surplus <= 0:
        return []
    wanted = [t for t in job.open_tasks() if job.wants(t.index)]
    wanted.sort(key=lambda t: (t.state is not TaskState.PENDING, is_available(t), -t.index))
    return [SlotClosed(job.uid, t.index) for t in wanted[:surplus]]


def describe_drain(drain: Drain, now_s: float, num_tasks: int) -> str:
    """Return a machine's drain in a few words."""
    if now_s < drain.start_s:
        return f"drains in {drain.start_s - now_s:.0f} s"
    if num_tasks == 0:
        return "drained"
    left_s = drain.deadline_s - now_s
    return f"draining, {left_s:.0f} s left" if left_s > 0 else "draining, out of time"


__all__ = [
    "DEADLINE_S",
    "closed_machines",
    "describe_drain",
    "drain_steps",
    "note_drained",
    "request_drain",
]
