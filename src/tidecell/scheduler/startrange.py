"""When a waiting job starts: a range, and how often such ranges hold. Pure.

Where the cell remembers enough waits, the range is what those say (``waits``): it holds at the stated rate
as far as waits to come are like those remembered. With fewer there is a guess without a rate: the scheduler
itself is run forward through possible futures. In each, every running or starting job ends after a time drawn
from how long similar work took, given how long it has run already, and what is submitted meanwhile is what
was submitted lately.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from msgspec.structs import replace

from tidecell.client.views import StartRange
from tidecell.scheduler.durations import History, draw
from tidecell.scheduler.schedule import schedule
from tidecell.scheduler.snapshot import JobView, Snapshot, TaskView
from tidecell.scheduler.waits import MIN_EXAMPLES, Waits, corrected_s, quantile
from tidecell.scheduler.whatif import carry_out, find_job, new_job, num_missing, num_staying

# Errors between these shares would be 92 % if past waits were independent. They are not: 91 % held on the
# windows of the Philly trace that chose the shares, 87 % on others. What is stated is what held there.
LOW, HIGH = 0.03, 0.95
RATE = 0.85
NUM_FUTURES = 20
MAX_MOMENTS = 200
MAX_PASSES = 1500  # scheduling passes for one answer; a larger cell is asked fewer futures


@dataclass
class _Future:
    """One way how things may go."""

    number: int
    seed: int
    history: History
    ends_s: dict[str, float]
    coming: list[tuple[float, JobView]] = field(default_factory=list)  # soonest last

    def expect_arrivals(self, now_s: float) -> None:
        """Let what came lately come again, at moments of this future's own."""
        span_s = max((age_s for age_s, _ in self.history.arrivals), default=0.0)
        for i, (_, spec) in enumerate(self.history.arrivals):
            at_s = now_s + span_s * draw(f"arrival {i}", self.seed, self.number)
            spec = replace(spec, after=())
            self.coming.append((at_s, new_job(spec, at_s, uid=f"{spec.name}.future{i}")))
        self.coming.sort(key=lambda c: -c[0])

    def arrive(self, snapshot: Snapshot) -> Snapshot:
        """Return the snapshot with what has been submitted by then."""
        jobs = []
        while self.coming and self.coming[-1][0] <= snapshot.now_s:
            jobs.append(self.coming.pop()[1])
        return replace(snapshot, jobs=(*snapshot.jobs, *jobs)) if jobs else snapshot

    def meet(self, job: JobView, now_s: float, ran_s: float) -> None:
        """Draw when a job ends that has run for so long."""
        if job.uid not in self.ends_s:
            quantile = draw(job.uid, self.seed, self.number)
            left_s = self.history.remaining_s(job.spec, ran_s, quantile)
            if left_s is not None:
                self.ends_s[job.uid] = now_s + left_s


def start_range(snapshot: Snapshot, uid: str, history: History, seed: int = 0) -> StartRange | None:
    """Return when what waits of a job starts, or None if that cannot be said.

    Args:
        snapshot: The cell as it is.
        uid: Of a job with waiting tasks.
        history: How long past work took, and waited.
        seed: Of the live scheduler, and of the futures.
    """
    job = find_job(snapshot, uid)
    if job is None or job.blocked_by or job.held or not snapshot.machines:
        return None
    return _by_waits(snapshot, job, history, seed) or _by_futures(snapshot, job, history, seed)


def _by_waits(snapshot: Snapshot, job: JobView, history: History, seed: int) -> StartRange | None:
    """Return the range that remembered waits give; None: there are too few, or it does not wait to start."""
    waits, now_s = Waits.of(history.waits, job.spec, history.known_since_s), snapshot.now_s
    row = next((i for i, uid in enumerate(waits.uids) if uid == job.uid), None)
    if row is None or waits.until_N[row] <= now_s or waits.since_N[row] > now_s:
        return None
    estimate_s = waits.estimate_s(row, now_s)
    examples = waits.examples(now_s, seed)
    if estimate_s is None or len({e.uid for e in examples if e.known}) < MIN_EXAMPLES:
        return None
    low_s, mid_s, high_s = (corrected_s(estimate_s, quantile(examples, q)) for q in (LOW, 0.5, HIGH))
    return StartRange(now_s + low_s, _moment(now_s + mid_s), _moment(now_s + high_s), RATE, len(examples))


