"""What a changed spec of a live job means: what changes in place, what makes a new program. Pure."""

from __future__ import annotations

from msgspec.structs import replace

from tidecell.cell.admission import check_capacity, check_dependencies, resolve_needs
from tidecell.cell.records import CellState, Job, Task, Version
from tidecell.structs.errors import ConflictError, NotFoundError
from tidecell.structs.job import JobSpec
from tidecell.structs.lifecycle import JobRevised, Resize
from tidecell.structs.resources import Resources

# Fields that running tasks need not be started again for. What is not named here makes a new program.
IN_PLACE = frozenset(
    {
        *("name", "kind", "team", "priority", "replicas", "labels", "grace_period_s", "min_runtime_s"),
        *("checkpoint", "preemption", "retry", "max_duration_s", "after", "probes", "scaling", "models"),
        "traffic",
        *("update", "disruptions", "begin_s", "hold", "schedule", "idle_gpu"),
    }
)
# Fields that say what a job is; another value is another job.
_FIXED = {"kind": "kind", "team": "team", "array": "array", "alloc": "alloc"}


def same_program(one: JobSpec, other: JobSpec) -> bool:
    """Return whether a task of one spec need not be started again for the other."""
    return all(getattr(one, f) == getattr(other, f) for f in one.__struct_fields__ if f not in IN_PLACE)


def restart_fields(old: JobSpec, new: JobSpec) -> list[str]:
    """Return the fields that differ and need another start."""
    fields = (f for f in old.__struct_fields__ if f not in IN_PLACE)
    return [f for f in fields if getattr(old, f) != getattr(new, f)]


def without_sizes(spec: JobSpec) -> JobSpec:
    """Return a spec without its cpu and memory: what two specs share that differ in sizes alone."""

    def bare(resources: Resources) -> Resources:
        return Resources(gpu_millis=resources.gpu_millis)

    return replace(
        spec,
        resources=bare(spec.resources),
        any_of=tuple(replace(shape, resources=bare(shape.resources)) for shape in spec.any_of),
        tasks=tuple(
            replace(own, resources=bare(own.resources)) if own.resources is not None else own
            for own in spec.tasks
        ),
    )


def versions(job: Job) -> list[Version]:
    """Return a job's versions, oldest first; one that was never changed has one."""
    if job.history:
        return job.history
    return [Version(1, job.spec, job.submitted_s, 1, job.who, stable=job.started_s > 0)]


def spec_of(job: Job, task: Task) -> JobSpec:
    """Return the spec that a task was started with."""
    if task.program == job.program:
        return job.spec
    mine = [v.spec for v in job.history if v.program == task.program]
    return mine[-1] if mine else job.spec


def version_of(job: Job, task: Task) -> int:
    """Return the number of the newest version that a task's program belongs to."""
    if task.program == job.program:
        return job.version
    return max((v.number for v in job.history if v.program == task.program), default=task.program)


def is_outdated(job: Job, task: Task) -> bool:
    """Return whether a task runs a program that its job has left behind."""
    return task.program != job.program


def revise(
    state: CellState,
    job: Job,
    spec: JobSpec,
    who: str,
    why: str = "",
    proven: bool = False,
    resized: tuple[Resize, ...] | None = None,
) -> JobRevised | None:
    """Return the event that gives a live job this spec; None if it has it already.

    Args:
        state: The cell as it is.
        job: A live job.
        spec: What it should be.
        who: Who asked for it.
        why: What for, if not for its own sake: a rollback, a revert.
        proven: It was healthy before: no canaries, and nothing to go back to.
        resized: Running replicas that get its sizes where they are and keep their program; None: none can.

    Raises:
        ConflictError: Another kind or team is another job.
        RefusedError: No machine could hold it, or it comes after a job that does not exist.
    """
    if spec == job.spec:
        return None
    for name, word in _FIXED.items():
        if getattr(spec, name) != getattr(job.spec, name):
            raise ConflictError(
                f"job '{spec.name}' runs, and its {word} cannot change while it does: "
                f"{getattr(job.spec, name) or '(none)'} -> {getattr(spec, name) or '(none)'}",
                f"stop it first (tide stop {spec.name}), or give the new one another name",
            )
    if (spec.schedule is None) is not (job.spec.schedule is None):
        raise ConflictError(
            f"job '{spec.name}' is live, and cannot begin or cease to be a schedule while it is",
            f"stop it first (tide stop {spec.name}), or give the new one another name",
        )
    check_dependencies(state, spec)
    check_capacity(state, spec, spec.replicas)
    number = job.version + 1
    program = job.program if resized is not None else _program(job, spec, number)
    # Items of an array run once each: those that run finish as they are, later ones start as the new version.
    outdated = [t for t in job.staying_tasks() if t.program != program and spec.array is None]
    rolls = bool(outdated) or (job.rollout is not None and job.rollout.program != program)
    careful = rolls and not proven
    return JobRevised(
        uid=job.uid,
        version=number,
        program=program,
        spec=spec,
        who=who,
        why=why,
        needs=resolve_needs(state, spec, job.needs),
        rolls=rolls,
        revert_to=_last_good(job, program) if careful and spec.update.auto_revert else 0,
        canary=spec.update.canary if careful and spec.is_service and outdated else 0,
        resized=resized or (),
    )


def _program(job: Job, spec: JobSpec, number: int) -> int:
    """Return the program of a spec: that of a version alike, else a new one.

    A program's sizes may have changed while it ran; its tasks have those of its newest version.
    """
    newest = {v.program: v.spec for v in versions(job)}
    return next((p for p, known in reversed(newest.items()) if same_program(known, spec)), number)


def _last_good(job: Job, program: int) -> int:
    return max((v.number for v in versions(job) if v.stable and v.program != program), default=0)


def earlier(job: Job, number: int) -> Version:
    """Return the version to roll back to; 0: the last healthy one before the newest.

    Raises:
        NotFoundError: There is no such version, or none before this one.
    """
    known = versions(job)
    if number:
        found = next((v for v in known if v.number == number), None)
        if found is None:
            have = ", ".join(str(v.number) for v in known)
            raise NotFoundError(
                f"job '{job.spec.name}' has no version {number}; it has {have}",
                f"tide history {job.spec.name}",
            )
        return found
    before = [v for v in known if v.number < job.version and v.spec != job.spec]
    if not before:
        raise NotFoundError(
            f"job '{job.spec.name}' has no earlier version", "tide apply -f FILE makes a new one"
        )
    good = [v for v in before if v.stable]
    return (good or before)[-1]


def restored(job: Job, version: Version) -> JobSpec:
    """Return a version's spec; replicas and priority that were changed by hand since stay as they are."""
    newest = versions(job)[-1].spec
    spec = version.spec
    if job.spec.replicas != newest.replicas:
        spec = replace(spec, replicas=job.spec.replicas)
    if job.spec.priority != newest.priority:
        spec = replace(spec, priority=job.spec.priority)
    return spec
