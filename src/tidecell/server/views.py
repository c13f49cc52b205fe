"""The cell's state as the API's views. Reads; changes nothing."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping

from msgspec.structs import replace

from tidecell.cell.allocs import free_of, jobs_in
from tidecell.cell.disruptions import num_down, spare_disruptions
from tidecell.cell.drains import describe_drain
from tidecell.cell.rollout import progress, waits_for
from tidecell.cell.state import CellState, Job, Machine, Task
from tidecell.cell.versions import version_of, versions
from tidecell.client.specform import spec_diff
from tidecell.client.views import (
    ArrayStatus,
    DisruptionStatus,
    DrainStatus,
    Fix,
    JobStatus,
    MachineStatus,
    TaskStatus,
    UpdateStatus,
    VersionView,
    WaitingStatus,
    WhyView,
)
from tidecell.scheduler.snapshot import PlanTrace
from tidecell.scheduler.words import about
from tidecell.structs.cron import next_target_s
from tidecell.structs.job import TERMINAL, Cause, Reason, TaskState
from tidecell.structs.messages import TaskRef
from tidecell.structs.resources import Resources

MAX_ITEMS_SHOWN = 100  # of a large array

Use = Mapping[TaskRef, tuple[int, int]]  # measured cpu_millis and memory_bytes of a start


def job_status(
    state: CellState,
    job: Job,
    trace: PlanTrace,
    use: Use,
    router_url: str = "",
    now_s: float = 0.0,
    places: Mapping[str, tuple[int, int]] | None = None,
    last_used: Mapping[str, float] | None = None,
    brief: bool = False,
) -> JobStatus:
    """Return one run as the API shows it.

    Args:
        state: The cell.
        job: The run.
        trace: What the scheduler said last.
        use: What tasks were measured to use.
        router_url: Where services are reached.
        now_s: The present.
        places: As ``queue_places`` found them, for many at once.
        last_used: When dev sessions were last used, by uid.
        brief: Leave its tasks out.
    """
    place = (places if places is not None else queue_places(state, trace)).get(job.uid, (0, 0))
    spec = job.spec
    running = sum(1 for t in job.open_tasks() if t.state is TaskState.RUNNING)
    ready = sum(1 for t in job.open_tasks() if t.state is TaskState.RUNNING and t.ready)
    waiting = trace.waiting.get(job.uid) if job.live and job.stopping is None else None
    return JobStatus(
        uid=job.uid,
        name=spec.name,
        kind=spec.kind.value,
        state=job.state,
        priority=str(spec.priority),
        band=spec.priority.band.word,
        replicas=spec.replicas,
        desired=job.desired,
        running=running,
        ready=ready,
        submitted_s=job.submitted_s,
        resources=spec.resources,
        started_s=job.started_s,
        finished_s=job.finished_s,
        exit_code=job.exit_code,
        message=job.message or (waiting.detail if waiting else ""),
        stopping=job.stopping.cause.value if job.stopping is not None and job.live else "",
        waiting=WaitingStatus(waiting.reasons, waiting.detail, waiting.num_tasks) if waiting else None,
        tasks=() if brief else tuple(_task_status(state, job, t, use) for t in _shown_tasks(job)),
        command=spec.run or shlex.join(spec.argv),
        workdir=spec.workdir,
        models=spec.models,
        endpoint=f"{router_url}/services/{spec.name}/" if spec.is_service and router_url else "",
        desired_why=job.desired_why,
        last_event=_last_event(job),
        labels=spec.labels,
        team=spec.team,
        version=job.version,
        update=_update_status(job, now_s),
        array=_array_status(job),
        held=job.held,
        begin_s=job.begin_s,
        schedule=spec.schedule,
        next_s=_next_s(job),
        runs=tuple(state.jobs[uid].spec.name for uid in job.runs),
        parent=job.parent,
        alloc=spec.alloc,
        members=tuple(j.spec.name for j in jobs_in(state, spec.name)) if spec.is_alloc else (),
        free=free_of(state, job),
        position=place[0] if waiting else 0,
        team_position=place[1] if waiting else 0,
        disruptions=_disruption_status(job),
        last_used_s=last_used.get(job.uid, 0.0) if last_used else 0.0,
        idle_timeout_s=spec.idle_timeout_s,
    )


def _next_s(job: Job) -> float:
    """Return when a schedule fires next: what is owed already, else by its expression."""
    schedule = job.spec.schedule
    if schedule is None or job.held or not job.live:
        return 0.0
    return job.due[0] if job.due else next_target_s(schedule.cron, schedule.timezone, job.through_s)


def schedule_why(job: Job, now_s: float) -> WhyView:
    """Say what a schedule waits for: it has no replicas of its own that the scheduler could speak of."""
    spec, next_s = job.spec, _next_s(job)
    view = WhyView(spec.name, job.uid, job.state, job.submitted_s)
    if job.stopping is not None:
        return replace(view, message="it is stopping")
    if job.held:
        fix = Fix("held -> released", f"tide release {spec.name}", "then it fires again")
        detail = f"held back; tide release {spec.name} lets it fire again"
        return replace(view, reasons=(Reason.ON_HOLD,), detail=detail, fixes=(fix,))
    if next_s <= now_s:
        detail = "the next run is due, and starts when the one before is over"
        return replace(view, reasons=(Reason.DEPENDENCY,), detail=detail)
    cron = spec.schedule.cron if spec.schedule is not None else ""
    detail = f"fires at '{cron}', next in {about(next_s - now_s)}"
    return replace(
        view,
        reasons=(Reason.BEGIN_TIME,),
        detail=detail,
        expected_s=next_s,
        expected_why="by its schedule",
    )


def queue_places(state: CellState, trace: PlanTrace) -> dict[str, tuple[int, int]]:
    """Return the places of all that wait in scheduling order: among all, and among their team's."""

    def team(uid: str) -> str:
        job = state.jobs.get(uid)
        return job.spec.team if job is not None else ""

    return trace.positions(team)


