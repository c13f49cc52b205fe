"""Places kept for blocked jobs: later work may use what they leave over, or time that ends before. Pure.

EASY backfill (Lifka 1995): by the time limits of what runs, a blocked gang has a latest start and rows
where it then fits. Work that may still run by then gets on those rows only what is free now and what the
gang leaves free then. Where limits do not tell, the gang's room is kept from now on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.attributes import Bools, column
from tidecell.scheduler.board import Board, Key
from tidecell.scheduler.feasibility import PlacementClass, Room, copies_N, fits_N
from tidecell.scheduler.fleet import CPU, MEMORY, Ints
from tidecell.scheduler.gang import fit
from tidecell.scheduler.snapshot import JobView, Snapshot
from tidecell.structs.resources import GPU, Resources

MAX_DOMAINS = 16  # of more, those with most room now are looked at
MILLION = 1_000_000
NEVER = 1 << 60


@dataclass(frozen=True)
class Release:
    """When a task is gone at the latest, and what it then frees."""

    end_s: float
    machine: str
    resources: Resources
    accelerators: tuple[int, ...]


def releases_of(snapshot: Snapshot, gone: set[Key]) -> list[Release]:
    """Return what ends when, as far as time limits tell, in order; ``gone`` leave in this very pass."""
    found = []
    for job in snapshot.jobs:
        end_s = job.ends_by_s + job.spec.grace_period_s if job.ends_by_s else 0.0
        for task in job.tasks:
            if not task.machine:
                continue
            leaving = task.leaving or (job.uid, task.index) in gone
            at_s = (task.leaving_by_s or snapshot.now_s + job.spec.grace_period_s) if leaving else end_s
            if at_s:
                found.append(Release(at_s, task.machine, task.resources, task.accelerators))
    return sorted(found, key=lambda r: (r.end_s, r.machine))


def reserve(
    board: Board,
    job: JobView,
    indices: Sequence[int],
    releases: Sequence[Release],
    heads_start_s: float = 0.0,
) -> float:
    """Keep a blocked gang's room on the rows where it fits soonest.

    Args:
        board: Where the room is kept.
        job: Whose gang.
        indices: Its missing tasks.
        releases: What ends when, in order.
        heads_start_s: When the first of the earlier heads starts at the latest; 0: unknown, or there is none.

    Returns:
        Its start at the latest, or 0 where that is unknown: then room is kept from now on.
    """
    keys = [(job.uid, i) for i in indices]
    number = _num_needed(board, job, indices, keys, releases)
    known = number <= len(releases)
    freed = freed_by(board, releases[:number] if known else ())
    room = _room_behind_heads(board, keys, freed)
    spots = fit(board, job, indices, room) if known else None
    if spots is not None:
        rows = [(s.row, job.spec.request(i, s.shape), s.devices) for i, s in zip(indices, spots, strict=True)]
        _keep(board, rows, freed)
        return releases[number - 1].end_s if number else 0.0
    _keep(board, _rows_from_now_on(board, job, indices), None)
    number = _num_without_heads(board, job, indices, keys, releases)
    if number == 0:  # nothing but earlier heads keeps it from starting
        return heads_start_s
    return releases[number - 1].end_s if number <= len(releases) else 0.0


def _num_without_heads(
    board: Board, job: JobView, indices: Sequence[int], keys: Sequence[Key], releases: Sequence[Release]
) -> int:
    """Return how many releases a gang needs if no earlier head took its room; one too many: never.

    It starts no sooner than they come, so what is over by then does not delay it.
    """

    def suffices(number: int) -> bool:
        room = board.room(keys, freed=freed_by(board, releases[:number]), ignore_reserved=True)
        return fit(board, job, indices, room) is not None

    return bisect_left(range(len(releases) + 1), True, key=suffices)


def _room_behind_heads(board: Board, keys: Sequence[Key], freed: Room) -> Room:
    """Return the room after these releases less what earlier heads need."""
    room = board.room(keys, freed=freed, ignore_reserved=True)
    if board.reserved is not None:
        room.free_NR[:] -= board.reserved.free_NR
        room.gpu_NG[:] -= board.reserved.gpu_NG
    return room


def _num_needed(
    board: Board, job: JobView, indices: Sequence[int], keys: Sequence[Key], releases: Sequence[Release]
) -> int:
    """Return how many of the releases must have come for the gang to fit; one too many: it never does."""

    def suffices(number: int) -> bool:
        room = _room_behind_heads(board, keys, freed_by(board, releases[:number]))
        return fit(board, job, indices, room) is not None

    return bisect_left(range(len(releases) + 1), True, key=suffices)


def freed_by(board: Board, releases: Sequence[Release]) -> Room:
    """Return what these releases free, by row and device."""
    fleet = board.fleet
    freed = Room(np.zeros_like(fleet.used_NR), np.zeros_like(fleet.gpu_used_NG))
    for release in releases:
        row = fleet.rows.get(release.machine)
        if row is not None:
            columns = [fleet.accelerator_at[row][a] for a in release.accelerators]
            Board.add(freed, row, release.resources, columns, 1)
    return freed


def _keep(board: Board, rows: Sequence[tuple[int, Resources, tuple[int, ...]]], freed: Room | None) -> None:
    """Add what a head needs to the reservations; ``extra`` is the least that any head can count on."""
    fleet = board.fleet
    if board.reserved is None or board.extra is None:
        board.reserved = Room(np.zeros_like(fleet.used_NR), np.zeros_like(fleet.gpu_used_NG))
        board.extra = board.reserved.copy()
    known = set(np.flatnonzero(board.reserved.free_NR.any(axis=1) | board.reserved.gpu_NG.any(1)))
    for row in {row for row, _, _ in rows}:
        cpu_memory = freed.free_NR[row] if freed is not None else 0
        gpu = freed.gpu_NG[row] if freed is not None else 0
        if row in known:
            cpu_memory = np.minimum(cpu_memory, board.extra.free_NR[row])
            gpu = np.minimum(gpu, board.extra.gpu_NG[row])
        board.extra.free_NR[row], board.extra.gpu_NG[row] = cpu_memory, gpu
    for row, request, devices in rows:
        columns = [fleet.accelerator_at[row][d] for d in devices]
        Board.add(board.reserved, row, request, columns, 1)
    board.reopen({row for row, _, _ in rows})


def _rows_from_now_on(
    board: Board, job: JobView, indices: Sequence[int]
) -> list[tuple[int, Resources, tuple[int, ...]]]:
    """Return for each task the row where least is missing: closed to others from now on.

    What others leave there stays free, so less and less is missing: from pass to pass the room may move, but
    only to where the gang is nearer to its start.
    """
    fleet, keys = board.fleet, [(job.uid, i) for i in indices]
    kept = Room(np.zeros_like(fleet.used_NR), np.zeros_like(fleet.gpu_used_NG))
    if board.reserved is not None:
        kept = board.reserved.copy()
    free = board.room(keys, ignore_reserved=True)
    choices = [
        _Choice.of(board, job, indices, allowed_N, free, kept)
        for allowed_N in _domains(board, job, len(indices), free)
    ]
    return min(choices, key=lambda c: (-len(c.rows), c.missing)).rows if choices else []


@dataclass
class _Choice:
    """Rows for a gang, and how much it lacks there, in millionths of a task's request, summed."""

    rows: list[tuple[int, Resources, tuple[int, ...]]]
    missing: int

    @classmethod
    def of(
        cls, board: Board, job: JobView, indices: Sequence[int], allowed_N: Bools, free: Room, kept: Room
    ) -> _Choice:
        """Choose for one task after the other the row where it lacks least."""
        fleet, kind, kept = board.fleet, board.placement_class(job.spec), kept.copy()
        out, total = [], 0
        known: dict[Resources, Ints] = {}
        for index in indices:
            request = job.spec.request(index)
            if request not in known:
                known[request] = _missing_N(board, kind, request, np.flatnonzero(allowed_N), free, kept)
            least_N = known[request]
            equal = np.flatnonzero(least_N == least_N.min())
            row = int(equal[board.rank_N[equal].argmin()])
            if least_N[row] == NEVER:
                break
            devices = _nearest_devices(board, kind, row, request, free, kept)
            out.append((row, request, devices))
            total += int(least_N[row])
            Board.add(kept, row, request, [fleet.accelerator_at[row][d] for d in devices], 1)
            for other, missing_N in known.items():
                again = _missing_N(board, kind, other, np.array([row]), free, kept)
                missing_N[row] = again[row]
        return cls(out, total)


