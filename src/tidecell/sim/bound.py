"""How much of a cell's accelerators any policy at all could allocate: an upper bound. Pure.

The linear relaxation: machines of one model are one big machine, a pod may be split, and pods are chosen
knowing all that arrive. Its value is bounded from above by any prices (weak duality): what all capacity costs
at those prices, plus what each pod is worth above its cheapest place. The prices are found by subgradient
descent; every step gives a valid bound, and the least is kept. Fractions that cannot share an accelerator
(each above half) are counted as whole ones, at their true worth.
"""

from __future__ import annotations

import numpy as np

from tidecell.scheduler.packing import THOUSANDTHS
from tidecell.scheduler.scoring import WHOLE, Floats, Ints
from tidecell.sim.openb import Machines

STEPS = 300


def allocation_bound(asks_AQ: Ints, machines: Machines) -> float:
    """Return a share of all accelerators that no policy can exceed on these asks."""
    types, capacity_TR = _by_type(machines)
    kinds, counts = np.unique(asks_AQ, axis=0, return_counts=True)
    total = float(machines.capacity_NR[:, THOUSANDTHS].sum())
    usable = _allowed_KT(kinds, types)
    least = min(total, float((kinds[:, THOUSANDTHS] * counts)[usable.any(axis=1)].sum())) / total
    for sizes in (kinds[:, THOUSANDTHS], _whole_above_half(kinds[:, THOUSANDTHS])):
        needs_KR = np.column_stack([kinds[:, 0], kinds[:, 1], sizes]).astype(float)
        worth_K = kinds[:, THOUSANDTHS].astype(float)
        least = min(least, _descend(needs_KR, worth_K, counts.astype(float), usable, capacity_TR) / total)
    return least


def _by_type(machines: Machines) -> tuple[Ints, Floats]:
    """Return the accelerator types (-1: none) and each one's total capacity."""
    types = np.unique(machines.types_N)
    return types, np.array([machines.capacity_NR[machines.types_N == t].sum(axis=0) for t in types], float)


def _allowed_KT(kinds: Ints, types: Ints) -> np.ndarray:
    """Return which kinds of asks may use which types; those without accelerators may use all."""
    return np.array(
        [[not k[THOUSANDTHS] or (t >= 0 and bool(int(k[3]) >> int(t) & 1)) for t in types] for k in kinds]
    )


def _whole_above_half(thousandths: Ints) -> Ints:
    """Return sizes with fractions above half as whole ones, and what fits beside one as nothing.

    Dual feasible: no set of fractions that fits one accelerator then adds up to more than it (Fekete and
    Schepers, 2001). The threshold is the one that the asks lose most at.
    """
    shared = thousandths[(thousandths > WHOLE // 2) & (thousandths < WHOLE)]
    if not len(shared):
        return thousandths
    edge = int(shared.max())
    return np.where(
        (thousandths >= edge) & (thousandths < WHOLE),
        WHOLE,
        np.where(thousandths <= WHOLE - edge, 0, thousandths),
    )


def _descend(
    needs_KR: Floats, worth_K: Floats, counts_K: Floats, usable_KT: np.ndarray, capacity_TR: Floats
) -> float:
    """Return the least bound found over prices per type and resource."""
    scale_R = np.maximum(capacity_TR.sum(axis=0), 1.0)
    needs, capacity = needs_KR / scale_R, capacity_TR / scale_R
    total = float(capacity_TR[:, THOUSANDTHS].sum())
    prices = np.zeros_like(capacity)
    prices[:, THOUSANDTHS] = total
    least = np.inf
    for step in range(STEPS):
        cost_KT = np.where(usable_KT, needs @ prices.T, np.inf)
        cheapest = cost_KT.argmin(axis=1)
        gain_K = np.maximum(worth_K - cost_KT.min(axis=1), 0.0)
        bound = float((prices * capacity).sum() + (gain_K * counts_K).sum())
        least = min(least, bound)
        taken = np.zeros_like(capacity)
        np.add.at(taken, cheapest, needs * (counts_K * (gain_K > 0))[:, None])
        slope = capacity - taken
        norm = float((slope * slope).sum())
        if norm < 1e-18:
            break
        prices = np.maximum(prices - 0.05 * total / (1 + step / 20) * slope / np.sqrt(norm), 0.0)
    return least
