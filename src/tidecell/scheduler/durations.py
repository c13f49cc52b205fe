"""How much longer does it run? From how long similar work ran, given that it has run for so long. Pure.

A duration is drawn from the past ones that were longer than what has passed already: the empirical
distribution, conditioned on survival, in which work that still runs is censored.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from tidecell.structs.job import JobSpec

MIN_SAMPLES = 3  # fewer longer runs than this say nothing
MIN_EXAMPLES = 5  # with fewer, less similar work says more


@dataclass(frozen=True)
class Durations:
    """Past durations of similar work, in seconds, and how likely work is to last longer.

    Work that still runs counts as well: it took longer than it has run (it is censored). To leave it out
    would make early forecasts far too short, because what ends first is what is short.

    Attributes:
        sorted_s: Durations of what ended, shortest first.
        survival: For each of them, the share of work that lasts longer.
    """

    sorted_s: tuple[float, ...] = field(default=())
    survival: tuple[float, ...] = field(default=())

    @classmethod
    def of(cls, durations_s: Iterable[float], ongoing_s: Iterable[float] = ()) -> Durations:
        """Return the distribution of these.

        One more example than there is counts as longer than all others: the next one may well be.

        Source: Kaplan and Meier, Nonparametric estimation from incomplete observations, 1958.
        """
        ended, ongoing = sorted(durations_s), sorted(ongoing_s)
        at_risk, share, passed = len(ended) + len(ongoing) + 1, 1.0, 0
        survival = []
        for i, time_s in enumerate(ended):
            while passed < len(ongoing) and ongoing[passed] < time_s:
                passed += 1
            at_risk_now = at_risk - i - passed
            share *= 1.0 - 1.0 / at_risk_now
            survival.append(share)
        return cls(tuple(ended), tuple(survival))

    def num_longer(self, ran_s: float) -> int:
        """Return how many past runs took longer than this."""
        return len(self.sorted_s) - bisect_right(self.sorted_s, ran_s)

    def remaining_s(self, ran_s: float, quantile: float, least: int = MIN_SAMPLES) -> float | None:
        """Return what remains, at a quantile, of work that has run for ``ran_s``; None: not known.

        Args:
            ran_s: How long it has run.
            quantile: Between 0 and 1; 0.5 is the median.
            least: Fewer longer past runs than this are no answer.
        """
        first = bisect_right(self.sorted_s, ran_s)
        if len(self.sorted_s) - first < max(1, least):
            return None
        lasting = self.survival[first - 1] if first else 1.0
        wanted = (1.0 - quantile) * lasting
        at = bisect_left(self.survival, -wanted - 1e-12, lo=first, key=lambda share: -share)
        if at < len(self.sorted_s):
            return self.sorted_s[at] - ran_s
        # Beyond the longest example, shares fall as a heavy tail does (Pareto, exponent 1).
        longest, share = self.sorted_s[-1], self.survival[-1]
        return longest * share / max(wanted, 1e-3 * share) - ran_s


class Wait(NamedTuple):
    """One job's wait for its first start.

    Attributes:
        since_s: From when it could have started.
        until_s: When it started or was given up; infinite: it waits.
        started: Whether it did start.
    """

    uid: str
    spec: JobSpec
    since_s: float
    until_s: float
    started: bool


def draw(key: str, seed: int, number: int) -> float:
    """Return a number in (0, 1) that depends on nothing but its arguments."""
    return (zlib.crc32(f"{seed}:{number}:{key}".encode()) + 0.5) / 2**32


class History:
    """Past durations of work by what makes it alike: its name, its team and size, its size.

    The closest kind of likeness of which there are enough examples counts.

    Attributes:
        arrivals: What was submitted lately: how many seconds ago, and what; the oldest first.
        waits: How long jobs waited for their first start, as far as the cell remembers.
        known_since_s: Since when no wait is forgotten.
    """

    def __init__(
        self,
        past: Iterable[tuple[JobSpec, float]],
        ongoing: Iterable[tuple[JobSpec, float]] = (),
        arrivals: Iterable[tuple[float, JobSpec]] = (),
        waits: Iterable[Wait] = (),
        known_since_s: float = 0.0,
    ) -> None:
        self.waits, self.known_since_s = tuple(waits), known_since_s
        self.arrivals = tuple(sorted(arrivals, key=lambda a: (-a[0], a[1].name)))
        ended, running = _grouped(past), _grouped(ongoing)
        self._by_likeness = {key: Durations.of(times, running.get(key, ())) for key, times in ended.items()}

    def of(self, spec: JobSpec) -> Durations:
        """Return the durations of the most similar past work; empty if there is none."""
        for key in _likenesses(spec):
            known = self._by_likeness.get(key)
            if known is not None and len(known.sorted_s) >= MIN_EXAMPLES:
                return known
        return self._by_likeness.get(_likenesses(spec)[0], Durations())

    def remaining_s(self, spec: JobSpec, ran_s: float, quantile: float) -> float | None:
        """Return what remains of work at a quantile, at most to its time limit; None: it never ends.

        Work that has outlived nearly all examples goes on for as long as it has run, as heavy tails do: the
        remaining time follows Pareto's law with exponent 1, whose median is the time that has passed.
        """
        if spec.is_service:
            return None
        known = self.of(spec)
        left_s = known.remaining_s(ran_s, quantile)
        if left_s is None and known.sorted_s and ran_s > 0:
            left_s = ran_s * quantile / max(1e-3, 1.0 - quantile)
        if not spec.max_duration_s:
            return left_s
        limit_s = max(0.0, spec.max_duration_s - ran_s)
        return limit_s if left_s is None else min(left_s, limit_s)


def _likenesses(spec: JobSpec) -> tuple[tuple[object, ...], ...]:
    size = (spec.resources.gpu_millis * spec.replicas.max, spec.resources.gpu_millis > 0)
    return (("name", spec.name), ("team", spec.team, *size), ("size", *size), ("all",))


def _grouped(work: Iterable[tuple[JobSpec, float]]) -> dict[tuple[object, ...], list[float]]:
    found: dict[tuple[object, ...], list[float]] = {}
    for spec, took_s in work:
        for key in _likenesses(spec):
            found.setdefault(key, []).append(took_s)
    return found
