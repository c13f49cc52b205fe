"""One connection of a client: reads requests strictly, one after the other, and writes their answers.

Pipelined requests wait in a bounded buffer until the one before them is answered. A body is read whole
before the request is routed: routing needs the model it names, and sending it again needs all of it.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
from typing import Protocol, cast

from tidecell.traffic.directory import ByModel, Directory, Peek, Target
from tidecell.traffic.exchange import Context, Exchange, Request
from tidecell.traffic.fleet import Service
from tidecell.traffic.http1 import Chunks, ProtocolError, RequestHead, find_head, parse_request
from tidecell.traffic.replies import CONTINUE, Reply, error

PIPELINE_BYTES = 256 * 1024
# Refusing a body larger than this costs the connection; reading it would cost more.
SMALL_BODY_BYTES = 64 * 1024
LINGER_S = 2.0
LINGER_BYTES = 4 * 1024 * 1024
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:\-]{1,128}")
_RESET = struct.pack("ii", 1, 0)


class State(enum.Enum):
    """What the next byte from the client is."""

    HEAD = enum.auto()
    BODY = enum.auto()
    BUSY = enum.auto()  # of the next request: one is being answered
    LINGERING = enum.auto()  # nothing: refused; kept open only for the client to read why


class Gateway(Context, Protocol):
    """What a client's connection needs of the router."""

    directory: Directory

    def opened(self, connection: ClientConnection) -> None:
        """Watch its deadlines."""

    def closed(self, connection: ClientConnection) -> None:
        """Watch it no longer."""

    def find(self, service: str) -> Service | None:
        """Return the service of that name, None if it has left the table."""

    def next_sequence(self) -> int:
        """Return a number larger than all before."""

    def make_request_id(self) -> bytes:
        """Return an id for a request that came without."""

    def refused(self, head: RequestHead | None, request_id: bytes, reply: Reply) -> None:
        """Count (and log) a request that was not admitted."""


