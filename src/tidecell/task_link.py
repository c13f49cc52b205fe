"""A task's line to its agent: notices, membership, reports (docs/task-contract.md).

Inside a task, ``tidecell.notice()`` is None, or says that the task should leave, by when and why. The
elastic runtime uses the same line. Only the standard library is imported here: a user's script pays
nothing for it, and one that runs outside a cell is told nothing.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RECONNECT_FIRST_S = 0.2
RECONNECT_MOST_S = 3.0


@dataclass(frozen=True)
class Notice:
    """A request to leave.

    Attributes:
        action: ``stop``.
        cause: resize, preempt, cancel, timeout, failed, completed or drain; ``signal`` for a bare SIGTERM.
        deadline: Unix time by which the task must be gone.
        grace_s: Length of the whole grace period in seconds.
        new_size: Replicas that remain; 0: the whole job stops; -1: unknown.
        by: What the room is needed for, if anything.
    """

    action: str
    cause: str
    deadline: float
    grace_s: float
    new_size: int
    by: str = ""

    @property
    def remaining_s(self) -> float:
        """Seconds that are left, at least 0."""
        return max(0.0, self.deadline - time.time())


@dataclass(frozen=True)
class Granted:
    """What a task may use, now: it may be given more or less while it runs.

    Attributes:
        cpu: Cores; what nobody else wants may be used beyond.
        memory_bytes: Beyond this it is ended; 0: no limit.
    """

    cpu: float
    memory_bytes: int


@dataclass(frozen=True)
class Member:
    """One member of an elastic group and where its peers meet it (``host:port``)."""

    index: int
    endpoint: str


@dataclass(frozen=True)
class Membership:
    """One generation of an elastic group, lowest index first."""

    generation: int
    members: tuple[Member, ...]

    def rank_of(self, index: int) -> int | None:
        """Return a member's position, or None when it is not in this generation."""
        return next((rank for rank, m in enumerate(self.members) if m.index == index), None)

    def lacks(self, other: Membership) -> bool:
        """Return whether a member of ``other`` is missing here, or has come back as a new process."""
        return not set(other.members) <= set(self.members)


