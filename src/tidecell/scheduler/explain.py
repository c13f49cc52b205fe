"""``plan`` and ``why``: what a spec would lead to, why a job waits, and what would help. Pure.

Both ask the very ``schedule`` that runs the cell, on a snapshot of it; every suggestion was tried that
way before it is made. Nothing is committed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec.structs import replace

from tidecell.client.views import (
    Fix,
    Holder,
    PlannedPlacement,
    PlannedVictim,
    PlannedWait,
    PlanView,
    WhyView,
)
from tidecell.scheduler.attributes import unmet
from tidecell.scheduler.durations import History
from tidecell.scheduler.fixes import Search
from tidecell.scheduler.forecast import expected_start
from tidecell.scheduler.quota import Gate
from tidecell.scheduler.render import render_plan, render_why
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, PlanTrace, Snapshot, Waiting
from tidecell.scheduler.startrange import start_range
from tidecell.scheduler.whatif import (
    MAX_ROUNDS,
    carry_out,
    find_job,
    judge,
    new_job,
    num_missing,
    num_pending,
    num_staying,
    vacate,
)
from tidecell.scheduler.words import describe_free, describe_needs, listed, lost_with_envelope, work_at_risk
from tidecell.structs.job import JobSpec, Reason, TaskState
from tidecell.structs.messages import Placement, Plan, Removal
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import team_of

# Reasons that somebody who holds capacity has to do with.
_CAPACITY = {Reason.WAITING_FOR_CAPACITY, Reason.PRIORITY, Reason.WAITING_FOR_PREEMPTED}

# --------------------------------------------------------------------------------------------- plan


def explain_plan(
    snapshot: Snapshot, new_specs: Sequence[JobSpec], changes: tuple[str, ...], seed: int = 0
) -> PlanView:
    """Return what submitting these jobs would lead to.

    Args:
        snapshot: The cell as it is.
        new_specs: Jobs that do not exist yet, in order of submission.
        changes: Lines for people, passed through.
        seed: That of the live scheduler.
    """
    live = {j.name for j in snapshot.jobs} | {s.name for s in new_specs}
    jobs = [new_job(spec, snapshot.now_s, live) for spec in new_specs]
    before = replace(snapshot, jobs=(*snapshot.jobs, *jobs))
    uids = {job.uid: job.name for job in jobs}
    _, trace = schedule(before, seed)
    placements, removals, after, last = _until_rest(before, seed, set(uids))
    return PlanView(
        changes=changes,
        starts=all(num_missing(_get(after, uid)) == 0 for uid in uids),
        placements=tuple(PlannedPlacement(uids[p.uid], p.index, p.machine) for p in placements),
        victims=tuple(_victim(before, removal) for removal in removals),
        waits=_waits(jobs, trace, last),
    )


def _get(snapshot: Snapshot, uid: str) -> JobView:
    job = find_job(snapshot, uid)
    if job is None:
        raise ValueError(f"no job {uid!r} in the snapshot")
    return job


def _until_rest(
    snapshot: Snapshot, seed: int, uids: set[str]
) -> tuple[list[Placement], list[Removal], Snapshot, PlanTrace]:
    """Let victims leave and others take their place until nothing changes.

    Returns:
        What of ``uids`` starts before anybody has to leave, who leaves for them, the end, and why not more.
    """
    placements: list[Placement] = []
    removals: list[Removal] = []
    trace = PlanTrace()
    for _ in range(MAX_ROUNDS):
        plan, trace = schedule(snapshot, seed)
        if not removals:
            placements += [p for p in plan.placements if p.uid in uids]
        removals += [r for r in plan.removals if r.by in uids]
        following = vacate(carry_out(snapshot, plan))
        if following == snapshot:
            break
        snapshot = following
    return placements, removals, snapshot, trace


def _waits(jobs: Sequence[JobView], first: PlanTrace, last: PlanTrace) -> tuple[PlannedWait, ...]:
    """Who waits for victims to leave, and who still waits after that."""
    out = []
    for job in jobs:
        waiting = first.waiting.get(job.uid)
        if waiting is None or Reason.WAITING_FOR_PREEMPTED not in waiting.reasons:
            waiting = last.waiting.get(job.uid)
        if waiting is not None:
            out.append(PlannedWait(job.name, waiting.reasons, waiting.detail, waiting.num_tasks))
    return tuple(out)


def _victim(snapshot: Snapshot, removal: Removal) -> PlannedVictim:
    job = _get(snapshot, removal.uid)
    task = next(t for t in job.tasks if t.index == removal.index)
    action = "shrink" if removal.new_size else "evict"
    loses = work_at_risk(job, task, snapshot.now_s)
    if job.spec.is_alloc:
        loses = lost_with_envelope(snapshot, job.spec.envelope_name(task.index))
    return PlannedVictim(job.name, removal.index, removal.machine, action, removal.new_size, loses)


# ---------------------------------------------------------------------------------------------- why


def explain_why(
    snapshot: Snapshot, uid: str, now_s: float, seed: int = 0, history: History | None = None
) -> WhyView:
    """Return why a live job, or part of it, does not run; what would help; and when it runs otherwise.

    Args:
        snapshot: The cell as it is.
        uid: Of a live job.
        now_s: Seconds since the epoch.
        seed: That of the live scheduler.
        history: How long past work took, for the range of its start; None: no range.

    Raises:
        ValueError: There is no such job in the snapshot.
    """
    job = _get(snapshot, uid)
    view = WhyView(job.name, uid, _state(job), _since_s(job), message=_message(job))
    if job.stopping or not num_pending(job):
        return replace(view, shrunk=_why_smaller(job, (), None))
    plan, trace = schedule(snapshot, seed)
    waiting = trace.waiting.get(uid)
    if waiting is None:
        return replace(view, detail=_starts_where(plan, uid))
    holders = _holders(snapshot, job) if _CAPACITY & set(waiting.reasons) else ()
    if Reason.WAITING_FOR_QUOTA in waiting.reasons:
        holders = _quota_holders(snapshot, job)
    search = Search(snapshot, job, holders, seed, waiting.reasons)
    on_its_way = judge(snapshot, uid, seed).starts
    if not on_its_way:
        search.run()
    expected_s, expected_why = expected_start(snapshot, job, waiting, seed)
    return replace(
        view,
        reasons=waiting.reasons,
        detail=waiting.detail,
        needs=describe_needs(job, num_missing(job) or 1),
        free_now=describe_free(snapshot, job),
        holders=holders,
        fixes=_unique(search.fixes),
        no_help=_unique(search.no_help),
        expected_s=expected_s,
        expected_why=expected_why,
        start_range=start_range(snapshot, uid, history, seed) if history is not None else None,
        shrunk=_why_smaller(job, holders, waiting),
        **_places(snapshot, trace, job),
    )


def _places(snapshot: Snapshot, trace: PlanTrace, job: JobView) -> dict[str, Any]:
    """Return the job's places in scheduling order, as fields of a ``WhyView``."""
    teams = {j.uid: j.spec.team for j in snapshot.jobs}
    places = trace.positions(lambda uid: teams.get(uid, ""))
    mine = places.get(job.uid, (0, 0))
    return {
        "position": mine[0],
        "num_waiting": len(places),
        "team": job.spec.team,
        "team_position": mine[1] if job.spec.team else 0,
    }


