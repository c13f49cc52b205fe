"""An admitted request as it goes to a replica, and the limits it is held to. Pure."""

from __future__ import annotations

import msgspec

from tidecell.traffic.fair_queue import HEADER
from tidecell.traffic.policy import Facts

_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


class Limits(msgspec.Struct, frozen=True):
    """How long each phase may take, in seconds, and how large a body may be.

    Attributes:
        max_body_bytes: Of a request that is held whole: to find its model, and to send it again if a replica
            fails.
        max_upload_bytes: Of a request by path or host; what is larger than ``max_body_bytes`` is passed
            through.
        connect_s: To connect to a replica.
        first_byte_s: From the request to the first byte of the answer.
        idle_s: Without a byte of progress, once the answer has begun.
        total_s: From admission to the last byte; tunnels are exempt.
        request_s: For a client to send a head or the next part of a body.
        keep_alive_s: Between a client's requests.
        shutdown_s: For requests in flight when the router is told to stop.
    """

    max_body_bytes: int = 8 * 1024 * 1024
    max_upload_bytes: int = 1024 * 1024 * 1024
    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 7200.0
    request_s: float = 30.0
    keep_alive_s: float = 75.0
    shutdown_s: float = 30.0


class Request(Facts, gc=False):
    """What was asked, as far as it matters after routing.

    Attributes:
        path: Target for the replica.
        request_id: Its id, given by the client or made.
        hides_token: The Authorization field was for the router; a replica has no use for it.
        criticality: Level that the replica is told; empty: what the client said.
        streams_body: Its body follows while it is under way: as chunks if ``body_bytes`` is -1.
    """

    path: bytes
    request_id: bytes
    hides_token: bool
    streams_body: bool = False
    criticality: str = ""

    def ask_for(self, model: str) -> None:
        """Name another model in the body; a body that is no JSON object is left as it is."""
        try:
            fields = msgspec.json.decode(self.body, type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            return
        fields["model"] = msgspec.Raw(msgspec.json.encode(model))
        self.body = msgspec.json.encode(fields)
        self.body_bytes = len(self.body)

    def wire_head(self) -> bytes:
        """Return the head as a replica gets it: framed anew, by length if that is known."""
        head = self.head
        more = b""
        if head.authorization and not self.hides_token:
            more = b"authorization: %b\r\n" % head.authorization
        if head.upgrade:
            more += b"connection: Upgrade\r\nupgrade: %b\r\n" % head.upgrade
        if self.body_bytes < 0:
            more += b"transfer-encoding: chunked\r\n"
        elif self.body_bytes or head.method in _WITH_BODY:
            more += b"content-length: %d\r\n" % self.body_bytes
        forward = head.forward
        if self.criticality:
            if head.get(HEADER):
                lines = forward.splitlines(keepends=True)
                forward = b"".join(line for line in lines if not line.startswith(HEADER + b":"))
            more += b"%b: %b\r\n" % (HEADER, self.criticality.encode())
        parts = (head.method, self.path, forward, self.request_id, more)
        return b"%b %b HTTP/1.1\r\n%bx-request-id: %b\r\n%b\r\n" % parts
