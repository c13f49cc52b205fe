"""Schedules: what a job with ``schedule`` does as time passes. Pure.

Each firing is decided once: ``through_s`` only rises, and is journaled together with what was decided.
A run is accepted in the same event that takes its firing off the list, so that neither a crash nor a
clock that jumps starts one twice or loses one.
"""

from __future__ import annotations

from msgspec.structs import replace

from tidecell.cell.admission import check_admissible, resolve_needs
from tidecell.cell.quota import check_quota
from tidecell.cell.records import CellState, Job
from tidecell.structs.cron import Schedule, due, run_name
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import Cause, TaskState
from tidecell.structs.messages import Event, JobAccepted, JobStopping, ScheduleDecided

MAX_DUE = 1000  # firings that may wait for their turn; more are let go


def next_of_schedule(state: CellState, job: Job, now_s: float) -> tuple[list[Event], set[str]]:
    """Return what a schedule leads to now, and which other jobs that touches; nothing if it rests."""
    schedule = job.spec.schedule
    if schedule is None or job.held:
        return [], set()
    decided = _decide(state, job, schedule, now_s)
    if decided is not None:
        return [decided], set()
    return _start(state, job, schedule, now_s) if job.due else ([], set())


def _running(state: CellState, job: Job) -> Job | None:
    """Return the run that is not over; there is never more than one."""
    return next((r for uid in reversed(job.runs) if (r := state.jobs[uid]).live), None)


def _decide(state: CellState, job: Job, schedule: Schedule, now_s: float) -> ScheduleDecided | None:
    """Decide what became due: run it, queue it, or let it go."""
    found = due(schedule, job.through_s, now_s)
    if found is None:
        return None
    owed, skipped, why = list(job.due), found.skipped, "missed" if found.skipped else ""
    for place, target_s in enumerate(found.targets):
        busy = bool(owed) or _running(state, job) is not None
        if schedule.overlap == "replace":
            skipped, owed, why = skipped + len(owed), [target_s], why or ("replaced" if owed else "")
        elif (busy and schedule.overlap == "skip" and place >= found.late) or len(owed) >= MAX_DUE:
            skipped, why = skipped + 1, "the run before is still going"
        else:
            owed.append(target_s)
    through_s = found.through_s if len(owed) < MAX_DUE else now_s
    return ScheduleDecided(job.uid, through_s, tuple(owed), skipped, why)


def _start(state: CellState, job: Job, schedule: Schedule, now_s: float) -> tuple[list[Event], set[str]]:
    """Start the run that is due first, once the one before is over."""
    before = _running(state, job)
    if before is not None:
        if schedule.overlap != "replace" or before.stopping is not None:
            return [], set()
        stop = JobStopping(before.uid, TaskState.CANCELLED, Cause.CANCEL, "replaced by the next run")
        return [stop], {before.uid}
    refused = ""
    for place, target_s in enumerate(job.due):
        name = run_name(job.spec.name, schedule, target_s)
        spec = replace(job.spec, name=name, schedule=None, hold=False, begin_s=0.0)
        try:
            check_admissible(state, spec)
            check_quota(state, spec, now_s)
        except TidecellError as error:
            refused = error.message
            continue
        uid = f"{name}.s{job.uid.rpartition('.')[2]}"  # the s: no job that is submitted has such a uid
        lost = ScheduleDecided(job.uid, job.through_s, job.due[place:], place, refused)
        needs = resolve_needs(state, spec)
        accepted = JobAccepted(uid, spec, needs, job.who, parent=job.uid, target_s=target_s)
        return [*([lost] if place else []), accepted], {uid}
    return [ScheduleDecided(job.uid, job.through_s, (), len(job.due), refused)], set()
