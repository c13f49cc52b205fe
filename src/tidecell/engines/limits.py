"""The limits of a task that was resized while it runs: cgroup where it has one, else fence and measurement.

More memory holds at once. Less holds as soon as the task uses less: until then the old limit stays, so that
a resize never kills what was within its limit when it was asked for. Cpu is a weight (with cgroup v2
controllers); niceness is the band's and does not change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from tidecell.engines import isolation
from tidecell.engines.ledger import Running
from tidecell.engines.process import Seen
from tidecell.structs.resources import Resources


@dataclass
class Limits:
    """What an agent remembers of one task's limits.

    Attributes:
        held: What was last made to hold; None: since the agent started, nothing.
        fences: Values of RLIMIT_DATA that processes of the task may still have from before.
    """

    held: Resources | None = None
    fences: set[int] = field(default_factory=set)

    def change(self, before: Resources) -> None:
        """Take in that the task was granted something else than ``before``."""
        self.fences.add(isolation.fence_of(before))

    def enforce(self, running: Running, mine: Sequence[Seen], kernel: bool) -> Running:
        """Make what ``running`` was granted hold, where its processes' use allows; return it as it is then.

        Args:
            running: The task.
            mine: Its processes.
            kernel: The kernel limits memory (cgroup v2 controllers); else it is measured and fenced.
        """
        granted = running.resources
        late = 0 < granted.memory_bytes < sum(seen.memory_bytes for seen in mine)
        if self.held != granted and kernel and running.cgroup:
            with contextlib.suppress(OSError):
                isolation.set_weight(Path(running.cgroup), granted)
                if not late:
                    isolation.set_memory_limit(Path(running.cgroup), granted)
        if late:
            return running
        self.held = granted
        if kernel:
            return running
        fence = isolation.fence_of(granted)
        if known := self.fences - {fence}:  # each time: something may have been forked meanwhile
            for seen in mine:
                isolation.move_fence(seen.pid, known, fence)
        return msgspec.structs.replace(running, memory_bytes=granted.memory_bytes)


__all__ = ["Limits"]
