"""Check a plan against the state as it is now; what no longer holds is left out. Pure.

The scheduler works on a snapshot; meanwhile the cell moves on. As in Nomad, a plan is a proposal:
a gang whose placements do not all hold is dropped whole, a beneficiary whose victims are not all
there keeps none of them. What is dropped stays pending and is planned again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidecell.cell.admission import blocking
from tidecell.cell.disruptions import spare_disruptions
from tidecell.cell.drains import closed_machines
from tidecell.cell.quota import gate_of, view_of
from tidecell.cell.state import CellState, Job, Task
from tidecell.cell.usage import MachineUse, held_for_others, machine_use
from tidecell.scheduler.quota import Freed, Gate
from tidecell.structs.job import Cause, Preemption, TaskState
from tidecell.structs.messages import (
    Claim,
    ClaimDropped,
    Claimed,
    Event,
    Placement,
    Plan,
    Removal,
    TaskNoticed,
    TaskPlaced,
    TaskRef,
)
from tidecell.structs.resources import Resources


@dataclass
class Verified:
    """The part of a plan that holds."""

    events: list[Event] = field(default_factory=list)
    placed: list[TaskPlaced] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    leaving: set[tuple[str, int]] = field(default_factory=set)  # told to leave by this very plan
    num_placed: dict[str, int] = field(default_factory=dict)  # by uid


def verify_plan(state: CellState, plan: Plan, now_s: float) -> Verified:
    """Return the events of what still holds of ``plan``."""
    out = Verified()
    for uid, index in plan.withdrawals:
        if (uid, index) in state.claims:
            out.events.append(ClaimDropped(uid, index))
            out.touched.add(uid)
    use = machine_use(state)
    closed = closed_machines(state, now_s)
    gate = gate_of(state, now_s)
    if gate is not None:
        for uid, index in plan.withdrawals:
            gate.drop_claim(uid, index)
    for uid, group in _by_job(state, plan.placements):
        job = state.jobs.get(uid)
        if job is None or (job.spec.array is not None and _array_is_full(job, out)):
            continue
        if _gang_holds(state, job, group, use, closed) and _quota_holds(job, group, gate):
            _place(state, job, group, use, out)
            out.num_placed[uid] = out.num_placed.get(uid, 0) + len(group)
    for uid, removals, claims in _by_beneficiary(plan):
        beneficiary = state.jobs.get(uid)
        if any(claim.machine in closed for claim in claims):
            continue
        if beneficiary is not None and _removals_hold(state, beneficiary, removals, claims, out, gate):
            _remove(state, beneficiary, removals, claims, now_s, out)
            _note_removals(state, beneficiary, removals, claims, gate)
    return out


def _by_job(state: CellState, placements: Iterable[Placement]) -> list[tuple[str, list[Placement]]]:
    """Return what holds together or not at all: a job's placements, but an array's items one by one."""
    groups: dict[tuple[str, int], list[Placement]] = {}
    for placement in placements:
        job = state.jobs.get(placement.uid)
        item = placement.index if job is not None and job.spec.array is not None else 0
        groups.setdefault((placement.uid, item), []).append(placement)
    return [(uid, group) for (uid, _), group in groups.items()]


def _array_is_full(job: Job, out: Verified) -> bool:
    """Whether as many items run, or start in this very plan, as may run at once."""
    return job.num_active + out.num_placed.get(job.uid, 0) >= job.spec.replicas.max


def _pending_and_wanted(job: Job, index: int) -> Task | None:
    if not job.live or job.stopping is not None or index >= len(job.tasks) or not job.wants(index):
        return None
    task = job.tasks[index]
    return task if task.state is TaskState.PENDING else None


def _gang_holds(
    state: CellState,
    job: Job,
    group: list[Placement],
    use: dict[str, MachineUse],
    closed: frozenset[str],
) -> bool:
    if job.spec.after and blocking(state, job):
        return False
    if len(job.staying_tasks()) + job.num_succeeded + len(group) < min(job.spec.replicas.min, job.desired):
        return False
    if len({placement.index for placement in group}) < len(group):
        return False
    extra: dict[str, Resources] = {}
    taken: set[tuple[str, int]] = set()
    for placement in group:
        machine = state.machines.get(placement.machine)
        if machine is None or not machine.up or placement.machine in closed:
            return False
        if _pending_and_wanted(job, placement.index) is None:
            return False
        if placement.shape >= len(job.spec.shapes):
            return False
        wanted = job.spec.request(placement.index, placement.shape)
        if placement.resources != wanted:
            return False
        extra[placement.machine] = extra.get(placement.machine, Resources()) + wanted
        entry = use[placement.machine]
        held = held_for_others(state, placement.machine, job.uid, placement.index)
        for sibling in group:  # a sibling's claim on this machine is part of this very gang
            claim = state.claims.get((job.uid, sibling.index))
            if claim and claim.machine == placement.machine and sibling is not placement:
                held = held - claim.resources
        if not (entry.used + held + extra[placement.machine]).fits(entry.capacity):
            return False
        indices = {(placement.machine, i) for i in placement.accelerators}
        if len(placement.accelerators) != wanted.num_accelerators or indices & taken:
            return False
        if entry.accelerators & set(placement.accelerators):
            return False
        taken |= indices
    return True


def _quota_holds(job: Job, group: list[Placement], gate: Gate | None) -> bool:
    """Whether the team's quota covers these as well; those of the gang together, the others one by one."""
    if gate is None:
        return True
    view = view_of(job)
    missing = max(0, min(job.spec.replicas.min, job.desired) - len(job.staying_tasks()) - len(view.done))
    gang, growth = group[:missing], group[missing:]
    for part, above in [(gang, False), *(([p], True) for p in growth)]:
        if gate.check(view, [p.index for p in part], above) is not None:
            return False
        for p in part:
            gate.admit(view, p.index, p.resources, above)
    return True


