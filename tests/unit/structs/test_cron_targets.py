"""When a schedule fires, and what it asks for after a pause."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from tidecell.structs.cron import MAX_TARGETS, Schedule, check_cron, due, next_target_s, run_name, zone

BERLIN = ZoneInfo("Europe/Berlin")


def at(text: str, zone: str = "UTC") -> float:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp()


@pytest.mark.parametrize(
    ("cron", "zone", "after", "then"),
    [
        ("0 3 * * *", "UTC", "2026-11-24 02:59:59", "2026-11-24 03:00"),
        ("0 3 * * *", "UTC", "2026-11-24 03:00", "2026-11-25 03:00"),
        ("*/15 9-17 * * 1-5", "UTC", "2026-11-27 17:45", "2026-11-30 09:00"),
        ("0 0 29 2 *", "UTC", "2026-01-01 00:00", "2028-02-29 00:00"),
        # Clocks go forward at 02:00 on 2026-03-29: the hour does not exist, it fires right after.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 03:00"),
    ],
)
def test_next_firing(cron: str, zone: str, after: str, then: str):
    assert next_target_s(cron, zone, at(after, zone)) == at(then, zone)


def test_a_fixed_hour_that_comes_twice_fires_once():
    first = next_target_s("30 2 * * *", "Europe/Berlin", at("2026-10-24 12:00", "Europe/Berlin"))
    second = next_target_s("30 2 * * *", "Europe/Berlin", first)
    assert second - first > 20 * 3600


def test_every_minute_fires_through_the_hour_that_comes_twice_and_names_differ():
    begin_s = at("2026-10-25 01:59", "Europe/Berlin")
    schedule = Schedule("30 * * * *", "Europe/Berlin")
    first = next_target_s(schedule.cron, schedule.timezone, begin_s)
    second = next_target_s(schedule.cron, schedule.timezone, first)
    assert second - first == 3600
    assert run_name("a", schedule, first) == "a-20261025T0230"
    assert run_name("a", schedule, second) == "a-20261025T0230b"


@pytest.mark.parametrize("cron", ["0 3 * *", "61 * * * *", "0 0 31 2 *", "a b c d e"])
def test_expressions_that_mean_nothing_are_told_so(cron: str):
    assert check_cron(cron)


def test_a_zone_that_does_not_exist_is_an_error():
    for name in ("Nowhere/Atall", "../etc/passwd", ""):
        with pytest.raises(ValueError, match="no time zone is called"):
            zone(name)


def test_what_is_a_minute_late_is_on_time_and_what_is_older_is_missed():
    through, now = at("2026-11-24 00:00"), at("2026-11-24 03:00:30")
    hourly = Schedule("0 * * * *")
    found = due(hourly, through, now)
    assert found is not None
    assert (found.targets, found.late, found.skipped) == ((at("2026-11-24 03:00"),), 0, 2)
    assert found.through_s == now


def test_catching_up_starts_the_last_or_all_of_what_was_missed():
    through, now = at("2026-11-20 00:00"), at("2026-11-24 03:30")
    last = due(Schedule("0 * * * *", catch_up="last"), through, now)
    assert last is not None
    assert (last.targets, last.late, last.skipped) == ((at("2026-11-24 03:00"),), 1, 98)
    every = due(Schedule("0 * * * *", catch_up="all"), through, now)
    assert every is not None
    assert (len(every.targets), every.late, every.skipped) == (99, 99, 0)


def test_the_last_of_a_yearly_schedule_is_found_without_counting_to_it():
    found = due(Schedule("0 0 1 1 *", catch_up="last"), at("1990-06-01 00:00"), at("2026-11-24 00:00"))
    assert found is not None
    assert found.targets == (at("2026-01-01 00:00"),)


def test_all_of_a_long_pause_is_dealt_out_in_parts():
    through, now = at("2026-11-01 00:00"), at("2026-11-24 00:00")
    schedule = Schedule("* * * * *", catch_up="all")
    found = due(schedule, through, now)
    assert found is not None
    assert len(found.targets) == MAX_TARGETS
    following = due(schedule, found.through_s, now)
    assert following is not None
    assert following.targets[0] == found.targets[-1] + 60


def test_nothing_is_due_between_firings():
    assert due(Schedule("0 3 * * *"), at("2026-11-24 03:00"), at("2026-11-25 02:59")) is None
