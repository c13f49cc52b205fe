"""The access log: one JSON line per request that reached routing, exactly one for each that was admitted.

Fields of a line (``schema`` 1), for people and for the simulator, which replays them:

| field | meaning |
| --- | --- |
| time | Unix time of the end of the request, seconds |
| id | request id, as sent back in ``x-request-id`` |
| service, model, endpoint | where it went; empty if it went nowhere |
| method, path | as received, without the query |
| status | what the client got; 499 if it left before there was an answer |
| stream | whether a stream was asked for |
| ttft_ms | from admission to the first byte of the answer; null without one |
| duration_ms | from admission to the end |
| queue_ms | of that, waiting for a replica |
| bytes_in, bytes_out | of the request's and the response's body, as sent |
| tokens_in, tokens_out | from ``usage`` at the end of the answer; null where there was none |
| retries | attempts beyond the first |
| outcome | one word of those below |

Outcomes: ``ok`` (answered in full with a status under 500), ``upstream_5xx``, ``upstream_lost`` (failed
before it answered), ``stream_broken`` (failed later), ``timeout``, ``queue_full``, ``queue_timeout``,
``removed`` (the service went while the request waited), ``late`` (its deadline passed), ``client_closed``,
``client_stalled``, ``shutdown``.
Not admitted, so without a service: ``unauthorized``, ``not_found``, ``bad_request``, ``method_not_allowed``.

Tokens, headers and bodies never get here. Lines are buffered for at most half a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import msgspec

from tidecell.traffic.http1 import scanner

SCHEMA = 1
FLUSH_S = 0.5
FLUSH_LINES = 256
MAX_BYTES = 64 * 1024 * 1024
NUM_KEPT = 4


class Line(msgspec.Struct, frozen=True, gc=False):
    """One request; see the table above."""

    time: float
    id: str
    service: str
    model: str
    endpoint: str
    method: str
    path: str
    status: int
    stream: bool
    ttft_ms: float | None
    duration_ms: float
    queue_ms: float
    bytes_in: int
    bytes_out: int
    tokens_in: int | None
    tokens_out: int | None
    retries: int
    outcome: str
    schema: int = SCHEMA


# The fields of a Line in order, but for what takes time to make: the id, the method and the target are bytes,
# the time is on the clock of ``time.monotonic``. Lines are made from them many at once.
Entry = tuple[
    float,
    bytes,
    str,
    str,
    str,
    bytes,
    bytes,
    int,
    bool,
    float | None,
    float,
    float,
    int,
    int,
    int | None,
    int | None,
    int,
    str,
]


class AccessLog:
    """Appends lines to ``path`` and rotates it by size: ``path.1`` is the newest of the old ones.

    Args:
        path: The file; opened at the first line.
        max_bytes: Size from which it is rotated.
        num_kept: Old files that are kept.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._lines: list[Line | Entry] = []
        self._fd = -1
        self._size_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self.num_lost = 0

    def write(self, line: Line | Entry) -> None:
        """Take a line, or what one is made of; it is in the file at the latest ``FLUSH_S`` later."""
        self._lines.append(line)
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what is buffered. A full disk costs lines (``num_lost``), never requests."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._lines:
            return
        lines, self._lines = self._lines, []
        wall_s = time.time() - time.monotonic()
        try:
            self._append(b"".join([encode(line, wall_s) for line in lines]))
        except OSError:
            self.num_lost += len(lines)

    def close(self) -> None:
        """Flush and close."""
        self.flush()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _append(self, block: bytes) -> None:
        if self._fd >= 0 and self._size_bytes + len(block) > self._max_bytes:
            self._rotate()
        if self._fd < 0:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            self._size_bytes = os.fstat(self._fd).st_size
        self._size_bytes += os.write(self._fd, block)

    def _rotate(self) -> None:
        os.close(self._fd)
        self._fd = -1
        for number in range(self._num_kept, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else self._path.with_name(f"{self._path.name}.{number - 1}")
            if newer.exists():
                newer.replace(older)


# The text before each value of an entry, and after the last.
_NAMES = tuple(
    b'%b"%b":' % (b"," if index else b"{", name.encode())
    for index, name in enumerate(Line.__struct_fields__[:-1])
)
_END = b',"schema":%d}\n' % SCHEMA
_log_line = None if scanner is None else scanner.log_line  # for what is plain; None for the rest
_encode = msgspec.json.Encoder().encode


def encode(line: Line | Entry, wall_s: float) -> bytes:
    """Return the text of a line; ``wall_s`` is what the wall clock is ahead of the monotonic one."""
    if _log_line is not None and type(line) is tuple:
        text: bytes | None = _log_line(_NAMES, line, wall_s)
        if text is not None:
            return text + _END
    return _encode(_line(line, wall_s)) + b"\n"


def _line(entry: Line | Entry, wall_s: float) -> Line:
    if isinstance(entry, Line):
        return entry
    at_s, request_id, service, model, endpoint, method, target, status, stream, ttft_ms, duration_ms = entry[
        :11
    ]
    return Line(
        round(at_s + wall_s, 6),
        request_id.decode("ascii"),
        service,
        model,
        endpoint,
        method.decode("ascii"),
        target.partition(b"?")[0].decode("ascii"),
        status,
        stream,
        None if ttft_ms is None else round(ttft_ms, 3),
        round(duration_ms, 3),
        round(entry[11], 3),
        *entry[12:],
    )
