"""An agent in miniature for tests and benchmarks: starts workers and speaks the task contract.

It does by script what the cell's agent does by decision: tells members to leave, kills them, starts
them again. Group bookkeeping is the real one (tidecell.engines.groups).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tidecell.engines.groups import Group


class ScriptedAgent:
    """Runs one elastic job; use as a context manager, which ends every worker it started.

    Attributes:
        reports: Data of the reports received, in order.
        log: ``(seconds, what, index)`` of everything that happened.
    """

    def __init__(self, argv: Sequence[str], min_members: int = 1, env: dict[str, str] | None = None) -> None:
        self.argv = list(argv)
        self.env = env or {}
        self.group = Group(min_members)
        self.reports: list[dict[str, Any]] = []
        self.log: list[tuple[float, str, int]] = []
        self.changed = threading.Condition()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self._links: dict[int, socket.socket] = {}
        self._told: set[int] = set()
        self._directory = tempfile.TemporaryDirectory(prefix="tide")
        self._path = str(Path(self._directory.name) / "a.sock")
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self._path)
        self._server.listen()
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> ScriptedAgent:
        return self

    def __exit__(self, *error: object) -> None:
        self._closed = True
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
        self._server.close()
        with self.changed:
            for link in self._links.values():
                link.close()
        self._directory.cleanup()

    # -- the script's verbs ----------------------------------------------------------------------------

    def start(self, index: int) -> None:
        """Start a worker; one of this index that is on its way out is waited for."""
        self.until(lambda: index not in self._links, f"end of the former worker {index}")
        env = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "TIDECELL_JOB": "t",
            "TIDECELL_UID": "t.1",
            "TIDECELL_INDEX": str(index),
            "TIDECELL_ATTEMPT": "1",
            "TIDECELL_EPOCH": "1",
            "TIDECELL_SOCKET": self._path,
            **self.env,
        }
        self._told.discard(index)
        self._note("start", index)
        self._processes[index] = subprocess.Popen([sys.executable, *self.argv], env=env)

    def tell_to_leave(self, index: int, new_size: int, cause: str = "resize", grace_s: float = 30.0) -> None:
        """Send a notice, and the new membership to those who stay."""
        with self.changed:
            self._told.add(index)
            self._note("notice", index)
            self._send(index, notice(cause, new_size, grace_s))
            self._announce(self.group.leaving(index))

    def stop_job(self, cause: str = "preempt") -> None:
        """Tell all members that the whole job stops."""
        with self.changed:
            for index in list(self._links):
                self._told.add(index)
                self._send(index, notice(cause, 0, 30.0))
                self.group.leaving(index)

    def kill(self, index: int, number: int = signal.SIGKILL) -> None:
        """Send a signal to a worker."""
        self._note(f"signal {number}", index)
        self._processes[index].send_signal(number)

    def forget(self, index: int) -> None:
        """Announce a generation without a member that still runs: a lost host."""
        with self.changed:
            self._announce(self.group.gone(index))

    def meet_again(self, index: int) -> None:
        """Announce the same members once more, as after a restart of the agent."""
        with self.changed:
            endpoint = self.group._endpoints[index]
            self._announce(self.group.ready(index, endpoint))

    def drop_connections(self) -> None:
        """Close all sockets to the workers; they connect again."""
        with self.changed:
            links = list(self._links.values())
        for link in links:
            link.shutdown(socket.SHUT_RDWR)

    def until(self, happened: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
        """Wait for something in the log or the reports; fail loudly after ``timeout_s``."""
        with self.changed:
            if not self.changed.wait_for(happened, timeout_s):
                raise TimeoutError(f"no {what} within {timeout_s} s; log: {self.log[-12:]}")

    def until_step(self, step: int, timeout_s: float = 60.0) -> None:
        """Wait until a report says that ``step`` was committed."""
        self.until(lambda: any(r.get("step", -1) >= step for r in self.reports), f"step {step}", timeout_s)

    def exit_status(self, index: int, timeout_s: float = 60.0) -> int:
        """Wait for a worker's end and return its exit status."""
        return self._processes[index].wait(timeout_s)

    def when(self, what: str, index: int) -> float:
        """Return the time of the last such entry of the log."""
        return max(t for t, w, i in self.log if (w, i) == (what, index))

    # -- the contract ----------------------------------------------------------------------------------

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        index = -1
        with connection, connection.makefile("rb") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    with self.changed:
                        if message["type"] == "hello":
                            index = message["index"]
                            self._links[index] = connection
                        self._take(index, message)
                        self.changed.notify_all()
            except OSError:
                pass
        self._ended(index, connection)

    def _take(self, index: int, message: dict[str, Any]) -> None:
        kind = message["type"]
        if kind == "report":
            self.reports.append({**message["data"], "at_agent": time.monotonic()})
            return
        self._note(kind, index)
        if kind == "ready":
            self._announce(self.group.ready(index, message["endpoint"], message.get("generation", 0)))

    def _ended(self, index: int, connection: socket.socket) -> None:
        """The stream ended: the worker ended as well, unless we closed it ourselves."""
        process = self._processes.get(index)
        if self._closed or process is None or self._links.get(index) is not connection:
            return
        try:
            status = process.wait(1.0)
        except subprocess.TimeoutExpired:
            return
        with self.changed:
            self._note("exit", index)
            del self._links[index]
            self._announce(self.group.gone(index))
            if status == 0 and index not in self._told:
                self._complete()
            self.changed.notify_all()

    def _complete(self) -> None:
        for other in list(self._links):
            self._told.add(other)
            self._send(other, notice("completed", 0, 30.0))

    def _announce(self, message: dict[str, Any] | None) -> None:
        for member in message["members"] if message else ():
            self._send(member["index"], message)

    def _send(self, index: int, message: dict[str, Any] | None) -> None:
        link = self._links.get(index)
        if link is not None:
            try:
                link.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                pass

    def _note(self, what: str, index: int) -> None:
        self.log.append((time.monotonic(), what, index))


def notice(cause: str, new_size: int, grace_s: float) -> dict[str, Any]:
    """Return a notice as the contract has it."""
    return {
        "type": "notice",
        "action": "stop",
        "cause": cause,
        "deadline_s": grace_s,
        "grace_s": grace_s,
        "new_size": new_size,
        "by": "chat",
    }
