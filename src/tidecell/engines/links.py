"""Connections over one unix socket, without an event loop: what agent and sessions listen with.

What cannot be sent at once is kept and sent when the peer takes it. ``Switchboard`` speaks lines of JSON.
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


class Connections:
    """All connections of one process to one socket; what arrives is in each link's ``inbox``.

    Args:
        selector: Shared with the rest of the process; its keys' data are called with the event mask.
        on_data: Called when a link's ``inbox`` has grown; it takes from there what it can use.
        on_open: Called once for each new connection.
        on_close: Called once for each connection that ended.
        max_behind_bytes: A peer with more than this unread is dropped; None: it is waited for.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_data: Callable[[Link], None],
        on_open: Callable[[Link], None] = lambda link: None,
        on_close: Callable[[Link], None] = lambda link: None,
        max_behind_bytes: int | None = None,
    ) -> None:
        self._selector = selector
        self._on_data, self._on_open, self._on_close = on_data, on_open, on_close
        self._max_behind_bytes = max_behind_bytes
        self.links: set[Link] = set()

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
            self.links.add(link)
            self._selector.register(sock, selectors.EVENT_READ, lambda mask: self._serve(link, mask))
            self._on_open(link)

    def _serve(self, link: Link, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(link)
        if not mask & selectors.EVENT_READ or link not in self.links:
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
        self._on_data(link)

    def write(self, link: Link, data: bytes) -> None:
        """Send bytes; a peer that is gone is noticed, not raised."""
        link.outbox += data
        self._flush(link)

    def _flush(self, link: Link) -> None:
        if link not in self.links:
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
        if self._max_behind_bytes is not None and len(link.outbox) > self._max_behind_bytes:
            self.close(link)
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.outbox else 0)
        key = self._selector.get_key(link.sock)
        if key.events != events:
            self._selector.modify(link.sock, events, key.data)

    def close(self, link: Link) -> None:
        """End a connection and say so."""
        if link not in self.links:
            return
        self.links.discard(link)
        self._selector.unregister(link.sock)
        link.sock.close()
        self._on_close(link)


class Switchboard(Connections):
    """Connections that carry messages, one a line.

    Args:
        selector: As for ``Connections``.
        on_line: Called with each whole line.
        on_close: Called once for each connection that ended.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        on_line: Callable[[Link, bytes], None],
        on_close: Callable[[Link], None],
    ) -> None:
        super().__init__(selector, self._split, on_close=on_close)
        self._on_line = on_line

    def _split(self, link: Link) -> None:
        while link in self.links and (end := link.inbox.find(b"\n")) >= 0:
            line = bytes(link.inbox[:end])
            del link.inbox[: end + 1]
            self._on_line(link, line)
        if len(link.inbox) > LINE_LIMIT:
            self.close(link)

    def send(self, link: Link, message: Any) -> None:
        """Send a message as one line; a peer that is gone is noticed, not raised."""
        self.write(link, _encode(message) + b"\n")
