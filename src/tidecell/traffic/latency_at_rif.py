"""What a replica answers to a probe: its requests in flight, and the latency at that number. Pure.

Each finished request leaves its latency under the number of requests that were in flight when it came.
The estimate for now is the median of the recent ones at the number of now, or the nearest that has any.

Source: Wydrowski et al., Prequal, NSDI 2024, section 4.
"""

from __future__ import annotations

from collections import deque
from math import log2

SAMPLES_PER_LEVEL = 33  # with 9 the median is mostly noise, which is then followed
MAX_AGE_S = 5.0
EXACT_LEVELS = 32  # above, levels grow by an eighth of a power of two


class LatencyAtRif:
    """One replica's record."""

    def __init__(self) -> None:
        self.rif = 0
        self._levels: dict[int, deque[tuple[float, float]]] = {}

    def arrive(self) -> int:
        """Count a request in; return what to give to ``finish``."""
        self.rif += 1
        return self.rif

    def finish(self, rif_at_arrival: int, latency_ms: float, now_s: float) -> None:
        """Count a request out that was answered."""
        self.rif -= 1
        level = _level(rif_at_arrival)
        samples = self._levels.get(level)
        if samples is None:
            samples = self._levels[level] = deque(maxlen=SAMPLES_PER_LEVEL)
        samples.append((now_s, latency_ms))

    def abandon(self) -> None:
        """Count a request out that was given up: its time says little."""
        self.rif -= 1

    def estimate_ms(self, now_s: float) -> float:
        """Return the latency to expect of a request that comes now; 0 where nothing is known."""
        level = _level(self.rif + 1)
        best: deque[tuple[float, float]] | None = None
        distance = 1 << 30
        for known, samples in self._levels.items():
            if abs(known - level) < distance and now_s - samples[-1][0] <= MAX_AGE_S:
                best, distance = samples, abs(known - level)
        if best is None:
            return 0.0
        fresh = sorted(latency for time_s, latency in best if now_s - time_s <= MAX_AGE_S)
        return fresh[len(fresh) // 2]


def _level(rif: int) -> int:
    return rif if rif < EXACT_LEVELS else EXACT_LEVELS + int(8.0 * log2(rif / EXACT_LEVELS))
