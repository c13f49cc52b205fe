"""Limits verified to the token: 100,000 requests with broken streams, alone and shared between routers.

    python benchmarks/limits_ledger.py [--requests 100000] [--seed 1]

``alone``: one router; 20 tenants with limits of tokens a minute and a day; a tenth of the streams break and
are charged what was passed on. An independent ledger of every request, summed anew, is the judge: ``value``
is the largest difference in tokens ever seen, ``passed`` how often a limit was passed by what was estimated
right.

``shared``: four routers under leases of one day's limit, a report a second, a third of the messages lost,
the coordinator away for a tenth of the time. ``value`` is what was used above the limit, ``unused`` the
share of the limit that was refused though it was left at the end.

Expected: 0 and 0.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import defaultdict
from random import Random
from typing import Any

from tidecell.structs.traffic import Key, Limits, Tenant
from tidecell.traffic.leases import Coordinator, Report
from tidecell.traffic.limits import Ledger, Reservation, actual_tokens, estimate_tokens

MINUTE_LIMIT, DAY_LIMIT, NUM_TENANTS = 60_000, 15_000_000, 20
SHARED_LIMIT = 3_000_000
DAY_S = 86_400.0


def alone(num: int, seed: int) -> dict[str, Any]:
    """Return the largest difference between the ledger and a count of every request."""
    rng, now_s = Random(seed), 0.0
    limits = Limits(tokens_per_minute=MINUTE_LIMIT, tokens_per_day=DAY_LIMIT)
    book = Ledger([Tenant(f"t{i}", (Key("k", f"h{i}"),), limits) for i in range(NUM_TENANTS)], 0.0)
    rows: dict[int, list[list[float]]] = defaultdict(list)  # tenant: [admitted at, cost]
    day_sums: dict[tuple[int, int], int] = defaultdict(int)
    under_way: list[tuple[float, int, Reservation, list[float], int]] = []
    worst = refused = broken = passed = 0
    cpu_s = 0.0
    for _ in range(num):
        now_s += rng.expovariate(0.8)
        for item in [item for item in under_way if item[0] <= now_s]:
            under_way.remove(item)
            _, tenant, reservation, row, cost = item
            day_sums[tenant, int(row[0] // DAY_S)] += cost - int(row[1])
            row[1] = cost
            started_s = time.process_time()
            book.settle(reservation, cost, now_s)
            cpu_s += time.process_time() - started_s
        tenant, body_bytes, asked = (
            rng.randrange(NUM_TENANTS),
            rng.randrange(100, 40_000),
            rng.randrange(1, 2000),
        )
        tokens = estimate_tokens(body_bytes, asked)
        started_s = time.process_time()
        got = book.reserve(f"h{tenant}", tokens, now_s)
        cpu_s += time.process_time() - started_s
        mine = rows[tenant]
        while mine and int(mine[0][0]) <= int(now_s) - 60:
            mine.pop(0)
        counted = int(sum(row[1] for row in mine))
        today = day_sums[tenant, int(now_s // DAY_S)]
        fits = counted + tokens <= MINUTE_LIMIT and today + tokens <= DAY_LIMIT
        passed += isinstance(got, Reservation) != fits
        if isinstance(got, Reservation):
            row = [now_s, float(tokens)]
            mine.append(row)
            day_sums[tenant, int(now_s // DAY_S)] += tokens
            made = rng.randrange(asked + 1)
            if rng.random() < 0.1:
                broken += 1
                cost = actual_tokens(None, None, made, body_bytes, 200)
            else:
                cost = actual_tokens(body_bytes // 4 + rng.randrange(-20, 20), made, made, body_bytes, 200)
            under_way.append((now_s + rng.expovariate(0.1), tenant, got, row, cost))
            counted, today = counted + tokens, today + tokens
        else:
            refused += 1
        windows = book.accounts[f"tenant t{tenant}"].windows
        worst = max(worst, abs(windows["tokens_per_minute"].used - counted))
        worst = max(worst, abs(windows["tokens_per_day"].used - today))
    return {
        "name": "limits_ledger/alone",
        "value": worst,
        "unit": "tokens of difference",
        "baseline": 0,
        "wrong_decisions": passed,
        "requests": num,
        "refused": refused,
        "broken_streams": broken,
        "days": int(now_s // DAY_S) + 1,
        "reserve_and_settle_us": round(cpu_s / num * 1e6, 2),
    }


def shared(num: int, seed: int) -> dict[str, Any]:
    """Return what four routers used above one limit that they share."""
    rng, now_s, limit = Random(seed), 0.0, SHARED_LIMIT
    coordinator = Coordinator(limit)
    routers = [Ledger([Tenant("t", (Key("k", "h"),), Limits(tokens_per_day=limit))], 0.0) for _ in range(4)]
    windows = [router.accounts["tenant t"].windows["tokens_per_day"] for router in routers]
    serials, wanted = [0] * 4, [0] * 4
    for window in windows:
        window.part = 0
    next_report_s = used_above = refused_tokens = 0
    for _ in range(num):
        now_s += rng.expovariate(100.0)
        if now_s >= next_report_s:
            next_report_s += 1
            is_away = int(now_s) % 100 >= 90
            for i, window in enumerate(windows):
                if is_away or rng.random() < 0.33:
                    continue
                grant = coordinator.report(str(i), Report(serials[i], window.part, window.used, wanted[i]))
                wanted[i] = 0
                if rng.random() >= 0.33:  # else the answer is lost on its way back
                    serials[i], window.part = grant.serial, grant.part
        which = 0 if rng.random() < 0.7 else rng.randrange(4)
        tokens = rng.randrange(1, 200)
        wanted[which] += tokens
        got = routers[which].reserve("h", tokens, now_s)
        if isinstance(got, Reservation):
            routers[which].settle(got, rng.randrange(tokens + 1), now_s)
        elif sum(window.used for window in windows) + tokens <= limit:
            refused_tokens += tokens
        used_above = max(used_above, sum(window.used for window in windows) - limit)
    used = sum(window.used for window in windows)
    return {
        "name": "limits_ledger/shared",
        "value": max(0, used_above),
        "unit": "tokens above the limit",
        "baseline": 0,
        "used": used,
        "limit": limit,
        "unused": round(max(0, limit - used) / limit, 4),
        "refused_while_some_was_left": refused_tokens,
        "requests": num,
    }


def main() -> int:
    """Run both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for run in (alone, shared):
        print(json.dumps(run(arguments.requests, arguments.seed)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
