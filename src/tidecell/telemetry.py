"""Samples for charts: one blob per moment in SQLite, thinned with age.

Knows nothing of what a sample says. Samples are not precious, so nothing here ever raises to its
caller: a full disk drops samples and counts them, a damaged file is moved aside and begun anew.

WAL with ``synchronous=NORMAL``; rows wait in an open transaction that is committed about every five
seconds, so a power cut costs a few points of a chart and a running cell hardly touches the disk.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
import sys
import threading
from pathlib import Path

RETENTION_S = 7 * 86400.0
COMMIT_EVERY_S = 5.0
PRUNE_EVERY_S = 600.0
RETRY_EVERY_S = 30.0  # how often a store that could not be opened is tried again
# One sample a second for a week is some 500 MB; one per 10 s after six hours is some 60 MB.
FINE_S = 6 * 3600.0
COARSE_STEP_S = 10.0
PRUNE_BATCH = 2000  # rows deleted at a time, some 10 ms

_SCHEMA = "CREATE TABLE IF NOT EXISTS samples (at_s REAL PRIMARY KEY, body BLOB NOT NULL)"
_SPARE = """
DELETE FROM samples WHERE at_s IN (
  SELECT at_s FROM samples WHERE at_s >= ?1 AND at_s < ?2 AND at_s NOT IN (
    SELECT max(at_s) FROM samples WHERE at_s >= ?1 AND at_s < ?2 GROUP BY CAST(at_s / ?3 AS INTEGER))
  ORDER BY at_s LIMIT ?4)
