"""What may go to a service's replicas now, what waits, and what is refused. Pure.

A learned limit on what is under way, a fair queue in front of it, and a look ahead: who could not be served
before its deadline is refused when it comes, while its client can still go elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from tidecell.structs.traffic import OverloadPolicy
from tidecell.traffic.concurrency import make_limit
from tidecell.traffic.fair_queue import Entry, FairQueue

T = TypeVar("T")
QUANTILE = 0.95  # what counts as the time that serving takes, when it is asked what could still be in time
STEP = 0.1  # of what it is now


class Gate(Generic[T]):
    """One service's.

    Args:
        policy: The parameters.
        dropped: Called with a request that waited and is not served, and why (``shed`` or ``late``).

    Attributes:
        in_flight: Requests under way.
    """

    def __init__(self, policy: OverloadPolicy, dropped: Callable[[T, str], None]) -> None:
        self.policy = policy
        self.limit = make_limit(policy.concurrency)
        self.queue: FairQueue[T] = FairQueue(policy.max_queue, dropped)
        self.in_flight = 0
        self._latency_s = 0.0

    def offer(self, entry: Entry[T], now_s: float) -> str:
        """Return ``start``, ``wait``, or why the request is refused: ``shed`` or ``late``."""
        if self.in_flight < self.limit.limit and not len(self.queue):
            self.in_flight += 1
            self.queue.charge(entry.tenant, entry.cost, entry.weight)
            return "start"
        if now_s + self._latency_s > entry.deadline_s:
            return "late"
        return "wait" if self.queue.push(entry) else "shed"

    def next(self, now_s: float) -> T | None:
        """Return a request that may start now, if there is one and room for it."""
        if self.in_flight >= self.limit.limit:
            return None
        item = self.queue.pop(now_s, self._latency_s)
        if item is not None:
            self.in_flight += 1
        return item

    def ended(self, latency_s: float, ok: bool, now_s: float) -> None:
        """Note that a request which had started is over; ask ``next`` afterwards."""
        self.limit.observe(latency_s, self.in_flight, ok, now_s)
        self.in_flight -= 1
        if ok:
            # A stochastic step towards the quantile: up far where it was above, down a little where below.
            step = STEP * (self._latency_s or latency_s)
            self._latency_s += step * (QUANTILE if latency_s > self._latency_s else QUANTILE - 1.0)

    def abandoned(self, latency_s: float, now_s: float) -> None:
        """Note that a request which had started was given up by its client after so long.

        It would have taken longer still; left out, the slowest would never be seen, and overload look like
        rest. One that was given up early says nothing.
        """
        if latency_s > self._latency_s * 0.5:
            self.limit.observe(latency_s, self.in_flight, True, now_s)
        self.in_flight -= 1
