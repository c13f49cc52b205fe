"""Whose turn it is: criticality first, tenants by fair shares, nobody too late. Pure.

Start-time fair queueing: a request gets a start tag, the later of the virtual time and the end of its
tenant's request before it, and ends its cost over the tenant's weight later; the smallest tag of the most
critical level goes next. A tenant has one line of tags for all levels, so what it was given as critical it
does not get again as sheddable.

What would be late is dropped when its turn comes, before it costs anything; when the queue is full, the last
in the longest line of the least critical level is shed, which may be the one that comes.

Sources: Goyal, Vin, Cheng, Start-time Fair Queueing, SIGCOMM 1996; Site Reliability Engineering (Google),
chapter 21, for the four levels of criticality.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_TENANTS = 4096  # from so many on, those who have nothing outstanding are forgotten
CRITICALITIES = ("critical-plus", "critical", "sheddable-plus", "sheddable")
CRITICAL_PLUS, CRITICAL, SHEDDABLE_PLUS, SHEDDABLE = range(4)
HEADER = b"x-tide-criticality"
_LEVELS = {name.encode(): level for level, name in enumerate(CRITICALITIES)}


def criticality(value: bytes, default: int, ceiling: int = CRITICAL_PLUS) -> int:
    """Return the level that a request's header names; never above what its tenant may use."""
    level = _LEVELS.get(value.strip().lower(), default) if value else default
    return max(level, ceiling)


class FairClock:
    """Start tags per tenant, and the virtual time that they are measured by."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ends: dict[str, float] = {}

    def start(self, tenant: str) -> float:
        """Return the start tag that a tenant's next request would get."""
        return max(self.now, self._ends.get(tenant, 0.0))

    def tag(self, tenant: str, cost: float, weight: float = 1.0) -> float:
        """Return the start tag of a tenant's next request, and charge the tenant for it."""
        start = self.start(tenant)
        self._ends[tenant] = start + cost / weight
        return start

    def advance(self, to: float) -> None:
        """Let virtual time go on, never back."""
        if to > self.now:
            self.now = to
            if len(self._ends) > MAX_TENANTS:
                self._ends = {name: end for name, end in self._ends.items() if end > to}


class Entry(Generic[T]):
    """One request that waits.

    Args:
        item: The request.
        tenant: Whose it is.
        level: Its criticality.
        cost: What serving it costs, in tokens or whatever shares are counted in.
        weight: The tenant's share beside others'.
        deadline_s: It is worth nothing after this time.
        order: Among its tenant's of one level the lower goes first; one that comes back keeps its own.
    """

    __slots__ = ("cost", "deadline_s", "item", "level", "order", "tenant", "weight")

    def __init__(
        self,
        item: T,
        tenant: str,
        level: int,
        cost: float,
        weight: float = 1.0,
        deadline_s: float = inf,
        order: float = inf,
    ) -> None:
        self.order = order
        self.item = item
        self.tenant = tenant
        self.level = level
        self.cost = cost
        self.weight = weight
        self.deadline_s = deadline_s


class _Lane(Generic[T]):
    """One tenant's requests of one level, first come first."""

    __slots__ = ("cost", "entries")

    def __init__(self) -> None:
        self.entries: deque[Entry[T]] = deque()
        self.cost = 0.0


