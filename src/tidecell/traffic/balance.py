"""Which replica takes a request: pure choices over what the router counts itself.

Here are the simple rules; ``prequal`` asks the replicas, ``prefix`` goes where the prompt is cached, and
``balancers`` makes the one that a route names.

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


@dataclass(slots=True, eq=False)
class Load:
    """What is known of one replica's load.

    Attributes:
        in_flight: Requests sent to it and not finished.
        latency_ewma_ms: Moving average of the time to the first byte, 0 before the first answer.
        ready_since_s: When it became ready.
        id: The endpoint's.
        weight: Its share of the requests beside the others', where a policy weighs.
        tokens: Estimated tokens of the requests in flight that are not answered yet.
        turn: Where weighted round robin has got to with it.
        slow_start_s: How long it warms up.
    """

    in_flight: int = 0
    latency_ewma_ms: float = 0.0
    ready_since_s: float = 0.0
    id: str = ""
    weight: float = 1.0
    tokens: int = 0
    turn: float = 0.0
    slow_start_s: float = SLOW_START_S

    def observe_latency(self, latency_ms: float) -> None:
        """Take in the time to the first byte of one answer."""
        if self.latency_ewma_ms == 0.0:
            self.latency_ewma_ms = latency_ms
        else:
            self.latency_ewma_ms += EWMA_WEIGHT * (latency_ms - self.latency_ewma_ms)


def share(load: Load, now_s: float) -> float:
    """Return the share of its fair load that a replica gets: rising to 1.0 within its slow start."""
    age_s = now_s - load.ready_since_s
    if age_s >= load.slow_start_s:
        return 1.0
    return max(SLOW_START_FLOOR, age_s / load.slow_start_s)


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
    a, b = loads[first], loads[second]
    if now_s - a.ready_since_s < a.slow_start_s or now_s - b.ready_since_s < b.slow_start_s:
        return first if score(a, now_s) <= score(b, now_s) else second
    if a.in_flight != b.in_flight:  # as their scores say, without making them
        return first if a.in_flight < b.in_flight else second
    return first if a.latency_ewma_ms <= b.latency_ewma_ms else second


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


def least_tokens(loads: Sequence[Load], rng: Rng, now_s: float) -> int:
    """Return the index of the replica with the least outstanding work, in tokens; ties at random.

    A prompt of 100,000 tokens and one of ten are one request each, and a thousand times apart.

    Raises:
        ValueError: ``loads`` is empty.
    """
    if not loads:
        raise ValueError("no replica to choose from")
    best, least, ties = 0, float("inf"), 0
    for i, load in enumerate(loads):
        work = load.tokens + load.in_flight + 1.0
        if now_s - load.ready_since_s < load.slow_start_s:
            work /= share(load, now_s)
        if work < least:
            best, least, ties = i, work, 1
        elif work == least:
            ties += 1
            if rng.random() * ties < 1.0:  # each of the equals is kept with the same chance
                best = i
    return best


class RoundRobin:
    """One after the other; a replica that warms up is passed over now and then."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, loads: Sequence[Load], rng: Rng, now_s: float) -> int:
        """Return the index of the next replica.

        Raises:
            ValueError: ``loads`` is empty.
        """
        if not loads:
            raise ValueError("no replica to choose from")
        for _ in range(len(loads)):
            index = self._next % len(loads)
            self._next = index + 1
            part = share(loads[index], now_s)
            if part >= 1.0 or rng.random() < part:
                break
        return index


class WeightedRoundRobin:
    """Each as often as its weight says, evenly spread (stride scheduling: the least turn goes next).

    Source: Waldspurger and Weihl, Stride scheduling, 1995.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def choose(self, loads: Sequence[Load], rng: Rng, now_s: float) -> int:
        """Return the index of the replica whose turn it is; weight 0 is chosen only where all have it.

        Raises:
            ValueError: ``loads`` is empty.
        """
        if not loads:
            raise ValueError("no replica to choose from")
        best, least = -1, float("inf")
        for i, load in enumerate(loads):
            if load.weight <= 0.0:
                continue
            if load.turn < self._now:
                # New, or it was away: it makes up for nothing, and does not wait a whole round either.
                load.turn = self._now + rng.random() / load.weight
            if load.turn < least:
                best, least = i, load.turn
        if best < 0:
            return int(rng.random() * len(loads))
        chosen = loads[best]
        self._now = least
        chosen.turn = least + 1.0 / (chosen.weight * share(chosen, now_s))
        return best
