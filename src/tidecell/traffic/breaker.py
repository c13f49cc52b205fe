"""Circuit breaking: a service that fails most of what it gets is left alone for a while. Pure.

Closed, it counts; open, it refuses at once; half open, it lets a few through to see. Per service, where
outlier ejection is per replica: it is for a fault that all replicas share, which ejection must not answer.

Sources: Nygard, Release It!, 2007; Envoy's circuit breakers for the bound on what is in flight.
"""

from __future__ import annotations

from tidecell.structs.traffic import BreakerPolicy

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half_open"


class Breaker:
    """One service's.

    Attributes:
        state: ``closed``, ``open`` or ``half_open``.
    """

    def __init__(self, policy: BreakerPolicy) -> None:
        self.policy = policy
        self.state = CLOSED
        self._since_s = 0.0
        self._count = 0.0
        self._failures = 0.0
        self._num_openings = 0
        self._trials = 0
        self._passed = 0

    def allow(self, now_s: float, in_flight: int = 0) -> str:
        """Return an empty reason if a request may pass, else why not; a trial is counted as taken."""
        most = self.policy.max_in_flight
        if most and in_flight >= most:
            return "breaker_full"
        if self.state == CLOSED:
            return ""
        if self.state == OPEN:
            if now_s - self._since_s < self.open_s():
                return "breaker_open"
            self.state, self._trials, self._passed = HALF_OPEN, 0, 0
        if self._trials - self._passed >= self.policy.trials:
            return "breaker_open"
        self._trials += 1
        return ""

    def is_open(self, now_s: float) -> bool:
        """Return whether a request would be refused now; takes nothing, unlike ``allow``."""
        if self.state == HALF_OPEN:
            return self._trials - self._passed >= self.policy.trials
        return self.state == OPEN and now_s - self._since_s < self.open_s()

    def record(self, ok: bool, now_s: float) -> None:
        """Note how a request ended."""
        if self.state == HALF_OPEN:
            self._record_trial(ok, now_s)
        elif self.state == CLOSED:
            self._decay(now_s)
            self._count += 1.0
            self._failures += not ok
            if self._count >= self.policy.min_requests and (
                self._failures >= self._count * self.policy.failure_share
            ):
                self._open(now_s)

    def forget(self) -> None:
        """Note that a request ended in a way that says nothing of the service: its client left."""
        if self.state == HALF_OPEN and self._trials > self._passed:
            self._trials -= 1

    def open_s(self) -> float:
        """Return how long it stays open this time: longer after each trial that failed."""
        longer = self.policy.open_s * 2.0 ** min(16, max(0, self._num_openings - 1))
        return float(min(self.policy.max_open_s, longer))

    def _record_trial(self, ok: bool, now_s: float) -> None:
        if not ok:
            self._open(now_s)
            return
        self._passed += 1
        if self._passed >= self.policy.trials:
            self.state = CLOSED
            self._count = self._failures = 0.0
            self._num_openings = 0
            self._since_s = now_s

    def _open(self, now_s: float) -> None:
        self.state = OPEN
        self._since_s = now_s
        self._num_openings += 1
        self._count = self._failures = 0.0

    def _decay(self, now_s: float) -> None:
        """Halve what is older than the window, again and again: a moving count without a list."""
        while now_s - self._since_s >= self.policy.window_s:
            if self._count < 0.01:
                self._since_s = now_s
                return
            self._since_s += self.policy.window_s
            self._count /= 2.0
            self._failures /= 2.0
