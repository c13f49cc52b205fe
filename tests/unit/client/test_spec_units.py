"""Durations, sizes and the other values that people type."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidecell.client.units import (
    UnitError,
    format_duration,
    format_size,
    parse_cpu,
    parse_duration,
    parse_env,
    parse_gpu,
    parse_memory,
    parse_preemption,
    parse_priority,
    parse_replicas,
    parse_size,
)
from tidecell.structs.job import Band, Preemption, Priority, Replicas


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (30, 30),
        ("30", 30),
        (0.5, 0.5),
        ("10m", 600),
        ("1h30m", 5400),
        ("2d", 172800),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("0", 0),
    ],
)
def test_durations(text: object, seconds: float):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "bad", ["", "x", "10 m", "m", "-3", -3, True, None, [], "nan", "inf", float("inf"), "1h 2m", "9" * 50]
)
def test_what_is_no_duration_is_refused(bad: object):
    with pytest.raises(UnitError):
        parse_duration(bad)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (5, 5),
        ("64GB", 64 * 10**9),
        ("64GiB", 64 << 30),
        ("1.5 KiB", 1536),
        ("512mib", 512 << 20),
        ("7B", 7),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes(text: object, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("bad", ["64G", "64Gi", "64k", "GB", "-1", "1e99GB", "", None, True, "5 gigs"])
def test_what_is_no_size_or_unclear_is_refused(bad: object):
    with pytest.raises(UnitError):
        parse_size(bad)


def test_memory_without_a_unit_is_surely_a_mistake():
    with pytest.raises(UnitError) as caught:
        parse_memory(64)
    assert caught.value.render() == (
        "error: 64 is 64 bytes, less than a program needs\n\nhint: give a unit, for example 64GB"
    )
    assert parse_memory(0) == 0


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("H100:8", ("H100", 8000)),
        ("H100", ("H100", 1000)),
        ("2", ("", 2000)),
        (1, ("", 1000)),
        (0, ("", 0)),
        ("rtx-4090:1", ("rtx-4090", 1000)),
    ],
)
def test_accelerators(text: object, result: tuple[str, int]):
    assert parse_gpu(text) == result


@pytest.mark.parametrize(
    "bad", ["H100:0", "H100:", ":3", "H100:x", "H 100", -1, 1.5, None, True, "", "a:b:c"]
)
def test_what_is_no_accelerator_is_refused(bad: object):
    with pytest.raises(UnitError):
        parse_gpu(bad)


@pytest.mark.parametrize(("text", "millis"), [(8, 8000), (0.5, 500), ("0.25", 250), ("500m", 500), ("1m", 1)])
def test_cores(text: object, millis: int):
    assert parse_cpu(text) == millis


@pytest.mark.parametrize("bad", [0, -1, "0m", 0.0001, "1.5m", "x", None, True, "1e12"])
def test_what_is_no_number_of_cores_is_refused(bad: object):
    with pytest.raises(UnitError):
        parse_cpu(bad)


@pytest.mark.parametrize(
    ("text", "priority"),
    [
        ("batch", Priority(Band.BATCH)),
        ("batch+5", Priority(Band.BATCH, 5)),
        ("best-effort-1", Priority(Band.BEST_EFFORT, -1)),
        ("Production", Priority(Band.PRODUCTION)),
    ],
)
def test_priorities(text: str, priority: Priority):
    assert parse_priority(text) == priority
    assert parse_priority(str(priority)) == priority


@pytest.mark.parametrize("bad", ["high", "batch+", "batch5", "+5", "", 5, None, "batch+99999999"])
def test_what_is_no_priority_is_refused(bad: object):
    with pytest.raises(UnitError):
        parse_priority(bad)


def test_replicas_in_every_form():
    assert parse_replicas(3) == Replicas(3, 3)
    assert parse_replicas("3") == Replicas(3, 3)
    assert parse_replicas("2..8") == Replicas(2, 8)
    assert parse_replicas({"min": 2, "max": 8}) == Replicas(2, 8)
    assert parse_replicas({"max": 8}) == Replicas(1, 8)
    assert parse_replicas({"min": 2}) == Replicas(2, 2)
    assert parse_replicas("0..4") == Replicas(0, 4)


def test_run_ai_words_for_preemption():
    assert parse_preemption("semi-preemptible") is Preemption.ABOVE_MIN
    assert parse_preemption("preemptible") is Preemption.ANY
    assert parse_preemption("non-preemptible") is Preemption.NEVER


def test_environment_from_the_command_line():
    assert parse_env("A=b=c") == ("A", "b=c")
    assert parse_env("A=") == ("A", "")
    for bad in ("A", "=b", "1A=b", "PORT=1", "TIDECELL_X=1", "A=\0"):
        with pytest.raises(UnitError):
            parse_env(bad)


@given(st.integers(0, (1 << 60) - 1))
def test_a_formatted_size_reads_back_exactly(size: int):
    assert parse_size(format_size(size)) == size


@given(
    st.one_of(
        st.integers(0, 10**8).map(float), st.integers(0, 10**8).map(lambda n: n / 1000), st.floats(0, 1e8)
    )
)
def test_a_formatted_duration_reads_back_exactly(seconds: float):
    assert parse_duration(format_duration(seconds)) == seconds
