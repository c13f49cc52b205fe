"""``schedule``: the one function behind the live cell, ``plan``, ``why`` and the simulator. Pure.

Work is taken in order: band, then gangs before growth, then the integer inside the band, then age. A
gang is placed whole or not at all. What does not fit may take capacity from lower bands; what still
does not fit reserves its place, and later work may use only what that place leaves over, or time that
ends before it (EASY backfill, Lifka 1995). Same snapshot and seed, same plan.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec.structs import replace

from tidecell.scheduler.board import Board
from tidecell.scheduler.preemption import find_victims
from tidecell.scheduler.quota import Block, Gate
from tidecell.scheduler.snapshot import JobView, PlanTrace, Snapshot, TaskView, Waiting
from tidecell.structs.job import Reason
from tidecell.structs.messages import Claim, Placement, Plan, Removal
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import team_of


@dataclass(frozen=True)
class Unit:
    """Tasks of one job that are placed together.

    Attributes:
        demanded: It may preempt and reserve; growth of an elastic job only fills what is spare.
    """

    job: JobView
    tasks: tuple[TaskView, ...]
    growth: bool
    demanded: bool

    @property
    def indices(self) -> list[int]:
        """Indices of its tasks."""
        return [t.index for t in self.tasks]

    def order(self) -> tuple[int, int, int, float]:
        """Sort key: what is served first. Equal keys keep the snapshot's order: first come, first served."""
        priority = self.job.spec.priority
        return (-int(priority.band), int(self.growth), -priority.order, self.job.submitted_s)


@dataclass
class _Pass:
    """One scheduling pass."""

    snapshot: Snapshot
    board: Board
    trace: PlanTrace = field(default_factory=PlanTrace)
    placements: list[Placement] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    withdrawals: list[tuple[str, int]] = field(default_factory=list)
    left: set[tuple[str, int]] = field(default_factory=set)  # told to leave in this very pass
    heads: list[tuple[JobView, float]] = field(default_factory=list)  # who reserved, and from when
    without_gang: set[str] = field(default_factory=set)  # jobs whose gang does not start in this pass
    failed_shapes: dict[tuple[object, ...], Waiting] = field(default_factory=dict)
    gate: Gate | None = None  # quota; None: everything is allowed


def schedule(snapshot: Snapshot, seed: int = 0) -> tuple[Plan, PlanTrace]:
    """Return what to do now, and why the rest waits.

    Args:
        snapshot: The cell as it is.
        seed: Breaks ties between machines that are equally good; 0: the smallest name.
    """
    run = _Pass(snapshot, Board(snapshot, seed), gate=Gate.of(snapshot))
    units: list[Unit] = []
    for job in snapshot.jobs:
        units += _units(run, job)
    _drop_idle_claims(run, units)
    for unit in run.gate.in_order(units) if run.gate is not None else sorted(units, key=Unit.order):
        run.trace.order.setdefault(unit.job.uid)
        _serve(run, unit)
    plan = Plan(tuple(run.placements), tuple(run.removals), tuple(run.claims), tuple(run.withdrawals))
    return plan, run.trace


def _drop_idle_claims(run: _Pass, units: list[Unit]) -> None:
    """Give up what is held for a task that may no longer demand it, for example after a rescale."""
    demanded = {(unit.job.uid, index) for unit in units if unit.demanded for index in unit.indices}
    for key in sorted(set(run.board.claims) - demanded):
        del run.board.claims[key]
        run.withdrawals.append(key)
        if run.gate is not None:
            run.gate.drop_claim(*key)


