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
from tidecell.cell.retention import Base, fold
from tidecell.cell.state import CellState, apply, decode_state, encode_state
from tidecell.structs.errors import JournalError, JournalFull
from tidecell.structs.messages import AnyEvent, Event
from tidecell.structs.resources import GPU

FORMAT = 3  # 2: requests count thousandths of accelerators; 3: the oldest events may be folded into a base
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
CREATE TABLE IF NOT EXISTS base (
  seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, at_s REAL NOT NULL, state BLOB NOT NULL,
  usage BLOB NOT NULL, sum BLOB NOT NULL);
"""
WALK_RECORDS = 250_000  # at opening the chain is walked over at least so many of the newest records, or all
SWEEP_RECORDS = 20_000  # folded events deleted at a time: some hundredths of a second

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


def _sum_of_base(base: Base) -> bytes:
    digest = hashlib.blake2b(base.chain, digest_size=8)
    digest.update(f"{base.seq}:{base.at_s!r}:{len(base.state)}:".encode())
    digest.update(base.state)
    digest.update(base.usage)
    return digest.digest()


def _read_base(db: sqlite3.Connection) -> Base | None:
    """Return where the journal begins, None: with its first event; raise _Damaged if that is garbled."""
    if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'base'").fetchone():
        return None  # of an earlier version, and open for reading only
    row = db.execute("SELECT seq, chain, at_s, state, usage, sum FROM base ORDER BY seq DESC").fetchone()
    if row is None:
        return None
    try:
        base = msgspec.convert(dict(zip(Base.__struct_fields__, row[:5], strict=True)), Base)
    except msgspec.ValidationError as error:
        raise _Damaged(f"what is kept of older events is garbled: {error}") from error
    if _sum_of_base(base) != row[5]:
        raise _Damaged("what is kept of older events does not match its checksum")
    return base


class _Damaged(Exception):
    """SQLite cannot make sense of the file."""


class Journal:
    """The event log of one cell.

    Attributes:
        repair: What opening had to move aside, or None.
        base: What is left of events that are not kept any more, or None.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the journal; check every record.

        Raises:
            JournalError: The format is newer than this program, or the file cannot be opened.
        """
        self.path = path
        self.repair: Repair | None = None
        self.base: Base | None = None
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
            if not self.path.stat().st_size:  # a new file; see _shrink for older ones
                db.execute("PRAGMA auto_vacuum=INCREMENTAL")
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
            self._shrink(db)
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
        """Walk the chain; move aside what begins with the first record that does not follow.

        Of a long journal only what came after a snapshot is walked: the state needs no more, and a million
        records take 3.5 s. ``tide doctor`` walks all of it.
        """
        self.base = _read_base(db)
        folded, chain = (self.base.seq, self.base.chain) if self.base is not None else (0, _GENESIS)
        folded, chain = _checked_at_a_snapshot(db, folded) or (folded, chain)
        expected, why = folded + 1, ""
        query = "SELECT seq, at_s, body, sum FROM events WHERE seq < 1 OR seq > ? ORDER BY seq"
        for row in db.execute(query, (folded,)):
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
        base = self._readable_base()
        records = self._readable_records(base)
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None)) as db:
            db.executescript(_SCHEMA)
            db.execute("BEGIN")
            db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", records)
            if base is not None:
                _put_base(db, base)
            db.execute("COMMIT")
        first = base.seq + 1 if base is not None else 1
        self.repair = Repair(first + len(records), 0, aside, why)

    def _readable_base(self) -> Base | None:
        """Return what is left of older events; where that cannot be read, the newest snapshot stands in."""
        damage = (sqlite3.Error, UnicodeDecodeError, _Damaged)
        with contextlib.suppress(*damage), contextlib.closing(sqlite3.connect(self.path)) as db:
            with contextlib.suppress(*damage):
                if (base := _read_base(db)) is not None:
                    return base
            first = db.execute("SELECT min(seq) FROM events WHERE seq > 0").fetchone()[0]
            if first is None or first == 1:
                return None
            for seq, chain, body, check in _snapshots(db):
                if _follows(chain, (seq, 0.0, body, check)):
                    row = db.execute("SELECT at_s FROM events WHERE seq > ?", (seq,)).fetchone()
                    return Base(seq, chain, row[0] if row else time.time(), body, b"[]")
        return None

    def _readable_records(self, base: Base | None) -> list[tuple[int, float, bytes, bytes]]:
        """Return the records that can be read and follow one another, from the first on."""
        rows: list[tuple[int, float, bytes, bytes]] = []
        folded, chain = (base.seq, base.chain) if base is not None else (0, _GENESIS)
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),
            contextlib.closing(sqlite3.connect(self.path)) as db,
        ):
            query = "SELECT seq, at_s, body, sum FROM events WHERE seq > ? ORDER BY seq"
            for row in db.execute(query, (folded,)):
                if row[0] != folded + len(rows) + 1 or not _follows(chain, row):
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

    # ------------------------------------------------------------------------------ forgetting

    def cut(self, base: Base) -> None:
        """Begin with ``base`` from now on; ``sweep`` then deletes what is folded into it.

        Raises:
            JournalError: It is not of this journal, or the write failed; nothing has changed.
        """
        row = self._db.execute("SELECT sum FROM events WHERE seq = ?", (base.seq,)).fetchone()
        if row is None or row[0] != base.chain:
            raise JournalError(f"what is to be kept of events up to {base.seq} is not of this journal")
        try:
            self._db.execute("BEGIN IMMEDIATE")
            _put_base(self._db, base)
            self._db.execute("DELETE FROM snapshots WHERE seq < ?", (base.seq,))
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            raise self._unusable(error) from error
        self.base = base

    def sweep(self) -> bool:
        """Delete some of the events that are folded, and give their space back; False: none is left."""
        if self.base is None:
            return False
        first = self._db.execute("SELECT min(seq) FROM events").fetchone()[0]
        if first is None or first > self.base.seq:
            return False
        upto = min(self.base.seq, first + SWEEP_RECORDS - 1)
        self._db.execute("DELETE FROM events WHERE seq <= ?", (upto,))
        self._db.executescript("PRAGMA incremental_vacuum")  # execute would free one page only
        self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        return True

    def _shrink(self, db: sqlite3.Connection) -> None:
        """Write a file anew whose free pages cannot be given back one by one, once they are a quarter."""
        if db.execute("PRAGMA auto_vacuum").fetchone()[0]:
            return
        free, pages = (
            db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("freelist_count", "page_count")
        )
        if free * 4 > pages:
            with contextlib.suppress(sqlite3.OperationalError):  # no room for a copy: another time
                db.execute("PRAGMA auto_vacuum=INCREMENTAL")
                db.execute("VACUUM")

    @property
    def size_bytes(self) -> int:
        """What it takes of the disk."""
        parts = (self.path, self.path.with_name(self.path.name + "-wal"))
        return sum(part.stat().st_size for part in parts if part.exists())

    @property
    def first_seq(self) -> int:
        """Number of the oldest event that is kept."""
        return self.base.seq + 1 if self.base is not None else 1

    def first_at_s(self) -> float:
        """Return when the oldest event happened that is kept; 0: there is none."""
        row = self._db.execute("SELECT at_s FROM events WHERE seq = ?", (self.first_seq,)).fetchone()
        return float(row[0]) if row is not None else 0.0

    # ------------------------------------------------------------------------------ reading

    def replay(self, use_snapshot: bool = True) -> CellState:
        """Return the state that the journal leads to.

        Args:
            use_snapshot: False rebuilds from the first event on, to check the snapshots.
        """
        state = self._newest_snapshot() if use_snapshot else self._beginning()
        for record in self.records(after=state.seq):
            apply(state, record.event, record.at_s)
        return state

    def _beginning(self) -> CellState:
        return self.base.cell() if self.base is not None else CellState()

    def _newest_snapshot(self) -> CellState:
        for seq, chain, body, check in _snapshots(self._db):
            if self.first_seq - 1 <= seq <= self._last_seq and _follows(chain, (seq, 0.0, body, check)):
                with contextlib.suppress(msgspec.DecodeError):
                    return decode_state(upgrade(body))
        return self._beginning()

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        """Yield records with a number above ``after``, oldest first."""
        rows = self._db.execute(
            "SELECT seq, at_s, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?",
            (max(after, self.first_seq - 1), limit),
        )
        for seq, at_s, body in rows:
            yield Record(seq, at_s, _decoder.decode(upgrade(body)))


def _snapshots(db: sqlite3.Connection) -> list[tuple[int, bytes, bytes, bytes]]:
    """Return all snapshots whose columns have the right types, the newest first."""
    rows = db.execute("SELECT seq, chain, body, sum FROM snapshots ORDER BY seq DESC").fetchall()
    return [row for row in rows if all(isinstance(value, bytes) for value in row[1:])]


def _put_base(db: sqlite3.Connection, base: Base) -> None:
    db.execute("DELETE FROM base")
    row = (base.seq, base.chain, base.at_s, base.state, base.usage, _sum_of_base(base))
    db.execute("INSERT INTO base VALUES (?, ?, ?, ?, ?, ?)", row)


def _checked_at_a_snapshot(db: sqlite3.Connection, folded: int) -> tuple[int, bytes] | None:
    """Return a snapshot's place in the chain, from which a long journal is walked; None: walk all of it."""
    last = db.execute("SELECT max(seq) FROM events").fetchone()[0] or 0
    for seq, chain, body, check in _snapshots(db) if last - folded > WALK_RECORDS else ():
        row = db.execute("SELECT sum FROM events WHERE seq = ?", (seq,)).fetchone()
        sound = row is not None and row[0] == chain and _follows(chain, (seq, 0.0, body, check))
        if sound and folded < seq <= last:
            return seq, chain
    return None