def _shown_tasks(job: Job) -> list[Task]:
    """All replicas; of an array those that are worth a line."""
    if job.spec.array is None:
        return job.tasks
    shown = {t.index: t for t in job.open_tasks()[:MAX_ITEMS_SHOWN]}
    shown |= {i: job.tasks[i] for i in _failed(job)}
    if len(job.tasks) <= MAX_ITEMS_SHOWN:
        return job.tasks
    return [shown[i] for i in sorted(shown)]


def _failed(job: Job) -> tuple[int, ...]:
    if not job.ended[TaskState.FAILED]:
        return ()
    return tuple(t.index for t in job.tasks if t.state is TaskState.FAILED)[:MAX_ITEMS_SHOWN]


def _array_status(job: Job) -> ArrayStatus | None:
    """Count items by state; those that were not opened yet wait, or were cancelled with the job."""
    array = job.spec.array
    if array is None:
        return None
    counts = Counter(t.state for t in job.open_tasks()) + job.ended
    unseen = array.count - len(job.tasks)
    if unseen:
        counts[job.outcome or TaskState.PENDING] += unseen
    words = {state.value: counts[state] for state in TaskState if counts[state]}
    return ArrayStatus(array.count, job.spec.replicas.max, words, _failed(job))


def _task_status(state: CellState, job: Job, task: Task, use: Use) -> TaskStatus:
    cpu_millis, memory_bytes = use.get(state.ref(job, task), (0, 0)) if task.active else (0, 0)
    return TaskStatus(
        index=task.index,
        state=task.state,
        attempt=task.attempt,
        wanted=job.wants(task.index) and job.live,
        machine=task.machine,
        pid=task.pid,
        port=task.port,
        ready=task.ready,
        started_s=task.started_s,
        ended_s=task.ended_s if not task.active else 0.0,
        leaving=task.notice.cause.value if task.notice is not None else "",
        leaving_by_s=task.notice.deadline_s if task.notice is not None else 0.0,
        exit_code=task.exit_code,
        message=task.message,
        cpu_millis=cpu_millis,
        memory_bytes=memory_bytes,
        accelerators=task.accelerators,
        version=version_of(job, task),
        envelope=task.envelope,
    )