def _units(run: _Pass, job: JobView) -> list[Unit]:
    """Split a job's waiting tasks into its gang's missing part and single replicas of growth."""
    if job.stopping:
        return []
    pending = [t for t in job.tasks if t.pending]
    if not pending:
        return []
    if job.blocked_by:
        names = ", ".join(f"'{n}'" for n in job.blocked_by)
        run.trace.waiting[job.uid] = Waiting((Reason.DEPENDENCY,), f"comes after {names}", len(pending))
        return []
    ready = [t for t in pending if t.not_before_s <= run.snapshot.now_s]
    if len(ready) < len(pending):
        at = min(t.not_before_s for t in pending if t not in ready)
        wait_s = at - run.snapshot.now_s
        text = f"starts again in {wait_s:.1f} s after a failure"
        run.trace.waiting[job.uid] = Waiting((Reason.BACKOFF,), text, len(pending) - len(ready))
    if job.spec.array is not None:
        room = job.spec.replicas.max - sum(1 for t in job.tasks if t.machine)
        return [Unit(job, (t,), growth=False, demanded=True) for t in ready[: max(0, room)]]
    staying = sum(1 for t in job.tasks if t.machine and not t.leaving)
    missing = max(0, min(job.spec.replicas.min, job.desired) - staying - len(job.done))
    if missing > len(ready):  # part of the gang backs off or is still leaving: all or nothing
        if job.uid not in run.trace.waiting:
            text = "its replicas that were told to leave have not left yet"
            run.trace.waiting[job.uid] = Waiting((Reason.WAITING_FOR_CAPACITY,), text, len(pending))
        return []
    gang = [Unit(job, tuple(ready[:missing]), growth=False, demanded=True)] if missing else []
    demanded = job.spec.is_service
    return gang + [Unit(job, (t,), growth=True, demanded=demanded) for t in ready[missing:]]


def _serve(run: _Pass, unit: Unit) -> None:
    if not run.board.slots:
        _wait(run, unit, Reason.WAITING_FOR_CAPACITY, detail="no machine has joined yet")
        return
    if any(uid == unit.job.uid for uid, _ in run.left):
        # Its size has just changed: what it lacks is counted anew in the next pass.
        _wait(run, unit, Reason.PRIORITY, detail="gives room to more important work just now")
        return
    if unit.growth and unit.job.uid in run.without_gang:
        _wait(run, unit, *run.trace.waiting[unit.job.uid].reasons, detail="its gang starts first")
        return
    shape = _shape(unit) if run.gate is None else (*_shape(unit), *_standing(unit))
    known = run.failed_shapes.get(shape)
    if known is not None and not _has_claim(run, unit):
        run.without_gang.update([] if unit.growth else [unit.job.uid])
        _wait(run, unit, *known.reasons, detail=known.detail, behind=known.behind)
        return
    block = run.gate.check(unit.job, unit.indices, unit.growth) if run.gate is not None else None
    if block is not None:
        _wait_for_quota(run, unit, block, shape)
        return
    if _place(run, unit):
        return
    run.without_gang.update([] if unit.growth else [unit.job.uid])
    if unit.demanded and _preempt(run, unit):
        return
    waiting = _explain_wait(run, unit)
    _wait(run, unit, *waiting.reasons, detail=waiting.detail, behind=waiting.behind)
    # Nothing becomes free during a pass, so the same shape fails again: do not ask twice.
    run.failed_shapes[shape] = waiting
    # What could not start on an empty cell gets no place kept: it would starve all others in vain.
    if unit.demanded and Reason.NO_MATCHING_MACHINE not in waiting.reasons:
        run.heads.append((unit.job, shadow_start_s(run.snapshot, unit.job, len(unit.tasks))))
        run.board.reserve(unit.job, len(unit.tasks))


def _shape(unit: Unit) -> tuple[object, ...]:
    """What makes two units fail alike."""
    spec = unit.job.spec
    size = (spec.resources, spec.accelerator_type, len(unit.tasks), spec.max_duration_s)
    return (*size, spec.priority.band, unit.demanded)


def _standing(unit: Unit) -> tuple[object, ...]:
    """What makes two units of the same shape stand alike before the gate."""
    return (team_of(unit.job.spec), unit.growth, unit.job.spec.preemption)


