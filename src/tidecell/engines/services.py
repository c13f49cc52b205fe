"""The cell's own processes, control plane and router: kept running by the agent.

What clients connect to outlives the process that serves it: the agent holds the listening socket, so that
while the router is started again connections wait in the kernel's queue instead of being refused.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

from tidecell.client.home import Home
from tidecell.engines import process
from tidecell.engines.ledger import Ledger, Running
from tidecell.telemetry import log_line

BACKLOG = 2048
BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 10.0
STABLE_AFTER_S = 30.0


@dataclass(eq=False)
class Service:
    """One process of the cell."""

    name: str
    argv: tuple[str, ...]
    listen: tuple[str, int] = ("", 0)
    listener: socket.socket | None = None
    pid: int = 0
    started_s: float = 0.0
    failures: int = 0


class Supervisor:
    """Starts services, and starts them again when they end.

    Args:
        later: Calls a function at a moment.
        is_stopping: Whether the cell is going down: then nothing is started again.
    """

    def __init__(
        self,
        home: Home,
        ledger: Ledger,
        later: Callable[[float, Callable[[], None]], None],
        is_stopping: Callable[[], bool],
    ) -> None:
        self._home = home
        self._ledger = ledger
        self._later = later
        self._is_stopping = is_stopping
        self._services: dict[str, Service] = {}

    def keep(self, name: str, argv: tuple[str, ...], listen: tuple[str, int] = ("", 0)) -> None:
        """Keep a service running; one that runs is left alone."""
        known = self._services.get(name)
        if known is None or not known.pid:
            if known is not None:
                _stop_listening(known)
            self._services[name] = Service(name, argv, listen)
            self._start(self._services[name])

    def pids(self) -> list[int]:
        """Return the processes that run."""
        return [s.pid for s in self._services.values() if s.pid]

    def ended(self, pid: int, exit_code: int) -> bool:
        """Take note of a process that ended; return False if it was none of ours."""
        service = next((s for s in self._services.values() if s.pid == pid), None)
        if service is None:
            return False
        self._ledger.gone(pid)
        self._ended(service, exit_code)
        return True

    def terminate(self) -> None:
        """Ask all of them to end; nobody can connect any more."""
        for service in self._services.values():
            _stop_listening(service)
        for pid in self.pids():
            process.signal_group(pid, signal.SIGTERM)

    def _start(self, service: Service) -> None:
        if self._is_stopping() or service.pid:
            return
        log = self._home / "log" / f"{service.name}.log"
        env = {**os.environ, "TIDECELL_HOME": str(self._home.path)}
        argv, stdin = service.argv, _listen(service)
        if stdin is not None:
            argv = (*argv, "--listen-fd", "0")
        launch = process.Launch(argv, env, str(self._home.path), log, log, measured=False, stdin=stdin)
        service.started_s = time.time()
        try:
            service.pid = process.start(launch)
        except process.StartError as error:
            log_line(f"agent: {service.name}: {error}")
            self._ended(service, 127)
            return
        seen = process.look_at(service.pid)
        self._ledger.started(Running(service.pid, seen.start_ticks if seen else 0, service=service.name))

    def _ended(self, service: Service, exit_code: int) -> None:
        service.pid = 0
        if self._is_stopping():
            return
        ran_s = time.time() - service.started_s
        service.failures = 1 if ran_s > STABLE_AFTER_S else service.failures + 1
        wait_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** (service.failures - 1))
        log_line(f"agent: {service.name} ended ({exit_code}) after {ran_s:.1f} s; again in {wait_s:.1f} s")
        self._later(time.time() + wait_s, lambda: self._start(service))


def _listen(service: Service) -> int | None:
    """Return the descriptor of the service's socket; None if it has none, or has to listen for itself.

    The latter happens while a router that an earlier agent left behind still has the port.
    """
    if service.listener is None and service.listen[1]:
        try:
            service.listener = socket.create_server(service.listen, backlog=BACKLOG)
        except OSError as error:
            log_line(f"agent: {service.name} has to listen for itself: {error}")
    return service.listener.fileno() if service.listener is not None else None


def _stop_listening(service: Service) -> None:
    if service.listener is not None:
        service.listener.close()
        service.listener = None
