"""The score cache: which row is best for a kind of work, kept up to date row by row. Pure.

A pass over a large cell places thousands of tasks of a few hundred kinds (Borg's equivalence classes and
score cache, EuroSys 2015, section 3.4). For each kind the scores of all rows are worked out once; afterwards
only rows that something was put on since are scored again. What it answers is bit for bit what ``gang.fit``
does with full scans, and a property test holds the two equal. It lives for one pass: a misfit is not
remembered beyond it, so a large job is looked at anew whenever something has changed.

On cells of ``COMPILE_FROM`` rows and more the kernel is compiled, where Numba is installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.compiled import COMPILE_FROM, can_compile, compiled
from tidecell.scheduler.feasibility import Floats, PlacementClass, Room, choose_devices, fits_N
from tidecell.scheduler.fleet import Ints
from tidecell.scheduler.scoring import NUM_FACTS, score_N, score_rows
from tidecell.scheduler.snapshot import JobView
from tidecell.structs.resources import Resources

CACHE_FROM = 24  # rows; below it full scans are quicker than keeping books
COLUMNS_FROM = 6  # rows; uncompiled, fewer are quicker one by one


@dataclass
class _Kind:
    """The scores of one kind of work, and up to which change they are right."""

    typed_NG: Bools
    ask_R: Ints
    scores_K: Floats
    seen: int


class ScoreCache:
    """Best rows by kind of work during one pass over a board."""

    def __init__(self, board: Board) -> None:
        self._board = board
        size = len(board.fleet.names)
        self._compiled = size >= COMPILE_FROM and can_compile()
        self._score = compiled(score_rows, self._compiled)
        self._facts_NF, self._known_N = np.zeros((size, NUM_FACTS)), np.zeros(size, np.bool_)
        self._seen = len(board.changed_rows)
        self._row_K = np.argsort(board.rank_N)
        self._no_types = np.zeros((size, 0), np.bool_)
        self._kinds: dict[tuple[int, Resources], _Kind] = {}

    def fit(self, job: JobView, indices: Sequence[int]) -> list[Spot] | None:
        """Return a spot for each task in what is free now, or None; the board is as before afterwards."""
        for shape in range(len(job.spec.shapes)):
            spots = self._fit(job, indices, shape)
            if spots is not None:
                return spots
        return None

    def _fit(self, job: JobView, indices: Sequence[int], shape: int) -> list[Spot] | None:
        board, spots = self._board, []
        used: list[tuple[int, Resources, tuple[int, ...]]] = []
        placement = board.placement_class(job.spec, shape)
        for index in indices:
            request = job.spec.request(index, shape)
            row = self._best_row(placement, request)
            if row < 0:
                break
            spot, columns = self._spot(placement, request, row, shape)
            spots.append(spot)
            if len(indices) > 1:  # the others of the gang come on top; taken back below
                board.use(row, request, columns, -1)
                used.append((row, request, columns))
        for row, request, columns in used:
            board.use(row, request, columns, 1)
        return spots if len(spots) == len(indices) else None

    def _spot(
        self, placement: PlacementClass, request: Resources, row: int, shape: int
    ) -> tuple[Spot, tuple[int, ...]]:
        if not request.gpu_millis:
            return Spot(row, shape, ()), ()
        typed_G = None if placement.typed_NG is None else placement.typed_NG[row]
        columns = tuple(choose_devices(self._board.open.gpu_NG[row], typed_G, request.gpu_millis))
        accelerators = self._board.fleet.specs[row].accelerators
        return Spot(row, shape, tuple(accelerators[c].index for c in columns)), columns

    def _best_row(self, placement: PlacementClass, request: Resources) -> int:
        kind = self._kind(placement, request)
        best = int(kind.scores_K.argmin())
        return int(self._row_K[best]) if kind.scores_K[best] < np.inf else -1

    def _kind(self, placement: PlacementClass, request: Resources) -> _Kind:
        key = (id(placement), request)
        known, log = self._kinds.get(key), self._board.changed_rows
        for row in log[self._seen :]:
            self._known_N[row] = False
        self._seen = len(log)
        if known is None:
            typed_NG = self._no_types if placement.typed_NG is None else placement.typed_NG
            ask_R = np.array([request.cpu_millis, request.memory_bytes, request.gpu_millis], np.int64)
            size = len(self._row_K)
            known = self._kinds[key] = _Kind(typed_NG, ask_R, np.empty(size), len(log))
            self._rescore(placement, known, np.arange(size))
        elif known.seen < len(log):
            fresh = log[known.seen :]
            rows = fresh if len(fresh) < 4 else list(dict.fromkeys(fresh))
            known.seen = len(log)
            self._rescore(placement, known, np.array(rows, np.int64))
        return known

    def _rescore(self, placement: PlacementClass, kind: _Kind, rows: Ints) -> None:
        board = self._board
        if not self._compiled and len(rows) >= COLUMNS_FROM:
            self._rescore_by_columns(placement, kind, rows)
            return
        self._score(
            rows,
            board.rank_N,
            placement.allowed_N,
            kind.typed_NG,
            board.open.free_NR,
            board.open.gpu_NG,
            board.full_NR,
            kind.ask_R,
            board.mix_XP,
            self._facts_NF,
            self._known_N,
            kind.scores_K,
        )

    def _rescore_by_columns(self, placement: PlacementClass, kind: _Kind, rows: Ints) -> None:
        board = self._board
        room = Room(board.open.free_NR[rows], board.open.gpu_NG[rows])
        typed_NG = None if placement.typed_NG is None else placement.typed_NG[rows]
        ok_N = fits_N(room, Resources(*map(int, kind.ask_R)), typed_NG) & placement.allowed_N[rows]
        scores_N = score_N(*room, typed_NG, board.full_NR[rows], kind.ask_R, board.mix_XP)
        kind.scores_K[board.rank_N[rows]] = np.where(ok_N, scores_N, np.inf)


__all__ = ["CACHE_FROM", "COMPILE_FROM", "ScoreCache"]
