"""How long a training step takes at a size, fitted to the steps a job has shown so far.

Pure; it knows jobs only as observed step times. The form and its priors are those of Pollux (Qiao et al.,
OSDI 2021, section 3.2): compute time is linear in the local batch, network time has a constant and a part
that grows with the replicas, once for replicas on one machine and once across machines, and the two
overlap as a p-norm. The fit is ours: compute by non-negative least squares in relative error, then network
for each overlap of a grid in closed form, so that it needs no iterative optimiser and costs well under a
millisecond. What was never seen is assumed to be good (no network time), which makes a scheduler try it.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Overlap of compute and network: 1 = one after the other, 10 = as good as wholly hidden.
OVERLAPS = (1.001, 1.25, 1.6, 2.0, 2.7, 4.0, 6.0, 10.0)
# Regularisers of the published objective: towards little overlap.
OVERLAP_PENALTY = 1e-3
# A first network observation across machines is at least this much dearer than inside one.
CROSS_MACHINE_FACTOR = 1.1
TINY = 1e-8


class StepObservation(msgspec.Struct, frozen=True):
    """A measured step: at which size, how long, and how much of it was waiting for the network."""

    num_nodes: int
    num_replicas: int
    local_batch_size: int
    step_time_s: float
    sync_time_s: float


class StepTimeModel(msgspec.Struct, frozen=True):
    """Seconds a step takes as a function of machines, replicas and local batch.

    Attributes:
        compute_base_s: Constant part of forward and backward.
        compute_per_sample_s: Seconds for each sample of the local batch.
        across_base_s: Network time of two replicas on different machines.
        across_per_replica_s: What each further replica adds.
        within_base_s: Network time of two replicas on one machine.
        within_per_replica_s: What each further replica adds.
        overlap: Exponent of the p-norm of compute and network, 1 to 10.
    """

    compute_base_s: float
    compute_per_sample_s: float
    across_base_s: float = TINY
    across_per_replica_s: float = TINY
    within_base_s: float = TINY
    within_per_replica_s: float = TINY
    overlap: float = OVERLAPS[0]

    def compute_time_s(self, local_batch_size: Floats | Ints) -> Floats:
        """Return seconds of forward and backward for local batches of these sizes."""
        return np.asarray(self.compute_base_s + self.compute_per_sample_s * local_batch_size)

    def network_time_s(self, num_nodes: Ints, num_replicas: Ints) -> Floats:
        """Return seconds of reduction, before overlap."""
        more = np.maximum(num_replicas - 2, TINY)
        across = self.across_base_s + self.across_per_replica_s * more
        within = self.within_base_s + self.within_per_replica_s * more
        return np.where(num_nodes > 1, across, np.where(num_replicas > 1, within, TINY))

    def step_time_s(self, compute_s: Floats, network_s: Floats) -> Floats:
        """Return seconds of a whole step whose parts overlap."""
        # Scaled by the larger part: powers of times in milliseconds would underflow.
        larger = np.maximum(compute_s, network_s)
        parts = (compute_s / larger) ** self.overlap + (network_s / larger) ** self.overlap
        return np.asarray(larger * parts ** (1.0 / self.overlap))


def fit_step_times(observations: Sequence[StepObservation]) -> StepTimeModel:
    """Return the model that explains the observations.

    Args:
        observations: At least one; the same size may occur more than once.

    Raises:
        ValueError: No observation, or one whose times are not positive.
    """
    if not observations:
        raise ValueError("a step-time model needs at least one observation, got none")
    nodes, replicas, local, step_s, compute_s = _columns(observations)
    if not (np.all(step_s > 0) and np.all(compute_s > 0)):
        raise ValueError("step times must be positive and longer than their sync times")
    base_s, per_sample_s = _fit_compute(local, compute_s)
    best: tuple[float, StepTimeModel] | None = None
    for overlap in OVERLAPS:
        model = _fit_network(base_s, per_sample_s, overlap, nodes, replicas, local, step_s)
        predicted = model.step_time_s(model.compute_time_s(local), model.network_time_s(nodes, replicas))
        error = float(np.sqrt(np.mean(np.log(predicted / step_s) ** 2)))
        error += OVERLAP_PENALTY * (overlap - 1.0) ** 2
        if best is None or error < best[0]:
            best = (error, model)
        if not np.any(replicas > 1):
            break  # no network was seen, so no overlap either
    assert best is not None
    return best[1]


def _columns(observations: Sequence[StepObservation]) -> tuple[Ints, Ints, Floats, Floats, Floats]:
    """Return nodes, replicas, local batch, step and compute seconds as arrays."""
    rows = np.array(
        [
            (o.num_nodes, o.num_replicas, o.local_batch_size, o.step_time_s, o.sync_time_s)
            for o in observations
        ]
    )
    nodes, replicas = rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64)
    return nodes, replicas, rows[:, 2], rows[:, 3], rows[:, 3] - rows[:, 4]


def _fit_compute(local: Floats, compute_s: Floats) -> tuple[float, float]:
    """Return the constant and the slope of compute time; half and half where one batch was seen."""
    if np.ptp(local) == 0:
        half = float(np.mean(compute_s)) / 2
        return half, half / float(local[0])
    return _line(local, compute_s, 1.0 / compute_s)


def _line(x: Floats, y: Floats, weight: Floats) -> tuple[float, float]:
    """Return a and b of y = a + b x, neither below zero, by weighted least squares."""
    w = weight * weight
    sw, sx, sy = float(w.sum()), float((w * x).sum()), float((w * y).sum())
    sxx, sxy = float((w * x * x).sum()), float((w * x * y).sum())
    det = sw * sxx - sx * sx
    if det > 1e-12 * sw * sxx:
        a, b = (sxx * sy - sx * sxy) / det, (sw * sxy - sx * sy) / det
        if a >= 0 and b >= 0:
            return max(a, TINY), max(b, TINY)
        # The optimum lies on an edge: the slope alone if the constant wanted to be negative.
        return (TINY, max(sxy / sxx, TINY)) if a < 0 else (max(sy / sw, TINY), TINY)
    return max(sy / sw, TINY), TINY  # one x only: the most optimistic line is flat


def _fit_network(
    base_s: float,
    per_sample_s: float,
    overlap: float,
    nodes: Ints,
    replicas: Ints,
    local: Floats,
    step_s: Floats,
) -> StepTimeModel:
    """Return the model of this overlap: network time is what the step took beyond compute."""
    compute_s = base_s + per_sample_s * local
    beyond = np.maximum(1.0 - (compute_s / step_s) ** overlap, 1e-6)
    network_s = step_s * beyond ** (1.0 / overlap)
    # An error in network time weighs as much as it moves the logarithm of the step time.
    weight = np.maximum(beyond ** ((overlap - 1.0) / overlap), 1e-3) / step_s
    within = (nodes == 1) & (replicas > 1)
    across = nodes > 1
    more = np.maximum(replicas - 2, 0).astype(np.float64)
    within_line = across_line = (TINY, TINY)
    if np.any(within):
        within_line = _line(more[within], network_s[within], weight[within])
    if np.any(across):
        across_line = _line(more[across], network_s[across], weight[across])
    else:
        across_line = (within_line[0] * CROSS_MACHINE_FACTOR, within_line[1] * CROSS_MACHINE_FACTOR)
    return StepTimeModel(base_s, per_sample_s, *across_line, *within_line, overlap)
