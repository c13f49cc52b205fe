"""Victims for a beneficiary of one task, found row by row instead of over the whole cell. Pure.

``find_victims`` takes the shortest prefix of all possible victims, cheapest first, that makes room. For one
task, and victims that go one by one, that prefix ends where the first row has room: the row whose dearest
needed victim is cheapest. So each row is asked once for each kind of request, and again only when something
on it has changed. Whole gangs leave several rows at once and are not known here: where one of them would be
cheaper than what a row needs, the answer is ``None`` and the search over the whole cell decides. Both give
the same victims; the tests hold them together on random cells.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.feasibility import PlacementClass, choose_devices
from tidecell.scheduler.fleet import CPU, MEMORY
from tidecell.scheduler.groups import Group, groups_of
from tidecell.scheduler.snapshot import JobView
from tidecell.structs.resources import GPU, Resources

Rank = tuple[tuple[int, int, int, float, str], int]  # a group's cost, and its place in its job
NOBODY: Rank = ((-1, 0, 0, 0.0, ""), 0)


@dataclass
class _Kind:
    """One kind of request: its rows, the one with the cheapest dearest victim first."""

    where: PlacementClass
    request: Resources
    heap: list[tuple[Rank, int, int]] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    seen_board: int = 0
    seen_own: int = 0


@dataclass(frozen=True)
class Found:
    """The row, who leaves it, and the devices that the beneficiary then gets; or that nothing helps."""

    groups: tuple[Group, ...] = ()
    spot: Spot | None = None


class RowVictims:
    """What could leave each row one by one, for beneficiaries of one band, during one pass."""

    def __init__(self, board: Board, jobs: Iterable[JobView], now_s: float) -> None:
        self._board, self._now_s = board, now_s
        self._groups: dict[int, list[tuple[Rank, Group]]] = {}
        self._rows_of: dict[str, set[int]] = {}
        self._others: Rank | None = None  # the cheapest that is not known by row; it only falls
        self._changed: list[int] = []
        self._kinds: dict[tuple[int, Resources], _Kind] = {}
        touched: set[int] = set()
        for job in jobs:
            touched |= self._enter(job)
        for row in touched:
            self._groups[row].sort(key=lambda pair: pair[0])

    def update(self, uid: str, job: JobView | None, machines: Iterable[str]) -> None:
        """Take in that some of a job's tasks were told to leave these machines; None: all of them were."""
        known, at = self._rows_of.pop(uid, set()), self._board.fleet.rows
        rows = known | {at[name] for name in machines if name in at}
        for row in known:
            self._groups[row] = [pair for pair in self._groups[row] if pair[1].job.uid != uid]
        for row in rows if job is None else self._enter(job) | rows:
            self._groups.setdefault(row, []).sort(key=lambda pair: pair[0])
            self._changed.append(row)

    def _enter(self, job: JobView) -> set[int]:
        """Note what of a job could leave; return the rows that it is on."""
        groups = groups_of(job, self._now_s)
        if not groups:
            return set()
        single = len(groups) == 1 and len(groups[0].tasks) == 1
        single = single or (all(len(g.tasks) == 1 for g in groups) and not groups[-1].whole)
        rows: set[int] = set()
        for place, group in enumerate(groups):
            rank = (group.cost(), place)
            if not single:
                self._others = rank if self._others is None else min(rank, self._others)
                continue
            row = self._board.fleet.rows.get(group.tasks[0].machine)
            if row is not None:
                self._groups.setdefault(row, []).append((rank, group))
                rows.add(row)
        if rows:
            self._rows_of[job.uid] = rows
        return rows

    def find(self, job: JobView, index: int) -> Found | None:
        """Return who leaves for a task; ``Found()``: nobody's leaving helps; None: search the whole cell."""
        kind = self._kind(job, index)
        while kind.heap and kind.heap[0][2] != kind.versions[kind.heap[0][1]]:
            heapq.heappop(kind.heap)
        if not kind.heap:
            return Found() if self._others is None else None
        rank, row, _ = kind.heap[0]
        if rank == NOBODY or (self._others is not None and rank > self._others):
            return None
        chosen = self._trim(kind, row, [pair for pair in self._groups[row] if pair[0] <= rank])
        columns = _Freed.of(self._board, row, chosen).devices(kind)
        accelerators = self._board.fleet.specs[row].accelerators
        return Found(tuple(chosen), Spot(row, 0, tuple(accelerators[c].index for c in columns)))

    # ----------------------------------------------------------------------------------- each row

    def _kind(self, job: JobView, index: int) -> _Kind:
        """Return the rows for requests like this one, brought up to date."""
        where, request = self._board.placement_class(job.spec), job.spec.request(index)
        board_log, own_log = self._board.changed_rows, self._changed
        kind = self._kinds.get((id(where), request))
        if kind is None:
            kind = self._kinds[id(where), request] = _Kind(where, request)
            rows: Iterable[int] = np.flatnonzero(where.allowed_N).tolist()
        else:
            rows = {*board_log[kind.seen_board :], *own_log[kind.seen_own :]}
        kind.seen_board, kind.seen_own = len(board_log), len(own_log)
        for row in rows:
            kind.versions[row] = version = kind.versions.get(row, 0) + 1
            rank = self._rank(kind, row)
            if rank is not None:
                heapq.heappush(kind.heap, (rank, row, version))
        return kind

    def _rank(self, kind: _Kind, row: int) -> Rank | None:
        """Return the dearest victim that a row needs for one more of this kind; None: it never has room."""
        if not kind.where.allowed_N[row]:
            return None
        freed = _Freed.of(self._board, row, ())
        if freed.fits(kind):
            return NOBODY
        for rank, group in self._groups.get(row, ()):
            freed.add(group)
            if freed.fits(kind):
                return rank
        return None

    def _trim(self, kind: _Kind, row: int, chosen: list[tuple[Rank, Group]]) -> list[Group]:
        """Drop whoever is not needed, the dearest first."""
        kept = [group for _, group in chosen]
        freed = _Freed.of(self._board, row, kept)
        for _, group in sorted(chosen, key=lambda pair: pair[0][0], reverse=True):
            freed.add(group, -1)
            if freed.fits(kind):
                kept.remove(group)
            else:
                freed.add(group)
        return kept


