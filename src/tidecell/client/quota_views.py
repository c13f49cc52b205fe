"""What the API answers about quota. Amounts are in whole units of their component (see structs/tenant)."""

from __future__ import annotations

import msgspec

from tidecell.structs.tenant import Amounts


class QuotaStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One team at one band.

    Attributes:
        own: Its quota; a component that is not named is unlimited. Empty where ``valid`` is false.
        used: Held by its tasks, leaving ones included, and what is held back for its waiting ones.
        leaving: The part of ``used`` that tasks hold which were told to leave.
        borrowed: What it uses beyond its own.
        most: What it may use with all it may borrow, as far as that is limited.
        lent: What others of its cohort use of its own now.
        waiting: What its waiting gangs and services ask for.
        share: Dominant share, divided by the weight: the team with the least goes first.
        until_s: When it ends for good; 0: never.
        renews_s: When its next period begins; 0: none does.
    """

    team: str
    band: str
    valid: bool = True
    cohort: str = ""
    weight: float = 1.0
    own: Amounts = {}
    used: Amounts = {}
    leaving: Amounts = {}
    borrowed: Amounts = {}
    most: Amounts = {}
    lent: Amounts = {}
    waiting: Amounts = {}
    share: float = 0.0
    from_s: float = 0.0
    until_s: float = 0.0
    renews_s: float = 0.0
    users: tuple[str, ...] = ()


class Change(msgspec.Struct, frozen=True):
    """What applying a policy changed, in words."""

    lines: tuple[str, ...]
