"""Which of the rows that could hold a replica is best: the packing score, lower is better. Pure.

One score for the live cell, for ``plan`` and ``why``, and for the simulator. It adds up what a placement
destroys, in thousandths of an accelerator, given what the cell usually gets (``tidecell.scheduler.mix``):

1. *Stranding*. Idle accelerators of a row are worth what the usual requests could use of them: those that fit
   the devices, and of these the share for which cpu and memory suffice. Cpu and memory that accelerators will
   need so have a price before the last of them is taken. The idea is FGD's (Weng et al., USENIX ATC 2023),
   which asks each usual shape whether one task of it fits. Here requests are counted once a pass into tables:
   what a device of so much room is worth, and how many of the requests so much cpu, or memory, for each idle
   device suffices. A row then costs a few look-ups, however many shapes there are.
2. *Gaps*. What is left of a shared accelerator is worth the best set of fractions that fits it, at their
   prices in the linear program of cutting stock (Gilmore and Gomory, 1961). 190 thousandths are worth nothing
   if hardly anything that small ever comes.

Losses within ``STEP`` are ties. Among them, and wherever no usual request is known, the hybrid of best and
worst fit decides. It follows Borg's aim (Verma et al., EuroSys 2015, section 3.2), to strand as little as
possible: what stays free should be little, and balanced. Equals go to the first row in an order that does
not change, so that ties fill machines one after another and whole machines stay empty.

The kernels (``score_row`` and what it calls) run interpreted or compiled; ``score_N`` is the same arithmetic
over columns, in the same order, so that all give bit for bit the same numbers.

Letters: N rows, G devices of a row, ``free_R`` cpu_millis and memory, ``full_R`` cpu_millis, memory and
accelerator thousandths of an empty row, ``ask_R`` the same of a request, ``mix_XP`` a ``Mix``'s table.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

WHOLE = 1000  # thousandths of an accelerator
# Rows of a mix's table. WHOLES: by number of idle devices, how often a request comes that so many suffice
# for. PARTS: by room of a device in thousandths, room times how often a fraction comes that fits it. GAPS:
# what that room is worth to the usual fractions. CPU, MEMORY: by quantised amount for each idle device, the
# share of the usual requests that it suffices for. SCALES: how many were counted; cpu, memory of a quantum.
WHOLES, PARTS, GAPS, CPU_FOR, MEMORY_FOR, SCALES, NUM_TABLES = range(7)
MOST_DEVICES = 64  # of a row; further ones are worth no more each
QUANTA = 256
# Of a row: idle devices, devices with room for a usual fraction, idle thousandths, what that room is worth,
# and what all that is idle is.
NUM_FACTS = 5

# Measured on nine variants of the openb trace and ten made from them (docs/lab-log.md): plateaus, not peaks.
GAP_WEIGHT = 10.0
STEP = 10.0
SCALE = 64.0  # brings scores below 100 (see ``gang.EVENNESS``) for rows of up to 32 accelerators


def suffices(mix_XP: Floats, table: int, amount: int, devices: int) -> float:
    """Return for how many of the usual requests this cpu, or memory, beside so many idle devices suffices."""
    at = min(amount / devices / mix_XP[SCALES, table - CPU_FOR + 1], float(QUANTA))
    below = int(at)
    return float(mix_XP[table, below] + (mix_XP[table, below + 1] - mix_XP[table, below]) * (at - below))


def worth(cpu: int, memory: int, whole: int, parts: int, room: float, mix_XP: Floats) -> float:
    """Return how many idle thousandths of a row the usual requests could use.

    Args:
        cpu: Free millis.
        memory: Free, in the unit of the mix.
        whole: Idle devices.
        parts: Devices in use with room for a usual fraction.
        room: What these are worth (``PARTS``), added up.
        mix_XP: The table of a ``Mix``.
    """
    idle = WHOLE * whole * mix_XP[WHOLES, min(whole, MOST_DEVICES)] + room
    if idle <= 0.0:
        return 0.0
    share = min(
        suffices(mix_XP, CPU_FOR, cpu, whole + parts), suffices(mix_XP, MEMORY_FOR, memory, whole + parts)
    )
    return float(idle * share / mix_XP[SCALES, 0])


def hybrid(cpu: int, memory: int, gpu: int, full_R: Ints, asked: int) -> float:
    """Return between 0 and 1 how much, and how unevenly, a row stays free with a request on it.

    Four parts of five are the mean free share of its resources (best fit), one the distance between the
    freest and the least free (stranding): less than what filling a row gains, also for tasks that ask for
    one resource only. Accelerators that a task does not ask for count as kept from others.
    """
    shares, low, high, kinds = 0.0, 1.0, 0.0, 0
    for r in range(3):
        if full_R[r] > 0:
            share = (cpu if r == 0 else memory if r == 1 else gpu) / full_R[r]
            shares += share
            low, high, kinds = min(low, share), max(high, share), kinds + 1
    score = (4.0 * (shares / max(kinds, 1)) + max(high - low, 0.0)) / 5.0
    if asked == 0 and full_R[2] > 0:
        return 0.5 + score / 2.0
    return score / 2.0


def note_facts(cpu: int, memory: int, gpu_G: Ints, mix_XP: Floats, facts_F: Floats) -> None:
    """Write what the score needs of a row whatever is asked: see ``NUM_FACTS``."""
    whole, parts, idle, room = 0, 0, 0, 0.0
    for g in range(len(gpu_G)):
        free = gpu_G[g]
        if free >= WHOLE:
            whole += 1
        elif free > 0 and mix_XP[PARTS, free] > 0.0:
            parts += 1
            room += mix_XP[PARTS, free]
        idle += max(free, 0)
    facts_F[0], facts_F[1], facts_F[2], facts_F[3] = whole, parts, idle, room
    facts_F[4] = worth(max(cpu, 0), max(memory, 0), whole, parts, room, mix_XP)


def smallest_gap(gpu_G: Ints, able_G: Bools, asked: int) -> int:
    """Return the room of the fullest device that takes this many thousandths; 0 if none does.

    More than one device must have as many whole ones to give.
    """
    each, able, gap = min(asked, WHOLE), 0, 0
    for g in range(min(len(gpu_G), len(able_G))):
        if able_G[g] and gpu_G[g] >= each:
            able += 1
            gap = gpu_G[g] if gap == 0 else min(gap, gpu_G[g])
    return gap if able * WHOLE >= asked else 0


def score_row(
    cpu: int,
    memory: int,
    gpu_G: Ints,
    able_G: Bools,
    full_R: Ints,
    ask_R: Ints,
    facts_F: Floats,
    mix_XP: Floats,
) -> float:
    """Return how bad it is to put a request on a row; infinite where it does not fit.

    A fraction goes to the fullest device that has room, whole devices are all alike
    (``feasibility.choose_devices``).

    Args:
        cpu: Free millis; less than 0 where more is kept for others than is there.
        memory: Free.
        gpu_G: Free thousandths of each device; may be less than 0.
        able_G: Devices of the type asked for; may have no entries if none is asked for.
        full_R: Of the empty row.
        ask_R: What is asked.
        facts_F: What ``note_facts`` wrote of the row as it is.
        mix_XP: The table of a ``Mix``.
    """
    asked = ask_R[2]
    if (ask_R[0] > 0 and cpu < ask_R[0]) or (ask_R[1] > 0 and memory < ask_R[1]) or facts_F[2] < asked:
        return math.inf
    gap = smallest_gap(gpu_G, able_G, asked) if asked > 0 else 0
    if asked > 0 and gap == 0:
        return math.inf
    left_cpu, left_memory = max(cpu - ask_R[0], 0), max(memory - ask_R[1], 0)
    whole, parts, room, lost = int(facts_F[0]), int(facts_F[1]), facts_F[3], facts_F[4]
    if asked >= WHOLE:
        whole -= asked // WHOLE
    elif asked > 0:
        lost += GAP_WEIGHT * (mix_XP[GAPS, gap] - mix_XP[GAPS, gap - asked] - asked)
        if gap >= WHOLE:
            whole -= 1
        elif mix_XP[PARTS, gap] > 0.0:
            parts -= 1
            room -= mix_XP[PARTS, gap]
        if mix_XP[PARTS, gap - asked] > 0.0:
            parts += 1
            room += mix_XP[PARTS, gap - asked]
    lost = lost - asked - worth(left_cpu, left_memory, whole, parts, room, mix_XP)
    steps = math.floor(lost / STEP + 1e-9)
    return float((steps + hybrid(left_cpu, left_memory, int(facts_F[2]) - asked, full_R, asked)) / SCALE)


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
    facts_NF: Floats,
    known_N: Bools,
    scores_K: Floats,
) -> None:
    """Write the score of some rows, infinite where a replica does not fit.

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
        facts_NF: What ``note_facts`` found; written to.
        known_N: Rows of which that is up to date; written to.
        scores_K: Written to.
    """
    asked_cpu, asked_memory, asked = ask_R[0], ask_R[1], ask_R[2]
    for at in range(len(rows)):
        row = rows[at]
        scores_K[rank_N[row]] = math.inf
        cpu, memory = free_NR[row, 0], free_NR[row, 1]
        # Looked at first what most rows of a full cell fail by.
        if (asked_cpu > 0 and cpu < asked_cpu) or (asked_memory > 0 and memory < asked_memory):
            continue
        if not allowed_N[row] or (known_N[row] and facts_NF[row, 2] < asked):
            continue
        if not known_N[row]:
            note_facts(cpu, memory, gpu_NG[row], mix_XP, facts_NF[row])
            known_N[row] = True
        scores_K[rank_N[row]] = score_row(
            cpu, memory, gpu_NG[row], typed_NG[row], full_NR[row], ask_R, facts_NF[row], mix_XP
        )


def _suffices_N(mix_XP: Floats, table: int, amount_N: Ints, devices_N: Ints) -> Floats:
    each = mix_XP[SCALES, table - CPU_FOR + 1]
    at_N = np.minimum(amount_N / np.maximum(devices_N, 1) / each, float(QUANTA))
    below_N = at_N.astype(np.int64)
    low_N = mix_XP[table][below_N]
    share_N: Floats = low_N + (mix_XP[table][below_N + 1] - low_N) * (at_N - below_N)
    return share_N


def _worth_N(
    cpu_N: Ints, memory_N: Ints, whole_N: Ints, parts_N: Ints, room_N: Floats, mix_XP: Floats
) -> Floats:
    idle_N = WHOLE * whole_N * mix_XP[WHOLES][np.minimum(whole_N, MOST_DEVICES)] + room_N
    devices_N = whole_N + parts_N
    share_N = np.minimum(
        _suffices_N(mix_XP, CPU_FOR, cpu_N, devices_N), _suffices_N(mix_XP, MEMORY_FOR, memory_N, devices_N)
    )
    worth_N: Floats = np.where(idle_N > 0.0, idle_N * share_N / mix_XP[SCALES, 0], 0.0)
    return worth_N


def _hybrid_N(left_NR: Ints, full_NR: Ints, asked: int) -> Floats:
    there_NR = full_NR > 0
    share_NR = left_NR / np.maximum(full_NR, 1)
    sum_N = np.zeros(len(full_NR))
    for r in range(3):
        sum_N = sum_N + np.where(there_NR[:, r], share_NR[:, r], 0.0)
    low_N = np.minimum(np.where(there_NR, share_NR, 1.0).min(axis=1), 1.0)
    high_N = np.maximum(np.where(there_NR, share_NR, 0.0).max(axis=1), 0.0)
    mean_N = sum_N / np.maximum(there_NR.sum(axis=1), 1)
    score_N: Floats = (4.0 * mean_N + np.maximum(high_N - low_N, 0.0)) / 5.0
    score_N = score_N / 2.0
    if asked == 0:
        score_N = np.where(there_NR[:, 2], 0.5 + score_N, score_N)
    return score_N


def score_N(
    free_NR: Ints, gpu_NG: Ints, able_NG: Bools | None, full_NR: Ints, ask_R: Ints, mix_XP: Floats
) -> Floats:
    """Return ``score_row`` of all rows; what it says of rows where the request does not fit means nothing."""
    asked = int(ask_R[2])
    free_NG = np.maximum(gpu_NG, 0)
    whole_N = (free_NG >= WHOLE).sum(axis=1)
    part_NG = mix_XP[PARTS][np.minimum(free_NG, WHOLE)]
    parts_N, room_N = (part_NG > 0.0).sum(axis=1), part_NG.sum(axis=1)
    lost_N = _worth_N(
        np.maximum(free_NR[:, 0], 0), np.maximum(free_NR[:, 1], 0), whole_N, parts_N, room_N, mix_XP
    )
    if asked >= WHOLE:
        whole_N = np.maximum(whole_N - asked // WHOLE, 0)
    elif asked and able_NG is not None and gpu_NG.shape[1]:
        able_NG = able_NG & (free_NG >= asked)
        gap_N = np.minimum(np.where(able_NG, free_NG, WHOLE).min(axis=1), WHOLE)
        left_N = np.maximum(gap_N - asked, 0)
        gaps_P, parts_P = mix_XP[GAPS], mix_XP[PARTS]
        lost_N = lost_N + GAP_WEIGHT * (gaps_P[gap_N] - gaps_P[left_N] - asked)
        whole_N = np.maximum(whole_N - (gap_N >= WHOLE), 0)
        parts_N = parts_N - (parts_P[gap_N] > 0.0) + (parts_P[left_N] > 0.0)
        room_N = room_N - parts_P[gap_N] + parts_P[left_N]
    left_NR = np.empty((len(free_NR), 3), np.int64)
    left_NR[:, :2] = np.maximum(free_NR - ask_R[:2], 0)
    left_NR[:, 2] = free_NG.sum(axis=1) - asked
    lost_N = lost_N - asked - _worth_N(left_NR[:, 0], left_NR[:, 1], whole_N, parts_N, room_N, mix_XP)
    steps_N = np.floor(lost_N / STEP + 1e-9)
    out_N: Floats = (steps_N + _hybrid_N(left_NR, full_NR, asked)) / SCALE
    return out_N


def best_row(ok_N: Bools, scores_N: Floats, rank_N: Ints) -> int:
    """Return the row with the lowest score, ties by rank; -1 if none is allowed."""
    rows = np.flatnonzero(ok_N)
    if not len(rows):
        return -1
    scores = scores_N[rows]
    ties = rows[scores == scores.min()]
    return int(ties[0] if len(ties) == 1 else ties[rank_N[ties].argmin()])