def _wait_for_quota(run: _Pass, unit: Unit, block: Block, shape: tuple[object, ...]) -> None:
    """Take back what others borrowed of this unit's own, or else let it wait."""
    run.without_gang.update([] if unit.growth else [unit.job.uid])
    if unit.demanded and (block.others or _has_claim(run, unit)) and _preempt(run, unit):
        return
    _wait(run, unit, Reason.WAITING_FOR_QUOTA, detail=block.text)
    run.failed_shapes[shape] = Waiting((Reason.WAITING_FOR_QUOTA,), block.text)
    if unit.demanded and run.gate is not None:
        run.gate.hold(unit.job, unit.indices)


def _has_claim(run: _Pass, unit: Unit) -> bool:
    return any((unit.job.uid, i) in run.board.claims for i in unit.indices)


def _is_claimed(run: _Pass, unit: Unit) -> bool:
    """Whether room is held for the whole unit: nobody's later reservation takes that from it."""
    return all((unit.job.uid, i) in run.board.claims for i in unit.indices)


def _place(run: _Pass, unit: Unit) -> bool:
    machines = run.board.fit(unit.job, unit.indices)
    if machines is None and (_is_claimed(run, unit) or _ends_before_heads(run, unit)):
        machines = run.board.fit(unit.job, unit.indices, ignore_reserved=True)
    if machines is None:
        return False
    for index, machine in zip(unit.indices, machines, strict=True):
        given = run.board.take(unit.job, index, machine)
        request = unit.job.spec.request(index)
        run.placements.append(Placement(unit.job.uid, index, machine, given, request))
        if run.gate is not None:
            run.gate.admit(unit.job, index, request, unit.growth)
    return True


def _ends_before_heads(run: _Pass, unit: Unit) -> bool:
    """Whether this work is over before any reserved start: it may use the reserved room."""
    limit_s = unit.job.spec.max_duration_s
    if not run.heads or not limit_s:
        return False
    return all(start_s and run.snapshot.now_s + limit_s <= start_s for _, start_s in run.heads)


def _preempt(run: _Pass, unit: Unit) -> bool:
    """Take capacity from lower bands, and hold it for this unit; or its own quota back from borrowers."""
    jobs = [_as_seen_now(run, job) for job in run.snapshot.jobs]
    if _has_claim(run, unit):
        held = _is_claimed(run, unit)
        fits = run.board.fit(unit.job, unit.indices, future=True, ignore_reserved=held) is not None
        if fits and (run.gate is None or run.gate.check(unit.job, unit.indices, future=True) is None):
            _wait(run, unit, Reason.WAITING_FOR_PREEMPTED, detail="the capacity held for it is being vacated")
            return True
        for index in unit.indices:
            if run.board.claims.pop((unit.job.uid, index), None) is not None:
                run.withdrawals.append((unit.job.uid, index))
                if run.gate is not None:
                    run.gate.drop_claim(unit.job.uid, index)
    victims = find_victims(run.board, jobs, unit.job, unit.indices, run.snapshot.now_s, run.gate)
    if victims is None:
        return False
    sizes = {job.uid: sum(1 for t in job.tasks if t.machine and not t.leaving) for job in jobs}
    for job, _ in victims.tasks:
        sizes[job.uid] -= 1
    for job, task in victims.tasks:
        run.removals.append(Removal(job.uid, task.index, task.machine, unit.job.uid, sizes[job.uid]))
        run.left.add((job.uid, task.index))
        run.board.leave(task)
        if run.gate is not None:
            run.gate.leave(job, task)
    for index, machine in zip(unit.indices, victims.machines, strict=True):
        claim = Claim(unit.job.uid, index, machine, unit.job.spec.resources)
        run.claims.append(claim)
        run.board.claim(claim)
        if run.gate is not None:
            run.gate.claim(unit.job, index, claim.resources)
    names = (
        ", ".join(dict.fromkeys(f"'{job.name}'" for job, _ in victims.tasks)) or "tasks that leave already"
    )
    _wait(run, unit, Reason.WAITING_FOR_PREEMPTED, detail=f"takes the place of {names}")
    return True


