"""A router and replicas as real processes, a raw client, and a load driver whose ledger is the judge."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tidecell.structs.errors import CellUnreachable
from tidecell.traffic.control import RouterControl
from tidecell.traffic.stats import RouterStats
from tidecell.traffic.table import Endpoint, Route, Table

HERE = Path(__file__).parent
DEADLINE_S = 20.0


class Process:
    """A child process that is gone when the test is over."""

    def __init__(self, argv: list[str], **options: Any) -> None:
        self.popen = subprocess.Popen(argv, **options)

    def kill(self) -> None:
        if self.popen.poll() is None:
            self.popen.kill()
        self.popen.wait()

    def stop(self, timeout_s: float = DEADLINE_S) -> int:
        self.popen.send_signal(signal.SIGTERM)
        return self.popen.wait(timeout_s)


class ReplicaProcess(Process):
    """One ``router_replica.py``; its endpoint's id is its name."""

    def __init__(self, name: str, port: int = 0) -> None:
        argv = [sys.executable, str(HERE / "router_replica.py"), "--name", name, "--port", str(port)]
        super().__init__(argv, stdout=subprocess.PIPE, text=True)
        assert self.popen.stdout is not None
        self.port = int(self.popen.stdout.readline())
        self.popen.stdout.close()
        self.name = name

    def endpoint(self, state: str = "ready") -> Endpoint:
        return Endpoint(self.name, "127.0.0.1", self.port, state)  # type: ignore[arg-type]

    def seen(self) -> dict[str, int]:
        return json.loads(request(self.port, "/seen").body)


class RouterProcess(Process):
    """The router under test."""

    def __init__(self, home: Path, *options: str, keep: tuple[int, ...] = ()) -> None:
        self.home = home
        self.socket = home / "c.sock"
        argv = [sys.executable, "-m", "tidecell.traffic.router", "--home", str(home)]
        self.log = open(home / "router.err", "ab")  # noqa: SIM115 - lives as long as the process
        argv += ["--control", str(self.socket), *options]
        super().__init__(argv, stderr=self.log, pass_fds=keep)
        wait_until(lambda: self.popen.poll() is not None or self.is_up(), "the router is up")
        assert self.popen.poll() is None, (home / "router.err").read_text()
        self.port = int((home / "router" / "port").read_text())

    def is_up(self) -> bool:
        with contextlib.suppress(CellUnreachable):
            return self.stats().port != 0
        return False

    def kill(self) -> None:
        super().kill()
        self.log.close()
        said = (self.home / "router.err").read_text()
        assert "Traceback" not in said, said

    def put(self, *routes: Route, version: int = 0, tokens: tuple[str, ...] = ()) -> None:
        """Push a table; by default each push is newer than the one before."""
        table = Table(version or time.monotonic_ns(), 1, routes, tokens)
        assert self.ask(lambda control: control.put_table(table)) == table.version

    def stats(self) -> RouterStats:
        return self.ask(lambda control: control.stats())

    def ask(self, question: Callable[[RouterControl], Awaitable[Any]]) -> Any:
        async def run() -> Any:
            async with RouterControl(self.socket) as control:
                return await question(control)

        return asyncio.run(run())

    def access_lines(self, count: int) -> list[dict[str, Any]]:
        """Return the access log once it has ``count`` lines."""
        path = self.home / "router" / "access.jsonl"
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") >= count, f"{count} lines")
        return [json.loads(line) for line in path.read_text().splitlines()]


def route(*endpoints: Endpoint, **options: Any) -> Route:
    return Route("chat", ("m",), endpoints, **options)


def wait_until(condition: Callable[[], Any], what: str, within_s: float = DEADLINE_S) -> None:
    """Poll until ``condition`` holds."""
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        time.sleep(0.01)


# -- a raw client


