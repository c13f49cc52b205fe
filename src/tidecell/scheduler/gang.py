"""All-or-nothing placement of the tasks that start together, best row first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.feasibility import Floats, PlacementClass, Room, choose_devices, fits_N
from tidecell.scheduler.scoring import best_row, left_over_N
from tidecell.scheduler.snapshot import JobView
from tidecell.structs.resources import Resources


def fit(board: Board, job: JobView, indices: Sequence[int], room: Room) -> list[Spot] | None:
    """Return a spot for each task, or None if not all fit together.

    Args:
        board: Where they go; it is not changed.
        job: Whose tasks they are.
        indices: Which of them.
        room: What they may use (``Board.room``); used up by this.
    """
    for shape in range(len(job.spec.shapes)):
        trial = room if shape == len(job.spec.shapes) - 1 else room.copy()
        spots = _Fitting(board, job, shape, trial).run(indices)
        if spots is not None:
            return spots
    return None


class _Fitting:
    """Places tasks of one job in one shape one after the other."""

    def __init__(self, board: Board, job: JobView, shape: int, room: Room) -> None:
        self.board, self.job, self.shape, self.room = board, job, shape, room
        self.kind: PlacementClass = board.placement_class(job.spec, shape)
        self.request: Resources | None = None
        self.ok_N: np.ndarray = self.kind.allowed_N
        self.score_N: Floats = np.empty(0)

    def run(self, indices: Sequence[int]) -> list[Spot] | None:
        spots = []
        for index in indices:
            request = self.job.spec.request(index, self.shape)
            if request != self.request:
                self._score(request)
            row = self._claimed_row(index, request)
            if row < 0:
                row = best_row(self.ok_N, self.score_N, self.board.rank_N)
            if row < 0:
                return None
            spots.append(self._use(row, request))
        return spots

    def _score(self, request: Resources) -> None:
        """Score every row for requests of this size."""
        self.request = request
        self.ok_N = fits_N(self.room, request, self.kind.typed_NG)
        self.ok_N &= self.kind.allowed_N
        self.score_N = left_over_N(self.room, self.board.fleet.capacity_NR, request)

    def _claimed_row(self, index: int, request: Resources) -> int:
        """Return the row that is held for this task, if it still suffices."""
        claim = self.board.claims.get((self.job.uid, index)) if self.board.claims else None
        if claim is None or claim.resources != request:
            return -1
        row = self.board.fleet.rows[claim.machine]
        return row if self.ok_N[row] else -1

    def _use(self, row: int, request: Resources) -> Spot:
        typed_G = None if self.kind.typed_NG is None else self.kind.typed_NG[row]
        columns = choose_devices(self.room.gpu_NG[row], typed_G, request.gpu_millis)
        Board.add(self.room, row, request, columns, -1)
        self._rescore(row, request)
        accelerators = self.board.fleet.specs[row].accelerators
        return Spot(row, self.shape, tuple(accelerators[c].index for c in columns))

    def _rescore(self, row: int, request: Resources) -> None:
        one = slice(row, row + 1)
        room = Room(self.room.free_NR[one], self.room.gpu_NG[one])
        typed_NG = None if self.kind.typed_NG is None else self.kind.typed_NG[one]
        self.ok_N[one] = fits_N(room, request, typed_NG) & self.kind.allowed_N[one]
        self.score_N[one] = left_over_N(room, self.board.fleet.capacity_NR[one], request)
