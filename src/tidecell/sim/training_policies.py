"""Published policies for trainings, to compare with: Tiresias and Optimus.

Both as the simulator of Pollux has them (petuum/adaptdl, branch osdi21-artifact), rules re-written:
deterministic, so that their published completion times show how close our simulator is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from tidecell.sim.training import ClusterShape
from tidecell.sim.training_job import Placement, Training

# GPU-seconds after which a job falls into the second queue.
TIRESIAS_THRESHOLD_GPU_S = 16 * 3600.0


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
        wanted = [
            (n, sizes[n]) for n in sorted(jobs, key=lambda n: sizes[n]) if sizes[n] and n not in kept
        ]
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
        placement = []
        while size > 0:
            node = max(range(cluster.num_nodes), key=lambda n: (free[n], -n))
            count = min(size, free[node])
            placement.append((node, count))
            free[node] -= count
            size -= count
        result[name] = tuple(placement)
    return result
