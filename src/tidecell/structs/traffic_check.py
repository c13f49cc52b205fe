"""Refuses policies that make no sense, with the value and what is allowed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any
from zoneinfo import ZoneInfo

from tidecell.structs.errors import RefusedError
from tidecell.structs.traffic import Limits, Routing, Rule, Tenant, TrafficPolicy

Bound = tuple[str, Callable[[Any], bool], str]

_SHARE = (lambda v: 0.0 < v <= 1.0, "above 0 and at most 1")
_SHARE_OR_NONE = (lambda v: 0.0 <= v <= 1.0, "0 to 1")
_POSITIVE = (lambda v: v > 0, "more than 0")
_COUNT = (lambda v: v >= 1, "1 or more")
_NOT_NEGATIVE = (lambda v: v >= 0, "0 or more")

_TOP: tuple[Bound, ...] = (("slow_start_s", *_NOT_NEGATIVE),)
_PARTS: dict[str, tuple[Bound, ...]] = {
    "prequal": (
        ("pool_size", lambda v: 2 <= v <= 256, "2 to 256"),
        ("probe_rate", lambda v: 0.0 < v <= 16.0, "above 0 and at most 16"),
        ("remove_rate", *_NOT_NEGATIVE),
        ("hot_quantile", *_SHARE_OR_NONE),
        ("delta", *_POSITIVE),
        ("max_age_s", *_POSITIVE),
    ),
    "prefix": (
        ("block_bytes", lambda v: 64 <= v <= 1 << 20, "64 to 1048576"),
        ("capacity_blocks", *_COUNT),
        ("load_slack", *_POSITIVE),
        ("load_floor_tokens", *_NOT_NEGATIVE),
        ("load_weight", *_NOT_NEGATIVE),
    ),
    "outlier": (
        ("after", *_COUNT),
        ("base_s", *_POSITIVE),
        ("max_s", *_POSITIVE),
        ("max_share", *_SHARE_OR_NONE),
    ),
    "breaker": (
        ("failure_share", *_POSITIVE),
        ("min_requests", *_COUNT),
        ("window_s", *_POSITIVE),
        ("open_s", *_POSITIVE),
        ("max_open_s", *_POSITIVE),
        ("trials", *_COUNT),
        ("max_in_flight", *_NOT_NEGATIVE),
    ),
    "overload": (("max_queue", *_NOT_NEGATIVE), ("deadline_s", *_NOT_NEGATIVE)),
    "hedge": (
        ("quantile", lambda v: 0.0 < v < 1.0, "above 0 and below 1"),
        ("share", *_SHARE),
        ("burst", *_COUNT),
        ("least_s", *_POSITIVE),
        ("min_samples", *_COUNT),
    ),
    "affinity": (("header", bool, "a header's name"), ("slack", *_NOT_NEGATIVE)),
}
_CONCURRENCY: tuple[Bound, ...] = (
    ("initial", *_COUNT),
    ("least", *_COUNT),
    ("most", *_COUNT),
    ("tolerance", lambda v: v >= 1.0, "1 or more"),
    ("look_s", *_POSITIVE),
    ("target_s", *_POSITIVE),
    ("backoff", lambda v: 0.0 < v < 1.0, "above 0 and below 1"),
)
_LIMITS: tuple[Bound, ...] = tuple(
    (name, *_NOT_NEGATIVE)
    for name in ("requests_per_minute", "tokens_per_minute", "tokens_per_day", "concurrency")
)


def check_traffic(service: str, policy: TrafficPolicy) -> None:
    """Refuse a service's policy that makes no sense.

    Raises:
        RefusedError: A value is out of its range.
    """
    where = f"service {service!r}"
    _within(where, "traffic", policy, _TOP)
    for name, bounds in _PARTS.items():
        part = getattr(policy, name)
        if part is not None:
            _within(where, f"traffic.{name}", part, bounds)
    overload = policy.overload
    if overload is not None:
        path = "traffic.overload.concurrency"
        _within(where, path, overload.concurrency, _CONCURRENCY)
        least, most = overload.concurrency.least, overload.concurrency.most
        if not least <= overload.concurrency.initial <= most:
            raise RefusedError(
                f"{where} has {path}.initial {overload.concurrency.initial}; allowed are {least} to {most}",
                hint="it must lie between least and most",
            )
        for tenant, weight in overload.tenant_weights.items():
            if not weight > 0:
                raise _out(where, f"traffic.overload.tenant_weights.{tenant}", weight, "more than 0")


def check_routing(routing: Routing) -> None:
    """Refuse settings that make no sense whatever services there are: those come and go.

    Raises:
        RefusedError: See ``check_rules`` and ``check_tenants``; or an alias leads to itself.
    """
    check_rules(routing.rules, routing.services())
    check_tenants(routing.tenants, [key.hash for tenant in routing.tenants for key in tenant.keys])
    for alias, model in routing.aliases.items():
        if not alias or not model or model in routing.aliases:
            why = "is an alias itself" if model in routing.aliases else "is empty"
            raise RefusedError(
                f"alias {alias!r} leads to {model!r}, which {why}",
                hint="an alias names a model that is served",
            )


def check_rules(rules: Sequence[Rule], services: Collection[str]) -> None:
    """Refuse rules that cannot be followed.

    Raises:
        RefusedError: A name appears twice, a service is not in the table, or a share is impossible.
    """
    names: set[str] = set()
    for rule in rules:
        where = f"rule {rule.name!r}"
        if rule.name in names or not rule.name:
            raise RefusedError(f"{where} appears twice or has no name", hint="each rule has its own name")
        names.add(rule.name)
        if rule.match.path and not rule.match.path.startswith("/"):
            raise _out(where, "match.path", rule.match.path, "a path that starts with '/'")
        for split in rule.splits:
            if not split.weight >= 0:
                raise _out(where, "splits.weight", split.weight, "0 or more")
        if rule.splits and not sum(split.weight for split in rule.splits) > 0:
            raise _out(where, "splits", 0, "weights of which one is more than 0")
        for name, part in (("canary", rule.canary), ("shadow", rule.shadow)):
            if part is not None and not 0.0 <= part.share <= 1.0:
                raise _out(where, f"{name}.share", part.share, "0 to 1")
        _known_services(where, rule, services)


def check_tenants(tenants: Sequence[Tenant], tokens: Collection[str]) -> None:
    """Refuse tenants that contradict each other or the table.

    Raises:
        RefusedError: A name or key appears twice, a key is not accepted, or a limit is impossible.
    """
    names: set[str] = set()
    hashes: dict[str, str] = {}
    for tenant in tenants:
        where = f"tenant {tenant.name!r}"
        if tenant.name in names:
            raise RefusedError(f"{where} appears twice in the table", hint="each tenant appears once")
        names.add(tenant.name)
        _check_limits(where, tenant.limits)
        if not tenant.weight > 0:
            raise _out(where, "weight", tenant.weight, "more than 0")
        if len({key.name for key in tenant.keys}) < len(tenant.keys):
            raise RefusedError(f"{where} has two keys of one name", hint="name each key of a tenant apart")
        for key in tenant.keys:
            _check_limits(f"key {key.name!r} of {where}", key.limits)
            if key.hash in hashes:
                other = hashes[key.hash]
                raise RefusedError(
                    f"key {key.name!r} of {where} is also a key of tenant {other!r}",
                    hint="each token belongs to one tenant",
                )
            hashes[key.hash] = tenant.name
            if key.hash not in tokens:
                raise RefusedError(
                    f"key {key.name!r} of {where} is not among the table's tokens",
                    hint="a key is accepted only if its hash is in tokens",
                )


def _check_limits(where: str, limits: Limits) -> None:
    _within(where, "limits", limits, _LIMITS)
    try:
        ZoneInfo(limits.time_zone)
    except (KeyError, ValueError, OSError) as error:
        raise _out(where, "limits.time_zone", limits.time_zone, "IANA names such as Europe/Berlin") from error


def _known_services(where: str, rule: Rule, services: Collection[str]) -> None:
    for service in rule.services():
        if service not in services:
            known = ", ".join(sorted(services)) or "none"
            raise _out(where, "service", service, f"services of the table: {known}")


def _within(where: str, path: str, part: object, bounds: Sequence[Bound]) -> None:
    for name, is_fine, allowed in bounds:
        value = getattr(part, name)
        if not is_fine(value):
            raise _out(where, f"{path}.{name}", value, allowed)


def _out(where: str, path: str, value: object, allowed: str) -> RefusedError:
    shown = repr(value) if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else value
    return RefusedError(f"{where} has {path} {shown}; allowed: {allowed}", hint="see docs/router-policies.md")
