"""Allocs: reservations that other jobs enter and leave. Pure.

A replica of an alloc is an envelope: it holds capacity of a machine and runs nothing. To the scheduler it is
one more machine, named ``alloc/index``, that takes the alloc's own jobs and no others; what is in it counts
once, as the alloc's. Its tasks leave with it, and it leaves when the last of them has gone. (Borg, EuroSys
2015, section 2.4.)
"""

from __future__ import annotations

from collections.abc import Iterator

from tidecell.cell.endings import task_ended
from tidecell.cell.records import CellState, Job, Task
from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.job import Cause, JobSpec, TaskState
from tidecell.structs.machine import Accelerator, MachineSpec
from tidecell.structs.messages import ClaimDropped, Event, JobStopping, TaskDown, TaskNoticed
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import team_of

SHOWN_JOBS = 5  # names of jobs inside that a message lists


def envelopes(state: CellState) -> Iterator[MachineSpec]:
    """Yield the envelopes that may be entered, as machines; those that leave are not among them."""
    for uid in state.index.allocs:
        job = state.jobs[uid]
        for task in job.staying_tasks() if job.stopping is None else ():
            host = state.machines.get(task.machine)
            if host is not None and host.up:
                yield _envelope(job, task, host.spec)


def find_row(state: CellState, name: str) -> MachineSpec | None:
    """Return a machine that is up, or an envelope that may be entered; None: there is no such."""
    machine = state.machines.get(name)
    if machine is not None:
        return machine.spec if machine.up else None
    alloc, _, number = name.rpartition("/")
    job = state.find(alloc) if alloc else None
    if job is None or not job.spec.is_alloc or not job.live or job.stopping is not None:
        return None
    task = job.tasks[int(number)] if number.isdigit() and int(number) < len(job.tasks) else None
    if task is None or not task.active or task.notice is not None:
        return None
    host = state.machines.get(task.machine)
    return _envelope(job, task, host.spec) if host is not None and host.up else None


def _envelope(job: Job, task: Task, host: MachineSpec) -> MachineSpec:
    return host.envelope(job.spec.envelope_name(task.index), task.resources, task.accelerators)


def empty_envelopes(alloc: JobSpec) -> list[MachineSpec]:
    """Return the envelopes that an alloc asks for, wherever they will be."""
    found = []
    for index in range(alloc.replicas.max):
        asked = alloc.request(index)
        devices = tuple(Accelerator(i, alloc.accelerator_type) for i in range(asked.num_accelerators))
        found.append(MachineSpec(alloc.envelope_name(index), asked, devices, host="?"))
    return found


def jobs_in(state: CellState, name: str) -> list[Job]:
    """Return the live jobs that are in an alloc, or wait to enter it, oldest first."""
    return [state.jobs[uid] for uid in state.index.members.get(name, ())]


def free_of(state: CellState, job: Job) -> dict[str, Resources]:
    """Return what nobody in an alloc uses, by envelope; of other jobs nothing."""
    if not job.spec.is_alloc:
        return {}
    names = {job.spec.envelope_name(t.index): t.resources for t in job.active_tasks()}
    return {name: room - state.index.load(name).used.resources for name, room in names.items()}


# ----------------------------------------------------------------------------------------- asked for


def alloc_of(state: CellState, spec: JobSpec) -> JobSpec:
    """Return the spec of the alloc that a job enters.

    Raises:
        RefusedError: There is none of that name, it is another team's, or of a lower band than the job.
    """
    job = state.find(spec.alloc)
    if job is None or not job.live or job.stopping is not None or not job.spec.is_alloc:
        names = ", ".join(state.jobs[uid].spec.name for uid in state.index.allocs) or "none"
        what = f"is a {job.spec.kind.value}, no alloc" if job is not None and job.live else "is not there"
        raise RefusedError(
            f"job '{spec.name}' is for alloc '{spec.alloc}', which {what}; allocs are: {names}",
            f"make it first: tide alloc {spec.alloc} --cpu 4, or take alloc out",
        )
    if team_of(job.spec) != team_of(spec):
        raise RefusedError(
            f"job '{spec.name}' is of team '{team_of(spec)}'; "
            f"alloc '{spec.alloc}' is of team '{team_of(job.spec)}'",
            f"set team: {job.spec.team or 'nothing'}, or make an alloc of your own",
        )
    _check_band(spec, job.spec)
    return job.spec


