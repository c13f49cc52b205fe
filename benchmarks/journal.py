"""Durable events a second by batch size, commit latency at a stated load, and replay; beside plain SQLite.

The load: so many events a second arrive evenly and are committed in groups, one group as soon as the one
before is durable or the next few milliseconds' worth is there, whichever is later. An event's latency is from
its arrival to the end of its commit. Both sides use WAL with ``synchronous=FULL``. What one commit takes is
said beside it.
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tidecell.cell.journal import Journal
from tidecell.structs.messages import Event, TaskRef, TaskStarted


def emit(name: str, value: float, unit: str, baseline: float | None) -> None:
    """Print one result."""
    ratio = round(value / baseline, 3) if baseline else None
    base = round(baseline, 1) if baseline else None
    print(
        json.dumps({"name": name, "value": round(value, 1), "unit": unit, "baseline": base, "ratio": ratio})
    )


def journal_rate(path: Path, events: list[Event], batch: int) -> float:
    """Return events a second through the journal."""
    journal = Journal(path)
    began_s = time.perf_counter()
    for start in range(0, len(events), batch):
        journal.append(events[start : start + batch], 1.0)
    rate = len(events) / (time.perf_counter() - began_s)
    journal.close()
    return rate


def plain_sqlite(path: Path) -> sqlite3.Connection:
    """Return a database as the journal's: WAL, synchronous FULL."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, at_s REAL, body BLOB, sum BLOB)")
    return db


def insert(db: sqlite3.Connection, start: int, bodies: list[bytes]) -> None:
    """Commit rows numbered from ``start`` + 1."""
    db.execute("BEGIN IMMEDIATE")
    rows = [(start + i + 1, 1.0, b, b"12345678") for i, b in enumerate(bodies)]
    db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
    db.execute("COMMIT")


def sqlite_rate(path: Path, bodies: list[bytes], batch: int) -> float:
    """Return rows a second through SQLite alone."""
    db = plain_sqlite(path)
    began_s = time.perf_counter()
    for start in range(0, len(bodies), batch):
        insert(db, start, bodies[start : start + batch])
    rate = len(bodies) / (time.perf_counter() - began_s)
    db.close()
    return rate


def latencies(
    commit: Callable[[int, int], None], rate: float, group_s: float, seconds: float
) -> tuple[list[float], list[float]]:
    """Return the latency of each event, and of each commit, under an even load.

    Args:
        commit: Commits events numbered from one to another.
        rate: Events that arrive a second.
        group_s: How long the first event of a group waits for others.
        seconds: How long.
    """
    events, commits, done, total = [], [], 0, int(rate * seconds)
    began_s = time.perf_counter()
    while done < total:
        wait_s = began_s + done / rate + group_s - time.perf_counter()
        if wait_s > 0:
            time.sleep(wait_s)
        start_s = time.perf_counter()
        there = min(total, int((start_s - began_s) * rate))
        commit(done, there)
        end_s = time.perf_counter()
        commits.append(end_s - start_s)
        events += [end_s - began_s - number / rate for number in range(done, there)]
        done = there
    return events, commits


def show_latency(name: str, rate: float, group_s: float, found: tuple[list[float], list[float]]) -> None:
    """Print median, p99 and the longest of a run."""
    for what, values in zip(("event", "commit"), found, strict=True):
        values.sort()
        p50, p99 = (1000 * values[min(len(values) - 1, int(q * len(values)))] for q in (0.5, 0.99))
        row = {"name": f"{name}_{what}_latency_p99", "value": round(p99, 2), "unit": "ms"}
        row |= {"baseline": None, "ratio": None, "p50": round(p50, 2), "max": round(1000 * values[-1], 2)}
        print(json.dumps(row | {"events_s": rate, "group_ms": 1000 * group_s, "count": len(values)}))


def main() -> None:
    """Measure appending, latency under load, and opening (which verifies every checksum)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=20_000.0, help="events a second, for the latency")
    parser.add_argument("--group-ms", type=float, default=5.0, help="how long a group waits for more")
    parser.add_argument("--seconds", type=float, default=10.0, help="of that load")
    options = parser.parse_args()
    group_s = options.group_ms / 1000
    folder = Path(tempfile.mkdtemp(prefix="tide-bench-"))
    sample: Event = TaskStarted(TaskRef("training-run.17", 3, 123456), "machine-0042", 31337, 45678, 99)
    body = b"x" * 130  # as long as ours is encoded
    for batch, count in ((1, 1000), (10, 5000), (100, 30000), (1000, 100000)):
        plain = sqlite_rate(folder / f"plain{batch}.db", [body] * count, batch)
        ours = journal_rate(folder / f"ours{batch}.db", [sample] * count, batch)
        emit(f"journal_append_batch_{batch}", ours, "events/s", plain)
    journal, db = Journal(folder / "load.db"), plain_sqlite(folder / "plain-load.db")
    loads: tuple[tuple[str, Callable[[int, int], None]], ...] = (
        ("plain_sqlite", lambda start, end: insert(db, start, [body] * (end - start))),
        ("journal", lambda start, end: journal.append([sample] * (end - start), 1.0)),
    )
    for name, commit in loads:
        found = latencies(commit, options.rate, group_s, options.seconds)
        show_latency(name, options.rate, group_s, found)
    journal.close()
    db.close()
    began_s = time.perf_counter()
    journal = Journal(folder / "ours1000.db")
    emit("journal_open_and_verify", journal.last_seq / (time.perf_counter() - began_s), "events/s", None)
    began_s = time.perf_counter()
    count = sum(1 for _ in journal.records())
    emit("journal_decode", count / (time.perf_counter() - began_s), "events/s", None)
    journal.close()


if __name__ == "__main__":
    main()
