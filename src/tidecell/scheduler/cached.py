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
BLOCK = 64  # scores of which the least is kept, so that the best row is found without reading all


def bring_up_to_date(
    rows_N: Ints,
    before_N: Floats,
    seen: int,
    log: Ints,
    num_logged: int,
    last_N: Ints,
    rank_N: Ints,
    allowed_N: Bools,
    typed_NG: Bools,
    free_NR: Ints,
    gpu_NG: Ints,
    full_NR: Ints,
    ask_R: Ints,
    mix_XP: Floats,
    facts_NF: Floats,
    known_N: Bools,
    scores_K: Floats,
    least_B: Floats,
) -> int:
    """Score again what changed since a kind of work was last asked for; return its best place, or -1.

    Args:
        rows_N: Scratch paper.
        before_N: Scratch paper.
        seen: Up to which entry of the log the scores are right; -1: there are none yet.
        log: Rows that changed, in order.
        num_logged: How many entries of it count.
        last_N: Each row's last entry: of several only that one is looked at.
        rank_N: As in ``score_rows``, like all up to ``scores_K``.
        allowed_N: Where this kind of work may go at all.
        typed_NG: Devices of the type asked for.
        free_NR: Cpu and memory.
        gpu_NG: Thousandths of each device.
        full_NR: Of empty rows: cpu, memory and thousandths.
        ask_R: Cpu, memory and thousandths of accelerators.
        mix_XP: What the cell usually gets.
        facts_NF: What is known of rows; written to.
        known_N: Of which; written to.
        scores_K: Written to.
        least_B: The least score of each block of ``BLOCK`` places; written to.
    """
    size, count = len(rank_N), 0
    anew = seen < 0 or num_logged - seen >= size
    if anew:
        for row in range(size):
            rows_N[row] = row
        count = size
    else:
        for at in range(seen, num_logged):
            row = log[at]
            if last_N[row] == at:
                rows_N[count] = row
                before_N[count] = scores_K[rank_N[row]]
                count += 1
    score_rows(
        rows_N[:count],
        rank_N,
        allowed_N,
        typed_NG,
        free_NR,
        gpu_NG,
        full_NR,
        ask_R,
        mix_XP,
        facts_NF,
        known_N,
        scores_K,
    )
    if anew:
        for block in range(len(least_B)):
            least_B[block] = scores_K[block * BLOCK : (block + 1) * BLOCK].min()
    else:
        for at in range(count):
            place = rank_N[rows_N[at]]
            block = place // BLOCK
            if scores_K[place] < least_B[block]:
                least_B[block] = scores_K[place]
            elif before_N[at] == least_B[block] and scores_K[place] > before_N[at]:
                least_B[block] = scores_K[block * BLOCK : (block + 1) * BLOCK].min()
    best = 0
    for block in range(1, len(least_B)):
        if least_B[block] < least_B[best]:
            best = block
    if not least_B[best] < np.inf:
        return -1
    place = best * BLOCK
    while scores_K[place] != least_B[best]:
        place += 1
    return place


def choose_columns(gpu_G: Ints, typed_G: Bools, gpu: int, chosen_G: Ints) -> int:
    """Write the columns of the devices that a request gets; return how many. ``choose_devices``, compiled."""
    count, best = 0, -1
    for column in range(len(gpu_G)):
        if not typed_G[column] or gpu_G[column] < min(gpu, 1000):
            continue
        if gpu >= 1000 and count < gpu // 1000:
            chosen_G[count] = column
            count += 1
        elif gpu < 1000 and (best < 0 or gpu_G[column] < gpu_G[best]):
            best = column
    if best >= 0:
        chosen_G[0] = best
        count = 1
    return count


