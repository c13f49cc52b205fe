"""Jobs whose accelerators do nothing: watched by measured use, ended where their specs say so.

What is not measured counts as use; so does a control plane that was away, since it begins to watch anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tidecell.cell.state import CellState, Job
from tidecell.structs.lifecycle import JobIdle
from tidecell.structs.messages import TaskRef


class IdleWatch:
    """Since when each start of a task has been idle."""

    def __init__(self) -> None:
        self._since_s: dict[TaskRef, float] = {}

    def take(self, state: CellState, machine: str, percents: Mapping[int, int], now_s: float) -> None:
        """Take in how busy a machine's accelerators are."""
        for job, task in state.tasks_on(machine):
            rule, ref = job.spec.idle_gpu, state.ref(job, task)
            if rule is None:
                continue
            known = [percents.get(device) for device in task.accelerators]
            idle = bool(known) and all(p is not None and p < rule.below_percent for p in known)
            if idle and task.started_s:
                self._since_s.setdefault(ref, now_s)
            else:
                self._since_s.pop(ref, None)

    def over(self, state: CellState, now_s: float) -> Iterator[JobIdle]:
        """Yield the jobs of which every replica has been idle for as long as its spec allows."""
        live: dict[TaskRef, float] = {}
        for uid in {ref.uid for ref in self._since_s}:
            job = state.jobs.get(uid)
            if job is None or not job.live or job.stopping is not None:
                continue
            refs = [state.ref(job, t) for t in job.active_tasks()]
            live |= {ref: self._since_s[ref] for ref in refs if ref in self._since_s}
            if _is_over(job, [self._since_s.get(ref) for ref in refs], now_s):
                yield JobIdle(uid)
        self._since_s = live


def _is_over(job: Job, since_s: list[float | None], now_s: float) -> bool:
    rule = job.spec.idle_gpu
    if rule is None or not since_s:
        return False
    return all(s is not None and now_s - s >= rule.for_s for s in since_s)


__all__ = ["IdleWatch"]