def _state(job: JobView) -> TaskState:
    if any(t.machine and not t.leaving for t in job.tasks):
        return TaskState.RUNNING
    return TaskState.RESIZING if any(t.leaving for t in job.tasks) else TaskState.PENDING


def _since_s(job: JobView) -> float:
    """Since when it is in this state, as far as a snapshot tells: it waits since its submission."""
    return min((t.placed_s for t in job.tasks if t.machine), default=job.submitted_s)


def _message(job: JobView) -> str:
    if job.stopping:
        return "it is stopping"
    if not num_pending(job):
        return "it waits for nothing"
    return ""


def _starts_where(plan: Plan, uid: str) -> str:
    """Say where the scheduler puts it, now that there is room."""
    machines = listed(p.machine for p in plan.placements if p.uid == uid)
    return f"starts now on {machines}" if machines else "is looked at in the next moment"


def _unique(fixes: Sequence[Fix]) -> tuple[Fix, ...]:
    return tuple({(f.change, f.command): f for f in fixes}.values())


def _holders(snapshot: Snapshot, job: JobView) -> tuple[Holder, ...]:
    """Return who runs on machines that could hold a replica of this job, the largest share first."""
    suited = {
        m.name
        for m in snapshot.machines
        if m.alloc == job.spec.alloc
        and m.has_type(job.spec.accelerator_type)
        and job.spec.resources.fits(m.capacity)
        and unmet(job.spec, m) is None
    }
    if not suited:  # none could: then all of the type count
        here = [m for m in snapshot.machines if m.alloc == job.spec.alloc]
        suited = {m.name for m in here if m.has_type(job.spec.accelerator_type)}
    found = [
        _holder(other, machine, snapshot.now_s)
        for other in snapshot.jobs
        if other.uid != job.uid
        for machine in sorted({t.machine for t in other.tasks} & suited)
    ]
    return tuple(
        sorted(found, key=lambda h: (-h.resources.gpu_millis, -h.resources.cpu_millis, h.job, h.machine))
    )


