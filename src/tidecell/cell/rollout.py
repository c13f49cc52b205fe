"""How a new version takes the place of the old one, a few replicas at a time. Pure.

A service's new replicas run beside the old ones first (surge), or old ones go first (unavailable); never
are fewer ready than ``desired - max_unavailable``. A batch job's index is its rank, so its replicas are
started again one by one where they are, or as a whole gang where none can be spared. The rules are those
of Kubernetes' Deployment and Nomad's ``update`` (canary, healthy deadline, automatic revert); that extra
disruptions are skipped is Borg's (EuroSys 2015, section 2.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tidecell.cell.disruptions import is_available, spare_disruptions
from tidecell.cell.records import CellState, Job, Rollout, Task
from tidecell.cell.slots import free_slots
from tidecell.cell.versions import restored, revise
from tidecell.structs.errors import TidecellError
from tidecell.structs.job import Amount, Cause, JobSpec, TaskState
from tidecell.structs.lifecycle import (
    RolloutAdvanced,
    RolloutFinished,
    RolloutHalted,
    SlotClosed,
    SlotOpened,
)
from tidecell.structs.message_base import Event, TaskRef
from tidecell.structs.messages import TaskNoticed

REVERT = "automatic revert"


@dataclass
class Progress:
    """Where an update stands.

    Attributes:
        old: Replicas that stay and run an older program.
        new: Replicas that stay, are wanted and run the new one.
        healthy: Those of ``new`` that have been ready for long enough.
        coming: Wanted replicas that do not run now; they will start with the new program.
    """

    old: list[Task] = field(default_factory=list)
    new: list[Task] = field(default_factory=list)
    healthy: list[Task] = field(default_factory=list)
    coming: list[Task] = field(default_factory=list)


def progress(job: Job, now_s: float) -> Progress:
    """Return where a job's update stands."""
    out = Progress()
    for task in job.tasks:
        if task.active and task.notice is None:
            if task.program != job.program:
                out.old.append(task)
            elif job.wants(task.index):
                out.new.append(task)
                if _is_healthy(job, task, now_s):
                    out.healthy.append(task)
        elif job.wants(task.index) and task.state is not TaskState.SUCCEEDED:
            out.coming.append(task)
    return out


def _is_healthy(job: Job, task: Task, now_s: float) -> bool:
    return is_available(task) and now_s >= task.ready_s + job.spec.update.healthy_after_s


def limits(job: Job, spec: JobSpec | None = None) -> tuple[int, int]:
    """Return how many replicas may be missing, and how many may run beyond the wanted number."""
    spec = spec or job.spec
    update, desired = spec.update, job.desired
    if not spec.is_service:
        amount = update.max_unavailable
        return max(1, amount.of(desired)) if amount is not None else 1, 0
    missing = (update.max_unavailable or Amount(0)).of(desired)
    surge = update.max_surge.of(desired, round_up=True) if update.max_surge is not None else int(missing == 0)
    return missing, surge if missing or surge else 1


def advance(state: CellState, job: Job, now_s: float) -> list[Event]:
    """Return the next events of a job's update; none while there is nothing to do but wait."""
    rollout = job.rollout
    if rollout is None or job.stopping is not None:
        return []
    now = progress(job, now_s)
    if told := _tell_progress(job, rollout, now):
        return [told]
    if bad := _what_is_wrong(job, rollout, now, now_s):
        return _give_up(state, job, rollout, bad)
    skips = _skips(job, rollout)
    if not now.old or skips:
        return _finish(job, rollout, now, skips)
    if rollout.halted:
        return []
    if not rollout.promoted:
        return _open_slots(job, rollout.canary)
    if job.spec.is_service:
        return _roll_service(job, rollout, now, now_s)
    return _roll_job(job, now, now_s)


def _tell_progress(job: Job, rollout: Rollout, now: Progress) -> RolloutAdvanced | None:
    """Note it when the number of healthy replicas has changed, and since when the others are tried."""
    if len(now.healthy) == rollout.healthy:
        return None
    healthy = {t.index for t in now.healthy}
    waiting = [max(t.placed_s, t.ready_s) for t in now.new if t.index not in healthy]
    return RolloutAdvanced(job.uid, len(now.healthy), min(waiting, default=0.0))


def _what_is_wrong(job: Job, rollout: Rollout, now: Progress, now_s: float) -> str:
    """Return why the new version does not become healthy; empty while it may."""
    if rollout.halted:
        return ""
    for task in (*now.new, *now.coming):
        if task.failures > job.spec.retry.max and (task.ended_s or task.placed_s) >= rollout.started_s:
            return f"replica {task.index} failed {task.failures} times, the last time: {task.message}"
    deadline_s = job.spec.update.deadline_s
    if rollout.trying_s and now_s >= rollout.trying_s + deadline_s and len(now.healthy) < len(now.new):
        return f"no replica became healthy in {deadline_s:g} s"
    return ""


def _give_up(state: CellState, job: Job, rollout: Rollout, bad: str) -> list[Event]:
    """Go back to the last healthy version, or halt."""
    good = next((v for v in job.history if v.number == rollout.revert_to), None)
    text = f"version {rollout.version}: {bad}"
    if good is None:
        return [RolloutHalted(job.uid, text)]
    try:
        back = revise(state, job, restored(job, good), REVERT, f"back to version {good.number}; {text}", True)
    except TidecellError as error:  # a machine has gone meanwhile: what ran before would not fit
        return [RolloutHalted(job.uid, f"{text}; and version {good.number} cannot return: {error.message}")]
    return [RolloutHalted(job.uid, text)] if back is None else [back]


