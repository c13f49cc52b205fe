"""Routing as the cell keeps it: what may be set, and what the events about it change. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from tidecell.cell.records import CellState
from tidecell.structs.errors import ConflictError, NotFoundError, RefusedError
from tidecell.structs.message_base import Event, Input
from tidecell.structs.routing_messages import (
    KeyCreated,
    KeyProposed,
    KeyRevoked,
    KeyRevokeRequested,
    RoutingProposed,
    RoutingSet,
)
from tidecell.structs.traffic import Routing, Tenant
from tidecell.structs.traffic_check import check_routing


def decide_routing(state: CellState, message: Input, now_s: float) -> list[Event]:
    """Return the events that a message about routing means.

    Raises:
        RefusedError, ConflictError, NotFoundError: It cannot be granted.
    """
    return _DECIDE[type(message)](state, message, now_s)


def _set(state: CellState, message: RoutingProposed, now_s: float) -> list[Event]:
    routing = message.routing
    if routing is not None:
        given = [tenant.name for tenant in routing.tenants if tenant.keys]
        if given:
            raise RefusedError(
                f"tenant '{given[0]}' is given keys in the settings", "keys are made by tide key create"
            )
        routing = with_keys(routing, state.routing)
        check_routing(routing)
    return [] if routing == state.routing else [RoutingSet(routing)]


def with_keys(routing: Routing, before: Routing | None) -> Routing:
    """Return settings in which the tenants that were there already have the keys that they had."""
    keys = {tenant.name: tenant.keys for tenant in before.tenants} if before is not None else {}
    return replace(routing, tenants=tuple(replace(t, keys=keys.get(t.name, ())) for t in routing.tenants))


def _create(state: CellState, message: KeyProposed, now_s: float) -> list[Event]:
    tenant = _tenant(state, message.tenant)
    if any(key.name == message.key.name for key in tenant.keys):
        raise ConflictError(
            f"tenant '{tenant.name}' has a key '{message.key.name}' already",
            f"give another --name, or tide key revoke {tenant.name} {message.key.name} first",
        )
    key = replace(message.key, created_s=now_s)
    check_routing(_with_tenant(state, replace(tenant, keys=(*tenant.keys, key))))
    return [KeyCreated(tenant.name, key)]


def _revoke(state: CellState, message: KeyRevokeRequested, now_s: float) -> list[Event]:
    tenant = _tenant(state, message.tenant)
    names = [key.name for key in tenant.keys]
    if message.name not in names:
        known = f"its keys are {', '.join(names)}" if names else "it has none"
        raise NotFoundError(f"tenant '{tenant.name}' has no key '{message.name}'; {known}", "tide key ls")
    return [KeyRevoked(tenant.name, message.name)]


def _tenant(state: CellState, name: str) -> Tenant:
    tenants = state.routing.tenants if state.routing is not None else ()
    found = next((tenant for tenant in tenants if tenant.name == name), None)
    if found is None:
        names = ", ".join(tenant.name for tenant in tenants)
        hint = f"tenants are {names}" if names else "name tenants in a file: tide route apply -f routes.yaml"
        raise NotFoundError(f"no tenant named '{name}'", hint)
    return found


def _with_tenant(state: CellState, changed: Tenant) -> Routing:
    routing = state.routing or Routing()
    tenants = tuple(changed if t.name == changed.name else t for t in routing.tenants)
    return replace(routing, tenants=tenants)


# ------------------------------------------------------------------------------------- applying


def _routing_set(state: CellState, event: RoutingSet, at_s: float) -> None:
    state.routing = event.routing


def _key_created(state: CellState, event: KeyCreated, at_s: float) -> None:
    tenant = _tenant(state, event.tenant)
    state.routing = _with_tenant(state, replace(tenant, keys=(*tenant.keys, event.key)))


def _key_revoked(state: CellState, event: KeyRevoked, at_s: float) -> None:
    tenant = _tenant(state, event.tenant)
    keys = tuple(key for key in tenant.keys if key.name != event.name)
    state.routing = _with_tenant(state, replace(tenant, keys=keys))


_DECIDE: dict[type[Input], Callable[[CellState, Any, float], list[Event]]] = {
    RoutingProposed: _set,
    KeyProposed: _create,
    KeyRevokeRequested: _revoke,
}
ROUTING_APPLY: dict[type[Event], Callable[[CellState, Any, float], None]] = {
    RoutingSet: _routing_set,
    KeyCreated: _key_created,
    KeyRevoked: _key_revoked,
}
