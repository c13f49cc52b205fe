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
import sqlite3
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tidecell.cell.state import CellState, apply, decode_state, encode_state
from tidecell.structs.errors import JournalError, JournalFull
from tidecell.structs.messages import AnyEvent, Event

FORMAT = 1
SNAPSHOT_EVERY = 5000  # events; replay reads some 50,000 a second
_GENESIS = b"tidecell"

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS events (
  seq INTEGER PRIMARY KEY, at_s REAL NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS snapshots (
  seq INTEGER PRIMARY KEY, chain BLOB NOT NULL, body BLOB NOT NULL, sum BLOB NOT NULL);
"""

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


@dataclass(frozen=True)
class Record:
    """One journaled event: its number, when it was decided, and what it says."""

    seq: int
    at_s: float
    event: Event


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


def _sum(chain: bytes, seq: int, at_s: float, body: bytes | str) -> bytes:
    """Return a record's checksum; a damaged record may hold any type, and must only not match."""
    digest = hashlib.blake2b(chain, digest_size=8)
    digest.update(f"{seq}:{at_s!r}:".encode())
    digest.update(body.encode() if isinstance(body, str) else body)
    return digest.digest()


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
        self._db = self._open_or_rescue()
        self._chain = _GENESIS
        self._last_seq = 0
        self._last_snapshot_seq = 0
        self._check_format()
        self._verify_chain()

    # ------------------------------------------------------------------------------ opening

    def _open_or_rescue(self) -> sqlite3.Connection:
        try:
            return self._connect()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise self._unusable(error) from error
            return self._rescue(str(error))

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.executescript(_SCHEMA)
            db.execute("SELECT count(*) FROM (SELECT seq FROM events ORDER BY seq DESC LIMIT 1)").fetchone()
        except BaseException:
            db.close()
            raise
        self.path.chmod(0o600)
        return db

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

    def _rescue(self, why: str) -> sqlite3.Connection:
        """Move a database that SQLite calls malformed aside; carry over the records that can be read."""
        aside = self.path.with_name(f"{self.path.name}.damaged-{int(time.time() * 1000)}")
        records = self._readable_records()
        for suffix in ("", "-wal", "-shm"):
            part = self.path.with_name(self.path.name + suffix)
            if part.exists():
                part.rename(aside.with_name(aside.name + suffix))
        db = self._connect()
        db.execute("BEGIN")
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", records)
        db.execute("COMMIT")
        self.repair = Repair(len(records) + 1, 0, aside, why)
        return db

    def _readable_records(self) -> list[tuple[int, float, bytes, bytes]]:
        rows: list[tuple[int, float, bytes, bytes]] = []
        with contextlib.suppress(sqlite3.DatabaseError):
            db = sqlite3.connect(self.path)
            with contextlib.closing(db):
                for row in db.execute("SELECT seq, at_s, body, sum FROM events ORDER BY seq"):
                    rows.append(row)
        return rows

    def _check_format(self) -> None:
        row = self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        if row is None:
            self._db.execute("INSERT INTO meta VALUES ('format', ?)", (str(FORMAT),))
        elif int(row[0]) > FORMAT:
            raise JournalError(
                f"the journal {self.path} has format {row[0]}; this program reads up to {FORMAT}",
                "use the Tidecell version that wrote it, or a newer one",
            )

    def _verify_chain(self) -> None:
        """Walk the whole chain; stop at the first record that does not follow."""
        expected, chain, why = 1, _GENESIS, ""
        try:
            for seq, at_s, body, check in self._db.execute(
                "SELECT seq, at_s, body, sum FROM events ORDER BY seq"
            ):
                if seq != expected:
                    why = f"record {expected} is missing"
                    break
                if _sum(chain, seq, at_s, body) != check:
                    why = f"record {seq} does not match its checksum"
                    break
                chain, expected = check, seq + 1
        except sqlite3.DatabaseError as error:
            why = f"record {expected} cannot be read: {error}"
        self._chain, self._last_seq = chain, expected - 1
        if why:
            self._set_aside(expected, why)
        row = self._db.execute("SELECT max(seq) FROM snapshots WHERE seq <= ?", (self._last_seq,)).fetchone()
        self._last_snapshot_seq = row[0] or 0

    def _set_aside(self, first_bad_seq: int, why: str) -> None:
        """Copy the bad tail into a file of its own, then take it out of the journal."""
        kept_at = self.path.with_name(f"{self.path.name}.tail-{first_bad_seq}-{int(time.time() * 1000)}")
        count = 0
        try:
            self._db.execute("ATTACH ? AS aside", (str(kept_at),))
            self._db.execute(
                "CREATE TABLE aside.events AS SELECT * FROM events WHERE seq >= ?", (first_bad_seq,)
            )
            count = int(self._db.execute("SELECT count(*) FROM aside.events").fetchone()[0])
            self._db.execute("DETACH aside")
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM events WHERE seq >= ?", (first_bad_seq,))
            self._db.execute("DELETE FROM snapshots WHERE seq >= ?", (first_bad_seq,))
            self._db.execute("COMMIT")
            self.repair = Repair(first_bad_seq, count, kept_at, why)
        except sqlite3.DatabaseError:
            self._db.close()
            self._db = self._rescue(why)
            self._db.execute("DELETE FROM events WHERE seq >= ?", (first_bad_seq,))

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
        rows, chain, seq = [], self._chain, self._last_seq
        for event in events:
            seq += 1
            body = _encoder.encode(event)
            chain = _sum(chain, seq, at_s, body)
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
        return self._last_seq - self._last_snapshot_seq >= SNAPSHOT_EVERY

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
        self._last_snapshot_seq = state.seq

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
            if _sum(chain, seq, 0.0, body) == check:
                with contextlib.suppress(msgspec.DecodeError):
                    return decode_state(body)
        return CellState()

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        """Yield records with a number above ``after``, oldest first."""
        rows = self._db.execute(
            "SELECT seq, at_s, body FROM events WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
        )
        for seq, at_s, body in rows:
            yield Record(seq, at_s, _decoder.decode(body))
