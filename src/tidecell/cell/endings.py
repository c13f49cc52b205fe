"""What the end of one start of a task means for it: done, to be tried again, or given up. Pure.

Causes are counted apart, so that a flaky network does not use up the patience with a faulty program. A
machine on which a task failed is remembered: the scheduler prefers others for it, as Borg "avoids repeating
task::machine pairings that cause task or machine crashes" (EuroSys 2015, section 4).
"""

from __future__ import annotations

from tidecell.cell.records import Job, Task
from tidecell.structs.job import Cause, RetryOn, TaskState
from tidecell.structs.messages import TaskDown, TaskEnded

STABLE_AFTER_S = 300.0  # a task that ran this long starts counting failures anew
MAX_FAILED_ON = 4  # machines remembered of one task; more would leave too few to choose from

_STOPPED_AS = {
    Cause.CANCEL: TaskState.CANCELLED,
    Cause.FAILED: TaskState.CANCELLED,
    Cause.COMPLETED: TaskState.SUCCEEDED,
    Cause.TIMEOUT: TaskState.TIMEOUT,
}
# What `on` has to name for a cause to be retried.
_COVERED_BY = {
    RetryOn.ERROR: (RetryOn.ERROR,),
    RetryOn.OUT_OF_MEMORY: (RetryOn.OUT_OF_MEMORY, RetryOn.ERROR),
    RetryOn.INTERRUPTION: (RetryOn.INTERRUPTION,),
    RetryOn.LOST_MACHINE: (RetryOn.LOST_MACHINE, RetryOn.INTERRUPTION),
}


def task_ended(job: Job, task: Task, down: TaskDown, now_s: float) -> TaskEnded:
    """Return what the end of a task's present start means."""
    cause = task.notice.cause if task.notice is not None else (Cause.LOST if down.lost else None)
    count = _Count.of(task, now_s)
    then, not_before_s = TaskState.PENDING, 0.0
    if job.stopping is not None:
        then = TaskState.SUCCEEDED if _clean_end(job, down) else _STOPPED_AS[job.stopping.cause]
    elif cause is Cause.UPDATE and not down.completed:
        count = _Count()  # a new version starts with a clean slate
    elif task.notice is not None and cause is not Cause.UNHEALTHY and not down.completed:
        pass  # left as told: runs again when there is room
    elif _has_succeeded(job, down) and cause is not Cause.UNHEALTHY:
        then = TaskState.SUCCEEDED
    else:
        why = failure_of(down)
        count.add(why, down.machine)
        then = _after_failure(job, task, down, why, count)
        not_before_s = now_s + pause_s(job, count.failures) if then is TaskState.PENDING else 0.0
    return TaskEnded(
        down.ref,
        then,
        down.machine,
        down.exit_code,
        cause,
        describe_end(down) or (cause.value if cause is Cause.UNHEALTHY else ""),
        not_before_s,
        count.failures,
        down.agent_seq,
        tried=count.tried,
        failed_on=count.failed_on,
    )


class _Count:
    """A task's failures: in a row, by cause, and where."""

    def __init__(
        self, failures: int = 0, tried: dict[str, int] | None = None, failed_on: tuple[str, ...] = ()
    ) -> None:
        self.failures, self.tried, self.failed_on = failures, dict(tried or {}), failed_on

    @classmethod
    def of(cls, task: Task, now_s: float) -> _Count:
        """Return a task's count so far; one that ran for long enough begins anew."""
        if task.started_s and now_s - task.started_s >= STABLE_AFTER_S:
            return cls()
        return cls(task.failures, task.tried, task.failed_on)

    def add(self, why: RetryOn, machine: str) -> None:
        """Count one more."""
        self.failures += 1
        self.tried[why.value] = self.tried.get(why.value, 0) + 1
        others = tuple(name for name in self.failed_on if name != machine)
        self.failed_on = (*others, machine)[-MAX_FAILED_ON:]


def failure_of(down: TaskDown) -> RetryOn:
    """Return what a failed start counts as."""
    if down.lost:
        return RetryOn.LOST_MACHINE
    if down.out_of_memory:
        return RetryOn.OUT_OF_MEMORY
    return RetryOn.INTERRUPTION if down.exit_code == -9 else RetryOn.ERROR


def _after_failure(job: Job, task: Task, down: TaskDown, why: RetryOn, count: _Count) -> TaskState:
    if job.spec.is_alloc:  # nothing of it can fail: its machine went away
        return TaskState.PENDING
    if job.spec.is_service:
        # A version that cannot be started ends its update, not the service.
        keeps_on = not down.error or job.rollout is not None
        return TaskState.PENDING if keeps_on or _may_retry(job, down, why, count) else TaskState.FAILED
    if _is_on_trial(job, task):
        count.failures = max(count.failures, job.spec.retry.max + 1)  # the job goes back to what ran before
        return TaskState.PENDING
    return TaskState.PENDING if _may_retry(job, down, why, count) else TaskState.FAILED


def _may_retry(job: Job, down: TaskDown, why: RetryOn, count: _Count) -> bool:
    """Whether the job's policy covers this cause, and it was not tried too often for it."""
    retry = job.spec.retry
    named = why is RetryOn.ERROR and not down.error and down.exit_code in retry.exit_codes
    covered = named or any(word in retry.on for word in _COVERED_BY[why])
    return covered and count.tried[why.value] <= retry.max


def pause_s(job: Job, failures: int) -> float:
    """Return how long a task waits after so many failures in a row: doubling, up to a limit."""
    retry = job.spec.retry
    return min(retry.backoff_max_s, retry.backoff_s * 2.0 ** min(60, failures - 1))


def _has_succeeded(job: Job, down: TaskDown) -> bool:
    return down.exit_code == 0 and not down.error and not down.lost and not job.spec.is_service


def _clean_end(job: Job, down: TaskDown) -> bool:
    finished_work = down.completed and down.exit_code == 0
    return finished_work or (job.stopping is not None and job.stopping.cause is Cause.COMPLETED)


def _is_on_trial(job: Job, task: Task) -> bool:
    """Whether this start shows if a new version is any good, and there is one to go back to."""
    rollout = job.rollout
    return rollout is not None and task.program == rollout.program and rollout.revert_to > 0


def describe_end(down: TaskDown) -> str:
    """Return in words how a start ended; nothing for a clean end."""
    if down.error:
        return down.error
    if down.lost:
        return "its machine or agent went away"
    if down.out_of_memory:
        return "killed: more memory than its limit"
    if down.exit_code < 0:
        return f"killed by signal {-down.exit_code}"
    return f"exit code {down.exit_code}" if down.exit_code else ""


__all__ = ["MAX_FAILED_ON", "STABLE_AFTER_S", "describe_end", "failure_of", "pause_s", "task_ended"]
