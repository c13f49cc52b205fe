"""Criticality, learned limits, the fair queue, the gate, hedging."""

from __future__ import annotations

from collections import Counter

from tidecell.structs.traffic import ConcurrencyPolicy, HedgePolicy, OverloadPolicy
from tidecell.traffic.concurrency import AimdLimit, FixedLimit, GradientLimit, make_limit
from tidecell.traffic.fair_queue import CRITICAL, SHEDDABLE, SHEDDABLE_PLUS, Entry, FairQueue, criticality
from tidecell.traffic.gate import Gate
from tidecell.traffic.hedge import Hedger


def queue(most: int = 100) -> tuple[FairQueue[str], list[tuple[str, str]]]:
    dropped: list[tuple[str, str]] = []
    return FairQueue(most, lambda item, why: dropped.append((item, why))), dropped


def drain(waiting: FairQueue[str], now_s: float = 0.0) -> list[str]:
    items = []
    while (item := waiting.pop(now_s)) is not None:
        items.append(item)
    return items


def test_a_header_names_the_level_and_a_tenant_bounds_it() -> None:
    assert criticality(b"Sheddable-Plus", CRITICAL) == SHEDDABLE_PLUS
    assert criticality(b"", CRITICAL) == CRITICAL
    assert criticality(b"urgent!", SHEDDABLE) == SHEDDABLE
    assert criticality(b"critical-plus", SHEDDABLE, ceiling=SHEDDABLE_PLUS) == SHEDDABLE_PLUS


def test_the_more_critical_goes_first_and_then_first_come() -> None:
    waiting, _ = queue()
    for name, level in (("a", SHEDDABLE), ("b", CRITICAL), ("c", SHEDDABLE), ("d", CRITICAL)):
        waiting.push(Entry(name, "t", level, 1.0))
    assert drain(waiting) == ["b", "d", "a", "c"]


def test_a_flood_does_not_push_back_another_tenant() -> None:
    waiting, _ = queue(1000)
    for i in range(500):
        waiting.push(Entry(f"flood{i}", "flood", CRITICAL, 1.0))
    waiting.push(Entry("one", "quiet", CRITICAL, 1.0))
    assert "one" in [waiting.pop(0.0) for _ in range(2)]


def test_shares_follow_weights_and_costs() -> None:
    waiting, _ = queue(10_000)
    for i in range(1000):
        waiting.push(Entry(f"a{i}", "a", CRITICAL, 10.0, 3.0))
        waiting.push(Entry(f"b{i}", "b", CRITICAL, 5.0, 1.0))
    served = Counter(item[0] for item in (waiting.pop(0.0) for _ in range(500)) if item)
    assert abs(served["a"] * 10 / (served["b"] * 5) - 3.0) < 0.1


def test_what_a_tenant_got_as_critical_it_does_not_get_again_as_sheddable() -> None:
    waiting, _ = queue(10_000)
    for i in range(100):
        waiting.push(Entry(f"a-critical{i}", "a", CRITICAL, 1.0))
        waiting.push(Entry(f"a{i}", "a", SHEDDABLE, 1.0))
        waiting.push(Entry(f"b{i}", "b", SHEDDABLE, 1.0))
    first = [waiting.pop(0.0) or "" for _ in range(200)]
    assert sum(item.startswith("a-critical") for item in first) == 100
    assert sum(item.startswith("b") for item in first) >= 99


def test_a_tenant_that_was_away_gets_no_more_than_the_others_afterwards() -> None:
    waiting, _ = queue(10_000)
    for i in range(200):
        waiting.push(Entry(f"a{i}", "a", CRITICAL, 1.0))
    for _ in range(100):
        waiting.pop(0.0)
    for i in range(100):
        waiting.push(Entry(f"b{i}", "b", CRITICAL, 1.0))
    served = Counter((waiting.pop(0.0) or "")[0] for _ in range(50))
    assert abs(served["a"] - served["b"]) <= 2


def test_late_work_is_dropped_before_it_costs_and_its_tenant_is_not_charged() -> None:
    waiting, dropped = queue()
    waiting.push(Entry("late", "a", CRITICAL, 1.0, deadline_s=5.0))
    waiting.push(Entry("fine", "a", CRITICAL, 1.0, deadline_s=9.0))
    assert waiting.pop(4.0, service_s=2.0) == "fine"
    assert dropped == [("late", "late")]
    assert waiting.clock.start("a") == 1.0