def _missing_N(
    board: Board, kind: PlacementClass, request: Resources, rows: Ints, free: Room, kept: Room
) -> Ints:
    """Return how much of a request each of these rows lacks now, in millionths; others: ``NEVER``.

    Args:
        board: Whose rows.
        kind: Where such work may go at all.
        request: Of one task.
        rows: Which to look at.
        free: What is free now, whoever it is kept for.
        kept: What is kept for earlier heads, and for tasks of this gang.
    """
    fleet = board.fleet
    missing_N = np.full(len(fleet.names), NEVER, np.int64)
    empty = Room(
        fleet.capacity_NR[rows] - kept.free_NR[rows], fleet.gpu_capacity_NG[rows] - kept.gpu_NG[rows]
    )
    typed_NG = None if kind.typed_NG is None else kind.typed_NG[rows]
    able = fits_N(empty, request, typed_NG)
    rows = rows[able]
    lacks_N = np.zeros(len(rows), np.int64)
    for column_R, wanted in ((CPU, request.cpu_millis), (MEMORY, request.memory_bytes)):
        if wanted:
            there_N = np.maximum(free.free_NR[rows, column_R] - kept.free_NR[rows, column_R], 0)
            lacks_N += np.maximum(wanted - there_N, 0) * MILLION // wanted
    if request.gpu_millis and typed_NG is not None:
        each, count = min(GPU, request.gpu_millis), request.num_accelerators
        there_NG = np.clip(free.gpu_NG[rows] - kept.gpu_NG[rows], 0, each)
        usable_NG = typed_NG[able] & (empty.gpu_NG[able] >= each)
        best_NG = np.sort(np.where(usable_NG, there_NG, -1), axis=1)[:, -count:]
        lacks_N += (each * count - np.maximum(best_NG, 0).sum(axis=1)) * MILLION // request.gpu_millis
    missing_N[rows] = lacks_N
    return missing_N


