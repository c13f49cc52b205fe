"""Limits of tenants and keys."""

from __future__ import annotations

from datetime import UTC, datetime

from tidecell.structs.traffic import Key, Limits, Tenant
from tidecell.traffic.limits import (
    Ledger,
    Refused,
    Reservation,
    Rolling,
    actual_tokens,
    estimate_tokens,
    midnights,
)


def ledger(limits: Limits, key_limits: Limits | None = None) -> Ledger:
    keys = (Key("k", "hash", key_limits or Limits()), Key("l", "other"))
    return Ledger([Tenant("t", keys, limits)], 0.0)


def taken(book: Ledger, tokens: int, now_s: float, key: str = "hash") -> Reservation:
    got = book.reserve(key, tokens, now_s)
    assert isinstance(got, Reservation), got
    return got


def refused(book: Ledger, tokens: int, now_s: float, key: str = "hash") -> Refused:
    got = book.reserve(key, tokens, now_s)
    assert isinstance(got, Refused)
    return got


def test_a_reservation_counts_until_it_is_settled() -> None:
    book = ledger(Limits(tokens_per_minute=100))
    first = taken(book, 70, 0.0)
    assert refused(book, 40, 1.0).reason == "limit_tokens_per_minute"
    book.settle(first, 20, 2.0)
    taken(book, 80, 3.0)


def test_what_a_request_did_cost_counts_in_the_minute_in_which_it_was_admitted() -> None:
    book = ledger(Limits(tokens_per_minute=100))
    first = taken(book, 10, 0.0)
    book.settle(first, 100, 30.0)
    why = refused(book, 1, 59.0)
    assert why.retry_after_s == 1
    taken(book, 100, 60.0)


def test_settling_after_the_window_changes_nothing() -> None:
    book = ledger(Limits(tokens_per_minute=100))
    first = taken(book, 50, 0.0)
    taken(book, 60, 61.0)
    book.settle(first, 0, 62.0)
    assert refused(book, 41, 62.0).message.startswith("tenant t has used 60 of 100 tokens per minute")


def test_a_reservation_is_given_back_once() -> None:
    book = ledger(Limits(concurrency=2, tokens_per_minute=100))
    first = taken(book, 50, 0.0)
    book.settle(first, 10, 0.0)
    book.settle(first, 10, 0.0)
    assert book.accounts["tenant t"].in_flight == 0
    assert book.accounts["tenant t"].windows["tokens_per_minute"].used == 10


def test_a_refused_request_holds_nothing() -> None:
    book = ledger(Limits(requests_per_minute=10, concurrency=9), Limits(tokens_per_minute=5))
    refused(book, 6, 0.0)
    assert book.accounts["tenant t"].in_flight == 0
    assert book.accounts["tenant t"].windows["requests_per_minute"].used == 0


def test_requests_and_concurrency_have_limits() -> None:
    book = ledger(Limits(requests_per_minute=2, concurrency=1))
    first = taken(book, 1, 0.0)
    assert refused(book, 1, 0.0).reason == "limit_concurrency"
    book.settle(first, 1, 0.0)
    book.settle(taken(book, 1, 0.0), 1, 0.0)
    assert refused(book, 1, 0.0).reason == "limit_requests_per_minute"


def test_the_keys_of_a_tenant_share_its_limit() -> None:
    book = ledger(Limits(tokens_per_minute=100), Limits(tokens_per_minute=60))
    taken(book, 60, 0.0)
    assert refused(book, 1, 0.0).message.startswith("key k of t")
    taken(book, 40, 0.0, "other")
    assert refused(book, 1, 0.0, "other").message.startswith("tenant t")


def test_a_request_larger_than_the_limit_is_told_that_it_can_never_pass() -> None:
    why = refused(ledger(Limits(tokens_per_minute=100)), 101, 0.0)
    assert why.retry_after_s == 0
    assert why.message == "the request may need 101 tokens; tenant t has 100 tokens per minute in all"


def test_an_unknown_key_is_not_limited() -> None:
    taken(ledger(Limits(tokens_per_minute=1)), 1000, 0.0, "nobody's")


def test_a_new_table_keeps_what_was_used() -> None:
    book = ledger(Limits(tokens_per_minute=100))
    first = taken(book, 80, 0.0)
    book.update([Tenant("t", (Key("k", "hash"),), Limits(tokens_per_minute=200, concurrency=1))])
    assert refused(book, 1, 0.0).reason == "limit_concurrency"
    book.settle(first, 80, 0.0)
    refused(book, 121, 0.0)
    taken(book, 120, 0.0)


def test_a_day_ends_at_midnight_of_its_time_zone() -> None:
    noon = datetime(2026, 3, 28, 12, tzinfo=UTC).timestamp()
    day, ends_s = midnights("Europe/Berlin", 0.0)(noon)
    assert datetime.fromtimestamp(ends_s, UTC) == datetime(2026, 3, 28, 23, tzinfo=UTC)
    # The day on which clocks go forward there has 23 hours.
    following, then_s = midnights("Europe/Berlin", 0.0)(ends_s)
    assert (following - day, then_s - ends_s) == (1, 23 * 3600)


def test_the_days_tokens_come_back_at_midnight_and_a_late_settlement_stays_in_its_day() -> None:
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    limits = Limits(tokens_per_day=100, time_zone="America/New_York")
    book = Ledger([Tenant("t", (Key("k", "hash"),), limits)], noon)  # a clock that began at noon UTC
    first = taken(book, 100, 0.0)
    assert refused(book, 1, 15 * 3600.0).retry_after_s == 3600  # midnight in New York is 04:00 UTC
    taken(book, 60, 16 * 3600.0)
    book.settle(first, 500, 16 * 3600.0)
    assert book.accounts["tenant t"].windows["tokens_per_day"].used == 60


def test_the_time_to_wait_is_until_enough_has_left_the_window() -> None:
    window = Rolling(100)
    window.add(30, 0.5)
    window.add(70, 10.0)
    assert window.wait_s(30, 20.0) == 40.0
    assert window.wait_s(31, 20.0) == 50.0


def test_a_broken_stream_costs_its_prompt_and_what_was_passed_on() -> None:
    assert actual_tokens(12, 30, 5, 400, 200) == 42
    assert actual_tokens(None, None, 5, 400, 200) == 105
    assert actual_tokens(None, None, 0, 400, 502) == 0
    assert estimate_tokens(400, 50) == 150


def test_several_routers_hold_equal_parts() -> None:
    tenants = [Tenant("t", (Key("k", "hash"),), Limits(tokens_per_minute=100, concurrency=1))]
    book = Ledger(tenants, 0.0, routers=3)
    assert book.accounts["tenant t"].windows["tokens_per_minute"].part == 33
    assert book.accounts["tenant t"].concurrency == 1
    taken(book, 33, 0.0)
    book.update(tenants, routers=1)
    assert book.accounts["tenant t"].windows["tokens_per_minute"].part == 100
