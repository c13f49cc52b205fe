"""The sample store: buffered, thinned, pruned, and never in its caller's way."""

from __future__ import annotations

import contextlib
import resource
import sqlite3
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tidecell.telemetry import COARSE_STEP_S, FINE_S, PRUNE_EVERY_S, SampleStore

NOW_S = 1_000_000.0
EVER = (0.0, 1e12)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.db"


@pytest.fixture
def store(path: Path) -> Iterator[SampleStore]:
    store = SampleStore(path)
    yield store
    store.close()


def fill(store: SampleStore, start_s: float, count: int, every_s: float = 1.0) -> None:
    for i in range(count):
        store.append(start_s + i * every_s, b"%d" % i)


def committed(path: Path) -> int:
    """Count what another process would see."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return int(db.execute("SELECT count(*) FROM samples").fetchone()[0])


@contextlib.contextmanager
def files_no_larger_than(num_bytes: int) -> Iterator[None]:
    """Let every write beyond a size fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_samples_come_back_in_order_of_time(store: SampleStore) -> None:
    for at_s in (3.0, 1.0, 2.0):
        store.append(at_s, b"at %d" % at_s)
    assert store.range(*EVER, 10) == [(1.0, b"at 1"), (2.0, b"at 2"), (3.0, b"at 3")]


def test_both_ends_of_a_range_are_included(store: SampleStore) -> None:
    fill(store, NOW_S, 10)
    assert [at_s - NOW_S for at_s, _ in store.range(NOW_S + 2, NOW_S + 4, 100)] == [2, 3, 4]


def test_a_second_sample_at_the_same_moment_replaces_the_first(store: SampleStore) -> None:
    store.append(NOW_S, b"old")
    store.append(NOW_S, b"new")
    assert store.range(*EVER, 10) == [(NOW_S, b"new")]


def test_samples_wait_five_seconds_for_their_commit(store: SampleStore, path: Path) -> None:
    fill(store, NOW_S, 5)
    assert committed(path) == 0
    assert len(store.range(*EVER, 100)) == 5, "what waits is readable here"
    store.append(NOW_S + 5, b"sixth")
    assert committed(path) == 6


def test_a_clock_that_was_set_back_does_not_hold_up_the_commit(store: SampleStore, path: Path) -> None:
    store.append(NOW_S, b"before")
    store.append(NOW_S - 3600, b"after")
    assert committed(path) == 2


def test_flush_commits(store: SampleStore, path: Path) -> None:
    store.append(NOW_S, b"x")
    store.flush()
    assert committed(path) == 1


def test_closing_commits_and_what_comes_later_is_dropped(path: Path) -> None:
    store = SampleStore(path)
    store.append(NOW_S, b"kept")
    store.close()
    store.append(NOW_S + 100, b"late")
    assert store.dropped == 1
    again = SampleStore(path)
    assert again.range(*EVER, 10) == [(NOW_S, b"kept")]
    again.close()


@pytest.mark.parametrize("max_points", [1, 2, 7, 60, 599, 600, 601])
def test_a_range_has_at_most_max_points_and_the_newest_one(store: SampleStore, max_points: int) -> None:
    fill(store, NOW_S, 600)
    points = store.range(*EVER, max_points)
    assert 1 <= len(points) <= max_points
    assert len(points) > max_points / 2 - 1
    assert points[-1] == (NOW_S + 599, b"599")


def test_thinned_samples_are_evenly_spaced(store: SampleStore) -> None:
    fill(store, NOW_S, 600)
    times = [at_s for at_s, _ in store.range(*EVER, 100)]
    gaps = {b - a for a, b in pairwise(times[:-1])}
    assert gaps == {7.0}


def test_asking_again_a_second_later_gives_the_same_points(store: SampleStore) -> None:
    fill(store, NOW_S, 700)
    first = store.range(NOW_S, NOW_S + 600, 100)
    second = store.range(NOW_S + 1, NOW_S + 601, 100)
    assert set(first[1:-1]) <= set(second)


