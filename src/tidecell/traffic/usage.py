"""Tokens of an answer, from the ``usage`` at its end. Pure.

Only the last few kilobytes are looked at, once: parsing every frame is what makes proxies slow.
"""

from __future__ import annotations

import re

from tidecell.traffic.http1 import scanner

TAIL_BYTES = 16 * 1024
_IN = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})')
_OUT = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})')

_CACHED = re.compile(rb'"cached_tokens"\s*:\s*([0-9]{1,12})')

Counts = tuple[int | None, int | None]
Usage = tuple[int | None, int | None, int | None]
NO_USAGE: Usage = (None, None, None)


def search_usage(tail: bytes) -> Counts:
    """Return prompt and completion tokens after the last ``"usage"`` near the end of ``tail``."""
    at = tail.rfind(b'"usage"', max(0, len(tail) - TAIL_BYTES))
    if at < 0:
        return None, None
    return _first(_IN, tail, at), _first(_OUT, tail, at)


find_usage = search_usage if scanner is None else scanner.find_usage


def read_usage(tail: bytes) -> Usage:
    """Return prompt tokens, completion tokens and cached prompt tokens, from the end of ``tail``."""
    tokens_in, tokens_out = find_usage(tail)
    if tokens_in is None:
        return None, tokens_out, None
    at = tail.rfind(b'"cached_tokens"', max(0, len(tail) - TAIL_BYTES))
    return tokens_in, tokens_out, None if at < 0 else _first(_CACHED, tail, at)


def _first(pattern: re.Pattern[bytes], tail: bytes, at: int) -> int | None:
    match = pattern.search(tail, at)
    return int(match.group(1)) if match else None
