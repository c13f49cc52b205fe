"""Truths of every reachable state (DESIGN, "Invariants"), checked in tests, in simulation, and live
behind a debug flag. Those listed are the ones that one machine with this feature set can break.
"""

from __future__ import annotations

from collections import Counter

from tidecell.cell.disruptions import is_available, spare_disruptions
from tidecell.cell.index import Index
from tidecell.cell.state import CellState, Job
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import ACTIVE, TERMINAL, Band, Cause, TaskState
from tidecell.structs.lifecycle import JobRevised
from tidecell.structs.messages import Event, TaskNoticed, TaskPlaced, TaskRef
from tidecell.structs.resources import GPU, Resources
from tidecell.structs.tenant import Policy, Team, is_charged, limit, team_of


def check_state(state: CellState) -> None:
    """Raise InvariantError if anything that must always hold does not."""
    _indexes(state)
    _epochs(state)
    index = _derived(state)
    _capacity(state, index)
    _envelopes(state, index)
    for job in state.jobs.values():
        _job(state, job)
    _claims(state)


def check_event(state: CellState, event: Event, now_s: float = 0.0) -> None:
    """Raise InvariantError if an event must not be decided in this state.

    14. Nobody who asks takes more of a job than its disruption budget leaves.
    3. What is placed is covered by quota then; a policy may shrink later, and work is not stopped for that.
    4 and 9. Nobody gives way but to a strictly higher band, so production never to production; or, in
    batch, to a team of its cohort that takes its own quota back. Bands may change later, while the victim
    is still leaving; so this is checked when it is decided.
    """
    if isinstance(event, TaskPlaced) and state.policy is not None:
        _quota(state, state.policy, state.jobs[event.ref.uid], event.resources, now_s)
    if isinstance(event, JobRevised) and event.resized:
        _resize(state, event, now_s)
    if isinstance(event, TaskNoticed):
        _budget(state, event)
    if not isinstance(event, TaskNoticed) or event.cause is not Cause.PREEMPT:
        return
    job, by = state.jobs[event.ref.uid], state.find(event.by)
    _require(by is not None and by.live, f"'{job.uid}' gives way to '{event.by}', which is not live", job)
    if by is not None:
        mine, other = job.spec.priority, by.spec.priority
        lower = mine.band < other.band or _borrows_from(state, job, by, now_s)
        _require(lower, f"'{job.uid}' ({mine}) gives way to '{by.uid}' ({other})", job)


def _budget(state: CellState, event: TaskNoticed) -> None:
    """14. A disruption budget counts all causes together: who asks never takes more than it leaves."""
    job = state.jobs[event.ref.uid]
    spare = spare_disruptions(job)
    if spare is None or event.forced or event.cause not in (Cause.PREEMPT, Cause.DRAIN, Cause.UPDATE):
        return
    task = job.tasks[event.ref.index]
    _require(
        spare >= 1 or not is_available(task),
        f"'{job.uid}' loses replica {task.index} ({event.cause}) beyond its disruption budget",
        job,
    )


def _resize(state: CellState, event: JobRevised, now_s: float) -> None:
    """2, 3. Whoever runs and gets more has its devices as they were, and quota for what it gets more."""
    job = state.jobs[event.uid]
    more = Resources()
    for grant in event.resized:
        task = job.tasks[grant.index]
        _require(task.active and task.notice is None, f"{job.uid}/{task.index} is resized and leaves", job)
        same = grant.resources.gpu_millis == task.resources.gpu_millis
        _require(same, f"{job.uid}/{task.index} is resized to other accelerators", job)
        more = more + grant.resources - task.resources
    if state.policy is not None and event.spec.priority.band is job.spec.priority.band:
        _quota(state, state.policy, job, more, now_s)


