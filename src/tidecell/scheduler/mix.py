"""What is likely to come: the usual shapes of a workload, and what gaps on accelerators are worth to it.
Pure.

The packing score looks at the shapes that a cell usually gets. They are counted from what was submitted,
so nothing here is tuned to a workload.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.packing import MEMORY, THOUSANDTHS, WHOLE, Floats, Ints

COVERAGE = 0.95  # FGD's rule: the most frequent shapes that make up 95 % of the tasks
MAX_ROUNDS = 1000


@dataclass(frozen=True)
class Mix:
    """The usual shapes.

    Attributes:
        shapes_SQ: int64 rows of (cpu_millis, memory, accelerator thousandths, mask of types).
        weights_S: How usual each is; they add up to 1.
        gaps: float64, 1001 long: what a gap of so many thousandths is worth.
    """

    shapes_SQ: Ints
    weights_S: Floats
    gaps: Floats

    @classmethod
    def unknown(cls) -> Mix:
        """Return the mix of a cell of which nothing is known: every gap is worth its size."""
        return cls(np.zeros((0, 4), np.int64), np.zeros(0), np.arange(WHOLE + 1.0))


def usual_shapes(asks_NQ: Ints, coverage: float = COVERAGE) -> tuple[Ints, Floats]:
    """Return the most frequent of these asks that cover a share of them, and how frequent each is.

    Equally frequent shapes come larger first, so the order of the asks does not matter.
    """
    if not len(asks_NQ):
        return np.zeros((0, 4), np.int64), np.zeros(0)
    shapes, counts = np.unique(asks_NQ, axis=0, return_counts=True)
    order = np.lexsort((-np.arange(len(counts)), -counts))
    shapes, counts = shapes[order], counts[order]
    enough = int(np.searchsorted(counts.cumsum(), coverage * counts.sum())) + 1
    kept = counts[:enough]
    return np.ascontiguousarray(shapes[:enough]), kept / kept.sum()


def mix_of(asks_NQ: Ints, coverage: float = COVERAGE) -> Mix:
    """Return the mix for our own policy: usual shapes that ask for accelerators, and their gaps.

    Args:
        asks_NQ: One row per task: cpu_millis, memory, accelerator thousandths, mask of types.
        coverage: Share of the tasks that the usual shapes make up.
    """
    shapes, weights = usual_shapes(asks_NQ, coverage)
    asking = shapes[:, THOUSANDTHS] > 0
    if not asking.any():
        return Mix.unknown()
    shapes, weights = np.ascontiguousarray(shapes[asking]), weights[asking] / weights[asking].sum()
    return Mix(shapes, weights, gap_values(shapes[:, THOUSANDTHS], weights))


def fgd_mix_of(asks_NQ: Ints, coverage: float = COVERAGE) -> Mix:
    """Return the mix as FGD counts it: memory is no part of a shape, tasks without accelerators are."""
    without_memory = asks_NQ.copy()
    without_memory[:, MEMORY] = 0
    shapes, weights = usual_shapes(without_memory, coverage)
    return Mix(shapes, weights, np.arange(WHOLE + 1.0))


def gap_values(thousandths_S: Ints, weights_S: Floats) -> Floats:
    """Return what a gap of 0 to 1000 thousandths is worth: the best fractions that fit, at their prices.

    The prices are the dual solution of cutting stock: cut accelerators into these fractions, as often as they
    are usual, from as few accelerators as possible. A fraction that always finds an idle gap costs nothing;
    one that nothing goes beside costs a whole accelerator. Solved by column generation (Gilmore and Gomory,
    "A linear programming approach to the cutting-stock problem", Operations Research 9, 1961).
    """
    shared = (thousandths_S > 0) & (thousandths_S < WHOLE)
    if not shared.any():
        return np.arange(WHOLE + 1.0)
    sizes = np.unique(thousandths_S[shared])
    demand = np.array([weights_S[shared][thousandths_S[shared] == s].sum() for s in sizes])
    unit = math.gcd(WHOLE, *(int(s) for s in sizes))
    patterns = np.diag((WHOLE // sizes).astype(float))
    best = np.zeros(WHOLE // unit + 1)
    for _ in range(MAX_ROUNDS):
        inverse = np.linalg.inv(patterns)
        prices = inverse.sum(axis=0)
        best, pattern = _best_pattern(sizes // unit, prices, WHOLE // unit)
        if best[-1] <= 1.0 + 1e-9:
            break
        change = inverse @ pattern
        grows = change > 1e-12
        limit = np.full(len(sizes), np.inf)
        limit[grows] = np.maximum(inverse @ demand, 0.0)[grows] / change[grows]
        patterns[:, int(limit.argmin())] = pattern
    return np.repeat(best, unit)[: WHOLE + 1] * float(WHOLE)


def _best_pattern(sizes: Ints, prices: Floats, room: int) -> tuple[Floats, Floats]:
    """Return the value of the best filling of each room up to this one, and the best filling of it."""
    best = np.zeros(room + 1)
    choice = np.full(room + 1, -1)
    for space in range(1, room + 1):
        fitting = sizes <= space
        offers = np.where(fitting, prices + best[np.where(fitting, space - sizes, 0)], -np.inf)
        pick = int(offers.argmax())
        best[space] = best[space - 1]
        if offers[pick] > best[space] + 1e-12:
            best[space], choice[space] = offers[pick], pick
    pattern = np.zeros(len(sizes))
    space = room
    while space > 0:
        pick = int(choice[space])
        if pick < 0:
            space -= 1
        else:
            pattern[pick] += 1
            space -= int(sizes[pick])
    return best, pattern
