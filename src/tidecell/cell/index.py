"""What a cell's state implies, kept beside it so that nobody has to look at every job or machine. Pure.

Derived, never journaled: ``apply`` changes the state's records and then tells the index which task, job
or claim an event was about; ``Index.of`` works the same out from scratch, and ``check_state`` holds both
equal. An event of a new kind needs nothing here as long as it names its subject as all others do: ``ref``
changes that one task, ``uid`` that one job, and what names neither changes machines.
"""

from __future__ import annotations

import enum
import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from tidecell.structs.lifecycle import JobRevised
from tidecell.structs.messages import (
    Claim,
    ClaimDropped,
    Claimed,
    Event,
    JobAccepted,
    JobFinished,
    TaskStopping,
)
from tidecell.structs.resources import GPU, Resources

if TYPE_CHECKING:
    from tidecell.cell.records import CellState, Job, Task

Key = tuple[str, int]  # uid and index of a task


class Holding(NamedTuple):
    """What an active task holds, and of what: an alloc's envelope, or the machine itself."""

    machine: str
    envelope: str
    resources: Resources
    accelerators: tuple[int, ...]
    leaving: bool

    @property
    def row(self) -> str:
        """Whose capacity it uses."""
        return self.envelope or self.machine


@dataclass(slots=True)
class Sum:
    """A sum of reservations; ``devices`` has the thousandths in use of each device that is used."""

    cpu_millis: int = 0
    memory_bytes: int = 0
    gpu_millis: int = 0
    devices: dict[int, int] = field(default_factory=dict)

    def add(self, resources: Resources, accelerators: Iterable[int], sign: int) -> None:
        """Add one reservation, or with ``sign`` -1 take it away."""
        self.cpu_millis += sign * resources.cpu_millis
        self.memory_bytes += sign * resources.memory_bytes
        self.gpu_millis += sign * resources.gpu_millis
        if not accelerators:
            return
        each = sign * min(GPU, resources.gpu_millis)
        for device in accelerators:
            rest = self.devices.get(device, 0) + each
            if rest:
                self.devices[device] = rest
            else:
                self.devices.pop(device, None)

    def copy(self) -> Sum:
        """Return a sum that can be written to."""
        return Sum(self.cpu_millis, self.memory_bytes, self.gpu_millis, dict(self.devices))

    @property
    def resources(self) -> Resources:
        """The sum as a vector."""
        return Resources(self.cpu_millis, self.memory_bytes, self.gpu_millis)


@dataclass(slots=True)
class Load:
    """What tasks hold of one machine or envelope.

    Attributes:
        used: What all tasks hold, leaving ones included.
        leaving: What those hold that were told to leave.
        tasks: The tasks there; of a machine also those in envelopes on it.
        claims: What is held there for tasks that wait.
    """

    used: Sum = field(default_factory=Sum)
    leaving: Sum = field(default_factory=Sum)
    tasks: dict[Key, None] = field(default_factory=dict)
    claims: dict[Key, Claim] = field(default_factory=dict)


_NO_LOAD = Load()


@dataclass(slots=True)
class Changes:
    """What has changed since somebody last looked.

    Attributes:
        jobs: Uid to the indices of changed tasks; None: the job as a whole.
        machines: Whether machines came, went or changed.
        claims: Whether claims came or went.
    """

    jobs: dict[str, set[int] | None] = field(default_factory=dict)
    machines: bool = False
    claims: bool = False

    def task(self, uid: str, index: int) -> None:
        """One task of a job changed."""
        known = self.jobs.setdefault(uid, set())
        if known is not None:
            known.add(index)


class _Scope(enum.Enum):
    NOTHING = 0
    TASK = 1
    JOB = 2
    CLAIM = 3
    CELL = 4


