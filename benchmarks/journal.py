"""Durable events a second by batch size, and replay; beside plain SQLite with the same settings."""

from __future__ import annotations

import json
import sqlite3
import tempfile
import time
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


def sqlite_rate(path: Path, bodies: list[bytes], batch: int) -> float:
    """Return rows a second through SQLite alone: WAL, synchronous FULL."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE events (seq INTEGER PRIMARY KEY, at_s REAL, body BLOB, sum BLOB)")
    began_s = time.perf_counter()
    for start in range(0, len(bodies), batch):
        db.execute("BEGIN IMMEDIATE")
        rows = [(start + i + 1, 1.0, b, b"12345678") for i, b in enumerate(bodies[start : start + batch])]
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        db.execute("COMMIT")
    rate = len(bodies) / (time.perf_counter() - began_s)
    db.close()
    return rate


def main() -> None:
    """Measure appending and opening (which verifies every checksum)."""
    folder = Path(tempfile.mkdtemp(prefix="tide-bench-"))
    sample: Event = TaskStarted(TaskRef("training-run.17", 3, 123456), "machine-0042", 31337, 45678, 99)
    body = b"x" * 130  # as long as ours is encoded
    for batch, count in ((1, 1000), (10, 5000), (100, 30000), (1000, 100000)):
        plain = sqlite_rate(folder / f"plain{batch}.db", [body] * count, batch)
        ours = journal_rate(folder / f"ours{batch}.db", [sample] * count, batch)
        emit(f"journal_append_batch_{batch}", ours, "events/s", plain)
    began_s = time.perf_counter()
    journal = Journal(folder / "ours1000.db")
    emit("journal_open_and_verify", journal.last_seq / (time.perf_counter() - began_s), "events/s", None)
    began_s = time.perf_counter()
    count = sum(1 for _ in journal.records())
    emit("journal_decode", count / (time.perf_counter() - began_s), "events/s", None)
    journal.close()


if __name__ == "__main__":
    main()
