"""The agent's memory: which processes it started, and what it has to tell. Survives the agent.

An append-only file of JSON lines. It is not the cell's journal: losing its tail loses at most the exit
status of a task. A process is recognised after a restart by pid and start time together, since pids
come round.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import msgspec

from tidecell.structs.messages import TaskDown, TaskRef, TaskUp
from tidecell.structs.resources import Resources


class Running(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process that the agent started: a task, or with ``service`` one of the cell's own.

    Attributes:
        memory_bytes: The limit that the agent measures it against; 0: none, or the kernel's.
        resources: What it was granted last; a smaller limit than it uses holds once it uses less.
    """

    pid: int
    start_ticks: int
    ref: TaskRef | None = None
    service: str = ""
    cgroup: str = ""
    memory_bytes: int = 0
    attempt: int = 1
    grace_s: float = 30.0
    min_members: int = 1
    resources: Resources = Resources()
    resized: bool = False


class Told(msgspec.Struct, frozen=True, omit_defaults=True):
    """An event for the control plane, numbered; repeated until acknowledged."""

    seq: int
    body: TaskUp | TaskDown


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    running: Running | None = None
    gone: int | None = None
    told: Told | None = None
    ack: int | None = None
    epoch: int | None = None


class Ledger:
    """What the agent must not forget.

    Attributes:
        running: By pid, as of the last run of the agent.
        untold: Events not yet acknowledged, oldest first.
        epoch: Highest epoch of a control plane that ever attached.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.running: dict[int, Running] = {}
        self.untold: list[Told] = []
        self.seq = 0
        self.epoch = 0
        self._lines = 0
        self._load()
        self._file = self._rewrite()

    def _load(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            for raw in self.path.read_bytes().splitlines():
                try:
                    self._take(msgspec.json.decode(raw, type=_Line))
                except msgspec.DecodeError:
                    break  # a torn last line of an agent that was killed

    def _take(self, line: _Line) -> None:
        if line.running is not None:
            self.running[line.running.pid] = line.running
        if line.gone is not None:
            self.running.pop(line.gone, None)
        if line.told is not None:
            self.untold.append(line.told)
            self.seq = line.told.seq
        if line.ack is not None:
            acked = line.ack
            self.untold = [t for t in self.untold if t.seq > acked]
            self.seq = max(self.seq, acked)
        if line.epoch is not None:
            self.epoch = line.epoch

    def _rewrite(self) -> int:
        """Write only what still matters, so that the file does not grow for ever."""
        draft = self.path.with_suffix(".draft")
        lines = [_Line(ack=self.seq if not self.untold else self.untold[0].seq - 1), _Line(epoch=self.epoch)]
        lines += [_Line(running=r) for r in self.running.values()]
        lines += [_Line(told=t) for t in self.untold]
        draft.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
        draft.chmod(0o600)
        draft.replace(self.path)
        self._lines = len(lines)
        return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    def _append(self, line: _Line) -> None:
        self._take(line)
        with contextlib.suppress(OSError):  # a full disk must not stop the agent: memory still knows
            os.write(self._file, msgspec.json.encode(line) + b"\n")
        self._lines += 1
        if self._lines > 4096 + 4 * (len(self.running) + len(self.untold)):
            with contextlib.suppress(OSError):
                old, self._file = self._file, self._rewrite()
                os.close(old)

    def started(self, running: Running) -> None:
        """Note a process that runs."""
        self._append(_Line(running=running))

    def gone(self, pid: int) -> None:
        """Note that a process ended."""
        self._append(_Line(gone=pid))

    def tell(self, body: TaskUp | TaskDown) -> Told:
        """Number an event, so that it is repeated until acknowledged."""
        seq = self.seq + 1
        told = Told(seq, msgspec.structs.replace(body, agent_seq=seq))
        self._append(_Line(told=told))
        return told

    def acknowledge(self, seq: int) -> None:
        """Forget events up to ``seq``."""
        if self.untold and self.untold[0].seq <= seq:
            self._append(_Line(ack=seq))

    def set_epoch(self, epoch: int) -> None:
        """Note the epoch of the control plane that attached."""
        if epoch > self.epoch:
            self._append(_Line(epoch=epoch))