@dataclass(slots=True)
class Index:
    """Look-ups into a cell's state.

    Attributes:
        holdings: What each active task holds.
        loads: The same by machine or envelope.
        candidates: Live jobs that have tasks which wait, wanted or not.
        services: Live services, oldest first.
        allocs: Live allocs, oldest first.
        members: Alloc's name to the live jobs that are in it or wait to enter it, oldest first.
        claims_of: Uid to the indices of its tasks for which capacity is held, and where.
        after: Name to the live jobs that come after jobs of that name.
        timed: Live jobs whose rules look at the clock at every tick.
        limits: Uid to when the time of a running job is up.
        alarms: The same as a heap, with entries that are no longer true among them.
        changes: What has changed, for somebody who keeps a picture; None while nobody does.
        capacity: What ``admission`` worked out about the empty cell; forgotten when machines change.
    """

    holdings: dict[Key, Holding] = field(default_factory=dict)
    loads: dict[str, Load] = field(default_factory=dict)
    candidates: dict[str, None] = field(default_factory=dict)
    services: dict[str, None] = field(default_factory=dict)
    allocs: dict[str, None] = field(default_factory=dict)
    members: dict[str, dict[str, None]] = field(default_factory=dict)
    claims_of: dict[str, dict[int, str]] = field(default_factory=dict)
    after: dict[str, dict[str, None]] = field(default_factory=dict)
    timed: dict[str, None] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    alarms: list[tuple[float, str]] = field(default_factory=list, compare=False)
    changes: Changes | None = field(default=None, compare=False)
    capacity: dict[Any, Any] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, state: CellState) -> Index:
        """Return the index of a state, from scratch."""
        index = cls()
        for job in state.live_jobs():
            index._enter(job)
            for task in job.tasks:
                index._take_task(job, task.index)
        for claim in state.claims.values():
            index._claim(claim)
        return index

    # ------------------------------------------------------------------------------ looking up

    def load(self, name: str) -> Load:
        """Return what is held of a machine or envelope; not to be changed."""
        return self.loads.get(name, _NO_LOAD)

    def dependents(self, job: Job) -> list[str]:
        """Return live jobs that come after this one."""
        by_name = self.after.get(job.spec.name, {})
        return list(by_name | self.after.get(job.uid, {}))

    def overdue(self, now_s: float) -> list[str]:
        """Return the jobs whose time limit is over; they are told again until it no longer is."""
        found: dict[str, None] = {}
        while self.alarms and self.alarms[0][0] <= now_s:
            at_s, uid = heapq.heappop(self.alarms)
            if self.limits.get(uid) == at_s:
                found[uid] = None
        for uid in found:
            heapq.heappush(self.alarms, (self.limits[uid], uid))
        return list(found)

    # ------------------------------------------------------------------------------ keeping up

    def note(self, state: CellState, event: Event) -> None:
        """Take in what an event that was just applied has changed."""
        kind = type(event)
        scope = _SCOPES.get(kind) or _learn(kind)
        if scope is _Scope.TASK:
            ref = event.ref  # type: ignore[attr-defined]
            job = state.jobs.get(ref.uid)
            if job is not None:
                self._take_task(job, ref.index)
                self._weigh(job)
                if self.allocs and job.spec.is_alloc:  # its envelopes are machines to the scheduler
                    self._see_machines()
                if self.changes is not None:
                    self.changes.task(ref.uid, ref.index)
        elif scope is _Scope.JOB:
            self._note_job(state, event)
        elif scope is _Scope.CLAIM:
            self._note_claim(event)
        elif scope is _Scope.CELL:
            self.capacity.clear()
            self._see_machines()

    def _see_machines(self) -> None:
        if self.changes is not None:
            self.changes.machines = True

    def _note_job(self, state: CellState, event: Event) -> None:
        uid: str = event.uid  # type: ignore[attr-defined]
        job = state.jobs.get(uid)
        if job is None:
            return
        if isinstance(event, JobAccepted):
            self._enter(job)
        elif isinstance(event, JobFinished):
            self._leave(job)
        else:
            self._weigh(job)
        for grant in event.resized if isinstance(event, JobRevised) else ():
            self._take_task(job, grant.index)
        if job.spec.is_alloc:
            self._see_machines()
        if self.changes is None:
            return
        self.changes.jobs[uid] = None
        if isinstance(event, JobAccepted | JobFinished):
            self._renamed(job)

    def forget(self, job: Job) -> None:
        """A finished job is no longer kept."""
        self._leave(job)
        self._renamed(job)

    def _renamed(self, job: Job) -> None:
        """What a job's name stands for has changed: those who come after it see something else."""
        if self.changes is not None and self.after:
            for uid in self.dependents(job):
                self.changes.jobs[uid] = None

    def _enter(self, job: Job) -> None:
        if job.spec.is_service:
            self.services[job.uid] = None
        if job.spec.is_alloc:
            self.allocs[job.uid] = None
        if job.spec.alloc:
            self.members.setdefault(job.spec.alloc, {})[job.uid] = None
        for name in job.spec.after:
            self.after.setdefault(name, {})[job.uid] = None
        self._weigh(job)

    def _leave(self, job: Job) -> None:
        self.services.pop(job.uid, None)
        self.allocs.pop(job.uid, None)
        _drop(self.members, job.spec.alloc, job.uid)
        for name in job.spec.after:
            _drop(self.after, name, job.uid)
        self._weigh(job)

    def _weigh(self, job: Job) -> None:
        """Put a job among those that wait, and those that follow the clock, or take it out."""
        uid, live = job.uid, job.outcome is None
        if live and job.stopping is None and len(job.open) > job.num_active:
            self.candidates[uid] = None
        else:
            self.candidates.pop(uid, None)
        if live and follows_clock(job):
            self.timed[uid] = None
        else:
            self.timed.pop(uid, None)
        if not job.spec.max_duration_s and uid not in self.limits:
            return
        at_s = _limit_s(job)
        if at_s != self.limits.get(uid, 0.0):
            self.limits[uid] = at_s
            if at_s:
                heapq.heappush(self.alarms, (at_s, uid))
            else:
                del self.limits[uid]

    def _take_task(self, job: Job, index: int) -> None:
        """Bring what is known of one task up to date."""
        task = job.tasks[index] if index < len(job.tasks) else None
        new = _holding(task) if task is not None else None
        if new is not None and new.leaving:
            job.leaving[index] = None
        else:
            job.leaving.pop(index, None)
        key = (job.uid, index)
        old = self.holdings.get(key)
        if new == old:
            return
        if old is not None and new is not None and old[:-1] == new[:-1]:  # it was told to leave
            self.holdings[key] = new
            load = self.loads[new.envelope or new.machine]
            load.leaving.add(new.resources, new.accelerators, 1 if new.leaving else -1)
            return
        if old is not None:
            self._hold(key, old, -1)
        if new is not None:
            self.holdings[key] = new
            self._hold(key, new, 1)
        else:
            del self.holdings[key]

    def _hold(self, key: Key, holding: Holding, sign: int) -> None:
        load = self._load(holding.envelope or holding.machine)
        load.used.add(holding.resources, holding.accelerators, sign)
        if holding.leaving:
            load.leaving.add(holding.resources, holding.accelerators, sign)
        for name in (holding.machine, holding.envelope) if holding.envelope else (holding.machine,):
            load = self._load(name)
            if sign > 0:
                load.tasks[key] = None
            else:
                load.tasks.pop(key, None)
                self._let_go(name)

    def _load(self, name: str) -> Load:
        load = self.loads.get(name)
        if load is None:
            load = self.loads[name] = Load()
        return load

    def _let_go(self, name: str) -> None:
        load = self.loads[name]
        if not (load.tasks or load.claims):
            del self.loads[name]

    def _note_claim(self, event: Event) -> None:
        if isinstance(event, Claimed):
            key = (event.claim.uid, event.claim.index)
            self._unclaim(key)
            self._claim(event.claim)
        elif isinstance(event, ClaimDropped):
            self._unclaim((event.uid, event.index))
        if self.changes is not None:
            self.changes.claims = True

    def _claim(self, claim: Claim) -> None:
        self._load(claim.machine).claims[claim.uid, claim.index] = claim
        self.claims_of.setdefault(claim.uid, {})[claim.index] = claim.machine

    def _unclaim(self, key: Key) -> None:
        mine = self.claims_of.get(key[0], {})
        machine = mine.pop(key[1], None)
        if machine is None:
            return
        if not mine:
            del self.claims_of[key[0]]
        del self.loads[machine].claims[key]
        self._let_go(machine)