def _quota(state: CellState, policy: Policy, job: Job, extra: Resources, now_s: float) -> None:
    """3. Admitted usage never exceeds quota: summed anew from every task, leaving ones included."""
    if not is_charged(job.spec):
        return
    team = policy.team(team_of(job.spec))
    word = job.spec.priority.band.word
    mates = policy.cohort(team) if team is not None else ()
    _require(bool(mates), f"'{job.uid}' starts for team '{team_of(job.spec)}', which has no quota", job)
    for component in ("cpu", "memory", "gpu"):
        more = {"cpu": extra.cpu_millis, "memory": extra.memory_bytes}
        amount = more.get(component, extra.gpu_millis)
        if amount <= 0:
            continue
        used = {t.name: _used(state, t.name, word, component) for t in mates}
        used[team_of(job.spec)] += amount
        own = {t.name: _own(t, word, component, now_s) for t in mates}
        total = sum(used.values()) if len(mates) > 1 else used[team_of(job.spec)]
        alone = len(mates) == 1 or job.spec.priority.band is not Band.BATCH
        mine, name = used[team_of(job.spec)], team_of(job.spec)
        kept = own[name] - _lends(mates, name, word, component)
        good = mine <= own[name] if alone else total <= sum(own.values()) or mine <= kept
        _require(good, f"'{job.uid}' starts beyond the {component} quota of its team: {used} of {own}", job)


def _lends(mates: tuple[Team, ...], name: str, word: str, component: str) -> int:
    quota = next((t.quotas.get(word) for t in mates if t.name == name), None)
    return limit(quota.lend, component) if quota is not None else 0


def _used(state: CellState, team: str, word: str, component: str) -> int:
    total = 0
    for job in state.live_jobs():
        if is_charged(job.spec) and team_of(job.spec) == team and job.spec.priority.band.word == word:
            for task in job.active_tasks():
                r = task.resources
                total += {"cpu": r.cpu_millis, "memory": r.memory_bytes}.get(component, r.gpu_millis)
    return total


def _own(team: Team, word: str, component: str, now_s: float) -> int:
    quota = team.quotas.get(word)
    return limit(quota.amounts, component) if quota is not None and quota.is_valid(now_s) else 0


def _borrows_from(state: CellState, job: Job, by: Job, now_s: float) -> bool:
    """9. Whether ``by`` takes its own quota back: same cohort, the victim's team has more than its own."""
    policy = state.policy
    mine = policy.team(team_of(job.spec)) if policy is not None else None
    theirs = policy.team(team_of(by.spec)) if policy is not None else None
    both_batch = job.spec.priority.band is by.spec.priority.band is Band.BATCH
    if mine is None or theirs is None or mine is theirs or not both_batch:
        return False
    if not mine.cohort or mine.cohort != theirs.cohort:
        return False
    plain = ("cpu", "memory", "gpu")
    over = any(_used(state, mine.name, "batch", c) > _own(mine, "batch", c, now_s) for c in plain)
    typed = any(":" in c for q in mine.quotas.values() for c in q.amounts)
    return over or typed


def _require(truth: bool, message: str, job: Job | None = None) -> None:
    if not truth:
        raise InvariantError(message, job.story if job is not None else ())


def _indexes(state: CellState) -> None:
    live = {uid for uid, job in state.jobs.items() if job.outcome is None}
    _require(live == set(state.live_uids), "the index of live jobs is wrong")
    for name, uid in state.by_name.items():
        _require(uid in state.jobs and state.jobs[uid].spec.name == name, f"'{name}' points nowhere")


def _epochs(state: CellState) -> None:
    """1. An attempt never runs twice: no two active starts share an epoch."""
    seen: set[TaskRef] = set()
    epochs: set[int] = set()
    for job in state.jobs.values():
        for task in job.tasks:
            if task.active:
                _require(task.epoch not in epochs, f"epoch {task.epoch} is used twice", job)
                epochs.add(task.epoch)
                seen.add(state.ref(job, task))


