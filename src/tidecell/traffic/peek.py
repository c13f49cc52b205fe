"""The little that the router reads of a JSON body: model, stream, number of tokens, user. Pure.

The whole body is checked to be JSON on the way, so that router and replica cannot read two different
requests out of one; of a name that appears twice the last one counts, as for the parsers behind.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from tidecell.traffic.http1 import ProtocolError, scanner

_NOTHING = msgspec.Raw(b"null")


class Peek(NamedTuple):
    """What was found.

    Attributes:
        model: Empty if none is named.
        stream: Whether a stream is asked for.
        max_tokens: Most tokens to make, 0: not said.
        user: The end user, empty if none is named.
    """

    model: str = ""
    stream: bool = False
    max_tokens: int = 0
    user: str = ""


Found = tuple[str, bool, int, str]  # a Peek, or what the C module makes in its place
NO_PEEK = Peek()


class _Body(msgspec.Struct, frozen=True):
    model: str | None = None
    stream: bool | None = None
    max_tokens: msgspec.Raw = _NOTHING
    max_completion_tokens: msgspec.Raw = _NOTHING
    user: msgspec.Raw = _NOTHING


_decode = msgspec.json.Decoder(_Body).decode


def _scan_nothing(body: bytes) -> Found | None:
    return None


# What a plain body says; None: ask ``peek``. Only C knows any.
scan_body = _scan_nothing if scanner is None else scanner.scan_body


def peek(body: bytes) -> Found:
    """Return what the body says.

    Raises:
        ProtocolError: It is not a JSON object, or its model or stream is of the wrong kind.
    """
    found = scan_body(body)
    return found if found is not None else parse(body)


def parse(body: bytes) -> Peek:
    """Return what the body says, from a parser that knows all of JSON; raises as ``peek`` does."""
    try:
        found = _decode(body)
    except msgspec.ValidationError as problem:
        raise ProtocolError(400, f"the body does not fit: {problem}") from problem
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise ProtocolError(400, f"the body is not JSON: {problem}") from problem
    except RecursionError as problem:
        raise ProtocolError(400, "the body is nested too deeply") from problem
    most = _count(found.max_completion_tokens) or _count(found.max_tokens)
    return Peek(found.model or "", bool(found.stream), most, _text(found.user))


def _count(raw: msgspec.Raw) -> int:
    """Return a whole number; whatever else a client sends there is for the replica to refuse."""
    text = bytes(raw)
    return int(text) if text.isdigit() and len(text) <= 18 else 0


def _text(raw: msgspec.Raw) -> str:
    text = bytes(raw)
    if not text.startswith(b'"'):
        return ""
    try:
        return msgspec.json.decode(text, type=str)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
