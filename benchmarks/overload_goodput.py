"""Goodput at twice the capacity: mixed criticality, ten tenants, one of which floods.

    python benchmarks/overload_goodput.py [--overload 2.0] [--seconds 30] [--seed 1] [--flood
sheddable|mixed]

In virtual time: 8 replicas of 8 cores, processor sharing, work of 100 ms on average (exponential), a client
that gives up after 1 s. Nine tenants ask for a tenth of the capacity each, in four levels (10 %
critical-plus, 20 % critical, 30 % sheddable-plus, 40 % sheddable); the tenth asks for the same and floods
with sheddable requests on top (``--flood mixed``: with its whole mix). Poisson arrivals. Replicas are
chosen by two at random.

``tidecell`` is ``traffic.gate``: the queue and the limit that the router has, and a look ahead that it does
not have yet (who could not be in time is dropped before its deadline has passed); ``envoy`` is Envoy's
admission control, written anew from its documented formula with its defaults (95 %, aggression 1, 30 s, at
most 80 %); ``none`` sends everything. ``value`` is the goodput as a share of the capacity: work of requests
answered in time. ``least_share`` is the least, over tenants, of what one got over its max-min fair share of
the goodput.

Expected: ours over 0.95 with critical success over 0.999 and least_share about 1; the others far below.
"""

from __future__ import annotations

import argparse
import heapq
import json
import sys
import time
from collections import deque
from random import Random
from typing import Any

from tidecell.sim.serving import Replica
from tidecell.structs.traffic import OverloadPolicy
from tidecell.traffic.fair_queue import CRITICAL, SHEDDABLE, Entry
from tidecell.traffic.gate import Gate

NUM_REPLICAS, CORES, WORK_S, TIMEOUT_S = 8, 8.0, 0.1, 1.0
NUM_TENANTS = 10
CAPACITY = NUM_REPLICAS * CORES / WORK_S
MIX = (0.1, 0.2, 0.3, 0.4)
WARM_UP_S = 30.0  # the limit is learned from what comes; it takes about 20 s from a cold start
ARRIVE, DEPART, GIVE_UP = range(3)


class Ask:
    """One request."""

    __slots__ = ("arrived_s", "is_open", "level", "replica", "sent_s", "tenant", "work_s")

    def __init__(self, tenant: int, level: int, work_s: float, arrived_s: float) -> None:
        self.tenant, self.level, self.work_s, self.arrived_s = tenant, level, work_s, arrived_s
        self.replica, self.sent_s, self.is_open = -1, 0.0, True


class Nothing:
    """Everything goes on at once."""

    def offer(self, ask: Ask, now_s: float) -> bool:
        return True

    def ended(self, ask: Ask, ok: bool, now_s: float) -> list[Ask]:
        return []


class Envoy(Nothing):
    """``((n - s) / (n + 1)) ^ (1 / aggression)`` with ``s = successes / threshold`` over a window."""

    threshold, aggression, window_s, most = 0.95, 1.0, 30.0, 0.8

    def __init__(self, seed: int) -> None:
        self.rng = Random(seed)
        self.seen: deque[tuple[float, bool]] = deque()
        self.good = 0

    def offer(self, ask: Ask, now_s: float) -> bool:
        while self.seen and self.seen[0][0] < now_s - self.window_s:
            self.good -= self.seen.popleft()[1]
        total = len(self.seen)
        share = max(0.0, (total - self.good / self.threshold) / (total + 1)) ** (1.0 / self.aggression)
        return self.rng.random() >= min(self.most, share)

    def ended(self, ask: Ask, ok: bool, now_s: float) -> list[Ask]:
        self.seen.append((now_s, ok))
        self.good += ok
        return []


class Ours(Nothing):
    """The router's gate. It does not know a request's work beforehand: each costs 1."""

    def __init__(self) -> None:
        self.gate: Gate[Ask] = Gate(OverloadPolicy(), lambda ask, why: None)

    def offer(self, ask: Ask, now_s: float) -> bool:
        entry = Entry(ask, str(ask.tenant), ask.level, 1.0, 1.0, ask.arrived_s + TIMEOUT_S)
        return self.gate.offer(entry, now_s) == "start"

    def ended(self, ask: Ask, ok: bool, now_s: float) -> list[Ask]:
        if ok:
            self.gate.ended(now_s - ask.sent_s, True, now_s)
        else:
            self.gate.abandoned(now_s - ask.sent_s, now_s)
        started = []
        while (following := self.gate.next(now_s)) is not None:
            started.append(following)
        return started


