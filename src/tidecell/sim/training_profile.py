"""What is true of a training application: step times by placement, noise by epoch, work in all.

Deterministic and without I/O: readers build these from measurements (``tidecell.sim.pollux``). Step times
of a placement that was measured are interpolated over the local batch; others lie between the measured
(machines, replicas, local batch), linearly in the Delaunay simplex that holds them, as in the published
simulator of Pollux. We find that simplex as the optimum of a small linear programme (the lower hull of the
points lifted onto a paraboloid) rather than by building a triangulation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_Reading = Callable[["EpochStatistics"], float]
SIMPLEX_TOLERANCE = 1e-9
MAX_PIVOTS = 500


class EpochStatistics(msgspec.Struct, frozen=True):
    """A training at one batch size, a number for each epoch.

    Attributes:
        progress: Work done when the epoch ends, in steps of the initial batch size.
        iterations: Steps of this batch size done when the epoch ends.
        grad_sqr: Squared norm of the gradient.
        grad_var: Variance of the gradient at the initial batch size.
    """

    progress: tuple[float, ...]
    iterations: tuple[int, ...]
    grad_sqr: tuple[float, ...]
    grad_var: tuple[float, ...]


class StepTimes:
    """Measured (step, sync) seconds, and what lies between the measurements."""

    def __init__(
        self,
        by_placement: Mapping[tuple[int, ...], Floats],
        by_size: Floats,
    ) -> None:
        """Keep the measurements.

        Args:
            by_placement: Replicas on each machine -> rows (local batch, step_s, sync_s).
            by_size: Rows (machines, replicas, local batch, step_s, sync_s) at larger sizes.
        """
        self._by_placement = {k: v[np.argsort(v[:, 0], kind="stable")] for k, v in by_placement.items()}
        self._by_size = by_size
        self._cloud: tuple[Floats, Floats] | None = None
        self._memo: dict[tuple[tuple[int, ...], int], tuple[float, float]] = {}

    def at(self, placement: Sequence[int], local_batch_size: int) -> tuple[float, float]:
        """Return (step, sync) seconds.

        Args:
            placement: Replicas on each machine, in ring order; rotations are the same ring.
            local_batch_size: Samples on each replica in one forward and backward.

        Raises:
            ValueError: The size lies outside everything that was measured.
        """
        counts = tuple(placement)
        ring = min(counts[i:] + counts[:i] for i in range(len(counts)))
        key = (ring, local_batch_size)
        if key not in self._memo:
            self._memo[key] = self._look_up(ring, local_batch_size)
        return self._memo[key]

    def _look_up(self, ring: tuple[int, ...], local_batch_size: int) -> tuple[float, float]:
        rows = self._by_placement.get(ring)
        if rows is not None:
            if not rows[0, 0] <= local_batch_size <= rows[-1, 0]:
                raise ValueError(
                    f"local batch {local_batch_size} on placement {ring} was not measured; "
                    f"{rows[0, 0]:g} to {rows[-1, 0]:g} were"
                )
            step_s = np.interp(local_batch_size, rows[:, 0], rows[:, 1])
            return float(step_s), float(np.interp(local_batch_size, rows[:, 0], rows[:, 2]))
        points, values = self._points()
        found = interpolate(points, values, np.array([len(ring), sum(ring), local_batch_size], dtype=float))
        if found is None:
            raise ValueError(
                f"{sum(ring)} replicas on {len(ring)} machines with local batch {local_batch_size} "
                "lie outside the measured sizes"
            )
        return float(found[0]), float(found[1])

    def _points(self) -> tuple[Floats, Floats]:
        """Return measured sizes and their mean (step, sync) seconds, placements of a size averaged."""
        if self._cloud is None:
            gathered: dict[tuple[float, ...], list[tuple[float, float]]] = {}
            for ring, rows in self._by_placement.items():
                for local, step_s, sync_s in rows:
                    gathered.setdefault((len(ring), sum(ring), local), []).append((step_s, sync_s))
            keys = sorted(gathered)
            points = np.array(keys, dtype=float).reshape(-1, 3)
            values = np.array([np.mean(gathered[k], axis=0) for k in keys]).reshape(-1, 2)
            self._cloud = (
                np.vstack([points, self._by_size[:, :3]]),
                np.vstack([values, self._by_size[:, 3:]]),
            )
        return self._cloud


def interpolate(points: Floats, values: Floats, at: Floats) -> Floats | None:
    """Return values at a point, linear in the Delaunay simplex around it; None outside the hull.

    Args:
        points: n x d, with n > d.
        values: n x m.
        at: d.

    Weights of the simplex minimise the weighted squared distance to ``at`` over all convex combinations
    that give ``at``: the simplex method with d + 1 rows, Bland's rule against cycling.
    """
    count, dim = points.shape
    matrix = np.vstack([(points - at).T, np.ones(count)])
    scale = np.maximum(np.abs(matrix).max(axis=1), 1e-12)
    matrix = matrix / scale[:, None]
    target = np.zeros(dim + 1)
    target[-1] = 1.0 / scale[-1]
    full = np.hstack([matrix, np.eye(dim + 1)])
    distance = ((points - at) ** 2).sum(axis=1)
    distance = distance / max(float(distance.max()), 1e-12)
    basis = list(range(count, count + dim + 1))
    feasibility = np.concatenate([np.zeros(count), np.ones(dim + 1)])
    weights = _minimise(full, target, feasibility, basis, count + dim + 1)
    if float(weights @ feasibility[basis]) > 1e-7:
        return None
    # Artificial columns that stay at zero weight do no harm but must not grow: they cost dearly.
    cost = np.concatenate([distance, np.full(dim + 1, 1e3)])
    weights = _minimise(full, target, cost, basis, count)
    real = [(w, b) for w, b in zip(weights, basis, strict=True) if b < count]
    total = sum(w for w, _ in real)
    return np.asarray(sum(w * values[b] for w, b in real) / total)


def _minimise(matrix: Floats, target: Floats, cost: Floats, basis: list[int], enterable: int) -> Floats:
    """Pivot ``basis`` in place until no column improves; return the weights of the basis."""
    for pivot in range(MAX_PIVOTS):
        inverse = np.linalg.inv(matrix[:, basis])
        weights = np.maximum(inverse @ target, 0.0)
        reduced = cost - (cost[basis] @ inverse) @ matrix
        reduced = reduced[:enterable]
        improving = np.flatnonzero(reduced < -SIMPLEX_TOLERANCE)
        if improving.size == 0:
            break
        # The steepest column is quick; the first one (Bland) cannot cycle.
        entering = int(improving[0]) if pivot > 100 else int(np.argmin(reduced))
        direction = inverse @ matrix[:, entering]
        rows = np.flatnonzero(direction > SIMPLEX_TOLERANCE)
        if rows.size == 0:
            break
        ratios = weights[rows] / direction[rows]
        ties = rows[ratios <= ratios.min() + 1e-14]
        leaving = min(ties, key=lambda row: basis[row])
        basis[int(leaving)] = entering
    return np.asarray(np.maximum(np.linalg.inv(matrix[:, basis]) @ target, 0.0))


class TrainingProfile:
    """An application as it really behaves: what a scheduler may learn only by running it."""

    def __init__(
        self,
        name: str,
        step_times: StepTimes,
        by_batch_size: Mapping[int, EpochStatistics],
        *,
        num_epochs: int,
        min_local_batch_size: int,
        max_local_batch_size: int,
        fixed_batch_size: int | None = None,
        max_replicas: int | None = None,
    ) -> None:
        """Describe an application.

        Args:
            name: What workloads call it.
            step_times: Measured step times.
            by_batch_size: Total batch size -> its statistics; the smallest is the initial one.
            num_epochs: Epochs after which a training is complete.
            min_local_batch_size: Least samples on a replica.
            max_local_batch_size: Most samples on a replica in one forward and backward (memory).
            fixed_batch_size: Batch of trainings that choose their own, where it is not free.
            max_replicas: Most replicas of such a training; None: as many as its batch allows.
        """
        self.name = name
        self.step_times = step_times
        self.num_epochs = num_epochs
        self.min_local_batch_size = min_local_batch_size
        self.max_local_batch_size = max_local_batch_size
        self.fixed_batch_size = fixed_batch_size
        self.max_replicas = max_replicas
        self._sizes = sorted(by_batch_size)
        self._statistics = dict(by_batch_size)
        self._noise: dict[tuple[int, int], tuple[float, float]] = {}
        self._progress = [
            min(s.progress[epoch] for s in self._statistics.values()) for epoch in range(num_epochs)
        ]

    @property
    def initial_batch_size(self) -> int:
        """The batch size that progress is counted in."""
        return self._sizes[0]

    @property
    def max_batch_size(self) -> int:
        """The largest total batch size that was validated."""
        return self._sizes[-1]

    def progress_after(self, epoch: int) -> float:
        """Return the progress at which ``epoch`` epochs are done."""
        return 0.0 if epoch == 0 else self._progress[epoch - 1]

    def noise(self, batch_size: int, epoch: int) -> tuple[float, float]:
        """Return (grad_sqr, grad_var) at a total batch size during an epoch."""
        key = (batch_size, epoch)
        if key not in self._noise:
            self._noise[key] = (
                self._between(batch_size, lambda s: s.grad_sqr[epoch]),
                self._between(batch_size, lambda s: s.grad_var[epoch]),
            )
        return self._noise[key]

    def iterations(self, batch_size: int, epoch: int) -> float:
        """Return the steps of this batch size that are done when epoch ``epoch`` (from 0) ends."""
        return self._between(batch_size, lambda s: float(s.iterations[epoch]))

    def _between(self, batch_size: int, of: _Reading) -> float:
        """Interpolate linearly between the validated batch sizes."""
        below = [b for b in self._sizes if b <= batch_size]
        above = [b for b in self._sizes if b >= batch_size]
        if not below or not above:
            raise ValueError(
                f"batch size {batch_size} of {self.name!r} is outside {self._sizes[0]} to {self._sizes[-1]}"
            )
        lower, upper = below[-1], above[0]
        low = of(self._statistics[lower])
        if lower == upper:
            return low
        high = of(self._statistics[upper])
        return ((batch_size - lower) * high + (upper - batch_size) * low) / (upper - lower)
