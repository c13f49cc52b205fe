"""Policies for trainings: the cell's own, and published ones to compare with.

Tiresias and Optimus follow the simulator of Pollux (petuum/adaptdl, branch osdi21-artifact), rules
re-written: they are deterministic, so their published completion times show how close our simulator is.
``PolluxLike`` maximises the published objective of Pollux, by greedy steps where it has a genetic search.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tidecell.capacity.elastic import (
    ElasticTraining,
    SharingRule,
    SizeOption,
    place_sizes,
    share_gpus,
    share_machines,
)
from tidecell.sim.training import ClusterShape
from tidecell.sim.training_job import RESTART_S, Placement, Training

# GPU-seconds after which a job falls into the second queue.
TIRESIAS_THRESHOLD_GPU_S = 16 * 3600.0
# Added to each speed-up in Pollux's harmonic mean, so that a job without places does not make it infinite.
SMALLEST_SPEEDUP = 1e-3
# Where nobody knows what is left, old service says little of it: leaning on it did harm.
BLIND_RULE = SharingRule(size_exponent=0.25, speed_exponent=0.5)


class Tiresias:
    """Two queues by attained service, sizes as asked for (Gu et al., NSDI 2019)."""

    name = "tiresias"
    declared_batch = True

    def __init__(self) -> None:
        self._first: list[str] = []
        self._second: list[str] = []
        self._executed_s: dict[str, float] = {}
        self._running: set[str] = set()
        self._last_s = 0.0

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        """Run jobs of the first queue, then of the second, each by arrival, as long as they fit."""
        jobs = {t.job.name: t for t in trainings}
        self._requeue(now_s, jobs)
        free = cluster.num_nodes * cluster.gpus_per_node
        self._running = set()
        for name in self._first + self._second:
            if jobs[name].job.num_replicas <= free:
                self._running.add(name)
                free -= jobs[name].job.num_replicas
        kept = {n: t.placement for n, t in jobs.items() if n in self._running and t.placement}
        wanted = [
            (n, jobs[n].job.num_replicas)
            for n in self._first + self._second
            if n in self._running and n not in kept
        ]
        return place_on_emptiest(kept, wanted, cluster)

    def _requeue(self, now_s: float, jobs: Mapping[str, Training]) -> None:
        self._first = [n for n in self._first if n in jobs]
        self._second = [n for n in self._second if n in jobs]
        for name in jobs:
            if name not in self._executed_s:
                self._executed_s[name] = 0.0
                self._first.append(name)
            elif name in self._running:
                self._executed_s[name] += now_s - self._last_s
                service = self._executed_s[name] * jobs[name].job.num_replicas
                if name in self._first and service >= TIRESIAS_THRESHOLD_GPU_S:
                    self._first.remove(name)
                    self._second.append(name)
        self._last_s = now_s


class Optimus:
    """GPUs one by one to the job whose remaining time shrinks most (Peng et al., EuroSys 2018).

    As published beside Pollux it is an oracle: it knows true step times and remaining steps.
    """

    name = "optimus"
    declared_batch = True

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        """Give one GPU to each job, then the rest by marginal gain."""
        free = cluster.num_nodes * cluster.gpus_per_node
        sizes: dict[str, int] = {}
        gains: dict[str, float] = {}
        jobs = {t.job.name: t for t in trainings}
        remaining = {name: self._remaining(t) for name, t in jobs.items()}
        for name, training in jobs.items():
            sizes[name] = 1 if free else 0
            free -= sizes[name]
            gains[name] = self._gain(training, sizes[name], remaining[name], free, cluster)
        while free > 0 and max(gains.values()) > 0:
            name = max(gains, key=lambda n: gains[n])
            sizes[name] += 1
            gains[name] = self._gain(jobs[name], sizes[name], remaining[name], free, cluster)
            free -= 1
        kept = {
            n: t.placement
            for n, t in jobs.items()
            if t.placement and sum(c for _, c in t.placement) == sizes[n]
        }
        wanted = [(n, sizes[n]) for n in sorted(jobs, key=lambda n: sizes[n]) if sizes[n] and n not in kept]
        return place_on_emptiest(kept, wanted, cluster)

    def _gain(
        self, training: Training, size: int, remaining: float, free: int, cluster: ClusterShape
    ) -> float:
        """Return seconds that one more replica would save."""
        if size == 0 or size + 1 > training.max_replicas or free < 1:
            return 0.0
        now_s = _step_time_s(training, size, cluster.gpus_per_node)
        return (now_s - _step_time_s(training, size + 1, cluster.gpus_per_node)) * remaining

    def _remaining(self, training: Training) -> float:
        """Return the true steps left at the declared batch."""
        profile, batch = training.profile, training.job.batch_size
        last = profile.num_epochs - 1
        if last <= training.epoch:
            return 1.0
        return profile.iterations(batch, last) - profile.iterations(batch, training.epoch)


def _step_time_s(training: Training, size: int, gpus_per_node: int) -> float:
    """Return the true step time at the declared batch on packed machines."""
    profile, batch = training.profile, training.job.batch_size
    full, rest = divmod(size, gpus_per_node)
    placement = (gpus_per_node,) * full + ((rest,) if rest else ())
    local = math.ceil(batch / size - 1e-8)
    extra = math.ceil(local / profile.max_local_batch_size - 1e-8) - 1
    if size == 1:
        extra = max(1, extra)
    micro = math.ceil(local / (extra + 1) - 1e-8)
    micro = min(micro, profile.max_batch_size // (size * (extra + 1)))
    step_s, sync_s = profile.step_times.at(placement, micro)
    return step_s + (step_s - sync_s) * extra


def place_on_emptiest(
    kept: Mapping[str, Placement], wanted: Sequence[tuple[str, int]], cluster: ClusterShape
) -> dict[str, Placement]:
    """Place each wanted (job, size) on the machines with most free GPUs, beside what is kept."""
    free = [cluster.gpus_per_node] * cluster.num_nodes
    for placement in kept.values():
        for node, count in placement:
            free[node] -= count
    result = dict(kept)
    for name, size in wanted:
        taken: list[tuple[int, int]] = []
        while size > 0:
            node = max(range(cluster.num_nodes), key=lambda n: (free[n], -n))
            count = min(size, free[node])
            taken.append((node, count))
            free[node] -= count
            size -= count
        result[name] = tuple(taken)
    return result


class Goodput:
    """The cell's own policy (``tidecell.capacity.elastic``)."""

    declared_batch = False

    def __init__(self, *, knows_epochs: bool = True, rule: SharingRule | None = None) -> None:
        """Choose what it may know.

        Args:
            knows_epochs: Trainings have said how many epochs they run, so that what is left is known.
            rule: Constants.
        """
        self.name = "goodput" if knows_epochs else "goodput-blind"
        self._knows_epochs = knows_epochs
        self._rule = rule or (SharingRule() if knows_epochs else BLIND_RULE)

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        """Share the machines."""
        machines = (cluster.gpus_per_node,) * cluster.num_nodes
        return share_machines([self._seen(t, cluster) for t in trainings], machines, self._rule)

    def _seen(self, training: Training, cluster: ClusterShape) -> ElasticTraining:
        return as_elastic(training, cluster, knows_epochs=self._knows_epochs)


