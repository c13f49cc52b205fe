"""Whether and where a request is served: rules, limits, criticality, breakers. Pure.

The one object behind the data plane's ``admit`` and ``settle``. In this order: rules say which service; its
breaker may be open; the deadline may be over; the tenant's and the key's limits may be used up. What is
refused held nothing; what is admitted is settled exactly once.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import NamedTuple

from tidecell.structs.traffic import OverloadPolicy
from tidecell.traffic.breaker import Breaker
from tidecell.traffic.fair_queue import CRITICALITIES, HEADER, criticality
from tidecell.traffic.limits import Ledger, Refused, Reservation, actual_tokens, estimate_tokens
from tidecell.traffic.policy import ADMIT, Decision, End, Facts
from tidecell.traffic.replies import error
from tidecell.traffic.rules import Asked, Routed, Rules, model_at, model_of
from tidecell.traffic.table import Route, Table

DEADLINE_HEADER = b"x-tide-deadline-ms"
REQUEST_ID_HEADER = b"x-request-id"
LEVELS = {name: level for level, name in enumerate(CRITICALITIES)}
DEFAULT = OverloadPolicy()


class Ticket(NamedTuple):
    """What an admitted request holds."""

    reservation: Reservation | None
    breaker: Breaker | None
    routed: Routed | None
    service: str


class TrafficAdmission:
    """Admission for one router process.

    Args:
        table: What is in force.
        offset_s: Unix time minus the clock that ``now_s`` is read from.
        is_ready: Whether a service has a replica to try now.

    Attributes:
        ledger: What tenants used.
        refused: How many requests were, by service and reason.
    """

    def __init__(self, table: Table, offset_s: float, is_ready: Callable[[str], bool]) -> None:
        self.ledger = Ledger(table.tenants, offset_s, table.routers)
        self.refused: dict[str, dict[str, int]] = {}
        self._is_ready = is_ready
        self._breakers: dict[str, Breaker] = {}
        self._tickets: dict[int, Ticket] = {}
        self._under_way: dict[str, int] = {}  # of services with a breaker
        self._now_s = 0.0
        self.update(table)

    def update(self, table: Table) -> None:
        """Take over a new table; counts, open requests and breakers are kept."""
        self.ledger.update(table.tenants, table.routers)
        self._has_tenants = bool(table.tenants)
        self._aliases = table.aliases
        self._rules = Rules(table.rules, dict(table.aliases)) if table.rules else None
        self._routes: dict[str, Route] = {route.service: route for route in table.routes}
        self._overload = {r.service: r.traffic.overload for r in table.routes if r.traffic.overload}
        known, self._breakers = self._breakers, {}
        for route in table.routes:
            policy = route.traffic.breaker
            if policy is not None:
                old = known.get(route.service)
                kept = old is not None and old.policy == policy
                self._breakers[route.service] = old if kept and old is not None else Breaker(policy)

        self._admits_all = not (self._has_tenants or self._rules or self._overload or self._breakers)

    def ask_ready(self, is_ready: Callable[[str], bool]) -> None:
        """Ask this from now on whether a service has a replica to try."""
        self._is_ready = is_ready

    def admit(self, facts: Facts, now_s: float) -> Decision:
        """Return what becomes of the request."""
        if self._admits_all:
            return ADMIT
        self._now_s = now_s
        routed = self._route(facts) if self._rules is not None else None
        service = facts.service if routed is None else routed.service
        breaker = self._breakers.get(service)
        if breaker is not None and (why := breaker.allow(now_s, self._under_way.get(service, 0))):
            return self._refuse(
                service, 503, f"the service {service!r} fails too much and is left alone", why, 1
            )
        level, deadline_s = 0, inf
        overload = self._overload.get(service)
        if overload is not None:
            level, deadline_s = self._urgency(facts, overload)
            if now_s >= deadline_s:
                _forget(breaker)
                return self._refuse(
                    service, 504, "the request's deadline was over when it came", "late", None
                )
        reservation: Reservation | None = None
        if self._has_tenants:
            tokens = estimate_tokens(facts.body_bytes, facts.max_tokens)
            got = self.ledger.reserve(facts.key, tokens, now_s)
            if isinstance(got, Refused):
                _forget(breaker)
                return self._refuse(service, 429, got.message, got.reason, got.retry_after_s or None)
            reservation = got
        if reservation is not None or breaker is not None or routed is not None:
            self._tickets[id(facts)] = Ticket(reservation, breaker, routed, service)
            if breaker is not None:
                self._under_way[service] = self._under_way.get(service, 0) + 1
        renamed = self._renamed(facts, service) if routed is not None or self._aliases else ""
        if routed is None and overload is None and not renamed:
            return ADMIT
        changed = "" if service == facts.service else service
        shadow, why = ("", "") if routed is None else (routed.shadow, _why(routed))
        if overload is None:
            return Decision(service=changed, shadow=shadow, why=why, model=renamed)
        tenant = self.ledger.tenant_of.get(facts.key)
        name = facts.key if tenant is None else tenant.name
        weight = overload.tenant_weights.get(name, 1.0 if tenant is None else tenant.weight)
        told = "" if facts.head.get(HEADER) == CRITICALITIES[level].encode() else CRITICALITIES[level]
        cost = float(estimate_tokens(facts.body_bytes, facts.max_tokens))
        return Decision(None, changed, shadow, level, deadline_s, name, cost, weight, why, renamed, told)

    def settle(self, facts: Facts, end: End, now_s: float) -> None:
        """Note the end of an admitted request; a second time has no effect."""
        if not self._tickets:
            return
        ticket = self._tickets.pop(id(facts), None)
        if ticket is None:
            return
        if ticket.reservation is not None:
            tokens = actual_tokens(end.tokens_in, end.tokens_out, end.frames, facts.body_bytes, end.status)
            self.ledger.settle(ticket.reservation, tokens, now_s)
        if ticket.breaker is not None:
            self._under_way[ticket.service] -= 1
            if end.outcome == "client_closed":
                ticket.breaker.forget()
            else:
                ticket.breaker.record(end.status < 500 and end.outcome == "ok", now_s)

    def breaker_state(self, service: str, now_s: float) -> str:
        """Return ``closed``, or ``open``; empty where the service has no breaker."""
        breaker = self._breakers.get(service)
        return "" if breaker is None else "open" if breaker.is_open(now_s) else "closed"

    def routed(self, facts: Facts) -> Routed | None:
        """Return which rule sent an admitted request where."""
        ticket = self._tickets.get(id(facts))
        return None if ticket is None else ticket.routed

    def _route(self, facts: Facts) -> Routed | None:
        rules = self._rules
        if rules is None:
            return None
        head = facts.head
        tenant = self.ledger.tenant_of.get(facts.key)
        asked = Asked(
            service=facts.service,
            model=rules.model_of(facts.model),
            path=head.target.partition(b"?")[0].decode("latin-1"),
            host=head.host.decode("latin-1").lower().partition(":")[0],
            tenant="" if tenant is None else tenant.name,
            user=facts.user,
            request_id=head.get(REQUEST_ID_HEADER).decode("latin-1") or f"{id(facts)}/{facts.arrived_s}",
            header=lambda name: head.get(name.lower().encode()).decode("latin-1"),
        )
        return rules.route(asked, self._can_serve)

    def _renamed(self, facts: Facts, service: str) -> str:
        """Return what the body must name instead: an alias means nothing to a replica."""
        route = self._routes.get(service)
        if not facts.model or not facts.body or route is None:
            return ""
        name = model_at(route.models, model_of(self._aliases, facts.model))
        return "" if name == facts.model else name

    def _can_serve(self, service: str) -> bool:
        breaker = self._breakers.get(service)
        is_open = breaker is not None and breaker.is_open(self._now_s)
        return service in self._routes and not is_open and self._is_ready(service)

    def _urgency(self, facts: Facts, overload: OverloadPolicy) -> tuple[int, float]:
        tenant = self.ledger.tenant_of.get(facts.key)
        ceiling = LEVELS[tenant.ceiling] if tenant is not None else 0
        level = criticality(facts.head.get(HEADER), LEVELS[overload.criticality], ceiling)
        within = facts.head.get(DEADLINE_HEADER).strip()
        if within.isdigit() and len(within) < 10:
            return level, facts.arrived_s + int(within) / 1000.0
        return level, facts.arrived_s + overload.deadline_s if overload.deadline_s else inf

    def _refuse(
        self, service: str, status: int, message: str, reason: str, retry_after_s: int | None
    ) -> Decision:
        counts = self.refused.setdefault(service, {})
        counts[reason] = counts.get(reason, 0) + 1
        return Decision(refusal=error(status, message, reason, code=reason, retry_after_s=retry_after_s))


def _why(routed: Routed) -> str:
    return f"{routed.reason} {routed.rule}" if routed.rule else ""


def _forget(breaker: Breaker | None) -> None:
    if breaker is not None:
        breaker.forget()
