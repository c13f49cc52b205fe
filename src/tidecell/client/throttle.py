"""Client-side adaptive throttling: a client that is mostly refused stops asking before it is asked to. Pure.

Each request is held back with the chance ``max(0, (requests - K accepts) / (requests + 1))`` over the last
two minutes; with K = 2 a client sends about twice what is accepted, so it sees at once when there is room.

Source: Site Reliability Engineering (Google), chapter 21, "Client-side throttling".
"""

from __future__ import annotations

from typing import Protocol

K = 2.0
WINDOW_S = 120.0
NUM_SLOTS = 24


class Rng(Protocol):
    """A source of random numbers, such as ``random.Random``."""

    def random(self) -> float:
        """Return a number from 0.0 up to but not including 1.0."""


class AdaptiveThrottle:
    """One client's view of one backend.

    Args:
        rng: Source of its choices.
        k: How many requests are sent for each that is accepted, at least.
        window_s: How long requests count.
    """

    def __init__(self, rng: Rng, k: float = K, window_s: float = WINDOW_S) -> None:
        self._rng = rng
        self._k = k
        self._slot_s = window_s / NUM_SLOTS
        self._requests = [0] * NUM_SLOTS
        self._accepts = [0] * NUM_SLOTS
        self._slot = 0
        self.requests = 0
        self.accepts = 0

    def reject_share(self, now_s: float) -> float:
        """Return the chance with which a request is held back now."""
        self._move(now_s)
        return max(0.0, (self.requests - self._k * self.accepts) / (self.requests + 1))

    def allow(self, now_s: float) -> bool:
        """Return whether to send a request; counted either way, as the rule has it."""
        share = self.reject_share(now_s)
        self._requests[self._slot % NUM_SLOTS] += 1
        self.requests += 1
        return share <= 0.0 or self._rng.random() >= share

    def accepted(self, now_s: float) -> None:
        """Note that the backend took a request (whatever it answered in the end)."""
        self._move(now_s)
        self._accepts[self._slot % NUM_SLOTS] += 1
        self.accepts += 1

    def _move(self, now_s: float) -> None:
        slot = int(now_s / self._slot_s)
        for passed in range(max(self._slot + 1, slot - NUM_SLOTS + 1), slot + 1):
            at = passed % NUM_SLOTS
            self.requests -= self._requests[at]
            self.accepts -= self._accepts[at]
            self._requests[at] = self._accepts[at] = 0
        self._slot = max(slot, self._slot)
