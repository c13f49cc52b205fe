"""Prequal: balance by probing requests in flight (RIF) and latency, not load.

A pool of recent probe answers is kept. A replica is *hot* if its RIF is above a quantile of the RIFs seen
lately, else *cold*. The cold one with the lowest latency wins; if all are hot, the one with the lowest RIF.
Probes go out asynchronously, a few per request and never in its way; an answer may be used a few times,
and each request takes the oldest or the worst answer out, in turn.

Pure: who is to be probed comes back as a list, what replicas answered goes in. A replica's ordinary
answers may carry the same report and are taken like probes.

Source: Wydrowski et al., Load is not what you should balance: Introducing Prequal, NSDI 2024. From it are
the pool of 16, the probe rate of 3, one removal per request, a quantile of 0.6 to 0.9, the reuse limit
``max(1, (1 + delta) / ((1 - m / n) r_probe - r_remove))`` with delta 1, and the age limit of 1 s. Ours:
one answer per replica (a newer one replaces the older), so that fleets smaller than the pool work, and a
reuse limit of ``MAX_USES`` where the paper's formula has none.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from tidecell.structs.traffic import PrequalPolicy
from tidecell.traffic.balance import Load, Rng, power_of_two, share

MAX_USES = 64
RIF_WINDOW = 128


class Probe:
    """One replica's answer, while it is in the pool."""

    __slots__ = ("latency_ms", "load", "received_s", "rif", "uses_left")

    def __init__(self, load: Load, rif: float, latency_ms: float, received_s: float, uses_left: int) -> None:
        self.load = load
        self.rif = rif
        self.latency_ms = latency_ms
        self.received_s = received_s
        self.uses_left = uses_left