def _as_seen_now(run: _Pass, job: JobView) -> JobView:
    """The job with the tasks marked that this pass has already told to leave."""
    if not any(uid == job.uid for uid, _ in run.left):
        return job
    tasks = tuple(replace(t, leaving=True) if (job.uid, t.index) in run.left else t for t in job.tasks)
    spare = job.spare_disruptions
    if spare is not None:
        spare -= sum(1 for uid, _ in run.left if uid == job.uid)
    return replace(job, tasks=tasks, spare_disruptions=spare)


def _wait(run: _Pass, unit: Unit, *reasons: Reason, detail: str, behind: str = "") -> None:
    known = run.trace.waiting.get(unit.job.uid)
    count = len(unit.tasks) + (known.num_tasks if known is not None else 0)
    if known is not None:
        reasons = tuple(dict.fromkeys((*known.reasons, *reasons)))
        detail, behind = known.detail or detail, known.behind or behind
    run.trace.waiting[unit.job.uid] = Waiting(reasons, detail, count, behind)


def _explain_wait(run: _Pass, unit: Unit) -> Waiting:
    """Return all reasons that bind this unit, the decisive one first."""
    spec = unit.job.spec
    matching = [s for s in run.board.slots.values() if s.spec.has_type(spec.accelerator_type)]
    room = sum(spec.resources.copies_in(s.spec.capacity) for s in matching)
    needs = _describe_needs(unit)
    if room < len(unit.tasks):
        detail = f"needs {needs}; the empty cell holds {room}"
        return Waiting((Reason.NO_MATCHING_MACHINE,), detail)
    free = _describe_free(run)
    if run.board.fit(unit.job, unit.indices, ignore_reserved=True) is not None:
        head = run.heads[0][0].name if run.heads else ""
        detail = f"needs {needs}; what is free is held for '{head}', which goes first"
        return Waiting((Reason.PRIORITY, Reason.WAITING_FOR_CAPACITY), detail, behind=head)
    reasons: tuple[Reason, ...] = (Reason.WAITING_FOR_CAPACITY,)
    if run.heads:
        reasons = (Reason.WAITING_FOR_CAPACITY, Reason.PRIORITY)
    behind = run.heads[0][0].name if run.heads else ""
    return Waiting(reasons, f"needs {needs}; free now: {free}", behind=behind)


def _describe_needs(unit: Unit) -> str:
    each = unit.job.spec.resources.describe()
    return each if len(unit.tasks) == 1 else f"{len(unit.tasks)} x {each} together"


def _describe_free(run: _Pass) -> str:
    names = sorted(run.board.slots)
    parts = [
        f"{name}: {'is being drained' if name in run.board.closed else _with_cpu(run.board.free_for(name))}"
        for name in names[:4]
    ]
    return "; ".join(parts) + ("; ..." if len(names) > 4 else "")


def _with_cpu(free: Resources) -> str:
    """Say also that there is no cpu, which a request's description would leave out."""
    text = free.describe()
    return text if free.cpu_millis or " cpu" in text else f"0 cpu, {text}"


def shadow_start_s(snapshot: Snapshot, job: JobView, count: int) -> float:
    """Return when a blocked gang starts at the latest, by the time limits of what runs; 0: unknown.

    Releases are taken in order of their limits, until ``count`` replicas fit.
    """
    free = {
        m.name: m.capacity
        for m in snapshot.machines
        if m.name not in snapshot.closed and m.has_type(job.spec.accelerator_type)
    }
    ends: list[tuple[float, str, Resources]] = []
    for other in snapshot.jobs:
        for task in other.tasks:
            if task.machine in free:
                free[task.machine] = free[task.machine] - task.resources
                end_s = task.leaving_by_s if task.leaving else other.ends_by_s
                if end_s:
                    ends.append((end_s, task.machine, task.resources))
    for end_s, machine, resources in sorted(ends, key=lambda e: (e[0], e[1])):
        free[machine] = free[machine] + resources
        if _count_fitting(free, job.spec.resources) >= count:
            return end_s
    return 0.0


def _count_fitting(free: dict[str, Resources], request: Resources) -> int:
    return sum(request.copies_in(room) for room in free.values() if not room.has_negative())


__all__ = ["Unit", "schedule", "shadow_start_s"]
