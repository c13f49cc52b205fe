"""Goodput of a training at every size: throughput times statistical efficiency, at the best batch size.

Pure; fed by what a job has shown (a step-time model and the noise of its gradients), it gives a curve that
``tidecell.capacity.elastic`` shares machines by. Progress is counted in samples of the initial batch size:
a larger batch does more samples a second, and each is worth less once the batch exceeds the noise scale.

Source: Qiao et al., Pollux, OSDI 2021, section 3: efficiency = (noise scale + initial batch) / (noise scale +
batch), 50 total batch sizes in geometric steps, at least one accumulation step where one replica exceeds
its initial batch (the noise cannot be estimated from one micro-batch).
"""

from __future__ import annotations

import functools

import msgspec
import numpy as np
import numpy.typing as npt

from tidecell.capacity.throughput_model import StepTimeModel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUM_BATCH_SIZES = 50
EPSILON = 1e-8


class BatchLimits(msgspec.Struct, frozen=True):
    """Which batch sizes a training may use, in samples.

    Attributes:
        initial: Total batch size that its learning rate was set for; never below.
        largest: Largest total batch size.
        min_local: Least samples in a micro-batch on a replica.
        max_local: Most samples in a micro-batch on a replica (memory).
    """

    initial: int
    largest: int
    min_local: int
    max_local: int


class BatchChoice(msgspec.Struct, frozen=True):
    """How a training runs at a size: samples a micro-batch, extra micro-batches a step, useful samples/s."""

    local_batch_size: int
    accumulation_steps: int
    goodput: float


class GoodputCurve(msgspec.Struct, frozen=True):
    """Useful samples a second by number of replicas; index 0 is no replica.

    Attributes:
        within: All replicas on one machine; as long as a machine has places for.
        across: Replicas on two or more machines (entries 0 and 1 are 0).
    """

    within: tuple[float, ...]
    across: tuple[float, ...]

    def at(self, num_nodes: int, num_replicas: int) -> float:
        """Return useful samples a second at a size; 0 where the size is not on the curve."""
        row = self.across if num_nodes > 1 else self.within
        return row[num_replicas] if num_replicas < len(row) else 0.0


class GoodputModel(msgspec.Struct, frozen=True):
    """What a training is expected to do at any size.

    Attributes:
        steps: Fitted step times.
        grad_sqr: Squared norm of its gradient.
        grad_var: Variance of its gradient at the initial batch size.
        limits: Batch sizes it may use.
        fixed_batch_size: Its total batch size, where it may not choose.
    """

    steps: StepTimeModel
    grad_sqr: float
    grad_var: float
    limits: BatchLimits
    fixed_batch_size: int | None = None

    def best(self, num_nodes: int, num_replicas: int) -> BatchChoice:
        """Return the batch size with the highest goodput at a size."""
        goodput, local, extra = self._best(np.array([num_nodes]), np.array([num_replicas]))
        return BatchChoice(int(local[0]), int(extra[0]), float(goodput[0]))

    def curve(self, gpus_per_node: int, max_replicas: int) -> GoodputCurve:
        """Return goodput at one machine's sizes and at all sizes across machines."""
        within = np.arange(1, min(gpus_per_node, max_replicas) + 1)
        across = np.arange(2, max_replicas + 1)
        nodes = np.concatenate([np.ones_like(within), np.maximum(2, -(-across // gpus_per_node))])
        goodput, _, _ = self._best(nodes, np.concatenate([within, across]))
        return GoodputCurve(
            (0.0, *goodput[: len(within)].tolist()), (0.0, 0.0, *goodput[len(within) :].tolist())
        )

    def _best(self, num_nodes: Ints, num_replicas: Ints) -> tuple[Floats, Ints, Ints]:
        """Return goodput, micro-batch and extra micro-batches of the best total batch, for each size."""
        limits = self.limits
        total = self._candidates(num_replicas)
        local = total / num_replicas
        extra = np.ceil(local / limits.max_local - EPSILON) - 1
        alone = (num_replicas == 1) & (local > limits.initial + EPSILON)
        extra = np.where(alone, np.maximum(extra, 1), extra)
        micro = np.ceil(local / (extra + 1) - EPSILON)
        goodput = self._goodput(num_nodes, num_replicas, micro, extra)
        fits = (micro >= limits.min_local) & (micro <= limits.max_local)
        fits &= num_replicas * limits.min_local <= limits.largest
        goodput = np.where(fits, goodput, 0.0)
        index = np.argmax(goodput, axis=0), np.arange(goodput.shape[1])
        return goodput[index], micro[index].astype(np.int64), extra[index].astype(np.int64)

    def _candidates(self, num_replicas: Ints) -> Floats:
        """Return total batch sizes to try: rows of candidates, a column for each size."""
        if self.fixed_batch_size is not None:
            return np.full((1, len(num_replicas)), float(self.fixed_batch_size))
        limits = self.limits
        least = np.maximum(limits.initial, limits.min_local * num_replicas)
        return np.asarray(np.exp(np.log(least) + _steps()[:, None] * np.log(limits.largest / least)))

    def _goodput(self, num_nodes: Ints, num_replicas: Ints, micro: Floats, extra: Floats) -> Floats:
        """Return useful samples a second."""
        compute_s = self.steps.compute_time_s(micro)
        network_s = self.steps.network_time_s(num_nodes, num_replicas)
        step_s = extra * compute_s + self.steps.step_time_s(compute_s, network_s)
        scale = num_replicas * micro * (extra + 1) / self.limits.initial
        denominator = self.grad_var / scale + self.grad_sqr
        with np.errstate(divide="ignore", invalid="ignore"):
            gain = np.where(denominator > 0, (self.grad_var + self.grad_sqr) / denominator, 1.0)
        return np.asarray(gain * self.limits.initial / step_s)


@functools.cache
def _steps() -> Floats:
    """Return 0 to 1 in as many steps as batch sizes are tried."""
    return np.linspace(0.0, 1.0, NUM_BATCH_SIZES)
