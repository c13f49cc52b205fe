"""What a spec says about arrays and sweeps, and what it is told when it is wrong."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tidecell.client.schema import parse_specs
from tidecell.structs.cron import Schedule
from tidecell.structs.errors import SpecError
from tidecell.structs.job import JobSpec, Replicas
from tidecell.structs.work import Array


def read(text: str, name: str = "name: a\nrun: x\n") -> JobSpec:
    return parse_specs(name + text, "x.yaml", Path("/"))[0]


def mistakes(text: str, name: str = "name: a\nrun: x\n") -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(text, name)
    return [f"{m.line}: {m.where}: {m.message} | {m.hint}" for m in caught.value.mistakes]


@pytest.mark.parametrize(
    ("text", "array", "parallel"),
    [
        ("array: 100%10", Array(100), 10),
        ("array: 7", Array(7), 7),
        ("array: {count: 100, parallel: 10}", Array(100), 10),
        ("array: {count: 5, parallel: 10}", Array(5), 5),
        (
            "array: {sweep: {lr: [0.1, 1e-3], bs: [8, 16]}, parallel: 3}",
            Array(4, {"lr": ("0.1", "1e-3"), "bs": ("8", "16")}),
            3,
        ),
        (
            "array: {sweep: {lr: [1, 2, 3]}, samples: 2, seed: 5}",
            Array(2, {"lr": ("1", "2", "3")}, 2, 5),
            2,
        ),
    ],
)
def test_arrays_and_sweeps_are_read(text: str, array: Array, parallel: int):
    spec = read(text)
    assert (spec.array, spec.replicas) == (array, Replicas(0, parallel))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("array: ten", "3: array: 'ten' is no array | write COUNT or COUNT%PARALLEL: 100, 100%10"),
        ("array: 0", "3: array: an array of 0 items; 1 to 100000 are allowed | split it into several"),
        ("array: {parallel: 3}", "3: array.count: is missing | give count: N, or sweep: {name: [values]}"),
        (
            "array: {count: 3, seed: 1}",
            "3: array.seed: is for sweeps only | take it out, or give sweep: {name: [values]}",
        ),
        (
            "array: {sweep: {lr: [1, 2]}, samples: 3}",
            "3: array.samples: 3 of a grid of 2 points | give 2 or fewer",
        ),
        (
            "array: {sweep: {lr: 1}}",
            "3: array.sweep: lr has no list of values | write lr: [a, b]",
        ),
        (
            "array: {sweep: {PORT: [1]}}",
            "3: array.sweep: PORT is set by Tidecell for every task | choose another name",
        ),
        (
            "array: 3\nreplicas: 2",
            "4: replicas: an array's items are its replicas | say array: {parallel: N}",
        ),
    ],
)
def test_mistakes_in_arrays_say_what_to_do(text: str, said: str):
    assert mistakes(text) == [said]


def test_a_service_is_no_array():
    said = mistakes("array: 3", "name: a\nkind: service\nrun: x\n")
    assert said == ["4: array: is for jobs that end | take it out, or give the service replicas"]


def test_begin_is_a_moment_or_a_time_from_now():
    assert read("begin: 2026-11-24T03:00+01:00").begin_s == 1795485600.0
    soon = read("begin: +10m").begin_s
    assert 590 < soon - time.time() <= 600


def test_a_schedule_is_an_expression_or_a_mapping():
    assert read('schedule: "0 3 * * *"').schedule == Schedule("0 3 * * *")
    text = 'schedule: {cron: "0  3 * * MON", timezone: Europe/Berlin, overlap: queue, catch_up: last}'
    assert read(text).schedule == Schedule("0 3 * * MON", "Europe/Berlin", "queue", "last")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "begin: soon",
            "3: begin: 'soon' is no time | "
            "write +10m, or a date and time: 2026-11-24 03:00, 2026-11-24T03:00+01:00",
        ),
        ("hold: maybe", "3: hold: 'maybe' is not true or false | "),
        (
            'schedule: "0 3 * *"',
            "3: schedule: '0 3 * *': has 4 fields; cron has 5: minute, hour, day, month, day of week | "
            'minute, hour, day, month, day of week: "0 3 * * *"',
        ),
        (
            'schedule: {cron: "0 0 30 2 *"}',
            "3: schedule.cron: '0 0 30 2 *': Bad day-of-month | "
            'minute, hour, day, month, day of week: "0 3 * * *"',
        ),
        (
            'schedule: {cron: "0 3 * * *", timezone: Mars/Base}',
            "3: schedule.timezone: no time zone is called 'Mars/Base' | "
            "write it as in the tz database: Europe/Berlin, UTC",
        ),
        (
            'schedule: {cron: "0 3 * * *", overlap: skp}',
            "3: schedule.overlap: 'skp' is not one of skip, queue, replace | did you mean 'skip'?",
        ),
        (
            'begin: +1m\nschedule: "0 3 * * *"',
            "3: begin: says when to start, and so does schedule | take one of them out",
        ),
    ],
)
def test_mistakes_about_time_say_what_to_do(text: str, said: str):
    assert mistakes(text) == [said]


def test_the_name_of_a_schedule_leaves_room_for_the_time():
    said = mistakes('schedule: "0 3 * * *"', f"name: {'a' * 60}\nrun: x\n")
    hint = "use at most 48 characters: each run's name has the time behind it"
    assert said == [f"1: name: has 60 characters | {hint}"]
