"""What a quota file would change, in the file's own words. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tidecell.client.units import format_duration, format_moment
from tidecell.structs.tenant import ANYTHING, Amounts, Policy, Prices, Quota, Team, describe_amounts


def describe_change(before: Policy | None, after: Policy | None) -> tuple[str, ...]:
    """Return what a new policy changes, a line for each team and value: ``team red: weight 1 -> 2``.

    Args:
        before: What is set; None: nothing.
        after: What is to be set, beginnings of periods filled in; None: everything is allowed.
    """
    if before == after:
        return ("unchanged",)
    old = {t.name: t for t in before.teams} if before is not None else {}
    new = {t.name: t for t in after.teams} if after is not None else {}
    lines = [f"team {name}: new{_listed(_team(team))}" for name, team in new.items() if name not in old]
    for name, team in new.items():
        lines += _changes(f"team {name}", _team(old[name]), _team(team)) if name in old else []
    lines += [f"team {name}: taken away" for name in old if name not in new]
    if after is None:
        return (*lines, "no quota any more: everything is allowed")
    lines += _changes("the cell", _cell(before or Policy()), _cell(after))
    return tuple(lines) or ("another order of teams",)


def _changes(whose: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    keys = [*after, *(key for key in before if key not in after)]
    return [
        f"{whose}: {key} {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _listed(values: Mapping[str, str]) -> str:
    return "".join(f"; {key} {value}" for key, value in values.items())


def _team(team: Team) -> dict[str, str]:
    """Return what a file says of a team, by key, without what is default."""
    out = {"cohort": team.cohort} if team.cohort else {}
    out |= {"weight": f"{team.weight:g}"} if team.weight != Team("").weight else {}
    out |= {"users": ", ".join(team.users)} if team.users else {}
    for band, quota in team.quotas.items():
        out |= {f"{band}{key}": value for key, value in _quota(quota).items()}
    return out


def _quota(quota: Quota) -> dict[str, str]:
    out = {"": describe_amounts(quota.amounts) if quota.amounts else "unlimited"}
    out |= {
        f" {word}": _limits(limits)
        for word, limits in (("borrow", quota.borrow), ("lend", quota.lend))
        if limits is not None
    }
    out |= {
        f" {word}": format_moment(at_s)
        for word, at_s in (("from", quota.from_s), ("until", quota.until_s))
        if at_s
    }
    if quota.period_s:
        out |= {" period": format_duration(quota.period_s) + ("" if quota.renew else ", not renewed")}
    return out


def _limits(limits: Amounts) -> str:
    """Return how much is lent or borrowed; what is named as nothing but ``*`` is all or none."""
    named = {c: n for c, n in limits.items() if c != ANYTHING}
    rest = "nothing else" if named else "none"
    parts = [describe_amounts(named)] if named else []
    if ANYTHING in limits:
        parts.append(rest if not limits[ANYTHING] else f"{limits[ANYTHING]} of anything else")
    return ", ".join(parts) or "all"


def _cell(policy: Policy) -> dict[str, str]:
    prices, unset = policy.prices, Prices()
    out = {"patience": format_duration(policy.patience_s)} if policy.patience_s else {}
    for key in ("cpu_hour", "memory_gib_hour", "currency"):
        if getattr(prices, key) != getattr(unset, key):
            out[f"prices.{key}"] = str(getattr(prices, key))
    return out | {f"prices.gpu_hour.{kind or 'all'}": str(n) for kind, n in prices.gpu_hour.items()}
