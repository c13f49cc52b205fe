"""Which machine a task is best put on: the packing score. Pure; runs interpreted or compiled.

Kernels over arrays, lower is better. The same source is interpreted on a small cell and compiled on a
large one (``tidecell.scheduler.compiled``), so it is written in the Python that Numba takes.

What a row offers: ``free_R`` int64 (cpu_millis, memory), ``gpu_G`` int64 free thousandths of each accelerator
(0 where there is none), ``type_id`` of its accelerators (0 to 61), ``full_R`` int64 (cpu_millis, memory,
accelerator thousandths) when empty. Memory is in any unit, the same everywhere. What is asked: ``ask_Q``
int64 (cpu_millis, memory, accelerator thousandths, mask of allowed types); thousandths are a fraction of one
accelerator below 1000, else a multiple of 1000, which are whole ones. What is likely to come is a ``Mix``
(``tidecell.scheduler.mix``): ``shapes_SQ``, ``weights_S`` and ``gaps`` (what a gap on an accelerator is
worth).

- ``row_value(policy, free_R, gpu_G, type_id, shapes_SQ, weights_S)``: worth of a row's free room; a caller
  keeps one per row and asks again when the row changes.
- ``score_row(policy, row, value, free_R, gpu_G, type_id, full_R, ask_Q, shapes_SQ, weights_S, gaps,
  work_G)``:
  (score, accelerator that a fraction goes to); infinite where it does not fit.
- ``score_rows(policy, rows, values_N, free_NR, gpu_NG, types_N, full_NR, ask_Q, ..., scores_N, places_N)``:
  the same for many rows.
- ``choose_accelerators(gpu_G, thousandths, gaps)``: which accelerators of a row an ask takes.
- ``take(gpu_G, thousandths, place)``: take them.

Rows with equal scores are equally good: the caller takes the first in an order that does not change, so
that ties fill machines one after another and whole machines stay empty.

``tidecell``, the default, adds up what a placement destroys, in thousandths of an accelerator:

1. *Fragmentation*, after FGD (Weng et al., USENIX ATC 2023): how much of the row's idle accelerator time can
   the usual shapes use, before and after. FGD calls a machine usable for a shape if one task of it fits; here
   it counts in proportion to how many fit beside each other, so cpu and memory that accelerators will need
   have a price before the last of them is taken.
2. *Gaps*: what is left of a shared accelerator is worth the best set of fractions that fits it, at their
   prices in the linear program of cutting stock over the usual shapes (Gilmore and Gomory, 1961).
   190 thousandths are worth nothing if hardly anything that small ever comes.

Steps of 20 thousandths are ties. A task without accelerators sees 1, then the hybrid of best and worst fit;
so does every task of a cell of whose usual shapes nothing is known. The hybrid follows Borg's aim (Verma et
al., EuroSys 2015, section 3.2), to strand as little as possible: what stays free should be little, and
balanced.

``fgd`` is the published policy with its whole-number score; ``best-fit``, ``dot-product`` and ``random``
are the baselines of the same paper.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

TIDECELL, FGD, BEST_FIT, WORST_FIT, FIRST_FIT, DOT_PRODUCT, RANDOM = range(7)
POLICIES = {
    "tidecell": TIDECELL,
    "fgd": FGD,
    "best-fit": BEST_FIT,
    "worst-fit": WORST_FIT,
    "first-fit": FIRST_FIT,
    "dot-product": DOT_PRODUCT,
    "random": RANDOM,
}

CPU, MEMORY, THOUSANDTHS, MASK = 0, 1, 2, 3  # columns of Q
WHOLE = 1000
ANY_TYPE = (1 << 62) - 1
# Measured on nine variants of the openb trace and eight made from them (docs/lab-log.md): a plateau, not a
# peak.
GAP_WEIGHT = 10.0
STEP = 20.0
# FGD's best fit and dot product compare with the largest machine of its cluster.
LARGEST_CPU, LARGEST_GPU = 128_000.0, 8_000.0


def fits(free_R: Ints, gpu_G: Ints, type_id: int, ask_Q: Ints) -> bool:
    """Return whether a row has room for what is asked."""
    if ask_Q[CPU] > free_R[CPU] or ask_Q[MEMORY] > free_R[MEMORY]:
        return False
    asked = ask_Q[THOUSANDTHS]
    if asked == 0:
        return True
    if type_id < 0 or not (ask_Q[MASK] >> type_id) & 1:
        return False
    if asked < WHOLE:
        return bool(gpu_G.max() >= asked) if gpu_G.shape[0] else False
    found = 0
    for g in range(gpu_G.shape[0]):
        if gpu_G[g] >= WHOLE:
            found += WHOLE
    return bool(found >= asked)


def take(gpu_G: Ints, thousandths: int, place: int) -> None:
    """Take a fraction of the accelerator at ``place``, or the first whole ones."""
    if 0 < thousandths < WHOLE:
        gpu_G[place] -= thousandths
        return
    for g in range(gpu_G.shape[0]):
        if thousandths >= WHOLE and gpu_G[g] >= WHOLE:
            gpu_G[g] -= WHOLE
            thousandths -= WHOLE


def best_gap(gpu_G: Ints, thousandths: int, gaps: Floats) -> int:
    """Return the accelerator on which a fraction destroys least, the fullest of equals; -1 if none has
    room."""
    best, place = math.inf, -1
    for g in range(gpu_G.shape[0]):
        left = gpu_G[g] - thousandths
        if left < 0:
            continue
        loss = gaps[gpu_G[g]] - gaps[left]
        if place < 0 or loss < best - 1e-9 or (loss < best + 1e-9 and gpu_G[g] < gpu_G[place]):
            best, place = loss, g
    return place


def choose_accelerators(gpu_G: Ints, thousandths: int, gaps: Floats) -> list[int]:
    """Return which accelerators of a row an ask takes; empty if they do not fit or none is asked."""
    if thousandths < WHOLE:
        place = best_gap(gpu_G, thousandths, gaps) if thousandths else -1
        return [place] if place >= 0 else []
    whole = [g for g in range(len(gpu_G)) if gpu_G[g] >= WHOLE]
    needed = thousandths // WHOLE
    return whole[:needed] if len(whole) >= needed else []


def usable(free_R: Ints, gpu_G: Ints, type_id: int, shapes_SQ: Ints, weights_S: Floats) -> float:
    """Return how many idle thousandths the usual shapes could use, as many of each as fit."""
    idle = gpu_G.sum()
    worth = 0.0
    if idle == 0:
        return worth
    cpu, memory = float(free_R[CPU]), float(free_R[MEMORY])
    for s in range(shapes_SQ.shape[0]):
        asked = shapes_SQ[s, THOUSANDTHS]
        if asked == 0 or not (shapes_SQ[s, MASK] >> type_id) & 1:
            continue
        if shapes_SQ[s, CPU] > cpu or shapes_SQ[s, MEMORY] > memory:
            continue
        each = min(asked, WHOLE)
        open_to, slots = 0, 0
        for g in range(gpu_G.shape[0]):
            if gpu_G[g] >= each:
                open_to += gpu_G[g]
                slots += gpu_G[g] // each
        copies = slots * each // asked
        if copies == 0:
            continue
        most = float(copies)
        if shapes_SQ[s, CPU] > 0:
            most = min(most, cpu / shapes_SQ[s, CPU])
        if shapes_SQ[s, MEMORY] > 0:
            most = min(most, memory / shapes_SQ[s, MEMORY])
        worth += weights_S[s] * open_to * most / copies
    return worth


def fragment(free_R: Ints, gpu_G: Ints, type_id: int, shapes_SQ: Ints, weights_S: Floats) -> float:
    """Return FGD's fragment: idle thousandths that the usual shapes cannot use, weighted by how usual.

    Its definition knows no memory; shapes without memory give the published one.
    """
    idle = gpu_G.sum()
    lost = 0.0
    if idle == 0:
        return lost
    for s in range(shapes_SQ.shape[0]):
        asked = shapes_SQ[s, THOUSANDTHS]
        each, open_to, found = min(asked, WHOLE), 0, 0
        if asked > 0 and (shapes_SQ[s, MASK] >> type_id) & 1 and shapes_SQ[s, CPU] <= free_R[CPU]:
            for g in range(gpu_G.shape[0]):
                if gpu_G[g] >= each:
                    open_to += gpu_G[g]
                    found += each
        lost += weights_S[s] * (idle - open_to if asked > 0 and found >= asked else idle)
    return lost


def row_value(
    policy: int, free_R: Ints, gpu_G: Ints, type_id: int, shapes_SQ: Ints, weights_S: Floats
) -> float:
    """Return what the free room of a row is worth to a policy; 0 where it does not care."""
    if policy == TIDECELL:
        return usable(free_R, gpu_G, type_id, shapes_SQ, weights_S)
    if policy == FGD:
        return -fragment(free_R, gpu_G, type_id, shapes_SQ, weights_S)
    return 0.0


def hybrid(free_R: Ints, gpu_G: Ints, full_R: Ints, ask_Q: Ints) -> float:
    """Return between 0 and 1 how much, and how unevenly, a row stays free with the ask on it.

    Half of it is the mean free share of its resources (best fit), half the distance between the freest and
    the least free (stranding). Accelerators that a task does not ask for count as kept from others.
    """
    shares = 0.0
    low, high, kinds = 1.0, 0.0, 0
    for r in range(3):
        if full_R[r] <= 0:
            continue
        free = gpu_G.sum() if r == THOUSANDTHS else free_R[r]
        share = (free - ask_Q[r]) / full_R[r]
        shares += share
        kinds += 1
        low, high = min(low, share), max(high, share)
    if kinds == 0:
        return 0.0
    score = (shares / kinds + high - low) / 2.0
    if ask_Q[THOUSANDTHS] == 0 and full_R[THOUSANDTHS] > 0:
        return 0.5 + score / 2.0
    return score / 2.0


def scramble(row: int, salt: int) -> float:
    """Return a number between 0 and 1 that looks random and depends on row and salt alone."""
    x = (row * 2654435761 + salt * 40503 + 12345) & 0xFFFFFFFF
    for _ in range(3):
        x = ((x ^ (x >> 15)) * 739982445) & 0xFFFFFFFF
    return (x ^ (x >> 14)) / 4294967296.0


def _baseline(policy: int, row: int, free_R: Ints, gpu_G: Ints, ask_Q: Ints, salt: int) -> float:
    """Return the score of a policy that looks at free room only."""
    if policy == FIRST_FIT:
        return float(row)
    if policy == RANDOM:
        return scramble(row, salt)
    cpu, idle = free_R[CPU] / LARGEST_CPU, gpu_G.sum() / LARGEST_GPU
    asked_cpu, asked = ask_Q[CPU] / LARGEST_CPU, ask_Q[THOUSANDTHS] / LARGEST_GPU
    if policy == DOT_PRODUCT:
        return float(cpu * asked_cpu + idle * asked)
    left = float(cpu - asked_cpu + idle - asked)
    return -left if policy == WORST_FIT else left


def score_row(
    policy: int,
    row: int,
    value: float,
    free_R: Ints,
    gpu_G: Ints,
    type_id: int,
    full_R: Ints,
    ask_Q: Ints,
    shapes_SQ: Ints,
    weights_S: Floats,
    gaps: Floats,
    work_G: Ints,
    salt: int = 0,
) -> tuple[float, int]:
    """Return how bad it is to put an ask on a row, and which accelerator a fraction goes to (else -1).

    Args:
        policy: One of the codes in ``POLICIES``.
        row: Number of the row; orders ``first-fit``, and ``random`` with the salt.
        value: ``row_value`` of the row as it is.
        work_G: Scratch, as long as ``gpu_G``; its content does not matter.
        salt: Changes with every ask under ``random``.
    """
    if not fits(free_R, gpu_G, type_id, ask_Q):
        return math.inf, -1
    asked = ask_Q[THOUSANDTHS]
    place = best_gap(gpu_G, asked, gaps) if 0 < asked < WHOLE else -1
    if policy == FGD:
        return _fgd_score(value, free_R, gpu_G, type_id, ask_Q, shapes_SQ, weights_S, work_G)
    if policy != TIDECELL:
        return _baseline(policy, row, free_R, gpu_G, ask_Q, salt), place
    if shapes_SQ.shape[0] == 0:
        return hybrid(free_R, gpu_G, full_R, ask_Q), place
    if asked == 0 and value == 0.0:
        return hybrid(free_R, gpu_G, full_R, ask_Q), place
    lost = value - asked
    if place >= 0:
        gap = gpu_G[place]
        lost += GAP_WEIGHT * (gaps[gap] - gaps[gap - asked] - asked)
    work_G[:] = gpu_G
    take(work_G, asked, place)
    left_R = free_R - ask_Q[:2]
    lost -= usable(left_R, work_G, type_id, shapes_SQ, weights_S)
    steps = math.floor(lost / STEP + 1e-9)
    if asked == 0:
        return steps + hybrid(free_R, gpu_G, full_R, ask_Q), place
    return float(steps), place


def _fgd_score(
    value: float,
    free_R: Ints,
    gpu_G: Ints,
    type_id: int,
    ask_Q: Ints,
    shapes_SQ: Ints,
    weights_S: Floats,
    work_G: Ints,
) -> tuple[float, int]:
    """Return FGD's score: 100 times the sigmoid of what the fragment shrinks by, cut to a whole number."""
    asked = ask_Q[THOUSANDTHS]
    left_R = free_R - ask_Q[:2]
    best, place = math.inf, -1
    fraction = 0 < asked < WHOLE
    for g in range(gpu_G.shape[0] if fraction else 1):
        if fraction and gpu_G[g] < asked:
            continue
        work_G[:] = gpu_G
        take(work_G, asked, g)
        growth = fragment(left_R, work_G, type_id, shapes_SQ, weights_S) + value
        score = -float(int(100.0 / (1.0 + math.exp(growth / 1000.0))))
        if score < best:
            best, place = score, g if fraction else -1
    return best, place


def score_rows(
    policy: int,
    rows: Ints,
    values_N: Floats,
    free_NR: Ints,
    gpu_NG: Ints,
    types_N: Ints,
    full_NR: Ints,
    ask_Q: Ints,
    shapes_SQ: Ints,
    weights_S: Floats,
    gaps: Floats,
    scores_N: Floats,
    places_N: Ints,
    salt: int = 0,
) -> None:
    """Score the rows numbered in ``rows``; write into their places of ``scores_N`` and ``places_N``."""
    work_G = np.zeros(gpu_NG.shape[1], np.int64)
    for i in range(rows.shape[0]):
        n = rows[i]
        scores_N[n], places_N[n] = score_row(
            policy,
            n,
            values_N[n],
            free_NR[n],
            gpu_NG[n],
            types_N[n],
            full_NR[n],
            ask_Q,
            shapes_SQ,
            weights_S,
            gaps,
            work_G,
            salt,
        )
