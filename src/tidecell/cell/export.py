"""A live cell in a file: everything that decides what runs where, and nothing that is a secret. Pure.

What is left out (programs, environments, working directories, messages) changes no decision of the cell, so
``plan``, ``why`` and the simulator answer on the copy as they would on the cell itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from tidecell.cell.state import CellState, decode_state, encode_state
from tidecell.structs.errors import DataError

FORMAT = "tidecell-snapshot"
VERSION = 1
# Key -> what stands in its place, wherever it is. Command lines hold passwords as environments do.
_BLANK: dict[str, Any] = {
    "env": {},
    "argv": [],
    "run": "",
    "setup": "",
    "workdir": "",
    "message": "",
    "story": [],
    "desired_why": "",
    "address": "127.0.0.1",
    "models": [],
    "routing": None,
}


class CellSnapshot(msgspec.Struct, frozen=True):
    """A cell at one moment.

    Attributes:
        at_s: When, seconds since the epoch.
        state: As ``encode_state`` writes it, blanked.
    """

    format: str
    version: int
    at_s: float
    state: msgspec.Raw


def export_state(state: CellState, at_s: float) -> bytes:
    """Return the cell as a document that can be kept, sent and simulated."""
    plain = _blanked(msgspec.json.decode(encode_state(state)))
    body = msgspec.Raw(msgspec.json.encode(plain))
    return msgspec.json.encode(CellSnapshot(FORMAT, VERSION, at_s, body))


def import_state(body: bytes, source: str = "the snapshot") -> tuple[CellState, float]:
    """Return the cell in a document, and when it was so.

    Raises:
        DataError: It is no snapshot, of a newer version, or damaged.
    """
    try:
        document = msgspec.json.decode(body, type=CellSnapshot)
    except msgspec.DecodeError as error:
        raise DataError(
            f"{source} is no snapshot of a cell: {error}", "make one: tide snapshot save FILE"
        ) from error
    if document.format != FORMAT or document.version > VERSION:
        raise DataError(
            f"{source} has format {document.format} {document.version}; "
            f"this program reads {FORMAT} {VERSION}",
            "use the Tidecell version that wrote it, or a newer one",
        )
    try:
        return decode_state(bytes(document.state)), document.at_s
    except msgspec.DecodeError as error:
        raise DataError(f"{source} is damaged: {error}", "make another: tide snapshot save FILE") from error


def _blanked(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _BLANK[key] if key in _BLANK else _blanked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_blanked(inner) for inner in value]
    return value
