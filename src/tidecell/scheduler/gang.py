"""All-or-nothing placement of the tasks that start together, best row first. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.board import Board, Spot
from tidecell.scheduler.compiled import COMPILE_FROM, can_compile, compiled
from tidecell.scheduler.feasibility import Floats, PlacementClass, Room, choose_devices, copies_N, fits_N
from tidecell.scheduler.fleet import Fleet, Ints
from tidecell.scheduler.scoring import NUM_FACTS, best_row, note_facts, score_N, score_row, score_rows
from tidecell.scheduler.snapshot import JobView, Snapshot
from tidecell.scheduler.topology import Evenness, domain_masks
from tidecell.structs.resources import Resources

# In a score: one replica more in a domain, and a machine on which this very task failed lately. Packing is
# below 100, preferences are hundreds of thousands, so each only decides among equals of the next.
EVENNESS = 100.0
AVOIDED = 1e9
NO_DEVICES = np.zeros(0, np.bool_)


def fit(board: Board, job: JobView, indices: Sequence[int], room: Room) -> list[Spot] | None:
    """Return a spot for each task, or None if not all fit together.

    Args:
        board: Where they go; it is not changed.
        job: Whose tasks they are.
        indices: Which of them.
        room: What they may use (``Board.room``); used up by this.
    """
    last = len(job.spec.shapes) - 1
    for shape in range(last + 1):
        for rows in _rows_to_try(board, job, shape, indices, room):
            final = shape == last and rows is None
            order = largest_first(job, indices, shape) if job.spec.sizes else indices
            spots = _Fitting(board, job, shape, room if final else room.copy(), rows).run(order)
            if spots is not None:
                return spots if order is indices else _in_order(indices, order, spots)
    return None


def largest_first(job: JobView, indices: Sequence[int], shape: int) -> list[int]:
    """Return indices of replicas of differing sizes so that small ones do not take the large ones' rooms."""

    def size(index: int) -> tuple[int, int, int, int]:
        request = job.spec.request(index, shape)
        return (-request.gpu_millis, -request.cpu_millis, -request.memory_bytes, index)

    return sorted(indices, key=size)


def _in_order(indices: Sequence[int], order: Sequence[int], spots: Sequence[Spot]) -> list[Spot]:
    at = dict(zip(order, spots, strict=True))
    return [at[index] for index in indices]


def fits_empty(fleet: Fleet, job: JobView, indices: Sequence[int]) -> bool:
    """Return whether replicas of differing sizes fit together on these machines with nothing else on them."""
    empty = Snapshot(0.0, tuple(fleet.specs), ())
    board = Board(empty)
    board.fleet.open_N = fleet.open_N
    return fit(board, job, indices, board.room()) is not None


def _rows_to_try(
    board: Board, job: JobView, shape: int, indices: Sequence[int], room: Room
) -> Iterator[Bools | None]:
    """Yield the rows of one domain after another where the job asks for that; None: all rows."""
    topology = job.spec.topology
    if topology is None:
        yield None
        return
    kind = board.placement_class(job.spec, shape)
    requests = {job.spec.request(index, shape) for index in indices}
    least = Resources(*(min(getattr(r, f) for r in requests) for f in Resources.__struct_fields__))
    copies = np.where(kind.allowed_N, copies_N(room, least, kind.typed_NG), 0)
    yield from domain_masks(board.fleet, topology, copies, len(indices), board.home_rows(job, indices))


def _asked(request: Resources) -> Ints:
    return np.array([request.cpu_millis, request.memory_bytes, request.gpu_millis], np.int64)


