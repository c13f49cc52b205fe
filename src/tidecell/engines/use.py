"""Whether a session's programs do anything: measured, and what cannot be measured counts as use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from tidecell.engines.gpu_use import gpu_percents
from tidecell.engines.process import family_of, process_table

IDLE_SHARE = 0.02  # of one core: a shell's prompt and a notebook's heartbeat stay below
IDLE_GPU_PERCENT = 1


class Use:
    """Measures a process and all that descend from it.

    Args:
        pid: The program.
        gpu_percent: Asks the greatest use of the session's accelerators, in percent; None where unknown.
    """

    def __init__(self, pid: int, gpu_percent: Callable[[], int | None] | None = None) -> None:
        self._pid = pid
        self._gpu_percent = gpu_percent or gpu_use
        self._before: tuple[float, float] | None = None

    def is_used(self) -> bool:
        """Return whether it did anything since the last question; yes where that cannot be told."""
        now_s, spent_s = time.monotonic(), cpu_seconds(self._pid)
        before, self._before = self._before, None if spent_s is None else (now_s, spent_s)
        if before is None or spent_s is None or now_s <= before[0]:
            return True
        if (spent_s - before[1]) / (now_s - before[0]) > IDLE_SHARE:
            return True
        if not os.environ.get("CUDA_VISIBLE_DEVICES"):
            return False
        percent = self._gpu_percent()
        return percent is None or percent > IDLE_GPU_PERCENT


def cpu_seconds(pid: int, proc: str = "/proc") -> float | None:
    """Return what a process and all that descends from it have spent, ended children included.

    None if it cannot be read.
    """
    try:
        family = family_of(process_table(proc), pid)
    except OSError:
        return None
    return sum(p.cpu_s + p.ended_cpu_s for p in family) if family else None


def gpu_use() -> int | None:
    """Return the greatest use of this session's accelerators in percent; None where it cannot be measured."""
    percents = gpu_percents()
    try:
        return max(percents[int(text)] for text in os.environ["CUDA_VISIBLE_DEVICES"].split(","))
    except (KeyError, ValueError):  # a device that cannot be asked, or is not named by its number
        return None


__all__ = ["Use", "cpu_seconds", "gpu_use"]
