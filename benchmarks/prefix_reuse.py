"""Prefix reuse: the Mooncake trace replayed over 8 replicas, by policy.

    python benchmarks/prefix_reuse.py [--replicas 8] [--capacity 0] [--policies ...] [--trace FILE]

Reads ``llm/mooncake_synthetic_trace.parquet`` below ``TIDECELL_TRACES`` (default ``../shared/traces``),
whose ``hash_ids`` are blocks of 512 tokens; skips with a message where it is absent. One JSON object per
policy: ``value`` is the share of blocks found in the cache of the replica that got the request,
``baseline`` that of one unlimited cache for all.

The replicas are modelled: each computes the prompt tokens it does not hold, one request after the other,
``rate`` a second, and generates ``DECODE_S`` a token beside that; its cache is the newest ``capacity``
blocks (0: unlimited). Every policy sees what a router sees, when it sees it: a request counts as
outstanding until its first token (prompt work) or its last (requests in flight). ``sglang`` is the
cache-aware policy of sglang-router, written anew from its documentation with its defaults.

Expected: ours at least 90 % of the unlimited cache's 64.0 %, with the lowest TTFT p90.
"""

from __future__ import annotations

import argparse
import heapq
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from tidecell.sim.requests import read_requests
from tidecell.structs.traffic import PrefixPolicy
from tidecell.traffic.balance import Load, RoundRobin, least_outstanding, least_tokens
from tidecell.traffic.prefix import Held, PrefixBalancer

BLOCK_TOKENS = 512
DECODE_S = 0.02
BASE_S = 0.02
UNLIMITED = 1 << 40
NAMES = ("tidecell", "sglang", "least-outstanding", "least-tokens", "round-robin")
Choose = Callable[[Sequence[Load], Sequence[int], int, float], tuple[int, int]]


def trace_path() -> Path:
    root = os.environ.get("TIDECELL_TRACES") or Path(__file__).parents[1] / ".." / "shared" / "traces"
    return Path(root) / "llm" / "mooncake_synthetic_trace.parquet"


class Sglang:
    """Cache-aware, as sglang-router documents it.

    By shortest queue while out of balance, else by longest match where that is above the threshold, else to
    the replica with the smallest tree.
    """

    cache_threshold = 0.5
    balance_abs = 32
    balance_rel = 1.0001

    def __init__(self, names: Sequence[str]) -> None:
        self.trees = {name: Held(UNLIMITED) for name in names}

    def choose(
        self, loads: Sequence[Load], blocks: Sequence[int], tokens: int, now_s: float
    ) -> tuple[int, int]:
        counts = [load.in_flight for load in loads]
        most, least = max(counts), min(counts)
        if most - least > self.balance_abs and most > self.balance_rel * least:
            index = counts.index(least)
        else:
            matches = [self.trees[load.id].matched(blocks) for load in loads]
            index = max(range(len(loads)), key=matches.__getitem__)
            if matches[index] <= self.cache_threshold * len(blocks):
                index = min(range(len(loads)), key=lambda i: len(self.trees[loads[i].id]))
        tree = self.trees[loads[index].id]
        match = tree.matched(blocks)
        tree.use(blocks)
        return index, match


def chooser(name: str, names: Sequence[str], capacity: int) -> Choose:
    """Return a policy: what it chooses, and how many blocks it thinks are held there."""
    rng = Random(1)
    if name == "sglang":
        return Sglang(names).choose
    if name == "tidecell":
        balancer = PrefixBalancer(PrefixPolicy(capacity_blocks=capacity), rng)

        def ours(loads: Sequence[Load], blocks: Sequence[int], tokens: int, now_s: float) -> tuple[int, int]:
            index, _, match = balancer.choose(loads, blocks, tokens)
            balancer.sent(loads[index].id, blocks, max(1, tokens - match * BLOCK_TOKENS), now_s)
            return index, match

        return ours
    rules: dict[str, Any] = {
        "least-outstanding": least_outstanding,
        "least-tokens": least_tokens,
        "round-robin": RoundRobin().choose,
    }
    return lambda loads, blocks, tokens, now_s: (rules[name](loads, rng, now_s), 0)


