"""How a replica's answer becomes the client's: a new head, the body's bytes as they are. Pure.

Chunks pass through untouched. Only where the two sides differ is a body framed anew: one that ends with
the connection becomes chunks for a client of HTTP/1.1 (so that a cut is not mistaken for the end), and
chunks become plain bytes for one of HTTP/1.0.
"""

from __future__ import annotations

from collections import deque

from tidecell.traffic.http1 import RequestHead, ResponseHead
from tidecell.traffic.upstream import Framing
from tidecell.traffic.usage import TAIL_BYTES, Usage, read_usage
from tidecell.traffic.waiting import event


class Relay:
    """One answer on its way.

    Attributes:
        keep_alive: Whether the client's connection can carry another answer after this one.
        is_framed: Whether the client can tell a cut body from a complete one.
        is_plain: Whether the body's bytes pass as they are.
        body_bytes: Bytes of the body that were passed on, framing included.
        frames: Pieces of it.
        tail: The last of them.
    """

    __slots__ = ("_whole", "body_bytes", "frames", "head", "is_framed", "is_plain", "keep_alive", "tail")

    def __init__(
        self,
        request: RequestHead,
        head: ResponseHead,
        framing: Framing,
        request_id: bytes,
        keep_alive: bool,
        has_begun: bool = False,
    ) -> None:
        is_http10 = request.is_http10
        self.is_plain = framing is not Framing.UNTIL_CLOSE or is_http10
        self.is_framed = framing is Framing.LENGTH or (framing is not Framing.TUNNEL and not is_http10)
        self.keep_alive = keep_alive and self.is_framed
        self.body_bytes = 0
        self.frames = 0
        self.tail: deque[bytes] = deque(maxlen=4)
        lines = head.forward
        if not head.has_request_id:
            lines = b"%bx-request-id: %b\r\n" % (lines, request_id)
        if is_http10 or framing is Framing.UNTIL_CLOSE or framing is Framing.TUNNEL:
            lines = self._reframed(lines, request, framing)
        if framing is not Framing.TUNNEL and not self.keep_alive:
            lines += b"connection: close\r\n"
        self.head = b"%b\r\n%b\r\n" % (head.status_line, lines)
        self._whole: list[bytes] | None = None
        if has_begun:  # the client has a head and waits for events, see ``waiting``
            self.head, self.is_plain, self.is_framed, self.keep_alive = b"", False, True, keep_alive
            if head.status != 200 or b"content-type: text/event-stream" not in head.forward:
                self._whole = []

    def _reframed(self, lines: bytes, request: RequestHead, framing: Framing) -> bytes:
        if framing is Framing.TUNNEL:
            return b"%bconnection: Upgrade\r\nupgrade: %b\r\n" % (lines, request.upgrade)
        if not request.is_http10:
            return lines + b"transfer-encoding: chunked\r\n"
        if framing is Framing.CHUNKED:
            kept = [line for line in lines.splitlines(True) if not line.startswith(b"transfer-encoding:")]
            lines = b"".join(kept)
        return lines + b"connection: keep-alive\r\n" if self.keep_alive else lines

    def body(self, data: bytes, is_done: bool) -> bytes:
        """Return what the client gets for ``data``."""
        if data:
            self.tail.append(data)
            self.frames += 1
        if self._whole is not None:
            self._whole.append(data)
            data = event(b"".join(self._whole)) if is_done else b""
        if not self.is_plain:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if is_done:
                data += b"0\r\n\r\n"
        self.body_bytes += len(data)
        return data

    def usage(self) -> Usage:
        """Return prompt, completion and cached tokens, if the answer ends with them."""
        tail = self.tail
        return read_usage(tail[-1] if len(tail) == 1 else b"".join([part[-TAIL_BYTES:] for part in tail]))