class Prequal:
    """One client's view of one service.

    Args:
        policy: The parameters.
        rng: Source of its choices.

    Attributes:
        num_fallbacks: Choices that were made without probes, for want of two.
    """

    def __init__(self, policy: PrequalPolicy, rng: Rng) -> None:
        self.policy = policy
        self.num_fallbacks = 0
        self._rng = rng
        self._pool: list[Probe] = []  # oldest first
        self._recent_rifs: deque[float] = deque()
        self._sorted_rifs: list[float] = []
        self._owed_probes = 0.0
        self._owed_removals = 0.0
        self._removes_worst = False
        self._reuse = (0, 1.0)

    def __len__(self) -> int:
        return len(self._pool)

    def targets(self, loads: Sequence[Load]) -> list[Load]:
        """Return whom to probe because of one request: ``probe_rate`` replicas on average, no one twice."""
        self._owed_probes += self.policy.probe_rate
        count = min(int(self._owed_probes), len(loads))
        self._owed_probes = min(self._owed_probes - count, self.policy.probe_rate)
        return self._sample(loads, count)

    def observe(self, load: Load, rif: float, latency_ms: float, num_replicas: int, now_s: float) -> None:
        """Take in a replica's answer to a probe, or the report that came with an ordinary answer.

        Args:
            load: The replica.
            rif: Requests in flight at it, over all clients.
            latency_ms: Its estimate of a request's latency at that RIF; 0 if it has none.
            num_replicas: How many replicas the service has.
            now_s: Time.
        """
        pool = self._pool
        for i, probe in enumerate(pool):
            if probe.load is load:
                del pool[i]
                break
        else:
            if len(pool) >= self.policy.pool_size:
                del pool[0]
        pool.append(Probe(load, rif, latency_ms, now_s, self._uses(num_replicas)))
        recent = self._recent_rifs
        recent.append(rif)
        insort(self._sorted_rifs, rif)
        if len(recent) > RIF_WINDOW:
            del self._sorted_rifs[bisect_left(self._sorted_rifs, recent.popleft())]

    def choose(self, loads: Sequence[Load], now_s: float) -> tuple[int, str]:
        """Return the index of the replica for a request, and ``cold``, ``hot`` or ``unprobed``.

        Raises:
            ValueError: ``loads`` is empty.
        """
        self._expire(now_s)
        while True:
            best, reason = self._best(min(2, len(loads)), now_s)
            if best is None:
                self.num_fallbacks += 1
                return power_of_two(loads, self._rng, now_s), reason
            try:
                index = loads.index(best.load)
                break
            except ValueError:  # left out for now, or gone
                self._pool.remove(best)
        best.rif += 1.0  # this request; the next probe will tell
        best.uses_left -= 1
        if best.uses_left <= 0:
            self._pool.remove(best)
        self._remove_some()
        return index, reason

    def forget(self, load: Load) -> None:
        """Drop what is known of a replica, such as one that failed."""
        self._pool = [probe for probe in self._pool if probe.load is not load]

    def probe_of(self, load: Load) -> Probe | None:
        """Return a replica's answer that is in the pool."""
        return next((probe for probe in self._pool if probe.load is load), None)

    def hot_above(self) -> float:
        """Return the RIF above which a replica is hot."""
        rifs = self._sorted_rifs
        if not rifs:
            return float("inf")
        return rifs[min(len(rifs) - 1, int(self.policy.hot_quantile * len(rifs)))]

    def _best(self, least: int, now_s: float) -> tuple[Probe | None, str]:
        pool = self._pool
        if len(pool) < least:
            return None, "unprobed"
        limit = self.hot_above()
        best: Probe | None = None
        lowest = float("inf")
        for probe in pool:
            latency_ms = probe.latency_ms
            if probe.rif > limit or latency_ms > lowest:
                continue
            load = probe.load
            is_new = now_s - load.ready_since_s < load.slow_start_s
            if is_new and self._rng.random() >= share(load, now_s):
                continue
            if latency_ms < lowest or (best is not None and probe.rif < best.rif):
                best, lowest = probe, latency_ms
        return (best, "cold") if best is not None else (min(pool, key=_rif), "hot")

    def _remove_some(self) -> None:
        self._owed_removals += self.policy.remove_rate
        while self._owed_removals >= 1.0:
            self._owed_removals -= 1.0
            if len(self._pool) <= 2:
                continue  # fewer would leave no choice; age takes them
            self._removes_worst = not self._removes_worst
            if self._removes_worst:
                self._pool.remove(self._worst())
            else:
                del self._pool[0]

    def _worst(self) -> Probe:
        """Return the hot one with the highest RIF, else the slowest of all."""
        limit = self.hot_above()
        worst = max(self._pool, key=_rif)
        return worst if worst.rif > limit else max(self._pool, key=_latency)

    def _expire(self, now_s: float) -> None:
        pool = self._pool
        oldest_s = now_s - self.policy.max_age_s
        while pool and pool[0].received_s < oldest_s:
            del pool[0]

    def _uses(self, num_replicas: int) -> int:
        """Return how often an answer may be used: the reuse limit, rounded up or down at random."""
        if self._reuse[0] != num_replicas:
            self._reuse = (num_replicas, reuse_limit(self.policy, num_replicas))
        limit = self._reuse[1]
        whole = int(limit)
        return whole + (self._rng.random() < limit - whole)

    def _sample(self, loads: Sequence[Load], count: int) -> list[Load]:
        size = len(loads)
        if count >= size:
            return list(loads)
        chosen: list[Load] = []
        while len(chosen) < count:
            load = loads[int(self._rng.random() * size)]
            if load not in chosen:
                chosen.append(load)
        return chosen


def reuse_limit(policy: PrequalPolicy, num_replicas: int) -> float:
    """Return how often one answer may be used on average.

    As many answers must come in as are used up; where the pool holds a large part of the fleet there is no
    such limit, and age and newer answers end an answer's use.
    """
    fresh = 1.0 - min(1.0, policy.pool_size / max(1, num_replicas))
    net = fresh * policy.probe_rate - policy.remove_rate
    if net <= 0.0:
        return float(MAX_USES)
    return min(float(MAX_USES), max(1.0, (1.0 + policy.delta) / net))


def _rif(probe: Probe) -> float:
    return probe.rif


def _latency(probe: Probe) -> float:
    return probe.latency_ms
