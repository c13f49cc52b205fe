"""A simulated training: what it does with the places it has, and what its agent has learnt.

The truth (``TrainingProfile``) decides how fast it goes; its agent sees only the steps that were run, fits
a model to them and picks the batch size, as an agent of Pollux does. A change of places stops it for
``RESTART_S``. Epochs, progress and rounding follow the published simulator (petuum/adaptdl, branch
osdi21-artifact), so that its published completion times are comparable.
"""

from __future__ import annotations

import math

import msgspec

from tidecell.capacity.goodput import BatchLimits, GoodputCurve, GoodputModel
from tidecell.capacity.throughput_model import StepObservation, StepTimeModel, fit_step_times
from tidecell.sim.training_profile import TrainingProfile

# A checkpoint, a restart and a restore, in the published simulator.
RESTART_S = 30.0

# Replicas on each machine: (machine, count), machines in ring order.
Placement = tuple[tuple[int, int], ...]


class TrainingJob(msgspec.Struct, frozen=True):
    """A job of a workload.

    Attributes:
        name: Unique in the workload.
        application: Which profile it follows.
        submitted_s: When it arrives.
        num_replicas: Size its user asked for; only rigid policies keep to it.
        batch_size: Total batch size its user asked for; only policies with declared batches keep to it.
    """

    name: str
    application: str
    submitted_s: float
    num_replicas: int
    batch_size: int


