"""The access log: one JSON line per request that reached routing, exactly one for each that was admitted.

Fields of a line (``schema`` 2), for people and for the simulator, which replays them:

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
| choice | the balancer's word for why this replica (docs/router-policies.md); ``retry`` for a later attempt |
| route | how rules sent it there: ``canary beta``; empty: directly |
| tenant | whose key it had, where requests queue by tenant |
| tokens_cached | prompt tokens that the replica had cached, from ``usage``; null where it did not say |

Outcomes: ``ok`` (answered in full with a status under 500), ``upstream_5xx``, ``upstream_lost`` (failed
before it answered), ``stream_broken`` (failed later), ``timeout``, ``queue_full``, ``queue_timeout``,
``removed`` (the service went while the request waited), ``late`` (its deadline passed), ``client_closed``,
``client_stalled``, ``shutdown``.
Not admitted, so without a service: ``unauthorized``, ``not_found``, ``bad_request``, ``method_not_allowed``,
and what policies refuse: ``limit_…``, ``breaker_open``, ``late``.

Bearer tokens, headers and bodies never get here. Lines are buffered for at most half a second.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from pathlib import Path

import msgspec

from tidecell.traffic.http1 import scanner

SCHEMA = 2
FLUSH_S = 0.5
FLUSH_LINES = 256
MAX_BYTES = 64 * 1024 * 1024
NUM_KEPT = 4
NUM_RECENT = 4096  # requests that are also kept in memory


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
    choice: str = ""
    route: str = ""
    tenant: str = ""
    tokens_cached: int | None = None
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
    str,
    str,
    str,
    int | None,
]


class AccessLog:
    """Appends lines, or structs of another log, to ``path``; rotates it by size: ``path.1`` is next.

    Args:
        path: The file; opened at the first line.
        max_bytes: Size from which it is rotated.
        num_kept: Old files that are kept.
    """

    def __init__(self, path: Path, max_bytes: int = MAX_BYTES, num_kept: int = NUM_KEPT) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._num_kept = num_kept
        self._lines: list[msgspec.Struct | Entry] = []
        self._fd = -1
        self._size_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._recent: deque[msgspec.Struct | Entry] = deque(maxlen=NUM_RECENT)
        self.num_lost = 0

    def write(self, line: msgspec.Struct | Entry) -> None:
        """Take a line, or what one is made of; it is in the file at the latest ``FLUSH_S`` later."""
        self._lines.append(line)
        self._recent.append(line)
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self.flush)

    def find(self, request_id: str) -> Line | None:
        """Return the line of one of the newest requests; None: it is older, or was never here."""
        raw, wall_s = request_id.encode(), time.time() - time.monotonic()
        for entry in reversed(self._recent):
            if isinstance(entry, tuple) and entry[1] == raw:
                return _line(entry, wall_s)
            if isinstance(entry, Line) and entry.id == request_id:
                return entry
        return None

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


def find_line(path: Path, request_id: str) -> Line | None:
    """Return a request's newest line in a log and the old files beside it; None: there is none."""
    wanted = f'"id":{msgspec.json.encode(request_id).decode()},'.encode()
    for name in (path.name, *(f"{path.name}.{number}" for number in range(1, NUM_KEPT + 1))):
        try:
            content = (path.with_name(name)).read_bytes()
        except OSError:
            continue
        at = content.rfind(wanted)
        if at >= 0:
            start, end = content.rfind(b"\n", 0, at) + 1, content.find(b"\n", at)
            return msgspec.json.decode(content[start : end if end >= 0 else None], type=Line)
    return None


# The text before each value of an entry, and after the last.
_NAMES = tuple(
    b'%b"%b":' % (b"," if index else b"{", name.encode())
    for index, name in enumerate(Line.__struct_fields__[:-1])
)
_END = b',"schema":%d}\n' % SCHEMA
_log_line = None if scanner is None else scanner.log_line  # for what is plain; None for the rest
_encode = msgspec.json.Encoder().encode


def encode(line: msgspec.Struct | Entry, wall_s: float) -> bytes:
    """Return the text of a line; ``wall_s`` is what the wall clock is ahead of the monotonic one."""
    if not isinstance(line, tuple):
        return _encode(line) + b"\n"
    if _log_line is not None:
        text: bytes | None = _log_line(_NAMES, line, wall_s)
        if text is not None:
            return text + _END
    return _encode(_line(line, wall_s)) + b"\n"


def _line(entry: Entry, wall_s: float) -> Line:
    """Return the line; ``wall_s`` is what the wall clock is ahead of the monotonic one."""
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
