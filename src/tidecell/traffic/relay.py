"""How a replica's answer becomes the client's: a new head, the body's bytes as they are. Pure.

Chunks pass through untouched. Only where the two sides differ is a body framed anew: one that ends with
the connection becomes chunks for a client of HTTP/1.1 (so that a cut is not mistaken for the end), and
chunks become plain bytes for one of HTTP/1.0.
"""

from __future__ import annotations

import re
from collections import deque

from tidecell.traffic.http1 import RequestHead, ResponseHead
from tidecell.traffic.replies import encode_head
from tidecell.traffic.upstream import Framing

TAIL_BYTES = 4096
_IN = re.compile(rb'"prompt_tokens"\s*:\s*([0-9]{1,12})')
_OUT = re.compile(rb'"completion_tokens"\s*:\s*([0-9]{1,12})')


class Relay:
    """One answer on its way.

    Attributes:
        keep_alive: Whether the client's connection can carry another answer after this one.
        is_framed: Whether the client can tell a cut body from a complete one.
        body_bytes: Bytes of the body that were passed on, framing included.
    """

    __slots__ = ("_rechunk", "_tail", "body_bytes", "head", "is_framed", "keep_alive")

    def __init__(
        self,
        request: RequestHead,
        head: ResponseHead,
        framing: Framing,
        request_id: bytes,
        keep_alive: bool,
    ) -> None:
        self._rechunk = framing is Framing.UNTIL_CLOSE and not request.is_http10
        self._tail: deque[bytes] = deque(maxlen=4)
        self.body_bytes = 0
        self.is_framed = framing is Framing.LENGTH or (
            framing is not Framing.TUNNEL and not request.is_http10
        )
        self.keep_alive = keep_alive and self.is_framed
        self.head = self._new_head(request, head, framing, request_id)

    def body(self, data: bytes, is_done: bool) -> bytes:
        """Return what the client gets for ``data``."""
        if data:
            self._tail.append(data)
        if self._rechunk:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if is_done:
                data += b"0\r\n\r\n"
        self.body_bytes += len(data)
        return data

    def usage(self) -> tuple[int | None, int | None]:
        """Return prompt and completion tokens from the ``usage`` at the end of the answer, if it has one.

        Only the last few kilobytes are looked at, once: parsing every frame is what makes proxies slow.
        """
        tail = b"".join(part[-TAIL_BYTES:] for part in self._tail)
        at = tail.rfind(b'"usage"')
        if at < 0:
            return None, None
        return _last(_IN, tail, at), _last(_OUT, tail, at)

    def _new_head(
        self, request: RequestHead, head: ResponseHead, framing: Framing, request_id: bytes
    ) -> bytes:
        fields = head.fields
        if framing is Framing.TUNNEL:
            fields = [*fields, (b"connection", b"Upgrade"), (b"upgrade", request.upgrade)]
        elif self._rechunk:
            fields = [*fields, (b"transfer-encoding", b"chunked")]
        elif framing is Framing.CHUNKED and request.is_http10:
            fields = [field for field in fields if field[0] != b"transfer-encoding"]
        if not any(name == b"x-request-id" for name, _ in fields):
            fields = [*fields, (b"x-request-id", request_id)]
        if framing is not Framing.TUNNEL and not self.keep_alive:
            fields = [*fields, (b"connection", b"close")]
        elif request.is_http10:
            fields = [*fields, (b"connection", b"keep-alive")]
        return encode_head(head.status_line, fields)


def _last(pattern: re.Pattern[bytes], tail: bytes, at: int) -> int | None:
    match = pattern.search(tail, at)
    return int(match.group(1)) if match else None
