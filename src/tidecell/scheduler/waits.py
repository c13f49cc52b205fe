"""How long it still waits, by how earlier waits compared with the queue before them. Pure.

The estimate is simple: as much as lies before a job was started in the last so many hours, so it starts in as
many. How far that is off is not assumed but looked up: the same estimate is made for moments of the past
that the cell remembers, for jobs that waited then, and compared with what became of them. The quantiles of
those errors, as ratios, make the range (split conformal prediction: Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World, 2005). A job that still waits is an error of at least so much (Kaplan and Meier,
1958), so a blockage widens the range while it lasts, not only when it is over. Where so many wait that the
wanted quantile is not among what has started, the range has no end, and says so.

Nothing is recorded for this: submissions and starts are in the cell's state, and so the answer is the same
after a replay of its journal.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tidecell.scheduler.durations import Wait, draw
from tidecell.structs.job import JobSpec

Floats = NDArray[np.float64]

NUM_MOMENTS = 150  # of the past, at which the estimate is made
JOBS_A_MOMENT = 2
MIN_EXAMPLES = 20  # jobs whose start is known; with fewer no quantile of 5 % is one
LEAST_S = 60.0  # waits shorter than this are alike: errors are ratios of times above it


class Example(NamedTuple):
    """How a past wait compared with its estimate.

    Attributes:
        uid: Whose.
        error: Logarithm of the true over the estimated time; at least this, where it still waits.
        known: Whether it started.
    """

    uid: str
    error: float
    known: bool


@dataclass(frozen=True)
class Waits:
    """Waits that a cell remembers, of jobs that want the same kind of thing; first in the queue first.

    Attributes:
        known_since_s: Since when nothing is forgotten.
        size_N: What each asks for in all.
    """

    uids: tuple[str, ...] = ()
    since_N: Floats = field(default_factory=lambda: np.zeros(0))
    until_N: Floats = field(default_factory=lambda: np.zeros(0))
    started_N: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))
    size_N: Floats = field(default_factory=lambda: np.zeros(0))
    known_since_s: float = 0.0

    @classmethod
    def of(cls, waits: Iterable[Wait], like: JobSpec, known_since_s: float = 0.0) -> Waits:
        """Return the waits of jobs that compete with one like this, in the order in which they are served."""
        mine = [w for w in waits if _kind(w.spec) == _kind(like)]
        mine.sort(key=lambda w: (-int(w.spec.priority.band), -w.spec.priority.order, w.since_s, w.uid))
        return cls(
            tuple(w.uid for w in mine),
            np.array([w.since_s for w in mine], np.float64),
            np.array([w.until_s for w in mine], np.float64),
            np.array([w.started for w in mine], np.bool_),
            np.array([size_of(w.spec) for w in mine], np.float64),
            known_since_s,
        )

    def estimate_s(self, row: int, at_s: float) -> float | None:
        """Return how long a job that waits at a moment would still wait; None: nothing has started yet."""
        waiting_N = (self.since_N[: row + 1] <= at_s) & (self.until_N[: row + 1] > at_s)
        ahead = float(self.size_N[: row + 1][waiting_N].sum())
        rows = np.flatnonzero(self.started_N & (self.until_N <= at_s) & (self.until_N >= self.known_since_s))
        if not len(rows):
            return None
        rows = rows[np.argsort(-self.until_N[rows], kind="stable")]
        started = np.cumsum(self.size_N[rows])
        at = int(np.searchsorted(started, ahead))
        if at < len(rows):
            return float(at_s - self.until_N[rows[at]])
        return float((at_s - self.until_N[rows[-1]]) * ahead / started[-1])  # it never started as much

    def examples(self, now_s: float, seed: int = 0) -> list[Example]:
        """Return how the estimate did at moments of the past; a job counts once a moment."""
        if not self.uids:
            return []
        first_s = max(float(self.since_N.min()), self.known_since_s)
        found = []
        for number in range(NUM_MOMENTS):
            share = (number + draw("moment", seed, number)) / NUM_MOMENTS
            at_s = first_s + share * (now_s - first_s)
            waiting = np.flatnonzero((self.since_N <= at_s) & (self.until_N > at_s + 1.0))
            for row in _some(waiting, seed, number):
                estimate_s = self.estimate_s(row, at_s)
                if estimate_s is not None:
                    found.append(self._example(row, at_s, estimate_s, now_s))
        return found

    def _example(self, row: int, at_s: float, estimate_s: float, now_s: float) -> Example:
        end_s = min(float(self.until_N[row]), now_s)
        known = bool(self.started_N[row]) and float(self.until_N[row]) <= now_s
        return Example(self.uids[row], error_of(end_s - at_s, estimate_s), known)


def _some(rows: NDArray[np.int64], seed: int, number: int) -> list[int]:
    """Return a few of these rows, without repetition."""
    left, chosen = [int(r) for r in rows], []
    for pick in range(min(JOBS_A_MOMENT, len(left))):
        chosen.append(left.pop(int(draw(f"job {pick}", seed, number) * len(left))))
    return chosen


def _kind(spec: JobSpec) -> tuple[object, ...]:
    """What makes jobs wait for the same thing: accelerators of a type or none, in an alloc or outside."""
    return (spec.resources.gpu_millis > 0, spec.accelerator_type.lower(), spec.alloc)


def size_of(spec: JobSpec) -> float:
    """Return what a job asks for in all, in accelerators, or else in cores, or else in GiB."""
    each = spec.resources
    amount = each.gpu_millis / 1000 or each.cpu_millis / 1000 or each.memory_bytes / (1 << 30)
    return amount * spec.replicas.max


def error_of(true_s: float, estimate_s: float) -> float:
    """Return how far an estimate was off, as the logarithm of a ratio."""
    return math.log((max(0.0, true_s) + LEAST_S) / (estimate_s + LEAST_S))


def corrected_s(estimate_s: float, error: float) -> float:
    """Return the time that an estimate stands for at an error; infinite where the error is."""
    return max(0.0, (estimate_s + LEAST_S) * math.exp(error) - LEAST_S) if math.isfinite(error) else error


def quantile(examples: Sequence[Example], share: float) -> float:
    """Return the least error that this share of cases does not exceed; infinite: it is not among those known.

    One more case than there is counts as worse than all others: the next one may well be. With no
    censored case this is split conformal prediction's quantile, the ceil(share (n + 1))-th of n.
    """
    at_risk, above = len(examples) + 1, 1.0
    for passed, example in enumerate(sorted(examples, key=lambda e: (e.error, not e.known))):
        if not example.known:
            continue
        above *= 1.0 - 1.0 / (at_risk - passed)
        if above <= 1.0 - share + 1e-12:
            return example.error
    return math.inf
