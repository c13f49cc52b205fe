"""The working copy on which a scheduling pass moves things about. Pure.

A ``Board`` knows what is free on each machine now, what will be free when leaving tasks are gone, and
what is held: by claims (for a beneficiary whose victims are leaving) and by reservations (for a
blocked job that others may not delay). All of it is columns of a ``Fleet``, one row a machine.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.feasibility import (
    PlacementClass,
    Room,
    choose_devices,
    class_key,
    devices_of_type,
    placement_class,
)
from tidecell.scheduler.fleet import CPU, MEMORY, Fleet, Ints
from tidecell.scheduler.mix import mix_of
from tidecell.scheduler.scoring import Floats
from tidecell.scheduler.snapshot import JobView, Kept, Snapshot, TaskView
from tidecell.structs.job import JobSpec
from tidecell.structs.messages import Claim
from tidecell.structs.resources import GPU, Resources

Key = tuple[str, int]  # uid and index of a task


class Spot(NamedTuple):
    """Where a task goes: the row, which of its job's shapes it gets, and the devices."""

    row: int
    shape: int
    devices: tuple[int, ...]


def occupied_fleet(snapshot: Snapshot) -> Fleet:
    """Return the fleet of a snapshot with everything on it that its tasks hold."""
    fleet = Fleet.of(snapshot.machines, snapshot.closed)
    for job in snapshot.jobs:
        for task in job.tasks:
            if task.machine:
                occupy(fleet, task, 1)
    return fleet


def occupy(fleet: Fleet, task: TaskView, sign: int) -> None:
    """Add what a task holds to its row (1), or take it away (-1); machines that are away have no row."""
    row = fleet.rows.get(task.machine)
    if row is None:
        return
    (fleet.occupy if sign > 0 else fleet.vacate)(row, task.resources, task.accelerators)
    if task.leaving:
        (fleet.leave if sign > 0 else fleet.left)(row, task.resources, task.accelerators)


def _type_claimed(snapshot: Snapshot, claim: Claim) -> str:
    """Return the type of accelerators that a claim without devices is for; claims of today name devices."""
    if claim.accelerators or not claim.resources.gpu_millis:
        return ""
    job = next((j for j in snapshot.jobs if j.uid == claim.uid), None)
    shapes = job.spec.shapes if job is not None else ()
    return next((s.accelerator_type for s in shapes if s.resources == claim.resources), "")


def _usual_requests(snapshot: Snapshot, fleet: Fleet, kept: Kept | None) -> Floats:
    """Return the table of what tasks with accelerators hold, and what those that wait ask for."""
    if not fleet.gpu_capacity_NG.shape[1]:
        return mix_of({})
    counts = {(r.cpu_millis, r.memory_bytes, r.gpu_millis): n for r, n in fleet.held.items()}
    for job in snapshot.jobs if kept is None else map(kept.jobs.__getitem__, kept.waiting):
        spec = job.spec
        if not spec.resources.gpu_millis and not spec.tasks:
            continue
        for task in job.tasks:
            if task.pending:
                asked = spec.request(task.index)
                shape = (asked.cpu_millis, asked.memory_bytes, asked.gpu_millis)
                counts[shape] = counts.get(shape, 0) + 1
    return mix_of(counts)