class FairQueue(Generic[T]):
    """A bounded queue.

    Args:
        most: Requests that may wait.
        dropped: Called with each request that is shed or late, and why (``shed`` or ``late``).
        is_gone: Whether a request that was let in no longer waits; it is then passed over for nothing.
    """

    def __init__(
        self, most: int, dropped: Callable[[T, str], None], is_gone: Callable[[T], bool] | None = None
    ) -> None:
        self._is_gone = is_gone
        self.most = most
        self.clock = FairClock()
        self._dropped = dropped
        self._lanes: list[dict[str, _Lane[T]]] = [{} for _ in CRITICALITIES]
        self._heads: list[list[tuple[float, int, str]]] = [[] for _ in CRITICALITIES]
        self._num = 0
        self._order = 0

    def __len__(self) -> int:
        return self._num

    def push(self, entry: Entry[T]) -> bool:
        """Let a request wait; False if it was shed at once."""
        if self._num >= self.most and not self._make_room(entry):
            self._dropped(entry.item, "shed")
            return False
        lane = self._lanes[entry.level].get(entry.tenant)
        if lane is None:
            lane = self._lanes[entry.level][entry.tenant] = _Lane()
        entries = lane.entries
        at = len(entries)
        while at and entries[at - 1].order > entry.order:
            at -= 1
        entries.insert(at, entry)
        lane.cost += entry.cost / entry.weight
        self._num += 1
        if len(lane.entries) == 1:
            self._show_head(entry.level, entry.tenant)
        return True

    def pop(self, now_s: float, service_s: float = 0.0) -> T | None:
        """Return whose turn it is; those who could not be served in time any more are dropped.

        Args:
            now_s: Time.
            service_s: How long serving takes at least.
        """
        for level in range(len(CRITICALITIES)):
            heads = self._heads[level]
            while heads:
                tag, _, tenant = heapq.heappop(heads)
                if tenant not in self._lanes[level]:
                    continue  # all of it was shed
                start = self.clock.start(tenant)
                if start > tag and heads and heads[0][0] < start:
                    self._show_head(level, tenant)  # it was served at another level meanwhile
                    continue
                entry = self._take(level, tenant, last=False)
                is_gone = self._is_gone is not None and self._is_gone(entry.item)
                is_late = now_s + service_s > entry.deadline_s
                if not is_late and not is_gone:
                    self.charge(tenant, entry.cost, entry.weight)
                if tenant in self._lanes[level]:
                    self._show_head(level, tenant)
                if is_gone:
                    continue
                if not is_late:
                    return entry.item
                self._dropped(entry.item, "late")
        return None

    def sweep(self) -> None:
        """Forget those that no longer wait."""
        if self._is_gone is None:
            return
        for lanes in self._lanes:
            for tenant in list(lanes):
                lane = lanes[tenant]
                kept = [entry for entry in lane.entries if not self._is_gone(entry.item)]
                self._num += len(kept) - len(lane.entries)
                lane.entries = deque(kept)
                lane.cost = sum(entry.cost / entry.weight for entry in kept)
                if not kept:
                    del lanes[tenant]

    def charge(self, tenant: str, cost: float, weight: float = 1.0) -> None:
        """Count a request that is served; also one that did not have to wait.

        Virtual time is the least start tag of those who wait. The tag of who is served would not do: a
        critical request is served whatever its tenant had before, and must not set back those behind it.
        """
        tag = self.clock.tag(tenant, cost, weight)
        tops = [heads[0][0] for heads in self._heads if heads]
        self.clock.advance(min(tag, *tops) if tops else tag)

    def _take(self, level: int, tenant: str, last: bool) -> Entry[T]:
        lane = self._lanes[level][tenant]
        entry = lane.entries.pop() if last else lane.entries.popleft()
        lane.cost -= entry.cost / entry.weight
        self._num -= 1
        if not lane.entries:
            del self._lanes[level][tenant]
        return entry

    def _show_head(self, level: int, tenant: str) -> None:
        self._order += 1
        heapq.heappush(self._heads[level], (self.clock.start(tenant), self._order, tenant))

    def _make_room(self, comes: Entry[T]) -> bool:
        """Shed the last in the least critical level's longest line; False if that is the one that comes."""
        level = max(level for level, lanes in enumerate(self._lanes) if lanes or level == 0)
        lanes = self._lanes[level]
        if level < comes.level or not lanes:
            return False
        tenant = max(lanes, key=lambda name: (lanes[name].cost, name))
        if level == comes.level and tenant == comes.tenant:
            return False
        item = self._take(level, tenant, last=True).item
        if self._is_gone is None or not self._is_gone(item):
            self._dropped(item, "shed")
        return True
