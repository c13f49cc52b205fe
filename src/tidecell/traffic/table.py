"""The routing table: what the control plane tells the router, whole, whenever it changes.

The table is the only thing that flows that way. It is a value: the router compares two of them, keeps the
newest on disk and needs nothing else to serve while the control plane is away. What it does not know: load,
health, clocks.

``(epoch, version)`` orders tables. The epoch is the fencing epoch of the control plane that wrote it: one
that was replaced cannot push its view over its successor's.
"""

from __future__ import annotations

import hashlib
from typing import Literal

import msgspec

from tidecell.structs.errors import ConflictError, RefusedError
from tidecell.structs.traffic import Rule, Tenant, TrafficPolicy
from tidecell.structs.traffic_check import check_rules, check_tenants, check_traffic

EndpointState = Literal["ready", "draining"]


class Endpoint(msgspec.Struct, frozen=True):
    """How one replica is reached.

    Attributes:
        id: Unique in the table; a restarted replica should get a new one (or the same id with another port).
        host: Address, an IP or a name.
        port: TCP port.
        state: ``ready`` takes new requests, ``draining`` only finishes those it has.
        weight: Its share beside the others', for ``weighted-round-robin``.
    """

    id: str
    host: str
    port: int
    state: EndpointState = "ready"
    weight: float = 1.0


class Route(msgspec.Struct, frozen=True):
    """One service: what is sent to it and where that can go.

    Attributes:
        service: Its name; reachable as ``/services/<name>/`` and by host ``<name>.localhost``.
        models: Model names that ``/v1/*`` requests may ask for.
        endpoints: Its replicas; none is fine, requests then wait.
        max_queue: Requests that may wait while no replica can take them.
        queue_timeout_s: How long a request may wait, over all its attempts.
        prefix: A further path prefix, stripped before forwarding; starts and ends with ``/``.
        traffic: How its requests are treated.
    """

    service: str
    models: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    max_queue: int = 1024
    queue_timeout_s: float = 60.0
    prefix: str | None = None
    traffic: TrafficPolicy = TrafficPolicy()


class Table(msgspec.Struct, frozen=True):
    """All routes at one moment.

    Attributes:
        version: Counts up within an epoch.
        epoch: Fencing epoch of the writer.
        routes: One per service. Where two name the same model, the first gets its requests.
        tokens: SHA-256 (hex) of the bearer tokens that are accepted; none: no token is asked for.
        rules: Where requests go otherwise than model, host or path say; the first that matches.
        tenants: Whose keys have limits; their keys' hashes must be among ``tokens``.
        aliases: Other names of models.
        routers: Router processes that are given this table; each holds an equal part of every limit.
    """

    version: int = 0
    epoch: int = 0
    routes: tuple[Route, ...] = ()
    tokens: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()
    tenants: tuple[Tenant, ...] = ()
    aliases: dict[str, str] = {}
    routers: int = 1

    @property
    def order(self) -> tuple[int, int]:
        """What tables are compared by."""
        return (self.epoch, self.version)


EMPTY = Table()


def hash_token(token: str) -> str:
    """Return the form in which a bearer token stands in a table."""
    return hashlib.sha256(token.encode()).hexdigest()


def encode(table: Table) -> bytes:
    """Return the table as JSON."""
    return msgspec.json.encode(table)


def decode(raw: bytes) -> Table:
    """Return the table that ``raw`` holds.

    Raises:
        RefusedError: It is no table, or one that contradicts itself.
    """
    try:
        table = msgspec.json.decode(raw, type=Table)
    except msgspec.MsgspecError as error:
        raise RefusedError(
            f"not a routing table: {error}", hint="see tidecell.traffic.table.Table"
        ) from error
    check(table)
    return table


def check(table: Table) -> None:
    """Refuse a table that contradicts itself.

    Raises:
        RefusedError: A service or an endpoint id appears twice, or a port, prefix or limit is impossible.
    """
    _unique("service", [route.service for route in table.routes])
    _unique("endpoint", [endpoint.id for route in table.routes for endpoint in route.endpoints])
    _unique("prefix", [route.prefix for route in table.routes if route.prefix is not None])
    for route in table.routes:
        _check_route(route)
        check_traffic(route.service, route.traffic)
    services = {route.service for route in table.routes}
    check_rules(table.rules, services)
    check_tenants(table.tenants, table.tokens)
    if table.routers < 1:
        raise RefusedError(f"the table is for {table.routers} routers", hint="give 1 or more")


def check_order(current: Table, new: Table) -> None:
    """Refuse a table older than the one that is served; the same order again is fine (a repeated push).

    Raises:
        ConflictError: ``new`` is older.
    """
    if new.order < current.order:
        raise ConflictError(
            f"table (epoch {new.epoch}, version {new.version}) is older than "
            f"(epoch {current.epoch}, version {current.version}), which is served",
            hint="another control plane took over; this one must stop pushing",
        )


def _check_route(route: Route) -> None:
    if route.prefix is not None and not (route.prefix.startswith("/") and route.prefix.endswith("/")):
        raise RefusedError(
            f"prefix {route.prefix!r} of service {route.service!r} must start and end with '/'",
            hint="write it like '/chat/'",
        )
    if route.max_queue < 0 or route.queue_timeout_s < 0:
        raise RefusedError(
            f"service {route.service!r} has max_queue {route.max_queue} and queue_timeout_s "
            f"{route.queue_timeout_s:g}; both must be 0 or more",
            hint="0 turns waiting off",
        )
    for endpoint in route.endpoints:
        if not 0 < endpoint.port < 65536:
            raise RefusedError(
                f"endpoint {endpoint.id!r} has port {endpoint.port}; allowed are 1 to 65535",
                hint="give the port the replica listens on",
            )
        if not 0.0 <= endpoint.weight < float("inf"):
            raise RefusedError(
                f"endpoint {endpoint.id!r} has weight {endpoint.weight:g}; it must be 0 or more",
                hint="0 gets no request while another has more",
            )


def _unique(noun: str, names: list[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RefusedError(
                f"{noun} {name!r} appears twice in the table", hint=f"each {noun} appears once"
            )
        seen.add(name)
