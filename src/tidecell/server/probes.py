"""Readiness of replicas: an HTTP GET, or a connection where no path is given.

A replica that is not yet ready is asked often, so that it serves as soon as it can; a ready one is asked
at the interval of its spec and loses readiness after that many failures in a row.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from tidecell.cell.state import CellState
from tidecell.structs.job import Probes, TaskState
from tidecell.structs.lifecycle import TaskUnhealthy
from tidecell.structs.messages import TaskProbed, TaskRef

UNREADY_EVERY_S = 0.1
TIMEOUT_S = 3.0


async def probe(host: str, port: int, path: str) -> bool:
    """Ask a replica once whether it is ready."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                if not path:
                    return True
                request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\n\r\n"
                writer.write(request.encode())
                line = await reader.readline()
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.LimitOverrunError, ValueError):
        return False
    parts = line.split()
    return len(parts) >= 2 and parts[1].startswith(b"2")


class Prober:
    """Probes every running replica of the cell and says when a verdict changes."""

    def __init__(
        self, state: Callable[[], CellState], say: Callable[[TaskProbed | TaskUnhealthy], None]
    ) -> None:
        self._state = state
        self._say = say
        self._watchers: dict[TaskRef, asyncio.Task[None]] = {}
        self._probes: dict[TaskRef, Probes] = {}  # as each is watched by; a spec may change

    def follow(self) -> None:
        """Start watching replicas that are new, stop watching those that are gone."""
        state = self._state()
        wanted: dict[TaskRef, tuple[str, int, Probes]] = {}
        for job in state.live_jobs():
            if not job.spec.is_service:
                continue
            for task in job.tasks:
                if task.state is TaskState.RUNNING and task.port:
                    machine = state.machines[task.machine].spec
                    wanted[state.ref(job, task)] = (machine.address, task.port, job.spec.probes)
        for ref in list(self._watchers):
            if ref not in wanted or wanted[ref][2] != self._probes[ref]:
                self._watchers.pop(ref).cancel()
        for ref in set(wanted) - set(self._watchers):
            self._probes[ref] = wanted[ref][2]
            self._watchers[ref] = asyncio.create_task(self._watch(ref, *wanted[ref]))
        self._probes = {ref: self._probes[ref] for ref in self._watchers}

    async def _watch(self, ref: TaskRef, host: str, port: int, probes: Probes) -> None:
        ready, failures, dead = False, 0, 0
        task = self._state().task(ref)
        if task is not None:
            ready = task.ready
        while True:
            good = await probe(host, port, probes.ready)
            failures = 0 if good else failures + 1
            if good != ready and (good or failures >= probes.failures):
                ready = good
                self._say(TaskProbed(ref, ready))
            if probes.alive and (ready or dead):
                dead = 0 if await probe(host, port, probes.alive) else dead + 1
                if dead >= probes.failures:
                    self._say(TaskUnhealthy(ref))
            await asyncio.sleep(probes.every_s if ready else min(UNREADY_EVERY_S, probes.every_s))

    def close(self) -> None:
        """Stop all watching."""
        for watcher in self._watchers.values():
            watcher.cancel()
        self._watchers.clear()
