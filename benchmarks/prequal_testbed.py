"""Prequal's testbed in virtual time: 100 clients, 100 replicas with antagonists, 70 to 170 % load.

    python benchmarks/prequal_testbed.py [--loads 0.7,0.9,1.05,1.3,1.7] [--seconds 20] [--warm-up 5]
        [--seed 1]
        [--policies prequal,c3,...] [--testbed '{"mean_work_ms": 80}']

The policies are the router's own; C3's score (NSDI 2015) runs on Prequal's pool. One JSON object per policy
and load: ``value`` is p99 in ms, ``baseline`` the paper's figure where we know one. What of the testbed is
the paper's and what is assumed: ``tidecell.sim.serving.Testbed``.

Expected: Prequal under 286 ms up to 90 % and under 400 ms at 170 %, no errors; plain weighted round robin
fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from random import Random
from typing import Any

import msgspec

from tidecell.sim.serving import Serving, Testbed
from tidecell.structs.traffic import PrequalPolicy
from tidecell.traffic.balance import Load, RoundRobin, WeightedRoundRobin, least_outstanding, power_of_two
from tidecell.traffic.prequal import Prequal, Probe

PUBLISHED = {
    "prequal": {0.7: 281, 0.9: 286},
    "c3": {0.7: 299, 0.9: 304},
    "power-of-two": {0.7: 1804, 0.9: 1169},
    "least-outstanding": {0.7: 2642, 0.9: 2654},
    "weighted-round-robin": {0.7: 314},
}
DECAY = 0.97  # of the counts behind weighted round robin's weights, each second: about half a minute


class Local:
    """What one client sees itself; ``rule`` is one of the router's simple ones."""

    def __init__(self, rule: str, number: int, serving: Serving) -> None:
        self.rng = Random(serving.testbed.num_clients * 7919 + number)
        self.loads = [Load(0, 0.0, -1e9, str(i)) for i in range(serving.testbed.num_replicas)]
        rules: dict[str, Any] = {
            "power-of-two": power_of_two,
            "least-outstanding": least_outstanding,
            "round-robin": RoundRobin().choose,
            "weighted-round-robin": WeightedRoundRobin().choose,
            "random": lambda loads, rng, now_s: int(rng.random() * len(loads)),
        }
        self.rule = rules[rule]
        if rule == "weighted-round-robin":
            self.weigh(serving)
        for _ in range(number):
            if rule == "round-robin":
                self.choose(0.0)  # clients do not start at the same replica

    def choose(self, now_s: float) -> int:
        return self.rule(self.loads, self.rng, now_s)

    def sent(self, replica: int, now_s: float) -> None:
        self.loads[replica].in_flight += 1

    def done(self, replica: int, latency_ms: float, ok: bool, now_s: float) -> None:
        self.loads[replica].in_flight -= 1
        self.loads[replica].observe_latency(latency_ms)

    def weigh(self, serving: Serving) -> None:
        """Weights as the paper says: queries served over the CPU used for them, smoothed."""
        others: list[Local] = serving.__dict__.setdefault("weighers", [])
        others.append(self)
        if len(others) > 1:
            return
        mean_s = serving.testbed.mean_work_ms / 1000.0
        sums = [[10.0, 10.0 * mean_s] for _ in self.loads]  # served, used
        before = [(0, 0.0)] * len(self.loads)

        def refresh(now_s: float) -> None:
            for i, replica in enumerate(serving.replicas):
                replica.advance(now_s)
                sums[i][0] = DECAY * sums[i][0] + replica.served - before[i][0]
                sums[i][1] = DECAY * sums[i][1] + replica.used - before[i][1]
                before[i] = (replica.served, replica.used)
            weights = [mean_s * served / max(1e-9, used) for served, used in sums]
            for client in others:
                for load, weight in zip(client.loads, weights, strict=True):
                    load.weight = max(0.01, weight)

        serving.refresh = refresh