def replay(rows: list[dict[str, Any]], name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return one policy's result."""
    capacity = arguments.capacity or UNLIMITED
    loads = [Load(0, 0.0, -1e9, f"r{i}") for i in range(arguments.replicas)]
    caches = [Held(capacity) for _ in loads]
    choose = chooser(name, [load.id for load in loads], capacity)
    free_s = [0.0] * len(loads)
    computed = [0] * len(loads)
    events: list[tuple[float, int, int, int]] = []  # time, replica, tokens no longer waiting, requests ended
    ttfts: list[float] = []
    hits = total = 0
    deciding_s = 0.0
    for row in rows:
        now_s, blocks, tokens = row["timestamp"] / 1000.0, row["hash_ids"], row["input_length"]
        while events and events[0][0] <= now_s:
            _, which, fewer, ended = heapq.heappop(events)
            loads[which].tokens -= fewer
            loads[which].in_flight -= ended
        started_s = time.perf_counter()
        which, thought = choose(loads, blocks, tokens, now_s)
        deciding_s += time.perf_counter() - started_s
        match = caches[which].matched(blocks)
        caches[which].use(blocks)
        hits += match
        total += len(blocks)
        todo = max(1, tokens - match * BLOCK_TOKENS)
        expected = max(1, tokens - thought * BLOCK_TOKENS)
        computed[which] += todo
        free_s[which] = max(now_s, free_s[which]) + BASE_S + todo / arguments.rate
        ttfts.append(free_s[which] - now_s)
        loads[which].tokens += expected
        loads[which].in_flight += 1
        heapq.heappush(events, (free_s[which], which, expected, 0))
        heapq.heappush(events, (free_s[which] + DECODE_S * row["output_length"], which, 0, 1))
    ttfts.sort()
    return {
        "name": f"prefix_reuse/{name}",
        "value": round(hits / total, 4),
        "unit": "share of blocks",
        "baseline": round(unlimited(rows), 4),
        "ratio": round(hits / total / unlimited(rows), 4),
        "ttft_p50_s": round(ttfts[len(ttfts) // 2], 3),
        "ttft_p90_s": round(ttfts[int(0.9 * len(ttfts))], 3),
        "ttft_p99_s": round(ttfts[int(0.99 * len(ttfts))], 3),
        "computed_max_over_mean": round(max(computed) * len(computed) / sum(computed), 3),
        "decision_us": round(deciding_s / len(rows) * 1e6, 1),
    }


def unlimited(rows: list[dict[str, Any]]) -> float:
    """Return the share of blocks that were seen before anywhere."""
    seen: set[int] = set()
    hits = total = 0
    for row in rows:
        total += len(row["hash_ids"])
        hits += sum(block in seen for block in row["hash_ids"])
        seen.update(row["hash_ids"])
    return hits / total


def main() -> int:
    """Replay the trace under each policy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replicas", type=int, default=8)
    parser.add_argument(
        "--capacity", type=int, default=0, help="blocks a replica's cache holds; 0: unlimited"
    )
    parser.add_argument(
        "--rate", type=float, default=10_000.0, help="prompt tokens a replica computes a second"
    )
    parser.add_argument("--policies", default=",".join(NAMES))
    parser.add_argument("--trace", type=Path, help="requests that a router recorded, instead of Mooncake's")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.policies.split(",") if name not in NAMES]
    if unknown:
        print(f"error: no policy {unknown[0]!r}; there are {', '.join(NAMES)}", file=sys.stderr)
        return 2
    if arguments.trace is not None:
        rows = [msgspec.to_builtins(row) for row in read_requests(arguments.trace)]
        for name in arguments.policies.split(","):
            print(json.dumps(replay(rows, name, arguments)), flush=True)
        return 0
    path = trace_path()
    if not path.exists():
        print(f"skipped: no {path.name} (set TIDECELL_TRACES; from kvcache-ai/Mooncake)", file=sys.stderr)
        return 0
    import pyarrow.parquet as parquet

    rows = parquet.read_table(path).to_pylist()
    for name in arguments.policies.split(","):
        print(json.dumps(replay(rows, name, arguments)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
