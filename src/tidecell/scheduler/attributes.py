"""Attributes of machines as columns, and what conditions say about them. Pure.

A cell of 12,000 machines has a few racks and cpu models: each attribute is a column of codes, so that a
condition is evaluated once a value, and once a machine only for what is each machine's own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tidecell.scheduler.fleet import Fleet, Ints
from tidecell.structs.job import JobSpec
from tidecell.structs.machine import MachineSpec
from tidecell.structs.placement import Condition, attributes_of

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Column:
    """One attribute of all rows.

    Attributes:
        codes_N: Index into ``values``.
        values: What occurs; ``()`` for rows that lack the attribute.
    """

    codes_N: Ints
    values: list[tuple[str, ...]]

    def name(self, code: int) -> str:
        """Return a value in words."""
        return ", ".join(self.values[code])

    def there_N(self) -> Bools:
        """Return which rows have the attribute."""
        return np.array([bool(v) for v in self.values], np.bool_)[self.codes_N]


def column(fleet: Fleet, key: str) -> Column:
    """Return an attribute of all rows; kept with the fleet, whose copies share it."""
    known = fleet.columns.get(key)
    if isinstance(known, Column) and len(known.codes_N) == len(fleet.specs):
        return known
    codes: dict[tuple[str, ...], int] = {}
    codes_N = np.empty(len(fleet.specs), np.int64)
    for row, machine in enumerate(fleet.specs):
        codes_N[row] = codes.setdefault(attributes_of(machine, key), len(codes))
    found = fleet.columns[key] = Column(codes_N, list(codes))
    return found


def meets_N(fleet: Fleet, condition: Condition) -> Bools:
    """Return which rows meet a condition."""
    found = column(fleet, condition.key)
    return np.array([condition.holds(v) for v in found.values] or [False], np.bool_)[found.codes_N]


def holds_N(fleet: Fleet, name: str) -> Bools:
    """Return which rows hold a dataset or package."""
    key = f"holds:{name}"  # a colon is in no attribute's name
    known = fleet.columns.get(key)
    if isinstance(known, np.ndarray) and len(known) == len(fleet.specs):
        return known
    found = np.array([name in machine.holds for machine in fleet.specs], np.bool_)
    fleet.columns[key] = found
    return found


def of_alloc_N(fleet: Fleet, alloc: str) -> Bools:
    """Return which rows are an alloc's envelopes; of no alloc: machines themselves."""
    key = f"alloc:{alloc}"
    known = fleet.columns.get(key)
    if isinstance(known, np.ndarray) and len(known) == len(fleet.specs):
        return known
    found = np.array([machine.alloc == alloc for machine in fleet.specs], np.bool_)
    fleet.columns[key] = found
    return found


def unmet(spec: JobSpec, machine: MachineSpec) -> Condition | None:
    """Return the first constraint of a job that a machine does not meet."""
    return next((c for c in spec.constraints if not c.holds(attributes_of(machine, c.key))), None)
