"""Lines of JSON over one unix socket, without an event loop: what the agent listens with.

A line is handed on whole; what cannot be sent at once is kept and sent when the peer takes it.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

LINE_LIMIT = 8 << 20  # longer lines end the connection
READ_BYTES = 1 << 18

_encode = msgspec.json.Encoder().encode


@dataclass(eq=False)
class Link:
    """One connection; ``owner`` is whatever its user keeps there."""

    sock: socket.socket
    inbox: bytearray = field(default_factory=bytearray)
    outbox: bytearray = field(default_factory=bytearray)
    owner: Any = None


class Switchboard:
    """All connections of one process.

    Args:
        selector: Shared with the rest of the process; its keys' data are called with the event mask.
        on_line: Called with each whole line.
        on_close: Called once for each connection that ended.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_line: Callable[[Link, bytes], None],
        on_close: Callable[[Link], None],
    ) -> None:
        self._selector = selector
        self._on_line = on_line
        self._on_close = on_close
        self._links: set[Link] = set()

    def listen(self, path: Path) -> None:
        """Listen on a unix socket that only its owner may open."""
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old_mask = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(old_mask)
        server.listen(256)
        server.setblocking(False)
        self._selector.register(server, selectors.EVENT_READ, lambda mask: self._accept(server))

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            sock, _ = server.accept()
            sock.setblocking(False)
            link = Link(sock)
            self._links.add(link)
            self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._serve(link, mask))

    def _serve(self, link: Link, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(link)
        if not mask & selectors.EVENT_READ or link not in self._links:
            return
        try:
            data = link.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close(link)
            return
        link.inbox += data
        while link in self._links and (end := link.inbox.find(b"\n")) >= 0:
            line = bytes(link.inbox[:end])
            del link.inbox[: end + 1]
            self._on_line(link, line)
        if len(link.inbox) > LINE_LIMIT:
            self.close(link)

    def send(self, link: Link, message: Any) -> None:
        """Send a message as one line; a peer that is gone is noticed, not raised."""
        link.outbox += _encode(message) + b"\n"
        self._flush(link)

    def _flush(self, link: Link) -> None:
        if link not in self._links:
            return
        try:
            while link.outbox:
                sent = link.sock.send(link.outbox)
                del link.outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self.close(link)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.outbox else 0)
        key = self._selector.get_key(link.sock)
        if key.events != events:
            self._selector.modify(link.sock, events, key.data)

    def close(self, link: Link) -> None:
        """End a connection and say so."""
        if link not in self._links:
            return
        self._links.discard(link)
        self._selector.unregister(link.sock)
        link.sock.close()
        self._on_close(link)
