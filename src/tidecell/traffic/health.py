"""Which replicas are left out for failing, and how much may be tried again. Pure: time comes as an argument.

Two kinds of bad news are kept apart. A refused connection is a fact: nothing listens, so the replica is
unreachable until a short, growing pause is over, however many others are too. Failing answers are a
suspicion, and a common cause (a poisonous request, a full disk they share) makes everybody look bad at
once: so never more than a share (half) are ejected.

Sources: Envoy's outlier detection (5 consecutive failures, ejection time growing with each ejection) and
retry budgets; Google's SRE book, chapter 21 (retries at most 10 % of requests).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tidecell.structs.traffic import OutlierPolicy

DEFAULT_OUTLIERS = OutlierPolicy()
EJECT_AFTER = DEFAULT_OUTLIERS.after
PAUSE_BASE_S = 0.1
PAUSE_MAX_S = 2.0
RETRY_SHARE = 0.1
RETRY_BURST = 10.0


@dataclass(slots=True)
class Health:
    """One replica's record.

    Attributes:
        consecutive_failures: Since the last success.
        num_ejections: Grows the ejection time; falls by one with each success outside an ejection.
        ejected_until_s: It is left out until then.
        num_refusals: Refused connections since the last that was accepted.
        unreachable_until_s: Nothing is sent until then.
    """

    consecutive_failures: int = 0
    num_ejections: int = 0
    ejected_until_s: float = 0.0
    num_refusals: int = 0
    unreachable_until_s: float = 0.0

    def is_ejected(self, now_s: float) -> bool:
        """Return whether it is left out for failing answers."""
        return now_s < self.ejected_until_s

    def is_unreachable(self, now_s: float) -> bool:
        """Return whether its port refused so recently that trying again would be in vain."""
        return now_s < self.unreachable_until_s

    def connected(self) -> None:
        """Note that it accepted a connection."""
        self.num_refusals = 0
        self.unreachable_until_s = 0.0

    def refused(self, now_s: float) -> float:
        """Note that it could not be connected to, and return the pause in seconds before the next try."""
        pause_s = min(PAUSE_MAX_S, PAUSE_BASE_S * 2.0 ** min(self.num_refusals, 16))
        self.num_refusals += 1
        self.unreachable_until_s = now_s + pause_s
        return pause_s

    def pause_over(self) -> None:
        """Note that the pause after a refusal is over: it may be tried again."""
        self.unreachable_until_s = 0.0

    def succeeded(self, now_s: float) -> None:
        """Note a good answer."""
        self.consecutive_failures = 0
        if self.num_ejections and not self.is_ejected(now_s):
            self.num_ejections -= 1

    def failed(self, now_s: float, peers: Iterable[Health], policy: OutlierPolicy = DEFAULT_OUTLIERS) -> bool:
        """Note a failed answer, and eject the replica if it is due and enough others remain.

        Args:
            now_s: Time.
            peers: All replicas of the service, this one included.
            policy: When and for how long.

        Returns:
            Whether it was ejected by this failure.
        """
        self.consecutive_failures += 1
        if self.consecutive_failures < policy.after or self.is_ejected(now_s):
            return False
        others = list(peers)
        num_ejected = sum(peer.is_ejected(now_s) for peer in others)
        if num_ejected + 1 > len(others) * policy.max_share:
            return False
        span_s = min(policy.max_s, policy.base_s * 2.0 ** min(self.num_ejections, 16))
        self.num_ejections += 1
        self.consecutive_failures = 0
        self.ejected_until_s = now_s + span_s
        return True


class RetryBudget:
    """Lets retries be at most a share of requests, so that they cannot multiply an overload.

    A request's first retry is always free: a replica that crashed must not cost the requests it had. The
    budget pays for what comes after, and for nothing else: if first retries used it up, the crash of a second
    replica, which is when it is needed, would cost requests.
    """

    def __init__(self, share: float = RETRY_SHARE, burst: float = RETRY_BURST) -> None:
        self._share = share
        self._burst = burst
        self.balance = burst

    def deposit(self) -> None:
        """Note one admitted request."""
        if self.balance < self._burst:
            self.balance = min(self._burst, self.balance + self._share)

    def allow(self, num_retries: int) -> bool:
        """Return whether a request that was retried ``num_retries`` times may be retried once more."""
        if num_retries == 0:
            return True
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        return True