def _update_status(job: Job, now_s: float) -> UpdateStatus | None:
    rollout = job.rollout
    if rollout is None or not job.live:
        return None
    now = progress(job, now_s)
    phase = "halted" if rollout.halted else "rolling" if rollout.promoted else "canary"
    text = waits_for(job, now_s)
    return UpdateStatus(
        rollout.version, phase, len(now.healthy), len(now.old), text, started_s=rollout.started_s
    )


def _disruption_status(job: Job) -> DisruptionStatus | None:
    spare, budget = spare_disruptions(job), job.spec.disruptions
    if spare is None or budget is None or not job.live:
        return None
    return DisruptionStatus(str(budget.max_unavailable), num_down(job), spare)


def version_views(job: Job) -> list[VersionView]:
    """Return a job's versions, oldest first, each with what it changed."""
    known = versions(job)
    out = []
    for before, version in zip([None, *known], known, strict=False):
        changes = tuple(spec_diff(before.spec, version.spec)) if before is not None else ("created",)
        out.append(
            VersionView(
                number=version.number,
                at_s=version.at_s,
                who=version.who,
                why=version.why,
                changes=changes,
                stable=version.stable,
                current=version.number == job.version,
            )
        )
    return out


def _last_event(job: Job) -> str:
    """Name what happened last where the state alone does not tell: a preempted job is PENDING again."""
    for task in job.open_tasks():
        if task.notice is not None and task.notice.cause is Cause.PREEMPT:
            return f"PREEMPTED by {task.notice.by} (leaving)"
    if job.live and any(
        t.last_cause is Cause.PREEMPT and t.state is TaskState.PENDING and job.wants(t.index)
        for t in job.open_tasks()
    ):
        return "PREEMPTED"
    return ""


def machine_status(state: CellState, machine: Machine, use: Use, now_s: float = 0.0) -> MachineStatus:
    """Return one machine as the API shows it."""
    load = state.index.load(machine.spec.name)
    reserved = load.used.resources
    cpu_used = memory_used = count = 0
    for uid, index in load.tasks:
        job = state.jobs[uid]
        count += 1
        cpu, memory = use.get(state.ref(job, job.tasks[index]), (0, 0))
        cpu_used, memory_used = cpu_used + cpu, memory_used + memory
    return MachineStatus(
        name=machine.spec.name,
        up=machine.up,
        capacity=machine.spec.capacity,
        reserved=reserved,
        free=machine.spec.capacity - reserved if machine.up else Resources(),
        isolation=machine.spec.isolation,
        num_tasks=count,
        cpu_used_millis=cpu_used,
        memory_used_bytes=memory_used,
        accelerators=machine.spec.accelerators,
        attributes=machine.spec.attributes,
        sharing=machine.spec.sharing,
        holds=machine.spec.holds,
        held_until_s=machine.release_s if machine.held else 0.0,
        drain=_drain_status(state, machine, count, now_s),
    )


def _drain_status(state: CellState, machine: Machine, num_tasks: int, now_s: float) -> DrainStatus | None:
    drain = state.drains.get(machine.spec.name)
    if drain is None:
        return None
    text = describe_drain(drain, now_s, num_tasks)
    drained = num_tasks == 0 and now_s >= drain.start_s
    return DrainStatus(drain.start_s, drain.deadline_s, text, drain.who, drained)


def is_done(job: Job) -> bool:
    """Return whether a run has its outcome."""
    return job.outcome in TERMINAL
