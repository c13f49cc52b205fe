"""What the API answers: typed views for the client, the command line and the console. Times are
seconds since the epoch, sizes bytes, cpu thousandths of a core."""

from __future__ import annotations

from typing import Any

import msgspec

from tidecell.structs.cron import Schedule
from tidecell.structs.job import Reason, Replicas, TaskState
from tidecell.structs.machine import Accelerator
from tidecell.structs.resources import Resources


class TaskStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One replica.

    Attributes:
        wanted: Whether it should run now; the others are above the desired number.
        leaving: Why it was told to leave (a cause), empty otherwise.
        cpu_millis: Measured use over the last seconds.
        envelope: The alloc's envelope that it is in: ``alloc/index``.
    """

    index: int
    state: TaskState
    attempt: int = 0
    wanted: bool = True
    machine: str = ""
    pid: int = 0
    port: int = 0
    ready: bool = False
    started_s: float = 0.0
    ended_s: float = 0.0
    leaving: str = ""
    leaving_by_s: float = 0.0
    exit_code: int | None = None
    message: str = ""
    cpu_millis: int = 0
    memory_bytes: int = 0
    accelerators: tuple[int, ...] = ()
    version: int = 1
    envelope: str = ""


class UpdateStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A new version on its way to all replicas.

    Attributes:
        phase: ``canary`` (its canaries start, or wait for ``tide promote``), ``rolling`` or ``halted``.
        healthy: Replicas of the new version that have been ready for long enough.
        old: Replicas that still run an older one.
        text: Where it stands, in words.
    """

    version: int
    phase: str
    healthy: int
    old: int
    text: str
    started_s: float = 0.0


class VersionView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of a job's spec.

    Attributes:
        changes: What differs from the version before it, one line each.
        stable: Its replicas became healthy.
        current: It is what the job should be now.
    """

    number: int
    at_s: float
    who: str = ""
    why: str = ""
    changes: tuple[str, ...] = ()
    stable: bool = False
    current: bool = False


class RollbackBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Which version to bring back; 0: the last healthy one before the newest."""

    version: int = 0


class DisruptionStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job's disruption budget, all causes counted together.

    Attributes:
        max_unavailable: As it was asked for: a number, or a percentage of the wanted replicas.
        down: Replicas that are missing or on their way out.
        spare: Replicas that may still be taken; negative: failures took more than the budget.
    """

    max_unavailable: str
    down: int = 0
    spare: int = 0


class WaitingStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why replicas of a job wait: all binding reasons, the decisive one first."""

    reasons: tuple[Reason, ...]
    detail: str = ""
    num_tasks: int = 0


class ArrayStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far an array is.

    Attributes:
        counts: Items by state; their sum is ``count``.
        failed: Indices of items that failed, the first hundred.
    """

    count: int
    parallel: int
    counts: dict[str, int]
    failed: tuple[int, ...] = ()


class JobStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run of a job.

    Attributes:
        running: Replicas that run and stay.
        desired: Replicas wanted now.
        message: How it ended, or what it waits for.
        endpoint: For a service, where the router serves it.
        last_event: For example ``PREEMPTED by chat``.
        next_s: When a schedule fires next; 0 while it is held back.
        runs: Names of a schedule's runs that are remembered, oldest first.
        parent: Of a schedule's run, the uid of the schedule.
        position: Its place in scheduling order among all that wait, from 1; 0: it waits for nothing.
        team_position: Its place among its own team's.
        tasks: Replicas; of an array only items that run, wait openly or failed.
        alloc: The alloc that it is in, or waits to enter.
        members: Of an alloc, the names of the jobs in it.
        free: Of an alloc, what nobody in it uses, by envelope.
        disruptions: How many more of its replicas may be taken; None: it sets no budget.
        last_used_s: Of a dev session, when it was last used, as far as its session told; 0: not known.
        idle_timeout_s: Of a dev session, after how long without use it ends; 0: never for that.
    """

    uid: str
    name: str
    kind: str
    state: TaskState
    priority: str
    band: str
    replicas: Replicas
    desired: int
    running: int
    ready: int
    submitted_s: float
    resources: Resources
    started_s: float = 0.0
    finished_s: float = 0.0
    exit_code: int = 0
    message: str = ""
    stopping: str = ""
    waiting: WaitingStatus | None = None
    tasks: tuple[TaskStatus, ...] = ()
    command: str = ""
    workdir: str = ""
    models: tuple[str, ...] = ()
    endpoint: str = ""
    desired_why: str = ""
    last_event: str = ""
    labels: dict[str, str] = {}
    team: str = ""
    position: int = 0
    team_position: int = 0
    version: int = 1
    update: UpdateStatus | None = None
    array: ArrayStatus | None = None
    held: bool = False
    begin_s: float = 0.0
    schedule: Schedule | None = None
    next_s: float = 0.0
    runs: tuple[str, ...] = ()
    parent: str = ""
    alloc: str = ""
    members: tuple[str, ...] = ()
    free: dict[str, Resources] = {}
    disruptions: DisruptionStatus | None = None
    last_used_s: float = 0.0
    idle_timeout_s: float = 0.0

    @property
    def ready_replicas(self) -> int:
        """Replicas that are ready to serve."""
        return self.ready

    @property
    def done(self) -> bool:
        """Whether it has an outcome."""
        return self.state in (TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT)


