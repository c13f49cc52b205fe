"""The replicas behind the router as they are now: load, health, pooled connections, and who waits for them.

State and decisions only: connections are opened by ``exchange`` and closed through the small protocols
below. All of it runs on the loop's thread and nothing here awaits, so a change is never seen half-made.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Protocol

from tidecell.traffic.balance import Load, Rng, least_outstanding
from tidecell.traffic.explain import Seen
from tidecell.traffic.fair_queue import CRITICALITIES, Entry, FairQueue
from tidecell.traffic.health import Health, RetryBudget
from tidecell.traffic.hedge import Hedger
from tidecell.traffic.meters import Histogram, ServiceMeter
from tidecell.traffic.policy import Balancer, Decision, Facts, Policies, PowerOfTwo
from tidecell.traffic.stats import EndpointStats, ServiceStats
from tidecell.traffic.table import Endpoint, Route, Table

MAX_IDLE_PER_REPLICA = 512


class Connection(Protocol):
    """A pooled connection to a replica."""

    idle_since_s: float

    def close(self) -> None:
        """Close it; nobody uses it."""


class Waiter(Protocol):
    """A request that waits for a replica."""

    sequence: int
    is_queued: bool

    @property
    def decision(self) -> Decision:
        """Its rank, tenant and deadline."""

    def dispatch(self) -> None:
        """Try to go to a replica now (and wait again if there is none)."""

    def service_removed(self) -> None:
        """End: the service has left the table."""

    def shed(self) -> None:
        """End: its place in a full queue went to a more critical one."""


class Replica:
    """One endpoint while the router has to do with it, which may be longer than it is in the table."""

    __slots__ = ("failures", "health", "host", "id", "idle", "load", "port", "requests", "state", "ttft")

    def __init__(self, endpoint: Endpoint, now_s: float) -> None:
        self.id = endpoint.id
        self.host = endpoint.host
        self.port = endpoint.port
        self.state: str = endpoint.state
        self.load = Load(ready_since_s=now_s, id=endpoint.id)
        self.health = Health()
        self.requests = 0
        self.failures = 0
        self.ttft = Histogram()
        self.idle: list[Connection] = []

    def is_at(self, endpoint: Endpoint) -> bool:
        """Return whether this is the same process's address."""
        return self.host == endpoint.host and self.port == endpoint.port

    def set_state(self, state: str, now_s: float) -> None:
        """Change the state; a replica that takes no new requests keeps no idle connections."""
        if state == "ready" and self.state != "ready":
            self.load.ready_since_s = now_s
        self.state = state
        if state != "ready":
            self.close_idle()

    def forget(self, connection: Connection) -> None:
        """Take a connection that ended out of the pool."""
        if connection in self.idle:
            self.idle.remove(connection)

    def close_idle(self, before_s: float = float("inf")) -> None:
        """Close pooled connections that were last used before ``before_s``."""
        old = [connection for connection in self.idle if connection.idle_since_s < before_s]
        self.idle = [connection for connection in self.idle if connection.idle_since_s >= before_s]
        for connection in old:
            connection.close()

    def stats(self, now_s: float) -> EndpointStats:
        """Return what is known of it."""
        return EndpointStats(
            in_flight=self.load.in_flight,
            requests=self.requests,
            failures=self.failures,
            latency_ewma_ms=round(self.load.latency_ewma_ms, 3),
            ejected=self.health.is_ejected(now_s),
            unreachable=self.health.is_unreachable(now_s),
            state=self.state,
            ttft=self.ttft.stats(),
        )


