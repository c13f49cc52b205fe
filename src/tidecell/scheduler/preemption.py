"""The cheapest sufficient set of victims. Pure.

Replicas above a gang's minimum are taken first, lowest band first; a whole gang only where nothing
else helps, and then wholly, so that no gang is left below its minimum. The set is minimal: leave any
group out and the beneficiary does not fit. Capacity that is being vacated anyway is used first.

A team may also take its own quota back: then replicas of teams of its cohort that hold more than their
own are victims as well, though they are in the same band (only batch lends).

Cases behind the rules: Kueue #15211 (use what is already leaving), Volcano #4607 (never one replica
of many gangs), Volcano #5984 (trim to the smallest sufficient set).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.feasibility import Room
from tidecell.scheduler.gang import fit
from tidecell.scheduler.groups import Group, groups_of
from tidecell.scheduler.quota import Freed, Gate
from tidecell.scheduler.snapshot import JobView, TaskView
from tidecell.scheduler.victims import Found, RowVictims


@dataclass(frozen=True)
class Victims:
    """Who leaves, and where the beneficiary's tasks then go."""

    tasks: tuple[tuple[JobView, TaskView], ...]
    spots: tuple[Spot, ...]


def find_by_row(rows: RowVictims, by: JobView, index: int, gate: Gate | None) -> Found | None:
    """Return the victims for one task where looking row by row decides; None: ``find_victims`` does."""
    spec = by.spec
    if len(spec.shapes) > 1 or spec.topology is not None or spec.spread is not None:
        return None
    if gate is not None:
        short = gate.check(by, [index], future=True) is not None
        if short or takes_back_own(by, [index], gate):
            return None
    return rows.find(by, index)


def find_victims(
    board: Board,
    jobs: Sequence[JobView],
    by: JobView,
    indices: Sequence[int],
    now_s: float,
    gate: Gate | None = None,
) -> Victims | None:
    """Return the cheapest minimal set whose leaving lets ``by`` start, or None if there is none.

    An empty set means that what is leaving already suffices.
    """
    search = _Search(board, by, indices, gate)
    spots = search.fit(())
    if spots is not None:
        return Victims((), tuple(spots))
    if not search.could_have_quota():
        return None
    groups: list[Group] = []
    for group in sorted(_groups(jobs, by, indices, now_s, gate), key=Group.cost):
        # What is on a machine that went away frees nothing, though its end may not have been told yet.
        here = all(t.machine in board.fleet.rows for t in group.tasks)
        if here and search.may_take(group, groups):
            groups.append(group)
    # More that leave never make less room, so the shortest sufficient prefix is found by halving.
    number = bisect_left(range(len(groups) + 1), True, key=lambda n: search.fit(groups[:n]) is not None)
    if number > len(groups):
        return None
    chosen = _trim(search, groups[:number])
    spots = search.fit(chosen)
    if spots is None:
        return None
    return Victims(tuple((g.job, t) for g in chosen for t in g.tasks), tuple(spots))


@dataclass(frozen=True)
class _Search:
    """Whether room and quota suffice for ``by`` once some groups have left."""

    board: Board
    by: JobView
    indices: Sequence[int]
    gate: Gate | None

    def fit(self, groups: Sequence[Group]) -> list[Spot] | None:
        """Return a spot for each task, or None."""
        if self.gate is not None:
            freed = self._freed_quota(groups)
            if self.gate.check(self.by, self.indices, future=True, freed=freed) is not None:
                return None
        keys = [(self.by.uid, i) for i in self.indices]
        room = self.board.room(keys, future=True, freed=freed_by(self.board, groups) if groups else None)
        return fit(self.board, self.by, self.indices, room)

    def may_take(self, group: Group, chosen: Sequence[Group]) -> bool:
        """Return whether it is in a lower band, or borrows still after ``chosen`` have left."""
        if self.gate is None or group.job.spec.priority.band < self.by.spec.priority.band:
            return True
        return self.gate.may_take(self.by, self.indices, group.job, self._freed_quota(chosen))

    def could_have_quota(self) -> bool:
        """Return whether quota is no obstacle, or one that taking its own back would remove."""
        if self.gate is None or self.gate.check(self.by, self.indices, future=True) is None:
            return True
        return self.gate.is_entitled(self.by, self.indices)

    def _freed_quota(self, groups: Sequence[Group]) -> Freed:
        freed: Freed = {}
        if self.gate is not None:
            for group in groups:
                self.gate.add_freed(freed, group.job, group.tasks)
        return freed


def _groups(
    jobs: Sequence[JobView], by: JobView, indices: Sequence[int], now_s: float, gate: Gate | None
) -> list[Group]:
    out: list[Group] = []
    takes_back = takes_back_own(by, indices, gate)
    for job in jobs:
        lower = job.spec.priority.band < by.spec.priority.band
        borrows = takes_back and gate is not None and gate.may_take(by, indices, job, {})
        if lower or borrows:
            out += groups_of(job, now_s, lower)
    return out


def takes_back_own(by: JobView, indices: Sequence[int], gate: Gate | None) -> bool:
    """Return whether a team may take its own quota back for these tasks, from its own band."""
    return gate is not None and not gate.has_patience_left(by) and gate.is_entitled(by, indices)


def freed_by(board: Board, groups: Sequence[Group]) -> Room:
    """Return what these groups hold, by row and device."""
    fleet = board.fleet
    freed = Room(np.zeros_like(fleet.used_NR), np.zeros_like(fleet.gpu_used_NG))
    for group in groups:
        for task in group.tasks:
            row = fleet.rows.get(task.machine)
            if row is None:  # its machine is away and it is not given up yet: that frees nothing
                continue
            columns = [fleet.accelerator_at[row][a] for a in task.accelerators]
            Board.add(freed, row, task.resources, columns, 1)
    return freed


def _trim(search: _Search, chosen: list[Group]) -> list[Group]:
    """Drop every group that is not needed, the dearest first; a whole gang keeps its single replicas."""
    kept = list(chosen)
    for group in sorted(chosen, key=Group.cost, reverse=True):
        gang_goes = any(g.whole and g.job.uid == group.job.uid for g in kept)
        if not group.whole and gang_goes:
            continue
        rest = [g for g in kept if g is not group]
        if search.fit(rest) is not None:
            kept = rest
    return kept
