"""FGD's packing protocol: pods arrive until the machines are full and beyond; how full do they get?

Protocol (Weng et al., "Beware of Fragmentation", USENIX ATC 2023, and its simulator): pods sorted by name are
shuffled with the seed; then random pods of the same list are added until the accelerators asked for reach a
share of those that exist (a list above that loses random pods). None leaves, one that does not fit is
dropped. The figure is the accelerator share allocated at each hundredth of arrived request. Machines are
numbered in an order drawn with the seed, as in the simulator, and equal scores go to the smallest number.

The random numbers are NumPy's, so runs match the published ones in distribution, not pod by pod.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np

from tidecell.scheduler.compiled import compiled
from tidecell.scheduler.mix import mix_of, usual_shapes
from tidecell.scheduler.packing import FGD, MEMORY, POLICIES, RANDOM, THOUSANDTHS, note_row, score_row, take
from tidecell.scheduler.scoring import NUM_FACTS, WHOLE, Floats, Ints
from tidecell.sim.bound import allocation_bound
from tidecell.sim.openb import Machines, Pods
from tidecell.structs.errors import DataError

FGD_COVERAGE = 0.95
PLACED, NO_MACHINE, NO_CPU_OR_MEMORY, NO_ACCELERATOR, SPLIT = range(5)
REASONS = {
    NO_MACHINE: "no machine could hold it even if empty",
    NO_CPU_OR_MEMORY: "accelerators are free, but not cpu or memory beside them",
    NO_ACCELERATOR: "no accelerator of a model it can use has room",
    SPLIT: "cpu and memory are free in the cell, but not on one machine",
}


class PackingReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of the protocol came to. Shares are percent of all accelerators.

    Attributes:
        allocated: Allocated share at arrived 1 %, 2 % and so on.
        failed: How many pods found no room, by reason.
        bound: No policy can allocate more, at the end.
        machines_in_use: Machines with at least one pod, at the end.
    """

    variant: str
    policy: str
    seed: int
    machines: int
    accelerators: float
    pods: int
    arrived: float
    allocated_at_end: float
    allocated: list[float]
    bound: float
    failed: dict[str, int]
    machines_in_use: int
    cpu_used: float
    memory_used: float


def run_packing(
    pods: Pods,
    machines: Machines,
    policy: str = "tidecell",
    seed: int = 42,
    arrived_until: float = 1.30,
    *,
    compile_kernels: bool = True,
) -> PackingReport:
    """Run the protocol once.

    Args:
        arrived_until: Accelerators asked for by all that arrive, as a share of those there are.
        compile_kernels: Use machine code if Numba is installed; the figures are the same.

    Raises:
        DataError: The policy is unknown, or machines or pods have no accelerators.
    """
    mix = mix_for(policy, pods.asks_PQ)
    capacity = int(machines.capacity_NR[:, THOUSANDTHS].sum())
    if capacity == 0:
        raise DataError("the machines have no accelerators; this protocol measures how full those get")
    arrivals = draw_arrivals(pods.asks_PQ, seed, capacity, arrived_until)
    order = np.random.default_rng([seed, 1]).permutation(len(machines))
    machines = machines.only(order)
    outcome, free_NR, gpu_NG = pack(pods.asks_PQ[arrivals], machines, policy, mix, compile_kernels)
    return _report(pods, machines, policy, seed, arrivals, outcome, free_NR, gpu_NG)


class Mix(NamedTuple):
    """What a policy takes for likely to come: a table for ours, shapes and their weights for FGD's."""

    table_XP: Floats
    shapes_SQ: Ints
    weights_S: Floats


def mix_for(policy: str, asks_PQ: Ints) -> Mix:
    """Return what a policy takes for likely to come, given all asks of a trace.

    FGD's usual shapes are the most frequent that make up 95 % of the tasks; memory is no part of them, tasks
    without accelerators are.

    Raises:
        DataError: The policy is unknown.
    """
    if policy not in POLICIES:
        raise DataError(f"no packing policy is named {policy!r}", f"there are {', '.join(POLICIES)}")
    if POLICIES[policy] != FGD:
        shapes, counts = np.unique(asks_PQ[:, : THOUSANDTHS + 1], axis=0, return_counts=True)
        usual = {(int(c), int(m), int(g)): int(n) for (c, m, g), n in zip(shapes, counts, strict=True)}
        return Mix(mix_of(usual), np.zeros((0, 4), np.int64), np.zeros(0))
    without_memory = asks_PQ.copy()
    without_memory[:, MEMORY] = 0
    return Mix(mix_of({}), *usual_shapes(without_memory, FGD_COVERAGE))