class ClientConnection(asyncio.Protocol):
    """See the module."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.Transport | None = None
        self._state = State.HEAD
        self._buffer = bytearray()
        self._scanned = 0
        self._head: RequestHead | None = None
        self._request_id = b""
        self._verdict: Target | ByModel | Reply | None = None
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._chunks: Chunks | None = None
        self._exchange: Exchange | None = None
        self._is_write_paused = False
        self._is_read_paused = False
        self._is_advancing = False
        self._since_s = gateway.now()

    # -- what the transport says

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._gateway.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._state is State.BUSY:
            exchange = self._exchange
            if exchange is not None and exchange.is_tunnel:
                exchange.client_data(data)
                return
            self._buffer += data
            if len(self._buffer) > PIPELINE_BYTES:
                self._pause_reading()
            return
        if self._state is State.LINGERING:
            self._body_bytes += len(data)
            if self._body_bytes > LINGER_BYTES:
                self.abort()
            return
        if self._state is State.BODY:
            self._since_s = self._gateway.now()
        self._buffer += data
        self._advance()

    def eof_received(self) -> bool:
        return False  # who sends no more reads no more: clients that are gone look like this

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        exchange, self._exchange = self._exchange, None
        self._gateway.closed(self)
        if exchange is not None:
            exchange.client_gone()

    def pause_writing(self) -> None:
        self._is_write_paused = True
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._exchange is not None:
            self._exchange.resume()
        elif self._state is State.HEAD:
            self._advance()

    # -- what the exchange says

    def write(self, data: bytes) -> None:
        """Send bytes of the answer; a connection that is ending swallows them, and says so a moment later."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def exchange_finished(self, keep_alive: bool) -> None:
        """Go on with the next request, or close once all is sent."""
        self._exchange = None
        if self._transport is None:
            return
        if not keep_alive:
            self._transport.close()
            return
        self._state = State.HEAD
        self._head = None
        self._request_id = b""
        self._since_s = self._gateway.now()
        self._resume_reading()
        if self._buffer:
            self._advance()

    def exchange_broken(self, is_framed: bool) -> None:
        """Close without completing the answer. Where its end is the connection's end, reset it."""
        self._exchange = None
        if self._transport is None:
            return
        if is_framed:
            self._transport.close()
            return
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def tunnel_started(self) -> None:
        """Pass on what the client sent ahead."""
        ahead = bytes(self._buffer)
        self._buffer.clear()
        self._resume_reading()
        if ahead and self._exchange is not None:
            self._exchange.client_data(ahead)

    def tunnel_paused(self, paused: bool) -> None:
        """Read no more from the client for now, or do so again."""
        if paused:
            self._pause_reading()
        else:
            self._resume_reading()

    # -- what the router says

    def check(self, now_s: float) -> None:
        """Close it if the client is too slow with a request, or has none."""
        limits = self._gateway.limits
        waited_s = now_s - self._since_s
        if self._state is State.LINGERING:
            if waited_s >= LINGER_S:
                self.abort()
        elif self._state is State.BODY or (self._state is State.HEAD and self._buffer):
            if waited_s >= limits.request_s and not self._is_write_paused:
                message = f"the request did not arrive within {limits.request_s:g} s"
                self._refuse_and_close(error(408, message, "bad_request"))
        elif self._state is State.HEAD and waited_s >= limits.keep_alive_s:
            self.close_if_idle()

    def close_if_idle(self) -> None:
        """Close it unless a request is under way."""
        if self._state is State.HEAD and not self._buffer and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- reading requests

    def _advance(self) -> None:
        """Read on until more bytes are needed or a request is under way; answers come back in here, too."""
        if self._is_advancing:
            return
        self._is_advancing = True
        try:
            while self._transport is not None and not self._transport.is_closing():
                if self._state is State.HEAD and not self._is_write_paused:
                    if not self._read_head():
                        break
                elif self._state is State.BODY:
                    if not self._read_body():
                        break
                else:
                    break
        except ProtocolError as problem:
            self._refuse_and_close(error(problem.status, problem.message, "bad_request"))
        finally:
            self._is_advancing = False

    def _read_head(self) -> bool:
        """Take a head from the buffer, and return whether it was complete."""
        buffer = self._buffer
        if not buffer:
            return False
        if self._scanned == 0:
            self._since_s = self._gateway.now()
            if buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is forgiven
                del buffer[:2]
        length = find_head(buffer, max(0, self._scanned - 3))
        if length < 0:
            self._scanned = len(buffer)
            return False
        self._scanned = 0
        raw = bytes(buffer[:length])
        del buffer[:length]
        self._head = None
        self._begin(parse_request(raw))
        return True

    def _begin(self, head: RequestHead) -> None:
        """Decide what the head allows, before any of the body is taken."""
        gateway = self._gateway
        self._head = head
        given_id = head.get(b"x-request-id")
        self._request_id = given_id if _REQUEST_ID.fullmatch(given_id) else gateway.make_request_id()
        self._verdict = gateway.directory.authorize(head) or gateway.directory.resolve(head)
        self._body = []
        self._body_bytes = 0
        self._chunks = Chunks() if head.content_length < 0 else None
        limit = gateway.limits.max_body_bytes
        if head.content_length > limit:
            raise ProtocolError(413, f"the body has {head.content_length} bytes; allowed are {limit}")
        is_large = head.content_length > SMALL_BODY_BYTES or head.content_length < 0 or head.expects_continue
        if isinstance(self._verdict, Reply) and self._verdict.status >= 400 and is_large:
            self._refuse_and_close(self._verdict)
            return
        if head.expects_continue and not self._buffer:
            self.write(CONTINUE)
        self._state = State.BODY

    def _read_body(self) -> bool:
        """Take the body from the buffer, and return whether it was complete."""
        head = self._head
        if head is None:
            return False
        if self._chunks is not None:
            self._take_chunks(self._chunks)
            is_complete = self._chunks.is_done
        else:
            wanted = head.content_length - self._body_bytes
            if wanted and self._buffer:
                self._body.append(bytes(self._buffer[:wanted]))
                self._body_bytes += len(self._body[-1])
                del self._buffer[:wanted]
            is_complete = self._body_bytes == head.content_length
        if is_complete:
            self._route(head, self._body[0] if len(self._body) == 1 else b"".join(self._body))
        return is_complete

    def _take_chunks(self, chunks: Chunks) -> None:
        """Take the chunks that are there; the request is sent on with a length instead."""
        payload: list[bytes] = []
        used = chunks.feed(bytes(self._buffer), payload)
        del self._buffer[:used]
        self._body += payload
        self._body_bytes += sum(len(part) for part in payload)
        limit = self._gateway.limits.max_body_bytes
        if self._body_bytes > limit:
            raise ProtocolError(413, f"the body has more than {limit} bytes")

    # -- routing

    def _route(self, head: RequestHead, body: bytes) -> None:
        """Admit the complete request, or answer it."""
        self._body = []
        verdict, peek = self._verdict, Peek()
        if isinstance(verdict, ByModel):
            verdict, peek = self._gateway.directory.by_model(verdict, body)
        if isinstance(verdict, Target):
            self._admit(head, body, verdict, peek)
        elif isinstance(verdict, Reply):
            self._answer(head, verdict)

    def _admit(self, head: RequestHead, body: bytes, target: Target, peek: Peek) -> None:
        gateway = self._gateway
        service = gateway.find(target.service)
        if service is None:  # it went while the body came
            self._answer(head, error(404, f"no service {target.service!r}", "not_found"))
            return
        request = Request(
            head=head,
            path=target.path,
            body=body,
            model=peek.model or "",
            stream=bool(peek.stream),
            request_id=self._request_id,
            hides_token=gateway.directory.wants_tokens,
        )
        self._state = State.BUSY
        self._exchange = Exchange(gateway, self, service, request, gateway.next_sequence())
        self._exchange.start()

    def _answer(self, head: RequestHead, reply: Reply) -> None:
        """Answer for the router itself."""
        keep_alive = head.keep_alive and not self._gateway.is_closing
        self.write(reply.encode(keep_alive, self._request_id, head.method != b"HEAD"))
        self._gateway.refused(head, self._request_id, reply)
        self._state = State.BUSY
        self.exchange_finished(keep_alive)

    def _refuse_and_close(self, reply: Reply) -> None:
        """Answer, then read the rest into nothing for a moment: closing at once could lose the answer."""
        head = self._head
        self._gateway.refused(head, self._request_id, reply)
        if self._transport is None or self._transport.is_closing():
            return
        self.write(reply.encode(False, self._request_id, head is None or head.method != b"HEAD"))
        self._state = State.LINGERING
        self._since_s = self._gateway.now()
        self._buffer.clear()
        self._body = []
        self._body_bytes = 0
        if self._transport.can_write_eof():
            self._transport.write_eof()

    def _pause_reading(self) -> None:
        if not self._is_read_paused and self._transport is not None and not self._transport.is_closing():
            self._is_read_paused = True
            self._transport.pause_reading()

    def _resume_reading(self) -> None:
        if self._is_read_paused and self._transport is not None and not self._transport.is_closing():
            self._is_read_paused = False
            self._transport.resume_reading()
