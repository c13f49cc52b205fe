"""What the events of versions, updates and drains change: their part of ``apply``. Decides nothing."""

from __future__ import annotations

from typing import Any

from tidecell.cell.records import CellState, Drain, Job, Rollout, Version
from tidecell.cell.slots import close_slot, open_slot, resize
from tidecell.structs.errors import InvariantError
from tidecell.structs.lifecycle import (
    DrainCancelled,
    JobRevised,
    MachineDrained,
    MachineDraining,
    MachineReleased,
    RolloutAdvanced,
    RolloutFinished,
    RolloutHalted,
    RolloutPromoted,
    SlotClosed,
    SlotOpened,
)
from tidecell.structs.message_base import Event

MAX_VERSIONS = 20  # kept of one job; those that tasks still run are never dropped


def _job(state: CellState, uid: str) -> Job:
    job = state.jobs.get(uid)
    if job is None:
        raise InvariantError(f"event about job '{uid}', which is not known")
    return job


def _rollout(job: Job) -> Rollout:
    if job.rollout is None:
        raise InvariantError(f"job '{job.uid}' has no update under way", job.story)
    return job.rollout


def _tell(job: Job, text: str, at_s: float) -> None:
    job.story.append(f"{at_s:.3f} {text}")


def _revised(state: CellState, event: JobRevised, at_s: float) -> None:
    job = _job(state, event.uid)
    if not job.history:  # the first change: until now the spec itself was the history
        stable = job.started_s > 0
        job.history.append(Version(1, job.spec, job.submitted_s, 1, job.who, stable=stable))
    entry = Version(event.version, event.spec, at_s, event.program, event.who, event.why)
    same = event.program == job.program
    # Without another program there is nothing to prove: it is as healthy as what runs.
    entry.stable = same and job.rollout is None and job.history[-1].stable
    job.history.append(entry)
    for grant in event.resized:
        task = job.tasks[grant.index]
        task.resources, task.resized = grant.resources, True
    if not same or event.resized:  # what failed under the old program has not failed under the new one
        for task in job.tasks:
            if not task.active:
                task.failures, task.not_before_s, task.tried, task.failed_on = 0, 0.0, {}, ()
    if event.spec.begin_s != job.spec.begin_s:
        job.begin_s = event.spec.begin_s
    if event.spec.hold != job.spec.hold:
        job.held = event.spec.hold
    job.spec, job.version, job.program = event.spec, event.version, event.program
    job.needs = event.needs
    if event.rolls:
        job.rollout = Rollout(
            event.version, event.program, at_s, event.revert_to, event.canary, promoted=not event.canary
        )
    elif job.rollout is not None:
        job.rollout.version = event.version
    _forget_versions(job)
    resize(job)
    _tell(job, f"version {event.version}: {event.why or event.who}", at_s)


def _forget_versions(job: Job) -> None:
    used = {t.program for t in job.tasks if t.active} | {job.program}
    if job.rollout is not None:
        used.add(job.rollout.revert_to)
    stable = max((v.number for v in job.history if v.stable), default=0)
    spare = len(job.history) - MAX_VERSIONS
    for entry in list(job.history[:-1]):
        if spare > 0 and entry.program not in used and entry.number not in (*used, stable):
            job.history.remove(entry)
            spare -= 1


def _promoted(state: CellState, event: RolloutPromoted, at_s: float) -> None:
    job = _job(state, event.uid)
    rollout = _rollout(job)
    rollout.promoted, rollout.halted, rollout.trying_s = True, "", 0.0
    _tell(job, "update promoted", at_s)


def _advanced(state: CellState, event: RolloutAdvanced, at_s: float) -> None:
    rollout = _rollout(_job(state, event.uid))
    rollout.healthy, rollout.trying_s = event.healthy, event.trying_s


def _halted(state: CellState, event: RolloutHalted, at_s: float) -> None:
    job = _job(state, event.uid)
    _rollout(job).halted = event.message
    _tell(job, f"update halted: {event.message}", at_s)


def _finished(state: CellState, event: RolloutFinished, at_s: float) -> None:
    job = _job(state, event.uid)
    job.rollout = None
    for entry in job.history:
        if entry.program == job.program:
            entry.stable = True
    _tell(job, f"version {event.version} is everywhere", at_s)


def _slot_opened(state: CellState, event: SlotOpened, at_s: float) -> None:
    open_slot(_job(state, event.uid), event.index)


def _slot_closed(state: CellState, event: SlotClosed, at_s: float) -> None:
    close_slot(_job(state, event.uid), event.index)


def _draining(state: CellState, event: MachineDraining, at_s: float) -> None:
    state.drains[event.name] = Drain(event.start_s, event.deadline_s, event.who)


def _drained(state: CellState, event: MachineDrained, at_s: float) -> None:
    state.drains[event.name].drained = True


def _released(state: CellState, event: MachineReleased, at_s: float) -> None:
    state.machines[event.name].held = False


def _drain_cancelled(state: CellState, event: DrainCancelled, at_s: float) -> None:
    state.drains.pop(event.name, None)


LIFECYCLE_APPLY: dict[type[Event], Any] = {
    JobRevised: _revised,
    RolloutPromoted: _promoted,
    RolloutAdvanced: _advanced,
    RolloutHalted: _halted,
    RolloutFinished: _finished,
    SlotOpened: _slot_opened,
    SlotClosed: _slot_closed,
    MachineDraining: _draining,
    MachineDrained: _drained,
    DrainCancelled: _drain_cancelled,
    MachineReleased: _released,
}
