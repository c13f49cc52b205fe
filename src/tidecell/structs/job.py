"""Jobs and tasks: what people submit and what runs.

The lifecycle is one table, ``TRANSITIONS``; the docs diagram and the state machine's checks come
from it. The pattern (one table, names derived from it) is that of dask's worker state machine and h11.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable

import msgspec

from tidecell.structs.cron import Schedule
from tidecell.structs.placement import Condition, Preference, Spread, Topology
from tidecell.structs.resources import Resources
from tidecell.structs.traffic import TrafficPolicy
from tidecell.structs.work import Array


class Kind(enum.StrEnum):
    """What a job is: ``job`` ends, ``service`` has an endpoint, ``dev`` has a terminal to attach to,
    ``alloc`` runs nothing: its replicas are envelopes that other jobs enter.
    """

    JOB = "job"
    SERVICE = "service"
    DEV = "dev"
    ALLOC = "alloc"


_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
NAME_HINT = "use lower-case letters, digits and dashes, at most 63, no dash first or last"
MAX_REPLICAS = 10_000  # of a job that is no array


def is_name(text: str) -> bool:
    """Return whether a job or team may have this name."""
    return _NAME.fullmatch(text) is not None


DEV_IDLE_TIMEOUT_S = 8 * 3600.0  # of dev sessions whose specs say nothing


class Band(enum.IntEnum):
    """Priority bands, lowest first. A band decides who may evict whom."""

    BEST_EFFORT = 0
    BATCH = 1
    PRODUCTION = 2
    MONITORING = 3

    @property
    def word(self) -> str:
        """The band as people type it."""
        return BAND_WORDS[self]


BAND_WORDS = {
    Band.BEST_EFFORT: "best-effort",
    Band.BATCH: "batch",
    Band.PRODUCTION: "production",
    Band.MONITORING: "monitoring",
}


class Priority(msgspec.Struct, frozen=True, order=True, gc=False):
    """A band, and an integer that only orders inside the band."""

    band: Band = Band.BATCH
    order: int = 0

    def __str__(self) -> str:
        return f"{self.band.word}{self.order:+d}" if self.order else self.band.word


class Preemption(enum.StrEnum):
    """What may be taken from a job by a higher band."""

    NEVER = "never"
    ABOVE_MIN = "above-min"
    ANY = "any"


class TaskState(enum.StrEnum):
    """States of a task, the same for every kind of job."""

    PENDING = "PENDING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    RESIZING = "RESIZING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMEOUT = "TIMEOUT"


TERMINAL = frozenset({TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELLED, TaskState.TIMEOUT})
ACTIVE = frozenset({TaskState.STARTING, TaskState.RUNNING, TaskState.RESIZING})

# From a state to the states that may follow it. RESIZING: told to leave, not yet gone.
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.PENDING: frozenset(
        {TaskState.STARTING, TaskState.CANCELLED, TaskState.SUCCEEDED, TaskState.FAILED, TaskState.TIMEOUT}
    ),
    TaskState.STARTING: frozenset({TaskState.RUNNING, TaskState.RESIZING, TaskState.PENDING, *TERMINAL}),
    TaskState.RUNNING: frozenset({TaskState.RESIZING, TaskState.PENDING, *TERMINAL}),
    TaskState.RESIZING: frozenset({TaskState.PENDING, *TERMINAL}),
    **{state: frozenset() for state in TERMINAL},
}


class Reason(enum.StrEnum):
    """Why something waits or was refused. Tokens are stable; they stay close to Kueue's and Slurm's."""

    EXCEEDS_MAX_QUOTA = "ExceedsMaxQuota"
    WAITING_FOR_QUOTA = "WaitingForQuota"
    NO_MATCHING_MACHINE = "NoMatchingMachine"
    WAITING_FOR_CAPACITY = "WaitingForCapacity"
    TOPOLOGY_PLACEMENT_FAILED = "TopologyPlacementFailed"
    WAITING_FOR_PREEMPTED = "WaitingForPreempted"
    PRIORITY = "Priority"
    DEPENDENCY = "Dependency"
    BEGIN_TIME = "BeginTime"
    ON_HOLD = "OnHold"
    BACKOFF = "Backoff"
    MISCONFIGURED = "Misconfigured"


class Cause(enum.StrEnum):
    """Why a task was told to stop: the one notice contract names its cause."""

    RESIZE = "resize"  # fewer replicas wanted (scale, autoscaler)
    PREEMPT = "preempt"  # a higher band needs the room
    CANCEL = "cancel"  # somebody stopped the job
    TIMEOUT = "timeout"  # max_duration is over
    FAILED = "failed"  # another task of the gang failed
    COMPLETED = "completed"  # another task finished the job's work
    DRAIN = "drain"  # the machine or replica is being drained
    LOST = "lost"  # its machine went away
    UNHEALTHY = "unhealthy"  # its liveness probe failed
    UPDATE = "update"  # a newer version of its job takes its place


class RetryOn(enum.StrEnum):
    """Causes of failure that a job may ask to be retried for."""

    ERROR = "error"
    OUT_OF_MEMORY = "out-of-memory"  # part of error: naming it alone retries nothing else
    INTERRUPTION = "interruption"
    LOST_MACHINE = "lost-machine"  # part of interruption
    NO_CAPACITY = "no-capacity"


class Retry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Which failures start a task again, and how often.

    Attributes:
        max: Failures of one cause after which a task is given up; causes are counted apart.
        exit_codes: Exit statuses that are retried though ``error`` is not named.
        backoff_s: Pause after the first failure; it doubles with each that follows.
        backoff_max_s: Longest pause.
    """

    on: tuple[RetryOn, ...] = (RetryOn.INTERRUPTION,)
    max: int = 3
    exit_codes: tuple[int, ...] = ()
    backoff_s: float = 0.5
    backoff_max_s: float = 60.0


