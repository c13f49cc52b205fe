"""Cell compaction: how few machines hold a workload? The measure of a packing policy for planning.

Method (Verma et al., "Large-scale cluster management at Google with Borg", EuroSys 2015, section 5.1):
machines are taken from a cell in a random order until the workload, packed from scratch, no longer fits; up
to 0.2 % of the tasks may stay pending, for those that only a handful of machines could take. A cell that is
too small to begin with is cloned. Eleven trials with different orders; the figure is the 90th percentile,
what a planner can count on.

The least number is found by halving, not one machine at a time. Packings are nearly, not strictly, monotone
in the machines they have: a number is taken for too few only if the workload does not fit on one, two and
three machines more either. Tasks come in an order drawn with the seed, the same for every policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from tidecell.scheduler.scoring import Ints
from tidecell.sim.openb import Machines, Pods
from tidecell.sim.packing import mix_for, pack
from tidecell.structs.errors import DataError

TRIALS = 11
PENDING = 0.002
MOST_COPIES = 8
CONFIRMED_BY = 4  # numbers in a row on which the workload does not fit: then the least is above the first


class Compaction(msgspec.Struct, frozen=True, kw_only=True):
    """How many machines a workload needs under a policy.

    Attributes:
        machines: How many the cell has.
        needed: The least number that held the workload, by trial.
        needed_p90: Their 90th percentile.
        share: ``needed_p90`` in percent of ``machines``.
    """

    variant: str
    policy: str
    seed: int
    pods: int
    machines: int
    needed: list[int]
    needed_p90: int
    share: float


def machines_needed(pods: Pods, machines: Machines, policy: str, seed: int) -> int:
    """Return the least number of machines that hold all pods but 0.2 %: one trial.

    Raises:
        DataError: The policy is unknown, or more pods than that fit on none of eight copies of the cell.
    """
    rng = np.random.default_rng([seed, 2])
    asks_PQ = pods.asks_PQ[rng.permutation(len(pods))]
    mix = mix_for(policy, asks_PQ)

    def fits(order: Ints) -> bool:
        rows_P, _, _ = pack(asks_PQ, machines.only(order), policy, mix)
        return int((rows_P < 0).sum()) <= PENDING * len(asks_PQ)

    copies = 1
    while not fits(np.tile(np.arange(len(machines)), copies)):
        copies *= 2
        if copies > MOST_COPIES:
            raise DataError(
                f"more than {PENDING:.1%} of the pods fit nowhere, even on {MOST_COPIES} copies of all",
                "pods may ask for a model, or a size, that no machine has",
            )
    order = rng.permutation(np.tile(np.arange(len(machines)), max(2, copies)))
    enough = len(order)
    too_few = _surely_too_few(asks_PQ, machines, order)
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        tried = range(middle, min(middle + CONFIRMED_BY, enough))
        found = next((number for number in tried if fits(order[:number])), None)
        if found is None:
            too_few = middle
        else:
            enough = found
    return enough


def _surely_too_few(asks_PQ: Ints, machines: Machines, order: Ints) -> int:
    """Return the most machines whose cpu, memory or accelerators are less than is asked for in all.

    What may stay pending is taken off, the largest requests for each.
    """
    asked_PR = np.sort(asks_PQ[:, :3], axis=0)
    kept = len(asked_PR) - int(PENDING * len(asked_PR))
    there_NR = machines.capacity_NR[order].cumsum(axis=0)
    return int((there_NR < asked_PR[:kept].sum(axis=0)).any(axis=1).sum())


def summed_up(pods: Pods, machines: Machines, policy: str, seed: int, needed: Sequence[int]) -> Compaction:
    """Return what trials came to; ``needed`` has at least one."""
    p90 = sorted(needed)[math.ceil(0.9 * len(needed)) - 1]
    return Compaction(
        variant=pods.variant,
        policy=policy,
        seed=seed,
        pods=len(pods),
        machines=len(machines),
        needed=list(needed),
        needed_p90=p90,
        share=round(100.0 * p90 / len(machines), 2),
    )


__all__ = ["PENDING", "TRIALS", "Compaction", "machines_needed", "summed_up"]