def _takes_back(by: Job, claims: list[Claim], removals: list[Removal], state: CellState, gate: Gate) -> bool:
    """Whether each of these, where it is of the same band, is above its team's own quota at its turn."""
    freed: Freed = {}
    beneficiary, indices = view_of(by), [c.index for c in claims]
    taken: set[str] = set()
    for removal in removals:
        victim = view_of(state.jobs[removal.uid])
        if victim.spec.priority.band >= by.spec.priority.band:
            whole = removal.uid in taken and removal.new_size == 0  # a gang goes as one
            own = gate.is_entitled(beneficiary, indices)
            if not own or not (whole or gate.may_take(beneficiary, indices, victim, freed)):
                return False
            taken.add(removal.uid)
        gate.add_freed(freed, victim, [t for t in victim.tasks if t.index == removal.index])
    return gate.check(beneficiary, indices, future=True, freed=freed) is None


def _note_removals(
    state: CellState, by: Job, removals: list[Removal], claims: list[Claim], gate: Gate | None
) -> None:
    if gate is None:
        return
    for removal in removals:
        victim = view_of(state.jobs[removal.uid])
        for task in victim.tasks:
            if task.index == removal.index:
                gate.leave(victim, task)
    for claim in claims:
        gate.claim(view_of(by), claim.index, claim.resources)


def _place(
    state: CellState, job: Job, group: list[Placement], use: dict[str, MachineUse], out: Verified
) -> None:
    for placement in group:
        task = job.tasks[placement.index]
        if (job.uid, task.index) in state.claims:
            out.events.append(ClaimDropped(job.uid, task.index))
        # The sequence number that this event will get: unique, and higher than any before.
        ref = TaskRef(job.uid, task.index, state.seq + len(out.events) + 1)
        placed = TaskPlaced(
            ref,
            task.attempt + 1,
            placement.machine,
            placement.accelerators,
            placement.resources,
            placement.shape,
            placement.envelope,
        )
        out.events.append(placed)
        out.placed.append(placed)
        entry = use[placement.machine]
        entry.used = entry.used + placement.resources
        entry.accelerators.update(placement.accelerators)
    out.touched.add(job.uid)


