"""How many more replicas of a job may be taken now, all causes counted together. Pure.

Preemption, drains, updates and the autoscaler ask here; crashes and lost machines do not ask and use the
budget up. What the owner does (stop, scale) does not ask and uses nothing up. The idea is Borg's ("the rate
of task disruptions ... and the number of tasks from a job that can be simultaneously down", EuroSys 2015,
section 4), counted like a Kubernetes PodDisruptionBudget, but over every cause.
"""

from __future__ import annotations

from tidecell.cell.records import Job, Task
from tidecell.structs.job import Cause, TaskState

# Causes that ask; a CANCEL is the owner's, the others follow from a failure or the job's own end.
ASKING = frozenset({Cause.PREEMPT, Cause.DRAIN, Cause.UPDATE, Cause.RESIZE})


def is_available(task: Task) -> bool:
    """Return whether a replica does its work: runs, was not told to leave, and is ready."""
    return task.state is TaskState.RUNNING and task.notice is None and task.ready


def spare_disruptions(job: Job) -> int | None:
    """Return how many replicas may still be taken; None: the job sets no budget. May be negative."""
    if job.spec.disruptions is None:
        return None
    limit = job.spec.disruptions.max_unavailable.of(job.desired)
    return limit - num_down(job)


def num_down(job: Job) -> int:
    """Return how many replicas are missing or on their way out for any cause but the owner's wish.

    An elastic job grows where there is room, so only what its gang lacks is missing of it.
    """
    base = job.desired
    if not job.spec.is_service and job.spec.is_elastic:
        base = min(job.spec.replicas.min, job.desired)
    done = job.num_succeeded
    available = sum(1 for t in job.tasks if is_available(t))
    leaving = [t for t in job.tasks if t.notice is not None and not _is_owners(job, t)]
    needed = sum(1 for t in leaving if job.wants(t.index))
    return max(base - available - done, needed) + len(leaving) - needed


def _is_owners(job: Job, task: Task) -> bool:
    """Whether a replica leaves because the owner wants fewer: nobody else's doing."""
    notice = task.notice
    by_load = job.spec.scaling is not None
    return notice is not None and notice.cause is Cause.RESIZE and not by_load