@dataclass
class _Freed:
    """What some victims on one row would free, and with it what a beneficiary could use there.

    Attributes:
        now_R: What is free there now.
        free_R: What is given back of cpu and memory.
        gpu_G: What is given back of each device.
    """

    board: Board
    row: int
    now_R: list[int]
    free_R: list[int]
    gpu_G: list[int]

    @classmethod
    def of(cls, board: Board, row: int, groups: Sequence[Group]) -> _Freed:
        fleet = board.fleet
        now_R, free_R = board.free.free_NR[row].tolist(), fleet.leaving_NR[row].tolist()
        freed = cls(board, row, now_R, free_R, fleet.gpu_leaving_NG[row].tolist())
        for group in groups:
            freed.add(group)
        return freed

    def add(self, group: Group, sign: int = 1) -> None:
        at = self.board.fleet.accelerator_at[self.row]
        for task in group.tasks:
            self.free_R[CPU] += sign * task.resources.cpu_millis
            self.free_R[MEMORY] += sign * task.resources.memory_bytes
            for device in task.accelerators:
                self.gpu_G[at[device]] += sign * min(GPU, task.resources.gpu_millis)

    def fits(self, kind: _Kind) -> bool:
        """Return whether one more of a kind fits then."""
        want, (cpu, memory) = kind.request, self.free_R
        if want.cpu_millis > self.now_R[CPU] + cpu and want.cpu_millis:
            return False  # without a look at what is kept for heads and at devices
        if want.memory_bytes > self.now_R[MEMORY] + memory and want.memory_bytes:
            return False
        if self.board.reserved is None and not want.gpu_millis:
            return True
        free_R, gpu_G = self.board.row_room(self.row, self.free_R, self.gpu_G)
        if want.cpu_millis and free_R[CPU] < want.cpu_millis:
            return False
        if want.memory_bytes and free_R[MEMORY] < want.memory_bytes:
            return False
        return not want.gpu_millis or kind.where.typed_NG is None or bool(self._choose(kind, gpu_G))

    def devices(self, kind: _Kind) -> list[int]:
        """Return the columns of the devices that one more of a kind would get."""
        if not kind.request.gpu_millis:
            return []
        return self._choose(kind, self.board.row_room(self.row, self.free_R, self.gpu_G)[1])

    def _choose(self, kind: _Kind, gpu_G: Sequence[int]) -> list[int]:
        typed_G = None if kind.where.typed_NG is None else kind.where.typed_NG[self.row]
        return choose_devices(gpu_G, typed_G, kind.request.gpu_millis)


__all__ = ["Found", "RowVictims"]