def _moment(at_s: float) -> float | None:
    return at_s if math.isfinite(at_s) else None


def _by_futures(snapshot: Snapshot, job: JobView, history: History, seed: int) -> StartRange | None:
    """Return from when to when it starts in possible futures; how often that holds is not known."""
    uid = job.uid
    goal = num_staying(job) + max(1, num_missing(job))
    starts: list[float] = []
    passes = 0
    for number in range(NUM_FUTURES):
        start_s, used = _start_in(snapshot, uid, goal, _Future(number, seed, history, {}))
        passes += used
        if start_s is None:
            return None  # a future in which it never starts: no latest moment can be named
        starts.append(start_s)
        if passes > MAX_PASSES:
            break
    if len(starts) < NUM_FUTURES // 2:
        return None
    starts.sort()
    return StartRange(starts[0], starts[len(starts) // 2], starts[-1], 0.0, len(starts))


def _start_in(snapshot: Snapshot, uid: str, goal: int, future: _Future) -> tuple[float | None, int]:
    """Return when the job starts in this future, and how many passes that took to find out."""
    for job in snapshot.jobs:
        since = [t.placed_s for t in job.tasks if t.machine]
        if since:
            future.meet(job, snapshot.now_s, snapshot.now_s - min(since))
    future.expect_arrivals(snapshot.now_s)
    for passes in range(1, MAX_MOMENTS + 1):
        plan, _ = schedule(snapshot, future.seed)
        snapshot = carry_out(snapshot, plan)
        mine = find_job(snapshot, uid)
        if mine is not None and num_staying(mine) >= goal:
            return snapshot.now_s, passes
        for started in {p.uid for p in plan.placements}:
            found = find_job(snapshot, started)
            if found is not None:
                future.meet(found, snapshot.now_s, 0.0)
        at_s = _next_s(snapshot, uid, future.ends_s)
        if at_s is None:
            return None, passes
        snapshot = future.arrive(_at(snapshot, at_s, uid, future.ends_s))
    return None, MAX_MOMENTS


def _next_s(snapshot: Snapshot, mine: str, ends_s: Mapping[str, float]) -> float | None:
    """Return the next moment at which anything ends, leaves, or may be tried again."""
    moments = []
    for job in snapshot.jobs:
        for task in job.tasks:
            if task.machine and task.leaving:
                moments.append(task.leaving_by_s)
            elif task.machine and job.uid != mine and job.uid in ends_s:
                moments.append(ends_s[job.uid])
            elif task.pending and task.not_before_s > snapshot.now_s:
                moments.append(task.not_before_s)
    return max(snapshot.now_s, min(moments)) if moments else None


def _at(snapshot: Snapshot, at_s: float, mine: str, ends_s: Mapping[str, float]) -> Snapshot:
    """Return the snapshot at a moment, without what has ended or left by then."""
    jobs = []
    for job in snapshot.jobs:
        runs = any(t.machine and not t.leaving for t in job.tasks)
        if runs and job.uid != mine and ends_s.get(job.uid, at_s + 1) <= at_s:
            continue
        if any(t.leaving and t.leaving_by_s <= at_s for t in job.tasks):
            tasks = tuple(t for old in job.tasks if (t := _after(job, old, at_s)) is not None)
            if not tasks and job.stopping:
                continue
            job = replace(job, tasks=tasks)
        jobs.append(job)
    return replace(snapshot, now_s=at_s, jobs=tuple(jobs))


def _after(job: JobView, task: TaskView, at_s: float) -> TaskView | None:
    if not (task.leaving and task.leaving_by_s <= at_s):
        return task
    return TaskView(task.index, pending=True) if task.index < job.desired and not job.stopping else None
