"""The working copy on which a scheduling pass moves things about. Pure.

A ``Board`` knows what is free on each machine now, what will be free when leaving tasks are gone, and
what is held: by claims (for a beneficiary whose victims are leaving) and by reservations (for a
blocked job that others may not delay).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Claim
from tidecell.structs.resources import GPU, Resources


@dataclass
class Slot:
    """One machine on the board."""

    spec: MachineSpec
    used: Resources = field(default_factory=Resources)
    leaving: Resources = field(default_factory=Resources)
    busy: set[int] = field(default_factory=set)  # accelerators in use
    busy_leaving: set[int] = field(default_factory=set)
    reserved: Resources = field(default_factory=Resources)

    def free(self) -> Resources:
        """Return capacity less what tasks use; claims and reservations not counted."""
        return self.spec.capacity - self.used


def _at_least_zero(r: Resources) -> Resources:
    return Resources(max(0, r.cpu_millis), max(0, r.memory_bytes), max(0, r.gpu_millis))


class Board:
    """Mutable picture of the machines during one pass."""

    def __init__(self, snapshot: Snapshot, seed: int) -> None:
        self.slots = {m.name: Slot(m) for m in snapshot.machines}
        self.closed = frozenset(snapshot.closed)
        self.claims: dict[tuple[str, int], Claim] = {(c.uid, c.index): c for c in snapshot.claims}
        self._ties = {name: zlib.crc32(f"{seed}:{name}".encode()) if seed else 0 for name in self.slots}
        for job in snapshot.jobs:
            for task in job.tasks:
                if task.machine in self.slots:
                    self._occupy(task)

    def _occupy(self, task: TaskView) -> None:
        slot = self.slots[task.machine]
        slot.used = slot.used + task.resources
        slot.busy.update(task.accelerators)
        if task.leaving:
            slot.leaving = slot.leaving + task.resources
            slot.busy_leaving.update(task.accelerators)

    def held_for_others(self, name: str, mine: Iterable[tuple[str, int]]) -> Resources:
        """Return what claims of tasks other than ``mine`` hold on a machine."""
        own = set(mine)
        held = Resources()
        for key, claim in self.claims.items():
            if claim.machine == name and key not in own:
                held = held + claim.resources
        return held

    def free_for(
        self,
        name: str,
        mine: Iterable[tuple[str, int]] = (),
        future: bool = False,
        freed: Resources | None = None,
        ignore_reserved: bool = False,
    ) -> Resources:
        """Return what these tasks may use on a machine.

        Args:
            name: The machine.
            mine: Tasks whose own claims count as free.
            future: Count what leaving tasks hold as free.
            freed: Resources of further victims, counted as free.
            ignore_reserved: For work that ends before the reserved start.
        """
        slot = self.slots[name]
        free = slot.free() - self.held_for_others(name, mine)
        if future:
            free = free + slot.leaving
        if freed is not None:
            free = free + freed
        if not ignore_reserved:
            free = free - slot.reserved
        return _at_least_zero(free)

    def fit(
        self,
        job: JobView,
        indices: Sequence[int],
        future: bool = False,
        freed: dict[str, Resources] | None = None,
        ignore_reserved: bool = False,
    ) -> list[str] | None:
        """Return a machine for each task, best fit first, or None if not all fit together."""
        mine = [(job.uid, i) for i in indices]
        room = {
            name: self.free_for(name, mine, future, (freed or {}).get(name), ignore_reserved)
            for name, slot in self.slots.items()
            if name not in self.closed and slot.spec.has_type(job.spec.accelerator_type)
        }
        chosen = []
        for index in indices:
            name = self._choose(job, index, room)
            if name is None:
                return None
            room[name] = room[name] - job.spec.resources
            chosen.append(name)
        return chosen

    def _choose(self, job: JobView, index: int, room: dict[str, Resources]) -> str | None:
        claim = self.claims.get((job.uid, index))
        if claim is not None and claim.machine in room and job.spec.resources.fits(room[claim.machine]):
            return claim.machine
        candidates = [n for n, free in room.items() if job.spec.resources.fits(free)]
        return min(
            candidates, key=lambda n: (self._left_over(n, room[n], job), self._ties[n], n), default=None
        )

    def _left_over(self, name: str, free: Resources, job: JobView) -> float:
        """Best fit: the share of the machine that stays free, the scarcest kind weighing most."""
        capacity, left = self.slots[name].spec.capacity, free - job.spec.resources
        share = left.cpu_millis / max(1, capacity.cpu_millis)
        share += left.memory_bytes / max(1, capacity.memory_bytes)
        return share + 4.0 * left.gpu_millis / GPU

    def take(self, job: JobView, index: int, name: str) -> tuple[int, ...]:
        """Use a machine for a task; return the accelerators it gets, lowest first."""
        slot = self.slots[name]
        free = [a.index for a in slot.spec.accelerators if a.index not in slot.busy]
        given = tuple(free[: job.spec.resources.num_accelerators])
        slot.used = slot.used + job.spec.resources
        slot.busy.update(given)
        self.claims.pop((job.uid, index), None)
        return given

    def leave(self, task: TaskView) -> None:
        """Mark a running task as leaving."""
        slot = self.slots[task.machine]
        slot.leaving = slot.leaving + task.resources
        slot.busy_leaving.update(task.accelerators)

    def claim(self, claim: Claim) -> None:
        """Hold capacity for a task."""
        self.claims[claim.uid, claim.index] = claim

    def reserve(self, job: JobView, count: int) -> None:
        """Hold what a blocked gang needs on the machines where it would fit soonest.

        What work of unknown length may still use there is what the gang would leave free; hence a
        component that the gang lacks now is closed to others altogether.
        """
        for _ in range(count):
            names = [
                n
                for n, slot in self.slots.items()
                if job.spec.resources.fits(slot.spec.capacity - slot.reserved)
                and slot.spec.has_type(job.spec.accelerator_type)
            ]
            if not names:
                return
            name = max(names, key=lambda n: (self.free_for(n).cpu_millis, self.free_for(n).gpu_millis, n))
            slot = self.slots[name]
            slot.reserved = slot.reserved + job.spec.resources
