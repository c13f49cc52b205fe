"""The gate before placement: whether a team's quota covers a unit, and whom it may take it back from. Pure.

What counts is what tasks hold: a victim's quota is free only when the victim has stopped, and what is
claimed for a beneficiary counts as used, so nobody else is admitted in between (Kueue #13662 and PR#15661).
Cohorts follow Kueue's arithmetic (KEP-1224): what a team uses beyond the part it does not lend is drawn
from the pool of what the cohort's teams lend. Only batch work that can be taken back may borrow, so
whatever was lent can be recalled. Fair share is dominant resource fairness (Ghodsi et al., NSDI 2011) with
weights, over what the cohort owns, or else the cell has.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tidecell.scheduler.accounts import Account, describe_have
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.structs.job import Band, JobSpec, Preemption
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import (
    UNLIMITED,
    Amounts,
    Policy,
    Team,
    can_borrow,
    charge,
    describe_amount,
    is_charged,
    is_fixed,
    team_of,
)

Key = tuple[str, Band]
Freed = dict[Key, Amounts]
_NONE: Amounts = {}
_NOTHING = Resources()


@dataclass(frozen=True)
class Block:
    """Why quota does not let a unit start.

    Attributes:
        component: What is short.
        kind: ``none`` (no quota now), ``own``, ``fixed`` (must not borrow), ``cohort`` (lent), ``held``.
        others: Whether it might start if others of the cohort gave back what they borrowed.
    """

    component: str
    kind: str
    others: bool
    _words: Callable[[], str]

    @property
    def text(self) -> str:
        """In words; put together only where somebody reads them, and before the gate changes."""
        return self._words()


class _Unit(Protocol):
    @property
    def job(self) -> JobView: ...
    @property
    def growth(self) -> bool: ...
    def order(self) -> tuple[int, int, int, float]: ...


U = TypeVar("U", bound=_Unit)


class Gate:
    """Quota during one scheduling pass; changed as units are admitted, told to leave, or wait."""

    def __init__(self, policy: Policy, now_s: float, capacity: Resources = _NOTHING) -> None:
        self.policy = policy
        self.now_s = now_s
        self.components = _components(policy)
        self._teams = {t.name: t for t in policy.teams}
        self._members: dict[str, list[str]] = {}
        for team in policy.teams:
            if team.cohort:
                self._members.setdefault(team.cohort, []).append(team.name)
        self._capacity = charge(capacity, "", ("cpu", "memory", "gpu"))
        self._accounts: dict[Key, Account] = {}
        self._claims: dict[tuple[str, int], tuple[Key, Amounts]] = {}
        self._mates: dict[Key, list[Account]] = {}
        self._pools: dict[tuple[Key, str], int] = {}
        self._drawn_now: dict[tuple[str, Band], Amounts] = {}  # by cohort; dropped when anything changes

    @classmethod
    def of(cls, snapshot: Snapshot) -> Gate | None:
        """Return the gate of a snapshot, or None where there is no policy and everything is allowed."""
        if snapshot.policy is None:
            return None
        capacity = Resources()
        for machine in snapshot.machines:
            if not machine.host:
                capacity = capacity + machine.capacity
        gate = cls(snapshot.policy, snapshot.now_s, capacity)
        jobs = {job.uid: job for job in snapshot.jobs}
        for job in snapshot.jobs:
            gate.count(job)
        for claim in snapshot.claims:
            if claim.uid in jobs:
                gate.claim(jobs[claim.uid], claim.index, claim.resources)
        return gate

    # ---------------------------------------------------------------------------------- counting

    def account(self, spec: JobSpec) -> Account:
        """Return the account that a job is charged to."""
        return self._account((team_of(spec), spec.priority.band))

    def look(self, team: str, band: Band) -> Account:
        """Return the account of a team at a band."""
        return self._account((team, band))

    def _account(self, key: Key) -> Account:
        known = self._accounts.get(key)
        if known is None:
            team = self._teams.get(key[0], Team(key[0]))
            quota = team.quotas.get(key[1].word)
            valid = quota is not None and quota.is_valid(self.now_s)
            known = Account(
                *key, quota if valid else None, None if valid else quota, team.cohort, team.weight
            )
            self._accounts[key] = known
        return known

    def count(self, job: JobView) -> None:
        """Count what a job's tasks hold."""
        if not any(task.machine for task in job.tasks) or not is_charged(job.spec):
            return
        account = self.account(job.spec)
        least = job.spec.replicas.min - len(job.done)
        staying = 0
        for task in job.tasks:
            if not task.machine:
                continue
            amounts = self._charge(job.spec, task.index, task.resources)
            if task.leaving:
                _add(account.leaving, amounts)
                continue
            staying += 1
            _add(account.staying, amounts)
            if is_fixed(job.spec, above_min=staying > least):
                _add(account.fixed, amounts)

    def _charge(self, spec: JobSpec, index: int, resources: Resources) -> Amounts:
        kind = spec.accelerator_type
        for number, shape in enumerate(spec.shapes if spec.any_of else ()):
            if spec.request(index, number) == resources:
                kind = shape.accelerator_type
                break
        return charge(resources, kind, self.components)

    def need(self, job: JobView, indices: Sequence[int]) -> Amounts:
        """Return what these waiting tasks would count for; of alternatives the most of each component."""
        total: Amounts = {}
        for index in indices:
            largest: Amounts = {}
            for number, shape in enumerate(job.spec.shapes):
                request = job.spec.request(index, number)
                for c, amount in charge(request, shape.accelerator_type, self.components).items():
                    largest[c] = max(amount, largest.get(c, 0))
            _add(total, largest)
        return total

    # ------------------------------------------------------------------------------------ asking

    def check(
        self,
        job: JobView,
        indices: Sequence[int],
        growth: bool = False,
        future: bool = False,
        freed: Freed | None = None,
    ) -> Block | None:
        """Return why quota does not cover these tasks, or None if it does.

        Args:
            job: Whose.
            indices: Of its waiting tasks.
            growth: They are above the job's minimum.
            future: Count what is leaving as gone.
            freed: What further victims would give back, by account.
        """
        if not is_charged(job.spec):
            return None
        account = self.account(job.spec)
        mine = self._own_claims(job, indices)
        growth = growth or job.spec.replicas.min == 0
        for component, amount in self.need(job, indices).items():
            block = self._check(account, job.spec, component, amount, mine, growth, future, freed or {})
            if block is not None:
                return block
        return None

    def check_held(self, job: JobView, growth: bool = False) -> Block | None:
        """Return why the account of ``job`` could not take on what its tasks hold, or None if it could.

        For a running job whose tasks are not counted there: it changes its band, or its size.
        ``growth``: they are above its minimum.
        """
        if not is_charged(job.spec):
            return None
        total: Amounts = {}
        for task in job.tasks:
            _add(total, self._charge(job.spec, task.index, task.resources))
        account = self.account(job.spec)
        blocks = (self._check(account, job.spec, c, n, _NONE, growth, False, {}) for c, n in total.items())
        return next((b for b in blocks if b is not None), None)

    def _check(
        self,
        account: Account,
        spec: JobSpec,
        component: str,
        amount: int,
        mine: Amounts,
        growth: bool,
        future: bool,
        freed: Freed,
    ) -> Block | None:
        claimed = mine.get(component, 0)
        given = freed.get((account.team, account.band), _NONE).get(component, 0)
        used = account.used(component, future) - claimed - given
        own = account.own(component)
        fixed = is_fixed(spec, above_min=growth)
        if own <= 0 and (fixed or not account.cohort or not can_borrow(account.band)):
            return self._block(account, component, amount, used, "none")
        if fixed and account.fixed.get(component, 0) + amount > own:
            return self._block(account, component, amount, used, "fixed")
        if used + amount > account.most(component):
            return self._block(account, component, amount, used, "own")
        if used + account.held.get(component, 0) + amount > account.most(component):
            return self._block(account, component, amount, used, "held")
        if used + amount <= account.kept(component):
            return None  # of what it never lends: whatever others do
        if self._drawn(account, component, future, freed, amount - claimed) > self._pool(account, component):
            return self._block(account, component, amount, used, "cohort")
        return None

    def _own_claims(self, job: JobView, indices: Iterable[int]) -> Amounts:
        out: Amounts = {}
        for index in indices:
            _add(out, self._claims.get((job.uid, index), (None, _NONE))[1])
        return out

    def mates(self, account: Account) -> list[Account]:
        """Return the accounts at this band of all teams that lend to each other, this one among them."""
        key = (account.team, account.band)
        known = self._mates.get(key)
        if known is None:
            names = self._members.get(account.cohort, [account.team]) if account.cohort else [account.team]
            known = self._mates[key] = [self._account((name, account.band)) for name in names]
        return known

    def _pool(self, account: Account, component: str) -> int:
        key = ((account.cohort or account.team, account.band), component)
        known = self._pools.get(key)
        if known is None:
            lent = sum(m.own(component) - m.kept(component) for m in self.mates(account))
            known = self._pools[key] = min(UNLIMITED, lent)
        return known

    def _drawn(self, account: Account, component: str, future: bool, freed: Freed, amount: int) -> int:
        """Return what would be drawn from the pool if ``account`` used so much more."""
        if not future and not freed:  # the common question; only this account's own part has to be added up
            totals = self._drawn_now.setdefault((account.cohort or account.team, account.band), {})
            if component not in totals:
                totals[component] = sum(m.draws(component) for m in self.mates(account))
            more = amount + account.held.get(component, 0)
            return totals[component] - account.draws(component) + account.draws(component, more)
        drawn = 0
        for mate in self.mates(account):
            used = mate.used(component, future) - freed.get((mate.team, mate.band), _NONE).get(component, 0)
            if mate is account:
                used += amount + mate.held.get(component, 0)
            drawn += max(0, used - mate.kept(component))
        return drawn

    # ----------------------------------------------------------------------------------- taking back

    def is_entitled(self, job: JobView, indices: Sequence[int]) -> bool:
        """Return whether a team's own quota covers these tasks, whatever others borrowed of it."""
        account = self.account(job.spec)
        if not can_borrow(account.band) or account.quota is None:
            return False
        mine = self._own_claims(job, indices)
        return all(
            account.used(c, future=True) - mine.get(c, 0) + amount <= account.own(c)
            for c, amount in self.need(job, indices).items()
        )

    def may_take(self, by: JobView, indices: Sequence[int], victim: JobView, freed: Freed) -> bool:
        """Return whether ``by`` takes its own quota back if a task of ``victim`` leaves.

        Its team must be of the same cohort and still hold more than its own quota, after ``freed``, of
        something that ``by`` needs.
        """
        mine, theirs = self.account(by.spec), self.account(victim.spec)
        same = theirs.band is mine.band and theirs.cohort == mine.cohort != "" and theirs is not mine
        if not same or victim.spec.preemption is Preemption.NEVER:
            return False
        given = freed.get((theirs.team, theirs.band), _NONE)
        need = self.need(by, indices)
        return any(theirs.staying.get(c, 0) - given.get(c, 0) > theirs.own(c) for c in need)

    def add_freed(self, freed: Freed, job: JobView, tasks: Iterable[TaskView]) -> None:
        """Count what these tasks would give back."""
        if is_charged(job.spec):
            entry = freed.setdefault((team_of(job.spec), job.spec.priority.band), {})
            for task in tasks:
                _add(entry, self._charge(job.spec, task.index, task.resources))

    def could_be_given_back(self, job: JobView, indices: Sequence[int]) -> bool:
        """Return whether others give back: some leave already, or the unit may take its own back."""
        account = self.account(job.spec)
        if any(any(m.leaving.values()) for m in self.mates(account)):
            return True
        return not self.has_patience_left(job) and self.is_entitled(job, indices)

    def has_patience_left(self, job: JobView) -> bool:
        """Return whether a job has not yet waited long enough for what is its own to be kept for it."""
        return self.now_s < job.submitted_s + self.policy.patience_s

    # -------------------------------------------------------------------------------------- changing

    def admit(self, job: JobView, index: int, resources: Resources, growth: bool) -> None:
        """Count a task that starts; what was claimed for it is no longer."""
        self.drop_claim(job.uid, index)
        if not is_charged(job.spec):
            return
        account, amounts = self.account(job.spec), self._charge(job.spec, index, resources)
        self._drawn_now.clear()
        _add(account.staying, amounts)
        if is_fixed(job.spec, above_min=growth):
            _add(account.fixed, amounts)

    def leave(self, job: JobView, task: TaskView) -> None:
        """Count a task that was told to leave: its quota is used until it has stopped."""
        if is_charged(job.spec):
            account = self.account(job.spec)
            amounts = self._charge(job.spec, task.index, task.resources)
            _add(account.staying, amounts, -1)
            _add(account.leaving, amounts)

    def claim(self, job: JobView, index: int, resources: Resources) -> None:
        """Count what is held back for a task."""
        self.drop_claim(job.uid, index)
        if is_charged(job.spec):
            account, amounts = self.account(job.spec), self._charge(job.spec, index, resources)
            self._drawn_now.clear()
            _add(account.claimed, amounts)
            self._claims[job.uid, index] = ((account.team, account.band), amounts)

    def drop_claim(self, uid: str, index: int) -> None:
        """Forget what was held back for a task."""
        key, amounts = self._claims.pop((uid, index), (None, _NONE))
        if key is not None:
            self._drawn_now.clear()
            _add(self._accounts[key].claimed, amounts, -1)

    def hold(self, job: JobView, indices: Sequence[int]) -> None:
        """Keep the team's own quota for a unit that waits for it, where that alone could ever cover it.

        Else small work of the team would for ever take what the large one waits for. What would have to be
        borrowed is not kept: nobody is promised that.
        """
        account, need = self.account(job.spec), self.need(job, indices)
        if self.has_patience_left(job) or any(n > account.own(c) for c, n in need.items()):
            return
        for component, amount in need.items():
            account.held[component] = max(account.held.get(component, 0), amount)

    # ------------------------------------------------------------------------------------ fair share

    def share(self, account: Account) -> float:
        """Return a team's dominant share at a band, divided by its weight."""
        best = 0.0
        for component in {*account.staying, *account.claimed}:
            total = sum(m.own(component) for m in self.mates(account))
            if not account.cohort or not 0 < total < UNLIMITED:
                total = self._capacity.get(component.partition(":")[0], 0)
            if total > 0:
                best = max(best, account.used(component, future=True) / total)
        return best / account.weight

    def in_order(self, units: Sequence[U]) -> Iterator[U]:
        """Yield units, the team with the least dominant share first, within each band.

        Inside a team they keep their order; shares count what this very pass has admitted, so the next
        unit is chosen after the one before it was served.
        """
        levels: dict[tuple[int, int], dict[str, list[U]]] = {}
        for unit in sorted(units, key=lambda u: u.order()):
            level = levels.setdefault(unit.order()[:2], {})
            level.setdefault(team_of(unit.job.spec), []).append(unit)
        for teams in levels.values():
            yield from self._fairly(teams) if len(teams) > 1 else next(iter(teams.values()))

    def _fairly(self, teams: dict[str, list[U]]) -> Iterator[U]:
        heap: list[tuple[float, tuple[int, float], str, int]] = []

        def push(name: str, at: int) -> None:
            if at < len(teams[name]):
                unit = teams[name][at]
                share = self.share(self.account(unit.job.spec))
                heapq.heappush(heap, (share, unit.order()[2:], name, at))

        for name in teams:
            push(name, 0)
        while heap:
            _, _, name, at = heapq.heappop(heap)
            yield teams[name][at]
            push(name, at + 1)

    def _block(self, account: Account, component: str, amount: int, used: int, kind: str) -> Block:
        def words() -> str:
            have = describe_have(account, self.mates(account), component, used, kind, self.now_s)
            return f"needs {describe_amount(component, amount)}; {have}"

        return Block(component, kind, kind == "cohort", words)


def _components(policy: Policy) -> tuple[str, ...]:
    """Return every component that any quota limits, and the plain ones, in a fixed order."""
    named = {"cpu", "memory", "gpu"}
    for team in policy.teams:
        for quota in team.quotas.values():
            for vector in (quota.amounts, quota.borrow or {}, quota.lend or {}):
                named.update(c for c in vector if c.startswith("gpu:"))
    return tuple(sorted(named))


def _add(total: Amounts, amounts: Amounts, sign: int = 1) -> None:
    for component, amount in amounts.items():
        total[component] = total.get(component, 0) + sign * amount


__all__ = ["Account", "Block", "Freed", "Gate"]
