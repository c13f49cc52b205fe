"""How many replicas a service wants, from its load.

Pure: the clock and the load come as arguments, so the simulator drives the code that runs the cell. It
knows nothing of placement, start-up times or other services; the cell takes ``Decision.desired`` as the
size of the job.

Up: on the larger of a short and a long moving average of the load, wanted for ``up_delay_s`` without a
break; at once when the load is twice what the ready replicas are for (panic), or when somebody waits and
nothing runs. Down: to the largest size that was recommended within ``down_delay_s``, and only where the
load, spread over the replicas that remain, stays at or under the target. A load N/(N-1) times as high per
replica must not ask for the replica back at once; services elsewhere swing between 2 and 1 for want of it.

Sources: Kubernetes HPA (tolerance 0.1, maximum of the recommendations in a window), Knative KPA (panic at
2.0). Averages of 8 s and 90 s did best on our compressed day of the Azure LLM trace; they are cut to the
spec's own delays, since an average slower than ``up_delay_s`` would make that delay a lie.
"""

from __future__ import annotations

import math
from collections import deque

import msgspec

from tidecell.structs.job import Scaling

TOLERANCE = 0.1
PANIC_FACTOR = 2.0
SHORT_S = 8.0
LONG_S = 90.0
# An average that falls towards a whole number of replicas gets there only in the limit.
CEIL_SLACK = 0.02


class Decision(msgspec.Struct, frozen=True):
    """How many replicas there should be, and why, in words."""

    desired: int
    reason: str


class Ewma:
    """A moving average over samples at irregular times, with a time constant in seconds."""

    def __init__(self, tau_s: float) -> None:
        self._tau_s = tau_s
        self._at_s: float | None = None
        self.value = 0.0

    def observe(self, now_s: float, sample: float) -> float:
        """Take in a sample and return the average."""
        if self._at_s is None or self._tau_s <= 0:
            self.value = sample
        else:
            gap_s = max(0.0, now_s - self._at_s)
            self.value = sample + (self.value - sample) * math.exp(-gap_s / self._tau_s)
        self._at_s = now_s
        return self.value


class Autoscaler:
    """Follows one service. Not shared between services; deterministic in its calls.

    Args:
        spec: Metric, target per replica and delays.
        min: Least number of replicas; 0 lets an unused service stop altogether.
        max: Largest number of replicas.
    """

    def __init__(self, spec: Scaling, min: int, max: int) -> None:
        self._spec = spec
        self._target = spec.target if spec.target > 0 else 1.0
        self._min = min
        self._max = max if max > min else min
        self._short = Ewma(_shorter(SHORT_S, spec.up_delay_s))
        self._long = Ewma(_shorter(LONG_S, spec.down_delay_s / 4))
        self._up_since_s: float | None = None
        self._first_s: float | None = None
        self._recommended: deque[tuple[float, int]] = (
            deque()
        )  # falling sizes; the first is the window's maximum

    def observe(self, now_s: float, ongoing: float, ready: int, desired: int, rate: float = 0.0) -> Decision:
        """Take in the load and return the size that the service should have.

        Args:
            now_s: Time, never going back.
            ongoing: Requests in flight and queued.
            ready: Replicas that take requests now.
            desired: Replicas that were last asked for.
            rate: Requests admitted per second.
        """
        load = self._load(ongoing, rate)
        if self._first_s is None:
            self._first_s = now_s
        short = self._short.observe(now_s, load)
        demand = self._settled(load, max(short, self._long.observe(now_s, load)))
        self._recommend(now_s, max(self._size(short), 1 if load > 0 else 0))
        bounded = self._clamp(desired)
        if bounded != desired:
            self._up_since_s = None
            return Decision(bounded, f"{desired} is outside {self._min}..{self._max}")
        urgent = self._urgent(load, ready, desired)
        if urgent is not None:
            self._up_since_s = None
            return urgent
        if demand > self._target * desired * (1 + TOLERANCE):
            return self._up(now_s, demand, desired)
        self._up_since_s = None
        return self._down(now_s, load, demand, desired)

    def _load(self, ongoing: float, rate: float) -> float:
        value = rate if self._spec.metric == "requests_per_second" else ongoing
        return max(0.0, value) if math.isfinite(value) else 0.0

    def _settled(self, load: float, demand: float) -> float:
        """Return 0 for what is left of an average after the load itself has gone."""
        return 0.0 if load == 0 and demand <= self._target * CEIL_SLACK else demand

    def _urgent(self, load: float, ready: int, desired: int) -> Decision | None:
        """Grow at once where nothing runs, or the ready replicas have twice what they are for."""
        panic = load >= self._target * ready * PANIC_FACTOR
        wanted = self._clamp(max(self._size(load), 1))
        if load <= 0 or wanted <= desired or not (panic or desired == 0):
            return None
        why = "nothing runs" if desired == 0 else f"twice what {_replicas(ready)} ready should have"
        return Decision(wanted, f"{self._says(load)} wants {wanted}: at once, {why}")

    def _up(self, now_s: float, demand: float, desired: int) -> Decision:
        wanted = self._clamp(self._size(demand))
        if wanted <= desired:
            self._up_since_s = None
            return Decision(desired, f"{self._says(demand)} wants more than the maximum of {self._max}")
        if self._up_since_s is None:
            self._up_since_s = now_s
        held_s = now_s - self._up_since_s
        if held_s < self._spec.up_delay_s:
            waits = f"for {held_s:.1f} s of {self._spec.up_delay_s:g} s"
            return Decision(desired, f"{self._says(demand)} wants {wanted}: {waits}")
        self._up_since_s = None
        return Decision(wanted, f"{self._says(demand)} wants {wanted}, for {held_s:.1f} s")

    def _down(self, now_s: float, load: float, demand: float, desired: int) -> Decision:
        size = self._clamp(self._recommended[0][1])
        says = self._says(demand)
        if size >= desired:
            return Decision(desired, f"{says} fits {_replicas(desired)}")
        watched_s = now_s - (self._first_s if self._first_s is not None else now_s)
        if watched_s < self._spec.down_delay_s:
            waits = f"watched for {watched_s:.1f} s of {self._spec.down_delay_s:g} s"
            return Decision(desired, f"{says} wants {size}: {waits}")
        # One step too far asks for the replica back: what counts is the load of those that remain.
        if load > self._target * size or demand > self._target * size * (1 + TOLERANCE):
            return Decision(desired, f"{self._says(max(load, demand))} is too much for {_replicas(size)}")
        return Decision(size, f"{says} wants no more than {size}, for {self._spec.down_delay_s:g} s")

    def _recommend(self, now_s: float, size: int) -> None:
        """Note the size that this moment asks for; smaller earlier ones can never be the maximum again."""
        window = self._recommended
        while window and window[-1][1] <= size:
            window.pop()
        window.append((now_s, size))
        while window[0][0] <= now_s - self._spec.down_delay_s and len(window) > 1:
            window.popleft()

    def _size(self, load: float) -> int:
        return math.ceil(load / self._target - CEIL_SLACK)

    def _clamp(self, size: int) -> int:
        return min(max(size, self._min), self._max)

    def _says(self, load: float) -> str:
        words = "requests/s" if self._spec.metric == "requests_per_second" else "ongoing requests"
        return f"{load:.1f} {words} at {self._target:g} per replica"


def _shorter(a_s: float, b_s: float) -> float:
    return min(a_s, b_s)  # a function, since Autoscaler's arguments are named as the spec names them


def _replicas(count: int) -> str:
    return f"{count} replica" if count == 1 else f"{count} replicas"
