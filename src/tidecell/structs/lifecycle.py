"""Messages about changed specs, rolling updates and drains.

A job's spec has numbered **versions**. The **program** of a version is the number of the version that
first asked for what a task must be started again for; tasks whose program is not the job's are outdated.
A **slot** is an index at which a replica may run. An update or a drain opens one beyond the wanted
number, lets the new replica become ready, and closes the slot of the old one.
"""

from __future__ import annotations

import msgspec

from tidecell.structs.job import JobSpec
from tidecell.structs.message_base import Command, Event, Input, TaskRef
from tidecell.structs.resources import Resources


class SpecChanged(Input, frozen=True, tag=True):
    """Somebody wants a live job to have this spec; what may change in place does, the rest is rolled out.

    Attributes:
        in_use: Bytes of memory that replicas were last seen to use, by index.
        restart: Replicas may be started again for it; else it is refused where they would have to be.
    """

    spec: JobSpec
    who: str = ""
    in_use: dict[int, int] = msgspec.field(default_factory=dict)
    restart: bool = True


class RollbackRequested(Input, frozen=True, tag=True):
    """Somebody wants an earlier version back; 0: the last one that was healthy."""

    name: str
    version: int = 0
    who: str = ""
    in_use: dict[int, int] = msgspec.field(default_factory=dict)


class PromoteRequested(Input, frozen=True, tag=True):
    """Somebody found the canaries good, or wants a halted update to go on."""

    name: str
    who: str = ""


class DrainRequested(Input, frozen=True, tag=True):
    """Somebody wants a machine emptied from ``start_s`` on and empty by ``deadline_s``, or no longer."""

    machine: str
    start_s: float = 0.0
    deadline_s: float = 0.0
    cancel: bool = False
    who: str = ""


class TaskUnhealthy(Input, frozen=True, tag=True):
    """A liveness probe failed too often: the replica does not answer any more."""

    ref: TaskRef


class JobIdle(Input, frozen=True, tag=True):
    """The accelerators of a job did nothing for as long as its spec allows."""

    uid: str


LifecycleInput = TaskUnhealthy | JobIdle | SpecChanged | RollbackRequested | PromoteRequested | DrainRequested


class Resize(msgspec.Struct, frozen=True):
    """A running replica holds ``resources`` from now on, where it is and as it runs."""

    index: int
    resources: Resources


class JobRevised(Event, frozen=True, tag=True):
    """A job has a new version.

    Attributes:
        program: Number of the version whose program this one has.
        needs: Runs that its ``after`` means, by name.
        rolls: Tasks are started again for it.
        revert_to: Version to go back to if it does not become healthy; 0: none.
        canary: Replicas of the new version that wait for ``tide promote``.
        resized: Replicas that run on with more or less of their machine.
    """

    uid: str
    version: int
    program: int
    spec: JobSpec
    who: str = ""
    why: str = ""
    needs: dict[str, str] = msgspec.field(default_factory=dict)
    rolls: bool = False
    revert_to: int = 0
    canary: int = 0
    resized: tuple[Resize, ...] = ()


class RolloutPromoted(Event, frozen=True, tag=True):
    """The update goes on over all replicas."""

    uid: str
    who: str = ""


class RolloutAdvanced(Event, frozen=True, tag=True):
    """So many replicas of the new version are healthy; since when the slowest of the others is tried."""

    uid: str
    healthy: int
    trying_s: float = 0.0


class RolloutHalted(Event, frozen=True, tag=True):
    """The new version does not become healthy; nothing more is taken for it."""

    uid: str
    message: str


class RolloutFinished(Event, frozen=True, tag=True):
    """Every wanted replica runs the new version, or was skipped."""

    uid: str
    version: int
    skipped: int = 0


class SlotOpened(Event, frozen=True, tag=True):
    """One more replica is wanted, at this index, to stand in for another."""

    uid: str
    index: int
    why: str = ""


class SlotClosed(Event, frozen=True, tag=True):
    """No replica is wanted at this index any more: another stands in."""

    uid: str
    index: int


class MachineDraining(Event, frozen=True, tag=True):
    """A machine takes no new work from ``start_s`` on; what is left at ``deadline_s`` is ended."""

    name: str
    start_s: float
    deadline_s: float
    who: str = ""


class MachineDrained(Event, frozen=True, tag=True):
    """A draining machine holds no task any more."""

    name: str


class DrainCancelled(Event, frozen=True, tag=True):
    """A machine takes work again."""

    name: str
    who: str = ""


class MachineReleased(Event, frozen=True, tag=True):
    """A machine that was lost with many others did not come back in time; its tasks were given up."""

    name: str


LifecycleEvent = (
    MachineReleased
    | JobRevised
    | RolloutPromoted
    | RolloutAdvanced
    | RolloutHalted
    | RolloutFinished
    | SlotOpened
    | SlotClosed
    | MachineDraining
    | MachineDrained
    | DrainCancelled
)


class ResizeTask(Command, frozen=True, tag=True):
    """Hold a running task to other limits. Idempotent: the latest counts."""

    ref: TaskRef
    machine: str
    resources: Resources
