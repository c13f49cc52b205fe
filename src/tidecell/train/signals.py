"""SIGTERM and SIGINT as a second entrance for notices.

Kubernetes, Slurm and people with a keyboard say "stop" by a signal. The handler only puts a notice on
the agent's line; the training acts on it at the next micro-batch boundary.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from tidecell.task_link import AgentLink, Notice

# What Kubernetes gives by default.
ASSUMED_GRACE_S = 30.0


class SignalNotices:
    """Turns stop signals into notices while installed.

    Attributes:
        exit_status: 0, or 128 plus the signal that stopped a training without a cell.
    """

    def __init__(self, link: AgentLink) -> None:
        self.exit_status = 0
        self._link = link
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Take over SIGTERM, and SIGINT where no agent decides; only possible on the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        wanted = [signal.SIGTERM] if self._link.path else [signal.SIGTERM, signal.SIGINT]
        for number in wanted:
            self._before[number] = signal.signal(number, self._handle)

    def remove(self) -> None:
        """Put the handlers back that were there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._link.path:
            self.exit_status = 128 + number
        deadline = time.time() + ASSUMED_GRACE_S
        self._link.put_notice(Notice("stop", "signal", deadline, ASSUMED_GRACE_S, new_size=-1))
