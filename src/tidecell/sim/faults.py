"""What goes wrong, how often, by seed: crashes at journal writes, a bad network, machines that vanish. Pure.

A crash is placed before a write, after it (durable, but no command was sent) or inside it: the batch is then
torn, and a prefix of it survives, as when the tail of a journal is cut off on opening. The classes of stale,
intermediate and unobserved states are those of Sieve (OSDI 2022).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from tidecell.cell.log import MemoryLog
from tidecell.structs.messages import Event


class Crash(Exception):
    """The control plane is gone at this very moment."""


class Mix(msgspec.Struct, frozen=True):
    """How often what goes wrong; rates are chances per occasion unless said otherwise.

    Attributes:
        crash: Per journal write.
        reorder: Messages from agents overtake one another and come late.
        duplicate: Per message from an agent.
        drop: Per message from an agent; agents repeat what was not acknowledged.
        reconnect_every_s: Mean time between broken connections of one agent; 0: never.
        machine_loss_every_s: Mean time between losses of a machine; 0: never.
        stale_plan: Per second, an old plan is proposed.
        clock_jump_every_s: Mean time between jumps of the control plane's clock; 0: never.
        hiccup: Per tick, the control plane sees nothing for some seconds (unobserved states).
    """

    name: str
    crash: float = 0.0
    reorder: bool = False
    duplicate: float = 0.0
    drop: float = 0.0
    reconnect_every_s: float = 0.0
    machine_loss_every_s: float = 0.0
    stale_plan: float = 0.0
    clock_jump_every_s: float = 0.0
    hiccup: float = 0.0


MIXES = {
    mix.name: mix
    for mix in (
        Mix("calm"),
        Mix("crash", crash=0.08),
        Mix("network", reorder=True, duplicate=0.2, drop=0.2, reconnect_every_s=40.0),
        Mix("machines", machine_loss_every_s=40.0, reconnect_every_s=60.0),
        Mix("stale", stale_plan=0.2, hiccup=0.05, clock_jump_every_s=40.0),
        Mix(
            "all",
            crash=0.03,
            reorder=True,
            duplicate=0.1,
            drop=0.1,
            reconnect_every_s=60.0,
            machine_loss_every_s=60.0,
            stale_plan=0.1,
            clock_jump_every_s=80.0,
            hiccup=0.03,
        ),
    )
}

CrashPoint = str  # "before", "after" or "torn"
CRASH_POINTS: tuple[CrashPoint, ...] = ("before", "after", "torn")


@dataclass
class CrashingLog(MemoryLog):
    """A journal in memory at whose writes the control plane may crash.

    Attributes:
        when: Asked at each write with its number (from 1); returns where to crash, or "" for no crash.
        rng: Chooses how much of a torn batch survives.
    """

    when: Callable[[int], CrashPoint] = lambda number: ""
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    num_writes: int = 0
    num_crashes: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def append(self, events: Sequence[Event], at_s: float) -> None:
        """Write a batch, or crash at it."""
        if not events:
            return
        self.num_writes += 1
        point = self.when(self.num_writes)
        if point == "torn":
            events = events[: self.rng.randrange(len(events))]
        if point != "before":
            super().append(events, at_s)
        if point:
            self.num_crashes += 1
            raise Crash(f"{point} write {self.num_writes}")


def random_crashes(rate: float, rng: random.Random) -> Callable[[int], CrashPoint]:
    """Return a decision that crashes at a share of all writes, at any of the three points."""

    def when(number: int) -> CrashPoint:
        return rng.choice(CRASH_POINTS) if rng.random() < rate else ""

    return when


def crash_at(number: int, point: CrashPoint) -> Callable[[int], CrashPoint]:
    """Return a decision that crashes once, at one write."""
    return lambda n: point if n == number else ""
