"""How far a simulated job is: its work goes on while enough replicas run. Pure.

Work is counted in seconds at full size. A job below its gang stands still. What was done since the last
checkpoint is lost when the whole gang stops or a member of it is lost; without checkpoints, all is. The items
of an array work for themselves: one that stops before its end begins again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tidecell.sim.workload import SimJob
from tidecell.structs.messages import TaskRef


@dataclass
class Progress:
    """One job's work.

    Attributes:
        done_s: Work done, as of ``since_s``.
        running: Its starts that run, and since when.
        version: Changes whenever its end moves; an end scheduled under another version is void.
        lost_s: Work that was done and had to be done again.
    """

    job: SimJob
    uid: str
    done_s: float = 0.0
    since_s: float = 0.0
    running: dict[TaskRef, float] = field(default_factory=dict)
    version: int = 0
    lost_s: float = 0.0
    first_start_s: float | None = None

    @property
    def speed(self) -> float:
        """Return work done in a second: the share of its replicas that run; below its gang, 0."""
        if self.job.spec.array is not None:
            return 0.0
        replicas = self.job.spec.replicas
        size = min(len(self.running), replicas.max)
        if size == 0 or (size < replicas.min and not self.job.spec.is_service):
            return 0.0
        return size / replicas.max

    def advance(self, now_s: float) -> None:
        """Count the work done until now."""
        self.done_s += (now_s - self.since_s) * self.speed
        self.since_s = now_s

    def start(self, ref: TaskRef, now_s: float) -> None:
        """A replica runs."""
        self.advance(now_s)
        if self.first_start_s is None:
            self.first_start_s = now_s
        self.running[ref] = now_s
        self.version += 1

    def stop(self, ref: TaskRef, now_s: float) -> None:
        """A replica does not run any more; a broken gang goes back to its last checkpoint."""
        if ref not in self.running:
            return
        self.advance(now_s)
        was_moving = self.speed > 0
        began_s = self.running.pop(ref)
        self.version += 1
        if self.job.spec.array is not None:
            self._stop_item(now_s - began_s)
        if was_moving and self.speed == 0 and not self.is_done():
            self._go_back()

    def _go_back(self) -> None:
        checkpoint = self.job.spec.checkpoint
        kept_s = self.done_s // checkpoint.every_s * checkpoint.every_s if checkpoint is not None else 0.0
        self.lost_s += self.done_s - kept_s
        self.done_s = kept_s

    def _stop_item(self, ran_s: float) -> None:
        if self.job.work_s is not None and ran_s < self.job.work_s - 1e-6:
            self.lost_s += ran_s
        else:
            self.done_s += ran_s

    def left_s(self) -> float | None:
        """Return seconds until its work is done at the present speed, or None if it never is."""
        if self.job.work_s is None or self.speed == 0:
            return None
        return max(0.0, self.job.work_s - self.done_s) / self.speed

    def is_done(self) -> bool:
        """Return whether its work is done, to a microsecond."""
        return self.job.work_s is not None and self.done_s >= self.job.work_s - 1e-6
