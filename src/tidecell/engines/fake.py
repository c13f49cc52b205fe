"""A scripted engine: carries out commands in virtual time, for tests and simulation.

It satisfies ``engines.base.Engine`` and speaks in the same inputs as the real one. Nothing runs: a
task's script says how long starting takes, how long it runs, how it ends, and how it takes a notice.
Pure: time is what ``advance`` is told.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import (
    Command,
    Input,
    MachineSeen,
    StartTask,
    StopTask,
    TaskDown,
    TaskProbed,
    TaskRef,
    TaskUp,
)

FIRST_PORT = 20_000


@dataclass(frozen=True)
class Script:
    """How a task behaves.

    Attributes:
        starts_after_s: From the command to the running process.
        error: If set, the process cannot be started, for this reason.
        runs_s: How long it runs by itself; None: until it is stopped.
        exit_code: Its exit status when it ends by itself.
        leaves_after_s: From the order to stop to its end; None: it ignores it until it is killed.
        ready_after_s: Of a service's replica, from its start until its probe succeeds; None: never.
    """

    starts_after_s: float = 0.01
    error: str = ""
    runs_s: float | None = None
    exit_code: int = 0
    leaves_after_s: float | None = 0.1
    ready_after_s: float | None = 0.0


@dataclass
class _Process:
    ref: TaskRef
    machine: str
    script: Script
    port: int
    ends_s: float | None = None
    deadline_s: float | None = None


@dataclass
class FakeEngine:
    """Machines on which scripts run.

    Attributes:
        script_of: Chooses the script of a start; by default every task runs until stopped.
        sent: Every command received, in order: what a test compares with.
    """

    machines: list[MachineSpec]
    script_of: Callable[[StartTask], Script] = lambda command: Script()
    now_s: float = 0.0
    sent: list[Command] = field(default_factory=list)
    running: dict[TaskRef, _Process] = field(default_factory=dict)
    _due: list[tuple[float, int, Callable[[], Input | None]]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)
    _seq: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _acknowledged: dict[str, int] = field(default_factory=dict)

    # ------------------------------------------------------------------------ the protocol

    def send(self, command: Command) -> None:
        """Carry out a command; what comes of it is told by a later ``advance``."""
        self.sent.append(command)
        if isinstance(command, StartTask):
            self._start(command)
        elif isinstance(command, StopTask):
            self._stop(command)

    def acknowledge(self, machine: str, agent_seq: int) -> None:
        """Note what is durable."""
        self._acknowledged[machine] = max(agent_seq, self._acknowledged.get(machine, 0))

    # ----------------------------------------------------------------------------- driving

    def attach(self) -> list[Input]:
        """Return what every machine's agent says when a control plane attaches."""
        return [
            MachineSeen(m, tuple(sorted(r for r, p in self.running.items() if p.machine == m.name)))
            for m in self.machines
        ]

    def next_due_s(self) -> float | None:
        """Return when something happens next, or None."""
        return self._due[0][0] if self._due else None

    def advance(self, now_s: float) -> list[Input]:
        """Let time pass; return what happened until then, in order."""
        inputs: list[Input] = []
        while self._due and self._due[0][0] <= now_s:
            self.now_s, _, happen = heapq.heappop(self._due)
            told = happen()
            if told is not None:
                inputs.append(told)
        self.now_s = now_s
        return inputs

    def crash(self, ref: TaskRef, exit_code: int = -9) -> None:
        """End a running task at once, as a signal from outside would."""
        self._later(self.now_s, lambda: self._end(ref, exit_code))

    # ----------------------------------------------------------------------------- inside

    def _later(self, at_s: float, happen: Callable[[], Input | None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._order), happen))

    def _start(self, command: StartTask) -> None:
        ref, script = command.ref, self.script_of(command)
        if ref in self.running:
            return
        port = FIRST_PORT + next(self._order) if command.spec.is_service else 0
        self.running[ref] = _Process(ref, command.machine, script, port)
        self._later(self.now_s + script.starts_after_s, lambda: self._up(ref))

    def _up(self, ref: TaskRef) -> Input | None:
        process = self.running.get(ref)
        if process is None:
            return None
        script = process.script
        if script.error:
            del self.running[ref]
            seq = next(self._seq)
            return TaskDown(ref, process.machine, exit_code=127, error=script.error, agent_seq=seq)
        if script.runs_s is not None:
            self._later(self.now_s + script.runs_s, lambda: self._end(ref, script.exit_code))
        if process.port and script.ready_after_s is not None:
            self._later(self.now_s + script.ready_after_s, lambda: self._ready(ref))
        return TaskUp(
            ref, process.machine, pid=1000 + ref.epoch, port=process.port, agent_seq=next(self._seq)
        )

    def _ready(self, ref: TaskRef) -> Input | None:
        return TaskProbed(ref, ready=True) if ref in self.running else None

    def _stop(self, command: StopTask) -> None:
        process = self.running.get(command.ref)
        if process is None:
            return
        deadline_s = self.now_s + command.grace_s
        if process.deadline_s is not None and process.deadline_s <= deadline_s:
            return
        process.deadline_s = deadline_s
        leaves_after_s = process.script.leaves_after_s
        if leaves_after_s is not None and leaves_after_s < command.grace_s:
            self._later(self.now_s + leaves_after_s, lambda: self._end(command.ref, -15))
        self._later(deadline_s, lambda: self._end(command.ref, -9))

    def _end(self, ref: TaskRef, exit_code: int) -> Input | None:
        process = self.running.pop(ref, None)
        if process is None:
            return None
        return TaskDown(ref, process.machine, exit_code, agent_seq=next(self._seq))
