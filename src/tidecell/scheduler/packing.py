"""Packing policies for the simulator's protocols: our score beside published ones. Pure.

``tidecell`` is the score of the live cell (``tidecell.scheduler.scoring``). ``fgd`` is the published policy
(Weng et al., USENIX ATC 2023) with its whole-number score; ``best-fit``, ``dot-product``, ``random`` and the
others are the baselines of the same paper. Lower is better; of equals the caller takes the first row.

Kernels over arrays, written in the Python that Numba takes (``tidecell.scheduler.compiled``).

What a row offers: ``free_R`` int64 (cpu_millis, memory), ``gpu_G`` int64 free thousandths of each accelerator
(0 where there is none), ``type_id`` of its accelerators (0 to 61), ``full_R`` int64 (cpu_millis, memory,
accelerator thousandths) when empty. Memory is in any unit, the same everywhere. What is asked: ``ask_Q``
int64 (cpu_millis, memory, accelerator thousandths, mask of allowed types); thousandths are a fraction of one
accelerator below 1000, else a multiple of 1000, which are whole ones. What is likely to come: ``mix_XP``
for our score, ``shapes_SQ`` and ``weights_S`` for FGD's.
"""

from __future__ import annotations

import math

from tidecell.scheduler.scoring import WHOLE, Bools, Floats, Ints, note_facts
from tidecell.scheduler.scoring import score_row as our_score

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
ANY_TYPE = (1 << 62) - 1
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


def fullest(gpu_G: Ints, thousandths: int) -> int:
    """Return the fullest accelerator that has room for a fraction; -1 if none has."""
    place = -1
    for g in range(gpu_G.shape[0]):
        if gpu_G[g] >= thousandths and (place < 0 or gpu_G[g] < gpu_G[place]):
            place = g
    return place


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


def note_row(
    policy: int,
    free_R: Ints,
    gpu_G: Ints,
    type_id: int,
    mix_XP: Floats,
    shapes_SQ: Ints,
    weights_S: Floats,
    facts_F: Floats,
) -> None:
    """Write what a policy wants to know of a row whatever is asked; a caller does so when the row changes."""
    if policy == TIDECELL:
        note_facts(free_R[CPU], free_R[MEMORY], gpu_G, mix_XP, facts_F)
    if policy == FGD:
        facts_F[0] = -fragment(free_R, gpu_G, type_id, shapes_SQ, weights_S)


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
    facts_F: Floats,
    free_R: Ints,
    gpu_G: Ints,
    type_id: int,
    full_R: Ints,
    ask_Q: Ints,
    mix_XP: Floats,
    shapes_SQ: Ints,
    weights_S: Floats,
    work_G: Ints,
    all_G: Bools,
    salt: int = 0,
) -> tuple[float, int]:
    """Return how bad it is to put an ask on a row, and which accelerator a fraction goes to (else -1).

    Args:
        policy: One of the codes in ``POLICIES``.
        row: Number of the row; orders ``first-fit``, and ``random`` with the salt.
        facts_F: What ``note_row`` wrote of the row as it is.
        work_G: Scratch, as long as ``gpu_G``; its content does not matter.
        all_G: As long, all true: accelerators of a row are of one type.
        salt: Changes with every ask under ``random``.
    """
    if not fits(free_R, gpu_G, type_id, ask_Q):
        return math.inf, -1
    if policy == FGD:
        return _fgd_score(facts_F[0], free_R, gpu_G, type_id, ask_Q, shapes_SQ, weights_S, work_G)
    asked = ask_Q[THOUSANDTHS]
    place = fullest(gpu_G, asked) if 0 < asked < WHOLE else -1
    if policy == TIDECELL:
        score = our_score(free_R[CPU], free_R[MEMORY], gpu_G, all_G, full_R, ask_Q, facts_F, mix_XP)
        return score, place
    return _baseline(policy, row, free_R, gpu_G, ask_Q, salt), place


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