def test_a_full_queue_sheds_the_least_critical_and_of_them_the_longest_line() -> None:
    waiting, dropped = queue(4)
    for name, tenant in (("a", "x"), ("b", "y"), ("c", "y")):
        waiting.push(Entry(name, tenant, SHEDDABLE, 1.0))
    waiting.push(Entry("d", "x", CRITICAL, 1.0))
    assert waiting.push(Entry("e", "x", CRITICAL, 1.0))
    assert dropped == [("c", "shed")]
    assert waiting.push(Entry("f", "z", SHEDDABLE_PLUS, 1.0))
    assert waiting.push(Entry("g", "z", SHEDDABLE_PLUS, 1.0))
    assert not waiting.push(Entry("h", "z", SHEDDABLE, 1.0))  # nothing is less critical than it
    assert [why for _, why in dropped] == ["shed"] * 4
    assert drain(waiting) == ["d", "e", "f", "g"]


def test_a_fixed_limit_stays() -> None:
    limit = make_limit(ConcurrencyPolicy(kind="fixed", initial=7))
    assert isinstance(limit, FixedLimit)
    limit.observe(100.0, 7, False, 0.0)
    assert limit.limit == 7


def serve(limit: GradientLimit | AimdLimit, cores: float, seconds: float, work_s: float = 0.1) -> None:
    """Feed a limit what a service of so many cores would show, kept full."""
    now_s = 0.0
    while now_s < seconds:
        under_way = limit.limit
        latency_s = work_s * max(1.0, under_way / cores)
        now_s += latency_s / under_way
        limit.observe(latency_s, under_way, True, now_s)


def test_the_gradient_finds_the_knee_from_below_and_from_above() -> None:
    for initial in (8, 400):
        limit = GradientLimit(ConcurrencyPolicy(initial=initial))
        serve(limit, cores=64.0, seconds=300.0)
        assert 60 <= limit._exact <= 110, initial


def test_the_gradient_does_not_grow_when_nobody_tries_the_limit() -> None:
    limit = GradientLimit(ConcurrencyPolicy(initial=100))
    for i in range(5000):
        limit.observe(0.1, 3, True, i * 0.01)
    assert limit.limit == 100


def test_a_drop_takes_a_tenth_of_the_limit() -> None:
    limit = GradientLimit(ConcurrencyPolicy(initial=100))
    limit.observe(0.1, 100, False, 0.0)
    assert limit.limit == 90


def test_aimd_finds_what_meets_its_target() -> None:
    limit = AimdLimit(ConcurrencyPolicy(kind="aimd", initial=8, target_s=0.2))
    serve(limit, cores=64.0, seconds=300.0)
    assert 100 <= limit.limit <= 130


def test_a_limit_stays_within_its_bounds() -> None:
    limit = AimdLimit(ConcurrencyPolicy(kind="aimd", initial=4, least=2, most=5, target_s=1.0))
    for _ in range(200):
        limit.observe(0.1, 5, True, 0.0)
    assert limit.limit == 5
    for _ in range(200):
        limit.observe(9.0, 5, True, 0.0)
    assert limit.limit == 2


def gate(limit: int, max_queue: int = 10) -> tuple[Gate[str], list[tuple[str, str]]]:
    dropped: list[tuple[str, str]] = []
    policy = OverloadPolicy(concurrency=ConcurrencyPolicy(kind="fixed", initial=limit), max_queue=max_queue)
    return Gate(policy, lambda item, why: dropped.append((item, why))), dropped


def test_the_gate_lets_as_many_through_as_the_limit_says() -> None:
    one, _ = gate(2)
    assert [one.offer(Entry(str(i), "t", CRITICAL, 1.0), 0.0) for i in range(3)] == ["start", "start", "wait"]
    assert one.next(0.0) is None
    one.ended(0.1, True, 0.1)
    assert one.next(0.1) == "2"
    assert one.in_flight == 2


def test_the_gate_refuses_who_could_not_be_in_time() -> None:
    one, _ = gate(1)
    one.offer(Entry("a", "t", CRITICAL, 1.0), 0.0)
    for _ in range(200):
        one.ended(0.5, True, 0.0)
        one.in_flight += 1
    assert one.offer(Entry("b", "t", CRITICAL, 1.0, deadline_s=0.3), 0.0) == "late"
    assert one.offer(Entry("c", "t", CRITICAL, 1.0, deadline_s=2.0), 0.0) == "wait"


def test_hedging_waits_for_the_95th_percentile_and_keeps_to_its_budget() -> None:
    hedger = Hedger(HedgePolicy(share=0.05, burst=2.0, min_samples=100))
    assert hedger.delay_s() is None
    for i in range(100):
        hedger.observe(0.1 if i < 96 else 3.0)
    assert hedger.delay_s() == 0.1
    assert [hedger.may_hedge(4) for _ in range(3)] == [True, True, False]
    for _ in range(21):
        hedger.admitted()
    assert [hedger.may_hedge(4), hedger.may_hedge(4)] == [True, False]
    assert not hedger.may_hedge(1)  # nobody to ask
