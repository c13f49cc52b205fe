"""What the cell knows: jobs, tasks, machines. Mutable records that ``apply`` alone changes."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from tidecell.cell.index import Index
from tidecell.structs.job import ACTIVE, TERMINAL, Cause, JobSpec, TaskState
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Claim, JobStopping, TaskRef
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy
from tidecell.structs.traffic import Routing


@dataclass(slots=True)
class Notice:
    """Why a task was told to leave, for whom and until when."""

    cause: Cause
    deadline_s: float
    given_s: float
    new_size: int = 0
    by: str = ""
    stopping: bool = False  # the process itself was asked to end (a draining replica: not yet)


@dataclass(slots=True)
class Task:
    """One replica of a job and its present start."""

    index: int
    state: TaskState = TaskState.PENDING
    attempt: int = 0
    epoch: int = 0
    machine: str = ""
    accelerators: tuple[int, ...] = ()
    resources: Resources = field(default_factory=Resources)  # granted at its placement
    shape: int = 0
    envelope: str = ""
    pid: int = 0
    port: int = 0
    ready: bool = False
    placed_s: float = 0.0
    started_s: float = 0.0
    ended_s: float = 0.0
    notice: Notice | None = None
    exit_code: int | None = None
    message: str = ""
    failures: int = 0
    not_before_s: float = 0.0
    last_cause: Cause | None = None
    program: int = 1
    ready_s: float = 0.0
    tried: dict[str, int] = field(default_factory=dict)  # failures by cause
    failed_on: tuple[str, ...] = ()
    resized: bool = False  # since it was placed: its agent has to be told what it holds now
    num_preempted: int = 0  # without an hour between two of them
    last_preempted_s: float = 0.0

    @property
    def active(self) -> bool:
        """Whether it holds resources on a machine."""
        return self.state in ACTIVE

    @property
    def row(self) -> str:
        """Whose capacity it uses: a machine's, or an alloc's envelope's."""
        return self.envelope or self.machine


@dataclass
class Version:
    """One version of a job's spec: who asked for it, when, and whether its replicas became healthy."""

    number: int
    spec: JobSpec
    at_s: float
    program: int
    who: str = ""
    why: str = ""
    stable: bool = False


@dataclass
class Rollout:
    """A new version on its way to all replicas.

    Attributes:
        promoted: Past its canaries, or without any.
        trying_s: Since when the slowest replica that is not healthy yet is tried; 0: none is.
        halted: Why nothing more is taken for it; empty: it goes on.
        disrupted: Replicas that were told to leave for it.
    """

    version: int
    program: int
    started_s: float
    revert_to: int = 0
    canary: int = 0
    promoted: bool = True
    healthy: int = 0
    trying_s: float = 0.0
    halted: str = ""
    disrupted: int = 0


@dataclass
class Drain:
    """A machine that takes no new work from ``start_s`` on and is emptied by ``deadline_s``."""

    start_s: float
    deadline_s: float
    who: str = ""
    drained: bool = False