def as_elastic(training: Training, cluster: ClusterShape, *, knows_epochs: bool) -> ElasticTraining:
    """Return what a training's agent reports, and nothing that only the simulator knows."""
    total = cluster.num_nodes * cluster.gpus_per_node
    return ElasticTraining(
        name=training.job.name,
        curve=training.curve(cluster.gpus_per_node, total),
        remaining_samples=training.remaining_samples() if knows_epochs else None,
        attained_gpu_s=training.attained_gpu_s,
        max_replicas=min(training.max_replicas, total),
        largest_size_seen=training.largest_size_seen,
        placement=training.placement,
        restart_s=RESTART_S,
    )


class PolluxLike:
    """Pollux's objective: the harmonic mean of speed-ups over a fair share, less what restarts cost.

    Differs from the published policy in the search only: greedy from nothing, where it has a genetic
    algorithm over placements. Sizes may double from one decision to the next, as there.
    """

    name = "pollux-like"
    declared_batch = False

    def allocate(
        self, now_s: float, trainings: Sequence[Training], cluster: ClusterShape
    ) -> Mapping[str, Placement]:
        """Share the machines."""
        total = cluster.num_nodes * cluster.gpus_per_node
        elastic = [as_elastic(t, cluster, knows_epochs=False) for t in trainings]
        fair = -(-total // len(trainings))
        options = [self._options(t, e, now_s, fair, cluster) for t, e in zip(trainings, elastic, strict=True)]
        machines = (cluster.gpus_per_node,) * cluster.num_nodes
        return place_sizes(elastic, share_gpus(options, total), machines)

    def _options(
        self,
        training: Training,
        elastic: ElasticTraining,
        now_s: float,
        fair: int,
        cluster: ClusterShape,
    ) -> list[SizeOption]:
        """Return the worth of each size: less the reciprocal of the speed-up, as in a harmonic mean."""
        age_s = now_s - training.job.submitted_s
        factor = max(age_s - max(training.restarts, 0) * RESTART_S, 0.0) / (age_s + RESTART_S)
        most = min(elastic.max_replicas, max(1, 2 * elastic.largest_size_seen))
        per_node, curve = cluster.gpus_per_node, elastic.curve
        base = float(fair)
        if curve is not None:
            size = min(fair, elastic.max_replicas)
            base = curve.at(1 if size <= per_node else 2, size)
        options = [SizeOption(0, -1.0 / SMALLEST_SPEEDUP)]
        for size in range(1, most + 1):
            speed = float(size) if curve is None else curve.at(1 if size <= per_node else 2, size)
            speedup = speed / base / per_node if base > 0 else 0.0
            if size != elastic.size:
                speedup *= factor
            options.append(SizeOption(size, -1.0 / (speedup + SMALLEST_SPEEDUP)))
        return options
