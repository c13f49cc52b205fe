"""Runs of units of one task each, placed by one call of compiled code. Pure.

In a large cell most of what waits are single tasks with nothing particular about them. For such a unit the
score cache says all: the best row for its kind of work. So a whole run of them is placed by one call of a
kernel (``cached.place_run``), which keeps scores as ``ScoreCache`` does and stops at the first unit that fits
nowhere; that one is served as any other, since it may preempt or reserve. Whatever else about a unit needs a
look (claims, quota, preferences, replicas that start together) ends a run as well. Plans are the same; a
property test holds both ways together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.board import Board
from tidecell.scheduler.cached import BLOCK, COMPILE_FROM, place_run
from tidecell.scheduler.compiled import can_compile, compiled
from tidecell.scheduler.scoring import NUM_FACTS
from tidecell.scheduler.units import Unit
from tidecell.structs.job import JobSpec
from tidecell.structs.messages import Placement

PARTICULAR = -1  # the kind of a unit that no run can take in


def pays_off(num_rows: int) -> bool:
    """Return whether the kernel is compiled for so many rows; interpreted it is slower than the cache."""
    return num_rows >= COMPILE_FROM and can_compile()


def has_wishes(spec: JobSpec) -> bool:
    """Whether rows are better or worse for this work than packing says, which scores by kind do not know."""
    wishes = spec.prefer or spec.data or spec.topology is not None or spec.spread is not None
    return bool(wishes or (spec.tasks and spec.sizes))


class _Kinds:
    """Numbers for kinds of work: what is asked for, and where it may go."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._by_spec: dict[int, tuple[int, int]] = {}  # by identity: number of the first shape, and how many
        self._by_key: dict[tuple[object, ...], tuple[int, int]] = {}
        self._wheres: dict[int, int] = {}
        self._types: dict[int, int] = {}
        self.allowed: list[Bools] = []
        self.typed: list[Bools] = []
        self.rows: list[tuple[int, int, int, int, int]] = []  # where, type, cpu, memory, gpu

    def of(self, unit: Unit) -> tuple[int, int]:
        """Return the number of a unit's first shape and how many follow one another."""
        spec = unit.job.spec
        known = self._by_spec.get(id(spec))
        if known is None:
            known = self._by_spec[id(spec)] = self._find(spec)
        return known if len(unit.tasks) == 1 and not unit.tasks[0].avoid else (PARTICULAR, 0)

    def _find(self, spec: JobSpec) -> tuple[int, int]:
        if has_wishes(spec):
            return (PARTICULAR, 0)
        key = (spec.resources, spec.accelerator_type, spec.any_of, spec.constraints, spec.alloc)
        known = self._by_key.get(key)
        if known is None:
            known = self._by_key[key] = (len(self.rows), 1 + len(spec.any_of))
            for shape in range(known[1]):
                self._enter(spec, shape)
        return known

    def _enter(self, spec: JobSpec, shape: int) -> None:
        found = self._board.placement_class(spec, shape)
        where = self._wheres.setdefault(id(found.allowed_N), len(self.allowed))
        if where == len(self.allowed):
            self.allowed.append(found.allowed_N)
        kind = self._types.setdefault(id(found.typed_NG), len(self.typed))
        if kind == len(self.typed):
            nothing = np.zeros(self._board.fleet.gpu_type_NG.shape, np.bool_)
            self.typed.append(nothing if found.typed_NG is None else found.typed_NG)
        asked = found.request
        self.rows.append((where, kind, asked.cpu_millis, asked.memory_bytes, asked.gpu_millis))


