"""The engine of one machine: talks to the agent on this machine's unix socket.

It reconnects for as long as the control plane lives. Commands given while the agent is away are not
queued: on attaching, the cell compares what it wants with what runs and gives them again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from tidecell.engines import wire
from tidecell.structs.lifecycle import DrainRequested, ResizeTask
from tidecell.structs.messages import Command, Input, MachineSeen, StartTask, StopTask

_from_agent: msgspec.json.Decoder[wire.FromAgent] = msgspec.json.Decoder(wire.FromAgent)
_encode = msgspec.json.Encoder().encode


class Replaced(Exception):
    """Another control plane with a higher epoch holds the agent; this one must end."""


def _drain_before(message: wire.Interrupted) -> DrainRequested:
    """Return the drain that a machine's end asks for; half of what is left is for those it has to end."""
    now_s = time.time()
    left_s = max(0.0, message.deadline_s - now_s)
    return DrainRequested(message.machine, 0.0, now_s + left_s / 2, who="an interruption notice")


class LocalEngine:
    """Carries out commands through the agent; satisfies ``engines.base.Engine``.

    Args:
        socket_path: The agent's socket.
        epoch: Fencing epoch of this control plane.
        on_input: Called with every input, in order.
        on_measure: Called with every ``Reported`` and ``Used``.
    """

    def __init__(
        self,
        socket_path: Path,
        epoch: int,
        on_input: Callable[[Input], None],
        on_measure: Callable[[wire.Reported | wire.Used], None],
    ) -> None:
        self._path = socket_path
        self._epoch = epoch
        self._on_input = on_input
        self._on_measure = on_measure
        self._writer: asyncio.StreamWriter | None = None
        self.attached = asyncio.Event()

    async def run(self) -> None:
        """Stay attached to the agent until cancelled.

        Raises:
            Replaced: A newer control plane took over.
        """
        wait_s = 0.02
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, self._writer = await asyncio.open_unix_connection(str(self._path), limit=64 << 20)
                wait_s = 0.02
                await self._serve(reader)
            self._writer = None
            self.attached.clear()
            await asyncio.sleep(wait_s)
            wait_s = min(1.0, wait_s * 1.5)

    async def _serve(self, reader: asyncio.StreamReader) -> None:
        self._write(wire.Attach(self._epoch))
        while line := await reader.readline():
            message = _from_agent.decode(line)
            if isinstance(message, wire.Attached):
                self.attached.set()
                self._on_input(MachineSeen(message.machine, message.running))
            elif isinstance(message, wire.Happened):
                self._on_input(message.body)
            elif isinstance(message, wire.Interrupted):
                self._on_input(_drain_before(message))
            elif isinstance(message, wire.Refused):
                raise Replaced(f"epoch {message.epoch} holds the agent; ours is {self._epoch}")
            else:
                self._on_measure(message)

    def _write(self, message: wire.ToAgent) -> None:
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(_encode(message) + b"\n")

    def send(self, command: Command) -> None:
        """Give the agent a command."""
        if isinstance(command, StartTask | StopTask | ResizeTask):
            self._write(wire.Do(command))

    def acknowledge(self, machine: str, agent_seq: int) -> None:
        """Tell the agent that events up to this number are durable."""
        self._write(wire.Ack(agent_seq))