class Training:
    """A job's progress, truth and agent."""

    def __init__(self, job: TrainingJob, profile: TrainingProfile, *, declared_batch: bool) -> None:
        """Start without places.

        Args:
            job: What arrived.
            profile: What is true of it.
            declared_batch: Keep the batch size its user asked for; otherwise its agent chooses.
        """
        self.job = job
        self.profile = profile
        self.adaptive = not declared_batch
        self.batch_size = job.batch_size if declared_batch else profile.fixed_batch_size
        self.placement: Placement = ()
        self.epoch = 0
        self.progress = 0.0
        self.completed_s: float | None = None
        self.first_start_s: float | None = None
        self.attained_gpu_s = 0.0
        self.restarts = -1
        self._clock_s = 0.0
        self._restart_left_s = 0.0
        self._local = 0
        self._extra = 0
        self._seen: dict[tuple[int, int, int], StepObservation] = {}
        self._steps: StepTimeModel | None = None
        self._noise = (0.0, 0.0)
        self._curve: tuple[object, GoodputCurve] | None = None
        self._chosen: dict[tuple[object, ...], tuple[int, int]] = {}

    # What the agent knows ---------------------------------------------------------------------------

    @property
    def largest_size_seen(self) -> int:
        """Most replicas it has run steps with."""
        return max((replicas for _, replicas, _ in self._seen), default=0)

    @property
    def max_replicas(self) -> int:
        """Most replicas it can use at all."""
        profile = self.profile
        most = (self.batch_size or profile.max_batch_size) // profile.min_local_batch_size
        if profile.max_replicas is not None:
            most = min(most, profile.max_replicas)
        return max(1, most)

    def model(self) -> GoodputModel | None:
        """Return what its agent expects at any size; None before the first step."""
        if self._steps is None:
            return None
        profile = self.profile
        limits = BatchLimits(
            profile.initial_batch_size,
            profile.max_batch_size,
            profile.min_local_batch_size,
            profile.max_local_batch_size,
        )
        return GoodputModel(self._steps, *self._noise, limits, None if self.adaptive else self.batch_size)

    def curve(self, gpus_per_node: int, largest: int) -> GoodputCurve | None:
        """Return expected goodput by size; None before the first step."""
        key = (self._steps, self._noise, gpus_per_node, largest)
        if self._curve is None or self._curve[0] != key:
            model = self.model()
            if model is None:
                return None
            self._curve = (key, model.curve(gpus_per_node, min(largest, self.max_replicas)))
        return self._curve[1]

    def remaining_samples(self) -> float:
        """Return useful samples left by its own count: declared epochs less what it has done.

        An epoch is the data set once, which a job knows before it starts; ``progress`` is its own count.
        """
        profile = self.profile
        total = profile.num_epochs * profile.progress_after(1)
        return max(0.0, total - self.progress) * profile.initial_batch_size

    # What happens -----------------------------------------------------------------------------------

    def place(self, placement: Placement, now_s: float) -> None:
        """Give it these places; a change stops it for ``RESTART_S``."""
        self.placement = placement
        if not placement:
            self._local = 0
            return
        if self.first_start_s is None:
            self.first_start_s = now_s
        self._choose_batch()
        self._restart_left_s = RESTART_S
        self.restarts += 1

    def run(self, seconds: float) -> None:
        """Let time pass."""
        if not self.placement:
            self._clock_s += seconds
            return
        delay_s = min(self._restart_left_s, seconds)
        self._restart_left_s -= delay_s
        self._spend(delay_s)
        seconds -= delay_s
        while seconds > 0 and self.completed_s is None:
            seconds = self._train(seconds)
        self._clock_s += seconds

    def skip_to(self, now_s: float) -> None:
        """Set the clock of a job that is not there yet."""
        self._clock_s = now_s

    def _train(self, seconds: float) -> float:
        """Train until the epoch or the time ends; return seconds left."""
        goodput = self._observe()
        profile = self.profile
        goal = profile.progress_after(self.epoch + 1)
        if self.progress + goodput * seconds < goal:
            self.progress += goodput * seconds
            self._spend(seconds)
            seconds = 0.0
        else:
            self.epoch += 1
            used_s = min(seconds, float(round((goal - self.progress) / goodput)))
            self.progress = goal
            self._spend(used_s)
            seconds -= used_s
            if self.epoch >= profile.num_epochs:
                self.completed_s = self._clock_s
                return seconds
        self._choose_batch()
        return seconds

    def _spend(self, seconds: float) -> None:
        self._clock_s += seconds
        self.attained_gpu_s += seconds * sum(count for _, count in self.placement)

    def _observe(self) -> float:
        """Take the truth at this size, let the agent see it, return progress a second."""
        profile = self.profile
        counts = tuple(count for _, count in self.placement)
        replicas = sum(counts)
        batch = replicas * self._local * (self._extra + 1)
        step_s, sync_s = profile.step_times.at(counts, self._local)
        sqr, var = profile.noise(batch, self.epoch)
        scale = batch / profile.initial_batch_size
        gain = (var + sqr) / (var / scale + sqr) if var + sqr > 0 else 1.0
        self._noise = (sqr, var)
        size = (len(counts), replicas, self._local)
        if self.adaptive and size not in self._seen:
            self._seen[size] = StepObservation(*size, step_s, sync_s)
            self._steps = fit_step_times(list(self._seen.values()))
        return gain / (step_s + (step_s - sync_s) * self._extra)

    def _choose_batch(self) -> None:
        """Set micro-batch and accumulation for the present places."""
        replicas = sum(count for _, count in self.placement)
        batch = self.batch_size
        if batch is None and self._steps is None:
            profile = self.profile
            batch = max(profile.initial_batch_size, profile.min_local_batch_size * replicas)
        if batch is not None:
            self._split(batch, replicas)
        else:
            self._ask_model(len(self.placement), replicas)
        steps = replicas * (self._extra + 1)
        self._local = min(self._local, self.profile.max_batch_size // steps)

    def _ask_model(self, num_nodes: int, replicas: int) -> None:
        """Take the batch size that the agent's model likes best."""
        key = (self._steps, self._noise, num_nodes, replicas)
        if key not in self._chosen:
            model = self.model()
            assert model is not None
            choice = model.best(num_nodes, replicas)
            self._chosen = {key: (choice.local_batch_size, choice.accumulation_steps)}
        self._local, self._extra = self._chosen[key]

    def _split(self, batch: int, replicas: int) -> None:
        """Split a given total batch into micro-batches that fit."""
        local = math.ceil(batch / replicas - 1e-8)
        self._extra = math.ceil(local / self.profile.max_local_batch_size - 1e-8) - 1
        if replicas == 1 and batch > self.profile.initial_batch_size:
            self._extra = max(1, self._extra)
        self._local = math.ceil(local / (self._extra + 1) - 1e-8)
