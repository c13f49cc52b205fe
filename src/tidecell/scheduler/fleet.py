"""The machines of a cell as columns: one row a machine, or an alloc's envelope. Pure.

A pass over 12,000 machines has to be array work. ``Fleet`` holds what is there, what is used, and what
will be free when leaving tasks are gone; a copy of it is the scratch paper of one scheduling pass.
Whoever keeps a fleet beside a live cell tells it of each task that comes and goes (``occupy``,
``vacate``, ``leave``), so that no pass has to look at every task again.

Columns: ``N`` rows, ``G`` accelerators on the largest machine.

- ``capacity_NR``, ``used_NR``, ``leaving_NR``: int64, R = (cpu_millis, memory_bytes)
- ``gpu_capacity_NG``: int64, 1000 where there is an accelerator (of an envelope perhaps less), else 0
- ``gpu_used_NG``, ``gpu_leaving_NG``: int64 thousandths
- ``gpu_type_NG``: int32, index into ``types``; -1 where there is none
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tidecell.structs.machine import MachineSpec
from tidecell.structs.resources import GPU, Resources

Ints = NDArray[np.int64]
CPU, MEMORY = 0, 1  # columns of R


@dataclass
class Fleet:
    """Columns of machines and what their tasks hold.

    Attributes:
        names: Row to name. An envelope's row is named ``alloc/index``.
        specs: Row to what its machine reported; an envelope has its host's attributes.
        rows: Name to row.
        types: Accelerator types that occur, in order of their first row.
        open_N: Whether a row takes new work.
    """

    names: list[str]
    specs: list[MachineSpec]
    rows: dict[str, int]
    types: list[str]
    capacity_NR: Ints
    used_NR: Ints
    leaving_NR: Ints
    gpu_capacity_NG: Ints
    gpu_used_NG: Ints
    gpu_leaving_NG: Ints
    gpu_type_NG: NDArray[np.int32]
    open_N: NDArray[np.bool_]
    accelerator_at: list[dict[int, int]] = field(default_factory=list)  # row: device index -> column of G
    ranks: dict[int, Ints] = field(default_factory=dict)  # seed: what `rank_N` found
    type_masks: dict[str, tuple[NDArray[np.bool_], NDArray[np.bool_]]] = field(default_factory=dict)
    columns: dict[str, object] = field(default_factory=dict)  # attribute: what `attributes.column` found
    held: dict[Resources, int] = field(default_factory=dict)  # with accelerators: how many tasks hold that

    @classmethod
    def of(cls, machines: Sequence[MachineSpec], closed: Iterable[str] = ()) -> Fleet:
        """Return an empty fleet of these machines, one row each, in their order."""
        n, g = len(machines), max((len(m.accelerators) for m in machines), default=0)
        types: dict[str, int] = {}
        fleet = cls(
            names=[m.name for m in machines],
            specs=list(machines),
            rows={m.name: row for row, m in enumerate(machines)},
            types=[],
            capacity_NR=np.zeros((n, 2), np.int64),
            used_NR=np.zeros((n, 2), np.int64),
            leaving_NR=np.zeros((n, 2), np.int64),
            gpu_capacity_NG=np.zeros((n, g), np.int64),
            gpu_used_NG=np.zeros((n, g), np.int64),
            gpu_leaving_NG=np.zeros((n, g), np.int64),
            gpu_type_NG=np.full((n, g), -1, np.int32),
            open_N=np.ones(n, np.bool_),
        )
        for row, machine in enumerate(machines):
            fleet.capacity_NR[row] = machine.capacity.cpu_millis, machine.capacity.memory_bytes
            fleet.accelerator_at.append({a.index: at for at, a in enumerate(machine.accelerators)})
            each = min(GPU, machine.capacity.gpu_millis) if machine.host else GPU
            for at, accelerator in enumerate(machine.accelerators):
                fleet.gpu_capacity_NG[row, at] = each
                fleet.gpu_type_NG[row, at] = types.setdefault(accelerator.type, len(types))
        fleet.types = list(types)
        fleet.close(name for name in closed if name in fleet.rows)
        return fleet

    def close(self, names: Iterable[str]) -> None:
        """Let these rows take no new work, and all others."""
        self.open_N = np.ones(len(self.names), np.bool_)
        for name in names:
            self.open_N[self.rows[name]] = False

    def copy(self) -> Fleet:
        """Return a fleet that can be written to; names, specs and capacities are shared."""
        return Fleet(
            self.names,
            self.specs,
            self.rows,
            self.types,
            self.capacity_NR,
            self.used_NR.copy(),
            self.leaving_NR.copy(),
            self.gpu_capacity_NG,
            self.gpu_used_NG.copy(),
            self.gpu_leaving_NG.copy(),
            self.gpu_type_NG,
            self.open_N,
            self.accelerator_at,
            self.ranks,
            self.type_masks,
            self.columns,
            self.held.copy(),
        )

    def rank_N(self, seed: int) -> Ints:
        """Return each row's place among rows that are equally good; seed 0: in order of their names."""
        known = self.ranks.get(seed)
        if known is None or len(known) != len(self.names):
            keys = [(zlib.crc32(f"{seed}:{name}".encode()) if seed else 0, name) for name in self.names]
            order = sorted(range(len(keys)), key=keys.__getitem__)
            known = self.ranks[seed] = np.empty(len(order), np.int64)
            known[order] = np.arange(len(order))
        return known

    def occupy(self, row: int, resources: Resources, accelerators: Sequence[int] = ()) -> None:
        """A task holds ``resources`` of a row, on these devices."""
        self._count(resources, 1)
        self._add(self.used_NR, self.gpu_used_NG, row, resources, accelerators, 1)

    def vacate(self, row: int, resources: Resources, accelerators: Sequence[int] = ()) -> None:
        """A task holds them no longer."""
        self._count(resources, -1)
        self._add(self.used_NR, self.gpu_used_NG, row, resources, accelerators, -1)

    def leave(self, row: int, resources: Resources, accelerators: Sequence[int] = ()) -> None:
        """A task that holds them was told to leave: they count as used, and as free in the future."""
        self._add(self.leaving_NR, self.gpu_leaving_NG, row, resources, accelerators, 1)

    def left(self, row: int, resources: Resources, accelerators: Sequence[int] = ()) -> None:
        """A task that was told to leave is gone; ``vacate`` is said beside it."""
        self._add(self.leaving_NR, self.gpu_leaving_NG, row, resources, accelerators, -1)

    def _count(self, resources: Resources, sign: int) -> None:
        if resources.gpu_millis:
            number = self.held.get(resources, 0) + sign
            if number:
                self.held[resources] = number
            else:
                del self.held[resources]

    def _add(
        self,
        columns_NR: Ints,
        gpus_NG: Ints,
        row: int,
        resources: Resources,
        accelerators: Sequence[int],
        sign: int,
    ) -> None:
        columns_NR[row, CPU] += sign * resources.cpu_millis
        columns_NR[row, MEMORY] += sign * resources.memory_bytes
        for index in accelerators:
            gpus_NG[row, self.accelerator_at[row][index]] += sign * min(GPU, resources.gpu_millis)
