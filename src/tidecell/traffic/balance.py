"""Which replica takes a request: pure choices over what the router counts itself.

A router sees its own outstanding requests exactly and at once, so they lead; latency only breaks ties, as
in Prequal, where among replicas that are not hot the fastest wins. Two random candidates, not all of
them: several routers that always chose the least loaded of all would choose the same one.

Sources: Mitzenmacher, The power of two choices, 2001; Wydrowski et al., Prequal, NSDI 2024.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

SLOW_START_S = 5.0
# A cold replica still gets a share, or it would never warm up.
SLOW_START_FLOOR = 0.25
EWMA_WEIGHT = 0.2


class Rng(Protocol):
    """A source of random numbers, such as ``random.Random``."""

    def random(self) -> float:
        """Return a number from 0.0 up to but not including 1.0."""


@dataclass(slots=True)
class Load:
    """What is known of one replica's load.

    Attributes:
        in_flight: Requests sent to it and not finished.
        latency_ewma_ms: Moving average of the time to the first byte, 0 before the first answer.
        ready_since_s: When it became ready.
        id: The endpoint's id.
    """

    in_flight: int = 0
    latency_ewma_ms: float = 0.0
    ready_since_s: float = 0.0
    id: str = ""

    def observe_latency(self, latency_ms: float) -> None:
        """Take in the time to the first byte of one answer."""
        if self.latency_ewma_ms == 0.0:
            self.latency_ewma_ms = latency_ms
        else:
            self.latency_ewma_ms += EWMA_WEIGHT * (latency_ms - self.latency_ewma_ms)


def share(load: Load, now_s: float) -> float:
    """Return the share of its fair load that a replica gets: rising to 1.0 within ``SLOW_START_S``."""
    age_s = now_s - load.ready_since_s
    if age_s >= SLOW_START_S:
        return 1.0
    return max(SLOW_START_FLOOR, age_s / SLOW_START_S)


def score(load: Load, now_s: float) -> tuple[float, float]:
    """Return what a replica is compared by; less is better: load with this request, then latency."""
    return ((load.in_flight + 1) / share(load, now_s), load.latency_ewma_ms)


def power_of_two(loads: Sequence[Load], rng: Rng, now_s: float) -> int:
    """Return the index of the better of two replicas chosen at random.

    Raises:
        ValueError: ``loads`` is empty.
    """
    count = len(loads)
    if count == 0:
        raise ValueError("no replica to choose from")
    if count == 1:
        return 0
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    if second >= first:
        second += 1
    return first if score(loads[first], now_s) <= score(loads[second], now_s) else second


def least_outstanding(loads: Sequence[Load], rng: Rng, now_s: float) -> int:
    """Return the index of the least loaded replica, ties broken by latency, then at random.

    For retries, where one more bad choice costs the request.

    Raises:
        ValueError: ``loads`` is empty.
    """
    if not loads:
        raise ValueError("no replica to choose from")
    scores = [score(load, now_s) for load in loads]
    best = min(scores)
    ties = [i for i, value in enumerate(scores) if value == best]
    return ties[int(rng.random() * len(ties))]
