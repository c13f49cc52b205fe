"""Other cpu and memory for what runs, without a restart: whether a job's replicas can have them. Pure.

All of a job's running replicas get their new sizes together, in one event, where their machines and their
team's quota have the room; else nothing changes in place, and the change is rolled out like any other. Two
things would hurt what runs and are therefore not done to it: less memory than a replica uses, and an
envelope that is smaller than what is in it. (Kubernetes resizes pods likewise since 1.33, but defers what
does not fit now: there a spec and what runs may differ for ever.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tidecell.cell.allocs import find_row
from tidecell.cell.quota import growth_block
from tidecell.cell.records import CellState, Job, Task
from tidecell.cell.versions import restart_fields, without_sizes
from tidecell.structs.errors import ConflictError
from tidecell.structs.job import JobSpec
from tidecell.structs.lifecycle import JobRevised, Resize, ResizeTask
from tidecell.structs.messages import Command, TaskRef
from tidecell.structs.resources import Resources, format_bytes, format_cpu


@dataclass(frozen=True)
class Resizing:
    """How a changed spec reaches the replicas that run, as far as their sizes go.

    Attributes:
        resized: What they get in place; None: nothing can be had in place, or nothing else is wanted.
        obstacle: Why they would have to be started again for their sizes; empty: they need not.
    """

    resized: tuple[Resize, ...] | None = None
    obstacle: str = ""


def plan_resize(
    state: CellState, job: Job, spec: JobSpec, now_s: float, in_use: Mapping[int, int] | None = None
) -> Resizing:
    """Return whether what differs between a live job and ``spec`` can be given to its replicas in place.

    Args:
        state: The cell as it is.
        job: A live job.
        spec: What it should be.
        now_s: Seconds since the epoch.
        in_use: Bytes of memory that replicas were last seen to use, by index.
    """
    changed = job.staying_tasks() and restart_fields(job.spec, spec)
    if not changed or restart_fields(without_sizes(job.spec), without_sizes(spec)):
        return Resizing()
    outdated = [t for t in job.staying_tasks() if t.program != job.program]
    if job.rollout is not None or (outdated and job.spec.array is None):
        return Resizing(obstacle="an update is under way")
    pairs = [(t, spec.request(t.index, t.shape)) for t in job.staying_tasks() if t.program == job.program]
    wanted = {t.index: (t, size) for t, size in pairs if size != t.resources}
    for task, size in wanted.values():
        if why := _would_hurt(state, job, task, size, (in_use or {}).get(task.index, 0)):
            return Resizing(obstacle=why)
    why = _lack_of_room(state, list(wanted.values()))
    if not why and any(not size.fits(t.resources) for t, size in wanted.values()):
        why = growth_block(state, job, spec, {i: size for i, (_, size) in wanted.items()}, now_s)
    if why:
        return Resizing(obstacle=why)
    return Resizing(tuple(Resize(index, size) for index, (_, size) in wanted.items()))


def _would_hurt(state: CellState, job: Job, task: Task, size: Resources, in_use: int) -> str:
    """Return what a replica would lose that it uses; empty: nothing."""
    if job.spec.is_alloc:
        name = job.spec.envelope_name(task.index)
        inside = state.index.load(name).used.resources
        return "" if inside.fits(size) else f"the jobs in {name} hold {inside.describe()}"
    if 0 < size.memory_bytes < in_use:
        return (
            f"replica {task.index} uses {format_bytes(in_use)} of memory, "
            f"more than {format_bytes(size.memory_bytes)}"
        )
    return ""


def _lack_of_room(state: CellState, wanted: list[tuple[Task, Resources]]) -> str:
    """Return where the growth does not fit beside what others hold there; empty: it fits everywhere."""
    growth: dict[str, tuple[int, int]] = {}
    for task, size in wanted:
        cpu, memory = growth.get(task.row, (0, 0))
        more = (
            cpu + size.cpu_millis - task.resources.cpu_millis,
            memory + size.memory_bytes - task.resources.memory_bytes,
        )
        growth[task.row] = more
    for row, (cpu, memory) in sorted(growth.items()):
        free = _free(state, row)
        if cpu > max(0, free.cpu_millis):
            left = format_cpu(max(0, free.cpu_millis))
            return f"{row} has {left} cpu free, and {format_cpu(cpu)} more are asked for"
        if memory > max(0, free.memory_bytes):
            left = format_bytes(max(0, free.memory_bytes))
            return f"{row} has {left} of memory free, and {format_bytes(memory)} more are asked for"
    return ""


def _free(state: CellState, row: str) -> Resources:
    """Return what nobody holds of a machine or envelope, and nothing is held back for."""
    machine, load = state.machines.get(row), state.index.load(row)
    spec = machine.spec if machine is not None else find_row(state, row)
    free = (spec.capacity if spec is not None else Resources()) - load.used.resources
    for claim in load.claims.values():
        free = free - claim.resources
    return free


def check_in_place(job: Job, spec: JobSpec, resizing: Resizing) -> None:
    """Raise ConflictError if replicas would have to be started again for a changed spec."""
    if resizing.resized is not None or not job.staying_tasks() or not restart_fields(job.spec, spec):
        return
    why = resizing.obstacle or "its program changes too"
    raise ConflictError(
        f"job '{spec.name}' cannot be resized while it runs: {why}",
        f"ask for less, make room, or let it start again: tide resize {spec.name} ... --restart",
    )


def resize_command(task: Task, ref: TaskRef) -> ResizeTask:
    """Return the command that holds a task to what it was given; sending it twice does no harm."""
    return ResizeTask(ref, task.machine, task.resources)


def resize_commands(state: CellState, job: Job, event: JobRevised) -> list[Command]:
    """Return the commands that go with a revision; envelopes run nothing that would have to be told."""
    if job.spec.is_alloc:
        return []
    pairs = [(job.tasks[grant.index], grant) for grant in event.resized]
    return [ResizeTask(state.ref(job, task), task.machine, grant.resources) for task, grant in pairs]


__all__ = ["Resizing", "check_in_place", "plan_resize", "resize_command", "resize_commands"]
