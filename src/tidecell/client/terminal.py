"""The near end of a session: attach this terminal to it.

Bytes go both ways as they are; frames from here carry what was typed (``i``) or the window's size (``w``).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

from tidecell.structs.errors import TidecellError

HEAD = struct.Struct("!cI")
WINDOW = struct.Struct("!HH")
ESCAPE = 0x1D  # Ctrl-]
READ_BYTES = 1 << 16


def pack(kind: bytes, body: bytes) -> bytes:
    """Return one frame."""
    return HEAD.pack(kind, len(body)) + body


class Detacher:
    """Finds the wish to detach in what is typed: ``~.`` at the start of a line, or Ctrl-] d."""

    def __init__(self) -> None:
        self._held = b""
        self._fresh = True
        self.detached = False

    def feed(self, data: bytes) -> bytes:
        """Return what goes on to the program; sets ``detached``."""
        out = bytearray()
        for byte in data:
            char = bytes([byte])
            if self._held == b"~" and char == b".":
                self.detached = True
                return bytes(out)
            if self._held == bytes([ESCAPE]) and char == b"d":
                self.detached = True
                return bytes(out)
            if self._held:
                out += self._held
                self._held = b""
                self._fresh = False
            if byte == ESCAPE or (self._fresh and char == b"~"):
                self._held = char
                continue
            out.append(byte)
            self._fresh = char in b"\r\n"
        return bytes(out)


def attach(path: Path, name: str) -> bool:
    """Join a session's terminal to this one; return whether it was left (True) or ended (False).

    Raises:
        TidecellError: Nobody listens there.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(str(path))
    except OSError as error:
        sock.close()
        raise TidecellError(
            f"the session of '{name}' does not answer ({error.strerror})",
            f"tide status {name} shows whether it runs; attaching works on the machine it runs on",
        ) from error
    detacher = Detacher()
    with sock, _raw_terminal(), _window_changes(lambda: sock.sendall(pack(b"w", _window()))):
        _pump(sock, detacher)
    return detacher.detached


def _pump(sock: socket.socket, detacher: Detacher) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sock, selectors.EVENT_READ)
    selector.register(0, selectors.EVENT_READ)
    while not detacher.detached:
        for key, _ in selector.select():
            if key.fileobj == 0:
                data = os.read(0, READ_BYTES)
                if not data:  # what was typed came from a file that is at its end
                    selector.unregister(0)
                    continue
                with contextlib.suppress(OSError):
                    sock.sendall(pack(b"i", detacher.feed(data)))
                continue
            data = sock.recv(READ_BYTES)
            if not data:
                return
            os.write(1, data)


def _window() -> bytes:
    try:
        size = os.get_terminal_size(0)
    except OSError:
        return WINDOW.pack(24, 80)
    return WINDOW.pack(size.lines or 24, size.columns or 80)  # 0: a terminal that was never told


@contextlib.contextmanager
def _raw_terminal() -> Iterator[None]:
    """Hand every key on as it is; back to normal afterwards."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    tty.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _window_changes(tell: Callable[[], None]) -> Iterator[None]:
    """Tell the other end the window's size, now and when it changes."""
    if not os.isatty(0):
        yield
        return
    tell()
    before = signal.signal(signal.SIGWINCH, lambda *_: tell())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, before)


__all__ = ["HEAD", "WINDOW", "Detacher", "attach", "pack"]
