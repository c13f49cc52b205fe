"""Replicas on shared machines in virtual time: what balancing policies are tried on.

Each replica serves its queries by processor sharing: a query runs on one core at most, and all share the
cores that the machine's other tenants (the antagonists) leave. When those want everything, the replica gets
a little less than its allocation; otherwise it may burst above it.

Modelled on the testbed of Wydrowski et al., Prequal, NSDI 2024. ``Testbed`` says which numbers are the
paper's and which had to be assumed.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Protocol

import msgspec

from tidecell.traffic.latency_at_rif import LatencyAtRif

ARRIVE, DEPART, CHANGE, REFRESH = range(4)


class Testbed(msgspec.Struct, frozen=True):
    """The experiment.

    As we understand the paper: 100 clients, 100 replicas, Poisson arrivals, a query's work drawn from a
    normal distribution whose deviation is its mean, cut at zero; time-out 5 s. Assumed, since no trace of
    them is published: the mean work, the cores, and how antagonists behave.

    Attributes:
        num_clients, num_replicas: Of each.
        mean_work_ms: Mean (and deviation) of a query's work before the cut, on one core.
        allocation: Cores that each replica is promised.
        contended_share: Part of the time in which a machine's other tenants take all they can.
        contended_s: Mean length of such a time.
        hobbled: What a replica gets of its allocation then.
        spare: Least and most that it may use otherwise, as multiples of its allocation.
        change_s: Mean time between changes of what is spare.
        timeout_s: A query that takes longer is an error, and is given up.
    """

    num_clients: int = 100
    num_replicas: int = 100
    mean_work_ms: float = 80.0
    allocation: float = 8.0
    contended_share: float = 0.25
    contended_s: float = 10.0
    hobbled: float = 0.88
    spare: tuple[float, float] = (1.5, 4.0)
    change_s: float = 1.0
    timeout_s: float = 5.0

    def rate(self, load: float) -> float:
        """Return the queries per second that are ``load`` times the allocation of all replicas."""
        mean_s = self.mean_work_ms / 1000.0 * 1.0833  # of a normal with mean = deviation, cut at zero
        return load * self.num_replicas * self.allocation / mean_s


class Policy(Protocol):
    """One client's way of choosing."""

    def choose(self, now_s: float) -> int:
        """Return the replica for a query."""

    def sent(self, replica: int, now_s: float) -> None:
        """Note that a query went there."""

    def done(self, replica: int, latency_ms: float, ok: bool, now_s: float) -> None:
        """Note that it ended."""


class Replica:
    """One replica and its machine.

    Attributes:
        record: What it tells those who probe it.
        used: Core-seconds used.
        served: Queries answered.
    """

    __slots__ = ("_at_s", "_rate", "cores", "jobs", "num", "record", "served", "used", "version", "virtual")

    def __init__(self, cores: float) -> None:
        self.cores = cores
        self.record = LatencyAtRif()
        self.jobs: list[tuple[float, int]] = []  # virtual finish time, query
        self.num = 0
        self.version = 0
        self.virtual = 0.0
        self.used = 0.0
        self.served = 0
        self._at_s = 0.0
        self._rate = 0.0

    def advance(self, now_s: float) -> None:
        """Let the queries that are there run until now."""
        gone_s = now_s - self._at_s
        self.virtual += self._rate * gone_s
        self.used += self._rate * self.num * gone_s
        self._at_s = now_s

    def next_end_s(self) -> float:
        """Return when the next query ends if nothing changes."""
        self._rate = min(1.0, self.cores / self.num) if self.num else 0.0
        self.version += 1
        if not self.jobs:
            return float("inf")
        return self._at_s + max(0.0, self.jobs[0][0] - self.virtual) / self._rate


@dataclass
class Outcome:
    """What clients saw.

    Attributes:
        latencies_ms: Of each query; a time-out counts with the time it took.
        num_errors: Queries that timed out.
        rifs: Requests in flight at a replica, seen by each query that arrived.
    """

    latencies_ms: list[float] = field(default_factory=list)
    num_errors: int = 0
    rifs: list[int] = field(default_factory=list)

    def quantile_ms(self, q: float) -> float:
        """Return a latency quantile."""
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(q * len(ordered)))]

    @property
    def error_share(self) -> float:
        """Errors over queries."""
        return self.num_errors / max(1, len(self.latencies_ms))