def place_run(
    first: int,
    last: int,
    kind_U: Ints,
    num_shapes_U: Ints,
    where_K: Ints,
    type_K: Ints,
    ask_KR: Ints,
    allowed_WN: Bools,
    typed_TNG: Bools,
    seen_K: Ints,
    scores_KN: Floats,
    least_KB: Floats,
    log: Ints,
    num_logged: int,
    last_N: Ints,
    rows_N: Ints,
    before_N: Floats,
    rank_N: Ints,
    row_P: Ints,
    full_NR: Ints,
    mix_XP: Floats,
    facts_NF: Floats,
    known_N: Bools,
    open_NR: Ints,
    open_NG: Ints,
    free_NR: Ints,
    free_NG: Ints,
    used_NR: Ints,
    used_NG: Ints,
    row_U: Ints,
    shape_U: Ints,
    count_U: Ints,
    columns_UG: Ints,
) -> int:
    """Place units of one task each, in order, up to the first that fits nowhere; return its number.

    Letters: U units, K kinds of work (those of a unit's further shapes follow its first), W sets of rows
    where a kind may go, T types of accelerators, P places by rank, B blocks of places. All of ``seen_K`` to
    ``before_N`` is the cache; ``open``, ``free`` and ``used`` are the board's; ``row_U`` and what follows it
    is the answer.
    """
    for unit in range(first, last):
        place, kind = -1, 0
        for shape in range(num_shapes_U[unit]):
            kind = kind_U[unit] + shape
            place = bring_up_to_date(
                rows_N,
                before_N,
                seen_K[kind],
                log,
                num_logged,
                last_N,
                rank_N,
                allowed_WN[where_K[kind]],
                typed_TNG[type_K[kind]],
                open_NR,
                open_NG,
                full_NR,
                ask_KR[kind],
                mix_XP,
                facts_NF,
                known_N,
                scores_KN[kind],
                least_KB[kind],
            )
            seen_K[kind] = num_logged
            if place >= 0:
                shape_U[unit] = shape
                break
        if place < 0:
            return unit
        row, cpu, memory, gpu = row_P[place], ask_KR[kind, 0], ask_KR[kind, 1], ask_KR[kind, 2]
        row_U[unit], count_U[unit] = row, 0
        if gpu > 0:
            typed_G = typed_TNG[type_K[kind], row]
            count_U[unit] = choose_columns(open_NG[row], typed_G, gpu, columns_UG[unit])
        free_NR[row, 0] -= cpu
        free_NR[row, 1] -= memory
        open_NR[row, 0] -= cpu
        open_NR[row, 1] -= memory
        used_NR[row, 0] += cpu
        used_NR[row, 1] += memory
        for at in range(count_U[unit]):
            column = columns_UG[unit, at]
            free_NG[row, column] -= min(gpu, 1000)
            open_NG[row, column] -= min(gpu, 1000)
            used_NG[row, column] += min(gpu, 1000)
        known_N[row] = False
        log[num_logged] = row
        last_N[row] = num_logged
        num_logged += 1
    return last


@dataclass
class _Kind:
    """The scores of one kind of work, and up to which change they are right."""

    placement: PlacementClass
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
            row = self.best_row(placement, request)
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

    def best_row(self, placement: PlacementClass, request: Resources) -> int:
        """Return the best row for such a request now, or -1."""
        kind = self._kind(placement, request)
        best = int(kind.scores_K.argmin())
        return int(self._row_K[best]) if kind.scores_K[best] < np.inf else -1

    def _kind(self, placement: PlacementClass, request: Resources) -> _Kind:
        key = (id(placement), request)
        known, log = self._kinds.get(key), self._board.changed_rows
        self._note_changes()
        if known is None:
            typed_NG = self._no_types if placement.typed_NG is None else placement.typed_NG
            ask_R = np.array([request.cpu_millis, request.memory_bytes, request.gpu_millis], np.int64)
            size = len(self._row_K)
            known = self._kinds[key] = _Kind(placement, typed_NG, ask_R, np.empty(size), len(log))
            self._rescore(placement, known, np.arange(size))
        elif known.seen < len(log):
            fresh = log[known.seen :]
            rows = fresh if len(fresh) < 4 else list(dict.fromkeys(fresh))
            known.seen = len(log)
            self._rescore(placement, known, np.array(rows, np.int64))
        return known

    def _note_changes(self) -> None:
        """Forget what is known of rows that changed."""
        log = self._board.changed_rows
        for row in log[self._seen :]:
            self._known_N[row] = False
        self._seen = len(log)

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


__all__ = ["BLOCK", "CACHE_FROM", "COMPILE_FROM", "ScoreCache", "place_run"]
