"""HTTP/2 in, by the h2 library: each stream is a ``ClientConnection`` of HTTP/1.1 over memory.

So there is one set of rules for requests, and one path to replicas; HTTP/2 costs a translation both ways and
is for clients that need it, not for speed. A connection is taken for HTTP/2 when it begins with the preface,
which clients send with prior knowledge as well as after ALPN.

Streams that a client resets are work that it does not wait for: one that resets more than it lets finish is
disconnected (CVE-2023-44487).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from math import inf
from typing import Any, Protocol, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tidecell.traffic.http1 import Chunks, ProtocolError, ResponseHead, read_response
from tidecell.traffic.request import Limits

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
MAX_STREAMS = 256
MAX_RESETS = 100
MAX_UNREAD_BYTES = 64 * 1024
HIGH_WATER_BYTES = 64 * 1024
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_WORD = re.compile(rb"[!-~]+")
_NOT_HERE = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"upgrade", b"proxy-connection"})


class Watched(Protocol):
    """A connection whose deadlines the router looks at."""

    def check(self, now_s: float) -> None:
        """Close it if it is too slow, or idle for too long."""

    def close_if_idle(self, before_s: float = inf) -> None:
        """Close it unless a request is under way or it was used at or after ``before_s``."""

    def abort(self) -> None:
        """End at once."""


class Watcher(Protocol):
    """What a connection needs of the router."""

    limits: Limits
    now: Callable[[], float]

    def opened(self, connection: Watched) -> None:
        """Watch its deadlines."""

    def closed(self, connection: Watched) -> None:
        """Watch it no longer."""


class Inner(Protocol):
    """The HTTP/1.1 side of a stream: what asyncio calls on a protocol."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None: ...
    def data_received(self, data: bytes) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class Stream:
    """One request and its answer; to ``inner`` it is the transport."""

    def __init__(self, outer: Http2Connection, number: int, method: bytes, inner: Inner) -> None:
        self.number = number
        self.inner = inner
        self.is_chunked = False  # how the body goes to inner
        self.is_ended = False  # the answer is complete, or nobody wants it
        self.unread_bytes = 0  # received, not acknowledged: inner reads no more for now
        self.is_read_paused = False
        self.pending = bytearray()
        self._outer = outer
        self._method = method
        self._head: ResponseHead | None = None
        self._raw = b""
        self._left = 0
        self._chunks = Chunks()
        self._is_complete = False
        self._is_write_paused = False

    # -- what inner does with its transport

    def write(self, data: bytes) -> None:
        """Take bytes of the answer in HTTP/1.1."""
        if self.is_ended or self._is_complete:
            return
        try:
            self._take(data)
        except ProtocolError:
            self.abort()
            return
        self.pump()

    def is_closing(self) -> bool:
        """Return whether nothing more can be written."""
        return self.is_ended

    def close(self) -> None:
        """End: complete if all was written, else cut."""
        if self._head is not None and self._head.content_length == -2:
            self._is_complete = True
            self.pump()
        elif not self._is_complete:
            self.abort()

    def abort(self) -> None:
        """End without completing the answer."""
        self._outer.reset(self)

    def can_write_eof(self) -> bool:
        """Return False: the end of an answer is known by its framing."""
        return False

    def pause_reading(self) -> None:
        """Let the client send no more than its window."""
        self.is_read_paused = True

    def resume_reading(self) -> None:
        """Let the client send on."""
        self.is_read_paused = False
        self._outer.acknowledge(self)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return nothing: there is no socket of its own."""
        return default

    # -- the answer

    def pump(self) -> None:
        """Send what windows allow; hold inner back while much is left."""
        self._outer.send(self, self._is_complete)
        if not self._is_write_paused and len(self.pending) > HIGH_WATER_BYTES:
            self._is_write_paused = True
            self.inner.pause_writing()
        elif self._is_write_paused and len(self.pending) < HIGH_WATER_BYTES // 4:
            self._is_write_paused = False
            self.inner.resume_writing()

    def _take(self, data: bytes) -> None:
        while data and self._head is None:
            self._raw += data
            head = read_response(self._raw, self._method)
            if head is None:
                return
            data, self._raw = self._raw[head.size :], b""
            if head.status >= 200:  # 1xx have no use here
                self._begin(head)
        if self._head is not None and self._head.content_length == -1:
            payload: list[bytes] = []
            self._chunks.feed(data, payload)
            data = b"".join(payload)
            self._is_complete = self._chunks.is_done
        elif self._head is not None and self._head.content_length >= 0:
            self._left -= len(data)
            self._is_complete = self._left <= 0
        self.pending += data

    def _begin(self, head: ResponseHead) -> None:
        self._head = head
        self._left = head.content_length
        fields = [field for field in head.fields if field[0] not in _NOT_HERE]
        self._outer.send_head(self, [(b":status", b"%d" % head.status), *fields])


class Http2Connection(asyncio.Protocol):
    """A client's connection.

    Args:
        watcher: The router.
        make_inner: Makes the HTTP/1.1 side of a stream.
    """

    def __init__(self, watcher: Watcher, make_inner: Callable[[], Inner]) -> None:
        self._watcher = watcher
        self._make_inner = make_inner
        self._since_s = watcher.now()
        self._unread_bytes = 0  # of a frame that is not complete
        self._transport: asyncio.Transport | None = None
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self._h2 = h2.connection.H2Connection(config)
        self._streams: dict[int, Stream] = {}
        self._num_resets = 0
        self._num_done = 0
        self._is_write_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._watcher.opened(self)
        self._h2.initiate_connection()
        self._h2.update_settings({h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS})
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            events = self._h2.receive_data(data)
            for event in events:
                self._take(event)
            self._note_progress(len(data), bool(events))
        except h2.exceptions.ProtocolError:
            self._flush()  # says why
            if self._transport is not None:
                self._transport.close()
            return
        if self._num_resets > MAX_RESETS + self._num_done or self._unread_bytes > MAX_UNREAD_BYTES:
            self._close(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._flush()

    def _note_progress(self, num_bytes: int, is_whole: bool) -> None:
        if is_whole:
            self._since_s = self._watcher.now()
        self._unread_bytes = 0 if is_whole else self._unread_bytes + num_bytes

    def _close(self, why: h2.errors.ErrorCodes) -> None:
        """Say goodbye and close; streams under way are lost."""
        if self._transport is not None and not self._transport.is_closing():
            self._h2.close_connection(why)
            self._flush()
            self._transport.close()

    # -- what the router says

    def check(self, now_s: float) -> None:
        """Close it if a frame does not become complete, or nothing is asked for too long."""
        limits = self._watcher.limits
        limit_s = limits.request_s if self._unread_bytes else limits.keep_alive_s
        if now_s - self._since_s >= limit_s and (self._unread_bytes or not self._streams):
            self._close(h2.errors.ErrorCodes.NO_ERROR)

    def close_if_idle(self, before_s: float = inf) -> None:
        """Close it unless a request is under way; whoever asks just then learns that it was not taken."""
        if not self._streams:
            self._close(h2.errors.ErrorCodes.NO_ERROR)

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._watcher.closed(self)
        for stream in list(self._streams.values()):
            self._drop(stream)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        for stream in list(self._streams.values()):
            stream.pump()

    # -- what streams do

    def send_head(self, stream: Stream, fields: list[tuple[bytes, bytes]]) -> None:
        """Send the head of an answer."""
        self._h2.send_headers(stream.number, fields)
        self._flush()

    def send(self, stream: Stream, is_complete: bool) -> None:
        """Send of ``pending`` what the windows allow, and the end after all of it."""
        if stream.is_ended or self._is_write_paused or stream.number not in self._streams:
            return
        pending, number = stream.pending, stream.number
        while pending:
            size = min(
                len(pending), self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size
            )
            if size <= 0:
                break
            self._h2.send_data(number, bytes(pending[:size]))
            del pending[:size]
        if is_complete and not pending:
            self._h2.end_stream(number)
            self._num_done += 1
            self._flush()
            self._drop(stream)
            return
        self._flush()

    def reset(self, stream: Stream) -> None:
        """Cut an answer."""
        if stream.number in self._streams and not stream.is_ended:
            self._h2.reset_stream(stream.number, h2.errors.ErrorCodes.INTERNAL_ERROR)
            self._flush()
            self._drop(stream)

    def acknowledge(self, stream: Stream) -> None:
        """Give the client back the window of what was read."""
        if stream.unread_bytes and stream.number in self._streams:
            self._h2.acknowledge_received_data(stream.unread_bytes, stream.number)
            stream.unread_bytes = 0
            self._flush()

    def _drop(self, stream: Stream) -> None:
        stream.is_ended = True
        if self._streams.pop(stream.number, None) is None:
            return
        if stream.unread_bytes and self._transport is not None:  # the connection's window is everybody's
            self._h2.increment_flow_control_window(stream.unread_bytes)
        stream.inner.connection_lost(None)

    # -- what the client does

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", 0) or 0
        stream = self._streams.get(number)
        if isinstance(event, h2.events.RequestReceived):
            self._begin(number, event.headers, event.stream_ended is not None)
        elif isinstance(event, h2.events.DataReceived):
            self._take_body(number, stream, event.data, event.flow_controlled_length)
        elif isinstance(event, h2.events.StreamEnded) and stream is not None and stream.is_chunked:
            stream.inner.data_received(b"0\r\n\r\n")
        elif isinstance(event, h2.events.StreamReset):
            self._num_resets += 1
            if stream is not None:
                self._drop(stream)
        elif isinstance(event, h2.events.WindowUpdated | h2.events.RemoteSettingsChanged):
            for other in [stream] if stream is not None else list(self._streams.values()):
                other.pump()

    def _begin(self, number: int, headers: Any, is_ended: bool) -> None:
        request = _as_http1(headers, is_ended)
        if request is None:
            self._h2.reset_stream(number, h2.errors.ErrorCodes.PROTOCOL_ERROR)
            return
        method, wire, is_chunked = request
        stream = Stream(self, number, method, self._make_inner())
        stream.is_chunked = is_chunked
        self._streams[number] = stream
        stream.inner.connection_made(cast(asyncio.BaseTransport, stream))
        stream.inner.data_received(wire)

    def _take_body(self, number: int, stream: Stream | None, data: bytes, size: int) -> None:
        if stream is None:  # answered already; its window still belongs to the connection
            self._h2.increment_flow_control_window(size)
            return
        stream.unread_bytes += size
        if data:
            stream.inner.data_received(b"%x\r\n%b\r\n" % (len(data), data) if stream.is_chunked else data)
        if not stream.is_read_paused:
            self.acknowledge(stream)

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _as_http1(headers: Any, is_ended: bool) -> tuple[bytes, bytes, bool] | None:
    """Return method, head and whether the body goes in chunks; None if the head cannot be one of HTTP/1.1.

    Nothing of what h2 lets through may end a line: that would be a second request.
    """
    pseudo: dict[bytes, bytes] = {}
    lines: list[bytes] = []
    cookies: list[bytes] = []
    has_length = False
    for name, value in headers:
        if name.startswith(b":"):
            pseudo[name] = value
            continue
        if not _NAME.fullmatch(name) or not _VALUE.fullmatch(value) or name in _NOT_HERE:
            return None
        if name == b"cookie":
            cookies.append(value)
        elif name == b"host":
            if pseudo.setdefault(b":authority", value) != value:
                return None
        else:
            has_length = has_length or name == b"content-length"
            lines.append(b"%b: %b\r\n" % (name, value))
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    host = pseudo.get(b":authority", b"")
    if not _NAME.fullmatch(method.lower()) or not _WORD.fullmatch(path) or not _VALUE.fullmatch(host):
        return None
    if cookies:
        lines.append(b"cookie: %b\r\n" % b"; ".join(cookies))
    is_chunked = not is_ended and not has_length
    if is_chunked:
        lines.append(b"transfer-encoding: chunked\r\n")
    head = b"%b %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (method, path, host, b"".join(lines))
    return method, head, is_chunked