class Service:
    """One route, its replicas and its queue."""

    def __init__(self, name: str, rng: Rng, clock: Callable[[], float]) -> None:
        self.name = name
        self.balancer: Balancer = PowerOfTwo(rng)  # see ``use``
        self.route = Route(name)
        self.is_removed = False
        self.replicas: dict[str, Replica] = {}
        self.gone: list[Replica] = []  # out of the table with requests in flight
        self.meter = ServiceMeter()
        self.budget = RetryBudget()
        self.hedger: Hedger | None = None
        self.num_queued = 0
        self.explain_after_s = 0.0  # the next choice from then on is kept, see ``explain.Decisions``
        self._ready: list[Replica] = []
        self._ready_loads: list[Load] = []  # of the same replicas, in the same order
        self._trouble_until_s = 0.0  # until then a replica may be ejected or unreachable
        self._queue: FairQueue[Waiter] = FairQueue(self.route.max_queue, self._dropped, _is_gone)
        self._is_flushing = False
        self._has_limit = False
        self.is_told = True
        self._rng = rng
        self._clock = clock

    def use(self, balancer: Balancer) -> None:
        """Choose by this from now on."""
        self.balancer = balancer
        self.is_told = balancer.learns

    def apply(self, route: Route, now_s: float) -> None:
        """Take over a route of a new table."""
        self.route = route
        overload = route.traffic.overload
        self._queue.most = route.max_queue if overload is None else overload.max_queue
        self._has_limit = overload is not None
        hedge = route.traffic.hedge
        if hedge is None:
            self.hedger = None
        elif self.hedger is None or self.hedger.policy != hedge:
            self.hedger = Hedger(hedge)
        self.is_removed = False
        kept: dict[str, Replica] = {}
        for endpoint in route.endpoints:
            replica = self.replicas.pop(endpoint.id, None)
            if replica is not None and not replica.is_at(endpoint):
                self._retire(replica, now_s)
                replica = None
            if replica is None:
                replica = Replica(endpoint, now_s)
            replica.set_state(endpoint.state, now_s)
            replica.load.weight = endpoint.weight
            replica.load.slow_start_s = route.traffic.slow_start_s
            kept[endpoint.id] = replica
        for replica in self.replicas.values():
            self._retire(replica, now_s)
        self.replicas = kept
        self._ready = [replica for replica in kept.values() if replica.state == "ready"]
        self._ready_loads = [replica.load for replica in self._ready]

    def seen(self) -> list[Seen]:
        """Return all replicas as ``explain`` looks at them."""
        every = [*self.replicas.values(), *self.gone]
        return [Seen(replica.load, replica.health, replica.state) for replica in every]

    def remove(self, now_s: float) -> None:
        """Leave the table: in-flight requests finish, waiting ones end."""
        self.apply(Route(self.name), now_s)
        self.is_removed = True
        while (waiter := self._pop()) is not None:
            waiter.service_removed()

    def pick(self, facts: Facts, now_s: float, tried: tuple[Replica, ...] = ()) -> Replica | None:
        """Return the replica for a request, or None if there is none it could go to now.

        Replicas in ``tried`` failed this request before; they come last, as do those ejected.
        """
        if self.is_told and not self.balancer.has_room():
            return None
        if self.num_queued and self._has_limit and not self._is_flushing and not tried:
            return None  # behind those who wait already
        ready = self._ready
        if not tried and now_s >= self._trouble_until_s:  # nearly always
            return ready[self.balancer.pick(self._ready_loads, facts, now_s)] if ready else None
        candidates = self._candidates(now_s, tried)
        if not candidates:
            return None
        loads = [replica.load for replica in candidates]
        if tried:
            return candidates[least_outstanding(loads, self._rng, now_s)]
        return candidates[self.balancer.pick(loads, facts, now_s)]

    def pick_other(self, replica: Replica | None, now_s: float) -> Replica | None:
        """Return the replica that a request goes to beside ``replica``; None: there is none with room."""
        if replica is None or self.num_queued or not self.balancer.has_room():
            return None
        others = [
            r
            for r in self._ready
            if r is not replica
            and now_s >= r.health.unreachable_until_s
            and now_s >= r.health.ejected_until_s
        ]
        loads = [other.load for other in others]
        return others[least_outstanding(loads, self._rng, now_s)] if others else None

    def is_reachable(self, now_s: float) -> bool:
        """Return whether a request could go anywhere now."""
        return self.balancer.has_room() and bool(self._candidates(now_s, ()))

    def has_other(self, tried: Collection[Replica | None], now_s: float) -> bool:
        """Return whether there is a replica to try that is not in ``tried``."""
        return any(now_s >= r.health.unreachable_until_s and r not in tried for r in self._ready)

    def note_trouble(self, replica: Replica) -> None:
        """Note that a replica was ejected or refused a connection."""
        health = replica.health
        until_s = max(health.ejected_until_s, health.unreachable_until_s)
        self._trouble_until_s = max(self._trouble_until_s, until_s)

    def _candidates(self, now_s: float, tried: Collection[Replica]) -> list[Replica]:
        reachable = [r for r in self._ready if now_s >= r.health.unreachable_until_s]
        good = [r for r in reachable if now_s >= r.health.ejected_until_s and r not in tried]
        return good or [r for r in reachable if r not in tried] or reachable

    def enqueue(self, waiter: Waiter) -> bool:
        """Let a request wait; False if the queue is full of others that are no less critical."""
        what = waiter.decision
        level = min(what.rank, len(CRITICALITIES) - 1)
        entry = Entry(waiter, what.tenant, level, what.cost, what.weight, what.deadline_s, waiter.sequence)
        if len(self._queue) >= self._queue.most > self.num_queued:
            self._queue.sweep()
        if not self._queue.push(entry):
            return False
        waiter.is_queued = True
        self.num_queued += 1
        return True

    def leave_queue(self, waiter: Waiter) -> None:
        """Take a request out of the queue that gave up waiting; its place is swept up when it is reached."""
        if waiter.is_queued:
            waiter.is_queued = False
            self.num_queued -= 1

    def flush(self, now_s: float, most: int = 1 << 30) -> None:
        """Send waiting requests, first come first, while there is a replica for them."""
        if self._is_flushing:
            return
        self._is_flushing = True
        try:
            for _ in range(min(most, self.num_queued)):
                if not self.is_reachable(now_s):
                    return
                waiter = self._pop()
                if waiter is None:
                    return
                waiter.dispatch()
        finally:
            self._is_flushing = False

    def release(self, replica: Replica) -> None:
        """Note that one attempt at a replica is over, and let those who wait for room have it."""
        replica.load.in_flight -= 1
        if self.gone and replica.load.in_flight == 0 and replica in self.gone:
            self.gone.remove(replica)
        if self.num_queued:
            self.flush(self._clock())

    def in_flight(self) -> int:
        """Return the attempts at replicas, including those that left the table."""
        return sum(r.load.in_flight for r in self.replicas.values()) + sum(
            r.load.in_flight for r in self.gone
        )

    def stats(self, now_s: float) -> ServiceStats:
        """Return what is known of it."""
        meter, in_flight = self.meter, self.in_flight()
        return ServiceStats(
            ongoing=in_flight + self.num_queued,
            in_flight=in_flight,
            queued=self.num_queued,
            requests_total=meter.requests_total,
            ok_total=meter.ok_total,
            failed_total=dict(meter.failed_total),
            retries_total=meter.retries_total,
            rate_1s=round(meter.rate.per_second(now_s, 1.0), 3),
            rate_10s=round(meter.rate.per_second(now_s, 10.0), 3),
            ttft_ms=meter.ttft_ms.quantiles(now_s),
            duration_ms=meter.duration_ms.quantiles(now_s),
            tokens_in_total=meter.tokens_in_total,
            tokens_out_total=meter.tokens_out_total,
            choices_total=dict(self.balancer.reasons),
            hedges_total=self.hedger.num_hedged if self.hedger is not None else 0,
            hedges_won_total=self.hedger.num_won if self.hedger is not None else 0,
            tokens_cached_total=meter.tokens_cached_total,
            duration=meter.duration.stats(),
            ttft=meter.ttft.stats(),
            token_gap=meter.token_gap.stats(),
            endpoints=self._endpoint_stats(now_s),
        )

    def _endpoint_stats(self, now_s: float) -> dict[str, EndpointStats]:
        """Return them by id; an id whose old process still finishes shows the in-flight of both."""
        stats = {replica.id: replica.stats(now_s) for replica in self.gone}
        for replica in self.replicas.values():
            old = stats.get(replica.id)
            now = replica.stats(now_s)
            if old is not None:
                now = EndpointStats(
                    old.in_flight + now.in_flight,
                    now.requests,
                    now.failures,
                    now.latency_ewma_ms,
                    now.ejected,
                    now.unreachable,
                    now.state,
                    now.ttft,
                )
            stats[replica.id] = now
        return stats

    def _retire(self, replica: Replica, now_s: float) -> None:
        replica.set_state("gone", now_s)
        if replica.load.in_flight:
            self.gone.append(replica)

    def _pop(self) -> Waiter | None:
        waiter = self._queue.pop(self._clock())
        if waiter is not None:
            self.leave_queue(waiter)
        return waiter

    def _dropped(self, waiter: Waiter, why: str) -> None:
        if not waiter.is_queued:
            return  # it comes and is refused; whoever brought it answers
        self.leave_queue(waiter)
        if why == "late":
            waiter.dispatch()  # finds its deadline passed
        else:
            waiter.shed()


