"""What a runtime needs of a journal, and a journal in memory for the simulator and for trials.

``cell.journal.Journal`` is the durable one. Both hold the same events in the same order; the one here
forgets with the process, and may be told not to keep what nobody will read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from tidecell.cell.state import CellState, apply, decode_state, encode_state
from tidecell.structs.errors import JournalError
from tidecell.structs.messages import AnyEvent, Event

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[AnyEvent] = msgspec.json.Decoder(AnyEvent)


@dataclass(frozen=True)
class Record:
    """One journaled event: its number, when it was decided, and what it says."""

    seq: int
    at_s: float
    event: Event


class EventLog(Protocol):
    """An append-only log of events that leads to a state."""

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""

    def append(self, events: Sequence[Event], at_s: float) -> None:
        """Write events durably, all or none."""

    def replay(self, use_snapshot: bool = True) -> CellState:
        """Return the state that the log leads to."""

    def snapshot_due(self) -> bool:
        """Return whether so much was written since the last snapshot that the next is due."""

    def write_snapshot(self, state: CellState) -> None:
        """Store the state as of the newest record."""


class MemoryLog:
    """A log in memory, through the same encoding as the durable one.

    Args:
        start: The state before the first record; empty by default.
        keep: False forgets what is appended; such a log cannot be replayed past its start.
    """

    def __init__(self, start: CellState | None = None, keep: bool = True) -> None:
        self._start = encode_state(start) if start is not None else None
        self._first_seq = self._last_seq = start.seq if start is not None else 0
        self._keep = keep
        self.rows: list[tuple[float, bytes]] = []

    @property
    def last_seq(self) -> int:
        """Number of the newest record."""
        return self._first_seq + len(self.rows) if self._keep else self._last_seq

    def append(self, events: Sequence[Event], at_s: float) -> None:
        """Keep events, all or none."""
        if self._keep:
            self.rows += [(at_s, _encoder.encode(e)) for e in events]
        else:
            self._last_seq += len(events)

    def replay(self, use_snapshot: bool = True) -> CellState:
        """Return the state that the log leads to.

        Raises:
            JournalError: Records were appended and not kept.
        """
        if self.last_seq != self._first_seq + len(self.rows):
            raise JournalError("this journal was told not to keep its records; it cannot be replayed")
        state = decode_state(self._start) if self._start is not None else CellState()
        for record in self.records(after=state.seq):
            apply(state, record.event, record.at_s)
        return state

    def records(self, after: int = 0, limit: int = -1) -> Iterator[Record]:
        """Yield records with a number above ``after``, oldest first."""
        begin = max(0, after - self._first_seq)
        end = len(self.rows) if limit < 0 else begin + limit
        for offset, (at_s, body) in enumerate(self.rows[begin:end], begin + 1):
            yield Record(self._first_seq + offset, at_s, _decoder.decode(body))

    def snapshot_due(self) -> bool:
        """Return False: there is nothing to shorten."""
        return False

    def write_snapshot(self, state: CellState) -> None:
        """Do nothing: the log is as long as its process."""

    def close(self) -> None:
        """Do nothing."""


__all__ = ["EventLog", "MemoryLog", "Record"]
