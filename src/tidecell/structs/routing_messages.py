"""Inputs and events about routing: what was set, and keys that come and go."""

from __future__ import annotations

from tidecell.structs.message_base import Event, Input
from tidecell.structs.traffic import Key, Routing


class RoutingProposed(Input, frozen=True, tag=True):
    """Somebody sets aliases, rules and tenants; None: there are none. Who stays keeps the keys."""

    routing: Routing | None = None


class KeyProposed(Input, frozen=True, tag=True):
    """Somebody gives a tenant another key."""

    tenant: str
    key: Key


class KeyRevokeRequested(Input, frozen=True, tag=True):
    """Somebody ends a key."""

    tenant: str
    name: str


class RoutingSet(Event, frozen=True, tag=True):
    """Aliases, rules and tenants are these from now on, keys included; None: there are none."""

    routing: Routing | None = None


class KeyCreated(Event, frozen=True, tag=True):
    """A tenant has one more key; only its hash is known here."""

    tenant: str
    key: Key


class KeyRevoked(Event, frozen=True, tag=True):
    """A key is accepted no longer."""

    tenant: str
    name: str


RoutingInput = RoutingProposed | KeyProposed | KeyRevokeRequested
RoutingEvent = RoutingSet | KeyCreated | KeyRevoked
