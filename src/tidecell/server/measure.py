"""What was measured: use of tasks, reports of tasks, and one sample of the cell a second.

None of it is journaled: it may be lost without harm. The latest is kept in memory, samples also on disk.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from tidecell.cell.state import CellState, Job
from tidecell.client.views import JobSample, Report, Sample, ServiceSample, TrainSample
from tidecell.engines.wire import Reported, Used
from tidecell.structs.messages import TaskRef
from tidecell.telemetry import SampleStore
from tidecell.traffic.stats import RouterStats, ServiceStats

MAX_REPORTS = 20_000
MAX_SESSIONS = 1_000  # of which the last use is remembered
FRESH_S = 15.0  # a training that was silent for longer shows no throughput


class Measurements:
    """Everything measured, newest first in memory."""

    def __init__(self, store: SampleStore) -> None:
        self.store = store
        self.use: dict[TaskRef, tuple[int, int]] = {}
        self._last_cpu: dict[TaskRef, tuple[float, float]] = {}
        self._reports: deque[Report] = deque(maxlen=MAX_REPORTS)
        self._next_seq = 1
        self._latest: dict[str, Report] = {}  # by uid, of kind train
        self.last_used: dict[str, float] = {}  # by uid: when a dev session was used last

    def take(self, message: Reported | Used, now_s: float) -> None:
        """Take in what the agent sent."""
        if isinstance(message, Used):
            self._take_use(message)
            return
        if message.data.get("kind") == "session":
            self._take_session(message)
            return
        report = Report(self._next_seq, message.ref.uid, message.ref.index, message.at_s, message.data)
        self._next_seq += 1
        self._reports.append(report)
        if message.data.get("kind") == "train":
            self._latest[message.ref.uid] = report

    def _take_session(self, message: Reported) -> None:
        """A dev session says for how long nobody has used it; told often, so only the newest is kept."""
        idle_s = message.data.get("idle_s")
        if isinstance(idle_s, int | float):
            self.last_used.pop(message.ref.uid, None)
            self.last_used[message.ref.uid] = message.at_s - idle_s
        while len(self.last_used) > MAX_SESSIONS:
            del self.last_used[next(iter(self.last_used))]

    def _take_use(self, message: Used) -> None:
        fresh: dict[TaskRef, tuple[float, float]] = {}
        use: dict[TaskRef, tuple[int, int]] = {}
        for row in message.tasks:
            at_s, cpu_s = self._last_cpu.get(row.ref, (message.at_s - 1.0, row.cpu_s))
            elapsed_s = max(0.05, message.at_s - at_s)
            use[row.ref] = (round(1000 * max(0.0, row.cpu_s - cpu_s) / elapsed_s), row.memory_bytes)
            fresh[row.ref] = (message.at_s, row.cpu_s)
        self.use, self._last_cpu = use, fresh

    def reports(self, uid: str, after: int) -> Iterator[Report]:
        """Yield a run's reports with a number above ``after``, oldest first."""
        return (r for r in self._reports if r.seq > after and r.uid == uid)

    def sample(self, state: CellState, stats: RouterStats | None, now_s: float) -> Sample:
        """Return the cell at this moment, and keep it."""
        machines = [m.spec.capacity for m in state.machines.values() if m.up]
        reserved: dict[str, int] = {}
        accelerators: dict[str, int] = {}
        jobs: dict[str, JobSample] = {}
        services: dict[str, ServiceSample] = {}
        trainings: dict[str, TrainSample] = {}
        for job in state.live_jobs():
            entry = self._job_sample(state, job)
            if entry.replicas:
                jobs[job.spec.name] = entry
            if entry.replicas and not job.spec.alloc:  # what is in an alloc is counted with it
                reserved[entry.band] = reserved.get(entry.band, 0) + entry.reserved_cpu_millis
                gpus = sum(t.resources.num_accelerators for t in job.active_tasks())
                accelerators[entry.band] = accelerators.get(entry.band, 0) + gpus
            if job.spec.is_service:
                served = stats.services.get(job.spec.name) if stats is not None else None
                services[job.spec.name] = _service_sample(job, served or ServiceStats())
            report = self._latest.get(job.uid)
            if report is not None and now_s - report.at_s < FRESH_S:
                trainings[job.spec.name] = _train_sample(report.data)
        sample = Sample(
            at_s=now_s,
            capacity_cpu_millis=sum(c.cpu_millis for c in machines),
            reserved_by_band=reserved,
            jobs=jobs,
            services=services,
            trainings=trainings,
            accelerators=sum(c.num_accelerators for c in machines),
            accelerators_by_band=accelerators,
        )
        self.store.append(now_s, msgspec.json.encode(sample))
        return sample

    def _job_sample(self, state: CellState, job: Job) -> JobSample:
        active = job.active_tasks()
        used = [self.use.get(state.ref(job, t), (0, 0)) for t in active]
        return JobSample(
            kind=job.spec.kind.value,
            band=job.spec.priority.band.word,
            replicas=len(active),
            reserved_cpu_millis=sum(t.resources.cpu_millis for t in active),
            used_cpu_millis=sum(cpu for cpu, _ in used),
            memory_bytes=sum(memory for _, memory in used),
        )

    def series(self, since_s: float, until_s: float, max_points: int) -> list[Sample]:
        """Return stored samples, thinned to ``max_points``."""
        rows = self.store.range(since_s, until_s, max_points)
        return [msgspec.json.decode(body, type=Sample) for _, body in rows]


def _service_sample(job: Job, stats: ServiceStats) -> ServiceSample:
    staying = job.staying_tasks()
    return ServiceSample(
        replicas=len(job.active_tasks()),
        ready=sum(1 for t in staying if t.ready),
        desired=job.desired,
        ongoing=stats.ongoing,
        queued=stats.queued,
        rate_per_s=stats.rate_1s,
        requests_total=stats.requests_total,
        failed_total=sum(n for why, n in stats.failed_total.items() if why != "client_closed"),
        latency_ms_p50=stats.duration_ms.p50,
        latency_ms_p95=stats.duration_ms.p95,
        ttft_ms_p95=stats.ttft_ms.p95,
    )


def _train_sample(data: Mapping[str, Any]) -> TrainSample:
    """Take the known numbers of a report; a task may send anything."""

    def number(key: str) -> float:
        value = data.get(key, 0)
        return float(value) if isinstance(value, int | float) else 0.0

    return TrainSample(
        step=int(number("step")),
        num_steps=int(number("num_steps")),
        loss=number("loss"),
        tokens_per_s=number("tokens_per_s"),
        world_size=int(number("world_size")),
    )
