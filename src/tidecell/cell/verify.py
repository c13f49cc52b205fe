"""Check a plan against the state as it is now; what no longer holds is left out. Pure.

The scheduler works on a snapshot; meanwhile the cell moves on. As in Nomad, a plan is a proposal:
a gang whose placements do not all hold is dropped whole, a beneficiary whose victims are not all
there keeps none of them. What is dropped stays pending and is planned again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidecell.cell.admission import blocking
from tidecell.cell.allocs import find_row
from tidecell.cell.disruptions import spare_disruptions
from tidecell.cell.domains import in_one_domain, is_even
from tidecell.cell.drains import closed_machines
from tidecell.cell.ledger import Ledger
from tidecell.cell.quota import gate_of, view_of
from tidecell.cell.state import CellState, Job, Task
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


@dataclass
class Verified:
    """The part of a plan that holds."""

    events: list[Event] = field(default_factory=list)
    placed: list[TaskPlaced] = field(default_factory=list)
    touched: set[str] = field(default_factory=set)
    num_placed: dict[str, int] = field(default_factory=dict)  # by uid


def verify_plan(state: CellState, plan: Plan, now_s: float) -> Verified:
    """Return the events of what still holds of ``plan``."""
    out, ledger = Verified(), Ledger(state)
    for uid, index in plan.withdrawals:
        if (uid, index) in state.claims:
            ledger.dropped.add((uid, index))
            out.events.append(ClaimDropped(uid, index))
            out.touched.add(uid)
    ledger.closed = closed_machines(state, now_s)
    gate = gate_of(state, now_s)
    if gate is not None:
        for uid, index in plan.withdrawals:
            gate.drop_claim(uid, index)
    for uid, group in _by_job(state, plan.placements):
        job = state.jobs.get(uid)
        if job is None or (job.spec.array is not None and _array_is_full(job, out)):
            continue
        if _gang_holds(state, job, group, ledger, out):
            if not _quota_holds(job, group, gate):
                ledger.give_back(group)
                continue
            _place(state, job, group, ledger, out)
    for uid, (removals, claims) in _by_beneficiary(plan).items():
        beneficiary = state.jobs.get(uid)
        if beneficiary is None:
            continue
        if _removals_hold(state, beneficiary, removals, claims, out, ledger, gate):
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


def _gang_holds(state: CellState, job: Job, group: list[Placement], ledger: Ledger, out: Verified) -> bool:
    """Whether all of a group can be placed; if so they are on the ledger."""
    if job.held or (job.spec.after and blocking(state, job)):
        return False
    size = job.num_staying + job.num_succeeded + len(group)
    if size < min(job.spec.replicas.min, job.desired):
        return False
    mine = {(job.uid, placement.index) for placement in group}
    if len(mine) < len(group):
        return False
    homes = _homes(job, out)
    if not in_one_domain(state, job, group, homes) or not is_even(state, job, group, homes, ledger.closed):
        return False
    for done, placement in enumerate(group):
        if not _placement_holds(job, placement, mine, ledger):
            ledger.give_back(group[:done])
            return False
    return True


def _homes(job: Job, out: Verified) -> list[str]:
    """Return the machines of a job's replicas, of those too that this very plan started before."""
    staying = [task.machine for task in job.staying_tasks()]
    if job.uid not in out.num_placed:
        return staying
    return staying + [p.machine for p in out.placed if p.ref.uid == job.uid]


def _placement_holds(job: Job, placement: Placement, mine: set[tuple[str, int]], ledger: Ledger) -> bool:
    if _pending_and_wanted(job, placement.index) is None or placement.shape >= len(job.spec.shapes):
        return False
    if placement.resources != job.spec.request(placement.index, placement.shape):
        return False
    return ledger.meets(job.spec, placement) and ledger.take(placement, mine)


def _quota_holds(job: Job, group: list[Placement], gate: Gate | None) -> bool:
    """Whether the team's quota covers these as well; those of the gang together, the others one by one."""
    if gate is None:
        return True
    view = view_of(job)
    missing = max(0, min(job.spec.replicas.min, job.desired) - job.num_staying - len(view.done))
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


