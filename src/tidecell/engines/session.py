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
import struct
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

from tidecell.client.terminal import HEAD, WINDOW
from tidecell.engines.links import Connections, Link
from tidecell.engines.use import Use
from tidecell.task_link import AgentLink, Notice

SCROLLBACK_BYTES = 1 << 16
REPORT_EVERY_S = 2.0
REPORT_IDLE_EVERY_S = 10.0  # the cell is told how long nobody has used it
READ_BYTES = 1 << 16
MAX_BEHIND_BYTES = 1 << 20  # an attachment that does not read for so long is dropped, not waited for


class Session:
    """The program, its terminal and everybody attached to it.

    Args:
        argv: The program.
        path: Where attachments connect.
        idle_timeout_s: It ends after so long without use; 0: never for that.
    """

    def __init__(self, argv: Sequence[str], path: Path, idle_timeout_s: float = 0.0) -> None:
        self._selector = selectors.DefaultSelector()
        self._past = bytearray()
        self._typed = bytearray()  # what the terminal did not take yet
        self._last_s = time.monotonic()
        self._idle_timeout_s = idle_timeout_s
        self.idled = False
        self._report_due_s = 0.0
        self._shown: Notice | None = None
        self._link = AgentLink.from_environment()
        self.pid, self._terminal = _start(argv)
        os.set_blocking(self._terminal, False)
        self._use = Use(self.pid)
        self._clients = Connections(
            self._selector, self._take, self._welcome, max_behind_bytes=MAX_BEHIND_BYTES
        )
        self._clients.listen(path)
        self._selector.register(self._terminal, selectors.EVENT_READ, self._serve_terminal)

    def run(self) -> int:
        """Serve until the program ends; return its wait status."""
        due_s = 0.0
        while True:
            for key, mask in self._selector.select(0.2):
                key.data(mask)
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
        if now_s >= self._report_due_s:
            self._report_due_s = now_s + REPORT_IDLE_EVERY_S
            self._link.report({"kind": "session", "idle_s": round(now_s - self._last_s, 1)})
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

    def _serve_terminal(self, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._type(b"")
        if mask & selectors.EVENT_READ:
            self._read_terminal()

    def _read_terminal(self) -> bool:
        """Read once; return whether there may be more."""
        try:
            data = os.read(self._terminal, READ_BYTES)
        except BlockingIOError:
            return False
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
        while self._read_terminal():
            pass
        for client in list(self._clients.links):
            client.sock.settimeout(1.0)
            with contextlib.suppress(OSError):
                client.sock.sendall(client.outbox)
            client.sock.close()

    def _type(self, data: bytes) -> None:
        """Type something; what the terminal does not take now is typed when it does."""
        self._typed += data
        try:
            while self._typed:
                del self._typed[: os.write(self._terminal, self._typed)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self._typed.clear()
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._typed else 0)
        with contextlib.suppress(KeyError):
            self._selector.modify(self._terminal, events, self._serve_terminal)

    def _tell(self, data: bytes) -> None:
        """Show something on every attached terminal, and in the task's log."""
        self._past += data
        del self._past[:-SCROLLBACK_BYTES]
        for client in list(self._clients.links):
            self._clients.write(client, data)
        with contextlib.suppress(OSError):
            os.write(1, data)

    # ------------------------------------------------------------------------- attachments

    def _welcome(self, client: Link) -> None:
        self._last_s = time.monotonic()
        self._clients.write(client, bytes(self._past))

    def _take(self, client: Link) -> None:
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
                self._type(body)


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