"""


class SampleStore:
    """Timed blobs in one SQLite file. Safe to use from several threads.

    Attributes:
        dropped: How many samples could not be stored since the store was made.
        trouble: The last thing that went wrong, in SQLite's words; empty: nothing.
        moved_to: Where a damaged file was moved, or None.
    """

    def __init__(self, path: Path, retention_s: float = RETENTION_S) -> None:
        """Open or create the store; a file that cannot be opened is tried again later.

        Args:
            path: The file; its directory must exist.
            retention_s: How long samples are kept.
        """
        self.path = path
        self.retention_s = retention_s
        self.dropped = 0
        self.trouble = ""
        self.moved_to: Path | None = None
        self._lock = threading.Lock()
        self._num_pending = 0
        self._pending_since_s = 0.0
        self._prune_at_s = 0.0
        self._thinned_until_s = 0.0
        self._retry_at_s = 0.0
        self._db: sqlite3.Connection | None = None
        self._open()

    # ------------------------------------------------------------------------------ writing

    def append(self, at_s: float, body: bytes) -> None:
        """Store one sample; a second one at the same moment replaces the first."""
        with self._lock:
            db = self._db or self._reopen(at_s)
            if db is None:
                self.dropped += 1
                return
            if not self._insert(db, at_s, body):
                return
            if not 0 <= at_s - self._pending_since_s < COMMIT_EVERY_S:  # also when the clock was set back
                self._commit()
                self._prune_if_due(at_s)

    def flush(self) -> None:
        """Commit what waits."""
        with self._lock:
            self._commit()

    def close(self) -> None:
        """Commit what waits and close the file; appending afterwards drops."""
        with self._lock:
            self._commit()
            self._retry_at_s = math.inf
            self._drop_connection()

    def _insert(self, db: sqlite3.Connection, at_s: float, body: bytes) -> bool:
        try:
            if not db.in_transaction:
                db.execute("BEGIN IMMEDIATE")
                self._num_pending, self._pending_since_s = 0, at_s
            db.execute("INSERT OR REPLACE INTO samples VALUES (?, ?)", (at_s, body))
        except sqlite3.Error as error:
            self._num_pending += 1
            self._give_up(error)
            return False
        self._num_pending += 1
        return True

    def _commit(self) -> None:
        if self._db is None or not self._db.in_transaction:
            return
        try:
            self._db.execute("COMMIT")
            self._num_pending = 0
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Count what waits as dropped; begin anew where the file is damaged."""
        self.trouble = str(error)
        self.dropped += self._num_pending
        self._num_pending = 0
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
        if _is_damage(error):
            self._begin_anew()

    def _prune_if_due(self, now_s: float) -> None:
        """Delete what is too old and thin what is old, a batch at a time."""
        if self._db is None or self._prune_at_s - PRUNE_EVERY_S <= now_s < self._prune_at_s:
            return
        fine_from_s = now_s - FINE_S
        # The last coarse step may still be incomplete: look at it again next time.
        thin = (self._thinned_until_s - COARSE_STEP_S, fine_from_s, COARSE_STEP_S, PRUNE_BATCH)
        old = "DELETE FROM samples WHERE at_s IN (SELECT at_s FROM samples WHERE at_s < ? LIMIT ?)"
        try:
            num_gone = self._db.execute(old, (now_s - self.retention_s, PRUNE_BATCH)).rowcount
            num_spare = self._db.execute(_SPARE, thin).rowcount
        except sqlite3.Error as error:
            self._give_up(error)
            return
        if max(num_gone, num_spare) < PRUNE_BATCH:
            self._thinned_until_s, self._prune_at_s = fine_from_s, now_s + PRUNE_EVERY_S

    # ------------------------------------------------------------------------------ reading

    def range(self, since_s: float, until_s: float, max_points: int) -> list[tuple[float, bytes]]:
        """Return the samples of ``since_s`` to ``until_s`` (both included), oldest first.

        Where there are more than ``max_points``, the newest of each equal step of time is taken. Steps
        lie on a fixed grid of whole seconds, so that a chart that asks again does not shimmer. The
        newest sample is always among them. Samples that were not committed yet are included.
        """
        with self._lock:
            if self._db is None or max_points < 1:
                return []
            try:
                return self._range(self._db, since_s, until_s, max_points)
            except sqlite3.Error as error:
                self._give_up(error)
                return []

    def _range(
        self, db: sqlite3.Connection, since_s: float, until_s: float, max_points: int
    ) -> list[tuple[float, bytes]]:
        count, first_s, last_s = db.execute(
            "SELECT count(*), min(at_s), max(at_s) FROM samples WHERE at_s BETWEEN ? AND ?",
            (since_s, until_s),
        ).fetchone()
        if not count:
            return []
        if max_points == 1:
            since_s = last_s
        if count <= max_points or max_points == 1:
            rows = db.execute(
                "SELECT at_s, body FROM samples WHERE at_s BETWEEN ? AND ? ORDER BY at_s", (since_s, until_s)
            )
        else:
            rows = db.execute(
                "SELECT at_s, body FROM samples WHERE at_s IN (SELECT max(at_s) FROM samples"
                " WHERE at_s BETWEEN ? AND ? GROUP BY CAST(at_s / ? AS INTEGER)) ORDER BY at_s",
                (since_s, until_s, _step_s(last_s - first_s, max_points)),
            )
        return [(float(at_s), bytes(body)) for at_s, body in rows]

    # ------------------------------------------------------------------------------ opening

    def _open(self) -> None:
        try:
            self._db = self._connect()
        except sqlite3.Error as error:
            self.trouble = str(error)
            if _is_damage(error):
                self._begin_anew()

    def _reopen(self, now_s: float) -> sqlite3.Connection | None:
        if now_s >= self._retry_at_s:
            self._retry_at_s = now_s + RETRY_EVERY_S
            self._open()
        return self._db

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=1.0)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=NORMAL")
            db.execute(_SCHEMA)
            db.execute("SELECT at_s FROM samples ORDER BY at_s DESC LIMIT 1").fetchone()
        except BaseException:
            db.close()
            raise
        with contextlib.suppress(OSError):
            self.path.chmod(0o600)
        return db

    def _drop_connection(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = None

    def _begin_anew(self) -> None:
        """Move a damaged file aside (the newest one is kept) and open a fresh one."""
        self._drop_connection()
        aside = self.path.with_name(f"{self.path.name}.damaged")
        try:
            for suffix in ("-wal", "-shm"):
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
            self.path.replace(aside)
            self.moved_to = aside
            self._db = self._connect()
        except (OSError, sqlite3.Error) as error:
            self.trouble = str(error)


def _is_damage(error: sqlite3.Error) -> bool:
    """Tell a malformed file from a full disk, a lock or missing rights (all OperationalError)."""
    return isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)


def _step_s(span_s: float, max_points: int) -> float:
    """Return the width of a step so that a span has at most ``max_points``, wherever the grid falls."""
    step_s = span_s / max(1, max_points - 1)
    return float(math.ceil(step_s)) if step_s > 1 else step_s


def log_line(text: str) -> None:
    """Print a line to standard error; never raises: a full disk under the log must not end a process."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