def _check_band(spec: JobSpec, alloc: JobSpec) -> None:
    mine, other = spec.priority.band, alloc.priority.band
    if mine > other:
        raise RefusedError(
            f"job '{spec.name}' would be {mine.word} in alloc '{alloc.name}', which is {other.word}: "
            f"what may evict the alloc could not evict the job",
            f"set priority: {other.word} or lower, or raise the alloc's",
        )


def check_bands(state: CellState, spec: JobSpec) -> None:
    """Raise RefusedError if a changed spec would put a job above its alloc's band."""
    if spec.alloc:
        alloc = state.find(spec.alloc)
        if alloc is not None and alloc.live:
            _check_band(spec, alloc.spec)
    for member in jobs_in(state, spec.name) if spec.is_alloc else ():
        _check_band(member.spec, spec)


def check_stop(state: CellState, job: Job, force: bool) -> None:
    """Raise ConflictError if jobs are in an alloc that somebody stops without saying that he knows."""
    inside = jobs_in(state, job.spec.name) if job.spec.is_alloc and not force else []
    if inside:
        names = ", ".join(j.spec.name for j in inside[:SHOWN_JOBS])
        more = ", ..." if len(inside) > SHOWN_JOBS else ""
        count = "1 job is" if len(inside) == 1 else f"{len(inside)} jobs are"
        raise ConflictError(
            f"{count} in alloc '{job.spec.name}': {names}{more}",
            f"stop them first, or tide stop {job.spec.name} --force stops them too",
        )


# ------------------------------------------------------------------------------------- what follows


def stop_members(state: CellState, job: Job) -> list[Event]:
    """Return what a stopping alloc means for the jobs in it: they end as well."""
    stop = job.stopping
    if stop is None:
        return []
    text = f"its alloc '{job.spec.name}' ended" + (f": {stop.message}" if stop.message else "")
    return [
        JobStopping(member.uid, TaskState.CANCELLED, Cause.CANCEL, text, 1, stop.grace_s)
        for member in jobs_in(state, job.spec.name)
        if member.stopping is None
    ]


def empty_leavers(state: CellState, job: Job, now_s: float) -> list[Event]:
    """Return what follows for envelopes that were told to leave: their tasks go first, then they."""
    out: list[Event] = []
    for index in job.leaving:
        task = job.tasks[index]
        load = state.index.load(job.spec.envelope_name(index))
        out += [ClaimDropped(*key) for key in load.claims]
        if not load.tasks:
            down = TaskDown(state.ref(job, task), task.machine)
            out.append(task_ended(job, task, down, now_s))
        elif job.stopping is None:
            out += _notices(state, task, list(load.tasks))
    return out


def _notices(state: CellState, envelope: Task, keys: list[tuple[str, int]]) -> list[Event]:
    """Tell the tasks in an envelope to leave by when it has to be empty, for the same cause."""
    notice = envelope.notice
    if notice is None:
        return []
    cause = notice.cause if notice.cause is Cause.PREEMPT else Cause.DRAIN
    out: list[Event] = []
    sizes: dict[str, int] = {}
    for uid, index in sorted(keys):
        member = state.jobs[uid]
        task = member.tasks[index]
        if task.notice is not None:
            continue
        sizes[uid] = sizes.get(uid, member.num_staying) - 1
        ref = state.ref(member, task)
        out.append(TaskNoticed(ref, cause, notice.deadline_s, sizes[uid], notice.by, forced=True))
    return out


__all__ = [
    "alloc_of",
    "check_bands",
    "check_stop",
    "empty_envelopes",
    "empty_leavers",
    "envelopes",
    "find_row",
    "free_of",
    "jobs_in",
    "stop_members",
]
