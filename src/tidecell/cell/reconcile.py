"""Desired against observed: what follows from a job's state. Pure.

``step`` says what an input means; this says what the state then asks for: finish a job whose work is
done, tell surplus replicas to leave, stop what was drained, give up what depends on a failure. The
runtime applies the events and asks again until nothing follows.
"""

from __future__ import annotations

from tidecell.cell.admission import blocking
from tidecell.cell.allocs import empty_leavers, find_row, jobs_in, stop_members
from tidecell.cell.drains import closed_machines, drain_steps
from tidecell.cell.rollout import advance
from tidecell.cell.schedules import next_of_schedule
from tidecell.cell.state import CellState, Job, Task
from tidecell.cell.step import Decision, stop_command
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import Cause, TaskState
from tidecell.structs.messages import (
    ClaimDropped,
    JobFinished,
    JobStopping,
    StopTask,
    TaskNoticed,
    TaskStopping,
)

STOP_AFTER_DRAIN_S = 5.0  # what a replica gets to end itself once its drain time is over
SHOWN_FAILURES = 20  # failed items that an array's outcome names
GANG_REPAIR_S = 60.0  # how long survivors of a broken gang wait for the missing replicas to start again


def is_at_rest(state: CellState, job: Job) -> bool:
    """Whether nothing follows from a job's state, as far as a glance tells; False: ``reconcile`` looks."""
    for index in job.leaving:
        notice = job.tasks[index].notice
        if notice is None or not notice.stopping:
            return False
    return _is_plain(state, job)


def _is_plain(state: CellState, job: Job) -> bool:
    """Whether no rule but that for tasks on their way out has a say in a job; most jobs are such."""
    spec = job.spec
    if job.outcome is not None or job.stopping is not None or job.ended or state.drains:
        return False
    if job.rollout is not None or job.extra or job.vacant or len(job.tasks) > job.desired:
        return False
    if spec.max_duration_s or spec.after or spec.schedule is not None or spec.array is not None:
        return False
    is_whole = not 0 < job.num_active < spec.replicas.min or bool(job.leaving)
    return is_whole and not spec.is_alloc and job.uid not in state.index.claims_of


def reconcile(state: CellState, uid: str, now_s: float) -> Decision:
    """Return the next things that follow from this job's state; empty when it is at rest."""
    job = state.jobs.get(uid)
    if job is None:
        return Decision()
    if not _is_plain(state, job):
        return _by_all_rules(state, job, now_s)
    decision = Decision()
    _stop_leavers(state, job, now_s, decision)
    return decision


def check_glance(state: CellState, job: Job, now_s: float) -> None:
    """Raise InvariantError unless what is told at a glance is what all rules say."""
    rules = _by_all_rules(state, job, now_s)
    if is_at_rest(state, job) and (rules.events or rules.commands):
        raise InvariantError(f"job '{job.uid}' seems at rest, and {rules.events} follow", job.story)
    if reconcile(state, job.uid, now_s) != rules:
        raise InvariantError(f"of job '{job.uid}' a glance tells otherwise than {rules}", job.story)


def _by_all_rules(state: CellState, job: Job, now_s: float) -> Decision:
    uid, decision = job.uid, Decision()
    _drop_idle_claims(state, job, now_s, decision)
    if not job.live:
        return decision
    if job.spec.is_alloc and (events := stop_members(state, job)):
        return Decision(events, touched={uid, *(m.uid for m in jobs_in(state, job.spec.name))})
    if job.stopping is None:
        stop = _conclusion(state, job, now_s)
        if stop is not None:
            decision.events.append(stop)
            return decision
    elif not job.num_active:
        decision.events.append(_finish(job))
        return decision
    if job.rollout is not None and (events := advance(state, job, now_s)):
        return Decision(list(events), touched={uid})
    if (state.drains or job.extra) and job.stopping is None and (events := drain_steps(state, job, now_s)):
        return Decision(list(events), touched={uid})
    if job.spec.schedule is not None and job.stopping is None:
        decision.events, decision.touched = next_of_schedule(state, job, now_s)
        return decision
    _tell_leavers(state, job, now_s, decision)
    if job.spec.is_alloc:
        decision.events += empty_leavers(state, job, now_s)
        decision.touched = {uid, *state.index.members.get(job.spec.name, ())} if decision.events else set()
    else:
        _stop_leavers(state, job, now_s, decision)
    return decision


def _drop_idle_claims(state: CellState, job: Job, now_s: float, decision: Decision) -> None:
    closed = closed_machines(state, now_s) if state.drains else frozenset()
    for index, name in state.index.claims_of.get(job.uid, {}).items():
        wanted = job.live and job.stopping is None and index < len(job.tasks) and job.wants(index)
        row = find_row(state, name)
        here = row is not None and name not in closed and row.host not in closed
        if not wanted or not here or job.tasks[index].state is not TaskState.PENDING:
            decision.events.append(ClaimDropped(job.uid, index))