class Probing:
    """Prequal, and rules on its pool."""

    pool_type: type[Prequal] = Prequal

    def __init__(self, number: int, serving: Serving, policy: PrequalPolicy) -> None:
        self.serving = serving
        self.loads = [Load(0, 0.0, -1e9, str(i)) for i in range(serving.testbed.num_replicas)]
        self.prequal = self.pool_type(policy, Random(104729 + number))

    def choose(self, now_s: float) -> int:
        return self.prequal.choose(self.loads, now_s)[0]

    def sent(self, replica: int, now_s: float) -> None:
        self.loads[replica].in_flight += 1
        for load in self.prequal.targets(self.loads):  # answered well before this client's next query
            record = self.serving.replicas[int(load.id)].record
            self.prequal.observe(load, record.rif, record.estimate_ms(now_s), len(self.loads), now_s)

    def done(self, replica: int, latency_ms: float, ok: bool, now_s: float) -> None:
        load = self.loads[replica]
        load.in_flight -= 1
        load.observe_latency(latency_ms)


class C3Pool(Prequal):
    """C3's score on Prequal's pool: R - s + q^3 s, with q = 1 + outstanding * clients + queue."""

    num_clients = 100

    def _best(self, least: int, now_s: float) -> tuple[Probe | None, str]:
        if len(self._pool) < least:
            return None, "unprobed"
        return min(self._pool, key=self._score), "c3"

    def _score(self, probe: Probe) -> float:
        service_ms = probe.latency_ms / (1.0 + probe.rif)
        q = 1.0 + probe.load.in_flight * self.num_clients + probe.rif
        return probe.load.latency_ewma_ms - service_ms + q**3 * service_ms


class C3(Probing):
    pool_type = C3Pool


def run(name: str, load: float, arguments: argparse.Namespace, testbed: Testbed) -> dict[str, Any]:
    """Return one result."""
    policy = PrequalPolicy()
    makers: dict[str, Any] = {
        "prequal": lambda n, s: Probing(n, s, policy),
        "c3": lambda n, s: C3(n, s, policy),
    }
    maker = makers.get(name) or (lambda n, s: Local(name, n, s))
    started_s = time.process_time()
    outcome = Serving(testbed, maker, arguments.seed).run(load, arguments.seconds, arguments.warm_up)
    rifs = sorted(outcome.rifs)
    return {
        "name": f"prequal_testbed/{name}/{load:g}",
        "value": round(outcome.quantile_ms(0.99), 1),
        "unit": "ms p99",
        "baseline": PUBLISHED.get(name, {}).get(load),
        "p50_ms": round(outcome.quantile_ms(0.5), 1),
        "p999_ms": round(outcome.quantile_ms(0.999), 1),
        "errors": round(outcome.error_share, 5),
        "queries": len(outcome.latencies_ms),
        "rif_p99": rifs[int(0.99 * len(rifs))],
        "cpu_s": round(time.process_time() - started_s, 1),
    }


def main() -> int:
    """Run the policies that were asked for at the loads that were asked for."""
    names = [
        "prequal",
        "c3",
        "power-of-two",
        "least-outstanding",
        "round-robin",
        "weighted-round-robin",
        "random",
    ]
    parser = argparse.ArgumentParser()
    parser.add_argument("--loads", default="0.7,0.9,1.05,1.3,1.7")
    parser.add_argument("--policies", default=",".join(names))
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--warm-up", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--testbed", default="{}", help="JSON: other values for fields of Testbed")
    arguments = parser.parse_args()
    testbed = msgspec.json.decode(arguments.testbed, type=Testbed)
    for name in arguments.policies.split(","):
        if name not in names:
            print(f"error: no policy {name!r}; there are {', '.join(names)}", file=sys.stderr)
            return 2
        for load in arguments.loads.split(","):
            print(json.dumps(run(name, float(load), arguments, testbed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
