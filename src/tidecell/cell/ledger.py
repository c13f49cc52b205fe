"""What a plan under verification adds to what the state says, machine by machine. Pure.

Only machines that the plan names are looked at. Nothing of the state is changed: the events that come of
the plan do that.
"""

from __future__ import annotations

from collections.abc import Iterable, Set

from tidecell.cell.allocs import find_row
from tidecell.cell.index import Key, Sum
from tidecell.cell.records import CellState
from tidecell.scheduler.attributes import unmet
from tidecell.structs.job import JobSpec
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Claim, Placement
from tidecell.structs.resources import GPU, Resources


class Ledger:
    """The machines as they will be when what was verified so far is done.

    Attributes:
        dropped: Tasks for which nothing is held any more.
        leaving: Tasks that this plan tells to leave.
        num_leaving: How many of those, by uid.
        closed: Machines that take no new work.
    """

    def __init__(self, state: CellState) -> None:
        self.dropped: set[Key] = set()
        self.leaving: set[Key] = set()
        self.num_leaving: dict[str, int] = {}
        self.closed: frozenset[str] = frozenset()
        self._state = state
        self._used: dict[str, Sum] = {}
        self._freed: dict[str, Sum] = {}
        self._claims: dict[str, list[Claim]] = {}

    # ---------------------------------------------------------------------------- placements

    def meets(self, spec: JobSpec, placement: Placement) -> bool:
        """Return whether the machine meets the job's constraints and has what was asked for where it is."""
        machine = self._row(placement.machine)
        if machine is None or machine.alloc != spec.alloc:
            return False
        wanted = spec.shapes[placement.shape].accelerator_type.lower()
        if wanted and placement.accelerators:
            types = {a.index: a.type.lower() for a in machine.accelerators}
            if not all(wanted in types.get(i, "") for i in placement.accelerators):
                return False
        return not spec.constraints or unmet(spec, machine) is None

    def take(self, placement: Placement, mine: Set[Key]) -> bool:
        """Use what a placement asks for, if it is free and not held for others than ``mine``."""
        name = placement.machine
        machine = self._row(name)
        if machine is None:
            return False
        wanted, used = placement.resources, self._sum(name)
        held = self._held(name, mine)
        if not _fits(used, held, wanted, machine.capacity):
            return False
        if not _devices_free(used.devices, placement, {a.index for a in machine.accelerators}):
            return False
        used.add(wanted, placement.accelerators, 1)
        return True

    def give_back(self, placements: Iterable[Placement]) -> None:
        """Undo ``take``."""
        for placement in placements:
            self._sum(placement.machine).add(placement.resources, placement.accelerators, -1)

    def _row(self, name: str) -> MachineSpec | None:
        """Return a machine, or an alloc's envelope, that takes new work."""
        row = find_row(self._state, name)
        return None if row is None or name in self.closed or row.host in self.closed else row

    def _sum(self, name: str) -> Sum:
        used = self._used.get(name)
        if used is None:
            used = self._used[name] = self._state.index.load(name).used.copy()
        return used

    def _held(self, name: str, mine: Set[Key]) -> Sum | None:
        """Return what is held on a machine for others; None: nothing."""
        claims = self._state.index.load(name).claims
        if not claims and name not in self._claims:
            return None
        held = Sum()
        for key, claim in claims.items():
            if key not in mine and key not in self.dropped:
                held.add(claim.resources, (), 1)
        for claim in self._claims.get(name, ()):
            if (claim.uid, claim.index) not in mine:
                held.add(claim.resources, (), 1)
        return held

    # ------------------------------------------------------------------------------ removals

    def leave(self, key: Key) -> None:
        """Count what a task holds as free in the future."""
        holding = self._state.index.holdings[key]
        self.leaving.add(key)
        self.num_leaving[key[0]] = self.num_leaving.get(key[0], 0) + 1
        self._freed.setdefault(holding.row, Sum()).add(holding.resources, holding.accelerators, 1)

    def stay(self, key: Key) -> None:
        """Undo ``leave``."""
        holding = self._state.index.holdings[key]
        self.leaving.discard(key)
        self.num_leaving[key[0]] -= 1
        self._freed[holding.row].add(holding.resources, holding.accelerators, -1)

    def claim(self, uid: str, claims: list[Claim]) -> bool:
        """Hold what is claimed, if it is free or will be when those that leave have left."""
        mine = {(uid, claim.index) for claim in claims}
        wanted: dict[str, Sum] = {}
        for claim in claims:
            wanted.setdefault(claim.machine, Sum()).add(claim.resources, (), 1)
        if not all(self._will_hold(name, total.resources, mine) for name, total in wanted.items()):
            return False
        for claim in claims:
            self._claims.setdefault(claim.machine, []).append(claim)
        return True

    def _will_hold(self, name: str, wanted: Resources, mine: Set[Key]) -> bool:
        machine = self._row(name)
        if machine is None:
            return False
        rest = self._sum(name).copy()
        for leaving in (self._state.index.load(name).leaving, self._freed.get(name)):
            if leaving is not None:
                rest.add(leaving.resources, (), -1)
        return _fits(rest, self._held(name, mine), wanted, machine.capacity)


def _fits(used: Sum, held: Sum | None, wanted: Resources, capacity: Resources) -> bool:
    if held is None:
        return (
            used.cpu_millis + wanted.cpu_millis <= capacity.cpu_millis
            and used.memory_bytes + wanted.memory_bytes <= capacity.memory_bytes
            and used.gpu_millis + wanted.gpu_millis <= capacity.gpu_millis
        )
    return (used.resources + held.resources + wanted).fits(capacity)


def _devices_free(used: dict[int, int], placement: Placement, there: Iterable[int]) -> bool:
    """Whether a placement names as many devices as it needs, all there, different, and free enough."""
    devices, wanted = placement.accelerators, placement.resources
    if not devices and not wanted.gpu_millis:
        return True
    if len(devices) != wanted.num_accelerators or len(set(devices)) < len(devices):
        return False
    each = min(GPU, wanted.gpu_millis)
    return all(device in there and used.get(device, 0) + each <= GPU for device in devices)
