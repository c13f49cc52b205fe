"""What one team has and uses at one band, and that in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tidecell.structs.job import Band
from tidecell.structs.tenant import UNLIMITED, Amounts, Quota, can_borrow, describe_amount, limit


@dataclass
class Account:
    """What one team has and uses at one band.

    Attributes:
        quota: None: it has none, or it is not valid now.
        staying: Held by tasks that stay.
        leaving: Held by tasks that were told to leave.
        claimed: Held back for tasks whose victims are leaving.
        fixed: The part of ``staying`` that can never be taken back.
        held: Kept for a job of the team that waits for quota; others of the team may not use it.
    """

    team: str
    band: Band
    quota: Quota | None
    ended: Quota | None = None
    cohort: str = ""
    weight: float = 1.0
    staying: Amounts = field(default_factory=dict)
    leaving: Amounts = field(default_factory=dict)
    claimed: Amounts = field(default_factory=dict)
    fixed: Amounts = field(default_factory=dict)
    held: Amounts = field(default_factory=dict)
    _own: Amounts = field(default_factory=dict)
    _kept: Amounts = field(default_factory=dict)

    def own(self, component: str) -> int:
        """Return the team's own quota of a component."""
        known = self._own.get(component)
        if known is None:
            known = limit(self.quota.amounts, component) if self.quota is not None else 0
            self._own[component] = known
        return known

    def most(self, component: str) -> int:
        """Return what it may use with all that it may borrow."""
        own = self.own(component)
        if not self.cohort or not can_borrow(self.band) or own >= UNLIMITED:
            return own
        extra = limit(self.quota.borrow, component) if self.quota is not None else UNLIMITED
        return min(UNLIMITED, own + extra)

    def kept(self, component: str) -> int:
        """Return the part of its own quota that it never lends."""
        known = self._kept.get(component)
        if known is None:
            lent = limit(self.quota.lend, component) if self.quota is not None else 0
            known = self._kept[component] = max(0, self.own(component) - lent)
        return known

    def draws(self, component: str, more: int = 0) -> int:
        """Return what it draws from the cohort's pool now, or would if it used so much more."""
        return max(0, self.used(component) + more - self.kept(component))

    def used(self, component: str, future: bool = False) -> int:
        """Return what counts as used: ``future``, once all that leaves has left."""
        now = 0 if future else self.leaving.get(component, 0)
        return now + self.staying.get(component, 0) + self.claimed.get(component, 0)


def describe_have(
    account: Account, mates: Iterable[Account], component: str, used: int, kind: str, now_s: float
) -> str:
    """Return what an account has and uses of a component, and who borrows what is short.

    Args:
        account: Whose quota is short.
        mates: The accounts of its cohort.
        component: What is short.
        used: What counts as used.
        kind: As in ``Block``.
        now_s: Seconds since the epoch.
    """
    name, band = account.team, account.band.word
    own = describe_amount(component, account.own(component))
    if kind == "none":
        nothing = f"team '{name}' has no quota at {band}{_when(account.ended, now_s)}"
        return nothing if account.quota is None else f"team '{name}' has {own} at {band}"
    text = f"team '{name}' uses {describe_amount(component, used)} of its {own} at {band}"
    if kind == "fixed":
        return f"{text}, and what cannot be taken back may not be borrowed"
    if kind == "held":
        return f"{text}; the rest is kept for a job of the team that goes first"
    if kind == "own":
        most = account.most(component)
        more = f", {describe_amount(component, most)} with all it may borrow"
        return text if most == account.own(component) else text + more
    return f"{text}; {_lent(account, mates, component)}"


def _lent(account: Account, mates: Iterable[Account], component: str) -> str:
    """Name who borrows what the cohort lends."""
    rows = []
    for mate in mates:
        over = mate.used(component) - mate.own(component)
        if mate is not account and over > 0:
            rows.append(f"{mate.team} borrows {describe_amount(component, over)}")
    rest = f"cohort '{account.cohort}' has no more to lend"
    return f"{rest} ({', '.join(rows)})" if rows else rest


def _when(quota: Quota | None, now_s: float) -> str:
    if quota is None:
        return ""
    return " any more: it has ended" if quota.is_over(now_s) else " yet: it has not begun"