def draw_arrivals(asks_PQ: Ints, seed: int, capacity: int, arrived_until: float) -> Ints:
    """Return the pods that arrive, in order, as rows of ``asks_PQ``."""
    asked = asks_PQ[:, THOUSANDTHS]
    if asked.sum() == 0:
        raise DataError("no pod asks for an accelerator; this protocol needs some that do")
    rng = np.random.default_rng(seed)
    order = [int(p) for p in rng.permutation(len(asks_PQ))]
    total, until = int(asked.sum()), arrived_until * capacity
    while total > until:
        total -= int(asked[order.pop(int(rng.integers(len(order))))])
    if not order:
        raise DataError(
            "every pod asks for more accelerators than may arrive", "let more arrive, or add machines"
        )
    pruned = len(order) < len(asks_PQ)
    while not pruned:
        pod = int(rng.integers(len(asks_PQ)))
        if total + min(int(asked[pod]), WHOLE) > until:
            break
        total += int(asked[pod])
        order.append(pod)
    return np.array(order, np.int64)


def pack(
    asks_AQ: Ints, machines: Machines, policy: str, mix: Mix, compile_kernels: bool = True
) -> tuple[Ints, Ints, Ints]:
    """Put each ask, in order, where the policy scores it best.

    Returns:
        For each ask its row, or -1; then what is free of cpu and memory, and of each accelerator.
    """
    shapes, kinds = np.unique(asks_AQ, axis=0, return_inverse=True)
    free_NR = np.ascontiguousarray(machines.capacity_NR[:, :2])
    gpu_NG = machines.gpu_NG.copy()
    rows_A = np.full(len(asks_AQ), -1, np.int64)
    run = compiled(pack_rows, compile_kernels)
    run(
        POLICIES[policy],
        np.ascontiguousarray(shapes),
        kinds.reshape(-1).astype(np.int64),
        free_NR,
        gpu_NG,
        machines.types_N,
        machines.capacity_NR,
        *mix,
        rows_A,
    )
    return rows_A, free_NR, gpu_NG


def pack_rows(
    policy: int,
    asks_KQ: Ints,
    kinds_A: Ints,
    free_NR: Ints,
    gpu_NG: Ints,
    types_N: Ints,
    full_NR: Ints,
    mix_XP: Floats,
    shapes_SQ: Ints,
    weights_S: Floats,
    rows_A: Ints,
) -> None:
    """Place asks one by one; interpreted or compiled.

    Asks of one kind share their scores: a row is scored again only if it changed since the kind last came.
    """
    num_rows, num_kinds = free_NR.shape[0], asks_KQ.shape[0]
    scores_KN = np.full((num_kinds, num_rows), math.inf)
    places_KN = np.full((num_kinds, num_rows), -1, np.int64)
    seen_KN = np.full((num_kinds, num_rows), -1, np.int64)
    changes_N = np.zeros(num_rows, np.int64)
    facts_NF = np.zeros((num_rows, NUM_FACTS))
    work_G = np.zeros(gpu_NG.shape[1], np.int64)
    all_G = np.ones(gpu_NG.shape[1], np.bool_)
    for n in range(num_rows):
        note_row(policy, free_NR[n], gpu_NG[n], types_N[n], mix_XP, shapes_SQ, weights_S, facts_NF[n])
    for a in range(kinds_A.shape[0]):
        k = kinds_A[a]
        best, row = math.inf, -1
        for n in range(num_rows):
            if seen_KN[k, n] != changes_N[n] or policy == RANDOM:
                seen_KN[k, n] = changes_N[n]
                scores_KN[k, n], places_KN[k, n] = score_row(
                    policy,
                    n,
                    facts_NF[n],
                    free_NR[n],
                    gpu_NG[n],
                    types_N[n],
                    full_NR[n],
                    asks_KQ[k],
                    mix_XP,
                    shapes_SQ,
                    weights_S,
                    work_G,
                    all_G,
                    a,
                )
            if scores_KN[k, n] < best:
                best, row = scores_KN[k, n], n
        if row < 0:
            continue
        rows_A[a] = row
        free_NR[row, 0] -= asks_KQ[k, 0]
        free_NR[row, 1] -= asks_KQ[k, 1]
        take(gpu_NG[row], asks_KQ[k, THOUSANDTHS], places_KN[k, row])
        note_row(policy, free_NR[row], gpu_NG[row], types_N[row], mix_XP, shapes_SQ, weights_S, facts_NF[row])
        changes_N[row] += 1


