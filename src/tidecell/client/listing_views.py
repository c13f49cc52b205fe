"""What the API answers about lists that people look through: who asks, schedules, allocs."""

from __future__ import annotations

import msgspec

from tidecell.structs.job import TaskState
from tidecell.structs.resources import Resources


class Me(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who asks: the user whose token came with the call.

    Attributes:
        team: Whose jobs a member may change; empty: of any team, if the role may change jobs at all.
        expires_s: When the token ends to be accepted; 0: never.
    """

    name: str
    role: str
    team: str = ""
    expires_s: float = 0.0


class ScheduledRun(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run that a schedule started.

    Attributes:
        target_s: When it was due.
    """

    uid: str
    name: str
    state: TaskState
    target_s: float
    started_s: float = 0.0
    finished_s: float = 0.0
    message: str = ""


class ScheduleStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job that starts runs again and again.

    Attributes:
        overlap: If a run is still going: skip the new one, queue it, or replace the old one.
        catch_up: Of firings that were missed: start none, the last or all.
        held: It does not fire until it is released.
        stopping: It was told to stop.
        next: The next firings, in seconds since the epoch; empty while it is held.
        due: Firings that wait for the run before them to end.
        runs: Those that are remembered, the newest first.
    """

    uid: str
    name: str
    cron: str
    timezone: str
    overlap: str
    catch_up: str
    priority: str
    team: str = ""
    user: str = ""
    held: bool = False
    stopping: bool = False
    next: tuple[float, ...] = ()
    due: tuple[float, ...] = ()
    runs: tuple[ScheduledRun, ...] = ()


class Inside(msgspec.Struct, frozen=True, omit_defaults=True):
    """A task in an envelope, and what it holds of it."""

    uid: str
    job: str
    index: int
    state: TaskState
    resources: Resources
    leaving: bool = False


class EnvelopeStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One envelope of an alloc.

    Attributes:
        machine: Where it is; empty: it waits for room.
        room: What it holds.
        free: What nobody in it uses.
    """

    name: str
    state: TaskState
    machine: str = ""
    room: Resources = Resources()
    free: Resources = Resources()
    leaving: bool = False
    inside: tuple[Inside, ...] = ()


class AllocStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A reservation that jobs enter and leave.

    Attributes:
        ends_by_s: When its ``max_duration`` is over; 0: it has none, or has not begun.
        waiting: Names of its jobs of which something waits to enter.
        detail: What the alloc itself waits for.
    """

    uid: str
    name: str
    priority: str
    team: str = ""
    user: str = ""
    stopping: bool = False
    ends_by_s: float = 0.0
    envelopes: tuple[EnvelopeStatus, ...] = ()
    waiting: tuple[str, ...] = ()
    detail: str = ""
