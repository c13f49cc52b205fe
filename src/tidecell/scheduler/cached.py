"""The score cache: which row is best for a kind of work, kept up to date row by row. Pure.

A pass over a large cell places thousands of tasks of a few hundred kinds (Borg's equivalence classes and
score cache, EuroSys 2015, section 3.4). For each kind the scores of all rows are worked out once; afterwards
only rows that something was put on since are scored again. What it answers is bit for bit what ``gang.fit``
does with full scans, and a property test holds the two equal. It lives for one pass: a misfit is not
remembered beyond it, so a large job is looked at anew whenever something has changed.

On cells of ``COMPILE_FROM`` rows and more the kernel is compiled, where Numba is installed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.compiled import compiled
from tidecell.scheduler.feasibility import Floats, PlacementClass, choose_devices
from tidecell.scheduler.fleet import Ints
from tidecell.scheduler.scoring import score_row
from tidecell.scheduler.snapshot import JobView
from tidecell.structs.resources import Resources

CACHE_FROM = 24  # rows; below it full scans are quicker than keeping books
COMPILE_FROM = 512  # rows; below it importing a compiler costs more than it saves


def score_rows(
    rows: Ints,
    rank_N: Ints,
    allowed_N: Bools,
    typed_NG: Bools,
    free_NR: Ints,
    gpu_NG: Ints,
    full_NR: Ints,
    ask_R: Ints,
    mix_XP: Floats,
    scores_K: Floats,
) -> None:
    """Write the packing score of some rows, infinite where a replica does not fit.

    Args:
        rows: Which.
        rank_N: Each row's place among equals; scores are in that order, so the first least one wins.
        allowed_N: Where this kind of work may go at all.
        typed_NG: Devices of the type asked for; no columns where no device is asked for.
        free_NR: Cpu and memory.
        gpu_NG: Thousandths of each device.
        full_NR: Of empty rows: cpu, memory and thousandths.
        ask_R: Cpu, memory and thousandths of accelerators.
        mix_XP: What the cell usually gets.
        scores_K: Written to.
    """
    for at in range(len(rows)):
        row = rows[at]
        score = math.inf
        if allowed_N[row]:
            score = score_row(
                free_NR[row, 0], free_NR[row, 1], gpu_NG[row], typed_NG[row], full_NR[row], ask_R, mix_XP
            )
        scores_K[rank_N[row]] = score


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
        self._score = compiled(score_rows, size >= COMPILE_FROM)
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
            kind.scores_K,
        )


__all__ = ["CACHE_FROM", "COMPILE_FROM", "ScoreCache", "score_rows"]
