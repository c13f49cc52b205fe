"""Quota at submission and against the state: refuse what can never run, check what a plan proposes. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from msgspec.structs import replace

from tidecell.cell.state import CellState, Job
from tidecell.scheduler.quota import Gate
from tidecell.scheduler.snapshot import JobView, TaskView
from tidecell.structs.errors import RefusedError
from tidecell.structs.job import Band, JobSpec, Priority, Reason, TaskState
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import (
    DEFAULT_TEAM,
    UNLIMITED,
    Policy,
    Quota,
    Team,
    can_borrow,
    describe_amount,
    is_charged,
    is_fixed,
    limit,
)


def gate_of(state: CellState, now_s: float, apart: str = "") -> Gate | None:
    """Return the gate over the state as it is; None where there is no policy.

    ``apart``: uid of a job of which only those tasks count that leave.
    """
    if state.policy is None:
        return None
    capacity = Resources()
    for machine in state.machines.values():
        if machine.up:
            capacity = capacity + machine.spec.capacity
    gate = Gate(state.policy, now_s, capacity)
    for job in state.live_jobs():
        if job.num_active:
            view = view_of(job)
            if job.uid == apart:
                view = replace(view, tasks=tuple(t for t in view.tasks if t.leaving))
            gate.count(view)
    for (uid, index), claim in sorted(state.claims.items()):
        if uid in state.jobs:
            gate.claim(view_of(state.jobs[uid]), index, claim.resources)
    return gate


def view_of(job: Job) -> JobView:
    """Return a job as the gate counts it."""
    tasks = tuple(
        TaskView(t.index, machine=t.machine, resources=t.resources, leaving=t.notice is not None)
        for t in job.active_tasks()
    )
    array = job.spec.array is not None
    done = () if array else tuple(t.index for t in job.tasks if t.state is TaskState.SUCCEEDED)
    return JobView(job.uid, job.spec, job.submitted_s, job.desired, tasks, done=done)


# ------------------------------------------------------------------------------------- at submission


def check_quota(state: CellState, spec: JobSpec, now_s: float, by: str = "") -> None:
    """Raise RefusedError if the job's team is unknown, or its quota could never cover the job's gang.

    ``by``: user who submits it, and must be of the team; empty: nobody has to be asked.
    """
    policy = state.policy
    if policy is None:
        return
    team = _team(policy, spec, by)
    if not is_charged(spec):
        return
    if team is None:
        raise RefusedError(
            f"job '{spec.name}' names no team, and this cell has quotas at {spec.priority.band.word}",
            f"set team: {policy.teams[0].name} in the spec, or priority: best-effort",
            Reason.EXCEEDS_MAX_QUOTA,
        )
    gate = Gate(policy, now_s)
    view = JobView("", spec, now_s, spec.replicas.max, ())
    least = max(1, spec.replicas.min)
    for component, amount in gate.need(view, range(least)).items():
        most = most_ever(policy, team, spec, component, now_s)
        if amount > most:
            raise _exceeds(gate, policy, team, view, component, amount, most)


def _team(policy: Policy, spec: JobSpec, user: str) -> Team | None:
    if spec.team:
        team = policy.team(spec.team)
        if team is None:
            names = [t.name for t in policy.teams]
            near = difflib.get_close_matches(spec.team, names, 1, 0.6)
            hint = f"did you mean '{near[0]}'?" if near else f"teams are {', '.join(names) or 'none'}"
            raise RefusedError(f"job '{spec.name}' is of team '{spec.team}', which is not known", hint)
        if team.users and user and user not in team.users:
            mine = policy.of_user(user)
            hint = f"yours is '{mine.name}'" if mine else "ask whoever keeps the quota file to add you"
            raise RefusedError(f"job '{spec.name}': user '{user}' is not of team '{team.name}'", hint)
        return team
    return policy.team(DEFAULT_TEAM)


def most_ever(policy: Policy, team: Team, spec: JobSpec, component: str, now_s: float) -> int:
    """Return the most that a job could ever be given of a component: its own, and what others may lend."""
    word = spec.priority.band.word
    mine = team.quotas.get(word)
    own = _own(mine, component, now_s)
    if is_fixed(spec, above_min=False) or not team.cohort or own >= UNLIMITED:
        return own
    lent = sum(
        min(_own(q, component, now_s), limit(q.lend, component))
        for t in policy.cohort(team)
        if t.name != team.name and (q := t.quotas.get(word)) is not None
    )
    return min(UNLIMITED, own + min(lent, limit(mine.borrow, component) if mine is not None else UNLIMITED))


def _own(quota: Quota | None, component: str, now_s: float) -> int:
    return 0 if quota is None or quota.is_over(now_s) else limit(quota.amounts, component)


def _exceeds(
    gate: Gate, policy: Policy, team: Team, view: JobView, component: str, amount: int, most: int
) -> RefusedError:
    spec, band = view.spec, view.spec.priority.band.word
    asks = describe_amount(component, amount)
    together = f" ({spec.replicas.min} replicas together)" if spec.replicas.min > 1 else ""
    if most <= 0 and team.quotas.get(band) is None:
        bands = [b for b in team.quotas if most_ever(policy, team, _at(spec, b), component, gate.now_s) > 0]
        has = f"; it has quota at {', '.join(bands)}" if bands else ""
        text = f"team '{team.name}' has no quota at {band}{has}"
    else:
        own = _own(team.quotas.get(band), component, gate.now_s)
        text = f"team '{team.name}' may use at most {describe_amount(component, most)} at {band}"
        if most > own:
            text += f" ({describe_amount(component, own)} of its own)"
        elif team.cohort and can_borrow(spec.priority.band) and is_fixed(spec, above_min=False):
            text += " (what cannot be taken back may not be borrowed)"
    return RefusedError(
        f"job '{spec.name}' asks for {asks}{together}; {text}",
        _fix(gate, policy, team, view),
        Reason.EXCEEDS_MAX_QUOTA,
    )


def _fix(gate: Gate, policy: Policy, team: Team, view: JobView) -> str:
    """Name what would be accepted: a smaller gang if there is one, else another band."""
    spec = view.spec
    for least in range(spec.replicas.min - 1, 0, -1):
        need = gate.need(view, range(least))
        if all(n <= most_ever(policy, team, spec, c, gate.now_s) for c, n in need.items()):
            return (
                f"set replicas.min to {least} or fewer, or priority: best-effort (over-sold, no quota needed)"
            )
    for word in team.quotas:
        other = _at(spec, word)
        need = gate.need(view, range(max(1, spec.replicas.min)))
        if all(n <= most_ever(policy, team, other, c, gate.now_s) for c, n in need.items()):
            return f"set priority: {word}, or priority: best-effort (over-sold, no quota needed)"
    return "ask for less per replica, or set priority: best-effort (over-sold, no quota needed)"


def _at(spec: JobSpec, word: str) -> JobSpec:
    band = next(b for b in Band if b.word == word)
    return replace(spec, priority=Priority(band, 0))


# --------------------------------------------------------------------------------------- on a change


def growth_block(
    state: CellState, job: Job, spec: JobSpec, sizes: Mapping[int, Resources], now_s: float
) -> str:
    """Return why quota does not cover a job whose running replicas hold these sizes; empty if it does."""
    gate = gate_of(state, now_s, apart=job.uid)
    if gate is None or not is_charged(spec):
        return ""
    view = replace(view_of(job), spec=spec)
    staying = [t for t in view.tasks if not t.leaving]
    missing = spec.replicas.min - len(view.done)
    for number, task in enumerate(staying, 1):
        held = replace(task, resources=sizes.get(task.index, task.resources))
        above = number > missing
        block = gate.check_held(replace(view, tasks=(held,)), above)
        if block is not None:
            return block.text
        gate.admit(view, task.index, held.resources, above)
    return ""


def begin_periods(policy: Policy, known: Policy | None, now_s: float) -> Policy:
    """Return the policy with a beginning for every period that names none: that of before, or now.

    A period that ended without renewal begins anew: to apply the file again is to renew it.
    """
    teams = []
    for team in policy.teams:
        before = known.team(team.name) if known is not None else None
        quotas = {}
        for band, quota in team.quotas.items():
            old = before.quotas.get(band) if before is not None else None
            if quota.period_s and not quota.from_s:
                same = old is not None and old.period_s == quota.period_s and not old.is_over(now_s)
                quota = replace(quota, from_s=old.from_s if old is not None and same else now_s)
            quotas[band] = quota
        teams.append(replace(team, quotas=quotas))
    return replace(policy, teams=tuple(teams))


def check_priority(state: CellState, job: Job, priority: Priority, now_s: float) -> None:
    """Raise RefusedError if what a job holds does not fit its team's quota at another band."""
    if priority.band in (job.spec.priority.band, Band.BEST_EFFORT) or state.policy is None:
        return
    spec = replace(job.spec, priority=priority)
    check_quota(state, spec, now_s)
    gate = gate_of(state, now_s)
    if gate is None or not job.active_tasks():
        return
    block = gate.check_held(replace(view_of(job), spec=spec))
    if block is not None:
        raise RefusedError(
            f"job '{job.spec.name}' cannot become {priority.band.word} while it runs: {block.text}",
            f"scale it down first, or stop something of team '{job.spec.team or DEFAULT_TEAM}' at that band",
            Reason.WAITING_FOR_QUOTA,
        )


__all__ = [
    "begin_periods",
    "check_priority",
    "check_quota",
    "gate_of",
    "growth_block",
    "most_ever",
    "view_of",
]
