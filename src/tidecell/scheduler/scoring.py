"""Which of the rows that could hold a replica is best: lower is better. Pure.

Best fit: the share of the machine that stays free, an accelerator weighing four times a whole machine's
cpu. It keeps what is scarce in large pieces. The arithmetic is written out in one order, so that other
implementations of it (compiled, or one row at a time) give bit for bit the same numbers.
"""

from __future__ import annotations

import numpy as np

from tidecell.scheduler.feasibility import Floats, Room
from tidecell.scheduler.fleet import CPU, MEMORY, Ints
from tidecell.structs.resources import GPU, Resources

GPU_WEIGHT = 4.0


def left_over_N(room: Room, capacity_NR: Ints, request: Resources) -> Floats:
    """Return the share of each row that stays free once a replica is on it; rows must fit it."""
    left_cpu_N = np.maximum(room.free_NR[:, CPU] - request.cpu_millis, 0)
    left_memory_N = np.maximum(room.free_NR[:, MEMORY] - request.memory_bytes, 0)
    share_N = left_cpu_N / np.maximum(capacity_NR[:, CPU], 1)
    share_N = share_N + left_memory_N / np.maximum(capacity_NR[:, MEMORY], 1)
    if room.gpu_NG.shape[1]:
        left_gpu_N = np.maximum(room.gpu_NG, 0).sum(axis=1) - request.gpu_millis
        share_N = share_N + GPU_WEIGHT * (left_gpu_N / GPU)
    return share_N


def best_row(ok_N: np.ndarray, score_N: Floats, rank_N: Ints) -> int:
    """Return the row with the lowest score, ties by rank; -1 if none is allowed."""
    rows = np.flatnonzero(ok_N)
    if not len(rows):
        return -1
    scores = score_N[rows]
    ties = rows[scores == scores.min()]
    return int(ties[0] if len(ties) == 1 else ties[rank_N[ties].argmin()])