@dataclass
class Answer:
    """One response, as a strict client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_complete: bool

    def json(self) -> Any:
        return json.loads(self.body)


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def encode(path: str, body: bytes = b"", method: str = "", **headers: str) -> bytes:
    fields = {"host": "localhost", **{name.replace("_", "-"): value for name, value in headers.items()}}
    if body:
        fields.setdefault("content-length", str(len(body)))
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method or ('POST' if body else 'GET')} {path} HTTP/1.1\r\n{lines}\r\n".encode() + body


def completion(**ask: Any) -> bytes:
    return encode("/v1/chat/completions", json.dumps({"model": "m", **ask}).encode())


def request(port: int, path: str, body: bytes = b"", method: str = "", **headers: str) -> Answer:
    with connect(port) as sock:
        sock.sendall(encode(path, body, method, **headers))
        return read_answer(sock, method == "HEAD")


def ask(port: int, **fields: Any) -> Answer:
    with connect(port) as sock:
        sock.sendall(completion(**fields))
        return read_answer(sock)


def raw(port: int, data: bytes) -> bytes:
    """Send bytes and return all that comes until the connection is closed by the other side."""
    with connect(port) as sock:
        sock.sendall(data)
        sock.settimeout(DEADLINE_S)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := sock.recv(65536):
                parts.append(part)
        return b"".join(parts)


def read_answer(sock: socket.socket, is_head: bool = False) -> Answer:
    """Read one response; whatever is cut short is not complete."""
    file = sock.makefile("rb", buffering=0 if is_head else -1)
    status_line = file.readline()
    if not status_line:
        return Answer(0, {}, b"", False)
    status = int(status_line.split(b" ")[1])
    headers: dict[str, str] = {}
    while (line := file.readline()) not in (b"\r\n", b""):
        name, _, value = line.decode().partition(":")
        headers[name.lower()] = value.strip()
    if is_head or status in (204, 304) or status < 200:
        return Answer(status, headers, b"", True)
    if "content-length" in headers:
        length = int(headers["content-length"])
        body = file.read(length) or b""
        return Answer(status, headers, body, len(body) == length)
    if headers.get("transfer-encoding") == "chunked":
        return Answer(status, headers, *_read_chunks(file))
    return Answer(status, headers, file.read(), True)


def _read_chunks(file: Any) -> tuple[bytes, bool]:
    parts = []
    while True:
        size_line = file.readline()
        if not size_line.endswith(b"\r\n"):
            return b"".join(parts), False
        size = int(size_line, 16)
        data = file.read(size + 2)
        if len(data) != size + 2:
            return b"".join(parts), False
        if size == 0:
            return b"".join(parts), True
        parts.append(data[:-2])


# -- load


@dataclass
class Ledger:
    """What the clients saw: every request once, as ok or with what was wrong."""

    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def num_ok(self) -> int:
        return self.outcomes["ok"]

    @property
    def failed(self) -> dict[str, int]:
        return {what: count for what, count in self.outcomes.items() if what != "ok"}


class Load:
    """Clients in a closed loop, in threads of this process, until told to stop."""

    def __init__(self, port: int, num_clients: int, expected: bytes | None = None, **fields: Any) -> None:
        self.ledger = Ledger()
        self._port = port
        self._fields = fields
        self._expected = expected
        self._stop = False
        self._num_clients = num_clients
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._run) for _ in range(self._num_clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop = True
        for thread in self._threads:
            thread.join()

    def wait_for(self, count: int) -> None:
        """Return when ``count`` more requests have been answered."""
        goal = sum(self.ledger.outcomes.values()) + count
        wait_until(lambda: sum(self.ledger.outcomes.values()) >= goal, f"{count} more requests")

    def _run(self) -> None:
        sock = None
        while not self._stop:
            try:
                sock = sock or connect(self._port)
                sock.sendall(completion(**self._fields))
                outcome = self._judge(read_answer(sock))
            except OSError as error:
                outcome, sock = type(error).__name__, None
            self.ledger.outcomes[outcome] += 1
        if sock is not None:
            sock.close()

    def _judge(self, answer: Answer) -> str:
        if answer.status != 200:
            return f"status {answer.status}: {answer.body[:200]!r}"
        if not answer.is_complete:
            return "cut short"
        if self._expected is not None and answer.body != self._expected:
            return "other bytes than the replica sent"
        return "ok"


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
