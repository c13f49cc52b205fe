"""Virtual time: a heap of things to come. Pure; nothing here looks at a clock.

Things due at the same moment come out in the order in which they were put in, so that a run depends on
nothing but its inputs and seed.
"""

from __future__ import annotations

import heapq
from typing import Generic, TypeVar

T = TypeVar("T")


class Clock(Generic[T]):
    """What happens when, and what time it is.

    Attributes:
        now_s: The moment of the last thing taken out; never goes back.
    """

    def __init__(self, now_s: float = 0.0) -> None:
        self.now_s = now_s
        self._heap: list[tuple[float, int, T]] = []
        self._count = 0

    def __len__(self) -> int:
        return len(self._heap)

    def at(self, at_s: float, item: T) -> None:
        """Let ``item`` happen at a moment, or now if that is over."""
        self._count += 1
        heapq.heappush(self._heap, (max(at_s, self.now_s), self._count, item))

    def next_s(self) -> float | None:
        """Return when something happens next, or None."""
        return self._heap[0][0] if self._heap else None

    def take_until(self, until_s: float) -> list[tuple[float, T]]:
        """Return what is due up to and including ``until_s``, oldest first, and go there."""
        due: list[tuple[float, T]] = []
        while self._heap and self._heap[0][0] <= until_s:
            at_s, _, item = heapq.heappop(self._heap)
            due.append((at_s, item))
        self.now_s = max(self.now_s, until_s)
        return due
