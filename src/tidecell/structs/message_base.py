"""What all messages share: the bases of inputs, events and commands, and the name of a task's start."""

from __future__ import annotations

import msgspec


class TaskRef(msgspec.Struct, frozen=True, order=True):
    """Names one start of one task: run, index, fencing epoch."""

    uid: str
    index: int
    epoch: int

    def __str__(self) -> str:
        return f"{self.uid}/{self.index}@{self.epoch}"


class Input(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all inputs."""


class Event(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all events."""


class Command(msgspec.Struct, frozen=True, tag=True, omit_defaults=True):
    """Base of all commands."""