def _nearest_devices(
    board: Board, kind: PlacementClass, row: int, request: Resources, free: Room, kept: Room
) -> tuple[int, ...]:
    """Return the devices of a row, of the type asked for and not kept already, that have most room."""
    if not request.gpu_millis:
        return ()
    accelerators, each = board.fleet.specs[row].accelerators, min(GPU, request.gpu_millis)
    rest_G = board.fleet.gpu_capacity_NG[row] - kept.gpu_NG[row]
    suited = [
        c
        for c in range(len(accelerators))
        if rest_G[c] >= each and (kind.typed_NG is None or kind.typed_NG[row, c])
    ]
    order = sorted(suited, key=lambda c: (-int(free.gpu_NG[row, c] - kept.gpu_NG[row, c]), c))
    return tuple(accelerators[c].index for c in order[: request.num_accelerators])


def _domains(board: Board, job: JobView, count: int, room: Room) -> list[Bools]:
    """Return the sets of rows that a job may wait for: all, or one domain each, the freest few of many."""
    kind, topology = board.placement_class(job.spec), job.spec.topology
    if topology is None or not topology.required:
        return [kind.allowed_N]
    found = column(board.fleet, topology.level)
    empty = Room(board.fleet.capacity_NR, board.fleet.gpu_capacity_NG)
    homes = {int(found.codes_N[row]) for row in board.home_rows(job, ())}
    empty_N = np.where(kind.allowed_N, copies_N(empty, kind.request, kind.typed_NG), 0)
    now_N = np.where(kind.allowed_N, copies_N(room, kind.request, kind.typed_NG), 0)
    sets = []
    for code, value in enumerate(found.values):
        here_N = kind.allowed_N & (found.codes_N == code)
        if value and (code in homes or not homes) and int(empty_N[here_N].sum()) >= count:
            sets.append((-min(count, int(now_N[here_N].sum())), code, here_N))
    return [here_N for _, _, here_N in sorted(sets, key=lambda s: s[:2])[:MAX_DOMAINS]]
