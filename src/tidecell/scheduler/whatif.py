"""What would happen: changes to a snapshot, and the very scheduler run on it until it rests. Pure.

Each change does to a snapshot what the corresponding command does to the live cell: ``stop`` leaves the
tasks in place, leaving, until ``vacate`` lets the time of their notices pass. Nothing else moves: no job
ends by itself, nobody submits anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from msgspec.structs import replace

from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, PlanTrace, Snapshot, TaskView
from tidecell.structs.job import JobSpec, Priority, Replicas
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Placement, Plan, Removal

MAX_ROUNDS = 8  # victims leave and others take their place; more rounds than this mean no rest


# ------------------------------------------------------------------------------------------ reading


def find_job(snapshot: Snapshot, uid: str) -> JobView | None:
    """Return the job of this uid."""
    return next((job for job in snapshot.jobs if job.uid == uid), None)


def num_staying(job: JobView) -> int:
    """Return how many of a job's tasks run and were not told to leave."""
    return sum(1 for t in job.tasks if t.machine and not t.leaving)


def num_missing(job: JobView) -> int:
    """Return how many tasks its gang lacks."""
    return max(0, min(job.spec.replicas.min, job.desired) - num_staying(job) - len(job.done))


def num_pending(job: JobView) -> int:
    """Return how many of its tasks are wanted and do not run."""
    return sum(1 for t in job.tasks if t.pending)


# ----------------------------------------------------------------------------------------- changing


def new_job(spec: JobSpec, now_s: float, live: Iterable[str] = (), uid: str = "") -> JobView:
    """Return the job as it is right after its submission.

    Args:
        spec: What was submitted.
        now_s: When.
        live: Names of jobs that have not succeeded yet; those in ``after`` block it.
        uid: Its uid; by default one that no real job has.
    """
    desired = spec.replicas.min if spec.scaling is not None else spec.replicas.max
    if spec.array is not None:
        desired = min(spec.array.count, desired)
    tasks = tuple(TaskView(i, pending=True) for i in range(desired))
    blocked_by = tuple(name for name in spec.after if name in set(live))
    ends_by_s = now_s + spec.max_duration_s if spec.max_duration_s else 0.0
    if spec.schedule is not None:
        desired, tasks = 0, ()
    return JobView(
        uid=uid or f"{spec.name}.plan",
        spec=spec,
        submitted_s=now_s,
        desired=desired,
        tasks=tasks,
        blocked_by=blocked_by,
        ends_by_s=ends_by_s,
        held=spec.hold,
        begin_s=spec.begin_s,
    )


def with_job(snapshot: Snapshot, job: JobView) -> Snapshot:
    """Return the snapshot with this job in the place of the one of the same uid."""
    return replace(snapshot, jobs=tuple(job if j.uid == job.uid else j for j in snapshot.jobs))


def withdrawn(snapshot: Snapshot, job: JobView, seed: int = 0) -> Snapshot:
    """Return the snapshot without a waiting job, after others have taken what was kept for it."""
    others = tuple(j for j in snapshot.jobs if j.uid != job.uid)
    claims = tuple(c for c in snapshot.claims if c.uid != job.uid)
    rest = replace(snapshot, jobs=others, claims=claims)
    return carry_out(rest, schedule(rest, seed)[0])


def resubmitted(rest: Snapshot, job: JobView, spec: JobSpec) -> Snapshot:
    """Return a snapshot from which the job was ``withdrawn`` with it submitted anew under another spec.

    Its age is gone: it comes after all others of its priority.
    """
    still = tuple(name for name in job.blocked_by if name in spec.after)
    fresh = new_job(spec, rest.now_s, uid=job.uid)
    fresh = replace(fresh, blocked_by=still, held=job.held, begin_s=job.begin_s)
    return replace(rest, jobs=(*rest.jobs, fresh))


def reprioritized(snapshot: Snapshot, job: JobView, priority: Priority) -> Snapshot:
    """Return the snapshot after ``tide prio``."""
    return with_job(snapshot, replace(job, spec=replace(job.spec, priority=priority)))


def released(snapshot: Snapshot, job: JobView) -> Snapshot:
    """Return the snapshot after ``tide release``."""
    return with_job(snapshot, replace(job, held=False, begin_s=0.0))


def rescaled(snapshot: Snapshot, job: JobView, replicas: Replicas) -> Snapshot:
    """Return the snapshot after ``tide scale``: tasks beyond the wanted number leave, new ones wait."""
    if job.spec.array is not None:
        return with_job(snapshot, replace(job, spec=replace(job.spec, replicas=replicas)))
    wanted = replicas.max if job.spec.scaling is None else job.desired
    desired = max(replicas.min, min(replicas.max, wanted))
    known = {t.index: t for t in job.tasks}
    tasks = [known.get(i, TaskView(i, pending=True)) for i in range(desired) if i not in job.done]
    tasks += [_leaving(snapshot, job, t) for t in job.tasks if t.index >= desired and t.machine]
    spec = replace(job.spec, replicas=replicas)
    claims = tuple(c for c in snapshot.claims if c.uid != job.uid or c.index < desired)
    changed = replace(job, spec=spec, desired=desired, tasks=tuple(tasks))
    return replace(with_job(snapshot, changed), claims=claims)


def stopped(snapshot: Snapshot, job: JobView) -> Snapshot:
    """Return the snapshot after ``tide stop``."""
    tasks = tuple(_leaving(snapshot, job, t) for t in job.tasks if t.machine)
    claims = tuple(c for c in snapshot.claims if c.uid != job.uid)
    return replace(with_job(snapshot, replace(job, tasks=tasks, stopping=True)), claims=claims)


