"""What the control plane and a machine's agent say to each other: one JSON object per line, tagged.

The same socket serves tasks, whose lines carry ``type`` as docs/task-contract.md says; the first line
of a connection tells which of the two it is.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import StartTask, StopTask, TaskDown, TaskRef, TaskUp


class Attach(msgspec.Struct, frozen=True, tag="attach"):
    """First line of a control plane; a lower epoch than the last is refused."""

    epoch: int


class Do(msgspec.Struct, frozen=True, tag="do"):
    """Carry out a command."""

    command: StartTask | StopTask


class Ack(msgspec.Struct, frozen=True, tag="ack"):
    """Events up to ``seq`` are durable."""

    seq: int


class Supervise(msgspec.Struct, frozen=True, tag="supervise"):
    """Keep one of the cell's own processes running.

    Attributes:
        listen: Host and port that the agent listens on for it, restarts included: the process gets the
            socket as its standard input, ``--listen-fd 0`` being added to its arguments. Port 0: none.
    """

    name: str
    argv: tuple[str, ...]
    listen: tuple[str, int] = ("", 0)


class Shutdown(msgspec.Struct, frozen=True, tag="shutdown"):
    """End all tasks and all of the cell's processes, then the agent."""

    grace_s: float = 10.0


ToAgent = Attach | Do | Ack | Supervise | Shutdown


class Attached(msgspec.Struct, frozen=True, tag="attached"):
    """Answer to Attach: what the machine is and which task starts the agent knows."""

    machine: MachineSpec
    running: tuple[TaskRef, ...]


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    """Answer to Attach from a control plane that was replaced."""

    epoch: int


class Happened(msgspec.Struct, frozen=True, tag="happened"):
    """An event; repeated after a reconnect until acknowledged."""

    seq: int
    body: TaskUp | TaskDown


class Reported(msgspec.Struct, frozen=True, tag="reported"):
    """Numbers that a task reported; never repeated."""

    ref: TaskRef
    at_s: float
    data: dict[str, Any]


class TaskUse(msgspec.Struct, frozen=True):
    """Use of one task's processes together."""

    ref: TaskRef
    cpu_s: float
    memory_bytes: int


class Used(msgspec.Struct, frozen=True, tag="used"):
    """What tasks use; sent about once a second while there are tasks.

    Attributes:
        machine: Whose.
        gpu_percents: How busy each of its accelerators is, by index; what cannot be measured is not there.
    """

    at_s: float
    tasks: tuple[TaskUse, ...]
    machine: str = ""
    gpu_percents: dict[int, int] = {}


class Interrupted(msgspec.Struct, frozen=True, tag="interrupted"):
    """The machine will be taken away at ``deadline_s``, seconds since the epoch."""

    machine: str
    deadline_s: float


FromAgent = Attached | Refused | Happened | Reported | Used | Interrupted
