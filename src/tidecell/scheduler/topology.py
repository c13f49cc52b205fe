"""Racks and the like: replicas in one domain, or over many. Pure.

A domain is a set of rows with the same value of an attribute. ``topology`` puts all replicas of a job into
one; where several would do, into the one that has least to spare (best fit, one level up). ``spread`` bounds
how uneven the numbers of replicas in domains may be, as Kubernetes' topology spread does: no domain has
more than the least one and ``max_skew``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tidecell.scheduler.attributes import Bools, column
from tidecell.scheduler.feasibility import Room, copies_N, placement_class
from tidecell.scheduler.fleet import Fleet, Ints
from tidecell.structs.job import JobSpec
from tidecell.structs.placement import Spread, Topology


def domain_masks(
    fleet: Fleet, topology: Topology, copies_N: Ints, count: int, home_rows: Sequence[int]
) -> Iterator[Bools | None]:
    """Yield rows to try, the best choice first; None: all of them.

    Args:
        fleet: The machines.
        topology: What is asked for.
        copies_N: How many replicas each row could hold now.
        count: How many are to be placed.
        home_rows: Rows where replicas of the job stay; the others join them.
    """
    found = column(fleet, topology.level)
    there_N = found.there_N()
    homes = {int(found.codes_N[row]) for row in home_rows}
    if home_rows:
        if len(homes) == 1 and there_N[home_rows[0]]:
            yield there_N & (found.codes_N == homes.pop())
    else:
        sums = _sums(found.codes_N, np.where(there_N, copies_N, 0), len(found.values))
        fitting = [code for code in range(len(sums)) if sums[code] >= count and found.values[code]]
        for code in sorted(fitting, key=lambda c: (sums[c], found.values[c])):
            yield found.codes_N == code
        if not topology.required:
            yield _fewest(found.codes_N, sums, found.values, count)
    if not topology.required:
        yield None


def _sums(codes_N: Ints, count_N: Ints, num_codes: int) -> Ints:
    """Return sums by domain."""
    sums = np.zeros(num_codes, np.int64)
    np.add.at(sums, codes_N, count_N)
    return sums


def _fewest(codes_N: Ints, sums: Ints, values: Sequence[tuple[str, ...]], count: int) -> Bools:
    """Return the rows of the fewest domains that hold ``count`` together."""
    chosen, have = [], 0
    for code in sorted(range(len(sums)), key=lambda c: (-int(sums[c]), values[c])):
        if have < count and values[code]:
            chosen.append(code)
            have += int(sums[code])
    mask = np.zeros(max(1, len(sums)), np.bool_)
    mask[chosen] = True
    return mask[codes_N]


@dataclass
class Evenness:
    """How many replicas of a job each domain has, while more are placed.

    Attributes:
        codes_N: Domain of each row.
        eligible: Domains that replicas of this job may go to at all.
        counts: Replicas in each domain.
    """

    max_skew: int
    codes_N: Ints
    there_N: Bools
    eligible: Bools
    counts: Ints

    @classmethod
    def of(cls, fleet: Fleet, spread: Spread, allowed_N: Bools, home_rows: Sequence[int]) -> Evenness:
        """Return the state before anything is placed."""
        found = column(fleet, spread.by)
        counts = np.zeros(len(found.values), np.int64)
        np.add.at(counts, found.codes_N[list(home_rows)], 1)
        there_N = found.there_N()
        eligible = np.zeros(len(found.values), np.bool_)
        eligible[found.codes_N[allowed_N & there_N]] = True
        return cls(spread.max_skew, found.codes_N, there_N, eligible, counts)

    def allowed_N(self) -> Bools:
        """Return the rows on which one more replica keeps the skew."""
        if not self.max_skew:
            return np.ones(len(self.codes_N), np.bool_)
        if not self.eligible.any():
            return np.zeros(len(self.codes_N), np.bool_)
        least = int(self.counts[self.eligible].min())
        good: Bools = (self.counts[self.codes_N] < least + self.max_skew) & self.there_N
        return good

    def count_N(self) -> Ints:
        """Return how many replicas the domain of each row has."""
        count_N: Ints = self.counts[self.codes_N]
        return count_N

    def place(self, row: int) -> None:
        """One more replica is on a row."""
        self.counts[self.codes_N[row]] += 1


def num_together(fleet: Fleet, spec: JobSpec, copies_N: Ints, allowed_N: Bools) -> int:
    """Return how many replicas rows that hold ``copies_N`` each take together under topology and spread."""
    count_N = np.where(allowed_N, copies_N, 0)
    if spec.topology is not None and spec.topology.required:
        found = column(fleet, spec.topology.level)
        best = 0
        for code, value in enumerate(found.values):
            rows = found.codes_N == code
            if value:
                best = max(best, _num_spread(fleet, spec, np.where(rows, count_N, 0), allowed_N & rows))
        return best
    return _num_spread(fleet, spec, count_N, allowed_N)


def _num_spread(fleet: Fleet, spec: JobSpec, count_N: Ints, allowed_N: Bools) -> int:
    if spec.spread is None or not spec.spread.max_skew:
        return int(count_N.sum())
    found = column(fleet, spec.spread.by)
    usable_N = allowed_N & found.there_N()
    codes = np.unique(found.codes_N[usable_N])
    if not len(codes):
        return 0
    sums = _sums(found.codes_N, np.where(usable_N, count_N, 0), len(found.values))[codes]
    return int(np.minimum(sums, sums.min() + spec.spread.max_skew).sum())


def num_that_fit(fleet: Fleet, spec: JobSpec) -> int:
    """Return how many replicas an empty fleet would hold together, in the shape of which it holds most."""
    empty = Room(fleet.capacity_NR, fleet.gpu_capacity_NG)
    counts = []
    for shape in range(len(spec.shapes)):
        kind = placement_class(fleet, spec, shape)
        count_N = copies_N(empty, kind.request, kind.typed_NG)
        counts.append(num_together(fleet, spec, count_N, kind.allowed_N))
    return max(counts)
