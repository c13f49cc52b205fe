"""What must hold of the traffic policies whatever comes."""

from __future__ import annotations

from collections import Counter
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from tidecell.structs.traffic import Key, Limits, PrequalPolicy, Tenant
from tidecell.traffic.balance import Load
from tidecell.traffic.fair_queue import Entry, FairQueue
from tidecell.traffic.leases import Coordinator, Grant, Report
from tidecell.traffic.limits import Ledger, Refused, Reservation
from tidecell.traffic.prefix import Held
from tidecell.traffic.prequal import Prequal
from tidecell.traffic.subset import subset

LIMIT = 500


class Reference:
    """Limits counted the slow way: every request, with what it is taken to cost now."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []  # admitted at, cost, under way

    def minute(self, now_s: float) -> int:
        return int(sum(cost for at_s, cost, _ in self.rows if int(at_s) > int(now_s) - 60))

    def day(self, now_s: float) -> int:
        return int(sum(cost for at_s, cost, _ in self.rows if at_s // 86400 == now_s // 86400))

    def under_way(self) -> int:
        return sum(row[2] == 1 for row in self.rows)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), pace_s=st.sampled_from([0.05, 1.0, 400.0]))
def test_limits_agree_to_the_token_with_a_count_of_every_request(seed: int, pace_s: float) -> None:
    rng, reference, now_s = Random(seed), Reference(), 0.0
    limits = Limits(tokens_per_minute=LIMIT, tokens_per_day=3 * LIMIT, concurrency=6)
    book = Ledger([Tenant("t", (Key("k", "h"),), limits)], 0.0)
    windows = book.accounts["tenant t"].windows
    open_ones: list[tuple[Reservation, list[float]]] = []
    for _ in range(150):
        now_s += rng.expovariate(1.0 / pace_s)
        if open_ones and rng.random() < 0.5:
            reservation, row = open_ones.pop(rng.randrange(len(open_ones)))
            row[1] = rng.choice([0, rng.randrange(int(row[1]) + 1), int(row[1]), 2 * int(row[1])])
            row[2] = 0
            book.settle(reservation, int(row[1]), now_s)
        else:
            tokens = rng.randrange(1, 200)
            got = book.reserve("h", tokens, now_s)
            fits = reference.minute(now_s) + tokens <= LIMIT and reference.day(now_s) + tokens <= 3 * LIMIT
            assert isinstance(got, Reservation) == (fits and reference.under_way() < 6)
            if isinstance(got, Reservation):
                reference.rows.append([now_s, tokens, 1])
                open_ones.append((got, reference.rows[-1]))
            else:
                assert isinstance(got, Refused)
                assert got.retry_after_s >= 1
        for window in windows.values():
            window.forget(now_s)
        assert windows["tokens_per_minute"].used == reference.minute(now_s)
        assert windows["tokens_per_day"].used == reference.day(now_s)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), num_routers=st.integers(1, 5), loss=st.sampled_from([0.0, 0.3, 0.9]))
def test_what_routers_use_under_leases_never_passes_the_limit(
    seed: int, num_routers: int, loss: float
) -> None:
    rng, coordinator = Random(seed), Coordinator(LIMIT)
    part = dict.fromkeys(range(num_routers), 0)
    used = dict.fromkeys(range(num_routers), 0)
    serial = dict.fromkeys(range(num_routers), 0)
    late: list[tuple[int, Grant]] = []
    for _ in range(300):
        router = rng.randrange(num_routers)
        if rng.random() < 0.5:
            used[router] += (
                rng.randrange(min(40, part[router] - used[router]) + 1) if part[router] > used[router] else 0
            )
        elif late and rng.random() < 0.5:
            router, grant = late.pop(rng.randrange(len(late)))
            if grant.serial > serial[router]:
                serial[router], part[router] = grant.serial, grant.part
        else:
            report = Report(serial[router], part[router], used[router], rng.randrange(100))
            if rng.random() >= loss:
                late.append((router, coordinator.report(str(router), report)))
        assert sum(used.values()) <= LIMIT
        assert coordinator.held() <= LIMIT


@settings(max_examples=30, deadline=None)
@given(num_routers=st.integers(1, 6), seed=st.integers(0, 1 << 32))
def test_leases_follow_demand_until_nearly_all_of_the_limit_is_used(num_routers: int, seed: int) -> None:
    coordinator, rng = Coordinator(10_000), Random(seed)
    part, used, serial = [0] * num_routers, [0] * num_routers, [0] * num_routers
    busy = rng.randrange(num_routers)
    for _ in range(60):
        for router in range(num_routers):
            wanted = 10_000 if router == busy else 0
            used[router] = min(part[router], used[router] + wanted)
            report = Report(serial[router], part[router], used[router], wanted)
            grant = coordinator.report(str(router), report)
            serial[router], part[router] = grant.serial, grant.part
    assert sum(used) >= 9_900


def test_a_router_that_is_gone_keeps_what_it_may_have_used() -> None:
    coordinator = Coordinator(100)
    first = coordinator.report("a", Report())
    coordinator.gone("a")
    second = coordinator.report("b", Report(wanted=100))
    assert first.part + second.part <= 100
    coordinator.window_over()
    assert coordinator.report("b", Report(second.serial, second.part, 0, 100)).part > second.part


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), most=st.integers(1, 30))
def test_every_request_leaves_the_fair_queue_exactly_once(seed: int, most: int) -> None:
    rng, left = Random(seed), Counter[int]()
    dropped: list[int] = []
    waiting: FairQueue[int] = FairQueue(most, lambda item, why: dropped.append(item))
    now_s = 0.0
    for number in range(200):
        now_s += 0.1
        tenant, level = f"t{rng.randrange(4)}", rng.randrange(4)
        waiting.push(Entry(number, tenant, level, 1.0 + rng.random(), 1.0, now_s + rng.choice([0.5, 9.0])))
        assert len(waiting) <= most
        if rng.random() < 0.6 and (item := waiting.pop(now_s)) is not None:
            left[item] += 1
    while (item := waiting.pop(now_s)) is not None:
        left[item] += 1
    left.update(dropped)
    assert len(waiting) == 0
    assert left == Counter(range(200))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1 << 32), num=st.integers(2, 6))
def test_backlogged_tenants_get_equal_shares_to_within_one_request(seed: int, num: int) -> None:
    rng = Random(seed)
    waiting: FairQueue[tuple[str, float]] = FairQueue(100_000, lambda item, why: None)
    for _ in range(300):
        for tenant in range(num):
            cost = rng.uniform(1.0, 10.0)
            waiting.push(Entry((str(tenant), cost), str(tenant), 1, cost))
    got: Counter[str] = Counter()
    for _ in range(200):
        item = waiting.pop(0.0)
        assert item is not None
        got[item[0]] += item[1]  # type: ignore[assignment]
    assert max(got.values()) - min(got[str(t)] for t in range(num)) <= 20.0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), capacity=st.integers(1, 40))
def test_a_match_found_by_halving_is_the_one_found_by_counting(seed: int, capacity: int) -> None:
    rng, held = Random(seed), Held(capacity)
    chains = [[100 * c + i for i in range(rng.randrange(1, 20))] for c in range(5)]
    for _ in range(60):
        blocks = rng.choice(chains)[: rng.randrange(1, 20)]
        held.use(blocks)
        assert len(held) <= capacity
        for other in chains:
            counted = next((i for i, block in enumerate(other) if block not in held), len(other))
            assert held.matched(other) == counted


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 1 << 32), num=st.integers(1, 40))
def test_prequal_chooses_only_among_those_that_may_be_tried(seed: int, num: int) -> None:
    rng = Random(seed)
    prequal, loads, now_s = Prequal(PrequalPolicy(), rng), [Load(0, 0, -9, str(i)) for i in range(num)], 0.0
    for _ in range(100):
        now_s += rng.expovariate(20.0)
        for load in prequal.targets(loads):
            prequal.observe(load, rng.randrange(10), rng.uniform(0, 100), num, now_s)
        allowed = [load for load in loads if rng.random() < 0.7] or loads
        index, reason = prequal.choose(allowed, now_s)
        assert 0 <= index < len(allowed)
        assert reason in ("cold", "hot", "unprobed")
        assert len(prequal) <= 16


@settings(max_examples=60, deadline=None)
@given(num=st.integers(1, 60), size=st.integers(1, 60), rounds=st.integers(1, 4))
def test_whole_rounds_of_subsets_hold_each_replica_equally_often(num: int, size: int, rounds: int) -> None:
    ids = [f"r{i}" for i in range(num)]
    clients = rounds * max(1, num // size)
    counts = Counter(name for client in range(clients) for name in subset(ids, client, size))
    assert set(counts.values()) == {rounds if size < num else clients}