def _leaving(snapshot: Snapshot, job: JobView, task: TaskView) -> TaskView:
    if task.leaving:
        return task
    return replace(task, leaving=True, leaving_by_s=snapshot.now_s + job.spec.grace_period_s)


def carry_out(snapshot: Snapshot, plan: Plan) -> Snapshot:
    """Return the snapshot after a plan: placed tasks run, removed ones leave, claims hold."""
    placed = {(p.uid, p.index): p for p in plan.placements}
    removed = {(r.uid, r.index) for r in plan.removals}

    def after(job: JobView, task: TaskView) -> TaskView:
        key = (job.uid, task.index)
        if key in placed:
            return _placed(placed[key], snapshot.now_s)
        return _leaving(snapshot, job, task) if key in removed else task

    snapshot = _without_envelopes(snapshot, removed)
    changed = {uid for uid, _ in (*placed, *removed)}
    jobs = tuple(
        replace(
            job,
            tasks=tuple(after(job, t) for t in job.tasks),
            ends_by_s=_ends_by_s(snapshot, job),
            spare_disruptions=_spare(job, sum(1 for uid, _ in removed if uid == job.uid)),
        )
        if job.uid in changed
        else job
        for job in snapshot.jobs
    )
    gone = {*plan.withdrawals, *placed, *((c.uid, c.index) for c in plan.claims)}
    claims = [c for c in snapshot.claims if (c.uid, c.index) not in gone]
    machines = (*snapshot.machines, *_envelopes(snapshot, plan))
    return replace(snapshot, machines=machines, jobs=jobs, claims=(*claims, *plan.claims))


def _envelopes(snapshot: Snapshot, plan: Plan) -> Iterator[MachineSpec]:
    """Yield what allocs that a plan places reserve."""
    allocs = {job.uid: job for job in snapshot.jobs if job.spec.is_alloc}
    hosts = {m.name: m for m in snapshot.machines} if allocs else {}
    for p in plan.placements:
        if p.uid in allocs:
            name = allocs[p.uid].spec.envelope_name(p.index)
            yield hosts[p.machine].envelope(name, p.resources, p.accelerators)


def _without_envelopes(snapshot: Snapshot, removed: set[tuple[str, int]]) -> Snapshot:
    """Return the snapshot without the envelopes of removed allocs: who is in one leaves."""
    gone = {
        job.spec.envelope_name(index)
        for job in snapshot.jobs
        if job.spec.is_alloc
        for uid, index in removed
        if uid == job.uid
    }
    if not gone:
        return snapshot
    jobs = tuple(
        replace(
            job,
            tasks=tuple(_leaving(snapshot, job, t) if t.machine in gone else t for t in job.tasks),
        )
        if job.spec.alloc
        else job
        for job in snapshot.jobs
    )
    return replace(snapshot, jobs=jobs, machines=tuple(m for m in snapshot.machines if m.name not in gone))


def _spare(job: JobView, num_removed: int) -> int | None:
    return None if job.spare_disruptions is None else job.spare_disruptions - num_removed


def _placed(placement: Placement, now_s: float) -> TaskView:
    return TaskView(
        placement.index,
        machine=placement.machine,
        accelerators=placement.accelerators,
        resources=placement.resources,
        placed_s=now_s,
    )


def _ends_by_s(snapshot: Snapshot, job: JobView) -> float:
    """Return when a job ends at the latest; the clock of one that starts only now starts now."""
    limit_s = job.spec.max_duration_s
    runs = any(t.machine for t in job.tasks)
    return job.ends_by_s if runs or not limit_s else max(job.ends_by_s, snapshot.now_s + limit_s)


def vacate(snapshot: Snapshot) -> Snapshot:
    """Return the snapshot once everything that was told to leave has left."""
    jobs = []
    for job in snapshot.jobs:
        if not any(t.leaving for t in job.tasks):
            jobs.append(job)
            continue
        kept = [_left(job, t) for t in job.tasks]
        tasks = tuple(t for t in kept if t is not None)
        if tasks or not job.stopping:
            jobs.append(replace(job, tasks=tasks))
    return replace(snapshot, jobs=tuple(jobs))


def _left(job: JobView, task: TaskView) -> TaskView | None:
    if not task.leaving:
        return task
    wanted = job.wants(task.index) and not job.stopping
    return TaskView(task.index, pending=True) if wanted else None


# ------------------------------------------------------------------------------------------ running


@dataclass(frozen=True)
class Verdict:
    """How one waiting job fares.

    Attributes:
        starts: What waits of it starts: the gang, or one more replica.
        at_once: Without anybody leaving first.
        victims: Tasks that were told to leave for it, with the size that remains.
        trace: What the scheduler thought at first.
    """

    starts: bool
    at_once: bool
    victims: tuple[Removal, ...]
    trace: PlanTrace


def judge(snapshot: Snapshot, uid: str, seed: int = 0) -> Verdict:
    """Return whether the job starts if nothing else happens than what the scheduler does by itself."""
    job = find_job(snapshot, uid)
    if job is None:
        raise ValueError(f"no job {uid!r} in the snapshot")
    goal = num_staying(job) + max(1, num_missing(job))
    first: PlanTrace | None = None
    victims: list[Removal] = []
    for round_number in range(MAX_ROUNDS):
        plan, trace = schedule(snapshot, seed)
        first = first or trace
        victims += [r for r in plan.removals if r.by == uid]
        snapshot = carry_out(snapshot, plan)
        now = find_job(snapshot, uid)
        if now is not None and num_staying(now) >= goal:
            return Verdict(True, round_number == 0, tuple(victims), first)
        emptier = vacate(snapshot)
        if plan.is_empty() and emptier == snapshot:
            break
        snapshot = emptier
    return Verdict(False, False, tuple(victims), first or PlanTrace())