class Board:
    """Mutable picture of the machines during one pass.

    Attributes:
        claims: What is held for tasks whose victims are leaving.
        reserved: What blocked jobs will need from their expected start on, by row and device.
        extra: What will be free by then on those rows beyond what is free now.
        open: What anybody may use now: free, less what is kept for heads. Kept row by row.
        num_given_back: How often something was given back; what fits nowhere does so until the next time.
        changed_rows: Rows of ``open`` that changed, in order; it only grows.
        full_NR: Cpu, memory and accelerator thousandths of each row when empty.
        mix_XP: What the cell usually gets, for the packing score; as it was before the pass.
    """

    def __init__(
        self, snapshot: Snapshot, seed: int = 0, kept: Kept | None = None, share_classes: bool = True
    ) -> None:
        self.fleet = kept.fleet.copy() if kept is not None else occupied_fleet(snapshot)
        fleet = self.fleet
        self.rank_N = fleet.rank_N(seed)
        self.free = Room(fleet.capacity_NR - fleet.used_NR, fleet.gpu_capacity_NG - fleet.gpu_used_NG)
        self.claims: dict[Key, Claim] = {}
        self.reserved: Room | None = None
        self.extra: Room | None = None
        self.open = self.free.copy()
        self._nothing_R = [0] * self.free.free_NR.shape[1]
        self._nothing_G = [0] * self.free.gpu_NG.shape[1]
        self.num_given_back = 0
        self.changed_rows: list[int] = []
        self.full_NR = np.column_stack([fleet.capacity_NR, fleet.gpu_capacity_NG.sum(axis=1)])
        self.mix_XP = _usual_requests(snapshot, fleet, kept)
        self._devices: dict[Key, tuple[int, ...]] = {}  # columns that a claim holds
        self._share_classes = share_classes
        self._classes: dict[tuple[object, ...], PlacementClass] = {}
        self._allowed: dict[tuple[object, ...], Bools] = {}
        self._placed: dict[str, list[int]] = {}  # uid: rows that its tasks took in this pass
        self._avoided: dict[str, dict[int, list[int]]] = {}
        for claim in snapshot.claims:
            if claim.machine in fleet.rows:
                self.claim(claim, _type_claimed(snapshot, claim))

    # ------------------------------------------------------------------------------------ asking

    def placement_class(self, spec: JobSpec, shape: int = 0) -> PlacementClass:
        """Return where replicas of this job may go, worked out once a pass for all jobs alike."""
        if not self._share_classes:
            return placement_class(self.fleet, spec, shape)
        key = class_key(spec, shape)
        found = self._classes.get(key)
        if found is None:
            found = self._classes[key] = placement_class(self.fleet, spec, shape, self._allowed)
        return found

    def home_rows(self, job: JobView, indices: Sequence[int]) -> list[int]:
        """Return the rows where replicas of a job stay, but for these; one row for each."""
        others = set(indices)
        rows = [
            self.fleet.rows[t.machine]
            for t in job.tasks
            if t.machine in self.fleet.rows and not t.leaving and t.index not in others
        ]
        return rows + self._placed.get(job.uid, [])

    def avoided(self, job: JobView) -> dict[int, list[int]]:
        """Return by index of a waiting task the rows on which it failed lately."""
        known = self._avoided.get(job.uid)
        if known is None:
            rows = self.fleet.rows
            known = {t.index: [rows[n] for n in t.avoid if n in rows] for t in job.tasks if t.avoid}
            self._avoided[job.uid] = known
        return known

    def room(
        self,
        mine: Iterable[Key] = (),
        future: bool = False,
        freed: Room | None = None,
        ignore_reserved: bool = False,
    ) -> Room:
        """Return what these tasks may use of each row; the arrays are the caller's.

        Args:
            mine: Tasks whose own claims count as free.
            future: Count what leaving tasks hold as free.
            freed: What further victims hold, counted as free.
            ignore_reserved: For work that ends before the reserved start.
        """
        room = self.free.copy()
        for key in mine if self.claims else ():
            claim = self.claims.get(key)
            if claim is not None:
                self._add(room, self.fleet.rows[claim.machine], claim.resources, self._devices[key], 1)
        coming_NR, coming_NG = np.zeros_like(room.free_NR), np.zeros_like(room.gpu_NG)
        if future:
            coming_NR += self.fleet.leaving_NR
            coming_NG += self.fleet.gpu_leaving_NG
        if freed is not None:
            coming_NR += freed.free_NR
            coming_NG += freed.gpu_NG
        room.free_NR[:] += coming_NR
        room.gpu_NG[:] += coming_NG
        if not ignore_reserved:
            self._keep_for_heads(room.free_NR, room.gpu_NG, coming_NR, coming_NG)
        return room

    def row_room(
        self, row: int, coming_R: Sequence[int], coming_G: Sequence[int]
    ) -> tuple[list[int], list[int]]:
        """Return what anybody may use of one row, and of its devices, once some of it has been given back.

        Args:
            row: The row.
            coming_R: What is given back of cpu and memory.
            coming_G: What is given back of each device.
        """
        free_R = [a + b for a, b in zip(self.free.free_NR[row].tolist(), coming_R, strict=True)]
        gpu_G = [a + b for a, b in zip(self.free.gpu_NG[row].tolist(), coming_G, strict=True)]
        if self.reserved is not None and self.extra is not None:  # as in _keep_for_heads
            _keep(free_R, self.reserved.free_NR[row].tolist(), self.extra.free_NR[row].tolist(), coming_R)
            _keep(gpu_G, self.reserved.gpu_NG[row].tolist(), self.extra.gpu_NG[row].tolist(), coming_G)
        return free_R, gpu_G

    def claimed_spot(self, job: JobView, index: int) -> Spot | None:
        """Return what is held for a task in its job's first shape, if it still suffices."""
        claim = self.claims.get((job.uid, index))
        request = job.spec.request(index)
        if claim is None or claim.resources != request:
            return None
        row, kind = self.fleet.rows[claim.machine], self.placement_class(job.spec)
        free_R, gpu_G = self.row_room(row, self._nothing_R, self._nothing_G)
        for column in self._devices[job.uid, index]:
            gpu_G[column] += min(GPU, request.gpu_millis)
        # What is held is what is asked for: it suffices unless a head or a smaller machine takes of it.
        short = (request.cpu_millis and free_R[CPU] < 0) or (request.memory_bytes and free_R[MEMORY] < 0)
        if short or not kind.allowed_N[row]:
            return None
        typed_G = None if kind.typed_NG is None else kind.typed_NG[row]
        columns = choose_devices(gpu_G, typed_G, request.gpu_millis)
        if request.gpu_millis and not columns:
            return None
        return Spot(row, 0, tuple(self.fleet.specs[row].accelerators[c].index for c in columns))

    def _keep_for_heads(self, free: Ints, gpu: Ints, coming: Ints, gpu_coming: Ints) -> None:
        """Take from what is free what reservations keep; what is counted as free is not still to come."""
        if self.reserved is None or self.extra is None:
            return
        extra = np.maximum(self.extra.free_NR - coming, 0)
        free -= np.maximum(self.reserved.free_NR - extra, 0)
        gpu_extra = np.maximum(self.extra.gpu_NG - gpu_coming, 0)
        gpu -= np.maximum(self.reserved.gpu_NG - gpu_extra, 0)

    def free_for(self, name: str, mine: Iterable[Key] = (), accelerator_type: str = "") -> Resources:
        """Return what these tasks may use of one machine, accelerators of this type; nothing below zero."""
        return self.in_row(self.room(mine), self.fleet.rows[name], accelerator_type)

    def in_row(self, room: Room, row: int, accelerator_type: str = "") -> Resources:
        """Return what a room has in one row, accelerators of this type (empty: any); nothing below zero."""
        cpu, memory = (max(0, int(room.free_NR[row, r])) for r in (CPU, MEMORY))
        typed_G = devices_of_type(self.fleet, accelerator_type)[0][row]
        return Resources(cpu, memory, int(np.maximum(room.gpu_NG[row], 0)[typed_G].sum()))

    # ------------------------------------------------------------------------------------ moving

    def take(self, job: JobView, index: int, spot: Spot, gone_by_heads: bool = False) -> Resources:
        """Use a spot for a task, which may be gone before any reserved start; return what it is granted."""
        self.unclaim((job.uid, index))
        granted = job.spec.request(index, spot.shape)
        self.fleet.occupy(spot.row, granted, spot.devices)
        self._placed.setdefault(job.uid, []).append(spot.row)
        columns = self._columns(spot.row, spot.devices)
        if gone_by_heads and self.extra is not None:
            self._add(self.extra, spot.row, granted, columns, 1)
        self.use(spot.row, granted, columns, -1)
        return granted

    def use(self, row: int, resources: Resources, columns: Iterable[int], sign: int) -> None:
        """Add to (1) or take from (-1) what is free of a row."""
        self._add(self.free, row, resources, columns, sign)
        if self.reserved is None:
            self._add(self.open, row, resources, columns, sign)
            self.changed_rows.append(row)
        else:
            self.reopen((row,))

    def reopen(self, rows: Iterable[int]) -> None:
        """Work ``open`` out anew for rows of which something else changed than what is free."""
        for row in rows:
            free_R, gpu_G = self.row_room(row, self._nothing_R, self._nothing_G)
            self.open.free_NR[row], self.open.gpu_NG[row] = free_R, gpu_G
            self.changed_rows.append(row)

    def leave(self, task: TaskView) -> None:
        """Mark a running task as leaving."""
        row = self.fleet.rows.get(task.machine)
        if row is not None:  # nothing becomes free on a machine that is away
            self.fleet.leave(row, task.resources, task.accelerators)

    def claim(self, claim: Claim, accelerator_type: str = "") -> None:
        """Hold capacity for a task: what is free, or what leaving tasks still use.

        The type matters for a claim that names no devices.
        """
        key, row = (claim.uid, claim.index), self.fleet.rows[claim.machine]
        self.unclaim(key)
        columns = self._columns(row, claim.accelerators) or self._devices_to_come(
            row, claim.resources, accelerator_type
        )
        self.claims[key], self._devices[key] = claim, columns
        self.use(row, claim.resources, columns, -1)

    def unclaim(self, key: Key) -> bool:
        """Hold nothing for a task any more; return whether anything was held."""
        claim = self.claims.pop(key, None)
        if claim is None:
            return False
        self.num_given_back += 1
        self.use(self.fleet.rows[claim.machine], claim.resources, self._devices.pop(key), 1)
        return True

    def _columns(self, row: int, devices: Iterable[int]) -> tuple[int, ...]:
        at = self.fleet.accelerator_at[row]
        return tuple(at[index] for index in devices)

    def _devices_to_come(self, row: int, request: Resources, accelerator_type: str) -> tuple[int, ...]:
        """Choose devices for a claim that names none: those of an older version."""
        if not request.gpu_millis:
            return ()
        gpu_G = self.free.gpu_NG[row] + self.fleet.gpu_leaving_NG[row]
        typed_G = devices_of_type(self.fleet, accelerator_type)[0][row]
        return tuple(choose_devices(gpu_G, typed_G, request.gpu_millis))

    @staticmethod
    def _add(room: Room, row: int, resources: Resources, columns: Iterable[int], sign: int) -> None:
        room.free_NR[row, CPU] += sign * resources.cpu_millis
        room.free_NR[row, MEMORY] += sign * resources.memory_bytes
        for column in columns:
            room.gpu_NG[row, column] += sign * min(GPU, resources.gpu_millis)

    add = _add


def _keep(free: list[int], reserved: Sequence[int], extra: Sequence[int], coming: Sequence[int]) -> None:
    """Take from what is free of one row what reservations keep there."""
    for at, kept in enumerate(reserved):
        free[at] -= max(kept - max(extra[at] - coming[at], 0), 0)


__all__ = ["Board", "Key", "Spot", "occupied_fleet", "occupy"]
