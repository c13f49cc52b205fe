"""The three nouns that move through a cell: inputs, events, commands.

- **Input**: what the outside tells us. Never journaled.
- **Event**: a fact we decided. Journaled, applied, replayed.
- **Command**: an effect we ask an engine for. Never journaled; reissued from the state after a restart.

All are tagged structs, so that a journal record and a line on the agent's socket read back to the
same type. Adding a field with a default keeps old journals readable; renaming one does not.
"""

from __future__ import annotations

import msgspec

from tidecell.structs.job import Cause, JobSpec, Priority, Replicas, TaskState
from tidecell.structs.lifecycle import LifecycleEvent, LifecycleInput, ResizeTask
from tidecell.structs.machine import MachineSpec
from tidecell.structs.message_base import Command as Command
from tidecell.structs.message_base import Event as Event
from tidecell.structs.message_base import Input as Input
from tidecell.structs.message_base import TaskRef as TaskRef
from tidecell.structs.resources import Resources
from tidecell.structs.routing_messages import RoutingEvent, RoutingInput
from tidecell.structs.tenant import Policy

# --------------------------------------------------------------------------------------------------
# Plans: what schedule() proposes, in terms the state machine verifies


class Placement(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Start this task on this machine.

    Attributes:
        resources: What it is granted: its request in the job's shape ``shape``.
        machine: Its name, or an alloc's envelope: ``alloc/index``.
    """

    uid: str
    index: int
    machine: str
    accelerators: tuple[int, ...] = ()
    resources: Resources = Resources()
    shape: int = 0


class Removal(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Tell this task to leave in favour of ``by``; ``new_size`` replicas of its job remain."""

    uid: str
    index: int
    machine: str
    by: str
    new_size: int


class Claim(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Capacity of ``machine``, and these devices, are held for this task until it starts or withdraws."""

    uid: str
    index: int
    machine: str
    resources: Resources
    accelerators: tuple[int, ...] = ()


class Plan(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to do now; ``gang_of`` groups placements that hold together or not at all."""

    placements: tuple[Placement, ...] = ()
    removals: tuple[Removal, ...] = ()
    claims: tuple[Claim, ...] = ()
    withdrawals: tuple[tuple[str, int], ...] = ()

    def is_empty(self) -> bool:
        """Return whether there is nothing to do."""
        return not (self.placements or self.removals or self.claims or self.withdrawals)


# --------------------------------------------------------------------------------------------------
# Inputs


class ControlStarted(Input, frozen=True, tag=True):
    """A control plane took the cell over; every later start carries a higher epoch."""


class JobSubmitted(Input, frozen=True, tag=True):
    """Somebody asks for a job."""

    spec: JobSpec
    who: str = ""


class JobChanged(Input, frozen=True, tag=True):
    """Somebody changes a live job in place; None leaves a field as it is."""

    name: str
    replicas: Replicas | None = None
    priority: Priority | None = None


class JobStopRequested(Input, frozen=True, tag=True):
    """Somebody stops a job.

    Attributes:
        immediately: Skip the grace period.
        force: Stop an alloc with all jobs in it.
    """

    name: str
    immediately: bool = False
    force: bool = False


class JobHoldRequested(Input, frozen=True, tag=True):
    """Somebody holds a job back (its waiting replicas do not start), or releases it."""

    name: str
    hold: bool = True


class DesiredProposed(Input, frozen=True, tag=True):
    """An autoscaler wants this many replicas of a service."""

    uid: str
    desired: int
    why: str = ""


class MachineSeen(Input, frozen=True, tag=True):
    """A machine's agent attached: what the machine is, and the tasks that the agent knows to live."""

    spec: MachineSpec
    running: tuple[TaskRef, ...] = ()


class MachineLost(Input, frozen=True, tag=True):
    """A machine went away with all it ran."""

    name: str


class TaskUp(Input, frozen=True, tag=True):
    """The engine started the process."""

    ref: TaskRef
    machine: str
    pid: int = 0
    port: int = 0
    agent_seq: int = 0


class TaskDown(Input, frozen=True, tag=True):
    """The process ended, or could not be started (``error``).

    ``completed``: it was told to leave but had finished its work instead (exit 0 without ``released``).
    ``lost``: nobody knows how it ended.
    """

    ref: TaskRef
    machine: str
    exit_code: int = 0
    error: str = ""
    out_of_memory: bool = False
    lost: bool = False
    completed: bool = False
    agent_seq: int = 0


class TaskProbed(Input, frozen=True, tag=True):
    """A readiness probe changed its verdict."""

    ref: TaskRef
    ready: bool


class ReplicaDrained(Input, frozen=True, tag=True):
    """The router has nothing in flight on this replica any more."""

    ref: TaskRef


class PlanProposed(Input, frozen=True, tag=True):
    """The scheduler's plan; verified against the state as it is now."""

    plan: Plan


class PolicyProposed(Input, frozen=True, tag=True):
    """Somebody sets teams, quotas and prices; None takes them all away."""

    policy: Policy | None = None


class Tick(Input, frozen=True, tag=True):
    """Time passed."""


AnyInput = (
    ControlStarted
    | JobSubmitted
    | JobChanged
    | JobStopRequested
    | JobHoldRequested
    | DesiredProposed
    | MachineSeen
    | MachineLost
    | TaskUp
    | TaskDown
    | TaskProbed
    | ReplicaDrained
    | PlanProposed
    | PolicyProposed
    | Tick
    | LifecycleInput
    | RoutingInput
)

# --------------------------------------------------------------------------------------------------
# Events


class CellOpened(Event, frozen=True, tag=True):
    """A control plane took over."""

    epoch: int


class MachineJoined(Event, frozen=True, tag=True):
    """A machine is part of the cell, or is back, or has changed."""

    spec: MachineSpec


class MachineGone(Event, frozen=True, tag=True):
    """A machine is not reached any more.

    ``release_s``: lost with many others; its tasks are given up then, unless it comes back. 0: at once.
    """

    name: str
    release_s: float = 0.0


class PolicySet(Event, frozen=True, tag=True):
    """Teams, quotas and prices are these from now on; None: everything is allowed."""

    policy: Policy | None = None


class JobAccepted(Event, frozen=True, tag=True):
    """A job was admitted and has an identity; ``needs``: the runs that its ``after`` means, by name.

    A schedule's run names its ``parent`` and when it was due.
    """

    uid: str
    spec: JobSpec
    needs: dict[str, str] = msgspec.field(default_factory=dict)
    who: str = ""
    parent: str = ""
    target_s: float = 0.0


class JobHeld(Event, frozen=True, tag=True):
    """Replicas of a job that wait do not start; a schedule does not fire."""

    uid: str


class JobReleased(Event, frozen=True, tag=True):
    """A job is no longer held back, nor by its begin time."""

    uid: str


class ScheduleDecided(Event, frozen=True, tag=True):
    """Firings of a schedule up to ``through_s`` are decided: ``due`` is what it now owes runs for.

    ``skipped`` firings were let go, and why.
    """

    uid: str
    through_s: float
    due: tuple[float, ...] = ()
    skipped: int = 0
    why: str = ""


class JobRescaled(Event, frozen=True, tag=True):
    """A job's replicas were changed by somebody."""

    uid: str
    replicas: Replicas


class JobReprioritized(Event, frozen=True, tag=True):
    """A job's priority was changed."""

    uid: str
    priority: Priority


class JobDesired(Event, frozen=True, tag=True):
    """A service's wanted number of replicas changed."""

    uid: str
    desired: int
    why: str = ""


class JobStopping(Event, frozen=True, tag=True):
    """A job is on its way to ``then``; its tasks are told to leave."""

    uid: str
    then: TaskState
    cause: Cause
    message: str = ""
    exit_code: int = 0
    grace_s: float | None = None


class JobFinished(Event, frozen=True, tag=True):
    """A job reached a terminal state: exactly one such event a run."""

    uid: str
    state: TaskState
    exit_code: int = 0
    message: str = ""


class TaskPlaced(Event, frozen=True, tag=True):
    """A task was given a machine and an epoch."""

    ref: TaskRef
    attempt: int
    machine: str
    accelerators: tuple[int, ...] = ()
    resources: Resources = Resources()
    shape: int = 0
    envelope: str = ""


class TaskStarted(Event, frozen=True, tag=True):
    """Its process runs."""

    ref: TaskRef
    machine: str
    pid: int = 0
    port: int = 0
    agent_seq: int = 0


class TaskReadiness(Event, frozen=True, tag=True):
    """A replica became ready, or is no longer."""

    ref: TaskRef
    ready: bool


class TaskNoticed(Event, frozen=True, tag=True):
    """A task was told to leave: why, for whom, until when; ``new_size`` replicas remain.

    ``forced``: a drain's time is over, so the job's disruption budget no longer protects it.
    """

    ref: TaskRef
    cause: Cause
    deadline_s: float
    new_size: int = 0
    by: str = ""
    forced: bool = False


class TaskStopping(Event, frozen=True, tag=True):
    """A draining replica has nothing in flight, or its time is up: now the process is asked to end."""

    ref: TaskRef


class TaskEnded(Event, frozen=True, tag=True):
    """A start of a task is over; ``then`` is PENDING where it will run again, else terminal.

    ``failures`` counts those in a row, ``tried`` by cause, ``failed_on`` names the machines.
    """

    ref: TaskRef
    then: TaskState
    machine: str
    exit_code: int = 0
    cause: Cause | None = None
    message: str = ""
    not_before_s: float = 0.0
    failures: int = 0
    agent_seq: int = 0
    tried: dict[str, int] = msgspec.field(default_factory=dict)
    failed_on: tuple[str, ...] = ()


class Claimed(Event, frozen=True, tag=True):
    """Capacity is held for a task."""

    claim: Claim


class ClaimDropped(Event, frozen=True, tag=True):
    """The capacity is free for others again, or its beneficiary started."""

    uid: str
    index: int


AnyEvent = (
    CellOpened
    | MachineJoined
    | MachineGone
    | PolicySet
    | JobAccepted
    | JobHeld
    | JobReleased
    | ScheduleDecided
    | JobRescaled
    | JobReprioritized
    | JobDesired
    | JobStopping
    | JobFinished
    | TaskPlaced
    | TaskStarted
    | TaskReadiness
    | TaskNoticed
    | TaskStopping
    | TaskEnded
    | Claimed
    | ClaimDropped
    | LifecycleEvent
    | RoutingEvent
)

# --------------------------------------------------------------------------------------------------
# Commands


class StartTask(Command, frozen=True, tag=True):
    """Start a task's process."""

    ref: TaskRef
    machine: str
    attempt: int
    spec: JobSpec
    accelerators: tuple[int, ...] = ()
    num_replicas: int = 1
    resources: Resources = Resources()


class StopTask(Command, frozen=True, tag=True):
    """Notice, then SIGTERM, then SIGKILL of the whole group. Idempotent; the first deadline stays."""

    ref: TaskRef
    machine: str
    cause: Cause
    grace_s: float
    new_size: int = 0
    by: str = ""


AnyCommand = StartTask | StopTask | ResizeTask