def follows_clock(job: Job) -> bool:
    """Whether a job's rules depend on time in ways that no event announces: it is asked at every tick.

    Its time limit is told apart (``Index.limits``): in many a cell every job has one.
    """
    spec = job.spec
    if job.leaving or job.rollout is not None or job.extra or spec.schedule is not None:
        return True
    if not 0 < job.num_active < spec.replicas.min or spec.is_service or spec.array is not None:
        return False
    return 0 < job.num_staying < min(spec.replicas.min, job.desired) - job.num_succeeded  # a broken gang


def _limit_s(job: Job) -> float:
    """Return when a job's time is up; 0: never, as far as one knows now."""
    limit_s = job.spec.max_duration_s
    return job.started_s + limit_s if limit_s and job.started_s and job.live and not job.stopping else 0.0


def _holding(task: Task) -> Holding | None:
    if not task.active:
        return None
    leaving = task.notice is not None
    return Holding(task.machine, task.envelope, task.resources, task.accelerators, leaving)


def _drop(groups: dict[str, dict[str, None]], name: str, uid: str) -> None:
    """Take a job out of a group; a group of none is not kept."""
    group = groups.get(name, {})
    group.pop(uid, None)
    if not group:
        groups.pop(name, None)


def _keep(keys: dict[Any, None], key: Any, wanted: bool) -> None:
    if wanted:
        keys[key] = None
    else:
        keys.pop(key, None)


_SCOPES: dict[type[Event], _Scope] = {
    Claimed: _Scope.CLAIM,
    ClaimDropped: _Scope.CLAIM,
    TaskStopping: _Scope.NOTHING,  # it was told to leave before; what it holds is the same
}


def _learn(kind: type[Event]) -> _Scope:
    """Read off an event's fields what it is about."""
    fields = kind.__struct_fields__
    scope = _Scope.TASK if "ref" in fields else _Scope.JOB if "uid" in fields else _Scope.CELL
    _SCOPES[kind] = scope
    return scope
