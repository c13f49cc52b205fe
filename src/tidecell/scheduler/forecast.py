"""When a waiting job starts at the latest, as far as time limits tell. Pure.

The scheduler is run again at each moment at which something must have ended: what is leaving at its
deadline, what runs at the end of its ``max_duration`` and grace period. Work without a limit never
ends here, so a forecast that would rest on it is not made.
"""

from __future__ import annotations

from msgspec.structs import replace

from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView, Waiting
from tidecell.scheduler.whatif import carry_out, find_job, num_missing, num_staying
from tidecell.scheduler.words import listed
from tidecell.structs.job import Reason

MAX_MOMENTS = 100


def expected_start(snapshot: Snapshot, job: JobView, waiting: Waiting, seed: int = 0) -> tuple[float, str]:
    """Return when what waits of this job starts at the latest (0: unknown), and what that rests on."""
    if Reason.DEPENDENCY in waiting.reasons:
        return 0.0, f"unknown: when {listed(repr(n) for n in job.blocked_by)} succeeded"
    if Reason.ON_HOLD in waiting.reasons:
        return 0.0, "unknown: when somebody releases it"
    if waiting.reasons[0] is Reason.NO_MATCHING_MACHINE:
        return 0.0, "never: this cell could not hold it even if it were empty"
    if not snapshot.machines:
        return 0.0, "unknown: when a machine joins"
    goal = num_staying(job) + max(1, num_missing(job))
    ended: list[str] = []
    for _ in range(MAX_MOMENTS):
        plan, _trace = schedule(snapshot, seed)
        snapshot = carry_out(snapshot, plan)
        now = find_job(snapshot, job.uid)
        if now is not None and num_staying(now) >= goal:
            return snapshot.now_s, _rests_on(ended)
        moment = _next_moment(snapshot, job)
        if moment is None:
            break
        if moment[0] >= job.ends_by_s > 0 and num_staying(job):
            return 0.0, "unknown: it may reach its own max_duration first"
        snapshot, names = _at(snapshot, *moment)
        ended += names
    return 0.0, _unknown(snapshot, job)


def _end_s(job: JobView, task: TaskView) -> float:
    """Return when a running task is gone at the latest; 0: unknown."""
    if task.leaving:
        return task.leaving_by_s
    return job.ends_by_s + job.spec.grace_period_s if job.ends_by_s else 0.0


def _next_moment(snapshot: Snapshot, mine: JobView) -> tuple[float, str] | None:
    """Return the next moment at which something ends, and whose it is (empty: a back-off)."""
    moments = [
        (end_s, job.uid)
        for job in snapshot.jobs
        for task in job.tasks
        if task.machine and (job.uid != mine.uid or task.leaving) and (end_s := _end_s(job, task))
    ]
    moments += [(j.begin_s, "") for j in snapshot.jobs if j.begin_s > snapshot.now_s and j.tasks]
    moments += [
        (t.not_before_s, "") for j in snapshot.jobs for t in j.tasks if t.not_before_s > snapshot.now_s
    ]
    if snapshot.policy is not None:  # a quota begins or ends; what was waited for long enough is taken back
        now_s, policy = snapshot.now_s, snapshot.policy
        changes = [q.next_change_s(now_s) for t in policy.teams for q in t.quotas.values()]
        changes.append(mine.submitted_s + policy.patience_s)
        moments += [(at_s, "") for at_s in changes if at_s > now_s]
    return min(moments, default=None)


def _at(snapshot: Snapshot, at_s: float, uid: str) -> tuple[Snapshot, list[str]]:
    """Return the snapshot at that moment, what must have ended by then gone; and the names of that."""
    jobs, names = [], []
    at_s = max(at_s, snapshot.now_s)
    for job in snapshot.jobs:
        if job.uid != uid:
            jobs.append(job)
            continue
        names.append(job.name)
        over = job.stopping or (job.ends_by_s and at_s >= job.ends_by_s + job.spec.grace_period_s)
        tasks = [t if not t.machine or _end_s(job, t) > at_s else _again(job, t) for t in job.tasks]
        kept = tuple(t for t in tasks if t is not None)
        if not over:
            jobs.append(replace(job, tasks=kept))
    return replace(snapshot, now_s=at_s, jobs=tuple(jobs)), names


def _again(job: JobView, task: TaskView) -> TaskView | None:
    """What becomes of a task that was told to leave: it waits again where it is still wanted."""
    return TaskView(task.index, pending=True) if job.wants(task.index) else None


def _rests_on(ended: list[str]) -> str:
    if not ended:
        return "as soon as the scheduler looks again"
    return f"when {listed(ended)} must have ended, if nothing more important comes"


def _unknown(snapshot: Snapshot, mine: JobView) -> str:
    endless = [
        job.name
        for job in snapshot.jobs
        if job.uid != mine.uid
        and job.spec.alloc == mine.spec.alloc
        and not job.ends_by_s
        and any(t.machine and not t.leaving for t in job.tasks)
    ]
    if not endless:
        if snapshot.closed:
            return f"unknown: {listed(snapshot.closed)} must take work again first"
        return "unknown: it would not fit even when all else has ended"
    verb = "has" if len(set(endless)) == 1 else "have"
    return f"unknown: {listed(endless[:4])} {verb} no max_duration"
