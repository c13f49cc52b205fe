"""Ejection, pauses after refusals, the retry budget."""

from __future__ import annotations

from tidecell.traffic.health import EJECT_AFTER, Health, RetryBudget


def fail(replica: Health, peers: list[Health], now_s: float, times: int = EJECT_AFTER) -> list[bool]:
    return [replica.failed(now_s, peers) for _ in range(times)]


def test_a_replica_is_ejected_after_five_failures_in_a_row() -> None:
    peers = [Health(), Health()]
    assert fail(peers[0], peers, 0.0) == [False, False, False, False, True]
    assert peers[0].is_ejected(4.9)
    assert not peers[0].is_ejected(5.0)


def test_a_success_in_between_starts_the_count_again() -> None:
    peers = [Health(), Health()]
    fail(peers[0], peers, 0.0, times=4)
    peers[0].succeeded(0.0)
    assert not any(fail(peers[0], peers, 0.0, times=4))


def test_never_more_than_half_are_ejected() -> None:
    peers = [Health() for _ in range(5)]
    for replica in peers:
        fail(replica, peers, 0.0, times=20)
    assert sum(replica.is_ejected(1.0) for replica in peers) == 2


def test_the_only_replica_is_never_ejected() -> None:
    alone = Health()
    assert not any(fail(alone, [alone], 0.0, times=50))


def test_each_ejection_lasts_twice_as_long_up_to_a_limit() -> None:
    peers, now_s, spans_s = [Health(), Health()], 0.0, []
    for _ in range(7):
        fail(peers[0], peers, now_s)
        spans_s.append(peers[0].ejected_until_s - now_s)
        now_s = peers[0].ejected_until_s
    assert spans_s == [5.0, 10.0, 20.0, 40.0, 80.0, 120.0, 120.0]


def test_pauses_after_refusals_grow_and_end_with_a_connection() -> None:
    health = Health()
    assert [health.refused(0.0) for _ in range(6)] == [0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert health.is_unreachable(1.9)
    health.connected()
    assert not health.is_unreachable(0.0)
    assert health.refused(0.0) == 0.1


def test_the_first_retry_is_free_and_further_ones_are_a_tenth_of_requests() -> None:
    budget = RetryBudget(share=0.1, burst=2.0)
    assert [budget.allow(1) for _ in range(3)] == [True, True, False]
    assert budget.allow(0)
    for _ in range(11):
        budget.deposit()
    assert [budget.allow(1), budget.allow(1)] == [True, False]


def test_first_retries_leave_the_budget_to_those_who_were_lost_twice() -> None:
    budget = RetryBudget(burst=2.0)
    assert all(budget.allow(0) for _ in range(50))
    assert [budget.allow(1) for _ in range(3)] == [True, True, False]
