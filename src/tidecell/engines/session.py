"""A session: a program on a terminal of its own, which people attach to, leave and come back to.

It runs as a task, between the agent and the shell: it owns the terminal (a pty), keeps its last output, and
serves attachments on a unix socket that only the cell's owner may open. Detaching, or the end of agent or
control plane, changes nothing for the program. It shows notices to leave on the terminal, and ends itself
once nobody has used it for ``idle_timeout``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tidecell.client.terminal import HEAD, WINDOW
from tidecell.engines.use import Use
from tidecell.task_link import AgentLink, Notice

SCROLLBACK_BYTES = 1 << 16
REPORT_EVERY_S = 2.0
READ_BYTES = 1 << 16
MAX_BEHIND_BYTES = 1 << 20  # an attachment that does not read for so long is dropped, not waited for


class Attachment:
    """One client of the terminal."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()


class Session:
    """The program, its terminal and everybody attached to it.

    Args:
        argv: The program.
        path: Where attachments connect.
        idle_timeout_s: It ends after so long without use; 0: never for that.
    """

    def __init__(self, argv: Sequence[str], path: Path, idle_timeout_s: float = 0.0) -> None:
        self._selector = selectors.DefaultSelector()
        self._clients: set[Attachment] = set()
        self._past = bytearray()
        self._last_s = time.monotonic()
        self._idle_timeout_s = idle_timeout_s
        self.idled = False
        self._shown: Notice | None = None
        self._link = AgentLink.from_environment()
        self.pid, self._terminal = _start(argv)
        self._use = Use(self.pid)
        self._server = _listen(path)
        self._selector.register(self._server, selectors.EVENT_READ)
        self._selector.register(self._terminal, selectors.EVENT_READ)

    def run(self) -> int:
        """Serve until the program ends; return its wait status."""
        due_s = 0.0
        while True:
            for key, mask in self._selector.select(0.2):
                if key.fileobj is self._server:
                    self._accept()
                elif key.fileobj == self._terminal:
                    self._read_terminal()
                else:
                    self._serve(key.data, mask)
            self._show_notice()
            if time.monotonic() >= due_s:
                due_s = time.monotonic() + REPORT_EVERY_S
                self._end_if_idle()
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._read_rest()
                return status

    def hang_up(self) -> None:
        """Tell the program that its terminal goes away: what an interactive shell ends for."""
        for number in (signal.SIGHUP, signal.SIGCONT):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _end_if_idle(self) -> None:
        """End a session that nobody uses: nothing typed or printed, nothing computed."""
        used = self._use.is_used()
        now_s = time.monotonic()
        if used:
            self._last_s = now_s
        if self._idle_timeout_s and now_s - self._last_s >= self._idle_timeout_s and not self.idled:
            self.idled = True
            self._tell(f"\r\n[tidecell: idle for {self._idle_timeout_s:g} s: this session ends]\r\n".encode())
            self.hang_up()

    def _show_notice(self) -> None:
        notice = self._link.notice
        if notice is None or notice is self._shown:
            return
        self._shown = notice
        left = f"within {notice.remaining_s:.0f} s" if notice.remaining_s >= 1 else "now"
        self._tell(f"\r\n[tidecell: this session ends {left}: {notice.cause}]\r\n".encode())
        if notice.cause == "cancel":  # somebody asked for it: nothing to wait for
            self.hang_up()

    # -------------------------------------------------------------------------- the terminal

    def _read_terminal(self) -> bool:
        try:
            data = os.read(self._terminal, READ_BYTES)
        except OSError:  # the last process that had it open is gone
            data = b""
        if not data:
            with contextlib.suppress(KeyError):
                self._selector.unregister(self._terminal)
            return False
        self._last_s = time.monotonic()
        self._tell(data)
        return True

    def _read_rest(self) -> None:
        os.set_blocking(self._terminal, False)
        with contextlib.suppress(BlockingIOError):
            while self._read_terminal():
                pass
        for client in list(self._clients):
            client.sock.settimeout(1.0)
            with contextlib.suppress(OSError):
                client.sock.sendall(client.outbox)
            client.sock.close()

    def _tell(self, data: bytes) -> None:
        """Show something on every attached terminal, and in the task's log."""
        self._send(data)
        with contextlib.suppress(OSError):
            os.write(1, data)

    def _send(self, data: bytes) -> None:
        self._past += data
        del self._past[:-SCROLLBACK_BYTES]
        for client in list(self._clients):
            client.outbox += data
            self._flush(client)

    # ------------------------------------------------------------------------- attachments

    def _accept(self) -> None:
        sock, _ = self._server.accept()
        sock.setblocking(False)
        client = Attachment(sock)
        self._clients.add(client)
        self._last_s = time.monotonic()
        self._selector.register(sock, selectors.EVENT_READ, client)
        client.outbox += self._past
        self._flush(client)

    def _serve(self, client: Attachment, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(client)
        if client not in self._clients or not mask & selectors.EVENT_READ:
            return
        try:
            data = client.sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.inbox += data
        self._take(client)

    def _take(self, client: Attachment) -> None:
        while len(client.inbox) >= HEAD.size:
            kind, size = HEAD.unpack_from(client.inbox)
            if len(client.inbox) < HEAD.size + size:
                return
            body = bytes(client.inbox[HEAD.size : HEAD.size + size])
            del client.inbox[: HEAD.size + size]
            if kind == b"w" and size == WINDOW.size:
                rows, columns = WINDOW.unpack(body)
                set_window(self._terminal, rows, columns)
            elif kind == b"i":
                self._last_s = time.monotonic()
                with contextlib.suppress(OSError):
                    os.write(self._terminal, body)

    def _flush(self, client: Attachment) -> None:
        try:
            while client.outbox:
                del client.outbox[: client.sock.send(client.outbox)]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if len(client.outbox) > MAX_BEHIND_BYTES:
            self._drop(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.outbox else 0)
        self._selector.modify(client.sock, wanted, client)

    def _drop(self, client: Attachment) -> None:
        if client in self._clients:
            self._clients.discard(client)
            self._selector.unregister(client.sock)
            client.sock.close()


def set_window(terminal: int, rows: int, columns: int) -> None:
    """Tell a terminal its size; the program gets SIGWINCH."""
    with contextlib.suppress(OSError):
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _start(argv: Sequence[str]) -> tuple[int, int]:
    """Start the program on a new terminal; return its pid and the terminal's our end."""
    pid, terminal = os.forkpty()
    if pid == 0:
        env = {**os.environ, "TERM": os.environ.get("TERM") or "xterm-256color"}
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        try:
            os.execvpe(argv[0], list(argv), env)
        except OSError as error:
            os.write(2, f"'{argv[0]}' cannot be run: {error.strerror}\r\n".encode())
            os._exit(127)
    return pid, terminal


def _listen(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    old_mask = os.umask(0o177)
    try:
        server.bind(str(path))
    finally:
        os.umask(old_mask)
    server.listen(16)
    server.setblocking(False)
    return server


def main() -> int:
    """Run a session; the exit status is 127 if the program cannot be run, 128 + N if a signal ended it.

    A shell's own status is that of the last command typed, and says nothing about the session: it is 0.
    """
    idle_timeout_s = float(os.environ.get("TIDECELL_IDLE_TIMEOUT_S") or 0.0)
    session = Session(sys.argv[1:], Path(os.environ["TIDECELL_SESSION"]), idle_timeout_s)
    signal.signal(signal.SIGTERM, lambda *_: session.hang_up())
    try:
        status = os.waitstatus_to_exitcode(session.run())
    finally:
        Path(os.environ["TIDECELL_SESSION"]).unlink(missing_ok=True)
    if session.idled:
        return 0
    return 128 - status if status < 0 else 127 if status == 127 else 0


__all__ = ["Session", "main", "set_window"]

if __name__ == "__main__":
    sys.exit(main())
