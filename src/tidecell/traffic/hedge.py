"""When a request that is slow is sent a second time, and how often that may happen. Pure.

After the time in which most requests have begun to be answered, a second replica gets the request too; the
first to begin wins and the other is cancelled. A budget holds it to a share of the requests, so that a
service that is slow throughout does not get twice the load. Only for requests that may be repeated.

Source: Dean and Barroso, The Tail at Scale, CACM 2013 (defer until the 95th percentile).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

from tidecell.structs.traffic import HedgePolicy
from tidecell.traffic.health import RetryBudget

WINDOW = 200


class Hedger:
    """One service's."""

    def __init__(self, policy: HedgePolicy) -> None:
        self.policy = policy
        self.num_hedged = 0
        self.num_won = 0
        self._budget = RetryBudget(policy.share, policy.burst)
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def admitted(self) -> None:
        """Note a request; it pays into the budget."""
        self._budget.deposit()

    def observe(self, ttft_s: float) -> None:
        """Note how long an answer took to begin."""
        self._recent.append(ttft_s)
        insort(self._sorted, ttft_s)
        if len(self._recent) > WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def delay_s(self) -> float | None:
        """Return after how long a request is sent again; None: it is not, too little is known."""
        if len(self._sorted) < self.policy.min_samples:
            return None
        rank = min(len(self._sorted) - 1, int(self.policy.quantile * len(self._sorted)))
        return max(self.policy.least_s, self._sorted[rank])

    def may_hedge(self, num_replicas: int) -> bool:
        """Return whether a request that waited for ``delay_s`` is sent again, and charge the budget."""
        if num_replicas < 2 or not self._budget.allow(1):
            return False
        self.num_hedged += 1
        return True

    def won(self) -> None:
        """Note that the second try answered first."""
        self.num_won += 1
