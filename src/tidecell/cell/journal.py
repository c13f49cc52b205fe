"""The journal: an append-only log of events in SQLite, checksummed record by record, with snapshots.

WAL with ``synchronous=FULL``: what ``append`` returned from survives a power cut. One call writes a
whole batch in one transaction (group commit). Every record's checksum covers the one before it, so a
missing or altered record is found as surely as a damaged one; everything from the first bad record on
is moved aside on opening, never used and never deleted: a truncated journal gives a prefix of history.

The measurements behind these choices are in docs/adr/0002-journal.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tidecell.cell.log import Record
from tidecell.cell.state import CellState, apply, decode_state, encode_state
from tidecell.structs.errors import JournalError, JournalFull
from tidecell.structs.messages import AnyEvent, Event
from tidecell.structs.resources import GPU

FORMAT = 2  # 2: requests count thousandths of accelerators
SNAPSHOT_EVERY = 5000  # events; replay reads some 50,000 a second
EVENT_BYTES = 200  # of an event in the journal, about
_GENESIS = b"tidecell"
# What SQLite answers for a damaged file; ERROR covers an unsupported file format and a garbled schema.
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY, at_s REAL NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
  seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL);
"""

# Format 1 wrote whole accelerators into resource vectors; lists of devices had, and have, the same key.
_WHOLE_ACCELERATORS = re.compile(rb'"accelerators":([0-9]+)')

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


@dataclass(frozen=True)
class Repair:
    """What opening had to move aside.

    Attributes:
        first_bad_seq: Number of the first record that was not used.
        num_records: How many records were moved aside (0 if they could not be counted).
        kept_at: File that holds what was moved.
        why: What was wrong.
    """

    first_bad_seq: int
    num_records: int
    kept_at: Path
    why: str


def _sum(chain: bytes, seq: int, at_s: float, body: bytes) -> bytes:
    """Return a record's checksum, which covers the one before it."""
    return _link(chain, seq, repr(at_s).encode(), body)


def _link(chain: bytes, seq: int, at: bytes, body: bytes) -> bytes:
    """Return a record's checksum, with its time as it is written."""
    return hashlib.blake2b(b"%b%d:%b:%b" % (chain, seq, at, body), digest_size=8).digest()


def _follows(chain: bytes, row: tuple[Any, ...]) -> bool:
    """Whether a record as SQLite returned it, of whatever types, belongs after this chain."""
    seq, at_s, body, check = row
    right_types = isinstance(at_s, float) and isinstance(body, bytes) and isinstance(check, bytes)
    return right_types and _sum(chain, seq, at_s, body) == check


def upgrade(body: bytes) -> bytes:
    """Return a record or snapshot of any earlier format as the present one would have been written."""
    if b'"accelerators":' not in body:
        return body
    return _WHOLE_ACCELERATORS.sub(lambda found: b'"gpu_millis":%d' % (int(found[1]) * GPU), body)


class _Damaged(Exception):
    """SQLite cannot make sense of the file."""