class Run:
    """One run."""

    def __init__(self, control: Nothing, arguments: argparse.Namespace) -> None:
        self.control = control
        self.rng = Random(arguments.seed)
        self.replicas = [Replica(CORES) for _ in range(NUM_REPLICAS)]
        self.end_s = WARM_UP_S + arguments.seconds
        self.events: list[tuple[float, int, int, Any]] = []
        self.order = 0
        flood = (arguments.overload - 1.0) * CAPACITY
        self.rates = [CAPACITY / NUM_TENANTS] * NUM_TENANTS
        self.flood_share = flood / (flood + CAPACITY)
        self.floods_sheddable = arguments.flood == "sheddable"
        self.rate = flood + CAPACITY
        self.asked = [0.0] * NUM_TENANTS
        self.got = [0.0] * NUM_TENANTS
        self.by_level = [[0, 0] for _ in MIX]
        self.asks: dict[int, Ask] = {}
        self.deciding_s = 0.0
        self.num = 0

    def go(self) -> None:
        self.push(self.rng.expovariate(self.rate), ARRIVE, None)
        while self.events:
            now_s, _, kind, what = heapq.heappop(self.events)
            if now_s > self.end_s + TIMEOUT_S:
                break
            if kind == ARRIVE:
                self.push(now_s + self.rng.expovariate(self.rate), ARRIVE, None)
                self.arrive(now_s)
            elif kind == GIVE_UP:
                if what.is_open:
                    self.finish(what, False, now_s)
            elif self.replicas[what[0]].version == what[1]:
                self.depart(what[0], now_s)

    def push(self, at_s: float, kind: int, what: Any) -> None:
        self.order += 1
        heapq.heappush(self.events, (at_s, self.order, kind, what))

    def arrive(self, now_s: float) -> None:
        floods = self.rng.random() < self.flood_share
        tenant = NUM_TENANTS - 1 if floods else int(self.rng.random() * NUM_TENANTS)
        level = self.rng.choices(range(4), MIX)[0]
        if floods and self.floods_sheddable:
            level = SHEDDABLE
        ask = Ask(tenant, level, self.rng.expovariate(1.0 / WORK_S), now_s)
        if WARM_UP_S <= now_s < self.end_s:
            self.asked[tenant] += ask.work_s
            self.by_level[level][0] += 1
        started_s = time.perf_counter()
        goes = self.control.offer(ask, now_s)
        self.deciding_s += time.perf_counter() - started_s
        self.num += 1
        self.push(now_s + TIMEOUT_S, GIVE_UP, ask)
        if goes:
            self.send(ask, now_s)

    def send(self, ask: Ask, now_s: float) -> None:
        first, second = self.rng.sample(range(NUM_REPLICAS), 2)
        which = first if self.replicas[first].num <= self.replicas[second].num else second
        ask.replica, ask.sent_s = which, now_s
        replica = self.replicas[which]
        replica.advance(now_s)
        replica.num += 1
        self.order += 1
        self.asks[self.order] = ask
        heapq.heappush(replica.jobs, (replica.virtual + ask.work_s, self.order))
        self.reschedule(which)

    def depart(self, which: int, now_s: float) -> None:
        replica = self.replicas[which]
        replica.advance(now_s)
        _, number = heapq.heappop(replica.jobs)
        self.finish(self.asks.pop(number), True, now_s)
        self.reschedule(which)

    def finish(self, ask: Ask, ok: bool, now_s: float) -> None:
        """End a request: answered, or given up by its client, which cancels it at the replica."""
        ask.is_open = False
        if ask.replica < 0:
            return  # refused or still waiting; the gate drops what is late when its turn comes
        replica = self.replicas[ask.replica]
        replica.advance(now_s)
        replica.num -= 1
        if ok and WARM_UP_S <= ask.arrived_s < self.end_s:
            self.got[ask.tenant] += ask.work_s
            self.by_level[ask.level][1] += 1
        if not ok:
            replica.jobs = [job for job in replica.jobs if self.asks[job[1]] is not ask]
            heapq.heapify(replica.jobs)
            self.reschedule(ask.replica)
        for following in self.control.ended(ask, ok, now_s):
            self.send(following, now_s)

    def reschedule(self, which: int) -> None:
        replica = self.replicas[which]
        end_s = replica.next_end_s()
        if end_s != float("inf"):
            self.push(end_s, DEPART, (which, replica.version))


def fair_shares(asked: list[float], total: float) -> list[float]:
    """Return max-min fair shares of a total: nobody gets more than it asked for."""
    shares, left, order = [0.0] * len(asked), total, sorted(range(len(asked)), key=asked.__getitem__)
    for done, tenant in enumerate(order):
        shares[tenant] = min(asked[tenant], left / (len(asked) - done))
        left -= shares[tenant]
    return shares


def run(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one result."""
    controls = {"tidecell": Ours, "envoy": lambda: Envoy(arguments.seed), "none": Nothing}
    one = Run(controls[name](), arguments)
    one.go()
    capacity = CAPACITY * WORK_S * arguments.seconds
    shares = fair_shares(one.asked, sum(one.got))
    critical = [one.by_level[level] for level in range(CRITICAL + 1)]
    return {
        "name": f"overload_goodput/{name}",
        "value": round(sum(one.got) / min(capacity, sum(one.asked)), 4),
        "unit": "share of capacity",
        "baseline": None,
        "critical_success": round(sum(c[1] for c in critical) / max(1, sum(c[0] for c in critical)), 5),
        "success_by_level": [round(c[1] / max(1, c[0]), 4) for c in one.by_level],
        "least_share": round(min(got / share for got, share in zip(one.got, shares, strict=True)), 4),
        "flooder_over_share": round(one.got[-1] / shares[-1], 3),
        "requests": sum(c[0] for c in one.by_level),
        "decision_us": round(one.deciding_s / one.num * 1e6, 2),
    }


def main() -> int:
    """Run the three side by side."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--overload", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--flood", choices=["sheddable", "mixed"], default="sheddable")
    arguments = parser.parse_args()
    for name in ("tidecell", "envoy", "none"):
        print(json.dumps(run(name, arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
