"""How much longer does it run? From how long similar work ran, given that it has run for so long. Pure.

A duration is drawn from the past ones that were longer than what has passed already: the empirical
distribution, conditioned on survival (the Kaplan-Meier estimate without censoring, 1958).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

MIN_SAMPLES = 3  # fewer longer runs than this say nothing


@dataclass(frozen=True)
class Durations:
    """Past durations of similar work, in seconds.

    Attributes:
        sorted_s: Shortest first.
    """

    sorted_s: tuple[float, ...] = field(default=())

    @classmethod
    def of(cls, durations_s: Sequence[float]) -> Durations:
        """Return the distribution of these."""
        return cls(tuple(sorted(durations_s)))

    def num_longer(self, ran_s: float) -> int:
        """Return how many past runs took longer than this."""
        return len(self.sorted_s) - bisect_right(self.sorted_s, ran_s)

    def remaining_s(self, ran_s: float, quantile: float, least: int = MIN_SAMPLES) -> float | None:
        """Return what remains, at a quantile, of work that has run for ``ran_s``; None: not known.

        Args:
            ran_s: How long it has run.
            quantile: Between 0 and 1; 0.5 is the median, by nearest rank.
            least: Fewer longer past runs than this are no answer.
        """
        first = bisect_right(self.sorted_s, ran_s)
        longer = len(self.sorted_s) - first
        if longer < max(1, least):
            return None
        rank = min(longer - 1, max(0, math.ceil(quantile * longer) - 1))
        return self.sorted_s[first + rank] - ran_s
