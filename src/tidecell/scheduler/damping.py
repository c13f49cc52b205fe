"""Whoever was preempted lately is a dearer victim, for a bounded time. Pure.

Two rules against ping-pong. Among victims of equal kind, each preemption of the last hour makes a task
dearer, as if that much more work were lost: ``DEARER_S`` for the first, twice as much for the next, up
to ``2 ** MAX_STEPS``. It only orders: where a higher band has no other victim, it still takes this one.

And what a team takes back from its own band waits: a task that was preempted ``k`` times in the last hour
runs ``PROTECTED_S * 2 ** (k - 1)`` seconds, at most ``MOST_PROTECTED_S``, before it may be taken back again.
So a replica is taken back at most ``MOST_AN_HOUR`` times an hour, whatever others do.
"""

from __future__ import annotations

from tidecell.scheduler.snapshot import TaskView

WINDOW_S = 3600.0
DEARER_S = 60.0
MAX_STEPS = 6
PROTECTED_S = 30.0
MOST_PROTECTED_S = 600.0
# Once unprotected, then after 30, 60, 120, 240, 480 s, then every 600 s: what fits in an hour.
MOST_AN_HOUR = 11


def times_preempted(task: TaskView, now_s: float) -> int:
    """Return how often a task was preempted lately; 0 once an hour has passed since the last time."""
    return task.num_preempted if task.num_preempted and now_s < task.last_preempted_s + WINDOW_S else 0


def dearer_s(task: TaskView, now_s: float) -> float:
    """Return the work, in seconds, that a victim counts for beyond what it really loses."""
    steps = min(times_preempted(task, now_s), MAX_STEPS)
    return DEARER_S * ((1 << steps) - 1)


def protected_s(task: TaskView, now_s: float) -> float:
    """Return how long a task runs before somebody of its own band may take it back."""
    count = times_preempted(task, now_s)
    if not count:
        return 0.0
    return float(min(MOST_PROTECTED_S, PROTECTED_S * 2 ** min(count - 1, MAX_STEPS)))


__all__ = ["MOST_AN_HOUR", "dearer_s", "protected_s", "times_preempted"]
