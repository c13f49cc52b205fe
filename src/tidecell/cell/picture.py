"""The snapshot of a live cell, kept from pass to pass: each costs what changed, not what there is. Pure.

``take_snapshot`` looks at every job and every machine. A ``Picture`` asks the state's index what has changed
since it last looked, makes those views anew, and moves the fleet's columns by the difference. It must equal
``take_snapshot`` at every look; the tests hold both together.
"""

from __future__ import annotations

import numpy as np

from tidecell.cell.index import Changes
from tidecell.cell.snapshot import closed_rows, job_view, rows_of, take_snapshot, task_view, waits
from tidecell.cell.state import CellState, Job
from tidecell.scheduler.board import occupied_fleet, occupy
from tidecell.scheduler.fleet import Fleet
from tidecell.scheduler.snapshot import JobView, Kept, Snapshot, TaskView
from tidecell.structs.errors import InvariantError
from tidecell.structs.machine import MachineSpec

REMAKE_BELOW = 16  # a job with fewer open tasks is made anew as a whole


class Picture:
    """What the scheduler sees of one cell, kept up to date.

    There is one keeper to a state: it takes the changes that the index notes.
    """

    def __init__(self, state: CellState) -> None:
        self._state = state
        self._views: dict[str, JobView] = {}
        self._place: dict[str, int] = {}  # uid: its place in the snapshot's order
        self._waiting: dict[str, None] = {}
        self._by_clock: dict[str, None] = {}  # uids of views that time alone changes
        self._machines: tuple[MachineSpec, ...] = ()
        self._closed: tuple[str, ...] = ()
        self._fleet = Fleet.of(())
        self._jobs: tuple[JobView, ...] | None = ()
        self._kept_waiting: tuple[str, ...] | None = ()
        self._machines_due = True  # machines may have changed since the fleet was made
        state.index.changes = Changes(jobs=dict.fromkeys(state.live_uids), machines=True)

    def look(self, now_s: float) -> tuple[Snapshot, Kept]:
        """Return the cell as it is at ``now_s``, and what spares the scheduler from looking at all of it."""
        self._catch_up(now_s)
        state = self._state
        if self._jobs is None:
            self._jobs = tuple(self._views.values())
        if self._kept_waiting is None:
            self._kept_waiting = tuple(sorted(self._waiting, key=self._place.__getitem__))
        claims = tuple(state.claims[k] for k in sorted(state.claims))
        changed = self._machines_due and self._see_machines()
        self._machines_due = False
        closed = self._see_closed(now_s)
        snapshot = Snapshot(now_s, self._machines, self._jobs, claims, self._closed, state.policy)
        if changed:
            self._fleet = occupied_fleet(snapshot)
        elif closed:
            self._fleet.close(self._closed)
        return snapshot, Kept(self._fleet, self._views, self._kept_waiting)

    def any_waits(self, now_s: float) -> bool:
        """Return whether any task that should run does not; costs what changed since the last look."""
        self._catch_up(now_s)
        return bool(self._waiting)

    def _catch_up(self, now_s: float) -> None:
        """Take in what has changed."""
        changes = self._state.index.changes
        if changes is None:
            raise ValueError("another keeper has taken over the changes of this state")
        self._state.index.changes = Changes()
        self._machines_due = self._machines_due or changes.machines
        for uid in changes.jobs | dict.fromkeys(self._by_clock):
            self._update(uid, changes.jobs.get(uid), now_s)

    def _see_machines(self) -> bool:
        machines = rows_of(self._state)
        if machines == self._machines:
            return False
        self._machines = machines
        return True

    def _see_closed(self, now_s: float) -> bool:
        """Note which machines take no new work; return whether that has changed."""
        closed = closed_rows(self._machines, self._state, now_s)
        changed, self._closed = closed != self._closed, closed
        return changed

    def _update(self, uid: str, indices: set[int] | None, now_s: float) -> None:
        job = self._state.jobs.get(uid)
        old = self._views.get(uid)
        new = self._view(job, old, indices, now_s) if job is not None and job.live else None
        if new is None:
            if old is not None:
                self._move(old.tasks, ())
                del self._views[uid], self._place[uid]
                self._waiting.pop(uid, None)
                self._by_clock.pop(uid, None)
                self._jobs = self._kept_waiting = None
            return
        if new == old:
            return
        if old is None:
            self._place[uid] = self._next_place()
        self._move(old.tasks if old is not None else (), new.tasks)
        self._views[uid], self._jobs = new, None
        self._mark(uid, new, job)

    def _next_place(self) -> int:
        last = next(reversed(self._place.values()), -1) if self._place else -1
        return last + 1

    def _mark(self, uid: str, view: JobView, job: Job | None) -> None:
        """Note whether it waits, and whether its view depends on the clock."""
        if any(t.pending for t in view.tasks) != (uid in self._waiting):
            self._kept_waiting = None
            if uid in self._waiting:
                del self._waiting[uid]
            else:
                self._waiting[uid] = None
        if view.ends_by_s and job is not None and not job.started_s:
            self._by_clock[uid] = None
        else:
            self._by_clock.pop(uid, None)

    def _view(self, job: Job, old: JobView | None, indices: set[int] | None, now_s: float) -> JobView:
        """Return a job's view; of a large one only the tasks that changed are looked at again."""
        if old is None or indices is None or len(job.open) < REMAKE_BELOW:
            return job_view(self._state, job, now_s)
        known = {t.index: t for t in old.tasks if t.index not in indices}
        tasks = tuple(
            known.get(t.index) or task_view(t) for t in job.open_tasks() if t.active or waits(job, t)
        )
        return job_view(self._state, job, now_s, tasks)

    def _move(self, old: tuple[TaskView, ...], new: tuple[TaskView, ...]) -> None:
        """Move the fleet's columns by what a job's tasks hold more or less than before."""
        before = {id(t) for t in old}
        after = {id(t) for t in new}
        for task in old:
            if id(task) not in after and task.machine:
                occupy(self._fleet, task, -1)
        for task in new:
            if id(task) not in before and task.machine:
                occupy(self._fleet, task, 1)


def check_picture(state: CellState, snapshot: Snapshot, kept: Kept) -> None:
    """Raise InvariantError unless a picture is what a fresh look at everything shows."""
    fresh = take_snapshot(state, snapshot.now_s)
    if snapshot != fresh:
        pairs = zip(snapshot.jobs, fresh.jobs, strict=False)
        first = next((f"{a} is not {b}" for a, b in pairs if a != b), "jobs, machines or claims differ")
        raise InvariantError(f"the kept picture of the cell is out of date: {first}")
    waiting = tuple(j.uid for j in fresh.jobs if any(t.pending for t in j.tasks))
    if kept.waiting != waiting or list(kept.jobs.values()) != list(fresh.jobs):
        raise InvariantError(f"the kept picture has {kept.waiting} waiting instead of {waiting}")
    fleet = occupied_fleet(fresh)
    for name in ("used_NR", "leaving_NR", "gpu_used_NG", "gpu_leaving_NG", "open_N"):
        if not np.array_equal(getattr(kept.fleet, name), getattr(fleet, name)):
            raise InvariantError(f"the kept picture's {name} differs from what tasks hold")
    if kept.fleet.held != fleet.held:
        raise InvariantError(f"the kept picture counts {kept.fleet.held} held instead of {fleet.held}")


__all__ = ["Picture", "check_picture"]