def _conclusion(state: CellState, job: Job, now_s: float) -> JobStopping | JobFinished | None:
    """Return the event that begins the end of a job, if its end has come."""
    if job.spec.schedule is not None:
        return None
    if job.spec.array is None and job.ended[TaskState.FAILED]:
        failed = next(t for t in job.tasks if t.state is TaskState.FAILED)
        text = f"replica {failed.index}: {failed.message}" if len(job.tasks) > 1 else failed.message
        return JobStopping(job.uid, TaskState.FAILED, Cause.FAILED, text, _shell_code(failed.exit_code or 1))
    limit_s = job.spec.max_duration_s
    if limit_s and job.started_s and now_s >= job.started_s + limit_s:
        return JobStopping(job.uid, TaskState.TIMEOUT, Cause.TIMEOUT, f"ran longer than {limit_s:g} s", 124)
    if job.spec.array is not None:
        if not job.open and len(job.tasks) >= job.spec.array.count:
            return _array_conclusion(job)
    elif not job.spec.is_service:
        done = job.num_succeeded
        if done and (job.spec.is_elastic or done >= job.spec.replicas.min):
            return JobStopping(job.uid, TaskState.SUCCEEDED, Cause.COMPLETED)
    if not job.num_active:
        for name, other in blocking(state, job) if job.spec.after else ():
            if other.outcome is not None:
                text = f"comes after '{name}', which is {other.state}"
                return JobFinished(job.uid, TaskState.CANCELLED, 1, text)
    return None


def _array_conclusion(job: Job) -> JobStopping:
    """Every item has ended: the array failed if any did, and says which."""
    failed = [t for t in job.tasks if t.state is TaskState.FAILED]
    if not failed:
        return JobStopping(job.uid, TaskState.SUCCEEDED, Cause.COMPLETED)
    names = ", ".join(str(t.index) for t in failed[:SHOWN_FAILURES])
    more = ", ..." if len(failed) > SHOWN_FAILURES else ""
    text = f"{len(failed)} of {len(job.tasks)} items failed: {names}{more}"
    return JobStopping(job.uid, TaskState.FAILED, Cause.FAILED, text, _shell_code(failed[0].exit_code or 1))


def _shell_code(exit_code: int) -> int:
    """Return an exit status as shells show it: 128 + signal for a killed process."""
    return 128 - exit_code if exit_code < 0 else exit_code


def _finish(job: Job) -> JobFinished:
    stop = job.stopping
    if stop is None:
        raise ValueError(f"job '{job.uid}' is not stopping")
    return JobFinished(job.uid, stop.then, stop.exit_code, stop.message)


def _tell_leavers(state: CellState, job: Job, now_s: float, decision: Decision) -> None:
    """Tell tasks to leave that should not run: of a stopping job all, else those above ``desired``."""
    stop = job.stopping
    if not job.num_staying:
        return
    usual = len(job.tasks) <= job.desired and not job.vacant
    if stop is None and usual and not _gang_is_given_up(job, now_s):
        return  # the usual case, told without a look at each task
    staying = job.staying_tasks()
    if stop is not None:
        leavers, cause, size = staying, stop.cause, 0
    elif _gang_is_given_up(job, now_s):
        leavers, cause, size = staying, Cause.RESIZE, 0
    else:
        leavers = [t for t in staying if not job.wants(t.index)]
        cause, size = Cause.RESIZE, len(staying) - len(leavers)
    grace_s = job.spec.grace_period_s
    if stop is not None and stop.grace_s is not None:
        grace_s = stop.grace_s
    for task in leavers:
        decision.events.append(TaskNoticed(state.ref(job, task), cause, now_s + grace_s, size))
    if leavers:
        decision.touched = {job.uid}


def _gang_is_given_up(job: Job, now_s: float) -> bool:
    """Whether a gang has been below its minimum for too long: then it starts again as a whole.

    Its survivors can do nothing alone and hold what others could use. A service's replicas can.
    """
    if job.spec.is_service or job.spec.array is not None or job.leaving:
        return False
    size = job.num_staying
    if not 0 < size < min(job.spec.replicas.min, job.desired) - job.num_succeeded:
        return False
    # Replicas that were never started are those of somebody's wish for more: no reason to stop what runs.
    gone = [t for t in job.open_tasks() if _is_missed(job, t)]
    return bool(gone) and all(now_s >= max(t.ended_s, t.not_before_s) + GANG_REPAIR_S for t in gone)


def _is_missed(job: Job, task: Task) -> bool:
    return task.state is TaskState.PENDING and task.ended_s > 0 and job.wants(task.index)


def _stop_leavers(state: CellState, job: Job, now_s: float, decision: Decision) -> None:
    """Ask noticed processes to end: at once, or a serving replica when drained or out of time."""
    for index in job.leaving:
        task = job.tasks[index]
        notice = task.notice
        if notice is None or notice.stopping:
            continue
        if _is_draining(job, task) and now_s < notice.deadline_s:
            continue
        ref = state.ref(job, task)
        command = stop_command(job, task, ref, now_s)
        if job.spec.is_service and command.grace_s <= 0 and not _hurried(job):
            command = StopTask(
                ref, task.machine, notice.cause, STOP_AFTER_DRAIN_S, notice.new_size, notice.by
            )
        decision.events.append(TaskStopping(ref))
        decision.commands.append(command)


def _is_draining(job: Job, task: Task) -> bool:
    """Whether requests may still be in flight on this replica."""
    return job.spec.is_service and task.ready and not _hurried(job)


def _hurried(job: Job) -> bool:
    return job.stopping is not None and job.stopping.grace_s == 0.0