def _quota_holders(snapshot: Snapshot, job: JobView) -> tuple[Holder, ...]:
    """Return whose tasks hold the quota: of its own team at its band, and of teams that borrow."""
    gate = Gate.of(snapshot)
    mine = gate.account(job.spec) if gate is not None else None
    if gate is None or mine is None:
        return ()
    need = gate.need(job, [t.index for t in job.tasks if t.pending][: num_missing(job) or 1])
    over = {m.team for m in gate.mates(mine) if any(m.used(c) > m.own(c) for c in need)} | {mine.team}
    found = [
        _holder(other, machine, snapshot.now_s, team_of(other.spec))
        for other in snapshot.jobs
        if other.uid != job.uid
        and other.spec.priority.band is job.spec.priority.band
        and team_of(other.spec) in over
        for machine in sorted({t.machine for t in other.tasks if t.machine})
    ]
    return tuple(sorted(found, key=lambda h: (h.team != mine.team, h.job, h.machine)))


def _holder(job: JobView, machine: str, now_s: float, team: str = "") -> Holder:
    tasks = [t for t in job.tasks if t.machine == machine]
    return Holder(
        job=job.name,
        priority=str(job.spec.priority),
        machine=machine,
        num_tasks=len(tasks),
        resources=sum((t.resources for t in tasks), Resources()),
        running_s=max(t.running_s(now_s) for t in tasks),
        leaving=all(t.leaving for t in tasks),
        ends_by_s=job.ends_by_s,
        team=team,
    )


def _why_smaller(job: JobView, holders: Sequence[Holder], waiting: Waiting | None) -> str:
    """Return why a running job has fewer replicas than it could have; empty if it has all or none."""
    staying, most = num_staying(job), job.spec.replicas.max
    if job.stopping or not 0 < staying < most:
        return ""
    size = f"{staying} of up to {most} replicas"
    if waiting is None:
        return f"{size}: no more are wanted now" if job.desired < most and not job.done else ""
    mine = job.spec.priority.band.word
    others = [h for h in holders if not h.leaving]
    above = [h for h in others if h.priority.split("+")[0] != mine] or others
    if not above:
        return f"{size}: {waiting.detail}"
    shares = {h.job: f"{h.job} ({h.priority})" for h in above}
    return f"{size}: {listed(shares.values())} {'holds' if len(shares) == 1 else 'hold'} the rest"


__all__ = ["explain_plan", "explain_why", "render_plan", "render_why"]