@dataclass
class Job:
    """One run of a job.

    Attributes:
        program: Number of the version whose program its tasks should run.
        history: Its versions, oldest first; empty until it is changed for the first time.
        extra: Indices at or above ``desired`` at which a replica is wanted, standing in for another.
        vacant: Indices below ``desired`` at which none is wanted, since an extra stands in.
        attempts: Attempts made at indices that were scaled away, so that their numbers go on.
        needs: Runs that ``after`` means, by name.
    """

    uid: str
    spec: JobSpec
    submitted_s: float
    desired: int
    tasks: list[Task] = field(default_factory=list)
    started_s: float = 0.0
    finished_s: float = 0.0
    stopping: JobStopping | None = None
    outcome: TaskState | None = None
    exit_code: int = 0
    message: str = ""
    desired_why: str = ""
    held: bool = False
    begin_s: float = 0.0
    parent: str = ""  # uid of the schedule whose run this is
    target_s: float = 0.0  # when that run was due
    through_s: float = 0.0  # a schedule: firings up to here are decided
    due: tuple[float, ...] = ()  # a schedule: firings that it owes a run for
    runs: list[str] = field(default_factory=list)  # a schedule: uids of its runs that are remembered
    story: list[str] = field(default_factory=list)
    who: str = ""
    version: int = 1
    program: int = 1
    history: list[Version] = field(default_factory=list)
    rollout: Rollout | None = None
    extra: list[int] = field(default_factory=list)
    vacant: list[int] = field(default_factory=list)
    attempts: dict[str, int] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Index the tasks: those without an end, and how the others ended."""
        self.open = {t.index: None for t in self.tasks if t.state not in TERMINAL}
        self.ended = Counter(t.state for t in self.tasks if t.state in TERMINAL)
        self.num_active = sum(1 for t in self.tasks if t.active)
        self.leaving = {t.index: None for t in self.tasks if t.notice is not None}

    @property
    def state(self) -> TaskState:
        """The job's state, read off its tasks."""
        if self.outcome is not None:
            return self.outcome
        states = {t.state for t in self.open_tasks()}
        for state in (TaskState.RUNNING, TaskState.RESIZING, TaskState.STARTING):
            if state in states:
                return state
        return TaskState.PENDING

    @property
    def live(self) -> bool:
        """Whether it has no outcome yet."""
        return self.outcome is None

    def wants(self, index: int) -> bool:
        """Return whether a replica is wanted at this index."""
        if index < self.desired:
            return not self.vacant or index not in self.vacant
        return bool(self.extra) and index in self.extra

    def open_tasks(self) -> list[Task]:
        """Return the tasks that have not ended for good, in order; of a large array these are few."""
        return [self.tasks[i] for i in self.open]

    def active_tasks(self) -> list[Task]:
        """Return the tasks that hold resources."""
        return [t for t in self.open_tasks() if t.active]

    def staying_tasks(self) -> list[Task]:
        """Return the active tasks that were not told to leave."""
        return [t for t in self.open_tasks() if t.active and t.notice is None]

    @property
    def num_staying(self) -> int:
        """How many active tasks were not told to leave."""
        return self.num_active - len(self.leaving)

    @property
    def num_succeeded(self) -> int:
        """How many tasks have done their work."""
        return self.ended.get(TaskState.SUCCEEDED, 0)


@dataclass
class Machine:
    """A machine of the cell and the last thing we have journaled from its agent."""

    spec: MachineSpec
    up: bool = True
    agent_seq: int = 0
    lost_s: float = 0.0
    release_s: float = 0.0
    held: bool = False  # lost with many others: what it ran is not given up before ``release_s``


@dataclass
class CellState:
    """Everything the cell knows. Rebuilt from the journal; changed by ``apply`` alone."""

    epoch: int = 0
    seq: int = 0
    machines: dict[str, Machine] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    by_name: dict[str, str] = field(default_factory=dict)  # name -> uid of its newest run
    counters: dict[str, int] = field(default_factory=dict)  # name -> number of its newest run
    claims: dict[tuple[str, int], Claim] = field(default_factory=dict)
    drains: dict[str, Drain] = field(default_factory=dict)  # by machine
    live_uids: dict[str, None] = field(default_factory=dict)  # insertion-ordered set
    finished_uids: deque[str] = field(default_factory=deque)
    policy: Policy | None = None
    routing: Routing | None = None

    def __post_init__(self) -> None:
        """Index what is there."""
        self.index = Index.of(self)

    def live_jobs(self) -> Iterator[Job]:
        """Yield jobs without an outcome, oldest first."""
        for uid in self.live_uids:
            yield self.jobs[uid]

    def find(self, name: str) -> Job | None:
        """Return the newest run of that name, or the run of that uid."""
        uid = self.by_name.get(name, name)
        return self.jobs.get(uid)

    def tasks_on(self, machine: str) -> list[tuple[Job, Task]]:
        """Return the active tasks on a machine, in the order in which they were placed."""
        keys = self.index.load(machine).tasks
        found = [(self.jobs[uid], self.jobs[uid].tasks[index]) for uid, index in keys]
        return sorted(found, key=lambda pair: pair[1].epoch)

    def task(self, ref: TaskRef) -> Task | None:
        """Return the task if this very start of it is the present one."""
        job = self.jobs.get(ref.uid)
        if job is None or not 0 <= ref.index < len(job.tasks):
            return None
        task = job.tasks[ref.index]
        return task if task.epoch == ref.epoch else None

    def ref(self, job: Job, task: Task) -> TaskRef:
        """Return the reference of a task's present start."""
        return TaskRef(job.uid, task.index, task.epoch)
