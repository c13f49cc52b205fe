"""What all messages share: the bases of inputs, events and commands, and the name of a task's start.

Nothing in a message can refer back to it, so the cyclic collector need not walk them (``gc=False``, here and
for the other values of which there are as many as tasks); it took a fifth of a large, busy cell's time.
"""

from __future__ import annotations

import msgspec


class TaskRef(msgspec.Struct, frozen=True, order=True, gc=False):
    """Names one start of one task: run, index, fencing epoch."""

    uid: str
    index: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.uid}/{self.index}@{self.epoch}"


class Input(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    """Base of all inputs."""


class Event(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    """Base of all events."""


class Command(msgspec.Struct, frozen=True, tag=True, omit_defaults=True, gc=False):
    """Base of all commands."""
