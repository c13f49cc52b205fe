"""Tokens of an answer, from the ``usage`` at its end. Pure.

Only the last few kilobytes are looked at, once: parsing every frame is what makes proxies slow.
"""

from __future__ import annotations

import re

from tidecell.traffic.http1 import scanner

TAIL_BYTES = 16 * 1024
_IN = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})')
_OUT = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})')

Usage = tuple[int | None, int | None]


def search_usage(tail: bytes) -> Usage:
    """Return prompt and completion tokens after the last ``"usage"`` near the end of ``tail``."""
    at = tail.rfind(b'"usage"', max(0, len(tail) - TAIL_BYTES))
    if at < 0:
        return None, None
    return _first(_IN, tail, at), _first(_OUT, tail, at)


find_usage = search_usage if scanner is None else scanner.find_usage


def _first(pattern: re.Pattern[bytes], tail: bytes, at: int) -> int | None:
    match = pattern.search(tail, at)
    return int(match.group(1)) if match else None
