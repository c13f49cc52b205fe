"""Routing as the API shows it: routes with their load, rules, tenants with limits, use and keys."""

from __future__ import annotations

import msgspec

from tidecell.structs.traffic import Limits, Rule


class RouteStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One service.

    Attributes:
        aliases: Other names under which its models are asked for.
        balance: How a replica is chosen.
        ready: Replicas that take requests.
        draining: Replicas that only finish what they have.
        rate: Requests per second over the last 10 s.
        ttft_p95_ms: 95th percentile of the time to the first byte over the last 10 s.
        failed_total: Requests that were not answered well, by outcome, since the router started.
    """

    service: str
    models: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    balance: str = ""
    ready: int = 0
    draining: int = 0
    in_flight: int = 0
    queued: int = 0
    rate: float = 0.0
    ttft_p95_ms: float = 0.0
    requests_total: int = 0
    failed_total: dict[str, int] = {}


class RuleStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One rule; ``missing`` are the services that it names and that are not there now."""

    rule: Rule
    missing: tuple[str, ...] = ()


class KeyStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One key; the token itself is in ``token`` only in the answer that made it."""

    tenant: str
    name: str
    limits: Limits = Limits()
    created_s: float = 0.0
    in_flight: int = 0
    used: dict[str, int] = {}
    token: str = ""


class TenantStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """One tenant: what it may use, and does use of that, by limit."""

    name: str
    limits: Limits = Limits()
    weight: float = 1.0
    ceiling: str = ""
    in_flight: int = 0
    used: dict[str, int] = {}
    keys: tuple[KeyStatus, ...] = ()


class RoutingView(msgspec.Struct, frozen=True):
    """All of it.

    Attributes:
        router_up: Whether the router answers; else there is no load and no use to show.
    """

    router_up: bool
    routes: tuple[RouteStatus, ...] = ()
    rules: tuple[RuleStatus, ...] = ()
    tenants: tuple[TenantStatus, ...] = ()


class ReplicaWhy(msgspec.Struct, frozen=True):
    """One replica: its state, and why it is, or was, chosen or not."""

    id: str
    state: str
    chosen: bool
    reason: str
    detail: str


class RouteWhy(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the router says of a route now, or of one request when it was sent on.

    Attributes:
        service, route, rule, policy, reason: Where, how it got there, and the balancer's word for the choice.
        replicas: None is given for a request whose choice was not kept.
        text: The same in lines.
        sheds: Requests of the service that were shed or refused since the router started, by reason.
        limit: Requests that may be in flight, as learned; 0: no limit.
        breaker: ``open`` or ``closed``; empty: it has none.
        request: The request's line of the access log (docs/router.md), once it has ended.
    """

    service: str = ""
    route: str = ""
    rule: str = ""
    policy: str = ""
    reason: str = ""
    replicas: tuple[ReplicaWhy, ...] = ()
    text: tuple[str, ...] = ()
    sheds: dict[str, int] = {}
    in_flight: int = 0
    queued: int = 0
    limit: float = 0.0
    breaker: str = ""
    request: dict[str, str | int | float | bool | None] = {}


class NewKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What a new key is asked for with."""

    tenant: str
    name: str
    limits: Limits = Limits()
