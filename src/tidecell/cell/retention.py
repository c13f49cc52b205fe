"""What is left of events that are no longer kept: the state they led to, and what was used, by the day.

A journal that keeps its events for so long begins with a ``Base``: the cell as it was at the end of a day
(UTC), and the sums of every day before. Replay goes on from there, and so does accounting: a day is the
step of what is folded, so sums over whole days stay what they were. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import msgspec

from tidecell.cell.accounting import DAY_S, Account, Kept, Key, Sums
from tidecell.cell.log import Record
from tidecell.cell.state import CellState, decode_state, encode_state


class Base(msgspec.Struct, frozen=True):
    """Where a journal begins whose oldest events are gone.

    Attributes:
        seq: Number of the last event that is folded into it.
        chain: That event's checksum, which the next one's covers.
        at_s: Everything before this moment is folded, nothing after.
        state: The cell then, as ``encode_state`` writes it.
        usage: What was used before, as ``encode_usage`` writes it.
    """

    seq: int
    chain: bytes
    at_s: float
    state: bytes
    usage: bytes

    def cell(self) -> CellState:
        """Return the cell as it was."""
        return decode_state(self.state)

    def kept(self) -> Kept:
        """Return what accounting goes on from."""
        return Kept(self.cell(), self.at_s, decode_usage(self.usage))


def cut_before(now_s: float, keep_s: float) -> float:
    """Return the moment before which events are folded: the end of a day, UTC."""
    return math.floor((now_s - keep_s) / DAY_S) * DAY_S


def fold(base: Base | None, records: Iterable[tuple[Record, bytes]], cut_s: float) -> Base | None:
    """Return the base for a journal that keeps what happened from ``cut_s`` on; None: nothing is older.

    Args:
        base: Where the journal begins now.
        records: Its events with their checksums, oldest first; read only as far as needed.
        cut_s: The end of a day.
    """
    account = Account(every_s=DAY_S, kept=base.kept() if base is not None else None)
    last: tuple[int, bytes] | None = None
    for record, chain in records:
        if record.at_s >= cut_s:
            break
        account.take(record.event, record.at_s)
        last = record.seq, chain
    if last is None:
        return None
    sums = account.close(cut_s)
    return Base(*last, cut_s, encode_state(account.state), encode_usage(sums))


def encode_usage(sums: dict[Key, Sums]) -> bytes:
    """Return sums by group and day as JSON; the same sums give the same bytes."""
    return msgspec.json.encode(sorted(sums.items(), key=lambda pair: pair[0]), order="deterministic")


def decode_usage(body: bytes) -> dict[Key, Sums]:
    """Return what ``encode_usage`` wrote."""
    return dict(msgspec.json.decode(body, type=list[tuple[Key, Sums]]))


__all__ = ["DAY_S", "Base", "cut_before", "decode_usage", "encode_usage", "fold"]
