"""How many requests a service takes at once, learned from its latency. Pure.

Below saturation more requests at once do not slow each other; above, they only wait. So the limit grows
while latency stays near what it is at rest, and shrinks when it rises.

Sources: Netflix's concurrency-limits (gradient with a square root of headroom, AIMD); Envoy's adaptive
concurrency for measuring rest anew. Netflix's Gradient2, which takes a long mean for rest, learned the
overload itself as rest in our testbed and let the limit grow to three times what the replicas could do.
"""

from __future__ import annotations

from math import sqrt

from tidecell.structs.traffic import ConcurrencyPolicy

MIN_BATCH = 100  # fewer are mostly noise; the least of noisy means would be taken for rest
SMOOTHING = 0.5
FIRST_LOOK_S = 1.0
LEAST_LOOK = 50


class FixedLimit:
    """A limit that somebody set."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def observe(self, latency_s: float, in_flight: int, ok: bool, now_s: float) -> None:
        """Learn nothing."""


class GradientLimit:
    """The limit follows the ratio of latency at rest to that of now.

    At rest is what it took with half the limit: now and then (``look_s``) half of it is given for one batch
    of requests, since a service that is never at rest would otherwise forget what rest is.

    Attributes:
        limit: Requests that may be under way at once.
    """

    def __init__(self, policy: ConcurrencyPolicy) -> None:
        self.policy = policy
        self.limit = policy.initial
        self._exact = float(policy.initial)
        self._rest_s = 0.0
        self._look_at_s = 0.0
        self._pause_s = FIRST_LOOK_S
        self._is_looking = False
        self._quiet_since_s = 0.0
        self._span_s = 0.0
        self._sum_s = 0.0
        self._num = 0
        self._busiest = 0

    def observe(self, latency_s: float, in_flight: int, ok: bool, now_s: float) -> None:
        """Learn from one request that ended.

        Args:
            latency_s: How long it took at the replica.
            in_flight: How many were under way when it ended, itself included.
            ok: Whether it was answered; a refusal of the replica counts as a drop.
            now_s: Time.
        """
        if not ok:
            self._set(self._exact * self.policy.backoff)
            return
        if self._is_looking:
            self._look(latency_s, in_flight, now_s)
            return
        self._sum_s += latency_s
        self._num += 1
        self._busiest = max(self._busiest, in_flight)
        if self._num >= max(MIN_BATCH, 2 * self.limit):
            self._update(self._sum_s / self._num, now_s)
            self._sum_s, self._num, self._busiest = 0.0, 0, 0

    def _look(self, latency_s: float, in_flight: int, now_s: float) -> None:
        """Average those that begin in a span at rest, and wait for the slow among them too."""
        if in_flight > self.limit:
            self._quiet_since_s = now_s
        elif self._quiet_since_s <= now_s - latency_s < self._quiet_since_s + self._span_s:
            self._sum_s += latency_s
            self._num += 1
        if now_s < self._quiet_since_s + 2.0 * self._span_s:
            return
        if self._num < LEAST_LOOK:
            self._quiet_since_s, self._span_s = now_s, 2.0 * self._span_s
            return
        mean_s = self._sum_s / self._num
        self._sum_s, self._num, self._busiest = 0.0, 0, 0
        # What is found to have been no rest is looked at again soon.
        is_news = mean_s < 0.8 * self._rest_s or not self._rest_s
        self._pause_s = FIRST_LOOK_S if is_news else min(self.policy.look_s, 2.0 * self._pause_s)
        self._rest_s = mean_s
        self._look_at_s = now_s + self._pause_s
        self._is_looking = False
        self._set(self._exact)

    def _update(self, mean_s: float, now_s: float) -> None:
        policy = self.policy
        if not self._rest_s:
            self._rest_s = mean_s
        elif self._busiest * 2 >= self.limit:  # else nobody tried the limit, and nothing is known of it
            gradient = max(0.5, min(1.0, policy.tolerance * self._rest_s / max(1e-9, mean_s)))
            wanted = self._exact * gradient + sqrt(self._exact)
            self._exact += SMOOTHING * (wanted - self._exact)
        if now_s >= self._look_at_s and self._busiest * 2 >= self.limit:
            self._is_looking = True
            self._quiet_since_s, self._span_s = now_s, 4.0 * mean_s
        self._set(self._exact)

    def _set(self, exact: float) -> None:
        self._exact = max(float(self.policy.least), min(float(self.policy.most), exact))
        self.limit = max(1, int(self._exact / 2.0 if self._is_looking else self._exact))


class AimdLimit:
    """One more for each limit's worth of good answers, a tenth less for a bad one.

    Attributes:
        limit: Requests that may be under way at once.
    """

    def __init__(self, policy: ConcurrencyPolicy) -> None:
        self.policy = policy
        self.limit = policy.initial
        self._exact = float(policy.initial)
        self._until_next_cut = 0

    def observe(self, latency_s: float, in_flight: int, ok: bool, now_s: float) -> None:
        """Learn from one request that ended; see ``GradientLimit``. Slower than the target is bad."""
        self._until_next_cut -= 1
        if not ok or latency_s > self.policy.target_s:
            if self._until_next_cut <= 0:  # one cut for all that suffered from the same excess
                self._exact *= self.policy.backoff
                self._until_next_cut = self.limit
        elif in_flight * 2 >= self.limit:
            self._exact += 1.0 / max(1.0, self._exact)
        self._exact = max(float(self.policy.least), min(float(self.policy.most), self._exact))
        self.limit = int(self._exact)


Limit = FixedLimit | GradientLimit | AimdLimit


def make_limit(policy: ConcurrencyPolicy) -> Limit:
    """Return the limit that a policy names."""
    if policy.kind == "gradient":
        return GradientLimit(policy)
    return AimdLimit(policy) if policy.kind == "aimd" else FixedLimit(policy.initial)