class Journal:
    """The event log of one cell.

    Attributes:
        repair: What opening had to move aside, or None.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal; check every record.

        Raises:
            JournalError: The format is newer than this program, or the file cannot be opened.
        """
        self.path = path
        self.repair: Repair | None = None
        self._chain = _GENESIS
        self._last_seq = 0
        self._last_snapshot_seq = 0
        self._due_after = SNAPSHOT_EVERY
        try:
            self._db = self._open()
        except _Damaged as damage:
            self._rescue(str(damage))
            self._db = self._open()

    # ------------------------------------------------------------------------------ opening

    def _open(self) -> sqlite3.Connection:
        """Connect and check everything; raise _Damaged if SQLite itself cannot make sense of the file."""
        db: sqlite3.Connection | None = None
        try:
            db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
            self._check_format(db)
            self._check_structure(db)
            self._check_chain(db)
            db.execute("SELECT seq, chain, body, sum FROM snapshots LIMIT 1")
            db.execute("BEGIN IMMEDIATE")
            db.execute("DELETE FROM events WHERE seq < 0")  # nothing; but may it be written?
            db.execute("ROLLBACK")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            if db is not None:
                db.close()
            if self._is_damage(error):
                raise _Damaged(str(error)) from error
            raise self._unusable(error) from error
        except BaseException:
            if db is not None:
                db.close()
            raise
        self.path.chmod(0o600)
        return db

    def _is_damage(self, error: sqlite3.Error | UnicodeDecodeError) -> bool:
        if isinstance(error, UnicodeDecodeError):  # SQLite quotes damaged bytes in its messages
            return True
        code = error.sqlite_errorcode & 0xFF
        if code == sqlite3.SQLITE_READONLY:  # a flag in the file's header, or really not ours to write
            return os.access(self.path, os.W_OK) and os.access(self.path.parent, os.W_OK)
        return code in _DAMAGED

    def _unusable(self, error: Exception) -> JournalError:
        text = str(error)
        if "full" in text or "disk I/O" in text:
            return JournalFull(
                f"the journal {self.path} cannot be written: {text}",
                "free some space on that disk; the cell goes on by itself",
            )
        return JournalError(
            f"the journal {self.path} cannot be opened: {text}",
            "check that the directory exists and is yours",
        )

    def _check_format(self, db: sqlite3.Connection) -> None:
        row = db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if row is None:
            db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        elif not str(row[0]).isdecimal():
            raise _Damaged(f"its format is {row[0]!r}")
        elif int(row[0]) > FORMAT:
            raise JournalError(
                f"the journal {self.path} has format {row[0]}; this program reads up to {FORMAT}",
                "use the Tidecell version that wrote it, or a newer one",
            )
        elif int(row[0]) < FORMAT:  # read through `upgrade`; earlier programs must not read what is added now
            db.execute("UPDATE meta SET value = ? WHERE key = 'format'", (str(FORMAT),))

    def _check_structure(self, db: sqlite3.Connection) -> None:
        """Let SQLite check its pages: a checksum of ours sees only what SQLite can still find."""
        verdict = db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise _Damaged(str(verdict).splitlines()[0])

    def _check_chain(self, db: sqlite3.Connection) -> None:
        """Walk the whole chain; move aside what begins with the first record that does not follow."""
        expected, chain, why = 1, _GENESIS, ""
        for row in db.execute("SELECT seq, at_s, body, sum FROM events ORDER BY seq"):
            if row[0] != expected:
                why = f"record {expected} is missing"
            elif not _follows(chain, row):
                why = f"record {expected} does not match its checksum"
            if why:
                break
            chain, expected = row[3], expected + 1
        self._chain, self._last_seq = chain, expected - 1
        if why:
            self._set_aside(db, expected, why)
        newest = "SELECT max(seq), length(body) FROM snapshots WHERE seq <= ?"
        row = db.execute(newest, (self._last_seq,)).fetchone()
        self._last_snapshot_seq = row[0] or 0
        self._due_after = self._pause(int(row[1] or 0))

    def _set_aside(self, db: sqlite3.Connection, first_bad_seq: int, why: str) -> None:
        """Copy the bad tail into a file of its own, then take it out of the journal."""
        kept_at = self.path.with_name(f"{self.path.name}.tail-{first_bad_seq}-{int(time.time() * 1000)}")
        bad = "seq < 1 OR seq >= ?"
        db.execute("ATTACH ? AS aside", (str(kept_at),))
        db.execute(f"CREATE TABLE aside.events AS SELECT * FROM events WHERE {bad}", (first_bad_seq,))
        count = int(db.execute("SELECT count(*) FROM aside.events").fetchone()[0])
        db.execute("DETACH aside")
        db.execute("BEGIN")
        db.execute(f"DELETE FROM events WHERE {bad}", (first_bad_seq,))
        db.execute("DELETE FROM snapshots WHERE seq >= ?", (first_bad_seq,))
        db.execute("COMMIT")
        self.repair = self.repair or Repair(first_bad_seq, count, kept_at, why)

    def _rescue(self, why: str) -> None:
        """Move a file that SQLite cannot make sense of aside; carry over the records that hold."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time() * 1000)}")
        records = self._readable_records()
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.executescript(_SCHEMA)
            db.execute("BEGIN")
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", records)
            db.execute("COMMIT")
        self.repair = Repair(len(records) + 1, 0, aside, why)

    def _readable_records(self) -> list[tuple[int, float, bytes, bytes]]:
        """Return the records that can be read and follow one another, from the first on."""
        rows: list[tuple[int, float, bytes, bytes]] = []
        chain = _GENESIS
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(self.path)) as db,
        ):
            for row in db.execute("SELECT seq, at_s, body, sum FROM events ORDER BY seq"):
                if row[0] != len(rows) + 1 or not _follows(chain, row):
                    break
                rows.append(row)
                chain = row[3]
        return rows

    # ------------------------------------------------------------------------------ writing

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._last_seq

    def append(self, events: Sequence[Event], at_s: float) -> None:
        """Write events durably, all or none.

        Raises:
            JournalFull: No space is left; nothing was written.
            JournalError: The write failed otherwise; nothing was written.
        """
        if not events:
            return
        rows, chain, seq, at = [], self._chain, self._last_seq, repr(at_s).encode()
        for event in events:
            seq += 1
            body = _encoder.encode(event)
            chain = _link(chain, seq, at, body)
            rows.append((seq, at_s, body, chain))
        self._write("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
        self._chain, self._last_seq = chain, seq

    def _write(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany(statement, rows)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise self._unusable(error) from error

    def snapshot_due(self) -> bool:
        """Return whether so much was written since the last snapshot that the next is due."""
        return self._last_seq - self._last_snapshot_seq >= self._due_after

    @staticmethod
    def _pause(num_bytes: int) -> int:
        """Return how many events follow a snapshot of that size before the next.

        A snapshot costs what the cell is large. So the next comes once the events since weigh as much: on a
        large, busy cell they would else be written every quarter of a second and take longer than the events.
        """
        return max(SNAPSHOT_EVERY, num_bytes // EVENT_BYTES)

    def write_snapshot(self, state: CellState) -> None:
        """Store the state as of the newest record; keeps the last two snapshots.

        Raises:
            JournalError: The state is not that of the newest record, or the write failed.
        """
        if state.seq != self._last_seq:
            raise JournalError(f"state at {state.seq} is not that of the newest record, {self._last_seq}")
        body = encode_state(state)
        row = (state.seq, self._chain, body, _sum(self._chain, state.seq, 0.0, body))
        self._write("INSERT OR REPLACE INTO snapshots VALUES (?, ?, ?, ?)", [row])
        keep = "DELETE FROM snapshots WHERE seq NOT IN (SELECT seq FROM snapshots ORDER BY seq DESC LIMIT 2)"
        self._db.execute(keep)
        self._last_snapshot_seq, self._due_after = state.seq, self._pause(len(body))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # ------------------------------------------------------------------------------ reading

    def replay(self, use_snapshot: bool = True) -> CellState:
        """Return the state that the journal leads to.

        Args:
            use_snapshot: False rebuilds from the first event on, to check the snapshots.
        """
        state = self._newest_snapshot() if use_snapshot else CellState()
        for record in self.records(after=state.seq):
            apply(state, record.event, record.at_s)
        return state

    def _newest_snapshot(self) -> CellState:
        rows = self._db.execute(
            "SELECT seq, chain, body, sum FROM snapshots WHERE seq <= ? ORDER BY seq DESC", (self._last_seq,)
        ).fetchall()
        for seq, chain, body, check in rows:
            if isinstance(chain, bytes) and _follows(chain, (seq, 0.0, body, check)):
                with contextlib.suppress(msgspec.DecodeError):
                    return decode_state(upgrade(body))
        return CellState()

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        """Yield records with a number above ``after``, oldest first."""
        rows = self._db.execute(
            "SELECT seq, at_s, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        for seq, at_s, body in rows:
            yield Record(seq, at_s, _decoder.decode(upgrade(body)))


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a journal that somebody else writes, oldest first; check and change nothing.

    For another thread or process than the one that owns the journal.
    """
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        for seq, at_s, body in db.execute("SELECT seq, at_s, body FROM events ORDER BY seq"):
            yield Record(seq, at_s, _decoder.decode(upgrade(body)))


__all__ = ["FORMAT", "SNAPSHOT_EVERY", "Journal", "Record", "Repair", "read_records"]
