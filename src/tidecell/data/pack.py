"""Token ids of documents into rows of one length. Pure.

A row holds ``seq_len + 1`` tokens: inputs are all but the last, targets all but the first. A document (its
tokens and one end-of-text) that is longer than a row is cut into windows of ``seq_len + 1`` that overlap by
one token, so that every token but a document's first is a target exactly once. What is left over, and every
document that fits whole, is placed by best fit, longest first: into the fullest row that still has room.
Rows keep what they hold in the order of the stream. What stays free at a row's end is padding.

The plan holds positions, not tokens: the same token files serve every ``seq_len``.

Source: best-fit packing, Ding et al., "Fewer truncations improve language modeling", ICML 2024.
"""

from __future__ import annotations

from bisect import bisect_left, insort

import msgspec
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


class PackStats(msgspec.Struct, frozen=True):
    """What packing cost.

    Attributes:
        num_rows: Rows made.
        row_tokens: Tokens a row holds, ``seq_len + 1``.
        num_pieces: Stretches of documents placed in rows.
        num_documents: Documents packed.
        num_documents_cut: Documents longer than a row, so cut into pieces.
        padding_tokens: Places that stayed empty, over all rows.
        padding_share: The same as a share of all places, 0.0 to 1.0.
    """

    num_rows: int
    row_tokens: int
    num_pieces: int
    num_documents: int
    num_documents_cut: int
    padding_tokens: int
    padding_share: float


class Plan(msgspec.Struct, frozen=True):
    """Which stretch of the token stream goes into which row.

    Attributes:
        start: Position of each piece's first token in the stream, shape [num_pieces].
        length: Tokens of each piece, shape [num_pieces].
        continues: Whether a piece begins inside a document; its first token is context, no target.
        row_begin: Index of each row's first piece, and the number of pieces last; shape [num_rows + 1].
        stats: What it cost.
    """

    start: Ints
    length: Ints
    continues: npt.NDArray[np.bool_]
    row_begin: Ints
    stats: PackStats


def plan_rows(document_lengths: Ints, seq_len: int) -> Plan:
    """Return the rows for documents that lie one after another in a token stream.

    Args:
        document_lengths: Tokens of each document, its end-of-text counted, in the order of the stream.
        seq_len: Inputs of a row; a row holds one token more.

    Raises:
        ValueError: ``seq_len`` is below 1, or a length is.
    """
    if seq_len < 1:
        raise ValueError(f"seq_len is {seq_len}, at least 1 is allowed")
    lengths = np.asarray(document_lengths, dtype=np.int64)
    if lengths.size and int(lengths.min()) < 1:
        raise ValueError(f"a document has {int(lengths.min())} tokens, at least 1 is allowed")
    start, length, continues = _pieces(lengths, seq_len)
    row = _best_fit(length, seq_len + 1)
    order = np.lexsort((start, row))
    num_rows = int(row.max()) + 1 if row.size else 0
    row_begin = np.searchsorted(row[order], np.arange(num_rows + 1)).astype(np.int64)
    places = num_rows * (seq_len + 1)
    padding = places - int(length.sum())
    stats = PackStats(
        num_rows=num_rows,
        row_tokens=seq_len + 1,
        num_pieces=int(length.size),
        num_documents=int(lengths.size),
        num_documents_cut=int((lengths > seq_len + 1).sum()),
        padding_tokens=padding,
        padding_share=round(padding / places, 6) if places else 0.0,
    )
    return Plan(start[order], length[order], continues[order], row_begin, stats)


def _pieces(lengths: Ints, seq_len: int) -> tuple[Ints, Ints, npt.NDArray[np.bool_]]:
    """Cut documents into windows of at most ``seq_len + 1`` tokens that overlap by one."""
    # A document of n tokens has n - 1 targets after its first token; each window holds seq_len of them.
    num_windows = np.maximum(1, -(-(lengths - 1) // seq_len))
    document_start = np.concatenate(([0], np.cumsum(lengths)[:-1])) if lengths.size else lengths
    first_piece = np.cumsum(num_windows) - num_windows
    document = np.repeat(np.arange(lengths.size), num_windows)
    window = np.arange(document.size) - first_piece[document]
    offset = window * seq_len
    start = document_start[document] + offset
    length = np.minimum(lengths[document] - offset, seq_len + 1)
    return start.astype(np.int64), length.astype(np.int64), window > 0


def _best_fit(lengths: Ints, capacity: int) -> Ints:
    """Return a row for each piece: longest first, into the fullest row with room for it.

    Rows with the same room are taken in the order in which they got it, so the plan is a function of its
    arguments alone. One bisection per piece; whole rows, the bulk, are not searched for.
    """
    row = np.empty(lengths.size, dtype=np.int64)
    whole = np.flatnonzero(lengths == capacity)
    row[whole] = np.arange(whole.size)
    num_rows = int(whole.size)
    open_rows: dict[int, list[int]] = {}
    rooms: list[int] = []
    partial = np.flatnonzero(lengths < capacity)
    for piece in partial[np.argsort(-lengths[partial], kind="stable")].tolist():
        size = int(lengths[piece])
        at = bisect_left(rooms, size)
        if at == len(rooms):
            target, room = num_rows, capacity
            num_rows += 1
        else:
            room = rooms[at]
            target = open_rows[room].pop()
            if not open_rows[room]:
                rooms.pop(at)
        row[piece] = target
        left = room - size
        if left > 0:
            waiting = open_rows.setdefault(left, [])
            if not waiting:
                insort(rooms, left)
            waiting.append(target)
    return row
