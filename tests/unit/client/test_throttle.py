"""Client-side adaptive throttling."""

from __future__ import annotations

from random import Random

import pytest

from tidecell.client.throttle import AdaptiveThrottle


def test_nothing_is_held_back_while_half_is_accepted() -> None:
    throttle = AdaptiveThrottle(Random(1))
    for i in range(1000):
        assert throttle.allow(i * 0.01)
        if i % 2 == 0:
            throttle.accepted(i * 0.01)


def test_the_share_is_that_of_the_rule() -> None:
    throttle = AdaptiveThrottle(Random(1))
    for _ in range(99):
        throttle.allow(0.0)
    for _ in range(10):
        throttle.accepted(0.0)
    assert throttle.reject_share(0.0) == pytest.approx((99 - 2 * 10) / 100)


def test_about_twice_what_is_accepted_is_sent() -> None:
    throttle, sent = AdaptiveThrottle(Random(1)), 0
    for i in range(20_000):
        now_s = i * 0.01
        if throttle.allow(now_s):
            sent += 1
            if i % 10 == 0:  # the backend takes a tenth of what it could be asked
                throttle.accepted(now_s)
    assert sent < 0.1 * 20_000  # far fewer than all
    assert sent > 100  # but it goes on asking


def test_what_is_two_minutes_old_does_not_count() -> None:
    throttle = AdaptiveThrottle(Random(1))
    for _ in range(100):
        throttle.allow(0.0)
    assert throttle.reject_share(1.0) > 0.9
    assert throttle.reject_share(121.0) == 0.0
    assert throttle.requests == 0