class AgentLink:
    """The socket to the agent, read by a thread of its own.

    When the agent goes away (its cell restarts) the task works on and the line is made again, with
    ``hello`` and, for a member of a group, ``ready``.

    Args:
        path: The unix socket; empty: there is no agent, nothing is ever received.
    """

    def __init__(self, path: str, uid: str = "", index: int = 0, attempt: int = 1, epoch: int = 0) -> None:
        self.path = path
        self.index = index
        self.notice: Notice | None = None
        self.group: Membership | None = None
        self.granted: Granted | None = None
        self.down_since: float | None = None
        self.changed = threading.Condition()
        self._hello = {"type": "hello", "uid": uid, "index": index, "attempt": attempt, "epoch": epoch}
        self._endpoint = ""
        self._socket: socket.socket | None = None
        self._send_lock = threading.Lock()
        self._closed = False
        if path:
            self._connect()
            threading.Thread(target=self._run, name="tidecell-agent", daemon=True).start()

    @classmethod
    def from_environment(cls) -> AgentLink:
        """Return the line that this task's environment names."""
        env = os.environ
        return cls(
            env.get("TIDECELL_SOCKET", ""),
            env.get("TIDECELL_UID", ""),
            int(env.get("TIDECELL_INDEX", "0")),
            int(env.get("TIDECELL_ATTEMPT", "1")),
            int(env.get("TIDECELL_EPOCH", "0")),
        )

    def ready(self, endpoint: str) -> None:
        """Ask to be taken into the group, or, as a member, to meet the others again."""
        self._endpoint = endpoint
        seen = self.group.generation if self.group else 0
        self.send({"type": "ready", "endpoint": endpoint, "generation": seen})

    def report(self, data: dict[str, Any]) -> None:
        """Send numbers for progress bars and charts; dropped when the agent is away."""
        self.send({"type": "report", "data": data})

    def released(self) -> None:
        """Say that this task no longer uses its resources."""
        self.send({"type": "released", "generation": self.group.generation if self.group else 0})

    def send(self, message: dict[str, Any]) -> bool:
        """Send one message; False when the agent is away."""
        line = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._send_lock:
            if self._socket is None:
                return False
            try:
                self._socket.sendall(line)
            except OSError:
                return False
        return True

    def put_notice(self, notice: Notice) -> None:
        """Take a notice from elsewhere (a signal); one from the agent is not overwritten."""
        with self.changed:
            self.notice = self.notice or notice
            self.changed.notify_all()

    def wait(self, happened: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until something happened on this line; False after ``timeout_s``."""
        with self.changed:
            return self.changed.wait_for(happened, timeout_s)

    def close(self) -> None:
        """End the line."""
        self._closed = True
        with self._send_lock:
            if self._socket is not None:
                self._socket.close()
                self._socket = None

    def _connect(self) -> None:
        """Connect and say hello; raise ``OSError`` when nobody listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self.path)
        except OSError:
            connection.close()
            raise
        with self._send_lock:
            self._socket = connection
        self.down_since = None
        self.send(self._hello)
        if self._endpoint:
            self.ready(self._endpoint)

    def _run(self) -> None:
        while not self._closed:
            self._read()
            with self._send_lock:
                if self._socket is not None:
                    self._socket.close()
                    self._socket = None
            with self.changed:
                self.down_since = time.monotonic()
                self.changed.notify_all()
            self._reconnect()

    def _reconnect(self) -> None:
        pause_s = RECONNECT_FIRST_S
        while not self._closed:
            time.sleep(pause_s)
            try:
                self._connect()
                return
            except OSError:
                pause_s = min(pause_s * 2, RECONNECT_MOST_S)

    def _read(self) -> None:
        """Take messages until the stream ends."""
        connection = self._socket
        if connection is None:
            return
        rest = b""
        while True:
            try:
                chunk = connection.recv(65536)
            except OSError:
                return
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                if line.strip():
                    self._take(json.loads(line))

    def _take(self, message: dict[str, Any]) -> None:
        kind = message.get("type")
        with self.changed:
            if kind == "notice":
                self.notice = notice_from(message)
            elif kind == "resources":
                self.granted = Granted(float(message["cpu"]), int(message["memory_bytes"]))
            elif kind == "group" and (not self.group or message["generation"] > self.group.generation):
                members = tuple(Member(m["index"], m["endpoint"]) for m in message["members"])
                self.group = Membership(message["generation"], members)
            self.changed.notify_all()


def notice_from(message: dict[str, Any]) -> Notice:
    """Return the notice in an agent's message."""
    return Notice(
        action=message.get("action", "stop"),
        cause=message.get("cause", ""),
        deadline=time.time() + float(message.get("deadline_s", 0.0)),
        grace_s=float(message.get("grace_s", 0.0)),
        new_size=int(message.get("new_size", -1)),
        by=message.get("by") or "",
    )


_link: AgentLink | None = None
_link_lock = threading.Lock()


def agent_link() -> AgentLink:
    """Return this process's line to its agent; the first call makes it."""
    global _link
    with _link_lock:
        if _link is None:
            _link = AgentLink.from_environment()
        return _link


def notice() -> Notice | None:
    """Return the notice to leave that this task has got, or None.

    The first call connects to the agent; from then on the task is told by a notice first, and by
    SIGTERM only at half its grace period.
    """
    return agent_link().notice


def resources() -> Granted | None:
    """Return what this task may use of its machine at this moment; None outside of a cell.

    The first call connects to the agent; what changes from then on is seen by the next.
    """
    told = agent_link().granted
    if told is not None or "TIDECELL_CPU" not in os.environ:
        return told
    return Granted(float(os.environ["TIDECELL_CPU"]), int(os.environ["TIDECELL_MEMORY_BYTES"]))
