"""Simulated agents: what machines run, what they have to tell, and the record of what really ran. Pure.

An agent keeps the contract of the real one (``engines.agent``): a start that it knows is not started again,
what it tells is numbered and repeated until acknowledged, and orders count only over the newest connection.
The ``RunLedger`` stands outside of all that and sees every process begin and end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from tidecell.engines.fake import Script
from tidecell.structs.errors import InvariantError
from tidecell.structs.job import JobSpec
from tidecell.structs.lifecycle import ResizeTask
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Command, StartTask, StopTask, TaskDown, TaskRef, TaskUp
from tidecell.structs.resources import GPU, Resources


@dataclass
class Process:
    """One process that really runs."""

    ref: TaskRef
    machine: str
    spec: JobSpec
    resources: Resources
    accelerators: tuple[int, ...]
    script: Script
    began_s: float
    up: bool = False
    deadline_s: float = math.inf


@dataclass
class RunLedger:
    """An external record of what ran, kept by nobody whom it judges.

    Attributes:
        succeeded: (uid, index) of tasks whose end with status 0 the cell has made durable.
    """

    capacity: dict[str, Resources] = field(default_factory=dict)
    running: dict[TaskRef, Process] = field(default_factory=dict)
    epochs: dict[tuple[str, int], int] = field(default_factory=dict)
    succeeded: set[tuple[str, int]] = field(default_factory=set)
    clean_exits: dict[str, int] = field(default_factory=dict)
    num_starts: int = 0

    def began(self, process: Process) -> None:
        """A process begins; raise InvariantError if it must not."""
        ref = process.ref
        key = (ref.uid, ref.index)
        self.num_starts += 1
        if ref.epoch <= self.epochs.get(key, 0):
            raise InvariantError(f"{ref} starts after epoch {self.epochs[key]} of the same task")
        self.epochs[key] = ref.epoch
        if key in self.succeeded:
            raise InvariantError(f"{ref} starts although the task has succeeded")
        for other in self.running.values():
            if (other.ref.uid, other.ref.index) == key:
                raise InvariantError(
                    f"{ref} starts on {process.machine} while {other.ref} runs on {other.machine}"
                )
        self.running[ref] = process
        self._fits(process.machine)

    def ended(self, ref: TaskRef, exit_code: int | None) -> None:
        """A process has ended; None: its machine lost power."""
        process = self.running.pop(ref)
        if exit_code == 0:
            self.clean_exits[process.ref.uid] = self.clean_exits.get(process.ref.uid, 0) + 1

    def resized(self, ref: TaskRef, resources: Resources) -> None:
        """A process has other limits; raise InvariantError if the machine does not hold them."""
        process = self.running[ref]
        process.resources = resources
        self._fits(process.machine)

    def _fits(self, machine: str) -> None:
        """2. What really runs on a machine never exceeds it, nor shares a device beyond its whole."""
        used = Resources()
        devices: dict[int, int] = {}
        for process in self.running.values():
            if process.machine != machine:
                continue
            used = used + process.resources
            share = min(GPU, process.resources.gpu_millis)
            for index in process.accelerators:
                devices[index] = devices.get(index, 0) + share
        if not used.fits(self.capacity[machine]):
            raise InvariantError(f"{machine} really runs {used} and has {self.capacity[machine]}")
        for index, share in devices.items():
            if share > GPU:
                raise InvariantError(f"accelerator {index} of {machine} is really used {share / GPU:g} times")


Later = Callable[[float, Callable[[], None]], None]


@dataclass
class SimAgent:
    """The agent of one machine.

    Attributes:
        session: Number of the newest connection; orders over older ones do not count.
        untold: What was not acknowledged yet, by number.
        tell: Sends one message to the control plane over the present connection.
    """

    spec: MachineSpec
    ledger: RunLedger
    script_of: Callable[[StartTask], Script]
    later: Later
    tell: Callable[[SimAgent, TaskUp | TaskDown], None]
    now: Callable[[], float]
    up: bool = True
    session: int = 0
    seq: int = 0
    processes: dict[TaskRef, Process] = field(default_factory=dict)
    untold: dict[int, TaskUp | TaskDown] = field(default_factory=dict)

    def known(self) -> tuple[TaskRef, ...]:
        """Return the starts that it knows: what runs, and what it still has to tell of."""
        return tuple(sorted({*self.processes, *(m.ref for m in self.untold.values())}))

    def order(self, session: int, command: Command) -> None:
        """Carry out a command, if it comes over the present connection."""
        if session != self.session or not self.up:
            return
        if isinstance(command, StartTask):
            self._start(command)
        elif isinstance(command, StopTask):
            self._stop(command)
        elif isinstance(command, ResizeTask) and command.ref in self.processes:
            self.ledger.resized(command.ref, command.resources)

    def acknowledge(self, seqs: tuple[int, ...]) -> None:
        """Forget what is durable."""
        for seq in seqs:
            self.untold.pop(seq, None)

    def lose_power(self) -> None:
        """Everything it runs is gone; what it wrote down stays."""
        self.up, self.session = False, self.session + 1
        for ref in self.processes:
            self.ledger.ended(ref, None)

    def come_back(self) -> None:
        """Start again: what it had started and does not find any more, it tells as lost."""
        self.up = True
        gone, self.processes = self.processes, {}
        for ref in gone:
            self._say(TaskDown(ref, self.spec.name, exit_code=-1, lost=True))

    def _start(self, command: StartTask) -> None:
        if command.ref in self.known():
            return
        script = self.script_of(command)
        process = Process(
            command.ref,
            self.spec.name,
            command.spec,
            command.resources,
            command.accelerators,
            script,
            self.now(),
        )
        if script.error:
            self._say(TaskDown(command.ref, self.spec.name, exit_code=127, error=script.error))
            return
        self.ledger.began(process)
        self.processes[command.ref] = process
        self.later(script.starts_after_s, lambda: self._up(command.ref))

    def _up(self, ref: TaskRef) -> None:
        process = self.processes.get(ref)
        if process is None or not self.up:
            return
        process.up = True
        port = 20_000 + ref.epoch if process.spec.is_service else 0
        self._say(TaskUp(ref, self.spec.name, pid=ref.epoch, port=port))
        if process.script.runs_s is not None:
            self.later(process.script.runs_s, lambda: self._end(ref, process.script.exit_code))

    def _stop(self, command: StopTask) -> None:
        process = self.processes.get(command.ref)
        if process is None:
            return
        deadline_s = self.now() + command.grace_s
        if deadline_s >= process.deadline_s:
            return
        process.deadline_s = deadline_s
        leaves_s = process.script.leaves_after_s
        if leaves_s is not None and leaves_s < command.grace_s:
            self.later(leaves_s, lambda: self._end(command.ref, -15))
        self.later(command.grace_s, lambda: self._end(command.ref, -9))

    def _end(self, ref: TaskRef, exit_code: int) -> None:
        if self.up and self.processes.pop(ref, None) is not None:
            self.ledger.ended(ref, exit_code)
            self._say(TaskDown(ref, self.spec.name, exit_code))

    def _say(self, message: TaskUp | TaskDown) -> None:
        self.seq += 1
        numbered = msgspec.structs.replace(message, agent_seq=self.seq)
        self.untold[self.seq] = numbered
        self.tell(self, numbered)
