"""Who held how much for how long, summed from the journal's events. Pure.

An ``Account`` follows the events through ``apply``; whenever one touches a job, what the job held since the
event before is added up. The same events give the same sums, to the bit: amounts are whole units and times
are differences of the journal's own. Teams and bands may change while a job runs; they are read each time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tidecell.cell.state import CellState, Job, apply
from tidecell.client.account_views import UsageRow
from tidecell.structs.job import Cause, TaskState
from tidecell.structs.messages import Claimed, Event, TaskNoticed, TaskPlaced
from tidecell.structs.resources import GPU
from tidecell.structs.tenant import Prices

GROUPS = ("team", "band", "job", "user")
Key = tuple[str, str, str, str, float]  # team, band, job, user, beginning of the step
_HOUR_S = 3600.0
DAY_S = 86_400.0  # step of what is kept of events that are not
_GIB = 1 << 30


@dataclass
class Sums:
    """What one group held: amounts times seconds."""

    cpu_milli_s: float = 0.0
    memory_byte_s: float = 0.0
    gpu_milli_s: dict[str, float] = field(default_factory=dict)
    requested_cpu_milli_s: float = 0.0
    requested_gpu_milli_s: float = 0.0
    waited_s: float = 0.0
    preemptions: int = 0
    starts: int = 0

    def add(self, other: Sums) -> None:
        """Add what another group held."""
        for name in ("cpu_milli_s", "memory_byte_s", "requested_cpu_milli_s", "requested_gpu_milli_s"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, amount in other.gpu_milli_s.items():
            self.gpu_milli_s[kind] = self.gpu_milli_s.get(kind, 0.0) + amount
        self.waited_s += other.waited_s
        self.preemptions += other.preemptions
        self.starts += other.starts


@dataclass
class Kept:
    """What is left of events that are not kept any more.

    Attributes:
        state: The cell as they left it.
        at_s: Up to when all is summed.
        days: The sums, in steps of a day.
    """

    state: CellState
    at_s: float
    days: dict[Key, Sums]


class Account:
    """Sums over the events of a journal, between two moments.

    Args:
        since_s: What was before does not count; the events before still have to be taken.
        until_s: Nor does what comes after.
        every_s: Cut the time into steps of this length, from the epoch on; 0: one sum.
        kept: What came before the first event; of it every day counts that lies in part between the two.
    """

    def __init__(
        self,
        since_s: float = 0.0,
        until_s: float = math.inf,
        every_s: float = 0.0,
        kept: Kept | None = None,
    ) -> None:
        self.sums: dict[Key, Sums] = {}
        self._since_s, self._until_s, self._every_s = since_s, until_s, every_s
        self._last_s: dict[str, float] = {}
        self.state = kept.state if kept is not None else CellState()
        if kept is not None:
            self._last_s = dict.fromkeys(self.state.live_uids, kept.at_s)
            self._take_days(kept.days)

    def _take_days(self, days: Mapping[Key, Sums]) -> None:
        for key, day in days.items():
            if key[4] + DAY_S > self._since_s and key[4] < self._until_s:
                self.sums.setdefault((*key[:4], self._step(key[4])[0]), Sums()).add(day)

    def take(self, event: Event, at_s: float) -> None:
        """Take the next event of the journal."""
        uid = uid_of(event)
        job = self.state.jobs.get(uid)
        if job is not None:
            self._settle(job, at_s)
            self._count(job, event, at_s)
        apply(self.state, event, at_s)
        job = self.state.jobs.get(uid)
        if job is not None and job.live:
            self._last_s[uid] = at_s
        else:
            self._last_s.pop(uid, None)

    def close(self, at_s: float) -> dict[Key, Sums]:
        """Add up what live jobs hold until ``at_s``; return all sums."""
        for uid in list(self._last_s):
            self._settle(self.state.jobs[uid], at_s)
            self._last_s[uid] = at_s
        return self.sums

    def team_and_band(self, name: str) -> tuple[str, str, str]:
        """Return team, band and user of the newest run of that name, empty if it is not known."""
        job = self.state.find(name)
        return (*_group(job)[:2], _group(job)[3]) if job is not None else ("", "", "")

    # ---------------------------------------------------------------------------------- adding up

    def _settle(self, job: Job, at_s: float) -> None:
        begin_s = max(self._last_s.get(job.uid, at_s), self._since_s)
        end_s = min(at_s, self._until_s)
        while begin_s < end_s:
            step_s, next_s = self._step(begin_s)
            stop_s = min(end_s, next_s)
            self._add(self._sums(job, step_s), job, stop_s - begin_s)
            begin_s = stop_s

    def _step(self, at_s: float) -> tuple[float, float]:
        if not self._every_s:
            return 0.0, math.inf
        number = math.floor(at_s / self._every_s)
        return number * self._every_s, (number + 1) * self._every_s

    def _sums(self, job: Job, step_s: float) -> Sums:
        return self.sums.setdefault((*_group(job), step_s), Sums())

    def _count(self, job: Job, event: Event, at_s: float) -> None:
        if not self._since_s <= at_s < self._until_s:
            return
        if isinstance(event, TaskNoticed) and event.cause is Cause.PREEMPT:
            self._sums(job, self._step(at_s)[0]).preemptions += 1
        elif isinstance(event, TaskPlaced):
            self._sums(job, self._step(at_s)[0]).starts += 1

    def _add(self, sums: Sums, job: Job, seconds: float) -> None:
        inside = bool(job.spec.alloc)  # what it holds is its alloc's, and counted there
        for task in job.open_tasks():
            wanted = task.index < job.desired and job.stopping is None
            if task.active and not inside:
                held = task.resources
                sums.cpu_milli_s += held.cpu_millis * seconds
                sums.memory_byte_s += held.memory_bytes * seconds
                for kind, millis in self._devices(job, task.machine, task.accelerators, held.gpu_millis):
                    sums.gpu_milli_s[kind] = sums.gpu_milli_s.get(kind, 0.0) + millis * seconds
            elif task.state is TaskState.PENDING and wanted:
                sums.waited_s += seconds
            if (task.active or wanted) and not inside:
                asked = job.spec.request(task.index)
                sums.requested_cpu_milli_s += asked.cpu_millis * seconds
                sums.requested_gpu_milli_s += asked.gpu_millis * seconds

    def _devices(
        self, job: Job, machine: str, indices: tuple[int, ...], gpu_millis: int
    ) -> Iterable[tuple[str, int]]:
        """Yield type and thousandths of each device; a share is of one, a larger grant of whole ones."""
        if not gpu_millis:
            return
        known = self.state.machines.get(machine)
        types = {a.index: a.type for a in known.spec.accelerators} if known is not None else {}
        for index in indices:
            yield types.get(index, job.spec.accelerator_type), min(gpu_millis, GPU)
        if not indices:
            yield job.spec.accelerator_type, gpu_millis


def uid_of(event: Event) -> str:
    """Return the uid of the job that an event is about; empty: the cell."""
    ref = getattr(event, "ref", None)
    if ref is not None:
        return str(ref.uid)
    return event.claim.uid if isinstance(event, Claimed) else str(getattr(event, "uid", ""))


def _group(job: Job) -> tuple[str, str, str, str]:
    spec = job.spec
    return (spec.team, spec.priority.band.word, spec.name, spec.labels.get("user", ""))


# -------------------------------------------------------------------------------------------- rows


def usage_rows(
    sums: Mapping[Key, Sums], by: Iterable[str], prices: Prices, used: Mapping[Key, tuple[float, float]]
) -> tuple[UsageRow, ...]:
    """Return sums by group, the largest first.

    Args:
        sums: As an ``Account`` has them.
        by: Which of ``GROUPS`` to keep apart.
        prices: What an hour costs.
        used: Measured cpu (millis times seconds) and memory (bytes times seconds), by the same keys.
    """
    keep = set(by)
    groups: dict[Key, list[Key]] = {}
    for key in sorted({*sums, *used}):
        names = [value if name in keep else "" for name, value in zip(GROUPS, key[:4], strict=True)]
        groups.setdefault((names[0], names[1], names[2], names[3], key[4]), []).append(key)
    rows = [
        _row(group, [sums.get(k, Sums()) for k in keys], prices, _measured(used, keys))
        for group, keys in groups.items()
    ]
    return tuple(sorted(rows, key=lambda r: (r.at_s, -r.cost, -r.all_gpu_hours, -r.cpu_hours, r.team, r.job)))


def _measured(used: Mapping[Key, tuple[float, float]], keys: list[Key]) -> tuple[float, float]:
    pairs = [used.get(k, (0.0, 0.0)) for k in keys]
    return math.fsum(p[0] for p in pairs), math.fsum(p[1] for p in pairs)


def _row(group: Key, parts: list[Sums], prices: Prices, used: tuple[float, float]) -> UsageRow:
    gpu: dict[str, float] = {}
    for kind in sorted({k for p in parts for k in p.gpu_milli_s}):
        gpu[kind] = math.fsum(p.gpu_milli_s.get(kind, 0.0) for p in parts) / GPU / _HOUR_S
    cpu = math.fsum(p.cpu_milli_s for p in parts) / 1000 / _HOUR_S
    memory = math.fsum(p.memory_byte_s for p in parts) / _GIB / _HOUR_S
    cost = cpu * prices.cpu_hour + memory * prices.memory_gib_hour
    cost += math.fsum(hours * price_of(kind, prices) for kind, hours in gpu.items())
    return UsageRow(
        team=group[0],
        band=group[1],
        job=group[2],
        user=group[3],
        at_s=group[4],
        cpu_hours=cpu,
        memory_gib_hours=memory,
        gpu_hours=gpu,
        requested_cpu_hours=math.fsum(p.requested_cpu_milli_s for p in parts) / 1000 / _HOUR_S,
        requested_gpu_hours=math.fsum(p.requested_gpu_milli_s for p in parts) / GPU / _HOUR_S,
        used_cpu_hours=used[0] / 1000 / _HOUR_S,
        used_memory_gib_hours=used[1] / _GIB / _HOUR_S,
        waited_hours=math.fsum(p.waited_s for p in parts) / _HOUR_S,
        preemptions=sum(p.preemptions for p in parts),
        starts=sum(p.starts for p in parts),
        cost=cost,
    )


def price_of(kind: str, prices: Prices) -> float:
    """Return the price of an accelerator hour; a type's name matches on a part, as in specs."""
    mine = kind.lower()
    for name, price in prices.gpu_hour.items():
        if name and name.lower() in mine:
            return price
    return prices.gpu_hour.get("", 0.0)


__all__ = ["DAY_S", "GROUPS", "Account", "Kept", "Sums", "price_of", "uid_of", "usage_rows"]
