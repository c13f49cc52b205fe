"""What a routing file would change, in the file's own words. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tidecell.structs.traffic import Routing, Tenant


def describe_routing_change(before: Routing | None, after: Routing | None) -> tuple[str, ...]:
    """Return what new settings change, a line for each value: ``rule beta: canary.share 0.05 -> 0.1``.

    Args:
        before: What is set; None: nothing.
        after: What is to be set; the keys of tenants in it do not matter.
    """
    old, new = before or Routing(), after or Routing()
    lines = _changes("alias", dict(old.aliases), dict(new.aliases))
    lines += _named("rule", {r.name: r for r in old.rules}, {r.name: r for r in new.rules})
    stay = [rule.name for rule in new.rules if rule.name in {r.name for r in old.rules}]
    if stay != [rule.name for rule in old.rules if rule.name in stay]:
        lines.append(f"rules in another order: {', '.join(rule.name for rule in new.rules)}")
    tenants = {t.name: t for t in old.tenants}
    lines += _named("tenant", tenants, {t.name: t for t in new.tenants})
    lines += [
        f"tenant {name}: its keys end with it: {', '.join(key.name for key in tenant.keys)}"
        for name, tenant in tenants.items()
        if tenant.keys and name not in {t.name for t in new.tenants}
    ]
    return tuple(lines) or ("unchanged",)


def _named(noun: str, old: Mapping[str, msgspec.Struct], new: Mapping[str, msgspec.Struct]) -> list[str]:
    lines = []
    for name, value in new.items():
        whose = f"{noun} {name}"
        if name not in old:
            said = "".join(f"; {key} {text}" for key, text in _values(value).items())
            lines.append(f"{whose}: new{said}")
        else:
            lines += _changes(whose, _values(old[name]), _values(value), ": ")
    return lines + [f"{noun} {name}: taken away" for name in old if name not in new]


def _changes(whose: str, before: Mapping[str, str], after: Mapping[str, str], colon: str = " ") -> list[str]:
    keys = [*after, *(key for key in before if key not in after)]
    return [
        f"{whose}{colon}{key} {before.get(key, '(none)')} -> {after.get(key, '(none)')}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _values(value: msgspec.Struct) -> dict[str, str]:
    """Return what a file says of a rule or tenant, by path, without what is default."""
    plain = msgspec.to_builtins(value)
    plain.pop("name", None)
    if isinstance(value, Tenant):
        plain.pop("keys", None)
    return dict(_leaves(plain, ""))


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, below in value.items():
            yield from _leaves(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        texts = [_flat(below) for below in value]
        yield path, ", ".join(texts)
    else:
        yield path, _flat(value)


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_flat(below) for below in value.values())
    return f"{value:g}" if isinstance(value, float) else str(value)
