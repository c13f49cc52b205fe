"""The most important work that fits starts, and nothing that jumped it makes it wait longer. Pure.

Invariant 10 of DESIGN, checked on single passes against a slow reference that shares no code with the
scheduler: dictionaries of what is free, machine by machine, device by device. Looked at is the head, the
first work in scheduling order that waits for room and for nothing else. It is checked where its replicas are
alike and may go anywhere (no conditions, domains, alternatives), on cells full of whatever else there is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from tidecell.scheduler.snapshot import JobView, PlanTrace, Snapshot, TaskView
from tidecell.scheduler.units import Unit, units_of
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import JobSpec, Reason
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Plan
from tidecell.structs.resources import GPU, Resources

# What waits for one of these and nothing else waits for room.
_ROOM = {Reason.WAITING_FOR_CAPACITY, Reason.PRIORITY}


@dataclass(frozen=True)
class Holding:
    """What is held of a machine, by a task or for one, and until when (``inf``: nobody knows)."""

    uid: str
    machine: str
    resources: Resources
    devices: tuple[int, ...]
    until_s: float = inf


def check_order(snapshot: Snapshot, plan: Plan, trace: PlanTrace) -> bool:
    """Raise where the head of the queue could have started, or starts later because of what jumped it.

    Returns:
        Whether there was a head to look at.

    Raises:
        InvariantError: One of both.
    """
    head = _head(snapshot, plan, trace)
    if head is None:
        return False
    uid, place = head.job.uid, {uid: at for at, uid in enumerate(trace.order)}
    held, new = list(_held(snapshot, plan, uid)), _new(snapshot, plan)
    earlier = [h for h in new if place.get(h.uid, -1) <= place[uid]]
    without, within = _starts(snapshot, head, held + earlier), _starts(snapshot, head, held + new)
    if within <= snapshot.now_s:
        raise InvariantError(f"'{uid}' waits, and there is room for it: {trace.waiting[uid]}")
    if within > without:
        names = sorted({h.uid for h in new} - {h.uid for h in earlier})
        raise InvariantError(f"'{uid}' would start at {without:.1f}; with {names} it starts at {within:.1f}")
    return True


def _head(snapshot: Snapshot, plan: Plan, trace: PlanTrace) -> Unit | None:
    """Return the first work in order that waits for room alone, if it is of the kind that is checked."""
    jobs = {job.uid: job for job in snapshot.jobs}
    placed = {(p.uid, p.index) for p in plan.placements}
    left = {r.uid for r in plan.removals}
    for uid in trace.order:
        waiting = trace.waiting.get(uid)
        if waiting is None or not set(waiting.reasons) <= _ROOM:
            continue
        units = [u for u in units_of(jobs[uid], snapshot.now_s, PlanTrace()) if u.demanded]
        missing = [u for u in units if not placed & set(u.task_keys())]
        if uid in left or not missing:
            continue
        return missing[0] if _is_plain(jobs[uid].spec) and not _has_avoided(missing[0]) else None
    return None


def _has_avoided(unit: Unit) -> bool:
    return any(task.avoid for task in unit.tasks)


def _is_plain(spec: JobSpec) -> bool:
    special = spec.constraints or spec.sizes or spec.topology or spec.spread or spec.any_of
    return not special


def _held(snapshot: Snapshot, plan: Plan, mine: str) -> Iterable[Holding]:
    """Yield what is held once a plan is carried out, but for its placements and what is held for the head."""
    leaving = {(r.uid, r.index) for r in plan.removals}
    for job in snapshot.jobs:
        for task in job.tasks:
            if task.machine:
                gone_s = _gone_s(snapshot, job, task, (job.uid, task.index) in leaving)
                yield Holding(job.uid, task.machine, task.resources, task.accelerators, gone_s)
    withdrawn = {*plan.withdrawals, *((p.uid, p.index) for p in plan.placements)}
    withdrawn |= {(c.uid, c.index) for c in plan.claims}
    for claim in (*(c for c in snapshot.claims if (c.uid, c.index) not in withdrawn), *plan.claims):
        if claim.uid != mine:
            yield Holding(claim.uid, claim.machine, claim.resources, claim.accelerators)


def _new(snapshot: Snapshot, plan: Plan) -> list[Holding]:
    """Return what a plan's placements hold."""
    jobs = {job.uid: job for job in snapshot.jobs}
    found = []
    for p in plan.placements:
        job = jobs[p.uid]
        limit_s, end_s = job.spec.max_duration_s, inf
        if limit_s:
            end_s = (job.ends_by_s or snapshot.now_s + limit_s) + job.spec.grace_period_s
        found.append(Holding(p.uid, p.machine, p.resources, p.accelerators, end_s))
    return found


def _gone_s(snapshot: Snapshot, job: JobView, task: TaskView, told_now: bool) -> float:
    """Return when a task is gone at the latest."""
    grace_s = job.spec.grace_period_s
    if task.leaving or told_now:
        return task.leaving_by_s or snapshot.now_s + grace_s
    return job.ends_by_s + grace_s if job.ends_by_s else inf


def _starts(snapshot: Snapshot, head: Unit, held: list[Holding]) -> float:
    """Return the first moment at which so much has ended that the head fits; ``inf``: nobody knows."""
    for at_s in sorted({snapshot.now_s, *(h.until_s for h in held if h.until_s < inf)}):
        if _fits(snapshot, head, [h for h in held if h.until_s > at_s or h.until_s == inf]):
            return max(at_s, snapshot.now_s)
    return inf


def _fits(snapshot: Snapshot, head: Unit, held: list[Holding]) -> bool:
    """Whether all tasks of the head fit beside what is held."""
    spec = head.job.spec
    copies = 0
    for machine in snapshot.machines:
        if machine.name not in snapshot.closed and machine.alloc == spec.alloc:
            here = [h for h in held if h.machine == machine.name]
            copies += _copies(machine, spec, here)
    return copies >= len(head.tasks)


def _copies(machine: MachineSpec, spec: JobSpec, held: list[Holding]) -> int:
    """Return how many replicas fit on one machine beside what is held there."""
    ask = spec.resources
    cpu = machine.capacity.cpu_millis - sum(h.resources.cpu_millis for h in held)
    memory = machine.capacity.memory_bytes - sum(h.resources.memory_bytes for h in held)
    counts = [cpu // ask.cpu_millis] if ask.cpu_millis else []
    counts += [memory // ask.memory_bytes] if ask.memory_bytes else []
    if ask.gpu_millis:
        counts.append(_device_copies(machine, spec, held))
    return max(0, min(counts, default=1 << 30))


def _device_copies(machine: MachineSpec, spec: JobSpec, held: list[Holding]) -> int:
    each = min(GPU, machine.capacity.gpu_millis) if machine.host else GPU
    free = {a.index: each for a in machine.accelerators if spec.accelerator_type.lower() in a.type.lower()}
    for h in held:
        for device in h.devices:
            if device in free:
                free[device] -= min(GPU, h.resources.gpu_millis)
    ask = spec.resources.gpu_millis
    if ask < GPU:
        return sum(max(0, room) // ask for room in free.values())
    return sum(room >= GPU for room in free.values()) // (ask // GPU)


__all__ = ["check_order"]
