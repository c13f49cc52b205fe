"""Teams, what they may use, and what that costs. Pure.

A quota is a vector at a priority band, for a time. Components are named ``cpu`` (thousandths of a core),
``memory`` (bytes), ``gpu`` (thousandths of an accelerator) and ``gpu:TYPE``; one that a vector does not
name is unlimited, and ``*`` stands for all that it does not name. Teams of one cohort lend each other
what they do not use, as Kueue's cohorts do (KEP-79, KEP-1224); bands and periods are Borg's (EuroSys 2015,
section 2.5).
"""

from __future__ import annotations

import msgspec

from tidecell.structs.job import Band, JobSpec, Preemption
from tidecell.structs.resources import Resources, format_bytes, format_cpu

UNLIMITED = 1 << 62
DEFAULT_TEAM = "default"  # whom a job without a team belongs to, where the policy has such a team
ANYTHING = "*"

Amounts = dict[str, int]


class Quota(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a team may use at one band.

    Attributes:
        amounts: Its own; a component that is not named is unlimited.
        borrow: How much more it may use of what its cohort lends; None: all that is lent.
        lend: How much of its own it lends while it does not use it; None: all of it.
        from_s: It begins then; 0: it has begun.
        until_s: It ends then; 0: never.
        period_s: Length of a period, the first beginning at ``from_s``; 0: none.
        renew: Whether another period follows each; else it ends with the first.
    """

    amounts: Amounts = {}
    borrow: Amounts | None = None
    lend: Amounts | None = None
    from_s: float = 0.0
    until_s: float = 0.0
    period_s: float = 0.0
    renew: bool = True

    @property
    def ends_s(self) -> float:
        """When it ends for good; 0: never."""
        ends = [self.until_s] if self.until_s else []
        if self.period_s and not self.renew:
            ends.append(self.from_s + self.period_s)
        return min(ends, default=0.0)

    def is_valid(self, now_s: float) -> bool:
        """Return whether it may be used now."""
        return self.from_s <= now_s and not self.is_over(now_s)

    def is_over(self, now_s: float) -> bool:
        """Return whether it has ended for good."""
        return bool(self.ends_s) and now_s >= self.ends_s

    def renews_s(self, now_s: float) -> float:
        """Return when the next period begins; 0: none does."""
        if not self.period_s or not self.renew or self.is_over(now_s) or now_s < self.from_s:
            return 0.0
        return self.from_s + (int((now_s - self.from_s) // self.period_s) + 1) * self.period_s

    def next_change_s(self, now_s: float) -> float:
        """Return when it begins or ends next; 0: never."""
        if now_s < self.from_s:
            return self.from_s
        return self.ends_s if self.ends_s > now_s else 0.0


class Team(msgspec.Struct, frozen=True, omit_defaults=True):
    """A team and its quotas.

    Attributes:
        quotas: By band word. At a band that is missing it has none; best-effort is over-sold and needs none.
        weight: Fair share: a team of weight 2 gets twice as much before it comes after another.
        users: Who may submit in its name; empty: anybody. Their jobs are its, where the spec names no team.
    """

    name: str
    quotas: dict[str, Quota] = {}
    cohort: str = ""
    weight: float = 1.0
    users: tuple[str, ...] = ()


class Prices(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an hour costs. ``gpu_hour`` is by type, the empty type standing for all others."""

    cpu_hour: float = 0.0
    memory_gib_hour: float = 0.0
    gpu_hour: dict[str, float] = {}
    currency: str = ""


class Policy(msgspec.Struct, frozen=True, omit_defaults=True):
    """All teams and prices of a cell.

    Attributes:
        patience_s: How long a job waits for quota before the rest of its team is held back for it and
            what others borrowed is taken back for it.
    """

    teams: tuple[Team, ...] = ()
    prices: Prices = Prices()
    patience_s: float = 0.0

    def team(self, name: str) -> Team | None:
        """Return the team of this name, or None."""
        return next((t for t in self.teams if t.name == name), None)

    def of_user(self, user: str) -> Team | None:
        """Return the first team that names this user, or None."""
        return next((t for t in self.teams if user and user in t.users), None)

    def cohort(self, team: Team) -> tuple[Team, ...]:
        """Return the teams that lend each other, this one among them."""
        if not team.cohort:
            return (team,)
        return tuple(t for t in self.teams if t.cohort == team.cohort)


def is_charged(spec: JobSpec) -> bool:
    """Return whether what a job holds counts against quota: best effort needs none, and what is in an alloc
    is the alloc's.
    """
    return spec.priority.band is not Band.BEST_EFFORT and not spec.alloc


def team_of(spec: JobSpec) -> str:
    """Return the team that a job is charged to."""
    return spec.team or DEFAULT_TEAM


def limit(vector: Amounts | None, component: str) -> int:
    """Return what a vector allows of a component."""
    if vector is None:
        return UNLIMITED
    return vector.get(component, vector.get(ANYTHING, UNLIMITED))


def charge(resources: Resources, accelerator_type: str, components: tuple[str, ...]) -> Amounts:
    """Return what counts against a quota, of the given components; zeros are left out.

    A request that names no type of accelerator may land on any, so it counts against every type.
    """
    out: Amounts = {}
    for component in components:
        kind, _, wanted = component.partition(":")
        amount = {"cpu": resources.cpu_millis, "memory": resources.memory_bytes}.get(
            kind, resources.gpu_millis
        )
        if amount and (not wanted or _is_type(wanted, accelerator_type)):
            out[component] = amount
    return out


def _is_type(quota_type: str, asked: str) -> bool:
    mine, theirs = quota_type.lower(), asked.lower()
    return not theirs or mine in theirs or theirs in mine


def can_borrow(band: Band) -> bool:
    """Return whether work of a band may use what others lend: only what can be taken back may be lent."""
    return band is Band.BATCH


def is_fixed(spec: JobSpec, above_min: bool) -> bool:
    """Return whether a replica can never be taken back from its job, so that it needs quota of its own."""
    if not can_borrow(spec.priority.band) or spec.preemption is Preemption.NEVER:
        return True
    return spec.preemption is Preemption.ABOVE_MIN and not above_min


def describe_amount(component: str, amount: int) -> str:
    """Return an amount in words: ``8 gpu``, ``4 gpu H100``, ``16 cpu``, ``64.0 GiB``."""
    kind, _, wanted = component.partition(":")
    if amount >= UNLIMITED:
        return f"unlimited {component.replace(':', ' ')}"
    if kind == "memory":
        return f"{format_bytes(amount)} memory"
    return f"{format_cpu(amount)} {kind}" + (f" {wanted}" if wanted else "")


def describe_amounts(amounts: Amounts) -> str:
    """Return a vector in words; ``nothing`` if it is empty."""
    return ", ".join(describe_amount(c, n) for c, n in amounts.items()) or "nothing"


__all__ = [
    "ANYTHING",
    "DEFAULT_TEAM",
    "UNLIMITED",
    "Amounts",
    "Policy",
    "Prices",
    "Quota",
    "Team",
    "can_borrow",
    "charge",
    "describe_amount",
    "describe_amounts",
    "is_fixed",
    "limit",
    "team_of",
]
