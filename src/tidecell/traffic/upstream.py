"""One connection to a replica: frames its answers and hands their bytes on as they are.

What it does not know: clients, retries, queues. Whoever uses the connection is its ``Consumer``, one at a
time.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from typing import Protocol, cast

from tidecell.traffic.fleet import MAX_IDLE_PER_REPLICA, Replica
from tidecell.traffic.http1 import (
    MAX_HEAD_BYTES,
    Chunks,
    ProtocolError,
    ResponseHead,
    read_response,
    scan_response,
)

# Below this a request's head and body go out as one piece: copying is cheaper than a second buffer.
JOIN_BYTES = 16 * 1024


class Framing(enum.Enum):
    """How the end of the answer's body is known."""

    HEAD = enum.auto()  # the head has not been read
    LENGTH = enum.auto()
    CHUNKED = enum.auto()
    UNTIL_CLOSE = enum.auto()
    TUNNEL = enum.auto()  # after 101: no more HTTP


class Consumer(Protocol):
    """Who gets the answer."""

    method: bytes
    wants_payload: bool

    def response_informational(self, head: ResponseHead) -> None:
        """A 1xx came; the answer is still to come."""

    def response_start(self, head: ResponseHead, framing: Framing, data: bytes, is_done: bool) -> None:
        """The head came, with the first of the body."""

    def response_whole(self, head: ResponseHead, data: bytes) -> None:
        """Head and body came at once, framed by length: all of ``data``."""

    def response_data(self, data: bytes, is_done: bool) -> None:
        """More of the body came."""

    def response_lost(self, reason: str, is_stale: bool) -> None:
        """The connection ended, or could not be understood, before the answer was complete.

        ``is_stale``: it had served before and ended without a byte; most likely it was closed as idle.
        """

    def upstream_write_paused(self, paused: bool) -> None:
        """The replica takes no more bytes for now, or does so again."""


