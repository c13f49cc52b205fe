"""One connection of a client: reads requests strictly, one after the other, and writes their answers.

Pipelined requests wait in a bounded buffer until the one before them is answered. A body is read whole
before the request is routed: routing needs the model it names, and sending it again needs all of it. Only
a body that is larger than that and goes by path or host is passed through as it comes.

Most requests arrive as one piece of bytes on a connection that waits for them: those never see the buffer.
"""

from __future__ import annotations

import asyncio
import enum
import re
import socket
import struct
from itertools import count
from math import inf
from typing import Protocol, cast

from tidecell.traffic.directory import ByModel, Directory, Target
from tidecell.traffic.exchange import Context, Exchange
from tidecell.traffic.fleet import Service
from tidecell.traffic.http1 import (
    Chunks,
    ProtocolError,
    RequestHead,
    find_head,
    read_request,
    scan_request,
)
from tidecell.traffic.http2 import PREFACE, Http2Connection, Watched
from tidecell.traffic.peek import NO_PEEK, Found, scan_body
from tidecell.traffic.policy import ADMIT
from tidecell.traffic.replies import CONTINUE, Reply, error
from tidecell.traffic.request import Request
from tidecell.traffic.shadow import send_copy

PIPELINE_BYTES = 64 * 1024
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
    UPLOAD = enum.auto()  # of a body that is passed through, its request being under way
    BUSY = enum.auto()  # of the next request: one is being answered
    LINGERING = enum.auto()  # nothing: refused; kept open only for the client to read why


class Gateway(Context, Protocol):
    """What a client's connection needs of the router."""

    directory: Directory
    numbers: count[int]  # of the requests, in the order in which they came
    id_prefix: bytes  # of an id for a request that came without one

    def opened(self, connection: Watched) -> None:
        """Watch its deadlines."""

    def closed(self, connection: Watched) -> None:
        """Watch it no longer."""

    def find(self, service: str) -> Service | None:
        """Return the service of that name, None if it has left the table."""

    def refused(self, head: RequestHead | None, request_id: bytes, reply: Reply) -> None:
        """Count (and log) a request that was not admitted."""