def find_damage(path: Path) -> str:
    """Walk the whole chain of a journal that may be in use; return what is wrong with it, or nothing."""
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        try:
            base = _read_base(db)
        except _Damaged as damage:
            return str(damage)
        seq, chain = (base.seq, base.chain) if base is not None else (0, _GENESIS)
        query = "SELECT seq, at_s, body, sum FROM events WHERE seq > ? ORDER BY seq"
        for row in db.execute(query, (seq,)):
            if row[0] != seq + 1:
                return f"record {seq + 1} is missing"
            if not _follows(chain, row):
                return f"record {seq + 1} does not match its checksum"
            seq, chain = row[0], row[3]
    return ""


@contextlib.contextmanager
def reading(path: Path) -> Iterator[tuple[Base | None, Iterator[tuple[Record, bytes]]]]:
    """Yield where a journal begins that somebody else writes, and its records with their checksums.

    For another thread or process than the one that owns the journal; checks and changes nothing. All of it
    is the journal as it was at one moment, whatever is deleted meanwhile.
    """
    with contextlib.closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)) as db:
        db.execute("BEGIN")
        base = _read_base(db)
        query = "SELECT seq, at_s, body, sum FROM events WHERE seq > ? ORDER BY seq"
        rows = db.execute(query, (base.seq if base is not None else 0,))
        yield (
            base,
            ((Record(s, at_s, _decoder.decode(upgrade(body))), check) for s, at_s, body, check in rows),
        )


def fold_before(path: Path, cut_s: float) -> Base | None:
    """Return the base for a journal that keeps what happened from ``cut_s`` on; None: nothing is older."""
    with reading(path) as (base, records):
        return fold(base, records, cut_s)


__all__ = ["FORMAT", "SNAPSHOT_EVERY", "Journal", "Record", "Repair", "find_damage", "fold_before", "reading"]
