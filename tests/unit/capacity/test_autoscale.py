"""The autoscaler against loads over time; a decision takes effect at once, as in a cell with room."""

from __future__ import annotations

from collections.abc import Callable

from tidecell.capacity.autoscale import Autoscaler, Decision
from tidecell.structs.job import Scaling

TICK_S = 0.5


def follow(
    scaler: Autoscaler, load: Callable[[float, int], float], until_s: float, desired: int = 1
) -> list[tuple[float, Decision]]:
    """Return the changes of size that a load over time and size brings about."""
    changes = []
    for tick in range(int(until_s / TICK_S)):
        now_s = tick * TICK_S
        decision = scaler.observe(now_s, load(now_s, desired), desired, desired)
        if decision.desired != desired:
            changes.append((now_s, decision))
            desired = decision.desired
    return changes


def sizes(changes: list[tuple[float, Decision]]) -> list[int]:
    return [decision.desired for _, decision in changes]


SPEC = Scaling(target=8, up_delay_s=5, down_delay_s=20)


def test_a_load_within_the_tolerance_changes_nothing() -> None:
    assert follow(Autoscaler(SPEC, 1, 8), lambda t, n: 8.7, 120) == []


def test_more_load_adds_replicas_after_the_delay() -> None:
    changes = follow(Autoscaler(SPEC, 1, 8), lambda t, n: 4 if t < 10 else 14, 60)
    assert sizes(changes) == [2]
    at_s, decision = changes[0]
    assert 15 <= at_s <= 25
    assert decision.reason.endswith("ongoing requests at 8 per replica wants 2, for 5.0 s")


def test_a_burst_shorter_than_the_delay_adds_nothing() -> None:
    assert follow(Autoscaler(SPEC, 1, 8), lambda t, n: 14 if 10 <= t < 14 else 4, 60) == []


def test_twice_the_load_is_answered_at_once() -> None:
    changes = follow(Autoscaler(SPEC, 1, 8), lambda t, n: 4 if t < 10 else 30, 60)
    assert changes[0] == (
        10.0,
        Decision(
            4,
            "30.0 ongoing requests at 8 per replica wants 4: at once, twice what 1 replica ready should have",
        ),
    )


def test_a_request_to_a_service_at_zero_is_answered_at_once() -> None:
    changes = follow(Autoscaler(SPEC, 0, 8), lambda t, n: 0 if t < 10 else 1, 30, desired=0)
    assert changes == [
        (10.0, Decision(1, "1.0 ongoing requests at 8 per replica wants 1: at once, nothing runs"))
    ]


def test_an_unused_service_goes_to_zero_and_one_in_use_never_does() -> None:
    idle = follow(Autoscaler(SPEC, 0, 8), lambda t, n: 1 if t < 10 else 0, 100)
    assert sizes(idle) == [0]
    assert 30 <= idle[0][0] <= 60
    assert follow(Autoscaler(SPEC, 0, 8), lambda t, n: 0.01, 100) == []


def test_less_load_takes_replicas_away_only_after_the_delay() -> None:
    changes = follow(Autoscaler(SPEC, 1, 8), lambda t, n: 30 if t < 10 else 2, 100)
    assert sizes(changes)[0] == 4
    assert sizes(changes)[-1] == 1
    assert min(at_s for at_s, decision in changes[1:]) >= 30


def test_recurring_bursts_keep_the_replicas_they_need_on_average() -> None:
    changes = follow(Autoscaler(SPEC, 1, 8), lambda t, n: 30 if t % 15 < 5 else 1, 400)
    assert sizes(changes) == [4, 3]


def test_a_queue_that_one_replica_fewer_could_not_hold_does_not_swing() -> None:
    """Dynamo #9294: load per replica is N/(N-1) times as high after one is taken away."""
    changes = follow(Autoscaler(SPEC, 1, 8), lambda t, n: 9.5, 600, desired=2)
    assert changes == []


def test_a_load_around_the_edge_does_not_swing() -> None:
    def edge(now_s: float, _desired: int) -> float:
        return 8.0 + (1.5 if int(now_s) % 2 else -1.5)

    assert len(follow(Autoscaler(SPEC, 1, 8), edge, 600)) <= 1


def test_the_size_stays_within_its_bounds() -> None:
    assert sizes(follow(Autoscaler(SPEC, 2, 3), lambda t, n: 1000, 30)) == [2, 3]
    scaler = Autoscaler(SPEC, 1, 3)
    assert scaler.observe(0.0, 0, 5, 5) == Decision(3, "5 is outside 1..3")


def test_the_maximum_is_named_when_it_binds() -> None:
    scaler = Autoscaler(SPEC, 1, 2)
    reason = scaler.observe(0.0, 100, 2, 2).reason
    assert reason == "100.0 ongoing requests at 8 per replica wants more than the maximum of 2"


def test_requests_per_second_can_be_followed_instead() -> None:
    spec = Scaling(metric="requests_per_second", target=10, up_delay_s=0, down_delay_s=20)
    decision = Autoscaler(spec, 1, 8).observe(0.0, 0, 1, 1, rate=35.0)
    assert decision.desired == 4
    assert "requests/s" in decision.reason


def test_a_load_that_is_no_number_counts_as_none() -> None:
    assert Autoscaler(SPEC, 1, 8).observe(0.0, float("nan"), 1, 1).desired == 1