class Serving:
    """One run of the testbed.

    Args:
        testbed: The experiment.
        make_policy: Returns a client's policy, given the client's number and this.
        seed: Of everything.
    """

    def __init__(
        self, testbed: Testbed, make_policy: Callable[[int, Serving], Policy], seed: int = 0
    ) -> None:
        self.testbed = testbed
        self.rng = Random(seed)
        self.now_s = 0.0
        self.replicas = [Replica(testbed.allocation) for _ in range(testbed.num_replicas)]
        self.refresh: Callable[[float], None] | None = None
        self._events: list[tuple[float, int, int, int]] = []
        self._contended = [False] * testbed.num_replicas
        self._phase_ends_s = [0.0] * testbed.num_replicas
        self._queries: dict[int, tuple[float, int, int, int]] = {}  # arrival, client, replica, RIF
        self._deadlines: deque[tuple[float, int]] = deque()
        self._next_query = 0
        self._machines = Random(seed + 1)  # the same antagonists whatever the policy does
        self._clients = [make_policy(number, self) for number in range(testbed.num_clients)]

    def run(self, load: float, seconds: float, warm_up_s: float = 5.0) -> Outcome:
        """Return what clients see at ``load`` times the allocation."""
        outcome = Outcome()
        rate = self.testbed.rate(load)
        for machine in range(self.testbed.num_replicas):
            self._change(machine)
        self._push(self.rng.expovariate(rate), ARRIVE, 0, 0)
        self._push(1.0, REFRESH, 0, 0)
        end_s = warm_up_s + seconds
        drain_s = end_s + self.testbed.timeout_s
        while self._events:
            now_s, kind, which, version = heapq.heappop(self._events)
            self.now_s = now_s
            if now_s > drain_s:
                break
            if kind == DEPART:
                if self.replicas[which].version == version:
                    self._depart(which, outcome, warm_up_s, end_s)
            elif kind == ARRIVE:
                self._expire(outcome, warm_up_s, end_s)
                self._arrive(outcome, warm_up_s <= now_s < end_s)
                self._push(now_s + self.rng.expovariate(rate), ARRIVE, 0, 0)
            elif kind == CHANGE:
                self._change(which)
            else:
                if self.refresh is not None:
                    self.refresh(now_s)
                self._push(now_s + 1.0, REFRESH, 0, 0)
        return outcome

    def _push(self, at_s: float, kind: int, which: int, version: int) -> None:
        heapq.heappush(self._events, (at_s, kind, which, version))

    def _arrive(self, outcome: Outcome, counts: bool) -> None:
        now_s = self.now_s
        client = int(self.rng.random() * self.testbed.num_clients)
        work_s = max(1e-6, self.rng.gauss(1.0, 1.0) * self.testbed.mean_work_ms / 1000.0)
        policy = self._clients[client]
        which = policy.choose(now_s)
        policy.sent(which, now_s)
        replica = self.replicas[which]
        replica.advance(now_s)
        query = self._next_query
        self._next_query += 1
        self._queries[query] = (now_s, client, which, replica.record.arrive())
        if counts:
            outcome.rifs.append(replica.num)
        replica.num += 1
        heapq.heappush(replica.jobs, (replica.virtual + work_s, query))
        self._deadlines.append((now_s + self.testbed.timeout_s, query))
        self._reschedule(which)

    def _depart(self, which: int, outcome: Outcome, from_s: float, until_s: float) -> None:
        replica = self.replicas[which]
        replica.advance(self.now_s)
        _, query = heapq.heappop(replica.jobs)
        found = self._queries.pop(query, None)
        if found is not None:  # else it had timed out
            arrived_s, client, _, rif = found
            latency_ms = (self.now_s - arrived_s) * 1000.0
            replica.num -= 1
            replica.served += 1
            replica.record.finish(rif, latency_ms, self.now_s)
            self._clients[client].done(which, latency_ms, True, self.now_s)
            if from_s <= arrived_s < until_s:
                outcome.latencies_ms.append(latency_ms)
        self._reschedule(which)

    def _expire(self, outcome: Outcome, from_s: float, until_s: float) -> None:
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= self.now_s:
            _, query = deadlines.popleft()
            found = self._queries.pop(query, None)
            if found is None:
                continue
            arrived_s, client, which, _ = found
            replica = self.replicas[which]
            replica.advance(self.now_s)
            replica.num -= 1
            replica.record.abandon()
            replica.jobs = [job for job in replica.jobs if job[1] != query]
            heapq.heapify(replica.jobs)
            self._reschedule(which)
            self._clients[client].done(which, self.testbed.timeout_s * 1000.0, False, self.now_s)
            if from_s <= arrived_s < until_s:
                outcome.latencies_ms.append(self.testbed.timeout_s * 1000.0)
                outcome.num_errors += 1

    def _reschedule(self, which: int) -> None:
        replica = self.replicas[which]
        end_s = replica.next_end_s()
        if end_s != float("inf"):
            self._push(end_s, DEPART, which, replica.version)

    def _change(self, which: int) -> None:
        """Let the antagonists of one machine do something else."""
        bed, rng, now_s = self.testbed, self._machines, self.now_s
        if now_s >= self._phase_ends_s[which]:
            starts = rng.random() < bed.contended_share
            self._contended[which] = not self._contended[which] if now_s > 0.0 else starts
            free_s = bed.contended_s * (1.0 - bed.contended_share) / bed.contended_share
            mean_s = bed.contended_s if self._contended[which] else free_s
            self._phase_ends_s[which] = now_s + rng.expovariate(1.0 / mean_s)
        next_s = self._phase_ends_s[which]
        if self._contended[which]:
            cores = bed.hobbled
        else:
            next_s = min(next_s, now_s + rng.expovariate(1.0 / bed.change_s))
            cores = rng.uniform(*bed.spare)
        replica = self.replicas[which]
        replica.advance(now_s)
        replica.cores = cores * bed.allocation
        self._reschedule(which)
        self._push(next_s, CHANGE, which, 0)