def _is_gone(waiter: Waiter) -> bool:
    return not waiter.is_queued


class Fleet:
    """All services.

    Args:
        rng: Source of the balancer's choices.
        clock: Returns the time that all of it goes by, seconds.
    """

    def __init__(self, rng: Rng, clock: Callable[[], float]) -> None:
        self.services: dict[str, Service] = {}
        self._rng = rng
        self._clock = clock

    def apply(self, table: Table, policies: Policies) -> None:
        """Take over a table and its policies.

        Requests that waited for what it brings are on their way when this returns.
        """
        now_s = self._clock()
        named = {route.service for route in table.routes}
        for service in list(self.services.values()):
            if service.name not in named and not service.is_removed:
                service.remove(now_s)
        for route in table.routes:
            service = self.services.setdefault(route.service, Service(route.service, self._rng, self._clock))
            service.use(policies.balancers[route.service])
            service.apply(route, now_s)
            service.flush(now_s)
        self.prune()

    def prune(self) -> None:
        """Forget services that left the table and have nothing in flight."""
        for service in list(self.services.values()):
            if service.is_removed and not service.gone:
                del self.services[service.name]

    def close_idle(self, before_s: float) -> bool:
        """Close old pooled connections; return whether any are left."""
        left = False
        for service in self.services.values():
            for replica in service.replicas.values():
                replica.close_idle(before_s)
                left = left or bool(replica.idle)
        return left

    def stats(self) -> dict[str, ServiceStats]:
        """Return what is known of every service."""
        self.prune()
        now_s = self._clock()
        return {name: service.stats(now_s) for name, service in self.services.items()}
