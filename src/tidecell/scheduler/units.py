"""What starts together: a gang's missing part, or one replica of growth. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tidecell.scheduler.snapshot import JobView, PlanTrace, TaskView, Waiting
from tidecell.structs.job import Reason, Replicas

ONE = Replicas(1, 1)


@dataclass(slots=True, eq=False)  # not frozen: a pass makes thousands
class Unit:
    """Tasks of one job that are placed together.

    Attributes:
        kind: A number that units share which ask for the same in the same places; -1: it has none.
        demanded: It may preempt and reserve; growth of an elastic job only fills what is spare.
    """

    job: JobView
    tasks: tuple[TaskView, ...]
    growth: bool
    demanded: bool
    kind: int = -1

    @property
    def indices(self) -> list[int]:
        """Indices of its tasks."""
        return [t.index for t in self.tasks]

    def task_keys(self) -> list[tuple[str, int]]:
        """Uid and index of its tasks."""
        return [(self.job.uid, t.index) for t in self.tasks]

    def order(self) -> tuple[int, int, int, float]:
        """Sort key: what is served first. Equal keys keep the snapshot's order: first come, first served."""
        priority = self.job.spec.priority
        return (-int(priority.band), int(self.growth), -priority.order, self.job.submitted_s)

    def shape(self) -> tuple[object, ...]:
        """What makes two units fail alike."""
        spec = self.job.spec
        size: tuple[object, ...] = (spec.shapes, len(self.tasks), spec.max_duration_s)
        # Where its other replicas are decides where these may go: no other job fails alike.
        own = self.job.uid if spec.topology is not None or spec.spread is not None else ""
        if spec.sizes:
            size = (*size, *(spec.request(t.index) for t in self.tasks))
        return (*size, spec.constraints, spec.alloc, own, spec.priority.band, self.demanded)


def why_barred(job: JobView, now_s: float) -> dict[Reason, str]:
    """Return why nothing of a job may start, whatever is free; the decisive reason first."""
    barred: dict[Reason, str] = {}
    if job.held:
        barred[Reason.ON_HOLD] = f"held back; tide release {job.name} lets it start"
    if job.begin_s > now_s:
        barred[Reason.BEGIN_TIME] = f"begins in {job.begin_s - now_s:.0f} s, or now: tide release {job.name}"
    if job.blocked_by:
        names = ", ".join(f"'{n}'" for n in job.blocked_by)
        barred[Reason.DEPENDENCY] = f"comes after {names}"
    return barred


def units_of(job: JobView, now_s: float, trace: PlanTrace) -> list[Unit]:
    """Split a job's waiting tasks; what cannot be tried now is noted in ``trace`` instead."""
    if job.stopping:
        return []
    pending = [t for t in job.tasks if t.pending]
    if not pending:
        return []
    if job.held or job.begin_s > now_s or job.blocked_by:
        barred = why_barred(job, now_s)
        detail = "; ".join(barred.values())
        trace.waiting[job.uid] = Waiting(tuple(barred), detail, len(pending))
        return []
    if len(job.tasks) == 1 and job.spec.replicas == ONE and job.desired == 1 and not pending[0].not_before_s:
        return [Unit(job, job.tasks, growth=False, demanded=True)]  # most jobs of a large cell are such
    ready = [t for t in pending if t.not_before_s <= now_s]
    if len(ready) < len(pending):
        at = min(t.not_before_s for t in pending if t.not_before_s > now_s)
        text = f"starts again in {at - now_s:.1f} s after a failure"
        trace.waiting[job.uid] = Waiting((Reason.BACKOFF,), text, len(pending) - len(ready))
    if job.spec.array is not None:
        room = job.spec.replicas.max - sum(1 for t in job.tasks if t.machine)
        if room <= 0 and ready:
            text = f"{job.spec.replicas.max} items run, as many as may at once"
            trace.waiting.setdefault(job.uid, Waiting((Reason.WAITING_FOR_CAPACITY,), text, len(ready)))
        return [Unit(job, (t,), growth=False, demanded=True) for t in ready[: max(0, room)]]
    staying = sum(1 for t in job.tasks if t.machine and not t.leaving)
    missing = max(0, min(job.spec.replicas.min, job.desired) - staying - len(job.done))
    if missing > len(ready):  # part of the gang backs off or is still leaving: all or nothing
        if job.uid not in trace.waiting:
            text = "its replicas that were told to leave have not left yet"
            trace.waiting[job.uid] = Waiting((Reason.WAITING_FOR_CAPACITY,), text, len(pending))
        return []
    gang = [Unit(job, tuple(ready[:missing]), growth=False, demanded=True)] if missing else []
    demanded = job.spec.is_service
    return gang + [Unit(job, (t,), growth=True, demanded=demanded) for t in ready[missing:]]