def _skips(job: Job, rollout: Rollout) -> bool:
    limit = job.spec.update.max_disruptions
    return bool(limit) and rollout.disrupted >= limit


def _finish(job: Job, rollout: Rollout, now: Progress, skips: bool) -> list[Event]:
    """Give back what surged, and end the update once everything wanted is healthy."""
    if job.spec.is_service and len(now.healthy) < len(now.new) + len(now.coming):
        return []
    if not job.spec.is_service and len(now.healthy) < len(now.new):
        return []
    surplus = _surge(job)
    out: list[Event] = []
    for index in sorted((t.index for t in (*now.new, *now.coming)), reverse=True)[: max(0, surplus)]:
        out.append(SlotClosed(job.uid, index))
    return [*out, RolloutFinished(job.uid, rollout.version, len(now.old) if skips else 0)]


def _surge(job: Job) -> int:
    """Return how many more replicas are wanted than the job's own number."""
    return len(job.extra) - len(job.vacant)


def _open_slots(job: Job, count: int) -> list[Event]:
    """Want more replicas until ``count`` run beyond the wanted number."""
    return [SlotOpened(job.uid, index, "update") for index in free_slots(job, count - _surge(job))]


def _roll_service(job: Job, rollout: Rollout, now: Progress, now_s: float) -> list[Event]:
    missing, surge = limits(job)
    # Unready old replicas serve nobody: taking them makes nothing worse.
    if idle := [t for t in now.old if not is_available(t)]:
        return _take(job, idle, now_s)
    room = len(now.healthy) + len(now.old) - (job.desired - missing)
    spare = spare_disruptions(job)
    if spare is not None:
        room = min(room, spare)
    if room > 0:
        return _take(job, now.old[:room], now_s)
    return _open_slots(job, min(max(surge, rollout.canary), len(now.old)))


def _take(job: Job, tasks: Sequence[Task], now_s: float) -> list[Event]:
    """Tell old replicas to leave; where others stand in for them, their slots close."""
    out: list[Event] = []
    size, surplus = len(job.staying_tasks()), _surge(job)
    for task in tasks:
        size -= 1
        ref = TaskRef(job.uid, task.index, task.epoch)
        out.append(TaskNoticed(ref, Cause.UPDATE, now_s + job.spec.grace_period_s, size))
        if surplus > 0 and job.wants(task.index):
            out.append(SlotClosed(job.uid, task.index))
            surplus -= 1
    return out


def _roll_job(job: Job, now: Progress, now_s: float) -> list[Event]:
    """Start ranks again: one by one while the gang is kept, or all that is left of it together."""
    missing, _ = limits(job)
    away = [t for t in job.tasks if t.notice is not None and t.notice.cause is Cause.UPDATE]
    returning = [t for t in now.coming if t.last_cause is Cause.UPDATE and t.notice is None]
    unproven = len(now.new) - len(now.healthy)
    done = job.num_succeeded
    spares = len(job.staying_tasks()) + done - min(job.spec.replicas.min, job.desired)
    if spares > 0 or job.spec.update.max_unavailable is not None:
        room = missing - len(away) - len(returning) - unproven
        room = room if job.spec.update.max_unavailable is not None else min(room, spares)
        return _take_ranks(job, now.old[-room:] if room > 0 else [], now_s)
    return [] if away or returning or unproven else _take_ranks(job, now.old, now_s)


def _take_ranks(job: Job, tasks: Sequence[Task], now_s: float) -> list[Event]:
    spare = spare_disruptions(job)
    if spare is not None and spare < len(tasks):
        tasks = tasks[: max(0, spare)] if job.spec.update.max_unavailable is not None else ()
    size = len(job.staying_tasks()) - len(tasks)
    deadline_s = now_s + job.spec.grace_period_s
    return [TaskNoticed(TaskRef(job.uid, t.index, t.epoch), Cause.UPDATE, deadline_s, size) for t in tasks]


def waits_for(job: Job, now_s: float) -> str:
    """Return in words what an update waits for; empty if it has none."""
    rollout = job.rollout
    if rollout is None:
        return ""
    now = progress(job, now_s)
    total = len(now.old) + len(now.new) + len(now.coming)
    text = f"version {rollout.version}: {len(now.healthy)} of {total} replicas are new and healthy"
    if rollout.halted:
        return f"{text}; halted: {rollout.halted}"
    if not rollout.promoted:
        ready = len(now.healthy) >= rollout.canary
        return f"{text}; {'its canaries wait for' if ready else 'its canaries start; then'} tide promote"
    return text


def rollout_text(job: Job, spec: JobSpec) -> str:
    """Say how a spec that needs another start would reach the replicas that run."""
    if not spec.is_service:
        whole = spec.replicas.min == spec.replicas.max and spec.update.max_unavailable is None
        return "all replicas started again together" if whole else "replicas started again one by one"
    missing, surge = limits(job, spec)
    first = f", after {spec.update.canary} canary and tide promote" if spec.update.canary else ""
    return f"rolling update{first} (up to {surge} more, {missing} missing)"


__all__ = ["REVERT", "Progress", "advance", "limits", "progress", "rollout_text", "waits_for"]
