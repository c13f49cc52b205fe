"""Safety of histories: what must be true of the sequence of events and of every pass. Pure.

``cell.invariants`` checks single states; what needs two moments, or the scheduler, is checked here while a
simulation runs. Numbers are those of DESIGN's invariants; docs/invariants.md says where each is checked.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from tidecell.cell.log import MemoryLog
from tidecell.cell.reconcile import GANG_REPAIR_S
from tidecell.cell.runtime import Outcome, Runtime
from tidecell.cell.snapshot import take_snapshot
from tidecell.cell.state import CellState, Job, decode_state, encode_state
from tidecell.cell.verify import verify_plan
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import Band, Cause, TaskState
from tidecell.structs.messages import (
    Event,
    JobFinished,
    Plan,
    Removal,
    TaskEnded,
    TaskNoticed,
    TaskPlaced,
    TaskRef,
)
from tidecell.structs.resources import Resources


def _require(truth: bool, message: str) -> None:
    if not truth:
        raise InvariantError(message)


@dataclass
class History:
    """Follows the events of a cell from its beginning.

    Attributes:
        num_preempted: Tasks told to leave for somebody.
    """

    finished: set[str] = field(default_factory=set)
    noticed: dict[TaskRef, TaskNoticed] = field(default_factory=dict)
    open: set[TaskRef] = field(default_factory=set)
    highest_epoch: int = 0
    below_min_since: dict[str, float] = field(default_factory=dict)
    num_preempted: int = 0

    def take(self, state: CellState, events: Iterable[Event], now_s: float) -> None:
        """Check the events of one tick, after it."""
        placed, taken, updated = set(), set(), set()
        for event in events:
            self.follow(event)
            if isinstance(event, TaskPlaced):
                placed.add(event.ref.uid)
            elif isinstance(event, TaskNoticed) and event.cause is Cause.PREEMPT:
                taken.add(event.ref.uid)
            elif isinstance(event, TaskNoticed) and event.cause is Cause.UPDATE:
                updated.add(event.ref.uid)  # an envelope is healthy at once, and the next one leaves
        self._gangs(state, placed - updated, taken, now_s)

    def follow(self, event: Event) -> None:
        """Check one event against those before it."""
        if isinstance(event, TaskPlaced):
            self._placed(event)
        elif isinstance(event, TaskNoticed):
            self._noticed(event)
        elif isinstance(event, TaskEnded):
            self._ended(event)
        elif isinstance(event, JobFinished):
            _require(event.uid not in self.finished, f"{event.uid} finishes twice")
            self.finished.add(event.uid)

    def _placed(self, event: TaskPlaced) -> None:
        """1. Epochs rise, and nothing starts that has not ended."""
        _require(event.ref.uid not in self.finished, f"{event.ref} starts after its job finished")
        _require(event.ref.epoch > self.highest_epoch, f"{event.ref}: its epoch was used before")
        self.highest_epoch = event.ref.epoch
        same = [r for r in self.open if (r.uid, r.index) == (event.ref.uid, event.ref.index)]
        _require(not same, f"{event.ref} is placed while {same} has not ended")
        self.open.add(event.ref)

    def _noticed(self, event: TaskNoticed) -> None:
        """7. Whoever gives way has a notice, once."""
        _require(event.ref in self.open, f"{event.ref} is told to leave and does not run")
        _require(event.ref not in self.noticed, f"{event.ref} is told to leave twice")
        self.noticed[event.ref] = event
        self.num_preempted += event.cause is Cause.PREEMPT

    def _ended(self, event: TaskEnded) -> None:
        _require(event.ref in self.open, f"{event.ref} ends twice, or never began")
        self.open.discard(event.ref)
        if event.cause is Cause.PREEMPT:
            _require(event.ref in self.noticed, f"{event.ref} was preempted without a notice")

    def _gangs(self, state: CellState, placed: set[str], taken: set[str], now_s: float) -> None:
        """5. A gang starts whole, and what is broken is mended or given up within a bounded time."""
        for job in state.live_jobs():
            size, least = gang_size(job)
            if job.uid in placed and job.stopping is None:
                _require(size >= least, f"{job.uid} starts with {size} of {least}")
            if job.uid in taken and job.uid not in self.below_min_since:
                whole = not job.staying_tasks() or size >= least
                _require(whole, f"{job.uid} is taken to {size}, below its minimum of {least}")
            lost = any(t.state is TaskState.PENDING and t.ended_s for t in job.tasks[: job.desired])
            broken = job.stopping is None and not job.spec.is_service and job.staying_tasks() and lost
            if broken and size < least:
                self.below_min_since.setdefault(job.uid, now_s)
            else:
                self.below_min_since.pop(job.uid, None)

    def check_bounded(self, now_s: float, slack_s: float) -> None:
        """5. No gang has been broken for longer than its repair may take."""
        for uid, since_s in self.below_min_since.items():
            _require(now_s <= since_s + GANG_REPAIR_S + slack_s, f"{uid} has been broken since {since_s:.1f}")


def gang_size(job: Job) -> tuple[int, int]:
    """Return how many replicas run for good or are done, and how many must."""
    if job.spec.array is not None:
        return 0, 0
    done = sum(1 for t in job.tasks if t.state is TaskState.SUCCEEDED)
    return len(job.staying_tasks()) + done, min(job.spec.replicas.min, job.desired)


# ------------------------------------------------------------------------------------ single moments


def check_production(state: CellState) -> None:
    """2. What production has reserved on a machine never exceeds it, whatever else is there."""
    used: dict[str, Resources] = {}
    for job in state.live_jobs():
        if job.spec.priority.band >= Band.PRODUCTION:
            for task in job.active_tasks():
                if not task.envelope:
                    used[task.machine] = used.get(task.machine, Resources()) + task.resources
    for name, reserved in used.items():
        machine = state.machines.get(name)
        if machine is not None:
            over = f"production holds {reserved} of {machine.spec.capacity} on '{name}'"
            _require(reserved.fits(machine.spec.capacity), over)


def check_replay(state: CellState, log: MemoryLog) -> None:
    """12. The journal leads to the live state, and any prefix of it to some earlier one."""
    _require(encode_state(log.replay()) == encode_state(state), "the journal does not lead to the state")


def check_deterministic(state: CellState, now_s: float, seed: int) -> None:
    """11. The same snapshot and seed give byte for byte the same plan, in this process or a later one."""
    first, _ = schedule(take_snapshot(state, now_s), seed)
    again, _ = schedule(take_snapshot(decode_state(encode_state(state)), now_s), seed)
    same = msgspec.json.encode(first) == msgspec.json.encode(again)
    _require(same, f"two plans for one state: {first} and {again}")


def check_no_lost_wakeup(runtime: Runtime, outcome: Outcome, now_s: float, seed: int) -> None:
    """13. What waits has a reason, and a cell that thinks it is at rest has nothing left to do."""
    if runtime.dirty:
        return
    snapshot = take_snapshot(runtime.state, now_s)
    plan, trace = schedule(snapshot, seed)
    verified = verify_plan(runtime.state, plan, now_s)
    _require(not verified.events, f"at rest, and yet this would be done: {verified.events}")
    _require(plan.is_empty(), f"the scheduler proposes what the cell does not take: {plan}")
    for job in snapshot.jobs:
        if any(t.pending for t in job.tasks) and not job.stopping:
            _require(job.uid in trace.waiting, f"{job.uid} waits without a reason")


def check_plan_fits(state: CellState, plan: Plan, now_s: float) -> None:
    """A plan for this very state is taken whole by the check of plans."""
    verified = verify_plan(state, plan, now_s)
    placed = {(e.ref.uid, e.ref.index) for e in verified.events if isinstance(e, TaskPlaced)}
    missing = [p for p in plan.placements if (p.uid, p.index) not in placed]
    _require(not missing, f"a fresh plan is not taken: {missing}")


# ------------------------------------------------------------------------------------- minimal victims


def check_minimal(snapshot: Snapshot, plan: Plan, seed: int) -> int:
    """6. Drop any one victim (or whole gang) of a plan and its beneficiary does not start.

    Returns:
        How many victims were tried.
    """
    tried = 0
    for by in dict.fromkeys(r.by for r in plan.removals):
        victims = [r for r in plan.removals if r.by == by]
        for spared in _units_of(snapshot, victims):
            rest = [r for r in victims if r not in spared]
            if _starts_without(snapshot, plan, by, rest, seed):
                raise InvariantError(f"{by} would start without taking {spared}")
            tried += 1
    return tried


def _units_of(snapshot: Snapshot, victims: list[Removal]) -> list[list[Removal]]:
    """Return what may be spared alone: single replicas, or a gang that goes as a whole."""
    units: list[list[Removal]] = []
    for uid in dict.fromkeys(r.uid for r in victims):
        mine = [r for r in victims if r.uid == uid]
        units += [mine] if min(r.new_size for r in mine) == 0 else [[r] for r in mine]
    return units


def _starts_without(snapshot: Snapshot, plan: Plan, by: str, gone: list[Removal], seed: int) -> bool:
    """Whether the beneficiary is placed once these have left, with nobody else told to leave for it."""
    left = {(r.uid, r.index) for r in gone}
    others = {(r.uid, r.index) for r in plan.removals} - left
    claims = tuple(c for c in snapshot.claims if c.uid != by)
    jobs = tuple(_without(job, left, keep=job.uid == by) for job in snapshot.jobs)
    after = msgspec.structs.replace(snapshot, jobs=jobs, claims=claims)
    found, _ = schedule(after, seed)
    placed = {p.index for p in found.placements if p.uid == by}
    wanted = {c.index for c in plan.claims if c.uid == by}
    more = any(r.by == by and (r.uid, r.index) in others for r in found.removals)
    return bool(wanted) and wanted <= placed and not more


def _without(job: JobView, left: set[tuple[str, int]], keep: bool) -> JobView:
    """Return a job without the tasks that left; a victim is not there to come back."""
    tasks: list[TaskView] = []
    for task in job.tasks:
        leaves = (job.uid, task.index) in left or (task.leaving and not keep)
        if not leaves and (keep or not task.pending):
            tasks.append(task)
    return msgspec.structs.replace(job, tasks=tuple(tasks))