class DrainBody(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How to empty a machine.

    Attributes:
        deadline_s: Seconds from the start after which what is left is ended.
        start_s: When it begins, seconds since the epoch; 0: now.
        cancel: Take the machine's drain back instead.
    """

    deadline_s: float = 600.0
    start_s: float = 0.0
    cancel: bool = False


class DrainStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """A machine that is emptied: from when, until when, for whom; ``drained`` once it holds no task."""

    start_s: float
    deadline_s: float
    text: str
    who: str = ""
    drained: bool = False


class MachineStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One machine: what it has, what is reserved, what is really used.

    ``held_until_s``: it was lost with many others; until then what it ran is not started elsewhere.
    """

    name: str
    up: bool
    capacity: Resources
    reserved: Resources
    free: Resources
    isolation: str
    num_tasks: int = 0
    cpu_used_millis: int = 0
    memory_used_bytes: int = 0
    accelerators: tuple[Accelerator, ...] = ()
    attributes: dict[str, str] = {}
    drain: DrainStatus | None = None
    held_until_s: float = 0.0
    sharing: str = ""
    holds: tuple[str, ...] = ()


class Report(msgspec.Struct, frozen=True):
    """Numbers that a replica reported, numbered in order of arrival."""

    seq: int
    uid: str
    index: int
    at_s: float
    data: dict[str, Any]


class EventView(msgspec.Struct, frozen=True, omit_defaults=True):
    """One journaled event in readable form."""

    seq: int
    at_s: float
    type: str
    job: str = ""
    text: str = ""
    body: dict[str, Any] = {}


class CellStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cell itself.

    Attributes:
        journal_seq: Number of the newest event.
        journal_since_s: When the oldest event happened that is kept; 0: there is none.
        keep_events_s: For how long events are kept; 0: for ever.
        num_live: Jobs without an outcome.
        num_waiting: Those of them of which something waits.
    """

    version: str
    epoch: int
    started_s: float
    home: str
    control_url: str
    router_url: str
    router_up: bool
    agent_up: bool
    journal_seq: int
    isolation: str = ""
    repair: str = ""
    pid: int = 0
    num_live: int = 0
    num_waiting: int = 0
    journal_bytes: int = 0
    journal_since_s: float = 0.0
    keep_events_s: float = 0.0


class PlannedPlacement(msgspec.Struct, frozen=True):
    """A replica that would start now."""

    job: str
    index: int
    machine: str


class PlannedVictim(msgspec.Struct, frozen=True):
    """A replica that would be told to leave, and what that costs its job."""

    job: str
    index: int
    machine: str
    action: str  # shrink | evict
    new_size: int
    loses: str


class PlannedWait(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job that would wait (after preemption, or for longer), and why."""

    job: str
    reasons: tuple[Reason, ...]
    detail: str
    num_tasks: int = 1


class PlanView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `tide plan` shows: the same scheduler on a snapshot, nothing committed.

    Attributes:
        changes: One line for each job of the file: ``create train``, ``unchanged chat``, ...
        starts: Whether every new job's gang would start now, or as soon as its victims have left.
        seq: Number of the newest event in the snapshot that was asked; 0: not told.
    """

    changes: tuple[str, ...]
    starts: bool
    placements: tuple[PlannedPlacement, ...] = ()
    victims: tuple[PlannedVictim, ...] = ()
    waits: tuple[PlannedWait, ...] = ()
    seq: int = 0


class Holder(msgspec.Struct, frozen=True, omit_defaults=True):
    """Who holds what a waiting job needs."""

    job: str
    priority: str
    machine: str
    num_tasks: int
    resources: Resources
    running_s: float = 0.0
    leaving: bool = False
    ends_by_s: float = 0.0
    team: str = ""


class Fix(msgspec.Struct, frozen=True, omit_defaults=True):
    """A change that would let it start now; tried on the snapshot, so it works.

    Attributes:
        change: For people, for example ``replicas.min 8 -> 3``.
        command: What to type, empty where there is no single command.
        effect: What else happens, for example who is shrunk.
    """

    change: str
    command: str = ""
    effect: str = ""


class StartRange(msgspec.Struct, frozen=True):
    """When a waiting job starts.

    Attributes:
        expected_s: As likely before as after; None: more than half of the waits to compare with go on.
        latest_s: None: no end can be named at this rate; it starts at ``earliest_s`` or later.
        rate: Share of starts that such ranges hold, 0 to 1; 0: not known, the range is a guess from futures.
        num_cases: How many past waits it rests on; without a rate, how many futures.
    """

    earliest_s: float
    expected_s: float | None
    latest_s: float | None
    rate: float
    num_cases: int


class WhyView(msgspec.Struct, frozen=True, omit_defaults=True):
    """What `tide why` shows.

    Attributes:
        needs: What the waiting part asks for, in words.
        free_now: What is free, machine by machine, in words.
        expected_s: When it starts otherwise, at the latest; 0: unknown.
        expected_why: What that rests on.
        start_range: When it starts by what the cell remembers; None: not known.
        shrunk: For a running job that has fewer replicas than it could have: why, by whom.
        position: Its place in scheduling order among all that wait, from 1; 0: it waits for nothing.
        team_position: Its place among its own team's.
        seq: Number of the newest event in the snapshot that was asked; 0: not told.
    """

    name: str
    uid: str
    state: TaskState
    since_s: float
    reasons: tuple[Reason, ...] = ()
    detail: str = ""
    needs: str = ""
    free_now: str = ""
    holders: tuple[Holder, ...] = ()
    fixes: tuple[Fix, ...] = ()
    no_help: tuple[Fix, ...] = ()
    expected_s: float = 0.0
    expected_why: str = ""
    start_range: StartRange | None = None
    shrunk: str = ""
    message: str = ""
    position: int = 0
    num_waiting: int = 0
    team: str = ""
    team_position: int = 0
    seq: int = 0


class ServiceSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Load of one service at one moment, as the router measured it."""

    replicas: int = 0
    ready: int = 0
    desired: int = 0
    ongoing: float = 0.0
    queued: float = 0.0
    rate_per_s: float = 0.0
    requests_total: int = 0
    failed_total: int = 0
    latency_ms_p50: float = 0.0
    latency_ms_p95: float = 0.0
    ttft_ms_p95: float = 0.0


class TrainSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """Progress of one training, as it reported it."""

    step: int = 0
    num_steps: int = 0
    loss: float = 0.0
    tokens_per_s: float = 0.0
    world_size: int = 0


class JobSample(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one job holds and uses."""

    kind: str
    band: str
    replicas: int
    reserved_cpu_millis: int
    used_cpu_millis: int = 0
    memory_bytes: int = 0


class Sample(msgspec.Struct, frozen=True, omit_defaults=True):
    """The cell at one moment; one a second, the points of the tide chart.

    Attributes:
        capacity_cpu_millis: Of all machines that are up.
        reserved_by_band: Thousandths of a core reserved, by band word.
    """

    at_s: float
    capacity_cpu_millis: int
    reserved_by_band: dict[str, int]
    jobs: dict[str, JobSample] = {}
    services: dict[str, ServiceSample] = {}
    trainings: dict[str, TrainSample] = {}
    accelerators: int = 0
    accelerators_by_band: dict[str, int] = {}


class NewUser(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A user to add: roles are viewer, member, operator, admin."""

    name: str
    role: str = "member"
    team: str = ""
    expires_s: float = 0.0


class UserView(msgspec.Struct, frozen=True, omit_defaults=True):
    """A user of the cell.

    Attributes:
        token: Only in the answer that made it.
    """

    name: str
    role: str
    team: str = ""
    created_s: float = 0.0
    expires_s: float = 0.0
    expired: bool = False
    token: str = ""