class Amount(msgspec.Struct, frozen=True):
    """A number of replicas, or a percentage of those that are wanted."""

    value: int
    percent: bool = False

    def of(self, total: int, round_up: bool = False) -> int:
        """Return how many of ``total`` this is."""
        if not self.percent:
            return self.value
        return -(-total * self.value // 100) if round_up else total * self.value // 100

    def __str__(self) -> str:
        return f"{self.value}%" if self.percent else str(self.value)


class Disruptions(msgspec.Struct, frozen=True):
    """How many replicas may be away at once, all causes counted together.

    Preemption, drains, updates and the autoscaler stop at this number; machines and programs that fail
    use it up as well. What the job's owner does (stop, scale) does not ask.
    """

    max_unavailable: Amount = Amount(1)


class Update(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a new version takes the place of the old one.

    Attributes:
        max_unavailable: Replicas that may be missing meanwhile; None: 0 for a service, 1 for a job that
            keeps its gang, or the whole gang where it has no replica to spare.
        max_surge: Replicas that may run beyond the wanted number meanwhile; None: 1 for a service that may
            not be short of any. Services only: the index of a job's replica is its rank.
        canary: Replicas of the new version that run beside the old ones until ``tide promote``.
        auto_revert: Go back to the last healthy version if this one does not become healthy.
        healthy_after_s: How long a replica must be ready to count.
        deadline_s: Time within which a started replica must become healthy.
        max_disruptions: Running replicas that an update may stop in all; further changes are skipped, and
            come with the next start (Borg, EuroSys 2015, section 2.3). 0: no limit.
    """

    max_unavailable: Amount | None = None
    max_surge: Amount | None = None
    canary: int = 0
    auto_revert: bool = True
    healthy_after_s: float = 5.0
    deadline_s: float = 600.0
    max_disruptions: int = 0


class Replicas(msgspec.Struct, frozen=True, gc=False):
    """``min`` is the gang: it starts together or not at all. What is above it may be taken."""

    min: int = 1
    max: int = 1

    def __str__(self) -> str:
        return str(self.min) if self.min == self.max else f"{self.min}..{self.max}"


class Checkpoint(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where a job keeps its checkpoints and how often; a file's age there is part of a victim's cost."""

    path: str
    every_s: float = 300.0


class Scaling(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a service's replicas follow its load.

    Attributes:
        metric: ``ongoing_requests`` (in flight and queued, per replica) or ``requests_per_second``.
        target: Wanted value of the metric per replica.
        up_delay_s: How long the load must ask for more before replicas are added.
        down_delay_s: How long it must ask for fewer before replicas are taken away.
    """

    metric: str = "ongoing_requests"
    target: float = 8.0
    up_delay_s: float = 15.0
    down_delay_s: float = 300.0


class Probes(msgspec.Struct, frozen=True, omit_defaults=True):
    """How readiness is found out.

    Attributes:
        ready: HTTP path that answers 2xx when ready; empty: the port accepts connections.
        alive: HTTP path that answers 2xx while the replica lives; empty: not asked. After ``failures``
            failures in a row, counted from when it was ready first, the replica is started again.
        every_s: Seconds between probes.
        failures: Consecutive failures after which a ready replica is no longer ready.
    """

    ready: str = ""
    every_s: float = 1.0
    failures: int = 3
    alive: str = ""


class IdleGpu(msgspec.Struct, frozen=True, omit_defaults=True):
    """A job ends once the accelerators of all its replicas were below ``below_percent`` for ``for_s``."""

    below_percent: int = 5
    for_s: float = 1800.0


class Shape(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """One set of resources that a replica can run with."""

    resources: Resources
    accelerator_type: str = ""


class Override(msgspec.Struct, frozen=True, omit_defaults=True):
    """What replicas ``first`` to ``last`` have otherwise than the rest of their job.

    Attributes:
        resources: What each asks for instead; None: what the job says.
        env: Variables beside those of the job, or in their place.
        run: A shell script instead of the job's; empty, like ``argv``: the job's.
    """

    first: int
    last: int
    resources: Resources | None = None
    env: dict[str, str] = {}
    run: str = ""
    argv: tuple[str, ...] = ()

    def __contains__(self, index: object) -> bool:
        return isinstance(index, int) and self.first <= index <= self.last


class JobSpec(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What somebody asks for, checked and in our units.

    Attributes:
        name: Lower-case letters, digits and dashes; unique among live jobs.
        run: A shell script, or empty when ``argv`` is given.
        argv: Program and arguments, run without a shell.
        setup: A shell script that runs before, in the same working directory.
        workdir: Absolute path; empty: a directory of the job's own.
        env: Environment variables beyond those every task gets.
        resources: What one replica needs.
        accelerator_type: For example ``H100``; empty: any.
        any_of: Further sets of resources, tried in order where the first choice does not start now.
        grace_period_s: Time between notice and SIGKILL.
        min_runtime_s: A task is not preempted before it ran this long.
        max_duration_s: Wall time from the first start, 0: unlimited.
        after: Names of jobs that must have succeeded before this one starts.
        port: Fixed port of a service; 0: the engine chooses, and tells it in ``$PORT``.
        models: Model names that the router sends to this service.
        begin_s: It does not start before, seconds since the epoch.
        hold: It waits until it is released.
        schedule: It runs nothing itself, but starts a run of its own name and time at each firing.
        array: Independent items instead of a gang; ``replicas`` is then 0 to the number that run at once.
        update: How a changed spec reaches running replicas.
        disruptions: How many replicas may be away at once; None: as many as policies allow.
        constraints: What every machine that a replica goes to must meet.
        prefer: What it should meet, where there is a choice.
        topology: All replicas in one rack, NVLink domain or the like.
        spread: Replicas over many of them.
        data: Datasets and packages; machines that hold them are preferred.
        tasks: What single replicas have otherwise; no two are about the same replica.
        idle_timeout_s: A dev session ends after so long without use; 0: never for that.
        idle_gpu: It ends when its accelerators do nothing; None: whatever they do.
        alloc: Name of the alloc whose envelopes its replicas enter; empty: they use machines' own capacity.
        traffic: How the router treats a service's requests; None: by the defaults.
    """

    name: str
    kind: Kind = Kind.JOB
    run: str = ""
    argv: tuple[str, ...] = ()
    setup: str = ""
    workdir: str = ""
    env: dict[str, str] = {}
    resources: Resources = Resources(cpu_millis=1000)
    accelerator_type: str = ""
    any_of: tuple[Shape, ...] = ()
    replicas: Replicas = Replicas()
    priority: Priority = Priority()
    preemption: Preemption = Preemption.ANY
    grace_period_s: float = 30.0
    min_runtime_s: float = 0.0
    checkpoint: Checkpoint | None = None
    retry: Retry = Retry()
    max_duration_s: float = 0.0
    after: tuple[str, ...] = ()
    port: int = 0
    probes: Probes = Probes()
    scaling: Scaling | None = None
    models: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    team: str = ""
    array: Array | None = None
    update: Update = Update()
    disruptions: Disruptions | None = None
    begin_s: float = 0.0
    hold: bool = False
    schedule: Schedule | None = None
    constraints: tuple[Condition, ...] = ()
    prefer: tuple[Preference, ...] = ()
    topology: Topology | None = None
    spread: Spread | None = None
    data: tuple[str, ...] = ()
    tasks: tuple[Override, ...] = ()
    idle_timeout_s: float = 0.0
    alloc: str = ""
    idle_gpu: IdleGpu | None = None
    traffic: TrafficPolicy | None = None

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """All sets of resources that a replica can run with, the first choice first."""
        return (Shape(self.resources, self.accelerator_type), *self.any_of)

    def request(self, index: int, shape: int = 0) -> Resources:
        """Return what replica ``index`` asks for in one of the job's shapes."""
        own = self.override(index) if self.tasks else None
        if own is not None and own.resources is not None:
            return own.resources
        return self.resources if shape == 0 else self.any_of[shape - 1].resources

    def override(self, index: int) -> Override | None:
        """Return what replica ``index`` has otherwise than the others, if anything."""
        return next((o for o in self.tasks if index in o), None)

    @property
    def sizes(self) -> tuple[tuple[int, int, Resources], ...]:
        """First and last replica that ask for other resources, and these; empty: all replicas are alike."""
        if not self.tasks:
            return ()
        return tuple((o.first, o.last, o.resources) for o in self.tasks if o.resources is not None)

    def describe_sizes(self, indices: Iterable[int]) -> str:
        """Return what these replicas ask for, alike ones together: ``2 x 1 cpu and 1 x 4 cpu``."""
        counts = Counter(self.request(index).describe() for index in indices)
        return " and ".join(f"{n} x {text}" for text, n in counts.items())

    def for_task(self, index: int) -> JobSpec:
        """Return the spec that one replica is started with: the job's, with what is its own put in."""
        own = self.override(index) if self.tasks else None
        if own is None:
            return self
        program = (own.run, own.argv) if own.run or own.argv else (self.run, self.argv)
        return msgspec.structs.replace(
            self,
            run=program[0],
            argv=program[1],
            env={**self.env, **own.env},
            resources=own.resources or self.resources,
            tasks=(),
        )

    @property
    def is_service(self) -> bool:
        """Whether it has an endpoint and does not end by itself."""
        return self.kind is Kind.SERVICE

    @property
    def is_alloc(self) -> bool:
        """Whether its replicas are envelopes, which run nothing themselves."""
        return self.kind is Kind.ALLOC

    def envelope_name(self, index: int) -> str:
        """Return the name of one of an alloc's envelopes, by which the scheduler knows it."""
        return f"{self.name}/{index}"

    @property
    def is_elastic(self) -> bool:
        """Whether it may run with more replicas than its gang needs."""
        return self.replicas.max > self.replicas.min
