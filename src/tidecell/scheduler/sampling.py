"""Relaxed randomisation: not every row is looked at, only so many that enough have room. Pure.

Borg "examines machines in a random order until it has found enough feasible machines to score" (EuroSys
2015, section 3.4). Here the order is one permutation that the seed draws, and each task goes on where the one
before it stopped. What fits anywhere is still placed; it may be placed on a worse row.
"""

from __future__ import annotations

import zlib

import numpy as np

from tidecell.scheduler.attributes import Bools
from tidecell.scheduler.board import Board
from tidecell.scheduler.cached import ScoreCache
from tidecell.scheduler.compiled import COMPILE_FROM, compiled
from tidecell.scheduler.feasibility import Floats, PlacementClass
from tidecell.scheduler.fleet import Ints
from tidecell.scheduler.scoring import score_rows
from tidecell.structs.resources import Resources


def best_of_sample(
    start: int,
    enough: int,
    order_N: Ints,
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
    scores_N: Floats,
) -> tuple[int, int]:
    """Return the best row of the first ``enough`` with room, and where to go on; -1: there is none.

    Args:
        start: Place in ``order_N`` at which to begin.
        enough: How many rows with room suffice.
        order_N: The rows in the order in which they are looked at, round and round.
        rank_N: As in ``score_rows``, like all that follow.
        allowed_N: Where this kind of work may go at all.
        typed_NG: Devices of the type asked for.
        free_NR: Cpu and memory.
        gpu_NG: Thousandths of each device.
        full_NR: Of empty rows: cpu, memory and thousandths.
        ask_R: Cpu, memory and thousandths of accelerators.
        mix_XP: What the cell usually gets.
        facts_NF: What is known of rows; written to.
        known_N: Of which; written to.
        scores_N: Scratch paper.
    """
    size, found, best = len(order_N), 0, -1
    looked = 0
    while looked < size and found < enough:
        at = (start + looked) % size
        looked += 1
        row = order_N[at]
        score_rows(
            order_N[at : at + 1],
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
            scores_N,
        )
        score = scores_N[rank_N[row]]
        if score == np.inf:
            continue
        found += 1
        if best < 0 or (score, rank_N[row]) < (scores_N[rank_N[best]], rank_N[best]):
            best = row
    return best, (start + looked) % size


class Sampler(ScoreCache):
    """Good rows by looking at some of them; keeps no scores."""

    def __init__(self, board: Board, enough: int, seed: int) -> None:
        super().__init__(board)
        size = len(board.fleet.names)
        keys = [zlib.crc32(f"{seed}:sample:{name}".encode()) for name in board.fleet.names]
        self._enough, self._start = enough, 0
        self._order_N = np.argsort(np.array(keys, np.int64), kind="stable")
        self._scores_N = np.empty(size)
        self._best_of_sample = compiled(best_of_sample, size >= COMPILE_FROM)

    def best_row(self, placement: PlacementClass, request: Resources) -> int:
        """Return the best of the next rows with room, or -1."""
        board = self._board
        self._note_changes()
        typed_NG = self._no_types if placement.typed_NG is None else placement.typed_NG
        best, self._start = self._best_of_sample(
            self._start,
            self._enough,
            self._order_N,
            board.rank_N,
            placement.allowed_N,
            typed_NG,
            board.open.free_NR,
            board.open.gpu_NG,
            board.full_NR,
            np.array([request.cpu_millis, request.memory_bytes, request.gpu_millis], np.int64),
            board.mix_XP,
            self._facts_NF,
            self._known_N,
            self._scores_N,
        )
        return int(best)


__all__ = ["Sampler", "best_of_sample"]