class UpstreamConnection(asyncio.Protocol):
    """A connection to ``replica``; in its pool while nobody uses it.

    Attributes:
        is_single_use: It is closed after this answer: the request may not have been sent to its end.
    """

    __slots__ = (
        "_chunks",
        "_consumer",
        "_framing",
        "_head",
        "_left",
        "_now",
        "_num_served",
        "_paused",
        "_reusable",
        "idle_since_s",
        "is_single_use",
        "replica",
        "transport",
    )

    def __init__(self, replica: Replica, now: Callable[[], float]) -> None:
        self.replica = replica
        self.idle_since_s = 0.0
        self.is_single_use = False
        self._now = now
        self.transport: asyncio.Transport | None = None
        self._consumer: Consumer | None = None
        self._framing = Framing.HEAD
        self._head = b""
        self._left = 0
        self._chunks: Chunks | None = None
        self._reusable = False
        self._paused = False
        self._num_served = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def send(self, consumer: Consumer, head: bytes, body: bytes) -> None:
        """Send a request; the answer goes to ``consumer``."""
        self._consumer = consumer
        self._framing = Framing.HEAD
        self._head = b""
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if len(body) < JOIN_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    def hand_to(self, consumer: Consumer) -> None:
        """Give the rest of the answer to somebody else."""
        self._consumer = consumer

    def write(self, data: bytes) -> None:
        """Send bytes as they are; a connection that is ending swallows them, and says so a moment later."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def pause(self) -> None:
        """Read no more until ``resume``: the client is slower than the replica."""
        if not self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._paused and self.transport is not None and not self.transport.is_closing():
            self._paused = False
            self.transport.resume_reading()

    def rest(self) -> bool:
        """Wait in the replica's pool for the next request; False if it has to be closed instead."""
        transport, replica = self.transport, self.replica
        idle = replica.idle
        if transport is None or transport.is_closing() or replica.state != "ready":
            return False
        if len(idle) >= MAX_IDLE_PER_REPLICA:
            return False
        self.idle_since_s = self._now()
        idle.append(self)
        return True

    def hang_up(self) -> None:
        """End once all is sent; nobody reads the answer."""
        self._consumer = None
        self.close()

    def abandon(self) -> None:
        """End at once: nobody wants the rest of the answer, and the replica should see that."""
        self._consumer = None
        if self.transport is not None:
            self.transport.abort()

    def close(self) -> None:
        """Close it; nobody uses it."""
        if self.transport is not None:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        consumer = self._consumer
        if consumer is None:  # bytes that nobody asked for: it cannot be trusted to frame the next answer
            self.abandon()
            return
        try:
            framing = self._framing
            if framing is Framing.HEAD:
                head = None if self._head else scan_response(data, consumer.method == b"HEAD")
                if head is not None and head.content_length == len(data) - head.size:
                    self._finish(head.keep_alive)  # all of it at once, as most are
                    consumer.response_whole(head, data)
                else:
                    self._take_head(consumer, data)
            elif framing is Framing.TUNNEL or framing is Framing.UNTIL_CLOSE:
                consumer.response_data(data, False)
            else:
                body, is_done = self._frame(data, 0, consumer.wants_payload)
                if is_done:
                    self._finish(self._reusable)
                consumer.response_data(body, is_done)
        except ProtocolError as error:
            self.abandon()
            consumer.response_lost(error.message, False)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        consumer, self._consumer = self._consumer, None
        self.replica.forget(self)
        if consumer is None:
            return
        if exc is None and self._framing in (Framing.UNTIL_CLOSE, Framing.TUNNEL):
            consumer.response_data(b"", True)
            return
        is_stale = self._num_served > 0 and self._framing is Framing.HEAD and not self._head
        reason = f"{type(exc).__name__}: {exc}" if exc else "the replica closed the connection"
        consumer.response_lost(reason, is_stale)

    def pause_writing(self) -> None:
        if self._consumer is not None:
            self._consumer.upstream_write_paused(True)

    def resume_writing(self) -> None:
        if self._consumer is not None:
            self._consumer.upstream_write_paused(False)

    def _take_head(self, consumer: Consumer, data: bytes) -> None:
        data = self._head + data if self._head else data
        head = read_response(data, consumer.method)
        if head is None:
            if len(data) > MAX_HEAD_BYTES:
                raise ProtocolError(502, "the replica's head is too long")
            self._head = data
        elif head.status < 200 and head.status != 101:
            self._take_informational(consumer, head, data)
        else:
            self._start(consumer, head, data)

    def _take_informational(self, consumer: Consumer, head: ResponseHead, data: bytes) -> None:
        self._head = b""
        if head.status != 100:  # 100 answers an expectation, and those end at the router
            consumer.response_informational(head)
        if head.size < len(data) and self._consumer is consumer:
            self._take_head(consumer, data[head.size :])

    def _start(self, consumer: Consumer, head: ResponseHead, data: bytes) -> None:
        self._head = b"."  # not empty: something was received
        self._reusable = head.keep_alive
        framing, at, length = _framing(head), head.size, head.content_length
        self._framing = framing
        self._left = max(0, length)
        if framing is Framing.CHUNKED:
            self._chunks = Chunks()
        if framing in (Framing.TUNNEL, Framing.UNTIL_CLOSE):
            consumer.response_start(head, framing, data[at:], False)
            return
        body, is_done = self._frame(data, at, consumer.wants_payload)
        if is_done:
            self._finish(self._reusable)
        consumer.response_start(head, framing, body, is_done)

    def _frame(self, data: bytes, at: int, wants_payload: bool) -> tuple[bytes, bool]:
        """Return the part of ``data`` from ``at`` that belongs to the answer, and whether that ends it."""
        if self._framing is Framing.LENGTH:
            end = at + self._left
            body = data[at:end] if at or end < len(data) else data
            self._left -= len(body)
            is_done = self._left == 0
        else:
            chunks = self._chunks or Chunks()
            payload: list[bytes] | None = [] if wants_payload else None
            end = chunks.feed(data, payload, at)
            is_done = chunks.is_done
            if payload is not None:
                body = b"".join(payload)
            else:
                body = data[at:end] if at or end < len(data) else data
        if is_done and end < len(data):
            self._reusable = False  # it said more than it was asked
        return body, is_done

    def _finish(self, reusable: bool) -> None:
        """Let go of the consumer; the connection serves the next one, or closes."""
        self._consumer = None
        self._num_served += 1
        self._chunks = None
        if self._paused:
            self.resume()
        if not (reusable and not self.is_single_use and self.rest()):
            self.close()


def _framing(head: ResponseHead) -> Framing:
    if head.status == 101:
        return Framing.TUNNEL
    if head.content_length >= 0:
        return Framing.LENGTH
    return Framing.CHUNKED if head.content_length == -1 else Framing.UNTIL_CLOSE
