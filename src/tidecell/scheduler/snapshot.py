"""What the scheduler sees and what it says: an immutable picture in, a plan and a trace out.

The snapshot knows nothing of journals, engines or clocks; ``plan``, ``why`` and the simulator build
the same picture and ask the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from tidecell.scheduler.fleet import Fleet
from tidecell.structs.job import JobSpec, Reason
from tidecell.structs.machine import MachineSpec
from tidecell.structs.messages import Claim, Plan
from tidecell.structs.resources import Resources
from tidecell.structs.tenant import Policy


class TaskView(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A task as the scheduler sees it.

    Attributes:
        resources: What it was granted; nothing while it is pending.
        machine: Where it is: a machine's name, or that of an alloc's envelope.
        placed_s: Since when it holds its machine.
        leaving: It was told to leave and still holds its resources.
        not_before_s: It backs off until then.
        avoid: Machines on which it failed lately.
        num_preempted: How often it was preempted within an hour of the time before.
    """

    index: int
    pending: bool = False
    machine: str = ""
    accelerators: tuple[int, ...] = ()
    resources: Resources = Resources()
    placed_s: float = 0.0
    leaving: bool = False
    leaving_by_s: float = 0.0
    not_before_s: float = 0.0
    avoid: tuple[str, ...] = ()
    num_preempted: int = 0
    last_preempted_s: float = 0.0

    def running_s(self, now_s: float) -> float:
        """Return how long its present start has lasted."""
        return max(0.0, now_s - self.placed_s)


class JobView(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """A live job as the scheduler sees it.

    Attributes:
        tasks: Wanted pending tasks and all active ones.
        desired: Replicas wanted now.
        blocked_by: Names of jobs that must succeed first and have not.
        ends_by_s: When its ``max_duration`` ends it at the latest; 0: unknown.
        held: Somebody holds it back.
        begin_s: It does not start before.
        done: Indices of tasks that have succeeded; they count towards the gang and never run again.
        extra: Indices at or above ``desired`` at which a replica is wanted, standing in for another.
        vacant: Indices below ``desired`` at which none is wanted.
        spare_disruptions: How many of its tasks may be taken now; None: no budget says.
    """

    uid: str
    spec: JobSpec
    submitted_s: float
    desired: int
    tasks: tuple[TaskView, ...]
    blocked_by: tuple[str, ...] = ()
    ends_by_s: float = 0.0
    stopping: bool = False
    done: tuple[int, ...] = ()
    held: bool = False
    begin_s: float = 0.0
    extra: tuple[int, ...] = ()
    vacant: tuple[int, ...] = ()
    spare_disruptions: int | None = None

    def wants(self, index: int) -> bool:
        """Return whether a replica is wanted at this index."""
        return index not in self.vacant if index < self.desired else index in self.extra

    @property
    def name(self) -> str:
        """The job's name."""
        return self.spec.name


class Snapshot(msgspec.Struct, frozen=True, omit_defaults=True):
    """One immutable picture of a cell.

    Attributes:
        machines: Those that are up, and after them the envelopes of allocs.
        closed: Names of those that take no new work.
    """

    now_s: float
    machines: tuple[MachineSpec, ...]
    jobs: tuple[JobView, ...]
    claims: tuple[Claim, ...] = ()
    closed: tuple[str, ...] = ()
    policy: Policy | None = None


@dataclass
class Kept:
    """What a live cell keeps beside its snapshot, so that a pass costs only what changed.

    It never changes a plan: it is what ``schedule`` would work out from the snapshot itself.

    Attributes:
        fleet: The machines with all that tasks hold; ``schedule`` works on a copy.
        jobs: The snapshot's jobs by uid.
        waiting: Uids of the jobs that have wanted, pending tasks, in the snapshot's order.
    """

    fleet: Fleet
    jobs: Mapping[str, JobView]
    waiting: tuple[str, ...]


class Waiting(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Why a job's tasks wait.

    Attributes:
        reasons: All that bind, the decisive one first.
        detail: One line in words.
        num_tasks: How many tasks wait.
        behind: Name of the job whose reserved start it must not delay.
    """

    reasons: tuple[Reason, ...]
    detail: str
    num_tasks: int = 1
    behind: str = ""


@dataclass
class PlanTrace:
    """What the scheduler thought: for each job with waiting tasks, why.

    Attributes:
        waiting: By uid.
        order: Uids in the order in which they were served, those that started among them.
    """

    waiting: dict[str, Waiting] = field(default_factory=dict)
    order: dict[str, None] = field(default_factory=dict)

    def queue(self) -> list[str]:
        """Return the uids of jobs that wait, in scheduling order; what cannot be served yet comes last."""
        served = [uid for uid in self.order if uid in self.waiting]
        return served + [uid for uid in self.waiting if uid not in self.order]

    def positions(self, team_of: Callable[[str], str]) -> dict[str, tuple[int, int]]:
        """Return each waiting job's place in scheduling order, from 1: among all, and among its team's."""
        seen: dict[str, int] = {}
        out: dict[str, tuple[int, int]] = {}
        for place, uid in enumerate(self.queue(), 1):
            team = team_of(uid)
            seen[team] = seen.get(team, 0) + 1
            out[uid] = (place, seen[team])
        return out


__all__ = ["JobView", "Kept", "Plan", "PlanTrace", "Snapshot", "TaskView", "Waiting"]
