"""The part of the API about routing: what is set, what goes where, and the keys of tenants."""

from __future__ import annotations

import asyncio
import re
import secrets

import msgspec
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from tidecell.client.quota_views import Change
from tidecell.client.routing_diff import describe_routing_change
from tidecell.client.routing_views import (
    KeyStatus,
    NewKey,
    RouteStatus,
    RouteWhy,
    RoutingView,
    RuleStatus,
    TenantStatus,
)
from tidecell.server.bodies import read_body
from tidecell.server.control import ControlPlane
from tidecell.server.openapi import Operation
from tidecell.structs.errors import NotFoundError, RefusedError
from tidecell.structs.routing_messages import KeyProposed, KeyRevokeRequested, RoutingProposed
from tidecell.structs.traffic import Key, Routing, Tenant
from tidecell.traffic.access_log import find_line
from tidecell.traffic.control import Why
from tidecell.traffic.limits import key_account, tenant_account
from tidecell.traffic.stats import AccountUse, RouterStats, ServiceStats
from tidecell.traffic.table import Route, Table, hash_token

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


class RoutingApi:
    """The handlers, over one control plane."""

    def __init__(self, control: ControlPlane) -> None:
        self._control = control

    async def view(self, request: Request) -> Response:
        """Routes, rules and tenants as they are now."""
        routing = self._control.state.routing or Routing()
        table = self._control.serving.table()
        return _json(view_of(routing, table, self._control.serving.stats))

    async def settings(self, request: Request) -> Response:
        """What was set, without anything of the keys' tokens."""
        return _json(_without_hashes(self._control.state.routing))

    async def set(self, request: Request) -> Response:
        """Set aliases, rules and tenants."""
        routing = await read_body(request, Routing)
        before = self._control.state.routing
        await self._control.ask(RoutingProposed(routing))
        return _json(Change(describe_routing_change(before, self._control.state.routing)))

    async def why(self, request: Request) -> Response:
        """Why the replicas of a service are chosen or not, or what became of a request."""
        name = request.path_params["name"]
        path = self._control.home / "router" / "access.jsonl"
        try:
            why = await self._control.serving.why(name)
        except NotFoundError:
            line = await asyncio.to_thread(find_line, path, name)
            if line is None:
                raise
            why = Why(request=line)
        return _json(_why(why))

    async def create_key(self, request: Request) -> Response:
        """Give a tenant a key; the answer is the only one that holds the token."""
        new = await read_body(request, NewKey)
        if not _NAME.fullmatch(new.name):
            hint = "use lower-case letters, digits, dots, dashes; at most 63 characters"
            raise RefusedError(f"'{new.name}' is no name for a key", hint)
        token = f"tide-{secrets.token_urlsafe(32)}"
        await self._control.ask(KeyProposed(new.tenant, Key(new.name, hash_token(token), new.limits)))
        return _json(KeyStatus(new.tenant, new.name, new.limits, token=token), 201)

    async def revoke_key(self, request: Request) -> Response:
        """End a key."""
        tenant, name = request.path_params["tenant"], request.path_params["name"]
        await self._control.ask(KeyRevokeRequested(tenant, name))
        return _json(KeyStatus(tenant, name))


def view_of(routing: Routing, table: Table, stats: RouterStats | None) -> RoutingView:
    """Return what is set beside what the router says of it."""
    known = stats or RouterStats()
    services = {route.service for route in table.routes}
    return RoutingView(
        router_up=stats is not None,
        routes=tuple(_route(r, table, known.services.get(r.service, ServiceStats())) for r in table.routes),
        rules=tuple(
            RuleStatus(rule, tuple(name for name in rule.services() if name not in services))
            for rule in routing.rules
        ),
        tenants=tuple(_tenant(tenant, known.accounts) for tenant in routing.tenants),
    )


def _route(route: Route, table: Table, stats: ServiceStats) -> RouteStatus:
    states = [endpoint.state for endpoint in route.endpoints]
    return RouteStatus(
        service=route.service,
        models=route.models,
        aliases=tuple(alias for alias, model in table.aliases.items() if model in route.models),
        balance=route.traffic.balance,
        ready=states.count("ready"),
        draining=states.count("draining"),
        in_flight=stats.in_flight,
        queued=stats.queued,
        rate=stats.rate_10s,
        ttft_p95_ms=stats.ttft_ms.p95,
        requests_total=stats.requests_total,
        failed_total=stats.failed_total,
    )


def _tenant(tenant: Tenant, accounts: dict[str, AccountUse]) -> TenantStatus:
    use = accounts.get(tenant_account(tenant.name), AccountUse())
    keys = tuple(_key(tenant.name, key, accounts) for key in tenant.keys)
    return TenantStatus(
        tenant.name, tenant.limits, tenant.weight, tenant.ceiling, use.in_flight, use.used, keys
    )


def _key(tenant: str, key: Key, accounts: dict[str, AccountUse]) -> KeyStatus:
    use = accounts.get(key_account(tenant, key.name), AccountUse())
    return KeyStatus(tenant, key.name, key.limits, key.created_s, use.in_flight, use.used)


def _why(why: Why) -> RouteWhy:
    said = {} if why.explanation is None else msgspec.to_builtins(why.explanation)
    text = () if why.explanation is None else tuple(why.explanation.lines())
    line = {} if why.request is None else msgspec.to_builtins(why.request)
    more = {"text": text, "request": line, "sheds": why.sheds, "breaker": why.breaker}
    load = {"in_flight": why.in_flight, "queued": why.queued, "limit": why.limit}
    return msgspec.convert({**said, **more, **load}, RouteWhy)


def _without_hashes(routing: Routing | None) -> Routing | None:
    if routing is None:
        return None
    tenants = (
        replace(tenant, keys=tuple(replace(key, hash="") for key in tenant.keys))
        for tenant in routing.tenants
    )
    return replace(routing, tenants=tuple(tenants))


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


OPERATIONS = (
    Operation("GET", "/v1/routing", "Routes, rules and tenants, with load and use", RoutingView),
    Operation(
        "GET", "/v1/routing/settings", "Aliases, rules and tenants as they were set, or null", Routing | None
    ),
    Operation(
        "PUT",
        "/v1/routing/settings",
        "Set aliases, rules and tenants; tenants that stay keep their keys",
        Change,
        body=Routing,
    ),
    Operation(
        "GET",
        "/v1/routing/why/{name}",
        "Why a service's replicas are chosen or not, or what became of a request, by its id",
        RouteWhy,
    ),
    Operation(
        "POST",
        "/v1/routing/keys",
        "Give a tenant a key; answers its token, once",
        KeyStatus,
        body=NewKey,
        status=201,
    ),
    Operation("DELETE", "/v1/routing/keys/{tenant}/{name}", "End a key", KeyStatus),
)
