"""What is likely to come: the requests that a cell usually gets, as tables for the packing score. Pure.

They are counted from what runs and what waits, so nothing here is tuned to a workload, and the same snapshot
gives the same tables. Requests without accelerators are no part of it. Accelerator types are not looked at:
on the openb trace, shapes split by the types that they can use packed no better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from tidecell.scheduler.scoring import (
    CPU_FOR,
    GAPS,
    MEMORY_FOR,
    MOST_DEVICES,
    NUM_TABLES,
    PARTS,
    QUANTA,
    SCALES,
    WHOLE,
    WHOLES,
    Floats,
    Ints,
)

MOST_SHAPES = 256  # the most frequent count; a cell whose tasks all differ does not slow its passes down
MOST_SIZES = 32  # of fractions
MAX_ROUNDS = 1000

Shape = tuple[int, int, int]  # cpu_millis, memory, accelerator thousandths


def mix_of(counts: Mapping[Shape, int]) -> Floats:
    """Return the table of how often which requests come; the memory's unit is the caller's everywhere."""
    usual = [(-n, shape) for shape, n in counts.items() if n > 0 and shape[2] > 0]
    return _table(tuple((shape, -n) for n, shape in sorted(usual)[:MOST_SHAPES]))


@lru_cache(maxsize=64)
def _table(usual: tuple[tuple[Shape, int], ...]) -> Floats:
    """Return the table; to be read only. A cell in which nothing changed asks for the same one again."""
    mix_XP = np.zeros((NUM_TABLES, WHOLE + 1))
    mix_XP[GAPS], mix_XP[SCALES, :3] = np.arange(WHOLE + 1.0), 1.0
    mix_XP[CPU_FOR : MEMORY_FOR + 1, : QUANTA + 2] = 1.0
    if usual:
        _fill(mix_XP, np.array([s for s, _ in usual], np.int64), np.array([n for _, n in usual], np.int64))
    mix_XP.flags.writeable = False
    return mix_XP


def _fill(mix_XP: Floats, shapes_SR: Ints, counts_S: Ints) -> None:
    asked_S = shapes_SR[:, 2]
    shared_S = asked_S < WHOLE
    devices_S = np.maximum(asked_S // WHOLE, 1)
    for number in range(1, MOST_DEVICES + 1):
        mix_XP[WHOLES, number] = counts_S[devices_S <= number].sum()
    sizes, demand = _fractions(asked_S[shared_S], counts_S[shared_S])
    fitting_P = np.zeros(WHOLE + 1)
    np.add.at(fitting_P, sizes, demand)
    mix_XP[PARTS, :WHOLE] = (np.arange(WHOLE + 1) * fitting_P.cumsum())[:WHOLE]
    if len(sizes):
        mix_XP[GAPS] = _gaps(*_roughly(sizes, demand))
    # Cpu and memory beside one device: of a fraction, as often as it goes there; of many, an equal part.
    # Large requests count by the square of their devices (measured: docs/lab-log.md).
    copies_S = np.where(shared_S, WHOLE // np.minimum(asked_S, WHOLE), 1)
    weights_S = counts_S * devices_S.astype(float) ** 2
    mix_XP[SCALES, 0] = counts_S.sum()
    for table in (CPU_FOR, MEMORY_FOR):
        need_S = shapes_SR[:, table - CPU_FOR] * copies_S / devices_S
        each = max(float(need_S.max()), 1.0) / QUANTA
        amounts_Q = np.arange(QUANTA + 1)[:, None] * each
        met_QS = np.minimum(1.0, amounts_Q / np.maximum(need_S, 1e-9))
        mix_XP[SCALES, table - CPU_FOR + 1] = each
        mix_XP[table, : QUANTA + 1] = (met_QS * weights_S).sum(axis=1) / weights_S.sum()
        mix_XP[table, QUANTA + 1] = mix_XP[table, QUANTA]


def _fractions(asked_S: Ints, counts_S: Ints) -> tuple[Ints, Floats]:
    """Return the sizes of fractions that come, and how often each does."""
    sizes, which_S = np.unique(asked_S, return_inverse=True)
    demand = np.zeros(len(sizes))
    np.add.at(demand, which_S, counts_S)
    return sizes, demand


def usual_shapes(asks_NQ: Ints, coverage: float) -> tuple[Ints, Floats]:
    """Return the most frequent of these asks that cover a share of them, and how frequent each is.

    Equally frequent shapes come larger first, so the order of the asks does not matter.
    """
    if not len(asks_NQ):
        return np.zeros((0, asks_NQ.shape[1]), np.int64), np.zeros(0)
    shapes, counts = np.unique(asks_NQ, axis=0, return_counts=True)
    order = np.lexsort((-np.arange(len(counts)), -counts))
    shapes, counts = shapes[order], counts[order]
    enough = int(np.searchsorted(counts.cumsum(), coverage * counts.sum())) + 1
    kept = counts[:enough]
    return np.ascontiguousarray(shapes[:enough]), kept / kept.sum()


def _roughly(sizes: Ints, demand: Floats) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return the sizes that come most and how often, to a power of two; of the rest, one in 1024 or less.

    Prices hardly move with the demand. So they are seldom worked out anew while tasks come and go.
    """
    share = 2.0 ** np.round(np.log2(demand / demand.sum()))
    most = np.sort(np.argsort(-demand, kind="stable")[:MOST_SIZES])
    kept = most[share[most] > 2.0**-10]
    return tuple(sizes[kept].tolist()), tuple(share[kept].tolist())


@lru_cache(maxsize=64)
def _gaps(sizes: tuple[int, ...], demand: tuple[float, ...]) -> Floats:
    return gap_values(np.array(sizes, np.int64), np.array(demand))


def gap_values(sizes: Ints, demand: Floats) -> Floats:
    """Return what a gap of 0 to 1000 thousandths is worth: the best fractions that fit, at their prices.

    The prices are the dual solution of cutting stock: cut accelerators into these fractions, as often as they
    come, from as few accelerators as possible. A fraction that always finds an idle gap costs nothing; one
    that nothing goes beside costs a whole accelerator. Solved by column generation (Gilmore and Gomory, "A
    linear programming approach to the cutting-stock problem", Operations Research 9, 1961).

    Args:
        sizes: Different ones, in thousandths.
        demand: How often each comes.
    """
    if not len(sizes):
        return np.arange(WHOLE + 1.0)
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
    best, choice = [0.0] * (room + 1), [-1] * (room + 1)
    offers = [(int(s), float(p), at) for at, (s, p) in enumerate(zip(sizes, prices, strict=True))]
    for space in range(1, room + 1):
        most, pick = -math.inf, -1
        for size, price, at in offers:
            if size <= space and price + best[space - size] > most:
                most, pick = price + best[space - size], at
        best[space] = best[space - 1]
        if most > best[space] + 1e-12:
            best[space], choice[space] = most, pick
    pattern, space = np.zeros(len(sizes)), room
    while space > 0:
        pick = choice[space]
        if pick < 0:
            space -= 1
        else:
            pattern[pick] += 1
            space -= int(sizes[pick])
    return np.array(best), pattern