class ClientConnection(asyncio.Protocol):
    """See the module."""

    __slots__ = (
        "_body",
        "_body_bytes",
        "_buffer",
        "_chunks",
        "_exchange",
        "_gateway",
        "_head",
        "_is_advancing",
        "_is_read_paused",
        "_is_write_paused",
        "_key",
        "_request_id",
        "_scanned",
        "_sequence",
        "_since_s",
        "_state",
        "_transport",
        "_verdict",
    )

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._transport: asyncio.Transport | None = None
        self._state = State.HEAD
        self._buffer = bytearray()
        self._scanned = 0
        self._head: RequestHead | None = None
        self._request_id = b""
        self._sequence = 0
        self._key = ""
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
        state = self._state
        if state is State.HEAD:
            is_ready = self._sequence and not self._buffer and not self._is_write_paused
            if is_ready and self._takes_at_once(data):
                return
            if self._buffer or self._is_write_paused or data[0] == 13:
                self._buffer += data
                if self._sequence == 0 and self._buffer.startswith(b"PRI") and self._becomes_http2():
                    return
                self._advance()
            elif data[0] == 80 and self._sequence == 0 and PREFACE.startswith(data[: len(PREFACE)]):
                self._buffer += data  # 80: a P, as in POST
                self._becomes_http2()
            else:
                self._since_s = self._gateway.now()
                self._take(data)
        elif state is State.BODY or state is State.UPLOAD:
            self._since_s = self._gateway.now()
            self._take(data)
        elif state is State.BUSY:
            self._take_ahead(data)
        else:
            self._body_bytes += len(data)
            if self._body_bytes > LINGER_BYTES:
                self.abort()

    def _takes_at_once(self, data: bytes) -> bool:
        """Take the common request: plain, small, whole, alone, and like one that was seen before.

        All that it skips could change nothing here; False: nothing was taken.
        """
        head, gateway = scan_request(data), self._gateway
        if head is None or head.request_id:
            return False
        size = head.size
        if len(data) - size != head.content_length or head.content_length > SMALL_BODY_BYTES:
            return False
        known = gateway.directory.known.get((head.authorization, head.host, head.target))
        if known is None:
            return False
        self._head = head
        self._sequence = number = next(gateway.numbers)
        self._request_id = gateway.id_prefix + b"%x" % number
        self._key, self._verdict = known
        self._route(head, data[size:])
        return True

    def _becomes_http2(self) -> bool:
        """Hand the connection over once the whole preface is there; False if it is not one."""
        if not PREFACE.startswith(self._buffer[: len(PREFACE)]):
            return False
        transport, gateway = self._transport, self._gateway
        if len(self._buffer) >= len(PREFACE) and transport is not None:
            data = bytes(self._buffer)
            self._buffer.clear()
            self._transport = None
            gateway.closed(self)
            successor = Http2Connection(gateway, lambda: ClientConnection(gateway))
            transport.set_protocol(successor)
            successor.connection_made(transport)
            successor.data_received(data)
        return True

    def _take_ahead(self, data: bytes) -> None:
        """Keep what comes while a request is being answered; a tunnel's bytes go on."""
        exchange = self._exchange
        if exchange is not None and exchange.is_tunnel:
            exchange.client_data(data)
            return
        self._buffer += data
        if len(self._buffer) > PIPELINE_BYTES:
            self._pause_reading()

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
            if self._state is State.UPLOAD:
                self._linger()  # the client is still sending; closing at once could lose the answer
            else:
                self._transport.close()
            return
        self._state = State.HEAD
        self._head = None
        self._since_s = self._gateway.now()
        if self._is_read_paused:
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

    def hold(self, paused: bool) -> None:
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
        elif self._state is State.UPLOAD:
            if waited_s >= limits.request_s and not self._is_read_paused:
                self.abort()
        elif self._state is State.BODY or (self._state is State.HEAD and self._buffer):
            if waited_s >= limits.request_s and not self._is_write_paused:
                message = f"the request did not arrive within {limits.request_s:g} s"
                self._refuse_and_close(error(408, message, "bad_request"))
        elif self._state is State.HEAD and waited_s >= limits.keep_alive_s:
            self.close_if_idle()

    def close_if_idle(self, before_s: float = inf) -> None:
        """Close it unless a request is under way or it was used at or after ``before_s``."""
        is_idle = self._state is State.HEAD and not self._buffer and self._since_s < before_s
        if is_idle and self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """End at once."""
        if self._transport is not None:
            self._transport.abort()

    # -- reading requests

    def _advance(self) -> None:
        """Take requests from the buffer until more bytes are needed or one is under way."""
        while self._buffer and not self._is_advancing and not self._is_write_paused:
            if self._state is not State.HEAD or self._transport is None or self._transport.is_closing():
                return
            buffer = self._buffer
            if self._scanned == 0:
                self._since_s = self._gateway.now()
                if buffer.startswith(b"\r\n"):  # RFC 9112, 2.2: one empty line before a request is forgiven
                    del buffer[:2]
            try:
                length = find_head(buffer, max(0, self._scanned - 3))
            except ProtocolError as problem:
                self._refuse_and_close(error(problem.status, problem.message, "bad_request"))
                return
            if length < 0:
                self._scanned = len(buffer)
                return
            self._scanned = 0
            data = bytes(buffer)
            buffer.clear()
            self._take(data)

    def _take(self, data: bytes) -> None:
        """Take bytes that continue what came so far, the buffer being empty; what is too much goes there.

        An answer may be complete before this returns; ``_is_advancing`` keeps the next request out of here
        until it does.
        """
        self._is_advancing = True
        try:
            if self._state is State.HEAD:
                head = scan_request(data) or read_request(data)
                if head is None:
                    self._buffer += data
                    self._scanned = len(data)
                    return
                self._begin(head)
                data = data[head.size :]
            self._take_body(data)
        except ProtocolError as problem:
            self._refuse_and_close(error(problem.status, problem.message, "bad_request"))
        finally:
            self._is_advancing = False
        if self._buffer:
            self._advance()

    def _begin(self, head: RequestHead) -> None:
        """Decide what the head allows, before any of the body is taken."""
        gateway = self._gateway
        self._head = head
        self._sequence = number = next(gateway.numbers)
        given_id = head.request_id
        if given_id and _REQUEST_ID.fullmatch(given_id):
            self._request_id = given_id
        else:
            self._request_id = gateway.id_prefix + b"%x" % number
        directory = gateway.directory
        known = directory.known.get((head.authorization, head.host, head.target))
        self._key, self._verdict = known or directory.enter(head)
        self._body_bytes = 0
        self._chunks = Chunks() if head.content_length < 0 else None
        self._state = State.BODY
        if head.content_length > SMALL_BODY_BYTES or head.content_length < 0 or head.expects_continue:
            self._begin_large(head)

    def _begin_large(self, head: RequestHead) -> None:
        """Decide about a body that is not worth reading if nobody wants it."""
        verdict, limits = self._verdict, self._gateway.limits
        if isinstance(verdict, Reply) and verdict.status >= 400:
            self._refuse_and_close(verdict)
            return
        self._check_size(head.content_length)
        if head.expects_continue:
            self.write(CONTINUE)
        if isinstance(verdict, Target) and head.content_length > limits.max_body_bytes:
            self._start_upload(head, verdict)

    def _check_size(self, body_bytes: int) -> None:
        limits = self._gateway.limits
        limit = limits.max_upload_bytes if isinstance(self._verdict, Target) else limits.max_body_bytes
        if body_bytes > limit:
            raise ProtocolError(413, f"the body has {body_bytes} bytes; allowed are {limit}")

    def _take_body(self, data: bytes) -> None:
        """Take more of a body."""
        head = self._head
        if head is None or self._state is not State.BODY:
            if self._state is State.UPLOAD:
                self._pass_on(data)
            return
        if len(data) == head.content_length and self._body_bytes == 0:
            self._route(head, data)
            return
        if self._chunks is not None:
            self._take_chunks(head, self._chunks, data)
            return
        missing = head.content_length - self._body_bytes
        if len(data) > missing:
            self._buffer += data[missing:]
            data = data[:missing]
        if len(data) < missing:
            self._body.append(data)
            self._body_bytes += len(data)
        elif self._body:
            self._body.append(data)
            body, self._body = b"".join(self._body), []
            self._route(head, body)
        else:
            self._route(head, data)

    def _take_chunks(self, head: RequestHead, chunks: Chunks, data: bytes) -> None:
        """Take the chunks that are there; the request is sent on with a length if all of it is held."""
        payload: list[bytes] = []
        used = chunks.feed(data, payload)
        if used < len(data):
            self._buffer += data[used:]
        self._body += payload
        self._body_bytes += sum([len(part) for part in payload])
        self._check_size(self._body_bytes)
        if chunks.is_done:
            body, self._body = b"".join(self._body), []
            self._route(head, body)
        elif self._body_bytes > self._gateway.limits.max_body_bytes and isinstance(self._verdict, Target):
            self._start_upload(head, self._verdict)

    # -- bodies that are passed through

    def _start_upload(self, head: RequestHead, target: Target) -> None:
        self._state = State.UPLOAD
        held, self._body = b"".join(self._body), []
        exchange = self._admit(head, b"", target, NO_PEEK, head.content_length)
        if exchange is not None:
            exchange.start()
        if held and self._exchange is not None:
            self._exchange.body_data(held, False)

    def _pass_on(self, data: bytes) -> None:
        """Hand on what the client sent of the body; what follows it is the next request."""
        head, exchange = self._head, self._exchange
        if head is None or exchange is None or not data:
            return
        if self._chunks is not None:
            payload: list[bytes] = []
            used = self._chunks.feed(data, payload)
            rest, data, is_last = data[used:], b"".join(payload), self._chunks.is_done
        else:
            missing = head.content_length - self._body_bytes
            rest, data, is_last = data[missing:], data[:missing], len(data) >= missing
        self._buffer += rest
        self._body_bytes += len(data)
        if self._chunks is not None and self._body_bytes > self._gateway.limits.max_upload_bytes:
            exchange.client_gone()  # its length was not known before, and an answer may be under way
            self.abort()
            return
        if is_last:
            self._state = State.BUSY
        exchange.body_data(data, is_last)

    # -- routing

    def _route(self, head: RequestHead, body: bytes) -> None:
        """Admit the complete request, or answer it."""
        found: Found = NO_PEEK
        verdict = self._verdict
        if isinstance(verdict, ByModel):
            peeked = scan_body(body)
            model = None if peeked is None else verdict.targets.get(peeked[0])
            if peeked is None or model is None:
                verdict, found = self._gateway.directory.by_model(verdict, body)
            else:
                verdict, found = model, peeked
        if isinstance(verdict, Target):
            self._state = State.BUSY
            exchange = self._admit(head, body, verdict, found, len(body))
            if exchange is not None:
                exchange.start()
        elif isinstance(verdict, Reply):
            self._answer(head, verdict)

    def _admit(
        self, head: RequestHead, body: bytes, target: Target, found: Found, body_bytes: int
    ) -> Exchange | None:
        """Ask the policies; answer here what they refuse."""
        gateway = self._gateway
        now_s = gateway.now()
        model, stream, max_tokens, user = found
        request = Request(
            target.service,
            model,
            self._key,
            stream,
            max_tokens,
            user,
            body_bytes,
            head,
            body,
            now_s,
            target.path,
            self._request_id,
            gateway.directory.wants_tokens,
            self._state is State.UPLOAD,
        )
        decision = gateway.policies.admission.admit(request, now_s)
        service = gateway.find(target.service)
        if decision is not ADMIT:
            if decision.refusal is not None:
                self._answer(head, decision.refusal)
                return None
            if decision.service:
                service = gateway.find(decision.service)
            if decision.model:
                request.ask_for(decision.model)
            request.criticality = decision.criticality
            if decision.shadow:
                send_copy(gateway, gateway.find(decision.shadow), request, self._sequence)
        if service is None:  # it went while the body came
            self._answer(head, error(404, f"no service {target.service!r}", "not_found"))
            return None
        self._exchange = Exchange(gateway, self, service, request, self._sequence, decision)
        return self._exchange

    def _answer(self, head: RequestHead, reply: Reply) -> None:
        """Answer for the router itself."""
        keep_alive = head.keep_alive and not self._gateway.is_closing and self._state is not State.UPLOAD
        self.write(reply.encode(keep_alive, self._request_id, head.method != b"HEAD"))
        self._gateway.refused(head, self._request_id, reply)
        if self._state is not State.UPLOAD:
            self._state = State.BUSY
        self.exchange_finished(keep_alive)

    def _refuse_and_close(self, reply: Reply) -> None:
        """Answer, then read the rest into nothing for a moment: closing at once could lose the answer."""
        head = self._head
        self._gateway.refused(head, self._request_id, reply)
        if self._transport is None or self._transport.is_closing():
            return
        self.write(reply.encode(False, self._request_id, head is None or head.method != b"HEAD"))
        self._linger()

    def _linger(self) -> None:
        """Read the rest into nothing for a moment before closing."""
        if self._transport is None or self._transport.is_closing():
            return
        self._state = State.LINGERING
        self._resume_reading()
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