def _report(
    pods: Pods,
    machines: Machines,
    policy: str,
    seed: int,
    arrivals: Ints,
    rows_A: Ints,
    free_NR: Ints,
    gpu_NG: Ints,
) -> PackingReport:
    asks_AQ = pods.asks_PQ[arrivals]
    full = machines.capacity_NR.sum(axis=0)
    arrived = asks_AQ[:, THOUSANDTHS].cumsum()
    got = np.where(rows_A >= 0, asks_AQ[:, THOUSANDTHS], 0).cumsum()
    used = np.setdiff1d(np.unique(rows_A), [-1])
    share = 100.0 * arrived / full[THOUSANDTHS]
    marks = np.searchsorted(share, np.arange(1, round(share[-1]) + 1))
    free = free_NR.sum(axis=0)
    return PackingReport(
        variant=pods.variant,
        policy=policy,
        seed=seed,
        machines=len(machines),
        accelerators=int(full[THOUSANDTHS]) / WHOLE,
        pods=len(arrivals),
        arrived=round(float(share[-1]), 3),
        allocated_at_end=round(100.0 * int(got[-1]) / int(full[THOUSANDTHS]), 3),
        allocated=[round(100.0 * int(got[min(m, len(got) - 1)]) / int(full[2]), 3) for m in marks],
        bound=round(100.0 * allocation_bound(asks_AQ, machines), 3),
        failed=_failures(asks_AQ[rows_A < 0], machines, free_NR, gpu_NG),
        machines_in_use=len(used),
        cpu_used=round(100.0 * (1 - int(free[0]) / max(1, int(full[0]))), 3),
        memory_used=round(100.0 * (1 - int(free[1]) / max(1, int(full[1]))), 3),
    )


def _failures(failed_FQ: Ints, machines: Machines, free_NR: Ints, gpu_NG: Ints) -> dict[str, int]:
    """Return why pods found no room, as things stand at the end."""
    found = dict.fromkeys(REASONS.values(), 0)
    if not len(failed_FQ):
        return found
    kinds, counts = np.unique(failed_FQ, axis=0, return_counts=True)
    for ask, count in zip(kinds, counts, strict=True):
        found[REASONS[_failure(ask, machines, free_NR, gpu_NG)]] += int(count)
    return found


def _failure(ask: Ints, machines: Machines, free_NR: Ints, gpu_NG: Ints) -> int:
    """Return the reason why one ask has no room."""
    asked = int(ask[THOUSANDTHS])
    full = machines.capacity_NR
    allowed = np.ones(len(full), bool) if not asked else _allowed(machines.types_N, int(ask[3]))
    if not (allowed & (full[:, 0] >= ask[0]) & (full[:, 1] >= ask[1]) & (full[:, 2] >= asked)).any():
        return NO_MACHINE
    if not asked:
        return SPLIT if (free_NR.sum(axis=0) >= ask[:2]).all() else NO_CPU_OR_MEMORY
    each = min(asked, WHOLE)
    room = (gpu_NG >= each).sum(axis=1) * each >= asked
    return NO_CPU_OR_MEMORY if (allowed & room).any() else NO_ACCELERATOR


def _allowed(types_N: Ints, mask: int) -> np.ndarray:
    """Return which machines have a model of the mask."""
    return np.array([t >= 0 and bool(mask >> int(t) & 1) for t in types_N])


__all__ = ["Mix", "PackingReport", "draw_arrivals", "mix_for", "pack", "run_packing"]
