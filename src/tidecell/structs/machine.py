"""Machines: capacity, attributes, health."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from tidecell.structs.resources import Resources


class Accelerator(msgspec.Struct, frozen=True, omit_defaults=True):
    """One accelerator of a machine."""

    index: int
    type: str
    memory_bytes: int = 0
    uuid: str = ""


class MachineSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a machine's agent reports about it.

    Attributes:
        name: Unique in the cell.
        capacity: What tasks may reserve.
        accelerators: One entry per accelerator; ``capacity.gpu_millis`` is 1000 for each.
        attributes: Free key-value pairs, for example ``rack``.
        isolation: How limits are enforced: ``cgroup-v2``, or ``rlimit+measure``.
        address: Where its services are reached.
        holds: Datasets and packages that are on it already.
        host: The machine that it is a part of, where it is an alloc's envelope; empty: a machine itself.
        sharing: How shares of an accelerator are kept: ``mps``, ``mig``, ``accounted only``; empty: unknown.
    """

    name: str
    capacity: Resources
    accelerators: tuple[Accelerator, ...] = ()
    attributes: dict[str, str] = {}
    isolation: str = ""
    address: str = "127.0.0.1"
    holds: tuple[str, ...] = ()
    sharing: str = ""
    host: str = ""

    @property
    def alloc(self) -> str:
        """The alloc whose envelope it is; empty: a machine, open to jobs that name no alloc."""
        return self.name.rpartition("/")[0] if self.host else ""

    def envelope(self, name: str, capacity: Resources, devices: Collection[int]) -> MachineSpec:
        """Return the part of this machine that an alloc has reserved, as a machine."""
        mine = tuple(a for a in self.accelerators if a.index in devices)
        return msgspec.structs.replace(self, name=name, capacity=capacity, accelerators=mine, host=self.name)

    def has_type(self, accelerator_type: str) -> bool:
        """Return whether it has accelerators of this type; an empty type is any, names match on a part."""
        if not accelerator_type:
            return True
        wanted = accelerator_type.lower()
        return any(wanted in a.type.lower() for a in self.accelerators)