def test_no_points_asked_or_none_there_gives_none(store: SampleStore) -> None:
    assert store.range(*EVER, 100) == []
    fill(store, NOW_S, 3)
    assert store.range(*EVER, 0) == []


def test_samples_beyond_their_retention_go(path: Path) -> None:
    store = SampleStore(path, retention_s=100.0)
    fill(store, NOW_S, 50)
    fill(store, NOW_S + PRUNE_EVERY_S, 20)
    oldest_s = store.range(*EVER, 1000)[0][0]
    assert oldest_s >= NOW_S + PRUNE_EVERY_S - 100
    store.close()


def test_samples_older_than_six_hours_are_kept_one_per_ten_seconds(store: SampleStore) -> None:
    fill(store, NOW_S, 1000)
    fill(store, NOW_S + FINE_S + 2000, 7)
    old = [at_s for at_s, _ in store.range(NOW_S, NOW_S + 999, 10_000)]
    assert {b - a for a, b in pairwise(old[:-1])} == {COARSE_STEP_S}
    assert len(store.range(NOW_S + FINE_S, NOW_S + FINE_S + 9999, 100)) == 7


def test_pruning_goes_on_until_all_that_is_old_is_gone(path: Path) -> None:
    store = SampleStore(path, retention_s=1000.0)
    fill(store, NOW_S, 9000, every_s=0.01)
    fill(store, NOW_S + 5000, 60)
    assert len(store.range(*EVER, 100_000)) == 60
    store.close()


def test_a_full_disk_drops_samples_counts_them_and_recovers(store: SampleStore, path: Path) -> None:
    fill(store, NOW_S, 10)
    store.flush()
    wal = path.with_name(path.name + "-wal")
    with files_no_larger_than(wal.stat().st_size):
        for i in range(60):
            store.append(NOW_S + 100 + i, b"x" * 2000)
        store.flush()
    assert store.dropped == 60
    assert store.trouble
    store.append(NOW_S + 200, b"room again")
    store.flush()
    assert committed(path) == 11
    assert store.moved_to is None


def test_a_file_that_is_no_database_is_moved_aside(path: Path) -> None:
    path.write_bytes(b"this is not a database" * 1000)
    store = SampleStore(path)
    store.append(NOW_S, b"x")
    assert store.range(*EVER, 10) == [(NOW_S, b"x")]
    assert store.moved_to == path.with_name("metrics.db.damaged")
    assert store.moved_to.read_bytes().startswith(b"this is not a database")
    store.close()


def test_damage_inside_the_file_is_found_on_reading_and_the_store_goes_on(path: Path) -> None:
    store = SampleStore(path)
    for i in range(500):
        store.append(NOW_S + i, b"y" * 1000)
    store.close()
    data = bytearray(path.read_bytes())
    data[8192 : len(data) - 4096] = b"\xa5" * (len(data) - 12288)
    path.write_bytes(data)
    store = SampleStore(path)
    store.range(*EVER, 10_000)
    store.append(NOW_S + 1000, b"after")
    assert store.moved_to is not None
    assert store.range(NOW_S + 1000, NOW_S + 1000, 10) == [(NOW_S + 1000, b"after")]
    store.close()


def test_a_directory_that_is_missing_drops_samples_until_it_is_there(tmp_path: Path) -> None:
    store = SampleStore(tmp_path / "later" / "metrics.db")
    store.append(NOW_S, b"dropped")
    assert store.dropped == 1
    assert store.range(*EVER, 10) == []
    (tmp_path / "later").mkdir()
    store.append(NOW_S + 60, b"kept")
    assert store.range(*EVER, 10) == [(NOW_S + 60, b"kept")]
    store.close()


def test_several_threads_may_use_it(store: SampleStore) -> None:
    def work(offset: int) -> None:
        for i in range(200):
            store.append(NOW_S + offset + 10 * i, b"z")
            store.range(NOW_S, NOW_S + 9999, 20)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store.range(*EVER, 10_000)) == 800
    assert store.dropped == 0
