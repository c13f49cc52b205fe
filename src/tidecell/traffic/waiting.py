"""What a client that asked for a stream sees while no replica is ready: the stream, begun early. Pure.

Server-sent events allow comments, which every client skips. They keep proxies and clients from giving up,
and tell a person why nothing comes. The price: the status is sent before there is an answer, so an error
arrives as an event, as it does in the middle of any stream.
"""

from __future__ import annotations

AFTER_S = 2.0
EVERY_S = 5.0
END = b"0\r\n\r\n"


def begin(request_id: bytes) -> bytes:
    """Return the head of a stream that begins before its answer."""
    return (
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-store\r\n"
        b"transfer-encoding: chunked\r\nx-request-id: %b\r\n\r\n" % request_id
    )


def comment(service: str, num_waiting: int, waited_s: float) -> bytes:
    """Return a comment that says what is waited for, as a chunk."""
    others = max(0, num_waiting - 1)
    text = f": waiting for a replica of {service} since {waited_s:.0f} s, {others} others wait\n\n"
    return chunk(text.encode())


def event(body: bytes) -> bytes:
    """Return a whole answer that is no stream as one event."""
    return b"data: " + b"\ndata: ".join(body.splitlines()) + b"\n\n"


def chunk(data: bytes) -> bytes:
    """Return data as a chunk; nothing for nothing, which would end the stream."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""
