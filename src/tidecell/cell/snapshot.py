"""The cell's state as the scheduler sees it. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from tidecell.cell.admission import blocking
from tidecell.cell.allocs import envelopes
from tidecell.cell.disruptions import spare_disruptions
from tidecell.cell.drains import closed_machines
from tidecell.cell.state import CellState, Job, Task
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.job import TaskState
from tidecell.structs.machine import MachineSpec


def take_snapshot(state: CellState, now_s: float) -> Snapshot:
    """Return an immutable picture of the live cell at ``now_s``."""
    machines = rows_of(state)
    jobs = tuple(job_view(state, job, now_s) for job in state.live_jobs())
    claims = tuple(state.claims[k] for k in sorted(state.claims))
    closed = closed_rows(machines, state, now_s)
    return Snapshot(now_s, machines, jobs, claims, closed=closed, policy=state.policy)


def rows_of(state: CellState) -> tuple[MachineSpec, ...]:
    """Return what tasks may be placed on: machines that are up, and the envelopes of allocs."""
    machines = tuple(m.spec for _, m in sorted(state.machines.items()) if m.up)
    if not state.index.allocs:
        return machines
    return (*machines, *sorted(envelopes(state), key=lambda m: m.name))


def closed_rows(rows: Iterable[MachineSpec], state: CellState, now_s: float) -> tuple[str, ...]:
    """Return the names of those that take no new work, in order."""
    if not state.drains:
        return ()
    closed = closed_machines(state, now_s)
    return tuple(sorted(m.name for m in rows if m.name in closed or m.host in closed))


def job_view(state: CellState, job: Job, now_s: float, tasks: tuple[TaskView, ...] | None = None) -> JobView:
    """Return a live job as the scheduler sees it; ``tasks``: those it has, where they are known."""
    if tasks is None:
        tasks = tuple(task_view(t) for t in job.open_tasks() if t.active or waits(job, t))
    blocked = tuple(name for name, _ in blocking(state, job)) if job.spec.after else ()
    limit_s = job.spec.max_duration_s
    begun = job.started_s or (now_s if job.num_active else 0.0)  # nothing ends that has not begun
    ends_by_s = begun + limit_s if limit_s and begun else 0.0
    return JobView(
        uid=job.uid,
        spec=job.spec,
        submitted_s=job.submitted_s,
        desired=job.desired,
        extra=tuple(job.extra),
        vacant=tuple(job.vacant),
        spare_disruptions=spare_disruptions(job),
        tasks=tasks,
        blocked_by=blocked,
        ends_by_s=ends_by_s,
        stopping=job.stopping is not None,
        held=job.held,
        begin_s=job.begin_s,
        # An array's items do not make a gang: nobody asks which of them are done.
        done=()
        if job.spec.array is not None or not job.num_succeeded
        else tuple(t.index for t in job.tasks if t.state is TaskState.SUCCEEDED),
    )


def waits(job: Job, task: Task) -> bool:
    """Return whether a task should run and does not."""
    return task.state is TaskState.PENDING and job.wants(task.index) and job.stopping is None


def task_view(task: Task) -> TaskView:
    """Return a task as the scheduler sees it."""
    if not task.active:
        return TaskView(task.index, pending=True, not_before_s=task.not_before_s, avoid=task.failed_on)
    return TaskView(
        index=task.index,
        machine=task.row,
        accelerators=task.accelerators,
        resources=task.resources,
        placed_s=task.placed_s,
        leaving=task.notice is not None,
        leaving_by_s=task.notice.deadline_s if task.notice is not None else 0.0,
        num_preempted=task.num_preempted,
        last_preempted_s=task.last_preempted_s,
    )