def _by_beneficiary(plan: Plan) -> list[tuple[str, list[Removal], list[Claim]]]:
    names = dict.fromkeys([r.by for r in plan.removals] + [c.uid for c in plan.claims])
    return [
        (name, [r for r in plan.removals if r.by == name], [c for c in plan.claims if c.uid == name])
        for name in names
    ]


def _removals_hold(
    state: CellState,
    by: Job,
    removals: list[Removal],
    claims: list[Claim],
    out: Verified,
    gate: Gate | None,
) -> bool:
    if not claims or any(_pending_and_wanted(by, claim.index) is None for claim in claims):
        return False  # nobody leaves in vain: what is freed must be held for somebody who waits
    leaving = out.leaving | {(removal.uid, removal.index) for removal in removals}
    if len(leaving) != len(out.leaving) + len(removals) or not _claims_fit(state, by, leaving, claims):
        return False
    for removal in removals:
        job = state.jobs.get(removal.uid)
        if job is None or not job.live or removal.index >= len(job.tasks):
            return False
        task = job.tasks[removal.index]
        if not task.active or task.notice is not None or task.machine != removal.machine:
            return False
        if any(placed.ref.uid == removal.uid for placed in out.placed):
            return False  # it cannot grow and shrink at once
        lower = job.spec.priority.band < by.spec.priority.band
        if not (lower or gate is not None) or not _may_lose(job, leaving):
            return False
        if not _budget_holds(job, leaving):
            return False
    return gate is None or _takes_back(by, claims, removals, state, gate)


def _budget_holds(job: Job, leaving: set[tuple[str, int]]) -> bool:
    """Whether the job's disruption budget, over all causes, covers those that this plan takes."""
    spare = spare_disruptions(job)
    return spare is None or sum(1 for uid, _ in leaving if uid == job.uid) <= spare


def _may_lose(job: Job, leaving: set[tuple[str, int]]) -> bool:
    """Whether a job's own policy allows that these leave: what is above its minimum, or all of it."""
    rest = sum(1 for t in job.staying_tasks() if (job.uid, t.index) not in leaving)
    above_min = rest + job.num_succeeded >= min(job.spec.replicas.min, job.desired)
    if job.spec.preemption is Preemption.ANY:
        return above_min or rest == 0
    return job.spec.preemption is Preemption.ABOVE_MIN and above_min


def _claims_fit(state: CellState, by: Job, leaving: set[tuple[str, int]], claims: list[Claim]) -> bool:
    """Whether what is to be held will be there: free now, or when those that leave have left."""
    mine = {(by.uid, claim.index) for claim in claims}
    for name in {claim.machine for claim in claims}:
        machine = state.machines.get(name)
        if machine is None or not machine.up:
            return False
        held = [c for k, c in state.claims.items() if c.machine == name and k not in mine]
        used = Resources()
        for claim in (*held, *(c for c in claims if c.machine == name)):
            used = used + claim.resources
        for job in state.live_jobs():
            for task in job.staying_tasks():
                if task.machine == name and (job.uid, task.index) not in leaving:
                    used = used + task.resources
        if not used.fits(machine.spec.capacity):
            return False
    shapes = range(len(by.spec.shapes))
    return all(c.resources in [by.spec.request(c.index, s) for s in shapes] for c in claims)


def _remove(
    state: CellState, by: Job, removals: list[Removal], claims: list[Claim], now_s: float, out: Verified
) -> None:
    for removal in removals:
        job = state.jobs[removal.uid]
        ref = state.ref(job, job.tasks[removal.index])
        deadline_s = now_s + job.spec.grace_period_s
        out.events.append(TaskNoticed(ref, Cause.PREEMPT, deadline_s, removal.new_size, by.spec.name))
        out.touched.add(job.uid)
        out.leaving.add((removal.uid, removal.index))
    for claim in claims:
        out.events.append(Claimed(claim))
    out.touched.add(by.uid)
