"""A request's body that is passed through instead of held. Pure.

It is framed for the replica, and waits here until that is connected.
"""

from __future__ import annotations


class Upload:
    """The body of one request.

    Args:
        is_chunked: Its length is not known, so it goes out in chunks.

    Attributes:
        is_done: Whether all of it came from the client.
        body_bytes: Bytes of its content so far.
    """

    __slots__ = ("_has_begun", "_held", "_is_chunked", "body_bytes", "is_done")

    def __init__(self, is_chunked: bool) -> None:
        self._is_chunked = is_chunked
        self._held: list[bytes] = []
        self._has_begun = False
        self.is_done = False
        self.body_bytes = 0

    def take(self, data: bytes, is_last: bool) -> bytes:
        """Take a part from the client; return what the replica gets now, empty while nobody is connected."""
        self.body_bytes += len(data)
        self.is_done = is_last
        if self._is_chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data) if data else b""
            if is_last:
                data += b"0\r\n\r\n"
        if self._has_begun:
            return data
        self._held.append(data)
        return b""

    def begin(self) -> bytes:
        """Return what came before there was a connection; from now on parts are not held."""
        self._has_begun = True
        held, self._held = self._held, []
        return b"".join(held)