class _Fitting:
    """Places tasks of one job in one shape one after the other."""

    def __init__(self, board: Board, job: JobView, shape: int, room: Room, rows_N: Bools | None) -> None:
        self.board, self.job, self.shape, self.room = board, job, shape, room
        self.kind: PlacementClass = board.placement_class(job.spec, shape)
        self.allowed_N = self.kind.allowed_N if rows_N is None else self.kind.allowed_N & rows_N
        self.request: Resources | None = None
        self.ok_N: Bools = self.allowed_N
        self.score_N: Floats = np.empty(0)
        self.evenness: Evenness | None = None

    def run(self, indices: Sequence[int]) -> list[Spot] | None:
        spots = []
        if self.job.spec.spread is not None:
            homes = self.board.home_rows(self.job, indices)
            self.evenness = Evenness.of(self.board.fleet, self.job.spec.spread, self.allowed_N, homes)
        avoided = self.board.avoided(self.job)
        for index in indices:
            request = self.job.spec.request(index, self.shape)
            if request != self.request:
                self._score(request)
            row = self._claimed_row(index, request)
            if row < 0:
                row = self._best_row(avoided.get(index, ()))
            if row < 0:
                return None
            spots.append(self._use(row, request))
        return spots

    def _best_row(self, avoided: Sequence[int]) -> int:
        ok_N, score_N = self.ok_N, self.score_N
        if self.evenness is not None:
            ok_N = ok_N & self.evenness.allowed_N()
            score_N = score_N + EVENNESS * self.evenness.count_N()
        if avoided:
            score_N = score_N.copy()
            score_N[list(avoided)] += AVOIDED
        return best_row(ok_N, score_N, self.board.rank_N)

    def _score(self, request: Resources) -> None:
        """Score every row for requests of this size."""
        self.request = request
        self.ok_N = fits_N(self.room, request, self.kind.typed_NG)
        self.ok_N &= self.allowed_N
        self.score_N = self._packing_N(request)
        if self.kind.bias_N is not None:
            self.score_N = self.score_N + self.kind.bias_N

    def _packing_N(self, request: Resources) -> Floats:
        """Return the packing score of every row; compiled on a large cell, with the same result."""
        board, room, typed_NG = self.board, self.room, self.kind.typed_NG
        ask_R, size = _asked(request), len(room.free_NR)
        if size < COMPILE_FROM or not can_compile():
            return score_N(*room, typed_NG, board.full_NR, ask_R, board.mix_XP)
        scores_N, rows = np.empty(size), np.arange(size)
        typed_NG = np.zeros((size, 0), np.bool_) if typed_NG is None else typed_NG
        facts_NF, known_N = np.zeros((size, NUM_FACTS)), np.zeros(size, np.bool_)
        where = (rows, rows, self.allowed_N, typed_NG, *room, board.full_NR)
        compiled(score_rows)(*where, ask_R, board.mix_XP, facts_NF, known_N, scores_N)
        return scores_N

    def _packing(self, row: int, request: Resources) -> float:
        (free_NR, gpu_NG), typed_NG, mix_XP = self.room, self.kind.typed_NG, self.board.mix_XP
        cpu, memory, facts_F = free_NR[row, 0], free_NR[row, 1], np.zeros(NUM_FACTS)
        note_facts(cpu, memory, gpu_NG[row], mix_XP, facts_F)
        able_G = NO_DEVICES if typed_NG is None else typed_NG[row]
        full_R, ask_R = self.board.full_NR[row], _asked(request)
        return score_row(cpu, memory, gpu_NG[row], able_G, full_R, ask_R, facts_F, mix_XP)

    def _claimed_row(self, index: int, request: Resources) -> int:
        """Return the row that is held for this task, if it still suffices."""
        claim = self.board.claims.get((self.job.uid, index)) if self.board.claims else None
        if claim is None or claim.resources != request:
            return -1
        row = self.board.fleet.rows[claim.machine]
        even = self.evenness is None or self.evenness.allowed_N()[row]
        return row if self.ok_N[row] and even else -1

    def _use(self, row: int, request: Resources) -> Spot:
        typed_G = None if self.kind.typed_NG is None else self.kind.typed_NG[row]
        columns = choose_devices(self.room.gpu_NG[row], typed_G, request.gpu_millis)
        Board.add(self.room, row, request, columns, -1)
        self._rescore(row, request)
        if self.evenness is not None:
            self.evenness.place(row)
        accelerators = self.board.fleet.specs[row].accelerators
        return Spot(row, self.shape, tuple(accelerators[c].index for c in columns))

    def _rescore(self, row: int, request: Resources) -> None:
        one = slice(row, row + 1)
        room = Room(self.room.free_NR[one], self.room.gpu_NG[one])
        typed_NG = None if self.kind.typed_NG is None else self.kind.typed_NG[one]
        self.ok_N[one] = fits_N(room, request, typed_NG) & self.allowed_N[one]
        self.score_N[row] = self._packing(row, request)
        if self.kind.bias_N is not None:
            self.score_N[one] += self.kind.bias_N[one]