def _place(state: CellState, job: Job, group: list[Placement], ledger: Ledger, out: Verified) -> None:
    for placement in group:
        task = job.tasks[placement.index]
        if (job.uid, task.index) in state.claims and (job.uid, task.index) not in ledger.dropped:
            out.events.append(ClaimDropped(job.uid, task.index))
            ledger.dropped.add((job.uid, task.index))
        # The sequence number that this event will get: unique, and higher than any before.
        ref = TaskRef(job.uid, task.index, state.seq + len(out.events) + 1)
        row = find_row(state, placement.machine)
        host = row.host if row is not None else ""
        placed = TaskPlaced(
            ref,
            task.attempt + 1,
            host or placement.machine,
            placement.accelerators,
            placement.resources,
            placement.shape,
            placement.machine if host else "",
        )
        out.events.append(placed)
        out.placed.append(placed)
    out.touched.add(job.uid)
    out.num_placed[job.uid] = out.num_placed.get(job.uid, 0) + len(group)


def _by_beneficiary(plan: Plan) -> dict[str, tuple[list[Removal], list[Claim]]]:
    groups: dict[str, tuple[list[Removal], list[Claim]]] = {}
    for removal in plan.removals:
        groups.setdefault(removal.by, ([], []))[0].append(removal)
    for claim in plan.claims:
        groups.setdefault(claim.uid, ([], []))[1].append(claim)
    return groups


def _removals_hold(
    state: CellState,
    by: Job,
    removals: list[Removal],
    claims: list[Claim],
    out: Verified,
    ledger: Ledger,
    gate: Gate | None,
) -> bool:
    """Whether these may be told to leave, and what is claimed is then there; if so it is on the ledger."""
    if not claims or any(_pending_and_wanted(by, claim.index) is None for claim in claims):
        return False  # nobody leaves in vain: what is freed must be held for somebody who waits
    shapes = range(len(by.spec.shapes))
    if any(c.resources not in [by.spec.request(c.index, s) for s in shapes] for c in claims):
        return False
    going: list[tuple[str, int]] = []
    holds = all(_removal_holds(state, by, removal, out, ledger, gate, going) for removal in removals)
    losers = [state.jobs[uid] for uid in dict.fromkeys(uid for uid, _ in going)]
    holds = holds and all(_may_lose(job, ledger) and _budget_holds(job, ledger) for job in losers)
    holds = holds and (gate is None or _takes_back(by, claims, removals, state, gate))
    if holds and ledger.claim(by.uid, claims):
        return True
    for key in going:
        ledger.stay(key)
    return False


def _removal_holds(
    state: CellState,
    by: Job,
    removal: Removal,
    out: Verified,
    ledger: Ledger,
    gate: Gate | None,
    going: list[tuple[str, int]],
) -> bool:
    job = state.jobs.get(removal.uid)
    if job is None or not job.live or removal.index >= len(job.tasks):
        return False
    task, key = job.tasks[removal.index], (removal.uid, removal.index)
    if not task.active or task.notice is not None or task.row != removal.machine:
        return False
    if removal.uid in out.num_placed or key in ledger.leaving:
        return False  # it cannot grow and shrink at once
    if gate is None and job.spec.priority.band >= by.spec.priority.band:
        return False
    ledger.leave(key)
    going.append(key)
    return True


def _budget_holds(job: Job, ledger: Ledger) -> bool:
    """Whether the job's disruption budget, over all causes, covers those that this plan takes."""
    spare = spare_disruptions(job)
    return spare is None or ledger.num_leaving.get(job.uid, 0) <= spare


def _may_lose(job: Job, ledger: Ledger) -> bool:
    """Whether a job's own policy allows that these leave: what is above its minimum, or all of it."""
    rest = job.num_staying - ledger.num_leaving.get(job.uid, 0)
    above_min = rest + job.num_succeeded >= min(job.spec.replicas.min, job.desired)
    if job.spec.preemption is Preemption.ANY:
        return above_min or rest == 0
    return job.spec.preemption is Preemption.ABOVE_MIN and above_min


def _remove(
    state: CellState, by: Job, removals: list[Removal], claims: list[Claim], now_s: float, out: Verified
) -> None:
    for removal in removals:
        job = state.jobs[removal.uid]
        ref = state.ref(job, job.tasks[removal.index])
        deadline_s = now_s + job.spec.grace_period_s
        out.events.append(TaskNoticed(ref, Cause.PREEMPT, deadline_s, removal.new_size, by.spec.name))
        out.touched.add(job.uid)
    for claim in claims:
        out.events.append(Claimed(claim))
    out.touched.add(by.uid)
