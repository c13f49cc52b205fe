"""The near end of a terminal: attach to a session, or run a program beside a task, from this terminal.

Bytes go both ways as they are; frames from here carry what was typed (``i``) or the window's size (``w``).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import struct
import subprocess
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
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
    return WINDOW.pack(size.lines, size.columns)


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


# -------------------------------------------------------------------------- beside a running task


def run_beside(pid: int, argv: Sequence[str]) -> int:
    """Run a program in a task's environment, directory and control group; return its exit status.

    Its streams are those of this process, a terminal included. It works on the machine of the task, for the
    user whose processes the tasks are.

    Raises:
        TidecellError: The task is not here, or the program cannot be run.
    """
    place = Path(f"/proc/{pid}")
    try:
        raw = (place / "environ").read_bytes()
        groups = [line.partition("::")[2] for line in (place / "cgroup").read_text().splitlines()]
        workdir = os.readlink(place / "cwd")
    except OSError as error:
        text = f"its process {pid} cannot be reached from here ({error.strerror})"
        raise TidecellError(text, "tide exec works on the machine that the task runs on") from error
    env = dict(pair.split("=", 1) for pair in os.fsdecode(raw).split("\0") if "=" in pair)
    env["TERM"] = os.environ.get("TERM", "dumb")
    group = next((g for g in groups if g and g != "/"), "")

    def join() -> None:
        with contextlib.suppress(OSError):  # where groups are not ours to write, it is not counted there
            Path("/sys/fs/cgroup", group.lstrip("/"), "cgroup.procs").write_text(str(os.getpid()))

    try:
        done = subprocess.Popen(argv, env=env, cwd=workdir, preexec_fn=join if group else None)
    except OSError as error:
        raise TidecellError(
            f"'{argv[0]}' cannot be run: {error.strerror}", "is it on the task's PATH?"
        ) from error
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the program's
    try:
        status = done.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    return 128 - status if status < 0 else status


__all__ = ["HEAD", "WINDOW", "Detacher", "attach", "pack", "run_beside"]
