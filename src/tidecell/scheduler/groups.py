"""What could leave together: one replica above a job's minimum, or all that remain of its gang. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tidecell.scheduler.damping import dearer_s, protected_s
from tidecell.scheduler.snapshot import JobView, TaskView
from tidecell.structs.job import Preemption


@dataclass(slots=True, eq=False)  # not frozen: a pass may look at as many as there are tasks
class Group:
    """Tasks of one job that go together: one replica above min, or all that remain of a gang."""

    job: JobView
    tasks: tuple[TaskView, ...]
    whole: bool
    now_s: float

    def cost(self) -> tuple[int, int, int, float, str]:
        """Sort key, cheapest first: above min, low band, low order, little work lost (see damping)."""
        lost_s = sum([_work_at_risk_s(self.job, t, self.now_s) + dearer_s(t, self.now_s) for t in self.tasks])
        priority = self.job.spec.priority
        return (int(self.whole), int(priority.band), priority.order, lost_s, self.job.uid)


def _work_at_risk_s(job: JobView, task: TaskView, now_s: float) -> float:
    """Return seconds of work that stopping this task may lose: since its start or last checkpoint."""
    checkpoint = job.spec.checkpoint
    ran_s = task.running_s(now_s)
    return min(ran_s, checkpoint.every_s) if checkpoint is not None else ran_s


def groups_of(job: JobView, now_s: float, lower: bool = True) -> list[Group]:
    """Return what of a job may be taken, single replicas first; ``lower``: by somebody of a higher band."""
    policy = job.spec.preemption
    if policy is Preemption.NEVER or job.stopping:
        return []
    staying = [t for t in job.tasks if t.machine and not t.leaving]
    if not staying:
        return []
    floor_s, young = job.spec.min_runtime_s, set[int]()
    if floor_s or not lower:
        least_s = [floor_s if lower else max(floor_s, protected_s(t, now_s)) for t in staying]
        young = {t.index for t, s in zip(staying, least_s, strict=True) if t.running_s(now_s) < s}
    spare = max(0, len(staying) + len(job.done) - job.spec.replicas.min)
    above, rest = (staying[-spare:], staying[:-spare]) if spare else ([], staying)
    budget = job.spare_disruptions  # over all causes; a set larger than this is not a choice
    above = [t for t in above if t.index not in young]
    above = above if budget is None else above[max(0, len(above) - max(0, budget)) :]
    out = [Group(job, (t,), False, now_s) for t in reversed(above)]
    covered = budget is None or len(staying) <= budget
    if policy is Preemption.ANY and rest and not young and covered:
        out.append(Group(job, tuple(rest), True, now_s))
    return out


__all__ = ["Group", "groups_of"]
