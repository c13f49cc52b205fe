"""What the API answers about accounting: who held how much, for how long, and what that costs."""

from __future__ import annotations

import msgspec


class UsageRow(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one group of work held over a time. Hours of a core, of an accelerator, of a GiB.

    Attributes:
        at_s: Where the time is cut into steps, when this one begins; else 0.
        cpu_hours: Reserved: what its tasks were granted, from placement to end.
        gpu_hours: Reserved accelerators, by the type of the devices.
        requested_cpu_hours: What its wanted replicas asked for, those that waited included.
        requested_gpu_hours: Likewise.
        used_cpu_hours: Measured, as far as samples were kept.
        waited_hours: Hours that wanted replicas waited.
        preemptions: How many of its tasks were told to give way.
        starts: How many of its tasks were placed.
        cost: By the prices of the policy; 0 where none are set.
    """

    team: str = ""
    band: str = ""
    job: str = ""
    user: str = ""
    at_s: float = 0.0
    cpu_hours: float = 0.0
    memory_gib_hours: float = 0.0
    gpu_hours: dict[str, float] = {}
    requested_cpu_hours: float = 0.0
    requested_gpu_hours: float = 0.0
    used_cpu_hours: float = 0.0
    used_memory_gib_hours: float = 0.0
    waited_hours: float = 0.0
    preemptions: int = 0
    starts: int = 0
    cost: float = 0.0

    @property
    def all_gpu_hours(self) -> float:
        """Accelerator hours of all types."""
        return sum(self.gpu_hours.values())


class UsageView(msgspec.Struct, frozen=True, omit_defaults=True):
    """Usage from ``since_s`` to ``until_s``, the largest first.

    ``by_day_until_s``: before then events are not kept and only whole days (UTC) are known; 0: all is.
    """

    since_s: float
    until_s: float
    rows: tuple[UsageRow, ...]
    currency: str = ""
    by_day_until_s: float = 0.0