def _derived(state: CellState) -> Index:
    """The index that is kept says what the records say; return the latter."""
    for job in state.live_jobs():
        leaving = [t.index for t in job.tasks if t.notice is not None]
        _require(sorted(job.leaving) == leaving, f"job '{job.uid}': who leaves is not as indexed", job)
    fresh, kept = Index.of(state), state.index
    for name in Index.__slots__:
        if name not in ("changes", "capacity", "alarms"):  # alarms keep what is no longer true
            same = getattr(fresh, name) == getattr(kept, name)
            _require(same, f"index '{name}' is {getattr(kept, name)}, should be {getattr(fresh, name)}")
    return fresh


def _capacity(state: CellState, index: Index) -> None:
    """2. Reservations never exceed capacity; a device's shares never exceed the device."""
    for name, machine in state.machines.items():
        used, capacity = index.load(name).used, machine.spec.capacity
        _require(
            used.resources.fits(capacity),
            f"machine '{name}' is over-committed: {used.resources} of {capacity}",
        )
        over = {device: millis for device, millis in used.devices.items() if millis > GPU}
        _require(not over, f"devices of machine '{name}' are over-committed: {over}")


def _envelopes(state: CellState, index: Index) -> None:
    """2. In envelopes too; and who is in one is of its alloc, and on its machine."""
    for job in state.live_jobs():
        for task in job.active_tasks():
            name = job.spec.envelope_name(task.index)
            if job.spec.is_alloc:
                used = index.load(name).used
                _require(used.resources.fits(task.resources), f"envelope '{name}' is over-committed", job)
                _require({*used.devices} <= {*task.accelerators}, f"'{name}' uses others' devices", job)
            _require(bool(job.spec.alloc) == bool(task.envelope), f"'{name}' is not in its alloc", job)
            if not task.envelope:
                continue
            alloc, _, number = task.envelope.rpartition("/")
            home = state.find(alloc)
            _require(home is not None and alloc == job.spec.alloc, f"'{name}' is in '{task.envelope}'", job)
            host = home.tasks[int(number)] if home is not None else task
            _require(host.active and host.machine == task.machine, f"'{name}' outlives its envelope", job)


def _job(state: CellState, job: Job) -> None:
    if job.outcome is not None:
        active = [t for t in job.tasks if t.state in ACTIVE or t.state is TaskState.PENDING]
        _require(not active, f"job '{job.uid}' is finished and still has live tasks", job)
        return
    _open(job)
    if job.spec.array is None:
        _require(job.desired <= job.spec.replicas.max, f"job '{job.uid}' wants more than its maximum", job)
    for task in job.tasks:
        _require(
            (task.state is TaskState.RESIZING) == (task.notice is not None),
            f"task {job.uid}/{task.index}: RESIZING and its notice do not agree",
            job,
        )
        _require(not task.active or task.machine != "", f"task {job.uid}/{task.index} runs nowhere", job)


def _open(job: Job) -> None:
    """The index of tasks without an end is right; an array keeps to its count, each item ends once."""
    states = [t.state for t in job.tasks]
    _require(list(job.open) == [i for i, s in enumerate(states) if s not in TERMINAL], "open tasks", job)
    _require(+job.ended == Counter(s for s in states if s in TERMINAL), "counts of ended tasks", job)
    _require(job.num_active == sum(s in ACTIVE for s in states), "number of active tasks", job)
    if job.spec.array is not None:
        _require(len(job.tasks) <= job.spec.array.count, f"array '{job.uid}' has too many items", job)


def _claims(state: CellState) -> None:
    """8. Capacity is held only for a task that waits and is wanted."""
    for (uid, index), claim in state.claims.items():
        job = state.jobs.get(uid)
        _require(job is not None and job.live, f"capacity is held for '{uid}', which is not live")
        if job is not None and index < len(job.tasks):
            _require(
                job.tasks[index].state is TaskState.PENDING,
                f"capacity is held for {uid}/{index}, which runs",
                job,
            )
        alloc = claim.machine.rpartition("/")[0]
        known = claim.machine in state.machines or (bool(alloc) and state.find(alloc) is not None)
        _require(known, f"capacity is held on unknown machine '{claim.machine}'")
