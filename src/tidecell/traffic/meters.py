"""Counts, rates and quantiles of one service. Pure: time comes as an argument, nobody is told anything.

Samples of the last 10 s are kept as they are (the newest 4096) and sorted when somebody asks, twice a
second at most: exact, and nothing to pay per request but an append.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque

from tidecell.traffic.policy import End
from tidecell.traffic.stats import BOUNDS_MS, HistogramStats, Quantiles

WINDOW_S = 10.0
MAX_SAMPLES = 4096
SLOT_S = 0.1
NUM_SLOTS = 101  # 10 s of full slots and the one being filled


class Rate:
    """Events per second, from a ring of slots of 0.1 s."""

    def __init__(self) -> None:
        self.counts = [0] * NUM_SLOTS
        self.slot = 0

    def add(self, now_s: float) -> None:
        """Count one event."""
        slot = int(now_s / SLOT_S)
        if slot != self.slot:
            self.move_to(slot)
        self.counts[slot % NUM_SLOTS] += 1

    def per_second(self, now_s: float, window_s: float) -> float:
        """Return the mean rate over the last ``window_s`` seconds, at most 10."""
        slot = int(now_s / SLOT_S)
        if slot != self.slot:
            self.move_to(slot)
        width = min(NUM_SLOTS - 1, max(1, round(window_s / SLOT_S)))
        return sum(self.counts[(slot - i) % NUM_SLOTS] for i in range(1, width + 1)) / (width * SLOT_S)

    def move_to(self, slot: int) -> None:
        """Empty the slots between the last event and now."""
        for passed in range(max(self.slot + 1, slot - NUM_SLOTS + 1), slot + 1):
            self.counts[passed % NUM_SLOTS] = 0
        self.slot = max(slot, self.slot)


class Samples:
    """The values of the last 10 s."""

    def __init__(self) -> None:
        self.values: deque[tuple[float, float]] = deque(maxlen=MAX_SAMPLES)

    def add(self, now_s: float, value: float) -> None:
        """Keep one value."""
        self.values.append((now_s, value))

    def quantiles(self, now_s: float) -> Quantiles:
        """Return the quantiles of what is not older than 10 s."""
        values = self.values
        while values and values[0][0] < now_s - WINDOW_S:
            values.popleft()
        ordered = sorted(value for _, value in values)
        if not ordered:
            return Quantiles()
        return Quantiles(
            p50=round(_quantile(ordered, 0.50), 3),
            p95=round(_quantile(ordered, 0.95), 3),
            p99=round(_quantile(ordered, 0.99), 3),
            num_samples=len(ordered),
        )


def _quantile(ordered: list[float], q: float) -> float:
    """Return the nearest-rank quantile: always a value that was measured."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


class Histogram:
    """Counts by upper bound since the start, as Prometheus wants them; adding costs one bisection."""

    __slots__ = ("_counts", "_sum_ms")

    def __init__(self) -> None:
        self._counts = [0] * (len(BOUNDS_MS) + 1)
        self._sum_ms = 0.0

    def add(self, value_ms: float) -> None:
        """Count one value."""
        self._counts[bisect_left(BOUNDS_MS, value_ms)] += 1
        self._sum_ms += value_ms

    def stats(self) -> HistogramStats:
        """Return it as a value."""
        return HistogramStats(tuple(self._counts), round(self._sum_ms, 3))


class ServiceMeter:
    """What is counted for one service since the router started."""

    def __init__(self) -> None:
        self.requests_total = 0
        self.ok_total = 0
        self.failed_total: dict[str, int] = {}
        self.retries_total = 0
        self.tokens_in_total = 0
        self.tokens_out_total = 0
        self.tokens_cached_total = 0
        self.duration = Histogram()
        self.ttft = Histogram()
        self.token_gap = Histogram()
        self.rate = Rate()
        self.ttft_ms = Samples()
        self.duration_ms = Samples()

    def admitted(self, now_s: float) -> None:
        """Count a request that was admitted."""
        self.requests_total += 1
        rate, slot = self.rate, int(now_s / SLOT_S)
        if slot != rate.slot:
            rate.move_to(slot)
        rate.counts[slot % NUM_SLOTS] += 1

    def finished(self, end: End, retries: int, now_s: float) -> None:
        """Count a request's one outcome; latencies are those of answers that arrived in full."""
        self.retries_total += retries
        if end.tokens_in is not None:
            self.tokens_in_total += end.tokens_in
        if end.tokens_out is not None:
            self.tokens_out_total += end.tokens_out
        if end.tokens_cached is not None:
            self.tokens_cached_total += end.tokens_cached
        if end.outcome != "ok":
            self.failed_total[end.outcome] = self.failed_total.get(end.outcome, 0) + 1
            return
        self.ok_total += 1
        self.duration_ms.values.append((now_s, end.duration_ms))
        self.duration.add(end.duration_ms)
        if end.ttft_ms is not None:
            self.ttft_ms.values.append((now_s, end.ttft_ms))
            self.ttft.add(end.ttft_ms)
            if (
                end.frames > 1
            ):  # a stream: the mean of its gaps, since each would cost on the way of every token
                gaps = max(end.tokens_out or 0, end.frames) - 1
                self.token_gap.add((end.duration_ms - end.ttft_ms) / gaps)