class RunPlacer:
    """Places runs of units in the order in which a pass serves them."""

    def __init__(self, board: Board, units: Sequence[Unit], compile_it: bool = True) -> None:
        self._board, self._units = board, units
        self._place = compiled(place_run, compile_it)
        kinds = _Kinds(board)
        found = [kinds.of(unit) for unit in units]
        size, num_kinds, num_units = len(board.fleet.names), len(kinds.rows), len(units)
        for unit, (kind, _) in zip(units, found, strict=True):
            unit.kind = kind
        self._kind_U = np.array([kind for kind, _ in found], np.int64)
        self._num_shapes_U = np.array([count for _, count in found], np.int64)
        # Where the run of unit U ends: at the next particular one.
        particular = np.flatnonzero(self._kind_U == PARTICULAR)
        ends = np.append(particular, num_units)
        self._end_U = ends[np.searchsorted(ends, np.arange(num_units))]
        table = np.array(kinds.rows, np.int64).reshape(num_kinds, 5)
        self._where_K, self._type_K = table[:, 0].copy(), table[:, 1].copy()
        self._ask_KR = table[:, 2:].copy()
        self._allowed_WN = np.array(kinds.allowed, np.bool_).reshape(len(kinds.allowed), size)
        self._typed_TNG = np.array(kinds.typed, np.bool_).reshape(
            len(kinds.typed), *board.fleet.gpu_type_NG.shape
        )
        self._seen_K = np.full(num_kinds, -1, np.int64)
        self._scores_KN = np.empty((num_kinds, size))  # touched only for kinds that come up
        self._least_KB = np.empty((num_kinds, -(-size // BLOCK)))
        self._log = np.empty(num_units + 64, np.int64)
        self._num_logged = 0
        self._last_N = np.full(size, -1, np.int64)
        self._rows_N, self._before_N = np.empty(size, np.int64), np.empty(size)
        self._facts_NF, self._known_N = np.zeros((size, NUM_FACTS)), np.zeros(size, np.bool_)
        self._row_P = np.argsort(board.rank_N)
        self._row_U, self._shape_U = np.zeros(num_units, np.int64), np.zeros(num_units, np.int64)
        self._count_U = np.zeros(num_units, np.int64)
        self._columns_UG = np.zeros((num_units, board.fleet.gpu_type_NG.shape[1]), np.int64)

    def end_of_run(self, first: int) -> int:
        """Return the number of the first unit from this one on that no run can take in."""
        return int(self._end_U[first])

    def place(self, first: int, last: int) -> int:
        """Place units ``first`` up to ``last``, or to the first that fits nowhere; return that number."""
        board, log = self._board, self._board.changed_rows
        self._take_in(log[self._num_logged :], last - first)
        stop = int(
            self._place(
                first,
                last,
                self._kind_U,
                self._num_shapes_U,
                self._where_K,
                self._type_K,
                self._ask_KR,
                self._allowed_WN,
                self._typed_TNG,
                self._seen_K,
                self._scores_KN,
                self._least_KB,
                self._log,
                self._num_logged,
                self._last_N,
                self._rows_N,
                self._before_N,
                board.rank_N,
                self._row_P,
                board.full_NR,
                board.mix_XP,
                self._facts_NF,
                self._known_N,
                board.open.free_NR,
                board.open.gpu_NG,
                board.free.free_NR,
                board.free.gpu_NG,
                board.fleet.used_NR,
                board.fleet.gpu_used_NG,
                self._row_U,
                self._shape_U,
                self._count_U,
                self._columns_UG,
            )
        )
        log.extend(self._row_U[first:stop].tolist())
        self._num_logged = len(log)
        return stop

    def _take_in(self, rows: list[int], more: int) -> None:
        """Note rows that others have changed; make room for ``more`` entries."""
        end = self._num_logged + len(rows)
        if end + more > len(self._log):
            self._log = np.concatenate([self._log, np.empty(end + more, np.int64)])
        self._log[self._num_logged : end] = rows
        self._known_N[rows] = False
        self._last_N[rows] = np.arange(self._num_logged, end)
        self._num_logged = end

    def placements(self, first: int, stop: int) -> list[Placement]:
        """Return what ``place`` found for these units."""
        names, specs = self._board.fleet.names, self._board.fleet.specs
        out = []
        rows, shapes = self._row_U[first:stop].tolist(), self._shape_U[first:stop].tolist()
        counts = self._count_U[first:stop].tolist()
        for at, (row, shape, count) in enumerate(zip(rows, shapes, counts, strict=True), first):
            unit = self._units[at]
            job = unit.job
            devices: tuple[int, ...] = ()
            if count:
                accelerators = specs[row].accelerators
                devices = tuple([accelerators[c].index for c in self._columns_UG[at, :count].tolist()])
            granted = job.spec.resources if shape == 0 else job.spec.any_of[shape - 1].resources
            out.append(Placement(job.uid, unit.tasks[0].index, names[row], devices, granted, shape))
        return out


__all__ = ["RunPlacer", "has_wishes", "pays_off"]
